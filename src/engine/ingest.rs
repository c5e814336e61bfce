//! One source: from its events to desired facts, and from what is durable back to its acknowledgement.
//!
//! ```text
//!          ┌──────────────── from: position or a new snapshot ───────────────┐
//! prepare ─┤                                                                 ├─> follow ─events─> changes / cuts / time
//!          └── fingerprints, identity, checkpoint decide (`start`) ───────────┘        ^                 │ commit (fsync)
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
    data::{ChangeBatch, Position},
    engine::{
        backoff::Backoff,
        board::Board,
        clock::SourceClock,
        error::EngineError,
        flows::{Flows, Task},
        inbox::Inbox,
        start::Start,
        writer::Writer,
    },
    error::{Disposition, causes},
    source::{self, Event, Follow, Link, Prepared, Reading, Role, SourceError, SourceState},
    store::{Applied, Changes, Checkpoint, Followed, Fresh, Loaded, Reached, ViewId, ViewRecord},
    target::FactStore,
    view::{Guard, ViewError},
};

/// Events between a source and its loop. A cut is one event, however large, since its rows are spooled; a few are enough to
/// keep the source busy while one is applied.
pub(super) const EVENT_QUEUE: usize = 8;
/// How often progress without changes is made durable, and thereby acknowledged upstream.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// Loads of one view's state that end in a contradiction before the view is refreshed instead: one may be bad luck with DDL.
const MOST_RELOADS: u32 = 3;

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
    /// How often each view's state turned out to be wrong.
    pub(super) reloads: Vec<u32>,
}

/// What one connection attempt carries along.
pub(super) struct Session {
    inbox: Inbox,
    durable: watch::Sender<Option<Position>>,
    /// Ends this attempt alone.
    halt: watch::Sender<bool>,
    follow: JoinHandle<(Box<dyn Follow>, Result<(), SourceError>)>,
    pub(super) compared: Compared,
    flows: Flows,
    /// Whether the first cut is of views that are ahead of the source's position.
    loading: bool,
    /// Received and settled, not durable yet.
    pending: Option<(Position, Position)>,
    /// Where the source stands, durably.
    pub(super) position: Option<Position>,
    /// Up to here no view lacks anything.
    pub(super) settled: Option<Position>,
    /// What may be acknowledged and has not been.
    unacknowledged: Option<Position>,
    clock: SourceClock,
}

/// How an attempt ends.
enum Ended {
    /// The process stops.
    Stopped,
    /// The source failed.
    Failed(SourceError),
    /// Views have to be loaded or are followed otherwise from now on.
    Again,
}

/// What the loop woke up for.
enum Wake {
    Time,
    Event(Option<Event>),
    Tick,
}

/// What an event asks of the loop.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    /// As [`Ended::Again`].
    StartAgain,
}

/// Whether the fact store was compared with the desired facts since the last snapshot.
pub(super) enum Compared {
    /// Not yet; tried again at that time.
    Due(Instant),
    /// Yes; audited again at that time.
    Done(Option<Instant>),
}

