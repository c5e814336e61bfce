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
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tracing::{error, info, warn};

use crate::{
    config::DriftPolicy,
    crash::{self, Moment},
    data::Position,
    engine::{
        audit::{self, Auditing},
        backoff::Backoff,
        board::Board,
        clock::SourceClock,
        compare::Compared,
        error::EngineError,
        flows::Flows,
        inbox::{Inbox, Taken},
        shadow::{Asked, Observed},
        start::Start,
        stranger::Stranger,
        writer::Writer,
    },
    error::{Disposition, causes},
    source::{self, Event, Follow, Link, Prepared, Role, SourceError, SourceState, Witness},
    store::{Changes, Checkpoint, Reached, ViewRecord},
    view::Guard,
};

/// Events between a source and its loop. A cut is one event, however large, since its rows are spooled; a few are enough to
/// keep the source busy while one is applied.
pub(super) const EVENT_QUEUE: usize = 8;
/// How often progress without changes is made durable, and thereby acknowledged upstream.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// The least time from the end of one store transaction to the next. A transaction of its own costs a dozen times what a
/// row in it does, so commits that come faster than this share one; a commit after a pause waits for nothing.
const PACE: Duration = Duration::from_millis(2);
/// The same while more than [`BUSY_PER_MS`] rows change: then the transactions and the requests to the fact store that are saved are worth
/// more than the milliseconds, for the processor is what everybody waits for.
const PACE_BUSY: Duration = Duration::from_millis(10);
/// Changed rows in a millisecond. From some 20,000 a second on transactions every two milliseconds take most of a processor.
const BUSY_PER_MS: u128 = 20;
/// How often upstream is told what is durable while changes flow: each time costs a flush of the checkpoint, and the server has to keep
/// the log that long.
pub(super) const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(100);

/// A source's loop.
pub(super) struct Ingest {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) views: Vec<ViewRecord>,
    pub(super) writer: Writer,
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) board: Arc<Board>,
    pub(super) target: Observed,
    /// With `--shadow`, who compares in place of this loop.
    pub(super) shadow: Option<mpsc::Sender<Asked>>,
    pub(super) spool: std::path::PathBuf,
    pub(super) guard: Guard,
    pub(super) reconcile_every: Option<Duration>,
    /// What becomes of drift that nobody has asked for.
    pub(super) drift: DriftPolicy,
    /// Who wants an audit now.
    pub(super) asked: mpsc::Receiver<audit::Asked>,
    /// Who did, and was not answered before the last attempt ended.
    pub(super) unanswered: Option<audit::Asked>,
    /// What reads views for an audit.
    pub(super) witness: Option<Arc<dyn Witness>>,
    pub(super) kind: &'static str,
    pub(super) stop: watch::Receiver<bool>,
    /// Turns when the fact store is to be compared anew.
    pub(super) again: watch::Receiver<()>,
    /// How the last attempt found that the position is of no use.
    pub(super) lost: Option<String>,
    /// Set while the source's data are not those the facts came from.
    pub(super) stranger: Option<Stranger>,
    /// How often each view's state turned out to be wrong.
    pub(super) reloads: Vec<u32>,
    /// What time it is at the source, whether it is there or not.
    pub(super) clock: SourceClock,
    /// The flows of the last attempt, while there is none.
    pub(super) resting: Flows,
}

/// What one connection attempt carries along.
pub(super) struct Session {
    pub(super) inbox: Inbox,
    durable: watch::Sender<Option<Position>>,
    /// Ends this attempt alone.
    halt: watch::Sender<bool>,
    follow: JoinHandle<(Box<dyn Follow>, Result<(), SourceError>)>,
    pub(super) compared: Compared,
    pub(super) flows: Flows,
    /// The audit that is under way.
    pub(super) audit: Auditing,
    /// As of which position each view was read last in this attempt.
    pub(super) cuts: BTreeMap<usize, Position>,
    /// Which database or file it is.
    pub(super) identity: String,
    /// Whether the first cut is of views that are ahead of the source's position.
    pub(super) loading: bool,
    /// Views that failed before this attempt and have not been tried in it.
    pub(super) untried: BTreeSet<usize>,
    /// Whether a view could not be loaded in this attempt, which the next one has to know.
    pub(super) unloaded: bool,
    /// Whether the source has the position, as far as is known: one that was put back to an older state writes anew what is before it.
    pub(super) proven: bool,
    /// Whether the source has been told to stop.
    halting: bool,
    /// When the last store transaction with changes ended.
    followed: Instant,
    /// How long the next one waits from then.
    rest: Duration,
    /// When the last acknowledgement was sent.
    pub(super) acknowledged: Instant,
    /// Received and settled, not durable yet.
    pub(super) pending: Option<(Position, Position)>,
    /// Where the source stands, durably.
    pub(super) position: Option<Position>,
    /// Up to here no view lacks anything.
    pub(super) settled: Option<Position>,
    /// What may be acknowledged and has not been.
    pub(super) unacknowledged: Option<Position>,
}

impl Session {
    /// Waits for the moment of the next store transaction with changes.
    pub(super) async fn pace(&mut self) {
        tokio::time::sleep(self.rest.saturating_sub(self.followed.elapsed())).await;
    }

