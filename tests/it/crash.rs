//! Atomic: whatever ends the process, a restart ends in the same state as if nothing had.
//!
//! [`moments`] dies at each named step, [`kills`] at random ones under load; with [`power`] goes what was not synced, too, and in [`full`]
//! there is no space. Both run on the [`disk`] of `tests/tools/disk.c`.

mod disk;
mod full;
mod kills;
pub(crate) mod moments;
mod power;

/// What `abort` ends a process with.
const SIGABRT: i32 = 6;
