//! Wanted against stored.
