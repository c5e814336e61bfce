//! Following the change log: one loop, one [`select!`](tokio::select), one handler for each arm.
//!
//! The arms in the order of their priority. The stream is last because it is the only one that is always ready under load; the
//! others are rare or paced, so they cannot starve it. After a message of the stream those that have arrived already are
//! handled at once ([`Tail::drain`]): the selection costs more than a message.
//!
//! 1. *stop*: the last acknowledgement gets a chance, then the connection ends.
//! 2. *durable*: the newest durable position is acknowledged; nothing else ever is.
//! 3. *wanted*: somebody waits for a position; if the stream has not passed it, a heartbeat carries it there.
//! 4. *room for an event*: changes and cuts in order, else the position ([`outgoing`](super::outgoing)).
//! 5. *the refresh*: a point, or results ([`refresh`](super::refresh)).
//! 6. *a heartbeat was sent*; 7. *the source's clock*; 8. *the analysis was repeated*; 9. *the timer*.
//! 10. *the stream*, unless a full batch waits for room: then the server waits, too.
//!
//! What the positions mean. *received*: every commit that starts before it has been received, and what it changed in the incremental
//! views was reported. It is the end of the last commit received, or a keepalive's end outside of a transaction (the server
//! sends commits in the order of their records and has then decoded everything before). *settled*: none of these commits is missing in a
//! refresh view's last reported result either; so it is never beyond the first commit of a dirty view ([`Dirty::bound`]), and a view
//! stays dirty until its result was sent.

mod check;
mod receive;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationEvent};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};

use crate::{
    crash::{self, Moment},
    data::{Lsn, Position},
    source::{
        Event, Link, SourceError,
        dirty::Dirty,
        postgres::{
            fault,
            images::Images,
            look::{Look, Named},
            mark::{self, History, Mark, lsn},
            outgoing::{Outgoing, Reach},
            pulse::{self, Beat, ClockTime, Pulse, Rhythm},
            refresh::{Cut, Refresh, Turn},
            session::Server,
            slot::Streaming,
            tail::{
                check::{Analyzed, Checked, Doubts},
                receive::Transaction,
            },
        },
    },
};

/// Between two reports of a position nobody waits for. The receiver writes each one down; two hundred a second are plenty.
const PROGRESS_EVERY: Duration = Duration::from_millis(5);
/// Between two re-runs of a view that depends on the time, unless it runs longer than a tenth of this.
pub(crate) const CLOCK_RERUN: Duration = Duration::from_secs(5);
/// How many times its own duration such a view rests.
const CLOCK_REST: u32 = 10;
/// Between two attempts to read a view that failed.
const FAILED_RERUN: Duration = Duration::from_secs(30);
/// Between two looks at whether tables, functions or the publication have changed. DDL on the tables themselves shows in the stream.
const REANALYZE_EVERY: Duration = Duration::from_secs(60);
/// The same while a view is refused: somebody is about to set right what it lacks, and waits for the effect.
const REANALYZE_REFUSED: Duration = Duration::from_secs(10);
/// Between two of them when the stream asks for one: TRUNCATE announces a table anew as DDL does, and may do so in every commit.
const REANALYZE_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at the source's clock. In between it is taken to run like ours; a second of drift is far below a microsecond's worth
/// for any clock that is kept right.
const CLOCK_EVERY: Duration = Duration::from_secs(1);
/// Messages that are handled between two looks at everything else: about a millisecond's worth.
const DRAIN: usize = 1024;
/// How long a stop waits for the last acknowledgement; it is sent within a second (the status interval). Without it the
/// last commits are streamed again, which changes nothing.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const STOP_POLL: Duration = Duration::from_millis(20);

/// Repeats the analysis of some views and tells what each of them depends on, as [`Plan::essence`].
pub(crate) type Reanalyze = Arc<dyn Fn(BTreeSet<usize>) -> BoxFuture<'static, Essence> + Send + Sync>;
/// What it told.
pub(crate) type Essence = Result<BTreeMap<usize, String>, SourceError>;

/// What the loop needs to know about the views.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The refresh views that a change of a relation touches.
    pub(crate) views: BTreeMap<u32, Vec<usize>>,
    /// What is delivered to the incremental views.
    pub(crate) images: Images,
    /// The refresh views that depend on the time.
    pub(crate) clock: BTreeSet<usize>,
    /// Whether an incremental view depends on the time.
    pub(crate) tells_time: bool,
    /// The refresh views that are read at once: they lack changes from before the stream.
    pub(crate) stale: BTreeSet<usize>,
    /// What they lack comes after this.
    pub(crate) settled: Option<Lsn>,
    /// The refresh views whose last read failed.
    pub(crate) failed: BTreeSet<usize>,
    /// What each view depends on ([`Survey::essence`](super::prepare::Survey::essence)), under which all of this holds.
    pub(crate) essence: Vec<String>,
    /// The catalogues under which it holds, but for the views in [doubt](Doubts).
    pub(crate) look: Look,
    /// What each view names.
    pub(crate) named: Vec<Named>,
    /// Whether a view cannot be followed as the catalogues are now.
    pub(crate) refuses: bool,
}

