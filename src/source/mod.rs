//! Where rows come from: PostgreSQL, MongoDB, CSV.
//!
//! A source knows nothing of facts. Asked once ([`snapshot`]), it reads every view in one consistent state. Asked to follow
//! ([`Follow`]), it first says how each view can be kept up to date ([`ViewMode`]), and then reports for the incremental ones the row
//! changes of their tables, in commit order, and for the others consistent cuts: the complete new results of the views that a change
//! touched, and the one position they all belong to.

pub mod csv;
mod dirty;
pub mod mongo;
pub mod postgres;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
    time::Instant,
};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::{
    config::{SourceConfig, SourceKind},
    data::{ChangeBatch, Extent, Lsn, Position},
    error::Disposition,
    query::{RemoteExpr, ViewPlan},
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
    /// What some views depend on has changed, or the change log does not tell all about them: these are read again, from the next
    /// start on; the others go on where they are.
    #[error("what some views of source \"{name}\" depend on has changed: {problem}")]
    ViewsChanged {
        /// The source.
        name: String,
        /// Which views; none if only [`Follow::prepare`] can tell.
        views: Vec<usize>,
        /// What changed.
        problem: String,
    },
    /// The source cannot compute an expression over these values, as it could not in the query.
    #[error("source \"{name}\" could not compute an expression of a query: {problem}")]
    Expression {
        /// The source.
        name: String,
        /// What the server says, without the values.
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
            Self::Unreachable { .. } | Self::PositionLost { .. } | Self::ViewsChanged { .. } => Disposition::Retry,
            Self::Refused { .. }
            | Self::View { .. }
            | Self::Malformed { .. }
            | Self::Expression { .. }
            | Self::Unsupported { .. }
            | Self::Spool { .. } => Disposition::Operator,
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
    /// Following changes, from the position on that it was given: the source is known to have it.
    Streaming,
    /// Another factsync holds the slot; this one is the standby.
    Standby,
    /// Lost, to be tried again; the reason is for a person.
    Retrying(String),
    /// A person must act; the reason says how. Tried again from time to time.
    Failed(String),
}

/// A view, read as a whole.
#[derive(Debug)]
pub struct Reading {
    /// The query's result.
    pub answer: Extent,
    /// For an incremental view that is loaded, the rows of its tables in the same state: the cells of
    /// [`Table::columns`](crate::query::Table::columns), and for a table whose rows may be equal a last cell that tells them apart.
    pub tables: BTreeMap<u32, Extent>,
    /// What `now()` was while the query ran, in microseconds since 2000-01-01 UTC; only where the view asks for it.
    pub now: Option<i64>,
    /// Why the rows of its tables are not all there, and never will be.
    pub unfit: Option<String>,
}

impl From<Extent> for Reading {
    fn from(answer: Extent) -> Self {
        Self { answer, tables: BTreeMap::new(), now: None, unfit: None }
    }
}

/// What a followed source reports.
#[derive(Debug)]
pub enum Event {
    /// The state changed.
    State(SourceState),
    /// Row changes of the tables of the incremental views, in commit order: whole transactions, and perhaps the beginning of one that
    /// goes on in the next batch. Between such pieces comes nothing but `Changes`. The images of a table have the cells of
    /// [`image_columns`] over the views whose role is [`Role::Incremental`] or [`Role::Load`].
    ///
    /// A value that is stored out of line and did not change is absent, unless the old row is told as a whole. For commits before the
    /// point at which a view was loaded, which that view skips, any of its own cells may be absent.
    Changes {
        /// The changes.
        batch: ChangeBatch,
        /// As in [`Event::Progress`]; not beyond the end of the last commit in the batch or in those before.
        settled: Position,
    },
    /// Complete results of some views, all exactly as of `position`; refresh views that are not listed did not change since
    /// the position before. Every commit before `position` was reported before, commits after it may have been, too: they are in the
    /// incremental views and not in these results.
    ///
    /// The exception is the first cut after a start from a position with views that are loaded ([`Role::Load`]): it comes before any
    /// change, and its views, which it has all of, skip the commits that start before `position`.
    Cut {
        /// The state they belong to.
        position: Position,
        /// View numbers with their results.
        views: Vec<(usize, Reading)>,
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
    /// What was reported so far is all there is up to `received`.
    Progress {
        /// Where the change log was read to: incremental views are exact there.
        received: Position,
        /// Up to here no view lacks anything, refresh views included; never beyond `received`.
        settled: Position,
    },
    /// How far the source itself is: the end of its log.
    Head(Position),
    /// How much of the source's log is kept for us.
    WalKept {
        /// Bytes.
        bytes: u64,
        /// Whether that goes on.
        risk: WalRisk,
    },
    /// The source's clock.
    Clock {
        /// What it showed, in microseconds since 2000-01-01 UTC.
        at: i64,
        /// Not before it was asked, and not after the answer was here.
        seen: Instant,
    },
}

/// Whether a server goes on keeping its log for a slot; worse ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalRisk {
    /// It keeps it anyhow.
    None,
    /// It keeps more than it would without the slot.
    Extended,
    /// It may remove it at the next checkpoint: the slot is lost then.
    Unreserved,
}

impl WalRisk {
    /// What is to be said of it.
    pub fn problem(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Extended => Some("it is more than max_wal_size, and the server's disk fills (wal_status extended)"),
            Self::Unreserved => {
                Some("it is more than max_slot_wal_keep_size, and the server is about to remove it (wal_status unreserved)")
            }
        }
    }
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

/// Between the name of a database and the identity of the server's data in [`Prepared::identity`], where there are both.
const OF_CLUSTER: &str = " of cluster ";

/// What a source is before it is followed.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Which database or file this is. For one state directory the database never changes; its server's data may be others, after a
    /// restore from a dump for instance.
    pub identity: String,
    /// The views, in order.
    pub views: Vec<PreparedView>,
}

