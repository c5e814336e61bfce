//! Wanted against stored.

pub mod diff;
