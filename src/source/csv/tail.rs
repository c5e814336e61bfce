//! Following a file: read it as a whole whenever it may have changed, report it when it did.
//!
//! The engine sees one cut per content. What cannot be read or is malformed becomes [`SourceState::Retrying`] with the
//! reason, and nothing else: the facts of the last good content stay until there is another good one. So neither a file that
//! vanishes, nor half a file, nor a header without one of the configured fields ever revokes anything.
//!
//! Of a file that somebody has open only lines that have an end are read, and they are believed only if they begin with the content
//! that was read last (a log that grows), or if nobody has written for [`OPEN_WRITER`]. So a slow download or dump into the
//! file itself is not taken for a file that has lost the rest.
//!
//! No change is missed: the way to the file is watched *before* it is read, and what happens during the read is
//! seen after it. An event that never comes is made up for by comparing the file's metadata every [`POLL`].

#[cfg(test)]
mod tests;

use std::{error::Error, future::pending, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::{
    select,
    sync::{mpsc, watch},
    time::{Duration, Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};
use tracing::{info, warn};

use crate::{
    config::CsvConfig,
    data::{Extent, Position},
    source::{
        Answer, Event, Follow, Link, Prepared, SourceError, SourceState, Stand, Start, Testimony, Witness,
        csv::{
            decode::Prefix,
            snapshot::{Reading, Request, Stamp, Until, read},
            watch::{Activity, PathWatch, Writer},
        },
    },
};

/// Quiet to wait for after a file was closed or renamed: long enough for the two or three steps in which editors save (a
/// few milliseconds apart), too short for a person to notice.
const QUIET: Duration = Duration::from_millis(50);
/// The longest a file that is closed again and again is left unread: the delay anybody can cause by appending in a loop.
const MAX_DELAY: Duration = Duration::from_secs(1);
/// How long a file that was modified and not closed is left unread: enough to write some gigabytes in place. After that
/// we take the writer for one that keeps its file open, such as a log, and read what there is. One that writes something else than a
/// longer version of what was there is waited for until it has written nothing for as long.
const OPEN_WRITER: Duration = Duration::from_secs(10);
/// How often the file's metadata is compared, for file systems without events; a `stat` costs nothing at this rate.
const POLL: Duration = Duration::from_secs(2);

/// Follows one CSV file.
#[derive(Debug)]
pub struct Follower {
    request: Arc<Request>,
}

impl Follower {
    /// Prepares to follow the file of `config`; nothing is opened yet. Results spill into `spool`.
    pub fn new(name: &str, config: &CsvConfig, spool: &Path) -> Self {
        Self { request: Arc::new(Request::new(name, config, spool)) }
    }
}

impl Follow for Follower {
    fn prepare(&mut self) -> BoxFuture<'_, Result<Prepared, SourceError>> {
        Box::pin(std::future::ready(Ok(self.request.prepared())))
    }

    fn witness(&self) -> Option<Arc<dyn Witness>> {
        Some(Arc::new(FileWitness { request: Arc::clone(&self.request) }))
    }

    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>> {
        let Link { events, durable: _, wanted, stop } = link;
        Box::pin(async move {
            let mut tail = Tail::new(Arc::clone(&self.request), start.from, events)?;
            select! {
                biased;
                () = stopped(stop) => Ok(()),
                () = events.closed() => Ok(()),
                error = tail.run(wanted) => Err(error),
            }
        })
    }
}

/// Parses the file once more, for an audit.
struct FileWitness {
    request: Arc<Request>,
}

impl Witness for FileWitness {
    fn stand(&self, _: Position, views: Vec<usize>) -> BoxFuture<'static, Result<Stand, SourceError>> {
        let request = Arc::clone(&self.request);
        Box::pin(async move {
            // Which state it is shows only when it has been read.
            let Reading { position, views: answers, .. } = read(request, Until::End, None, |_| {}).await?;
            let told = answers.into_iter().enumerate().filter(|(view, _)| views.contains(view));
            let views = told.map(|(view, rows)| Answer { view, rows, now: None }).collect();
            let testimony = Testimony { views, ..Testimony::default() };
            Ok(Stand { position, testimony: Box::pin(std::future::ready(Ok(testimony))) })
        })
    }
}

