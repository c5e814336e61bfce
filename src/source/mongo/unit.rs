//! What some events touch, looked up at one time, as changes of the views' tables.

use std::{collections::BTreeMap, sync::PoisonError};

use mongodb::bson::Bson;
use tokio::sync::mpsc;

use crate::{
    data::{ChangeBatch, ClusterTime, ImageWriter, Lsn, ResumeToken, Row},
    source::{
        Event, SourceError,
        mongo::{
            client::Server,
            lookup::affected,
            read::ReadError,
            shape::{PerDocument, key},
            snapshot::packed,
            tail::{Demoted, Followed, Gone, Outcome, Tail},
            watch::{self, Since, What, timestamp},
        },
    },
};

/// Bytes of changes that are sent as a piece of a commit before it is complete: a change in one collection may touch every document of
/// another.
const PIECE_BYTES: usize = 1 << 20;
/// Times at which the same documents are asked about in vain: each is the newest that the server has just named.
const MOST_TIMES: u32 = 3;

/// How a piece of a commit ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Commit {
    /// It goes on in the next piece.
    GoesOn,
    /// It is complete, and this resumes the stream behind it.
    Ends(ResumeToken),
}

/// What happened to one collection.
#[derive(Debug, Default)]
struct Touched {
    first: ClusterTime,
    /// The documents that were written or deleted, once each.
    ids: BTreeMap<String, Bson>,
    /// When documents came that no event names, at the latest: with a renamed collection.
    replaced: Option<ClusterTime>,
    /// When all documents went, at the latest.
    dropped: Option<ClusterTime>,
}

/// Why rows could not be had.
enum Missed {
    /// The server does not have the state of that time.
    Time(ReadError),
    /// The server does not have the state before, which says what a view's lookups found then.
    Before(usize, ReadError),
    /// Anything else, for one view.
    View(usize, ReadError),
    /// Nobody listens.
    Gone,
}

/// Changes on their way to the receiver.
struct Sending<'a> {
    batch: ChangeBatch,
    start: Lsn,
    events: &'a mpsc::Sender<Event>,
    /// Whether pieces of this commit were sent.
    begun: bool,
}

impl Sending<'_> {
    fn document(&mut self, table: u32, key: &str, rows: Option<Vec<Row>>) {
        match rows.filter(|rows| !rows.is_empty()) {
            None => self.batch.delete(table, |old| {
                old.text(key);
                old.absent();
            }),
            Some(rows) => {
                let packed = packed(rows);
                self.batch.update(table, None::<fn(&mut ImageWriter<'_>)>, |new| {
                    new.text(key);
                    new.text(&packed);
                });
            }
        }
    }

    async fn send_if_full(&mut self, tail: &Tail) -> Result<(), Missed> {
        if self.batch.size() < PIECE_BYTES { Ok(()) } else { self.send(tail).await }
    }

    async fn send(&mut self, tail: &Tail) -> Result<(), Missed> {
        let batch = std::mem::take(&mut self.batch);
        self.batch.begin(self.start);
        self.begun = true;
        self.events.send(Event::Changes { batch, settled: tail.settled() }).await.map_err(|_| Missed::Gone)
    }
}

impl Tail {
    /// Reports what `told` touches as changes of a commit at `at`.
    pub(super) async fn report(
        &mut self,
        told: Vec<watch::Event>,
        at: ClusterTime,
        commit: Commit,
        events: &mpsc::Sender<Event>,
    ) -> Outcome {
        let touched = self.sort(told);
        self.read_again_if_replaced(&touched)?;
        self.touch(&touched);
        let mut batch = ChangeBatch::default();
        batch.begin(Lsn(at.0));
        let mut sending = Sending { batch, start: Lsn(at.0), events, begun: self.open.is_some() };
        for tried in 1.. {
            let time = self.time_to_read(at, &touched).await?;
            match self.look_up(&touched, at, time, &mut sending).await {
                Ok(()) => break,
                Err(Missed::Gone) => return Ok(Err(Gone)),
                Err(Missed::Before(view, error)) => return Err(self.reader.server.views_changed(vec![view], error.to_string())),
                Err(Missed::View(view, error)) => return self.fail(view, error, events).await,
                Err(Missed::Time(error)) if tried == MOST_TIMES => {
                    let hint = "Raise the server's parameter minSnapshotHistoryWindowInSeconds.";
                    return Err(self.reader.server.refused("read documents at a cluster time", hint, error));
                }
                Err(Missed::Time(_)) => self.ahead = Some(self.reader.cluster_time_after(at).await?),
            }
        }
        match commit {
            Commit::GoesOn => Ok(sending.send(self).await.map_err(|_| Gone)),
            Commit::Ends(token) => {
                self.received = Since { time: at, token: token.clone() };
                if sending.batch.is_empty() && !sending.begun {
                    return Ok(Ok(()));
                }
                sending.batch.commit(Lsn(at.0), at.end());
                sending.batch.resumes_with(token);
                self.told = at;
                Ok(sending.send(self).await.map_err(|_| Gone))
            }
        }
    }

