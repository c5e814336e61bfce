//! Atomic: whatever ends the process, a restart ends in the same state as if nothing had.
//!
//! [`moments`] dies at each named step, [`kills`] at random ones under load.

mod kills;
pub(crate) mod moments;

/// What `abort` ends a process with.
const SIGABRT: i32 = 6;
