//! One source: from its events to desired facts, and from what is durable back to its acknowledgement.
//!
//! ```text
//!          ┌──────────────── from: position or a new snapshot ───────────────┐
//! prepare ─┤                                                                 ├─> follow ─events─> replace / apply / advance
//!          └── fingerprint, identity, checkpoint decide (`Ingest::start_at`) ─┘        ^                 │ commit (fsync)
//!                                                                                      └── durable <─ checkpoint (flush)
//! ```
//!
//! After a snapshot the fact store is compared with the desired facts. Until that succeeds (the fact store may be down for
//! hours) later changes go into the desired facts only, and upstream is acknowledged all the same: the comparison finds them.
//! Only then a position counts as applied for those who wait.
//!
//! A source that goes away and comes back is an ordinary event: the loop tries again with backoff, from the position that
//! is then stored.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use crate::{
    data::{ExtentBuilder, Position},
    engine::{
        backoff::Backoff,
        board::{Board, TargetState},
        error::EngineError,
        writer::Writer,
    },
    error::{Disposition, causes},
    source::{self, Event, Follow, Link, Prepared, Reading, SourceError, SourceState, ViewMode},
    store::{Changes, Checkpoint, ViewRecord},
    target::{FactStore, TargetError},
    view::Guard,
};

/// Events between a source and its loop. A cut is one event, however large, since its rows are spooled; a few are enough to
/// keep the source busy while one is applied.
pub(super) const EVENT_QUEUE: usize = 8;
/// How often progress without changes is made durable, and thereby acknowledged upstream.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// How long a comparison waits for a batch on its way before it lets changes go on and tries again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long after a failed comparison it is tried again.
const COMPARE_AGAIN: Duration = Duration::from_secs(5);

/// A source's loop.
pub(super) struct Ingest {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) views: Vec<ViewRecord>,
    pub(super) writer: Writer,
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) board: Arc<Board>,
    pub(super) target: Arc<dyn FactStore>,
    pub(super) spool: std::path::PathBuf,
    pub(super) guard: Guard,
    pub(super) reconcile_every: Option<Duration>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What one connection attempt carries along.
struct Session {
    events: mpsc::Receiver<Event>,
    durable: watch::Sender<Option<Position>>,
    follow: JoinHandle<(Box<dyn Follow>, Result<(), SourceError>)>,
    compared: Compared,
    /// Progress that is not durable yet.
    pending: Option<Position>,
    position: Option<Position>,
}

/// Whether the fact store was compared with the desired facts since the last snapshot.
enum Compared {
    /// Not yet; tried again at that time.
    Due(Instant),
    /// Yes; audited again at that time.
    Done(Option<Instant>),
}

impl Compared {
    fn postpone(&mut self, by: Duration) {
        let at = Instant::now() + by;
        *self = match self {
            Self::Due(_) => Self::Due(at),
            Self::Done(_) => Self::Done(Some(at)),
        };
    }
}

