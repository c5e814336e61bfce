//! Following the change stream: one loop, in which a batch of events becomes one commit.
//!
//! ```text
//! batch ─> complete up to T? ─> ids by collection ─> of each view: ids + what lookups touch ─> rows at T ─> Changes, commit T
//!                │ no: the last time waits for the next batch                                 └ refresh views: dirty ─> Cut
//! ```
//!
//! # Why the outcome is exact
//!
//! A view that is followed document by document is a table with a row for each document: its key and what it makes. Let that table be
//! right at time S. Between S and T documents have changed, and every one of them is in the stream. What a document makes depends on it
//! and on what its lookups find; so it can differ between S and T only if it changed itself or one of the documents did that it finds at S
//! or at T, and [`affected`](super::lookup) names all of these. All that are named are asked for *at T* (a snapshot read with
//! `atClusterTime`), and their rows replaced by the answer. So the table is right at T, whatever happened in between and however often a
//! document is named; a batch that is read twice changes nothing. The facts go from one state of the source to a later one in one
//! commit of the local store, and a reader sees what the queries return at T. That needs no pre- or post-images.
//!
//! # When it is only convergent
//!
//! The server keeps old states for some minutes. Who has been away for longer cannot ask about T any more, nor if the collection was
//! created or indexed just after it. Then the documents are read at a later time R that the server has, and go on being read at R until
//! the stream has passed it (from there on T is recent again). In between a reader may see documents as of R beside documents as of S:
//! each as it was at one of the two ends, never as it was at neither, grants and revocations alike; a transaction may be seen in parts.
//! When the stream reaches R every change up to R has been asked about at R or later, so the table is right. A view with lookups is read
//! again as a whole instead, since what a lookup finds at R may be gone before its change is seen.
//!
//! # Refresh views
//!
//! Their queries run beside the loop, at a time that the stream has reached, when one of their collections has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch as signal},
    task::JoinSet,
    time::Instant,
};

use crate::{
    config::MongoConfig,
    data::{ClusterTime, Lsn, Position, ResumeToken},
    error::Disposition,
    source::{
        Event, Reading, SourceError, SourceState,
        dirty::Dirty,
        mongo::{
            shape::PerDocument,
            snapshot::{Reader, Unread},
            unit::Commit,
            watch::{self, Batch, Fault, Since, Watch, lost, peek},
        },
    },
};

/// How far behind the server's clock a time may be to be read at: well inside the five minutes that the server keeps by default, since a
/// read takes time, too.
pub(super) const RECENT_SECONDS: u32 = 120;
/// Events that are gathered into one commit while the stream has more of them: who is behind gets on faster if documents that changed
/// several times are looked up once, and if the local store writes each of its pages once for many documents.
const GATHERED: usize = 8_000;
/// Events of one transaction that are kept until it is complete. Of a larger one what is there is looked up piece by piece.
const MOST_CARRIED: usize = 10_000;
/// The longest rest between two refreshes; a refresh rests as long as it took.
const REST_MAX: Duration = Duration::from_secs(30);
/// Between two attempts to read a view that failed.
const FAILED_RERUN: Duration = Duration::from_secs(30);
/// How long the stream may be silent behind a full batch, before it is asked whether more is to come. It says so at once unless the
/// oplog ends where the batch does; then the server holds the next request for a second.
const CARRIED_PATIENCE: Duration = Duration::from_millis(10);
/// Between two looks ahead.
const PEEK_AGAIN: Duration = Duration::from_millis(25);

/// Views that turned out not to be followed document by document with the documents there are, and why: kept over attempts.
pub(super) type Demoted = Arc<Mutex<BTreeMap<usize, String>>>;

/// How a view is followed.
#[derive(Debug)]
pub(super) enum Followed {
    /// Document by document.
    Documents {
        shape: Arc<PerDocument>,
        /// Its table.
        table: u32,
        /// It has everything up to here already.
        ahead: ClusterTime,
        /// Whether it is read first.
        load: bool,
    },
    /// Its query runs again when one of these changes.
    Refresh { collections: BTreeSet<String> },
    /// Not at all.
    Off,
}

impl Followed {
    /// It could not be read: until it can, it is refreshed.
    pub(super) fn fail(&mut self) {
        if let Self::Documents { shape, .. } = self {
            *self = Self::Refresh { collections: shape.collections() };
        }
    }

    fn collections(&self) -> BTreeSet<String> {
        match self {
            Self::Documents { shape, .. } => shape.collections(),
            Self::Refresh { collections } => collections.clone(),
            Self::Off => BTreeSet::new(),
        }
    }
}

