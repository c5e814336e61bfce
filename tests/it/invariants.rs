//! The invariants of `src/lib.rs` on the real binary and real servers; each test's name begins with the invariant it proves.
//!
//! *Exact* is also `run_github.rs`, *atomic* is `crash.rs`.

mod application;
mod bounded;
mod guarded;
mod idempotent;
mod loud;
mod outages;
mod restored;
mod seamless;
mod secrets;
mod waits;
