//! Why a run ends before it is told to.

use crate::store::{StateError, StoreError};

/// Everything else is shown on the board and tried again.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The local store or the checkpoint cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The listener.
    #[error("could not serve HTTP")]
    Http(#[source] std::io::Error),
    /// The report of `--shadow`.
    #[error("could not write the report")]
    Report(#[source] std::io::Error),
    /// An invariant of ours does not hold.
    #[error("a bug stopped factsync: {0}. Nothing wrong was written; please report it")]
    Bug(String),
}

impl EngineError {
    pub(super) fn panicked(error: tokio::task::JoinError) -> Self {
        Self::Bug(format!("a task panicked: {error}"))
    }
}