/// One attempt at following.
pub(super) struct Tail {
    pub(super) reader: Reader,
    pub(super) config: Arc<MongoConfig>,
    pub(super) demoted: Demoted,
    pub(super) views: Vec<Followed>,
    collections: BTreeSet<String>,
    watch: Watch,
    /// Everything up to here was reported.
    pub(super) received: Since,
    /// Of that the receiver knows this.
    pub(super) told: ClusterTime,
    /// The last events so far of a transaction that may go on.
    carried: Vec<watch::Event>,
    /// The time of a transaction of which pieces were reported.
    pub(super) open: Option<ClusterTime>,
    /// Documents are read at this time until the stream has passed it.
    pub(super) ahead: Option<ClusterTime>,
    /// The server's clock.
    pub(super) head: ClusterTime,
    pub(super) dirty: Dirty,
    reruns: BTreeMap<usize, Instant>,
    /// At this time a refresh view could not be read.
    unreadable: ClusterTime,
    rest_until: Instant,
    refreshing: JoinSet<Refreshed>,
    peeking: JoinSet<(Since, Result<Batch, Fault>)>,
    peek_at: Option<Instant>,
    /// The stream has told its last event, and goes on in a new one.
    pub(super) invalidated: bool,
}

/// Results of refresh views.
struct Refreshed {
    point: Since,
    took: Duration,
    views: Vec<(usize, Result<Reading, Unread>)>,
}

/// What the loop woke up for.
enum Wake {
    Wanted,
    Refreshed(Refreshed),
    Peeked(Since, Result<Batch, Fault>),
    Timer,
    Stream(Option<Result<Batch, Fault>>),
}

/// The receiver of events is gone: the attempt has ended.
pub(super) struct Gone;

/// Of a step of the loop.
pub(super) type Outcome = Result<Result<(), Gone>, SourceError>;

impl Tail {
    /// Opens the stream.
    pub(super) async fn open(
        reader: Reader,
        config: Arc<MongoConfig>,
        demoted: Demoted,
        views: Vec<Followed>,
        since: Since,
    ) -> Result<Self, SourceError> {
        let collections: BTreeSet<String> = views.iter().flat_map(Followed::collections).collect();
        let watch = match Watch::open(&reader.server, &collections, &since).await {
            Ok(watch) => watch,
            Err(fault) => return Err(lost(&reader.server, fault)),
        };
        Ok(Self {
            reader,
            config,
            demoted,
            views,
            collections,
            watch,
            head: since.time,
            told: since.time,
            received: since,
            carried: Vec::new(),
            open: None,
            ahead: None,
            dirty: Dirty::default(),
            reruns: BTreeMap::new(),
            unreadable: ClusterTime::default(),
            rest_until: Instant::now(),
            refreshing: JoinSet::new(),
            peeking: JoinSet::new(),
            peek_at: None,
            invalidated: false,
        })
    }

    /// These views lack changes from `settled` on.
    pub(super) fn stale(&mut self, views: impl Iterator<Item = usize>, settled: Lsn) {
        for view in views {
            self.dirty.touch(view, settled.min(self.received.time.end()));
        }
    }

    /// Runs until it fails, or until nobody listens.
    pub(super) async fn run(
        mut self,
        events: &mpsc::Sender<Event>,
        wanted: &mut signal::Receiver<Option<Position>>,
    ) -> Result<(), SourceError> {
        if events.send(Event::State(SourceState::Streaming)).await.is_err() {
            return Ok(());
        }
        loop {
            self.start_what_is_due();
            let going = match self.wake(wanted).await {
                Wake::Wanted => {
                    wanted.mark_unchanged();
                    self.look_ahead(wanted);
                    Ok(())
                }
                Wake::Timer => {
                    self.look_ahead(wanted);
                    Ok(())
                }
                Wake::Refreshed(refreshed) => self.cut(refreshed, events).await?,
                Wake::Peeked(from, seen) => {
                    let taken = self.peeked(&from, seen, events).await?;
                    self.look_ahead(wanted);
                    taken
                }
                Wake::Stream(Some(batch)) => {
                    let batch = batch.map_err(|fault| lost(&self.reader.server, fault))?;
                    let taken = Box::pin(self.take(batch, events)).await?;
                    self.look_ahead(wanted);
                    taken
                }
                Wake::Stream(None) => {
                    self.reopen().await?;
                    Ok(())
                }
            };
            if let Err(Gone) = going {
                return Ok(());
            }
        }
    }