impl Ingest {
    /// Follows the source until the process stops. An error is a bug or a store that cannot be written to.
    pub(super) async fn run(mut self, mut follower: Box<dyn Follow>) -> Result<(), EngineError> {
        let mut backoff = Backoff::default();
        loop {
            self.board.state(self.index, SourceState::Connecting);
            let prepared = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(()),
                prepared = follower.prepare() => prepared,
            };
            let outcome = match prepared {
                Ok(prepared) => {
                    let (back, outcome) = self.session(follower, &prepared, &mut backoff).await?;
                    follower = back;
                    outcome
                }
                Err(error) => Err(error),
            };
            let Err(error) = outcome else { return Ok(()) };
            let pause = self.failed(&error, &mut backoff).await?;
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Says what happens next after `error`, and how long to wait before it.
    async fn failed(&mut self, error: &SourceError, backoff: &mut Backoff) -> Result<Duration, EngineError> {
        let reason = causes(error);
        if let SourceError::PositionLost { .. } = error {
            warn!(source = self.name, reason, "position lost, starting over with a snapshot");
            self.writer.forget_position(&self.name).await?;
            self.checkpoint.forget(&self.name)?;
            self.board.state(self.index, SourceState::Retrying(reason));
            return Ok(backoff.first());
        }
        match error.disposition() {
            Disposition::Retry => {
                warn!(source = self.name, reason, "source lost, will retry");
                self.board.state(self.index, SourceState::Retrying(reason));
                Ok(backoff.next())
            }
            Disposition::Operator => {
                error!(source = self.name, reason, "source needs an operator");
                self.board.state(self.index, SourceState::Failed(reason));
                Ok(backoff.longest())
            }
            Disposition::Bug => Err(EngineError::Bug(reason)),
        }
    }

    /// Follows the source once.
    async fn session(
        &mut self,
        follower: Box<dyn Follow>,
        prepared: &Prepared,
        backoff: &mut Backoff,
    ) -> Result<(Box<dyn Follow>, Result<(), SourceError>), EngineError> {
        self.announce(prepared);
        let (from, compared) = match self.start_at(prepared).await? {
            Start::Refused(problem) => {
                return Ok((follower, Err(SourceError::Unsupported { name: self.name.clone(), problem })));
            }
            Start::At { from, compared } => (from, compared),
        };
        let mut session = self.open(follower, from, compared);
        let mut tick = tokio::time::interval(PERSIST_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.compare_if_due(&mut session).await?;
        loop {
            tokio::select! {
                biased;
                event = session.events.recv() => match event {
                    Some(event) => self.on_event(&mut session, event, backoff).await?,
                    // The sender went with the follow task.
                    None => break,
                },
                _ = tick.tick() => {
                    self.persist(&mut session).await?;
                    self.compare_if_due(&mut session).await?;
                }
            }
        }
        self.persist(&mut session).await?;
        match session.follow.await {
            Ok(ended) => Ok(ended),
            Err(panic) => Err(EngineError::Bug(format!("following source \"{}\" panicked: {panic}", self.name))),
        }
    }

    fn announce(&self, prepared: &Prepared) {
        for (view, prepared) in prepared.views.iter().enumerate() {
            match &prepared.mode {
                ViewMode::Incremental(_) => self.board.mode(self.index, view, "incremental", None),
                ViewMode::Refresh(reason) => {
                    self.board.mode(self.index, view, "refresh", Some(reason.clone()));
                    self.board.view_failed(self.index, view, None);
                }
                ViewMode::Refused(problem) => {
                    error!(source = self.name, fact_type = %self.views[view].fact_type, problem, "fact type cannot be followed");
                    self.board.mode(self.index, view, "refused", Some(problem.clone()));
                    self.board.view_failed(self.index, view, Some(problem.clone()));
                }
            }
        }
    }

    /// Decides between the stored position and a new snapshot.
    async fn start_at(&mut self, prepared: &Prepared) -> Result<Start, EngineError> {
        let Some(record) = self.writer.source(&self.name).await? else {
            return self.start_over(prepared, "no position is stored").await;
        };
        if record.identity != prepared.identity {
            return Ok(Start::Refused(format!(
                "it is not the database this state directory was made from (that was {}, this is {}). \
                 If that is meant, run `factsync reset` or pass --state with another directory",
                record.identity, prepared.identity
            )));
        }
        if record.fingerprint != fingerprint(prepared) {
            return self.start_over(prepared, "the queries or what they depend on changed").await;
        }
        if self.outdated(prepared) {
            return self.start_over(prepared, "a fact type could not be read the last time").await;
        }
        if self.guard == Guard::Off && self.views.iter().any(|view| view.held > 0) {
            return self.start_over(prepared, "held removals are let go").await;
        }
        let Some(position) = record.position else { return self.start_over(prepared, "the position was lost").await };
        if let Some(lost) = self.checkpoint.lost(&self.name, &self.writer.store_id(), &position)? {
            return self.start_over(prepared, &lost).await;
        }
        let compared = if record.compared { Compared::Done(self.next_audit()) } else { Compared::Due(Instant::now()) };
        Ok(Start::At { from: Some(position), compared })
    }

    /// A new history, which begins with a snapshot.
    async fn start_over(&mut self, prepared: &Prepared, why: &str) -> Result<Start, EngineError> {
        info!(source = self.name, why, "reading every view");
        // In this order: an old position without its witness would be trusted by the next start.
        self.writer.begin(&self.name, &fingerprint(prepared), &prepared.identity).await?;
        self.checkpoint.forget(&self.name)?;
        for view in &mut self.views {
            view.known = false;
        }
        Ok(Start::At { from: None, compared: Compared::Due(Instant::now()) })
    }

    /// Whether a view that can be followed lacks changes before the stored position.
    fn outdated(&self, prepared: &Prepared) -> bool {
        let followed = prepared.views.iter().map(|view| !matches!(view.mode, ViewMode::Refused(_)));
        self.views.iter().zip(followed).any(|(view, followed)| followed && (view.failing || !view.known))
    }

    fn open(&self, mut follower: Box<dyn Follow>, from: Option<Position>, compared: Compared) -> Session {
        let (events_in, events) = mpsc::channel(EVENT_QUEUE);
        let durable = watch::Sender::new(from.clone());
        let mut link =
            Link { events: events_in, durable: durable.subscribe(), wanted: self.board.wanted(self.index), stop: self.stop.clone() };
        let position = from.clone();
        let start = source::Start::refreshing(from, self.views.len());
        let follow = tokio::spawn(async move {
            let outcome = follower.follow(start, &mut link).await;
            drop(link);
            (follower, outcome)
        });
        let commit_no = self.writer.commit_no();
        if let (Some(position), Compared::Done(_)) = (&position, &compared) {
            self.board.applied(self.index, position.clone(), commit_no);
        }
        self.board.founded(self.index, matches!(compared, Compared::Done(_)).then_some(commit_no));
        Session { events, durable, follow, compared, pending: None, position }
    }

    async fn on_event(&mut self, session: &mut Session, event: Event, backoff: &mut Backoff) -> Result<(), EngineError> {
        match event {
            Event::State(state) => {
                if state == SourceState::Streaming {
                    backoff.reset();
                }
                info!(source = self.name, state = ?state, "source state");
                self.board.state(self.index, state);
            }
            Event::Head(head) => self.board.head(self.index, head),
            Event::ViewFailed { view, problem } => {
                let problem = causes(&problem);
                let fact_type = &self.views[view].fact_type;
                error!(source = self.name, %fact_type, problem, "fact type cannot be read, its facts stay as they are");
                self.writer.mark_failing(self.views[view].id).await?;
                self.views[view].failing = true;
                self.board.view_failed(self.index, view, Some(problem));
            }
            Event::Changes { .. } | Event::Clock { .. } => {}
            Event::Progress { settled: position, .. } => {
                // Nothing changed, so the position may be told before it is durable; acknowledging waits for the tick.
                if let Compared::Done(_) = session.compared {
                    self.board.applied(self.index, position.clone(), self.writer.commit_no());
                }
                session.pending = Some(position);
            }
            Event::Cut { position, views, snapshot } => self.on_cut(session, position, views, snapshot).await?,
        }
        Ok(())
    }

    async fn on_cut(
        &mut self,
        session: &mut Session,
        position: Position,
        views: Vec<(usize, Reading)>,
        snapshot: bool,
    ) -> Result<(), EngineError> {
        let numbers: Vec<usize> = views.iter().map(|(view, _)| *view).collect();
        let views = views.into_iter().map(|(view, reading)| (self.views[view].clone(), reading.answer).into()).collect();
        // A view whose first result comes now was left out of the comparison, for nothing was known about it.
        let compare = snapshot || numbers.iter().any(|&view| !self.views[view].known);
        let uncompared = matches!(session.compared, Compared::Due(_));
        let changes = if compare || uncompared {
            self.writer.replace(&self.name, position.clone().into(), views).await?
        } else {
            self.writer.apply(&self.name, position.clone().into(), views, self.guard).await?
        };
        self.note(&numbers, &changes);
        for view in &numbers {
            (self.views[*view].known, self.views[*view].failing) = (true, false);
            self.board.view_failed(self.index, *view, None);
        }
        session.pending = None;
        session.position = Some(position.clone());
        self.acknowledge(session, &position).await?;
        if compare {
            session.compared = Compared::Due(Instant::now());
            self.compare_if_due(session).await
        } else {
            if !uncompared {
                self.board.applied(self.index, position, changes.commit_no);
            }
            Ok(())
        }
    }

    /// Keeps the numbers of the views in step with what was committed.
    fn note(&mut self, numbers: &[usize], changes: &Changes) {
        for (&view, change) in numbers.iter().zip(&changes.views) {
            let record = &mut self.views[view];
            if change.held > record.held {
                let (fact_type, removals) = (&record.fact_type, change.held);
                warn!(source = self.name, %fact_type, removals, facts = change.facts, "removals held, see /v1/status");
            }
            for (reason, rows) in &change.skipped {
                if record.skipped.get(reason) != Some(rows) {
                    warn!(source = self.name, fact_type = %record.fact_type, reason, rows, "rows make no fact");
                }
            }
            (record.facts, record.held, record.skipped) = (change.facts, change.held, change.skipped.clone());
            self.board.changed(self.index, view, change);
        }
    }

    /// Makes progress without changes durable.
    async fn persist(&mut self, session: &mut Session) -> Result<(), EngineError> {
        let Some(position) = session.pending.take() else { return Ok(()) };
        if session.position.as_ref() == Some(&position) {
            return Ok(());
        }
        self.writer.advance(&self.name, position.clone().into()).await?;
        session.position = Some(position.clone());
        self.acknowledge(session, &position).await
    }

    /// `position` is durable: writes that down, then lets the source tell upstream.
    async fn acknowledge(&self, session: &Session, position: &Position) -> Result<(), EngineError> {
        let (checkpoint, name, id, told) = (self.checkpoint.clone(), self.name.clone(), self.writer.store_id(), position.clone());
        tokio::task::spawn_blocking(move || checkpoint.tell(&name, &id, &told)).await.map_err(EngineError::panicked)??;
        session.durable.send_replace(Some(position.clone()));
        Ok(())
    }

    /// Compares the fact store with the desired facts after a snapshot, and again every `reconcile_every`.
    async fn compare_if_due(&mut self, session: &mut Session) -> Result<(), EngineError> {
        let due = match session.compared {
            Compared::Due(at) | Compared::Done(Some(at)) => at <= Instant::now(),
            Compared::Done(None) => false,
        };
        let known: Vec<usize> = (0..self.views.len()).filter(|&view| self.views[view].known).collect();
        if !due || known.is_empty() {
            return Ok(());
        }
        // What waits would look like drift; the next tick tries again.
        let ids = known.iter().map(|&view| self.views[view].id).collect();
        if self.writer.outbox_holds(ids).await? {
            return Ok(());
        }
        // So would a batch on its way that was read before a snapshot emptied the outbox.
        if !self.writer.settled(PATIENCE).await {
            session.compared.postpone(PATIENCE);
            return Ok(());
        }
        match self.compare(&known).await? {
            Ok(changes) => {
                self.note(&known, &changes);
                let (missing, stale) =
                    changes.views.iter().fold((0, 0), |(m, s), change| (m + change.inserted, s + change.removed + change.held));
                info!(source = self.name, missing, stale, "fact store compared");
                self.board.reconciled(self.index, missing, stale);
                if let Compared::Due(_) = session.compared {
                    self.board.founded(self.index, Some(changes.commit_no));
                }
                session.compared = Compared::Done(self.next_audit());
                if let Some(position) = &session.position {
                    self.board.applied(self.index, position.clone(), changes.commit_no);
                }
            }
            Err(error) => {
                let reason = causes(&error);
                warn!(source = self.name, reason, "fact store cannot be compared, will retry");
                self.board.target(TargetState::Failing(reason));
                session.compared.postpone(COMPARE_AGAIN);
            }
        }
        Ok(())
    }

    /// Lists the fact store and corrects it. The inner error is the fact store's.
    async fn compare(&mut self, known: &[usize]) -> Result<Result<Changes, TargetError>, EngineError> {
        let mut views = Vec::with_capacity(known.len());
        for &view in known {
            let record = self.views[view].clone();
            let mut listed = ExtentBuilder::new(&self.spool);
            if let Err(error) = self.target.list(&record.fact_type, &mut |row| listed.push(row)).await {
                return Ok(Err(error));
            }
            let listed = tokio::task::spawn_blocking(move || listed.finish()).await.map_err(EngineError::panicked)?;
            views.push((record, listed.map_err(crate::store::StoreError::Rows)?));
        }
        Ok(Ok(self.writer.correct(&self.name, views, self.guard).await?))
    }

    fn next_audit(&self) -> Option<Instant> {
        self.reconcile_every.map(|every| Instant::now() + every)
    }
}

/// Of all views together.
fn fingerprint(prepared: &Prepared) -> String {
    prepared.views.iter().map(|view| view.fingerprint.as_str()).collect::<Vec<_>>().join(" ")
}

/// Where a session starts.
enum Start {
    /// From a position, or from a snapshot.
    At { from: Option<Position>, compared: Compared },
    /// Not at all, and why.
    Refused(String),
}

/// Returns when the process stops.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender is the end of the process as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