    /// The events by collection.
    fn sort(&mut self, told: Vec<watch::Event>) -> BTreeMap<String, Touched> {
        let mut touched: BTreeMap<String, Touched> = BTreeMap::new();
        let mut of = |collection: String, at: ClusterTime, with: &mut dyn FnMut(&mut Touched)| {
            with(touched.entry(collection).or_insert_with(|| Touched { first: at, ..Touched::default() }));
        };
        for watch::Event { at, what, .. } in told {
            match what {
                What::Document { collection, id } => {
                    let (key, mut id) = (key(&id), Some(id));
                    of(collection, at, &mut |touched| touched.ids.extend(id.take().map(|id| (key.clone(), id))));
                }
                What::Dropped { collection } => of(collection, at, &mut |touched| touched.dropped = Some(at)),
                What::Renamed { from, to } => {
                    of(from, at, &mut |touched| touched.dropped = Some(at));
                    of(to, at, &mut |touched| touched.replaced = Some(at));
                }
                What::Invalidated => self.invalidated = true,
            }
        }
        touched
    }

    /// Views of which more has changed than events of documents tell are read again.
    fn read_again_if_replaced(&self, touched: &BTreeMap<String, Touched>) -> Result<(), SourceError> {
        let mut views = Vec::new();
        for (number, followed) in self.views.iter().enumerate() {
            let Followed::Documents { shape, ahead, .. } = followed else { continue };
            let after = |time: Option<ClusterTime>| time.is_some_and(|time| time > *ahead);
            let own = touched.get(&shape.collection).is_some_and(|touched| after(touched.replaced));
            let foreign = |touched: &Touched| after(touched.replaced) || after(touched.dropped);
            if own || shape.lookups.iter().filter_map(|lookup| touched.get(&lookup.from)).any(foreign) {
                views.push(number);
            }
        }
        if views.is_empty() {
            return Ok(());
        }
        Err(self.reader.server.views_changed(views, "a collection was renamed or dropped".to_owned()))
    }

    /// Refresh views of these collections have to be read again.
    fn touch(&mut self, touched: &BTreeMap<String, Touched>) {
        for (number, followed) in self.views.iter().enumerate() {
            let Followed::Refresh { collections } = followed else { continue };
            for first in collections.iter().filter_map(|collection| touched.get(collection)).map(|touched| touched.first) {
                self.dirty.touch(number, Lsn(first.0));
            }
        }
    }

    /// At which time documents are read that have changed up to `at`: then, if the server still has that.
    async fn time_to_read(&mut self, at: ClusterTime, touched: &BTreeMap<String, Touched>) -> Result<ClusterTime, SourceError> {
        if self.ahead.is_some_and(|ahead| ahead <= at) {
            self.ahead = None;
        }
        let time = match self.ahead {
            Some(ahead) => ahead,
            None if self.is_recent(at) => at,
            None => {
                let ahead = self.reader.cluster_time_after(at).await?;
                self.ahead = (ahead > at).then_some(ahead);
                ahead
            }
        };
        if time == at {
            return Ok(time);
        }
        // Only a view that reads nothing but the documents themselves may be read at another time than that of its commit.
        let mixed = |followed: &Followed| match followed {
            Followed::Documents { shape, ahead, .. } => {
                !shape.lookups.is_empty() && *ahead < at && shape.collections().iter().any(|collection| touched.contains_key(collection))
            }
            Followed::Refresh { .. } | Followed::Off => false,
        };
        let views: Vec<usize> = (0..self.views.len()).filter(|view| mixed(&self.views[*view])).collect();
        if views.is_empty() {
            return Ok(time);
        }
        let problem = format!("the server no longer has the state at {at}, so what their lookups found then is not to be had");
        Err(self.reader.server.views_changed(views, problem))
    }