impl Plan {
    fn analysis_every(&self) -> Duration {
        if self.refuses { REANALYZE_REFUSED } else { REANALYZE_EVERY }
    }
}

/// Everything the loop owns.
pub(crate) struct Tail {
    server: Server,
    plan: Plan,
    client: ReplicationClient,
    refresh: Refresh,
    pulse: Arc<Pulse>,
    reanalyze: Reanalyze,
    rhythm: Rhythm,
    beating: Option<BoxFuture<'static, Result<Beat, SourceError>>>,
    asking: Option<BoxFuture<'static, Result<ClockTime, SourceError>>>,
    analyzing: Option<BoxFuture<'static, Analyzed>>,
    /// While there is one, the stream is not read.
    checking: Option<BoxFuture<'static, Result<Checked, SourceError>>>,
    next_clock: Option<Instant>,
    analyzed: Instant,
    next_analysis: Instant,
    unanalyzed: Option<Instant>,
    doubts: Doubts,
    transaction: Option<Transaction>,
    history: History,
    /// Whether the server asks for the whole position, since nothing came after it.
    asks: bool,
    /// The last commit before the point of the refresh under way.
    cut_mark: Option<Mark>,
    dirty: Dirty,
    reruns: BTreeMap<usize, Instant>,
    outgoing: Outgoing,
    received: Lsn,
    next_report: Instant,
    head: Lsn,
    begged: Option<(Lsn, Instant)>,
}

/// What the loop woke up for.
enum Wake {
    Stop,
    Durable,
    Wanted,
    Room(Result<mpsc::OwnedPermit<Event>, mpsc::error::SendError<()>>),
    Refresh(Result<Turn, SourceError>),
    Beat(Result<Beat, SourceError>),
    Time(Result<ClockTime, SourceError>),
    Analysis(Analyzed),
    Checked(Result<Checked, SourceError>),
    Timer,
    Stream(Result<Option<ReplicationEvent>, PgWireError>),
}

impl Tail {
    /// Follows what has been started.
    pub(crate) fn new(
        server: Server,
        slot: &str,
        plan: Plan,
        Streaming { client, from: position, resume, log }: Streaming,
        refresh: Refresh,
        pulse: Pulse,
        reanalyze: Reanalyze,
    ) -> Self {
        let now = Instant::now();
        let reruns = plan.clock.iter().chain(&plan.failed).map(|view| (*view, now + CLOCK_RERUN)).collect();
        let mut dirty = Dirty::default();
        let mut outgoing = Outgoing::new(position, resume.last());
        // Another start before they are read must still know that they are stale.
        let settled = plan.settled.unwrap_or_default().min(position);
        for view in &plan.stale {
            dirty.touch(*view, settled);
            outgoing.unsettled(settled);
        }
        Self {
            server,
            next_clock: plan.tells_time.then_some(now),
            next_analysis: now + plan.analysis_every(),
            plan,
            client,
            refresh,
            pulse: Arc::new(pulse),
            reanalyze,
            rhythm: Rhythm::new(slot, now),
            beating: None,
            asking: None,
            analyzing: None,
            checking: None,
            analyzed: now,
            unanalyzed: None,
            doubts: Doubts::default(),
            transaction: None,
            history: History::new(log.timeline, position, resume),
            asks: false,
            cut_mark: None,
            dirty,
            reruns,
            outgoing,
            received: position,
            next_report: now,
            head: position,
            begged: None,
        }
    }

    /// Runs until `link.stop` or a failure.
    pub(crate) async fn run(mut self, link: &mut Link) -> Result<(), SourceError> {
        loop {
            self.start_what_is_due();
            match self.wake(link).await {
                Wake::Stop => {
                    self.stop(link).await;
                    return Ok(());
                }
                Wake::Durable => self.acknowledge(link),
                Wake::Wanted => self.beg(link),
                Wake::Room(Ok(permit)) => self.report(permit, link),
                // The receiver is gone, which also means stop.
                Wake::Room(Err(_)) => return Ok(()),
                Wake::Refresh(turn) => self.turn(turn?),
                Wake::Beat(beat) => self.beaten(beat?)?,
                Wake::Time(time) => self.tell_time(time?),
                Wake::Analysis(analyzed) => self.compare(analyzed)?,
                Wake::Checked(checked) => self.checked(checked?)?,
                Wake::Timer => self.check_link()?,
                Wake::Stream(event) => {
                    self.rhythm.hear(Instant::now());
                    self.event(event.map_err(|error| self.lost(error))?)?;
                    self.drain()?;
                    if self.asks && self.history.is_proven() {
                        self.acknowledge(link);
                    }
                    self.beg(link);
                }
            }
        }
    }

