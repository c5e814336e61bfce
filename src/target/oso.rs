//! Oso Cloud.
