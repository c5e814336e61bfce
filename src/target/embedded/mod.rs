//! The embedded fact store.