    /// A store transaction with `changes` has ended.
    pub(super) fn paced(&mut self, changes: usize) {
        let busy = changes as u128 > self.followed.elapsed().as_millis() * BUSY_PER_MS;
        (self.followed, self.rest) = (Instant::now(), if busy { PACE_BUSY } else { PACE });
    }

    /// Whether those who wait may be told what is in. A view that failed is tried first, so that who asks next is told of it.
    pub(super) fn answers(&self) -> bool {
        matches!(self.compared, Compared::Done(_)) && self.proven && !self.loading && self.untried.is_empty()
    }
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
    Stop,
    Time,
    Audit(audit::Turn),
    Asked(audit::Asked),
    Event(Option<Taken>),
    Tick,
}

/// What an event asks of the loop.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// As [`Ended::Again`].
    StartAgain,
}

impl Ingest {
    /// Follows the source until the process stops. An error is a bug or a store that cannot be written to.
    pub(super) async fn run(mut self, mut follower: Box<dyn Follow>) -> Result<(), EngineError> {
        let mut backoff = Backoff::default();
        if self.guard.adopts() && self.views.iter().all(|view| view.met) {
            info!(source = self.name, "there is nothing to adopt: its facts were compared with the fact store before");
        }
        loop {
            self.board.state(self.index, SourceState::Connecting);
            let Some(prepared) = self.meanwhile(follower.prepare()).await? else { return Ok(()) };
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
            if self.meanwhile(tokio::time::sleep(pause)).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Says what happens next after `error`, and how long to wait before it.
    async fn failed(&mut self, error: &SourceError, backoff: &mut Backoff) -> Result<Duration, EngineError> {
        let reason = causes(error);
        if let SourceError::PositionLost { .. } = error {
            warn!(source = self.name, reason, "position lost, starting over with a snapshot");
            self.writer.forget_position(&self.name).await?;
            crash::moment(Moment::Forgotten);
            self.checkpoint.forget(&self.name)?;
            self.board.position_lost(self.index);
            self.board.state(self.index, SourceState::Retrying(reason.clone()));
            self.lost = Some(reason);
            return Ok(backoff.first());
        }
        if let SourceError::ViewsChanged { views, .. } = error {
            info!(source = self.name, reason, "views changed, reading them again");
            for view in views {
                self.resting.drop_view(*view);
                self.writer.drop_state(self.views[*view].id).await?;
                crash::moment(Moment::Dropped);
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
            Start::At { from, settled, compared, roles, flows } => {
                self.resume(&flows);
                self.witness = follower.witness();
                Session { identity: prepared.identity.clone(), ..self.open(follower, (from, settled), compared, roles, flows) }
            }
        };
        let next = self.turns(&mut session, backoff).await?;
        self.persist(&mut session).await?;
        self.acknowledge(&mut session).await?;
        session.halt.send_replace(true);
        // One that waited while this attempt could not be audited goes on waiting.
        self.unanswered = session.audit.unanswered().or(self.unanswered.take());
        drop(session.inbox);
        self.rest(session.flows);
        match session.follow.await {
            Ok((follower, _)) if next == Next::StartAgain => Ok((follower, Ended::Again)),
            Ok((follower, Ok(()))) => Ok((follower, Ended::Stopped)),
            Ok((follower, Err(error))) => Ok((follower, Ended::Failed(error))),
            Err(panic) => Err(EngineError::Bug(format!("following source \"{}\" panicked: {panic}", self.name))),
        }
    }

    /// Takes what comes, until the source has ended or has to be followed otherwise.
    async fn turns(&mut self, session: &mut Session, backoff: &mut Backoff) -> Result<Next, EngineError> {
        let mut tick = tokio::time::interval(PERSIST_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.compare_if_due(session).await?;
        loop {
            let auditable = session.can_be_audited() && self.shadow.is_none();
            if let Some(asked) = self.unanswered.take_if(|_| auditable) {
                self.begin_audit(session, Some(asked));
                continue;
            }
            let wake = tokio::select! {
                biased;
                () = stopped(&mut self.stop), if !session.halting => Wake::Stop,
                () = self.clock.due() => Wake::Time,
                turn = session.audit.turn() => Wake::Audit(turn),
                Some(asked) = self.asked.recv(), if auditable => Wake::Asked(asked),
                event = session.inbox.next(), if session.audit.lets_through() => Wake::Event(event),
                _ = tick.tick() => Wake::Tick,
            };
            let next = match wake {
                Wake::Stop => {
                    // First what is durable, so that the source can tell it on its way out.
                    self.persist(session).await?;
                    self.acknowledge(session).await?;
                    session.halting = true;
                    session.halt.send_replace(true);
                    Next::GoOn
                }
                Wake::Time => self.let_time_pass(session).await?,
                Wake::Audit(turn) => self.on_audit(session, turn).await?,
                Wake::Asked(asked) => {
                    self.begin_audit(session, Some(asked));
                    Next::GoOn
                }
                Wake::Event(Some(Taken::Event(event))) => self.on_event(session, event, backoff).await?,
                Wake::Event(Some(Taken::Stopped { settled })) => self.reached(session, settled).await?,
                // The sender went with the follow task.
                Wake::Event(None) => return Ok(Next::GoOn),
                Wake::Tick => {
                    self.persist(session).await?;
                    self.acknowledge(session).await?;
                    self.compare_if_due(session).await?;
                    self.recognise(session).await?;
                    Next::GoOn
                }
            };
            if next == Next::StartAgain {
                return Ok(next);
            }
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
        let (halt, halted) = watch::channel(false);
        let mut link = Link { events: events_in, durable: durable.subscribe(), wanted: self.board.wanted(self.index), stop: halted };
        let (position, proven) = (from.clone(), from.is_none());
        let loading = from.is_some() && roles.contains(&Role::Load);
        let tried = |view: &usize| !matches!(roles[*view], Role::Off);
        let untried: BTreeSet<usize> = (0..self.views.len()).filter(|view| self.views[*view].failing).filter(tried).collect();
        let ahead = self.views.iter().map(|view| view.position).collect();
        let start = source::Start { from, settled: settled.clone(), roles, ahead };
        let follow = tokio::spawn(async move {
            let outcome = follower.follow(start, &mut link).await;
            drop(link);
            (follower, outcome)
        });
        let commit_no = self.writer.commit_no();
        self.board.founded(self.index, matches!(compared, Compared::Done(_)).then_some(commit_no));
        let inbox = Inbox::new(events);
        Session {
            inbox,
            durable,
            halt,
            follow,
            compared,
            flows,
            audit: Auditing::default(),
            cuts: BTreeMap::new(),
            identity: String::new(),
            loading,
            untried,
            unloaded: false,
            proven,
            halting: false,
            followed: Instant::now(),
            rest: PACE,
            acknowledged: Instant::now(),
            pending: None,
            position,
            settled,
            unacknowledged: None,
        }
    }

    async fn on_event(&mut self, session: &mut Session, event: Event, backoff: &mut Backoff) -> Result<Next, EngineError> {
        match event {
            Event::State(state) => {
                if state == SourceState::Streaming {
                    backoff.reset();
                    session.proven = true;
                    if let (Some(settled), true) = (&session.settled, session.answers()) {
                        self.board.applied(self.index, settled.clone(), self.writer.commit_no());
                    }
                }
                info!(source = self.name, state = ?state, "source state");
                self.board.state(self.index, state);
            }
            Event::Head(head) => self.board.head(self.index, head),
            Event::WalKept { bytes, risk } => self.board.wal_kept(self.index, bytes, risk),
            Event::Clock { at, seen } => self.clock.set(at, seen),
            Event::ViewFailed { view, problem } => {
                let problem = causes(&problem);
                let fact_type = &self.views[view].fact_type;
                error!(source = self.name, %fact_type, problem, "fact type cannot be read, its facts stay as they are");
                self.writer.mark_failing(self.views[view].id).await?;
                self.views[view].failing = true;
                self.board.view_failed(self.index, view, Some(problem));
                session.untried.remove(&view);
                session.unloaded |= session.flows.get(view).is_some();
            }
            Event::Progress { received, settled } => {
                // Nothing changed, so the position may be told before it is durable; acknowledging waits for the tick.
                if session.answers() {
                    self.board.applied(self.index, settled.clone(), self.writer.commit_no());
                }
                session.pending = Some((received, settled));
            }
            Event::Changes { batch, settled } => {
                crash::moment(Moment::Received);
                session.inbox.settle(settled);
                return self.on_changes(session, batch).await;
            }
            Event::Cut { position, views, snapshot } => return self.on_cut(session, position, views, snapshot).await,
        }
        Ok(Next::GoOn)
    }

    /// Keeps the numbers of the views in step with what was committed.
    pub(super) fn note(&mut self, numbers: &[usize], changes: &Changes) {
        for (&view, change) in numbers.iter().zip(&changes.views) {
            let record = &mut self.views[view];
            if let Some(hold) = change.began {
                let (fact_type, removals) = (&record.fact_type, change.newly_held);
                warn!(source = self.name, %fact_type, %hold, removals, "removals held, see `factsync hold list`");
            }
            for (reason, rows) in &change.skipped {
                if !record.skipped.contains_key(reason) {
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
        crash::moment(Moment::Advanced);
        (session.position, session.settled, session.unacknowledged) = (Some(received.clone()), Some(settled), Some(received));
        Ok(())
    }

    /// Writes down what is durable, then lets the source tell upstream.
    pub(super) async fn acknowledge(&mut self, session: &mut Session) -> Result<(), EngineError> {
        let Some(position) = session.unacknowledged.take() else { return Ok(()) };
        let (checkpoint, name, id, told) = (self.checkpoint.clone(), self.name.clone(), self.writer.store_id(), position.clone());
        tokio::task::spawn_blocking(move || checkpoint.tell(&name, &id, &told)).await.map_err(EngineError::panicked)??;
        crash::moment(Moment::Told);
        session.durable.send_replace(Some(position));
        session.acknowledged = Instant::now();
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