    async fn wake(&mut self, link: &mut Link) -> Wake {
        let room = self.has_news(link);
        let timer = self.next_wake();
        let reads = self.outgoing.has_room() && self.checking.is_none();
        let Link { events, durable, wanted, stop } = link;
        tokio::select! {
            biased;
            () = stopped(stop) => Wake::Stop,
            Ok(()) = durable.changed() => Wake::Durable,
            Ok(()) = wanted.changed() => Wake::Wanted,
            permit = events.clone().reserve_owned(), if room => Wake::Room(permit),
            turn = self.refresh.turn() => Wake::Refresh(turn),
            beat = finish(&mut self.beating) => Wake::Beat(beat),
            time = finish(&mut self.asking) => Wake::Time(time),
            analyzed = finish(&mut self.analyzing) => Wake::Analysis(analyzed),
            checked = finish(&mut self.checking) => Wake::Checked(checked),
            () = time::sleep_until(timer) => Wake::Timer,
            event = self.client.recv(), if reads => Wake::Stream(event),
        }
    }

    /// Handles what the stream has ready, up to the end of a transaction where that is near: only there changes can be sent.
    fn drain(&mut self) -> Result<(), SourceError> {
        for handled in 1.. {
            if self.checking.is_some()
                || !self.outgoing.has_room()
                || (handled >= DRAIN && (self.outgoing.is_between() || handled >= 2 * DRAIN))
            {
                return Ok(());
            }
            // The worker that ends is awaited in the selection, where its error cannot get lost.
            if !self.client.is_running() {
                return Ok(());
            }
            // Without tokio's budget, which would end the loop after 128 messages.
            let Some(event) = tokio::task::unconstrained(self.client.recv()).now_or_never() else { return Ok(()) };
            self.event(event.map_err(|error| self.lost(error))?)?;
        }
        Ok(())
    }