impl Prepared {
    /// A database's identity, and that of the data it is part of.
    pub fn identify(database: &str, cluster: &str) -> String {
        format!("{database}{OF_CLUSTER}{cluster}")
    }

    /// Whether this is a database of the same name as the one that had the identity `before`, on other data.
    pub fn stands_in_for(&self, before: &str) -> bool {
        let database = |identity: &str| identity.rsplit_once(OF_CLUSTER).map(|(database, _)| database.to_owned());
        self.identity != before && database(&self.identity).is_some() && database(&self.identity) == database(before)
    }
}

/// What a view is before it is followed.
#[derive(Debug, Clone)]
pub struct PreparedView {
    /// Changes when anything changes that its result depends on besides rows: the query, columns, types, what is published.
    pub fingerprint: String,
    /// How it is kept up to date.
    pub mode: ViewMode,
}

/// How a view is kept up to date.
#[derive(Debug, Clone)]
pub enum ViewMode {
    /// Change by change.
    Incremental(Arc<ViewPlan>),
    /// Its query is run again when one of its tables changes; why it is not incremental.
    Refresh(String),
    /// It cannot be followed; its facts stay as they are. Why, for a person.
    Refused(String),
}

/// What the engine has of a view when it starts to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Incremental, and what is stored belongs to the position: only changes are needed.
    Incremental,
    /// Incremental, and nothing usable is stored: it is read first, with its tables ([`Reading::tables`]).
    Load,
    /// A refresh view; `stale` if its result lacks changes before the position.
    Refresh {
        /// Whether it is read at once.
        stale: bool,
    },
    /// Not followed.
    Off,
}

/// Where following starts.
#[derive(Debug, Clone)]
pub struct Start {
    /// From here, or with a new history if that is `None`; then no view has the role [`Role::Incremental`].
    pub from: Option<Position>,
    /// Up to here a stale refresh view lacks nothing; not beyond `from`. Nothing beyond it is reported as settled until those are read.
    pub settled: Option<Position>,
    /// One for each view.
    pub roles: Vec<Role>,
    /// For each view where it stands if that is ahead of `from`, since it was loaded later: behind the commits that start before this.
    pub ahead: Vec<Option<Lsn>>,
}