/// Returns when the process stops.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A sender that is gone stops us as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One attempt at following.
struct Tail<'a> {
    request: Arc<Request>,
    events: &'a mpsc::Sender<Event>,
    /// The content of the last cut; `None` before the first.
    position: Option<Position>,
    /// The same as far as this process has read it.
    content: Option<Prefix>,
    /// What was reported last.
    state: Option<SourceState>,
    alarm: Alarm,
}

impl<'a> Tail<'a> {
    fn new(request: Arc<Request>, from: Option<Position>, events: &'a mpsc::Sender<Event>) -> Result<Self, SourceError> {
        if let Some(other @ (Position::Lsn(..) | Position::Time(..))) = &from {
            let problem = format!("{other} is no digest of a file");
            return Err(SourceError::PositionLost { name: request.name.clone(), problem });
        }
        let (path, activity) = PathWatch::new(&request.name, &request.path);
        Ok(Self::watching(request, from, events, Alarm::new(path, activity)))
    }

    fn watching(request: Arc<Request>, from: Option<Position>, events: &'a mpsc::Sender<Event>, alarm: Alarm) -> Self {
        Self { request, events, position: from, content: None, state: None, alarm }
    }

    /// Reads and waits for the next reason to read, until the spool fails.
    async fn run(&mut self, wanted: &mut watch::Receiver<Option<Position>>) -> SourceError {
        if self.position.is_none() {
            self.enter(SourceState::Snapshotting).await;
        }
        loop {
            let stamp = self.alarm.path.arm().await;
            let writer = self.alarm.writer();
            let until = if writer == Writer::Open { Until::LastLineBreak } else { Until::End };
            let read = read(Arc::clone(&self.request), until, self.content.clone(), |_| {}).await;
            if (writer, self.alarm.writer()) == (Writer::Closed, Writer::Open) {
                // It may be half of anything, and whoever writes has told the alarm.
                self.alarm.wait(wanted, self.position.as_ref()).await;
                continue;
            }
            let outcome = match read.and_then(|reading| self.believe(reading, writer)).and_then(complete) {
                Ok((content, views)) => {
                    self.report(Position::Digest(content.digest.clone()), views).await;
                    self.content = Some(content);
                    Outcome::Good
                }
                Err(error @ SourceError::Spool { .. }) => return error,
                Err(error @ SourceError::Unreachable { .. }) => self.retry_later(&error, Outcome::Unreadable).await,
                Err(error) => self.retry_later(&error, Outcome::Malformed).await,
            };
            self.alarm.last = (stamp, outcome);
            self.alarm.wait(wanted, self.position.as_ref()).await;
        }
    }

    /// Refuses what may be half of what its writer is about to write.
    fn believe(&mut self, reading: Reading, writer: Writer) -> Result<Reading, SourceError> {
        let believed = writer == Writer::Closed || reading.extends || self.position.is_none();
        if believed || self.position.as_ref() == Some(&reading.position) || self.alarm.is_quiet(Instant::now()) {
            return Ok(reading);
        }
        self.alarm.look_when_quiet();
        let problem = "it is being written anew, and whoever does has not closed it".to_owned();
        Err(SourceError::Malformed { name: self.request.name.clone(), problem })
    }

    async fn report(&mut self, position: Position, views: Vec<(usize, Extent)>) {
        let event = if self.position.as_ref() == Some(&position) {
            Event::Progress { received: position.clone(), settled: position.clone() }
        } else {
            info!(source = self.request.name, %position, "file has new content");
            let views = views.into_iter().map(|(view, extent)| (view, extent.into())).collect();
            Event::Cut { position: position.clone(), views, snapshot: self.position.is_none() }
        };
        self.send(event).await;
        self.position = Some(position);
        self.enter(SourceState::Streaming).await;
    }

    async fn retry_later(&mut self, error: &SourceError, outcome: Outcome) -> Outcome {
        self.enter(SourceState::Retrying(chain(error))).await;
        outcome
    }

    async fn enter(&mut self, state: SourceState) {
        if self.state.as_ref() != Some(&state) {
            if let SourceState::Retrying(reason) = &state {
                warn!(source = self.request.name, error = reason, "file cannot be used, keeping the facts of the last good one");
            }
            self.state = Some(state.clone());
            self.send(Event::State(state)).await;
        }
    }

