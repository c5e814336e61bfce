//! Who acts on a failure.
//!
//! Every boundary has its own error type (`ConfigProblems`, [`SourceError`], [`TargetError`], [`StoreError`]); each of
//! them answers one question in one `match` without a catch-all arm: who acts next? The engine retries
//! what is [`Disposition::Retry`] with backoff, shows what is [`Disposition::Operator`] in `/v1/status` and keeps
//! everything else going, and stops the process on [`Disposition::Bug`], because a store whose invariants do not hold must
//! not be written to.
//!
//! [`SourceError`]: crate::source::SourceError
//! [`TargetError`]: crate::target::TargetError
//! [`StoreError`]: crate::store::StoreError

/// Who has to act before the failed step can succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Nobody: the same step, repeated later, may succeed (a lost connection, a 429, a server that restarts).
    Retry,
    /// A person: a missing privilege, a wrong key, a dropped column. Repeating it unchanged fails again.
    Operator,
    /// We: an invariant of ours does not hold. Stop before anything wrong is written.
    Bug,
}

/// An error and its causes on one line, for a log or a message that cannot carry a source.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