impl Compared {
    pub(super) fn postpone(&mut self, by: Duration) {
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
            let ended = match prepared {
                Ok(prepared) => {
                    let (back, ended) = self.session(follower, &prepared, &mut backoff).await?;
                    follower = back;
                    ended
                }
                Err(error) => Ended::Failed(error),
            };
            let pause = match ended {
                Ended::Stopped => return Ok(()),
                Ended::Again => backoff.first(),
                Ended::Failed(error) => self.failed(&error, &mut backoff).await?,
            };
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
        if let SourceError::ViewsChanged { views, .. } = error {
            info!(source = self.name, reason, "views changed, reading them again");
            for view in views {
                self.writer.drop_state(self.views[*view].id).await?;
                self.views[*view].fingerprint = None;
            }
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
    ) -> Result<(Box<dyn Follow>, Ended), EngineError> {
        let (flows, reasons) = Flows::new(prepared, &self.views, follower.evaluator());
        self.announce(prepared, reasons);
        let mut session = match self.start_at(prepared, flows).await? {
            Start::Refused(problem) => {
                return Ok((follower, Ended::Failed(SourceError::Unsupported { name: self.name.clone(), problem })));
            }
            Start::At { from, settled, compared, roles, flows } => self.open(follower, (from, settled), compared, roles, flows),
        };
        let mut tick = tokio::time::interval(PERSIST_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.compare_if_due(&mut session).await?;
        let next = loop {
            let wake = tokio::select! {
                biased;
                () = session.clock.due() => Wake::Time,
                event = session.inbox.next() => Wake::Event(event),
                _ = tick.tick() => Wake::Tick,
            };
            let next = match wake {
                Wake::Time => self.let_time_pass(&mut session).await?,
                Wake::Event(Some(event)) => self.on_event(&mut session, event, backoff).await?,
                // The sender went with the follow task.
                Wake::Event(None) => break Next::GoOn,
                Wake::Tick => {
                    self.persist(&mut session).await?;
                    self.acknowledge(&mut session).await?;
                    self.compare_if_due(&mut session).await?;
                    Next::GoOn
                }
            };
            if next == Next::StartAgain {
                break next;
            }
        };
        self.persist(&mut session).await?;
        self.acknowledge(&mut session).await?;
        session.halt.send_replace(true);
        drop(session.inbox);
        match session.follow.await {
            Ok((follower, _)) if next == Next::StartAgain => Ok((follower, Ended::Again)),
            Ok((follower, Ok(()))) => Ok((follower, Ended::Stopped)),
            Ok((follower, Err(error))) => Ok((follower, Ended::Failed(error))),
            Err(panic) => Err(EngineError::Bug(format!("following source \"{}\" panicked: {panic}", self.name))),
        }
    }

    fn open(
        &self,
        mut follower: Box<dyn Follow>,
        (from, settled): (Option<Position>, Option<Position>),
        compared: Compared,
        roles: Vec<Role>,
        flows: Flows,
    ) -> Session {
        let (events_in, events) = mpsc::channel(EVENT_QUEUE);
        let durable = watch::Sender::new(from.clone());
        let (halt, halted) = crate::engine::halt(self.stop.clone());
        let mut link = Link { events: events_in, durable: durable.subscribe(), wanted: self.board.wanted(self.index), stop: halted };
        let position = from.clone();
        let loading = from.is_some() && roles.contains(&Role::Load);
        let start = source::Start { from, settled: settled.clone(), roles };
        let follow = tokio::spawn(async move {
            let outcome = follower.follow(start, &mut link).await;
            drop(link);
            (follower, outcome)
        });
        let commit_no = self.writer.commit_no();
        if let (Some(settled), Compared::Done(_), false) = (&settled, &compared, loading) {
            self.board.applied(self.index, settled.clone(), commit_no);
        }
        self.board.founded(self.index, matches!(compared, Compared::Done(_)).then_some(commit_no));
        let clock = SourceClock::new(self.views.iter().filter_map(|view| view.clock).max());
        let inbox = Inbox::new(events);
        Session { inbox, durable, halt, follow, compared, flows, loading, pending: None, position, settled, unacknowledged: None, clock }
    }

    async fn on_event(&mut self, session: &mut Session, event: Event, backoff: &mut Backoff) -> Result<Next, EngineError> {
        match event {
            Event::State(state) => {
                if state == SourceState::Streaming {
                    backoff.reset();
                }
                info!(source = self.name, state = ?state, "source state");
                self.board.state(self.index, state);
            }
            Event::Head(head) => self.board.head(self.index, head),
            Event::Clock { at, seen } => {
                if session.clock.set(at, seen) {
                    return self.let_time_pass(session).await;
                }
            }
            Event::ViewFailed { view, problem } => {
                let problem = causes(&problem);
                let fact_type = &self.views[view].fact_type;
                error!(source = self.name, %fact_type, problem, "fact type cannot be read, its facts stay as they are");
                self.writer.mark_failing(self.views[view].id).await?;
                self.views[view].failing = true;
                self.board.view_failed(self.index, view, Some(problem));
            }
            Event::Progress { received, settled } => {
                // Nothing changed, so the position may be told before it is durable; acknowledging waits for the tick.
                if let Compared::Done(_) = session.compared {
                    self.board.applied(self.index, settled.clone(), self.writer.commit_no());
                }
                session.pending = Some((received, settled));
            }
            Event::Changes { batch, settled } => {
                session.inbox.settle(settled);
                return self.on_changes(session, batch).await;
            }
            Event::Cut { position, views, snapshot } => return self.on_cut(session, position, views, snapshot).await,
        }
        Ok(Next::GoOn)
    }

    /// Row changes, and all that have come since, in one store transaction.
    async fn on_changes(&mut self, session: &mut Session, first: ChangeBatch) -> Result<Next, EngineError> {
        let now = session.clock.now();
        let task = Task {
            source: self.name.clone(),
            records: self.views.clone(),
            flows: std::mem::take(&mut session.flows),
            inbox: std::mem::replace(&mut session.inbox, Inbox::closed()),
            guard: self.guard,
        };
        let (task, followed) = self.writer.follow(task, first, now).await?;
        (session.flows, session.inbox) = (task.flows, task.inbox);
        // The rest of a transaction did not come, because the source was lost: nothing happened.
        let Some(followed) = followed else { return Ok(Next::GoOn) };
        session.clock.passed(now);
        session.pending = None;
        let next = self.take_in(session, followed).await?;
        if let Some(settled) = session.inbox.settled() {
            session.settled = Some(settled.clone());
            if let Compared::Done(_) = session.compared {
                self.board.applied(self.index, settled, self.writer.commit_no());
            }
        }
        Ok(next)
    }

    /// The moment has come at which rows begin or cease to count.
    async fn let_time_pass(&mut self, session: &mut Session) -> Result<Next, EngineError> {
        let now = session.clock.now();
        let task = Task {
            source: self.name.clone(),
            records: self.views.clone(),
            flows: std::mem::take(&mut session.flows),
            inbox: Inbox::closed(),
            guard: self.guard,
        };
        let (task, followed) = self.writer.advance_clock(task, now).await?;
        session.flows = task.flows;
        session.clock.passed(now);
        self.take_in(session, followed).await
    }

    /// Keeps everything in step with a store transaction of the flows.
    async fn take_in(&mut self, session: &mut Session, followed: Followed) -> Result<Next, EngineError> {
        let mut next = Next::GoOn;
        for applied in followed.views {
            let change = match applied {
                Applied::Changed(change) => change,
                Applied::Failed { change, why } => {
                    self.flow_failed(session, change.view, &why).await?;
                    next = Next::StartAgain;
                    change
                }
            };
            let view = self.views.iter().position(|view| view.id == change.view).expect("the store knows the views it was given");
            self.note(&[view], &Changes { views: vec![change], commit_no: followed.commit_no });
        }
        if let Some(position) = followed.position {
            session.position = Some(position.clone());
            session.unacknowledged = Some(position);
        }
        session.clock.wait_for(followed.due);
        Ok(next)
    }

    /// A view could not be kept up to date: it is loaded again, or refreshed if that makes no sense.
    async fn flow_failed(&mut self, session: &mut Session, id: ViewId, why: &ViewError) -> Result<(), EngineError> {
        let view = self.views.iter().position(|view| view.id == id).expect("the store knows the views it was given");
        let reason = causes(why);
        let fact_type = &self.views[view].fact_type;
        error!(source = self.name, %fact_type, reason, "fact type cannot be kept up to date change by change, reading it again");
        self.reloads[view] += 1;
        let hopeless = matches!(why, ViewError::Budget(_)) || self.reloads[view] >= MOST_RELOADS;
        if let (true, Some(flow)) = (hopeless, session.flows.get(view)) {
            self.demote(view, &flow.fingerprint.clone(), reason).await?;
        }
        // Only a result that is read again makes its facts current.
        self.writer.mark_failing(id).await?;
        (self.views[view].failing, self.views[view].fingerprint) = (true, self.views[view].fingerprint.take().filter(|_| hopeless));
        session.flows.drop_view(view);
        Ok(())
    }

    /// From now on the plan of this fingerprint is not used for the view.
    async fn demote(&mut self, view: usize, fingerprint: &str, why: String) -> Result<(), EngineError> {
        let record = &mut self.views[view];
        warn!(source = self.name, fact_type = %record.fact_type, why, "fact type is refreshed from now on");
        self.writer.demote(record.id, fingerprint, &why).await?;
        (record.fingerprint, record.demoted) = (Some(fingerprint.to_owned()), Some(why));
        Ok(())
    }

    async fn on_cut(
        &mut self,
        session: &mut Session,
        position: Position,
        views: Vec<(usize, Reading)>,
        snapshot: bool,
    ) -> Result<Next, EngineError> {
        let numbers: Vec<usize> = views.iter().map(|(view, _)| *view).collect();
        let mut next = Next::GoOn;
        let mut fresh = Vec::with_capacity(views.len());
        for (view, reading) in views {
            let (one, loaded) = self.load(session, view, reading).await?;
            if loaded == Next::StartAgain {
                next = Next::StartAgain;
            }
            fresh.push(one);
        }
        // Views that were loaded are ahead of the others, which still wait for the commits in between.
        let loading = std::mem::take(&mut session.loading);
        let stands = session.position.clone().filter(|_| loading).unwrap_or_else(|| position.clone());
        let settled = if loading { session.settled.clone().unwrap_or_else(|| stands.clone()) } else { position.clone() };
        let reached = Reached { cut: position, position: stands, settled: settled.clone() };
        // A view whose first result comes now was left out of the comparison, for nothing was known about it.
        let compare = snapshot || numbers.iter().any(|&view| !self.views[view].known);
        let uncompared = matches!(session.compared, Compared::Due(_));
        let changes = if compare || uncompared {
            self.writer.replace(&self.name, reached, fresh).await?
        } else {
            self.writer.apply(&self.name, reached, fresh, self.guard).await?
        };
        self.note(&numbers, &changes);
        for view in &numbers {
            (self.views[*view].known, self.views[*view].failing) = (true, false);
            self.board.view_failed(self.index, *view, None);
        }
        self.views = self.writer.views(&self.views).await?;
        session.pending = None;
        let stored = self.writer.source(&self.name).await?.and_then(|record| record.position);
        (session.position, session.unacknowledged, session.settled) = (stored.clone(), stored, Some(settled.clone()));
        self.acknowledge(session).await?;
        if compare {
            session.compared = Compared::Due(Instant::now());
            self.compare_if_due(session).await?;
        } else if !uncompared {
            self.board.applied(self.index, settled, changes.commit_no);
        }
        if next == Next::GoOn && session.flows.has_clock() {
            return self.let_time_pass(session).await;
        }
        Ok(next)
    }

    /// Builds the state of an incremental view from what was read.
    async fn load(&mut self, session: &mut Session, view: usize, reading: Reading) -> Result<(Fresh, Next), EngineError> {
        let record = self.views[view].clone();
        let Reading { answer, tables, now } = reading;
        let Some(flow) = session.flows.get(view) else {
            return Ok((Fresh::from((record, answer)), Next::GoOn));
        };
        // A query of constants has no tables.
        if tables.is_empty() && !flow.dataflow.tables().is_empty() {
            // It failed when it was to be loaded, and can be read now.
            return Ok((Fresh::from((record, answer)), Next::StartAgain));
        }
        let flows = std::mem::take(&mut session.flows);
        let now = now.unwrap_or_else(|| session.clock.now());
        let (flows, Loaded { fresh, doubt }) = self.writer.load(flows, view, record, tables, answer, now).await?;
        session.flows = flows;
        let Some(doubt) = doubt else {
            session.flows.get_mut(view).expect("it has just been used").loaded = true;
            session.clock.passed(now);
            return Ok((fresh, Next::GoOn));
        };
        let fingerprint = session.flows.get(view).expect("it has just been used").fingerprint.clone();
        self.demote(view, &fingerprint, causes(&doubt)).await?;
        session.flows.drop_view(view);
        Ok((Fresh { view: self.views[view].clone(), ..fresh }, Next::StartAgain))
    }

    /// Keeps the numbers of the views in step with what was committed.
    pub(super) fn note(&mut self, numbers: &[usize], changes: &Changes) {
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
        let Some((received, settled)) = session.pending.take() else { return Ok(()) };
        if session.position.as_ref() == Some(&received) && session.settled.as_ref() == Some(&settled) {
            return Ok(());
        }
        self.writer.advance(&self.name, Reached { cut: received.clone(), position: received.clone(), settled: settled.clone() }).await?;
        (session.position, session.settled, session.unacknowledged) = (Some(received.clone()), Some(settled), Some(received));
        Ok(())
    }

    /// Writes down what is durable, then lets the source tell upstream.
    async fn acknowledge(&self, session: &mut Session) -> Result<(), EngineError> {
        let Some(position) = session.unacknowledged.take() else { return Ok(()) };
        let (checkpoint, name, id, told) = (self.checkpoint.clone(), self.name.clone(), self.writer.store_id(), position.clone());
        tokio::task::spawn_blocking(move || checkpoint.tell(&name, &id, &told)).await.map_err(EngineError::panicked)??;
        session.durable.send_replace(Some(position));
        Ok(())
    }

    pub(super) fn next_audit(&self) -> Option<Instant> {
        self.reconcile_every.map(|every| Instant::now() + every)
    }
}

/// Returns when the process stops.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender is the end of the process as well.
    let _ = stop.wait_for(|stop| *stop).await;
}