    async fn look_up(
        &self,
        touched: &BTreeMap<String, Touched>,
        at: ClusterTime,
        time: ClusterTime,
        sending: &mut Sending<'_>,
    ) -> Result<(), Missed> {
        for (number, followed) in self.views.iter().enumerate() {
            let Followed::Documents { shape, table, ahead, .. } = followed else { continue };
            if at <= *ahead {
                continue;
            }
            if let Some(own) = touched.get(&shape.collection) {
                if own.dropped.is_some_and(|dropped| dropped > *ahead) {
                    sending.batch.truncate(*table);
                }
                let ids: Vec<Bson> = own.ids.values().cloned().collect();
                self.documents(number, shape, *table, &ids, time, sending).await?;
            }
            let before = self.received.time.max(*ahead);
            for lookup in &shape.lookups {
                let Some(foreign) = touched.get(&lookup.from).filter(|foreign| !foreign.ids.is_empty()) else { continue };
                let changed: Vec<Bson> = foreign.ids.values().cloned().collect();
                let mut affected = affected(&self.reader.server, shape, lookup, &changed, timestamp(before), timestamp(time));
                while let Some(ids) = affected.next().await.map_err(|error| missed_lookup(number, error))? {
                    self.documents(number, shape, *table, &ids, time, sending).await?;
                }
            }
        }
        Ok(())
    }

    /// The rows of these documents.
    async fn documents(
        &self,
        view: usize,
        shape: &PerDocument,
        table: u32,
        ids: &[Bson],
        time: ClusterTime,
        sending: &mut Sending<'_>,
    ) -> Result<(), Missed> {
        let read = self.reader.server.rows_of(shape, ids, timestamp(time)).await;
        let mut rows = read.map_err(|error| missed(view, error))?;
        for key in ids.iter().map(key) {
            let made = rows.remove(&key);
            sending.document(table, &key, made);
        }
        sending.send_if_full(self).await
    }

    /// A view's query fails: the view is refreshed until it succeeds, and the others go on.
    async fn fail(&self, view: usize, error: ReadError, events: &mpsc::Sender<Event>) -> Outcome {
        if let ReadError::ArrayInArray { .. } = error {
            return Err(demote(&self.reader.server, &self.demoted, view, &error));
        }
        let configured = &self.config.views[view];
        let problem = match self.reader.explained(configured, error).await {
            problem @ SourceError::View { .. } => problem,
            other => return Err(other),
        };
        let why = problem.to_string();
        if events.send(Event::ViewFailed { view, problem }).await.is_err() {
            return Ok(Err(Gone));
        }
        Err(self.reader.server.views_changed(vec![view], why))
    }
}

/// The view is refreshed from the next attempt on.
pub(super) fn demote(server: &Server, demoted: &Demoted, view: usize, why: &ReadError) -> SourceError {
    let why = why.to_string();
    demoted.lock().unwrap_or_else(PoisonError::into_inner).insert(view, why.clone());
    server.views_changed(vec![view], why)
}

fn missed_lookup(view: usize, error: ReadError) -> Missed {
    match error {
        ReadError::TooOld(_) | ReadError::Unavailable(_) => Missed::Before(view, error),
        ReadError::ArrayInArray { .. } | ReadError::Failed(_) => Missed::View(view, error),
    }
}

fn missed(view: usize, error: ReadError) -> Missed {
    match error {
        ReadError::TooOld(_) | ReadError::Unavailable(_) => Missed::Time(error),
        ReadError::ArrayInArray { .. } | ReadError::Failed(_) => Missed::View(view, error),
    }
}