    /// Starts a heartbeat, a look at the clock, an analysis, a refresh; all of them run beside the loop.
    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.beating.is_none() && self.rhythm.next().is_some_and(|due| due <= now) {
            let (pulse, content) = (self.pulse.clone(), self.rhythm.send(now));
            self.beating = Some(Box::pin(async move { pulse.beat(&content).await }));
        }
        if self.asking.is_none() && self.next_clock.is_some_and(|due| due <= now) {
            self.next_clock = Some(now + CLOCK_EVERY);
            let pulse = self.pulse.clone();
            self.asking = Some(Box::pin(async move { pulse.clock().await }));
        }
        if self.analyzing.is_none() && self.next_analysis <= now {
            self.analyze(now);
        }
        for (view, due) in &mut self.reruns {
            if *due <= now {
                // Set anew when it has been read.
                *due = now + REANALYZE_EVERY;
                self.dirty.touch(*view, self.received);
            }
        }
        // A cut that nobody has taken yet holds results; more of them would only pile up.
        if !self.dirty.is_empty() && !self.outgoing.has_events() && self.refresh.ready_at().is_some_and(|ready| ready <= now) {
            self.refresh.start();
        }
    }

    fn next_wake(&self) -> Instant {
        let refresh = self.refresh.ready_at().filter(|_| !self.dirty.is_empty() && !self.outgoing.has_events());
        let beat = self.rhythm.next().filter(|_| self.beating.is_none());
        let report = self.outgoing.is_behind(self.reach()).then_some(self.next_report).filter(|due| *due > Instant::now());
        // What cannot start yet must not wake the loop either: the timer comes before the stream and would starve it.
        let clock = self.next_clock.filter(|_| self.asking.is_none());
        let analysis = Some(self.next_analysis).filter(|_| self.analyzing.is_none());
        let deadline = self.rhythm.deadline().filter(|_| self.checking.is_none());
        let others = [refresh, beat, report, clock, analysis, deadline];
        let reruns = self.reruns.values().copied();
        others.into_iter().flatten().chain(reruns).fold(Instant::now() + REANALYZE_EVERY, Instant::min)
    }

    /// The position that may be reported once everything received is.
    fn reach(&self) -> Reach {
        let settled = self.dirty.bound().map_or(self.received, |bound| bound.min(self.received));
        Reach { received: self.received, settled }
    }

    fn has_news(&self, link: &Link) -> bool {
        if self.outgoing.is_ready() {
            return true;
        }
        let (reach, reported) = (self.reach(), self.outgoing.reported());
        let waited_for = lsn(&link.wanted.borrow()).is_some_and(|wanted| {
            (reported.settled < wanted && wanted <= reach.settled) || (reported.received < wanted && wanted <= reach.received)
        });
        self.outgoing.is_behind(reach) && (waited_for || self.next_report <= Instant::now())
    }

    fn report(&mut self, permit: mpsc::OwnedPermit<Event>, link: &Link) {
        let reach = self.reach();
        match self.outgoing.take(reach.settled) {
            Some(event) => {
                // Only now: a position beyond its views' first commits must not come before their results.
                if let Event::Cut { .. } = event {
                    self.dirty.read();
                }
                permit.send(event);
            }
            None => {
                self.next_report = Instant::now() + PROGRESS_EVERY;
                permit.send(self.outgoing.progress(reach, self.history.last()));
                self.beg(link);
            }
        }
    }

    fn acknowledge(&mut self, link: &mut Link) {
        if let Some(durable) = mark::acknowledged(&link.durable.borrow_and_update(), self.asks) {
            self.client.update_applied_lsn(pgwire_replication::Lsn::from_u64(durable.0));
            crash::moment(Moment::Confirmed);
        }
    }

    /// Sends a heartbeat if somebody waits for a position that the stream has not reached: at once, and from then on slowly,
    /// because a position in the future is reached by nobody.
    fn beg(&mut self, link: &Link) {
        let Some(wanted) = lsn(&link.wanted.borrow()).filter(|wanted| *wanted > self.received) else { return };
        let now = Instant::now();
        let when = match self.begged {
            Some((begged, due)) if begged == wanted && due > now => return,
            Some((begged, due)) if begged == wanted => (due + pulse::AGAIN).max(now),
            Some(_) | None => now,
        };
        self.begged = Some((wanted, when));
        self.rhythm.hurry(when);
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Anchored(point) => {
                self.rhythm.hurry(Instant::now());
                self.pass(self.received);
                tracing::debug!(source = &*self.server.name, %point, "snapshot for dirty views created");
            }
            Turn::Done(cut) => self.finish_cut(cut),
        }
    }

    fn finish_cut(&mut self, cut: Cut) {
        let now = Instant::now();
        let mut views = Vec::with_capacity(cut.outcomes.len());
        for (view, outcome) in cut.outcomes {
            let again = (cut.took * CLOCK_REST).max(CLOCK_RERUN);
            match outcome {
                Ok(reading) => {
                    if self.plan.clock.contains(&view) {
                        self.reruns.insert(view, now + again);
                    } else {
                        self.reruns.remove(&view);
                    }
                    views.push((view, reading));
                }
                Err(problem) => {
                    self.reruns.insert(view, now + again.max(FAILED_RERUN));
                    self.outgoing.push(Event::ViewFailed { view, problem });
                }
            }
        }
        let token = Mark::token_of(self.cut_mark);
        tracing::debug!(source = &*self.server.name, point = %cut.point, views = views.len(), took = ?cut.took, "views read again");
        self.outgoing.push_after_changes(Event::Cut { position: Position::Lsn(cut.point, token), views, snapshot: false });
    }

    fn beaten(&mut self, beat: Beat) -> Result<(), SourceError> {
        self.head = self.head.max(beat.head);
        self.outgoing.push(Event::Head(self.head.into()));
        self.looked(beat.look)
    }

    fn tell_time(&mut self, time: ClockTime) {
        self.outgoing.push(Event::Clock { at: time.at, seen: time.seen });
    }

    fn check_link(&self) -> Result<(), SourceError> {
        match self.rhythm.deadline().filter(|_| self.checking.is_none()) {
            Some(deadline) if deadline <= Instant::now() => Err(fault::timeout(&self.server.name, "get a heartbeat back")),
            Some(_) | None => Ok(()),
        }
    }

    async fn stop(&mut self, link: &mut Link) {
        self.acknowledge(link);
        let Some(durable) = mark::acknowledged(&link.durable.borrow(), self.asks) else { return };
        let metrics = self.client.metrics();
        let acknowledged = async {
            while metrics.last_applied_lsn().as_u64() < durable.0 && self.client.is_running() {
                time::sleep(STOP_POLL).await;
            }
        };
        if time::timeout(STOP_GRACE, acknowledged).await.is_err() {
            tracing::debug!(source = &*self.server.name, "stopped before the last acknowledgement was sent");
        }
        // An error on the way out changes nothing: what is durable is durable.
        let _ = time::timeout(STOP_GRACE, self.client.shutdown()).await;
    }
}

/// Waits until `stop` turns true; its sender's end means the same.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits for what `running` holds and takes it out; forever while it holds nothing. Cancel-safe.
async fn finish<T>(running: &mut Option<BoxFuture<'static, T>>) -> T {
    match running {
        None => future::pending().await,
        Some(future) => {
            let output = future.await;
            *running = None;
            output
        }
    }
}