    async fn send(&self, event: Event) {
        // An error means that the receiver is gone; `follow` sees that itself and ends.
        let _ = self.events.send(event).await;
    }
}

/// What was read, and each view's rows.
type Complete = (Prefix, Vec<(usize, Extent)>);

/// The views of a reading, all of them or the first one's error.
fn complete(reading: Reading) -> Result<Complete, SourceError> {
    let views = reading.views.into_iter().enumerate().map(|(view, extent)| extent.map(|extent| (view, extent)));
    Ok((reading.content, views.collect::<Result<_, _>>()?))
}

/// An error and its causes on one line.
fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// How the last read ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Reported.
    Good,
    /// Not a CSV file with our fields; the same bytes need not be read again.
    Malformed,
    /// Missing, forbidden or changing; it may be readable without looking any different.
    Unreadable,
}

/// Decides when to read again.
struct Alarm {
    path: PathWatch,
    activity: watch::Receiver<Activity>,
    unread: Option<Unread>,
    /// When somebody was last seen to write.
    written: Option<Instant>,
    poll: Interval,
    /// What was read last, and how that ended.
    last: (Option<Stamp>, Outcome),
    /// What the last poll saw, if it was not `last`.
    polled: Option<Stamp>,
}

impl Alarm {
    fn new(path: PathWatch, activity: watch::Receiver<Activity>) -> Self {
        let mut poll = interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { path, activity, unread: None, written: None, poll, last: (None, Outcome::Unreadable), polled: None }
    }

    /// Returns when the file should be read.
    ///
    /// The deadline comes first: a stream of events must not put it off.
    async fn wait(&mut self, wanted: &mut watch::Receiver<Option<Position>>, here: Option<&Position>) {
        loop {
            let due = self.unread.as_ref().map(Unread::due);
            select! {
                biased;
                () = at(due) => break,
                Ok(()) = self.activity.changed() => self.note(Instant::now()),
                Ok(()) = wanted.changed() => {
                    if wanted.borrow_and_update().as_ref().is_some_and(|wanted| Some(wanted) != here) {
                        self.look_soon(Instant::now());
                    }
                }
                _ = self.poll.tick() => {
                    if self.unread.is_none() && self.poll().await {
                        break;
                    }
                }
            }
        }
        self.unread = None;
        self.polled = None;
    }

    fn note(&mut self, now: Instant) {
        let writer = self.activity.borrow_and_update().writer;
        let first = self.unread.as_ref().map_or(now, |unread| unread.first);
        self.unread = Some(Unread { first, last: now, writer });
        self.written = Some(now);
    }

    /// Who has written last, also if nobody was woken by it yet.
    fn writer(&self) -> Writer {
        self.activity.borrow().writer
    }

    /// Whether nobody was seen to write for so long that there may be no more to come.
    fn is_quiet(&self, now: Instant) -> bool {
        !self.activity.has_changed().unwrap_or(false) && self.written.is_none_or(|written| now - written >= OPEN_WRITER)
    }

    /// Looks again when it may be quiet; at once if the writer is done before.
    fn look_when_quiet(&mut self) {
        let since = self.written.unwrap_or_else(Instant::now);
        self.unread = Some(Unread { first: since, last: since, writer: Writer::Open });
    }

    /// Somebody waits for a content we have not seen. Not at once: the events of the writer who made it may still be on
    /// their way.
    fn look_soon(&mut self, now: Instant) {
        self.unread.get_or_insert(Unread { first: now, last: now, writer: Writer::Closed });
    }

    /// Whether the file looks different from what was read, and has looked so for a whole [`POLL`]: a writer without
    /// events shows itself only by changing it again.
    async fn poll(&mut self) -> bool {
        let seen = self.path.arm().await;
        match self.last {
            (_, Outcome::Unreadable) => true,
            (read, Outcome::Good | Outcome::Malformed) => {
                let settled = seen != read && (seen.is_none() || seen == self.polled);
                self.polled = seen;
                settled
            }
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Changes that were seen and not read.
#[derive(Debug)]
struct Unread {
    first: Instant,
    last: Instant,
    writer: Writer,
}

impl Unread {
    fn due(&self) -> Instant {
        match self.writer {
            Writer::Closed => (self.last + QUIET).min(self.first + MAX_DELAY),
            Writer::Open => self.first + OPEN_WRITER,
        }
    }
}