    async fn wake(&mut self, wanted: &mut signal::Receiver<Option<Position>>) -> Wake {
        let timer = self.next_wake();
        tokio::select! {
            biased;
            Ok(()) = wanted.changed() => Wake::Wanted,
            // Between the pieces of a commit a result would end it.
            Some(Ok(refreshed)) = self.refreshing.join_next(), if self.open.is_none() => Wake::Refreshed(refreshed),
            Some(Ok((from, seen))) = self.peeking.join_next() => Wake::Peeked(from, seen),
            () = tokio::time::sleep_until(timer) => Wake::Timer,
            batch = self.watch.next() => Wake::Stream(batch),
        }
    }

    fn next_wake(&self) -> Instant {
        let refresh = self.may_refresh().then_some(self.rest_until);
        let peek = self.peek_at.filter(|_| self.peeking.is_empty());
        let reruns = self.reruns.values().copied();
        refresh.into_iter().chain(peek).chain(reruns).fold(Instant::now() + FAILED_RERUN, Instant::min)
    }

    /// Whether the server still has the state at `time`.
    pub(super) fn is_recent(&self, time: ClusterTime) -> bool {
        self.head.seconds().saturating_sub(time.seconds()) <= RECENT_SECONDS
    }

    /// Whether there is something to read again that can be read at the time of the last commit.
    fn may_refresh(&self) -> bool {
        let readable = self.open.is_none() && self.is_recent(self.received.time) && self.received.time > self.unreadable;
        !self.dirty.is_empty() && self.refreshing.is_empty() && readable
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        let due: Vec<usize> = self.reruns.iter().filter(|(_, due)| **due <= now).map(|(view, _)| *view).collect();
        for view in due {
            self.reruns.remove(&view);
            self.dirty.touch(view, self.received.time.end());
        }
        if !self.may_refresh() || self.rest_until > now {
            return;
        }
        let point = self.received.clone();
        // A rerun is as of the last commit, which is not before the point: the next one takes it.
        let views = self.dirty.take(Lsn(point.time.end().0 + 1));
        let (reader, config) = (self.reader.clone(), self.config.clone());
        self.refreshing.spawn(async move {
            let started = Instant::now();
            let mut outcomes = Vec::with_capacity(views.len());
            for view in views {
                let answer = reader.answer_at(&config.views[view], point.time, &|_| ()).await;
                outcomes.push((view, answer.map(Reading::from)));
            }
            Refreshed { point, took: started.elapsed(), views: outcomes }
        });
    }

    /// Reports results of refresh views.
    async fn cut(&mut self, refreshed: Refreshed, events: &mpsc::Sender<Event>) -> Outcome {
        let Refreshed { point, took, views } = refreshed;
        let now = Instant::now();
        self.rest_until = now + took.min(REST_MAX);
        let mut read = Vec::with_capacity(views.len());
        for (view, outcome) in views {
            match outcome {
                Ok(reading) => read.push((view, reading)),
                // Its collection was created, dropped or indexed since: the stream will get beyond that.
                Err(Unread::Then(_)) => {
                    self.dirty.missed(view);
                    self.unreadable = point.time;
                }
                Err(Unread::Never(error)) if error.disposition() == Disposition::Retry => return Err(error),
                Err(Unread::Never(problem @ SourceError::View { .. })) => {
                    self.reruns.insert(view, now + FAILED_RERUN);
                    if events.send(Event::ViewFailed { view, problem }).await.is_err() {
                        return Ok(Err(Gone));
                    }
                }
                Err(Unread::Never(error)) => return Err(error),
            }
        }
        self.dirty.read();
        if read.is_empty() {
            return self.progress(events).await;
        }
        let position = Position::Time(point.time, point.token);
        let sent = events.send(Event::Cut { position, views: read, snapshot: false }).await;
        if sent.is_err() {
            return Ok(Err(Gone));
        }
        self.progress(events).await
    }

    /// Up to where no view lacks anything, once everything is reported up to `received`.
    pub(super) fn settled(&self) -> Position {
        let received = Position::Time(self.received.time, self.received.token.clone());
        match self.dirty.bound() {
            Some(bound) if bound < self.received.time.end() => received.at(bound, ResumeToken::default()),
            Some(_) | None => received,
        }
    }

