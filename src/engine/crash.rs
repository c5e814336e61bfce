//! Moments at which a test lets the process die: only debug builds have them.
//!
//! A kill from outside hits such a moment by luck. These are named, so that a test can die at each of them, the first time it comes or a
//! later one: `FACTSYNC_DIE_AT=committed:3` is the third. What must hold is the same at all of them: a restart ends where no death would
//! have ended.

/// Steps of a change between its computation and its acknowledgement, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The store transaction is open, with a part of the commits in it or none.
    Computing,
    /// The commits are on the disk here, and nobody has been told.
    Committed,
    /// The checkpoint is on the disk, and the source has not been told.
    Told,
    /// The fact store has taken a batch, and here it still waits.
    Sent,
    /// The outbox has let go of a batch, and nobody who waits has heard of it.
    Acknowledged,
    /// A hold has ended on the disk here, and who asked for it has not been told.
    Released,
}

/// Dies if this is the moment.
#[cfg(debug_assertions)]
pub(super) fn moment(moment: Moment) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("FACTSYNC_DIE_AT").ok()?;
        let (name, times) = text.split_once(':')?;
        Some((name.to_owned(), times.parse().ok()?))
    });
    let Some((name, times)) = wanted else { return };
    if *name == format!("{moment:?}").to_lowercase() && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // No unwinding, no destructor, no flush: as a kill.
        std::process::abort();
    }
}

/// Not in a release.
#[cfg(not(debug_assertions))]
pub(super) fn moment(_: Moment) {}
