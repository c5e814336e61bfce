//! Where rows come from: PostgreSQL, MongoDB, CSV.
//!
//! A source knows nothing of facts. Asked once ([`snapshot`]), it reads every view in one consistent state. Asked to follow
//! ([`Follow`]), it reports consistent cuts: the complete new results of the views that a change touched, and the one
//! position they all belong to.

pub mod csv;
pub mod mongo;
pub mod postgres;

use std::{io, path::Path};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::{
    config::{SourceConfig, SourceKind},
    data::{Extent, Position},
    error::Disposition,
};

/// Something a driver says, kept as the cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The connection was refused, lost or timed out, or the server restarts.
    #[error("could not {action} at source \"{name}\"")]
    Unreachable {
        /// The source.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the driver says.
        #[source]
        source: Cause,
    },
    /// The server answers and refuses: a privilege, a setting, a missing object.
    #[error("source \"{name}\" refused to {action}. {hint}")]
    Refused {
        /// The source.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What to do, as a sentence.
        hint: String,
        /// What the server says.
        #[source]
        source: Cause,
    },
    /// One view cannot be read; the others can.
    #[error("could not read fact type \"{fact_type}\" from source \"{name}\": {problem}")]
    View {
        /// The source.
        name: String,
        /// The signature.
        fact_type: String,
        /// What is wrong.
        problem: String,
    },
    /// What the source holds as a whole is not what it should be, such as a file that is no CSV; nothing of it was taken.
    #[error("could not use what source \"{name}\" holds: {problem}")]
    Malformed {
        /// The source.
        name: String,
        /// What is wrong and where, without the content.
        problem: String,
    },
    /// The changes since the stored position are no longer to be had: only a new snapshot helps.
    #[error("source \"{name}\" no longer has the changes since the stored position: {problem}")]
    PositionLost {
        /// The source.
        name: String,
        /// How that shows.
        problem: String,
    },
    /// The configuration asks for what this source cannot do.
    #[error("source \"{name}\" cannot be followed: {problem}")]
    Unsupported {
        /// The source.
        name: String,
        /// What, and what to do instead.
        problem: String,
    },
    /// The spool in the state directory.
    #[error("could not spool rows of source \"{name}\"")]
    Spool {
        /// The source.
        name: String,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Who acts next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unreachable { .. } | Self::PositionLost { .. } => Disposition::Retry,
            Self::Refused { .. } | Self::View { .. } | Self::Malformed { .. } | Self::Unsupported { .. } | Self::Spool { .. } => {
                Disposition::Operator
            }
        }
    }
}

/// Every view of a source, read once. `views[i]` is the result of the i-th fact type or why it has none.
#[derive(Debug)]
pub struct Snapshot {
    /// The state they belong to, where the source can name it.
    pub position: Option<Position>,
    /// One for each of [`SourceConfig::fact_types`].
    pub views: Vec<Result<Extent, SourceError>>,
}

/// Called with a view's number and the rows read so far, every few thousand rows and at the end.
pub type Observer<'a> = &'a (dyn Fn(usize, u64) + Sync);

/// Reads every view of `source` in one consistent state, spilling into `spool`.
///
/// An `Err` means that nothing could be read at all; a view of its own that fails is an `Err` in [`Snapshot::views`].
pub async fn snapshot(source: &SourceConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    match &source.kind {
        SourceKind::Postgres(config) => postgres::snapshot(&source.name, config, spool, observer).await,
        SourceKind::Mongo(config) => mongo::snapshot(&source.name, config, spool, observer).await,
        SourceKind::Csv(config) => csv::snapshot(&source.name, config, spool, observer).await,
    }
}

/// How a followed source stands, as `/v1/status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// Entered at start and after a lost connection; left when the source answers.
    Connecting,
    /// Reading every view; entered when there is no usable position.
    Snapshotting,
    /// Following changes.
    Streaming,
    /// Another factsync holds the slot; this one is the standby.
    Standby,
    /// Lost, to be tried again; the reason is for a person.
    Retrying(String),
    /// A person must act; the reason says how. Tried again from time to time.
    Failed(String),
}

/// What a followed source reports.
#[derive(Debug)]
pub enum Event {
    /// The state changed.
    State(SourceState),
    /// Complete results of some views, all exactly as of `position`; views that are not listed did not change since
    /// the position before.
    Cut {
        /// The state they belong to.
        position: Position,
        /// View numbers with their results.
        views: Vec<(usize, Extent)>,
        /// Whether this starts a new history: every view is listed that can be read, and what the fact store holds is to be compared
        /// with it.
        snapshot: bool,
    },
    /// A view cannot be read, now or at all; its last result stays what it is, also where a cut with `snapshot` lacks it. Over when
    /// a cut has the view.
    ViewFailed {
        /// Its number.
        view: usize,
        /// Why, a [`SourceError::View`].
        problem: SourceError,
    },
    /// No view changed up to `position`.
    Progress(Position),
    /// How far the source itself is: the end of its log.
    Head(Position),
}

/// A followed source's ties to the engine. Dropping the receiver of `events` stops it.
#[derive(Debug)]
pub struct Link {
    /// Where events go; its capacity is the back-pressure.
    pub events: mpsc::Sender<Event>,
    /// The newest position that is durable here; only this may be acknowledged upstream.
    pub durable: watch::Receiver<Option<Position>>,
    /// The newest position that somebody waits for; the source gets past it as soon as it can.
    pub wanted: watch::Receiver<Option<Position>>,
    /// Turns `true` when the process stops.
    pub stop: watch::Receiver<bool>,
}

/// What a source is before it is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Changes when anything changes that the views' results depend on besides rows: queries, columns, types.
    pub fingerprint: String,
    /// Which database or file this is; never changes for one state directory.
    pub identity: String,
    /// How each view is kept up to date, in order.
    pub views: Vec<ViewMode>,
}

/// How a view is kept up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewMode {
    /// Its query is run again when one of its tables changes; why it is not incremental.
    Refresh(String),
    /// It cannot be followed; its facts stay as they are. Why, for a person.
    Refused(String),
}

/// A source that can be followed.
pub trait Follow: Send {
    /// Connects and finds out what the source is, before a position for [`Follow::follow`] is chosen.
    fn prepare(&mut self) -> BoxFuture<'_, Result<Prepared, SourceError>>;

    /// Follows the source from `from`, or from a new snapshot if that is `None`, until `link.stop`.
    ///
    /// One attempt: `Ok` only after a stop; an error ends it and the engine calls again, with the position it then has, as the
    /// error's [`Disposition`] says, and with `None` after [`SourceError::PositionLost`]. Positions never move back within one call.
    /// Cancel-safe: dropping the future closes the connections.
    fn follow<'a>(&'a mut self, from: Option<Position>, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>>;
}