    async fn progress(&mut self, events: &mpsc::Sender<Event>) -> Outcome {
        if self.open.is_some() {
            return Ok(Ok(()));
        }
        let received = Position::Time(self.received.time, self.received.token.clone());
        let head = Position::Time(self.head.max(self.received.time), ResumeToken::default());
        let settled = self.settled();
        self.told = self.received.time;
        let told = events.send(Event::Head(head)).await.is_ok() && events.send(Event::Progress { received, settled }).await.is_ok();
        Ok(if told { Ok(()) } else { Err(Gone) })
    }

    /// Where the stream is.
    fn place(&self) -> Since {
        match self.carried.last() {
            Some(event) => Since { time: event.at, token: event.token.clone() },
            None => self.received.clone(),
        }
    }

    /// Looks ahead of the stream if somebody waits for a time that it has not reached, or if a transaction may have ended with the last
    /// batch: with nothing to tell, the server holds the stream's request for a second.
    fn look_ahead(&mut self, wanted: &signal::Receiver<Option<Position>>) {
        let waits = wanted.borrow().as_ref().is_some_and(|wanted| {
            let here = Position::Time(self.received.time, ResumeToken::default());
            matches!(wanted, Position::Time(..)) && !here.reaches(wanted)
        });
        // Of a large transaction the next piece is on its way.
        if self.open.is_some() || (!waits && self.carried.is_empty()) {
            self.peek_at = None;
            return;
        }
        let now = Instant::now();
        let due = *self.peek_at.get_or_insert(if self.carried.is_empty() { now } else { now + CARRIED_PATIENCE });
        if due <= now && self.peeking.is_empty() {
            self.peek_at = Some(now + PEEK_AGAIN);
            let (server, collections, place) = (self.reader.server.clone(), self.collections.clone(), self.place());
            self.peeking.spawn(async move { (place.clone(), peek(server, collections, place).await) });
        }
    }

    /// Nothing happened up to a time: then the stream has nothing to tell of it either. Otherwise it will.
    async fn peeked(&mut self, from: &Since, seen: Result<Batch, Fault>, events: &mpsc::Sender<Event>) -> Outcome {
        match seen {
            // Said of another place it would say nothing about what has come since.
            Ok(batch) if batch.events.is_empty() && batch.ended && self.open.is_none() && *from == self.place() => {
                Box::pin(self.take(batch, events)).await
            }
            // The stream will say it as well, if that goes on.
            Ok(_) | Err(_) => Ok(Ok(())),
        }
    }

    /// The stream has ended after an event that ends it.
    async fn reopen(&mut self) -> Result<(), SourceError> {
        if !std::mem::take(&mut self.invalidated) {
            return Err(lost(&self.reader.server, Fault::Ended));
        }
        let opened = Watch::open(&self.reader.server, &self.collections, &self.received).await;
        self.watch = opened.map_err(|fault| lost(&self.reader.server, fault))?;
        Ok(())
    }

    /// What a batch tells, as one commit or as pieces of one.
    async fn take(&mut self, batch: Batch, events: &mpsc::Sender<Event>) -> Outcome {
        let Batch { events: new, ended, reached, token, head } = batch;
        self.head = self.head.max(head);
        let mut told = std::mem::take(&mut self.carried);
        told.extend(new);
        if let Some(at) = self.open {
            let rest = told.split_off(told.partition_point(|event| event.at <= at));
            let complete = ended || !rest.is_empty();
            let last = told.last().map(|event| event.token.clone()).unwrap_or_default();
            let commit = if complete { Commit::Ends(last) } else { Commit::GoesOn };
            if let Err(Gone) = self.report(told, at, commit, events).await? {
                return Ok(Err(Gone));
            }
            self.open = (!complete).then_some(at);
            told = rest;
        }
        if !ended && told.len() < GATHERED {
            self.carried = told;
            return Ok(Ok(()));
        }
        if !ended {
            let last = told.last().map(|event| event.at).unwrap_or_default();
            self.carried = told.split_off(told.partition_point(|event| event.at < last));
        }
        if let Some(last) = told.last() {
            let (at, token) = (last.at, last.token.clone());
            if let Err(Gone) = self.report(told, at, Commit::Ends(token), events).await? {
                return Ok(Err(Gone));
            }
        }
        if self.carried.len() >= MOST_CARRIED {
            let piece = std::mem::take(&mut self.carried);
            let at = piece.last().map_or(self.received.time, |event| event.at);
            let reported = self.report(piece, at, Commit::GoesOn, events).await;
            self.open = Some(at);
            return reported;
        }
        if ended && reached > self.received.time {
            self.received = Since { time: reached, token };
        }
        // Not if a commit has just told it.
        if self.received.time > self.told { self.progress(events).await } else { Ok(Ok(())) }
    }
}
