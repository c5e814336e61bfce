//! Moments at which a test lets the process die: only debug builds have them.
//!
//! A kill from outside hits such a moment by luck. These are named, so that a test can die at each of them, the first time it comes or a
//! later one: `FACTSYNC_DIE_AT=committed:3` is the third. What must hold is the same at all of them: a restart ends where no death would
//! have ended.
//!
//! They stand where one durable effect has happened and the next one has not: between two transactions of the local store, between it and
//! the checkpoint, the source, or the fact store. The list below is the only one; `tests/it/crash/moments.rs` walks it, and a moment that
//! never comes fails it.

/// Declares the moments and the list of all of them.
macro_rules! moments {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Steps between which the process may die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Moment {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Moment {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];
        }
    };
}

moments! {
    /// Which slot each source has is settled, and whose views are whose is not.
    SlotsKept,
    /// Whose views are whose is settled, and none is registered.
    Reassigned,
    /// The views of one source are registered, those of the next are not.
    Registered,
    /// A new history has begun in the local store, and the checkpoint is that of the old one.
    Begun,
    /// The server has a new slot, and nobody here knows its position.
    Slotted,
    /// A snapshot is read and handed over.
    Read,
    /// A view's state is built from whole tables, and that is not committed.
    Loading,
    /// It is committed, without the facts that belong to it.
    Loaded,
    /// The facts of a snapshot are committed, and neither the checkpoint nor the source has been told.
    Replaced,
    /// The fact store is listed, and nothing is compared.
    Listed,
    /// The comparison is in the backlog, and nobody has been told.
    Compared,
    /// Commits were decoded and handed over.
    Received,
    /// The store transaction is open, with a part of the commits in it or none.
    Computing,
    /// A part of a large transaction of the source is applied, and the rest has not come.
    Split,
    /// A store transaction, of whatever kind, is complete but for its commit.
    Writing,
    /// The commits are on the disk here, and nobody has been told.
    Committed,
    /// Time has passed for the views, and nobody has been told.
    Passed,
    /// Progress without changes is on the disk, and nobody has been told.
    Advanced,
    /// The checkpoint is written and not flushed.
    Telling,
    /// The checkpoint is on the disk, and the source has not been told.
    Told,
    /// The source has been told.
    Confirmed,
    /// A batch is about to leave.
    Sending,
    /// The fact store has taken a batch of the outbox, and here it still waits.
    Sent,
    /// The same of a batch of the backlog.
    Backfilled,
    /// The queues have let go of a batch, and nobody who waits has heard of it.
    Acknowledged,
    /// A batch that may have arrived is marked, and not repeated yet.
    Doubted,
    /// A part of the outbox is folded into the backlog.
    Folded,
    /// A hold has ended on the disk here, and who asked for it has not been told.
    Released,
    /// A refused fact is out of the way, and nobody has been told.
    Parked,
    /// The embedded fact store has committed a group, and has answered none of it.
    Answering,
    /// The embedded fact store has brought a slice of its log into its tables.
    Settled,
    /// The position is forgotten, and the checkpoint still witnesses it.
    Forgotten,
    /// The state of a view that changed is let go of, and nothing is read.
    Dropped,
    /// The plan of a view is not trusted any more, and its facts are still those of that plan.
    Demoted,
    /// A view whose query changed is known to be stale, and the change is not remembered.
    Marked,
}

impl Moment {
    /// What `FACTSYNC_DIE_AT` calls it.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Dies if this is the moment.
#[cfg(debug_assertions)]
pub(crate) fn moment(moment: Moment) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    static WANTED: OnceLock<Option<(Moment, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);

    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("FACTSYNC_DIE_AT").ok()?;
        let (name, times) = text.split_once(':')?;
        let moment = Moment::ALL.iter().find(|moment| moment.name() == name)?;
        Some((*moment, times.parse().ok()?))
    });
    let Some((wanted, times)) = wanted else { return };
    if *wanted == moment && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *times {
        // No unwinding, no destructor, no flush: as a kill.
        std::process::abort();
    }
}

/// Not in a release.
#[cfg(not(debug_assertions))]
pub(crate) fn moment(_: Moment) {}
