//! Following the change log: one loop, one [`select!`](tokio::select), one handler for each arm.
//!
//! The arms in the order of their priority. The stream is last because it is the only one that is always ready under load; the
//! others are rare or paced, so they cannot starve it.
//!
//! 1. *stop*: the last acknowledgement gets a chance, then the connection ends.
//! 2. *durable*: the newest durable position is acknowledged; nothing else ever is.
//! 3. *wanted*: somebody waits for a position; if the stream has not passed it, a heartbeat carries it there.
//! 4. *room for an event*: cuts in order, else the position.
//! 5. *the refresh*: a point, or results ([`refresh`](super::refresh)).
//! 6. *a heartbeat was sent*; 7. *the analysis was repeated*; 8. *the clock*.
//! 9. *the stream*.
//!
//! What the position means: every commit that starts before it has been received, and none of them is missing in a
//! view's last reported result. It is the end of the last commit received, or a keepalive's end outside of a transaction (the server
//! sends commits in the order of their records and has then decoded everything before), but never beyond the first commit of a dirty
//! view ([`Dirty::bound`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{self, BoxFuture};
use pgwire_replication::{PgWireError, ReplicationClient, ReplicationEvent};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};

use crate::{
    data::{Lsn, Position},
    source::{
        Event, Link, SourceError,
        postgres::{
            decode::{Change, decode},
            dirty::Dirty,
            fault,
            pulse::{self, Beat, Pulse, Rhythm, Shapes},
            refresh::{Cut, Refresh, Turn},
            session::Server,
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
/// Between two of them when the stream asks for one: TRUNCATE announces a table anew as DDL does, and may do so in every commit.
const REANALYZE_PAUSE: Duration = Duration::from_secs(1);
/// How long a stop waits for the last acknowledgement; it is sent within a second (the status interval). Without it the
/// last commits are streamed again, which changes nothing.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const STOP_POLL: Duration = Duration::from_millis(20);

/// A started stream and where it starts.
pub(crate) type Streaming = (ReplicationClient, Lsn);

/// Repeats the analysis and gives its fingerprint.
pub(crate) type Reanalyze = Arc<dyn Fn() -> BoxFuture<'static, Result<String, SourceError>> + Send + Sync>;

/// What the loop needs to know about the views.
pub(crate) struct Plan {
    /// The views that a change of a relation touches.
    pub(crate) views: BTreeMap<u32, Vec<usize>>,
    /// The views that depend on the time.
    pub(crate) clock: BTreeSet<usize>,
    /// The views whose last read failed.
    pub(crate) failed: BTreeSet<usize>,
    /// The fingerprint under which all of this holds.
    pub(crate) fingerprint: String,
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
    analyzing: Option<BoxFuture<'static, Result<String, SourceError>>>,
    analyzed: Instant,
    next_analysis: Instant,
    shapes: Option<Shapes>,
    known: BTreeSet<u32>,
    transaction: Option<BTreeSet<usize>>,
    dirty: Dirty,
    reruns: BTreeMap<usize, Instant>,
    outbox: VecDeque<Event>,
    received: Lsn,
    reported: Lsn,
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
    Analysis(Result<String, SourceError>),
    Clock,
    Stream(Result<Option<ReplicationEvent>, PgWireError>),
}

impl Tail {
    /// Follows what has been started.
    pub(crate) fn new(
        server: Server,
        slot: &str,
        plan: Plan,
        (client, position): Streaming,
        refresh: Refresh,
        pulse: Pulse,
        reanalyze: Reanalyze,
    ) -> Self {
        let now = Instant::now();
        let reruns = plan.clock.iter().chain(&plan.failed).map(|view| (*view, now + CLOCK_RERUN)).collect();
        Self {
            server,
            plan,
            client,
            refresh,
            pulse: Arc::new(pulse),
            reanalyze,
            rhythm: Rhythm::new(slot, now),
            beating: None,
            analyzing: None,
            analyzed: now,
            next_analysis: now + REANALYZE_EVERY,
            shapes: None,
            known: BTreeSet::new(),
            transaction: None,
            dirty: Dirty::default(),
            reruns,
            outbox: VecDeque::new(),
            received: position,
            reported: position,
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
                Wake::Beat(beat) => self.beaten(beat?),
                Wake::Analysis(fingerprint) => self.compare(&fingerprint?)?,
                Wake::Clock => self.check_link()?,
                Wake::Stream(event) => self.event(event.map_err(|error| self.lost(error))?, link)?,
            }
        }
    }

    async fn wake(&mut self, link: &mut Link) -> Wake {
        let room = self.has_news(link);
        let clock = self.next_wake();
        let Link { events, durable, wanted, stop } = link;
        tokio::select! {
            biased;
            () = stopped(stop) => Wake::Stop,
            Ok(()) = durable.changed() => Wake::Durable,
            Ok(()) = wanted.changed() => Wake::Wanted,
            permit = events.clone().reserve_owned(), if room => Wake::Room(permit),
            turn = self.refresh.turn() => Wake::Refresh(turn),
            beat = finish(&mut self.beating) => Wake::Beat(beat),
            fingerprint = finish(&mut self.analyzing) => Wake::Analysis(fingerprint),
            () = time::sleep_until(clock) => Wake::Clock,
            event = self.client.recv() => Wake::Stream(event),
        }
    }

    /// Starts a heartbeat, an analysis, a refresh; all of them run beside the loop.
    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.beating.is_none() && self.rhythm.next().is_some_and(|due| due <= now) {
            let (pulse, content) = (self.pulse.clone(), self.rhythm.send(now));
            self.beating = Some(Box::pin(async move { pulse.beat(&content).await }));
        }
        if self.analyzing.is_none() && self.next_analysis <= now {
            (self.analyzed, self.next_analysis) = (now, now + REANALYZE_EVERY);
            self.analyzing = Some((self.reanalyze)());
        }
        for (view, due) in &mut self.reruns {
            if *due <= now {
                // Set anew when it has been read.
                *due = now + REANALYZE_EVERY;
                self.dirty.touch(*view, self.received);
            }
        }
        // A cut that nobody has taken yet holds results; more of them would only pile up.
        if !self.dirty.is_empty() && self.outbox.is_empty() && self.refresh.ready_at().is_some_and(|ready| ready <= now) {
            self.refresh.start();
        }
    }

    fn next_wake(&self) -> Instant {
        let refresh = self.refresh.ready_at().filter(|_| !self.dirty.is_empty() && self.outbox.is_empty());
        let beat = self.rhythm.next().filter(|_| self.beating.is_none());
        let report = (self.target() > self.reported).then_some(self.next_report).filter(|due| *due > Instant::now());
        // What cannot start yet must not wake the loop either: the clock comes before the stream and would starve it.
        let analysis = Some(self.next_analysis).filter(|_| self.analyzing.is_none());
        let others = [refresh, beat, report, analysis, self.rhythm.deadline()];
        let reruns = self.reruns.values().copied();
        others.into_iter().flatten().chain(reruns).fold(Instant::now() + REANALYZE_EVERY, Instant::min)
    }

    /// The position that may be reported.
    fn target(&self) -> Lsn {
        self.dirty.bound().map_or(self.received, |bound| bound.min(self.received)).max(self.reported)
    }

    fn has_news(&self, link: &Link) -> bool {
        let target = self.target();
        let waited_for = lsn(&link.wanted.borrow()).is_some_and(|wanted| self.reported < wanted && wanted <= target);
        !self.outbox.is_empty() || (target > self.reported && (waited_for || self.next_report <= Instant::now()))
    }

    fn report(&mut self, permit: mpsc::OwnedPermit<Event>, link: &Link) {
        if let Some(event) = self.outbox.pop_front() {
            if let Event::Cut { position: Position::Lsn(point), .. } = event {
                self.reported = self.reported.max(point);
            }
            permit.send(event);
            return;
        }
        self.reported = self.target();
        self.next_report = Instant::now() + PROGRESS_EVERY;
        let position = Position::Lsn(self.reported);
        permit.send(Event::Progress { received: position.clone(), settled: position });
        self.beg(link);
    }

    fn acknowledge(&mut self, link: &mut Link) {
        if let Some(durable) = lsn(&link.durable.borrow_and_update()) {
            self.client.update_applied_lsn(pgwire_replication::Lsn::from_u64(durable.0));
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
        self.dirty.read();
        let now = Instant::now();
        let mut views = Vec::with_capacity(cut.outcomes.len());
        let mut failures = Vec::new();
        for (view, outcome) in cut.outcomes {
            let again = (cut.took * CLOCK_REST).max(CLOCK_RERUN);
            match outcome {
                Ok(extent) => {
                    if self.plan.clock.contains(&view) {
                        self.reruns.insert(view, now + again);
                    } else {
                        self.reruns.remove(&view);
                    }
                    views.push((view, extent.into()));
                }
                Err(problem) => {
                    self.reruns.insert(view, now + again.max(FAILED_RERUN));
                    failures.push(Event::ViewFailed { view, problem });
                }
            }
        }
        tracing::debug!(source = &*self.server.name, point = %cut.point, views = views.len(), took = ?cut.took, "views read again");
        self.outbox.extend(failures);
        self.outbox.push_back(Event::Cut { position: Position::Lsn(cut.point), views, snapshot: false });
    }

    fn beaten(&mut self, beat: Beat) {
        self.head = self.head.max(beat.head);
        self.outbox.push_back(Event::Head(Position::Lsn(self.head)));
        if let Some(before) = self.shapes.replace(beat.shapes) {
            let after = self.shapes.as_ref();
            let changed = before.iter().filter(|(table, shape)| after.and_then(|after| after.get(table)) != Some(shape));
            for view in changed.flat_map(|(table, _)| self.plan.views.get(table).into_iter().flatten()) {
                self.dirty.touch(*view, self.received);
            }
        }
    }

    /// Tables, functions or the publication have changed: what the stream means is no longer known.
    fn compare(&self, fingerprint: &str) -> Result<(), SourceError> {
        if fingerprint == self.plan.fingerprint {
            return Ok(());
        }
        let problem = "its tables, functions or publication have changed".to_owned();
        Err(SourceError::PositionLost { name: self.server.name.to_string(), problem })
    }

    fn check_link(&self) -> Result<(), SourceError> {
        match self.rhythm.deadline() {
            Some(deadline) if deadline <= Instant::now() => Err(fault::timeout(&self.server.name, "get a heartbeat back")),
            Some(_) | None => Ok(()),
        }
    }

    fn event(&mut self, event: Option<ReplicationEvent>, link: &Link) -> Result<(), SourceError> {
        self.rhythm.hear(Instant::now());
        match event {
            Some(ReplicationEvent::Begin { .. }) => self.transaction = Some(BTreeSet::new()),
            Some(ReplicationEvent::XLogData { data, .. }) => self.change(&data)?,
            Some(ReplicationEvent::Commit { lsn, end_lsn, .. }) => {
                self.commit(Lsn(lsn.as_u64()), Lsn(end_lsn.as_u64()));
                self.beg(link);
            }
            Some(ReplicationEvent::KeepAlive { wal_end, .. }) => {
                if self.transaction.is_none() {
                    self.receive(Lsn(wal_end.as_u64()));
                }
            }
            Some(ReplicationEvent::Message { prefix, content, .. }) => {
                if prefix == pulse::PREFIX {
                    self.rhythm.returned(&content);
                }
            }
            // We ask for no end.
            Some(ReplicationEvent::StoppedAt { .. }) | None => {
                return Err(self.broken("the server ended the stream"));
            }
        }
        Ok(())
    }

    fn change(&mut self, data: &[u8]) -> Result<(), SourceError> {
        match decode(data) {
            Change::Row(relation) => self.touched(relation),
            Change::Truncate(relations) => relations.into_iter().for_each(|relation| self.touched(relation)),
            Change::Shape(relation) => {
                // Sent once for each table, and again after DDL on it.
                if !self.known.insert(relation) && self.plan.views.contains_key(&relation) {
                    self.next_analysis = self.next_analysis.min(self.analyzed + REANALYZE_PAUSE);
                }
            }
            Change::Nothing => {}
            Change::Unknown => return Err(self.broken("a message of the stream cannot be read")),
        }
        Ok(())
    }

    fn touched(&mut self, relation: u32) {
        if let (Some(touched), Some(views)) = (&mut self.transaction, self.plan.views.get(&relation)) {
            touched.extend(views);
        }
    }

    fn commit(&mut self, start: Lsn, end: Lsn) {
        // Commits come in the order of their records: everything before this one has been received.
        self.pass(start);
        for view in self.transaction.take().unwrap_or_default() {
            self.dirty.touch(view, start);
        }
        self.receive(end);
    }

    fn receive(&mut self, end: Lsn) {
        self.received = self.received.max(end);
        self.head = self.head.max(end);
        self.pass(self.received);
    }

    /// Every commit that starts before `seen` has been received.
    fn pass(&mut self, seen: Lsn) {
        if let Some(point) = self.refresh.waits_for().filter(|point| *point <= seen) {
            let views = self.dirty.take(point);
            self.refresh.read(views);
        }
    }

    fn lost(&self, error: PgWireError) -> SourceError {
        fault::replication(&self.server.name, "stream changes", error)
    }

    fn broken(&self, problem: &'static str) -> SourceError {
        SourceError::Unreachable { name: self.server.name.to_string(), action: "stream changes", source: problem.into() }
    }

    async fn stop(&mut self, link: &mut Link) {
        self.acknowledge(link);
        let Some(durable) = lsn(&link.durable.borrow()) else { return };
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

fn lsn(position: &Option<Position>) -> Option<Lsn> {
    match position {
        Some(Position::Lsn(lsn)) => Some(*lsn),
        Some(Position::Digest(_)) | None => None,
    }
}