impl Start {
    /// From `from` with refresh views only, none of them stale.
    pub fn refreshing(from: Option<Position>, views: usize) -> Self {
        Self { settled: from.clone(), from, roles: vec![Role::Refresh { stale: false }; views], ahead: vec![None; views] }
    }
}

/// Computes immutable expressions over values at the source.
pub trait Evaluate: Send + Sync {
    /// The results of `expr` for each of `rows`, in order. A row has one text for each parameter.
    fn evaluate<'a>(
        &'a self,
        expr: &'a RemoteExpr,
        rows: Vec<Vec<Option<String>>>,
    ) -> BoxFuture<'a, Result<Vec<Option<String>>, SourceError>>;
}

/// Reads views of a followed source once more, beside the stream, to be compared with what became of them.
pub trait Witness: Send + Sync {
    /// Takes hold of a state of the source in which `views` can be read. `here` is where what was reported stands.
    ///
    /// The state is not before anything that was reported when this was called. It is the one at `here` where the source can read old
    /// states, and one of its own choice otherwise.
    fn stand(&self, here: Position, views: Vec<usize>) -> BoxFuture<'static, Result<Stand, SourceError>>;
}

/// A state of a source that can be read.
pub struct Stand {
    /// Which.
    pub position: Position,
    /// Reads the views in it. The state is let go of with this.
    pub testimony: BoxFuture<'static, Result<Testimony, SourceError>>,
}

/// What a source says in one state.
#[derive(Debug, Default)]
pub struct Testimony {
    /// What else identifies the state, such as the server's version and its timeline.
    pub about: BTreeMap<&'static str, String>,
    /// View by view.
    pub views: Vec<Answer>,
}

/// What a source says of one view.
#[derive(Debug)]
pub struct Answer {
    /// Its number.
    pub view: usize,
    /// The query's result, or why there is none.
    pub rows: Result<Extent, SourceError>,
    /// What `now()` was while the query ran, in microseconds since 2000-01-01 UTC; only where the view asks for it.
    pub now: Option<i64>,
}

/// The cells of each table's images when the changes for all of `plans` are delivered together: attribute numbers, ascending. The
/// columns that the plans need, put together; each plan finds its own by their numbers.
pub fn image_columns<'a>(plans: impl IntoIterator<Item = &'a ViewPlan>) -> BTreeMap<u32, Vec<i16>> {
    let mut columns: BTreeMap<u32, BTreeSet<i16>> = BTreeMap::new();
    for (oid, table) in plans.into_iter().flat_map(|plan| &plan.tables) {
        columns.entry(*oid).or_default().extend(&table.columns);
    }
    columns.into_iter().map(|(oid, columns)| (oid, columns.into_iter().collect())).collect()
}

/// A source that can be followed.
pub trait Follow: Send {
    /// Connects and finds out what the source is, before [`Follow::follow`] starts anywhere.
    fn prepare(&mut self) -> BoxFuture<'_, Result<Prepared, SourceError>>;

    /// Follows the source until `link.stop`.
    ///
    /// One attempt: `Ok` only after a stop; an error ends it and the engine calls again, with the position it then has, as the
    /// error's [`Disposition`] says, and with a new history after [`SourceError::PositionLost`]. Positions never move back within one call.
    /// Cancel-safe: dropping the future closes the connections.
    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>>;

    /// What computes expressions that are not computed here; `None` for sources whose views never need it.
    fn evaluator(&self) -> Option<Arc<dyn Evaluate>> {
        None
    }

    /// What reads views for an audit, after [`Follow::prepare`]; without one what is desired cannot be compared with the source.
    fn witness(&self) -> Option<Arc<dyn Witness>> {
        None
    }
}
