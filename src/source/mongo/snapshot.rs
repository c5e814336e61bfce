//! Whole views at one cluster time.
//!
//! All views are read as of the same cluster time, with snapshot reads
//! (<https://www.mongodb.com/docs/manual/reference/read-concern-snapshot/>). So a transaction that wrote to two collections shows in both views or in neither, and the change stream goes on from exactly that
//! time. The server keeps old states for `minSnapshotHistoryWindowInSeconds`, 300 by default; a read that takes longer fails by that name.

use std::{io, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use mongodb::{
    bson::{Bson, Document},
    error::{Error, ErrorKind},
};
use tokio::task::spawn_blocking;

use crate::{
    config::{MongoConfig, MongoQuery, View},
    data::{ClusterTime, Extent, ExtentBuilder, Position, ResumeToken, Row, pack},
    error::Disposition,
    source::{
        Observer, Reading, Snapshot, SourceError,
        mongo::{
            client::{Server, passes},
            decode,
            fault::said,
            query::Query,
            read::{Documents, ReadError},
            shape::{PerDocument, SOURCE_ID, key},
            watch::{cluster_time, timestamp},
        },
    },
};

/// Rows collected before they go to the builder, which sorts and writes files and so runs on a blocking thread: often
/// enough to stay small, rarely enough that handing them over costs nothing.
const CHUNK_ROWS: usize = 8192;
/// `MaxTimeMSExpired`.
const MAX_TIME_EXPIRED: i32 = 50;

/// Reads every view once; see [`crate::source::snapshot`].
pub async fn snapshot(name: &str, config: &MongoConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    let server = Server::connect(name, config).await?;
    let reader = Reader::new(server, name, spool);
    let at = reader.cluster_time().await?;
    let mut views = Vec::with_capacity(config.views.len());
    for (number, view) in config.views.iter().enumerate() {
        match Box::pin(reader.answer(view, at, &|rows| observer(number, rows))).await {
            // The server is gone: the other views would only wait for it, one timeout after the other.
            Err(error) if error.disposition() == Disposition::Retry => return Err(error),
            result => views.push(result),
        }
    }
    Ok(Snapshot { position: Some(Position::Time(at, ResumeToken::default())), views })
}

/// Why a view was not read.
pub(super) enum Unread {
    /// It cannot be read at that time; at a later one it can.
    Then(ReadError),
    /// Whatever the time.
    Never(SourceError),
}

impl From<SourceError> for Unread {
    fn from(error: SourceError) -> Self {
        Self::Never(error)
    }
}

/// What an output document makes, and the `_id` of the document it comes from where that counts.
type Making<'a> = &'a (dyn Fn(&Document) -> (Option<Bson>, Vec<Row>) + Sync);

/// Reads whole views.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) server: Server,
    name: Arc<str>,
    spool: Arc<Path>,
}

/// What is under way of one view.
struct Gathering {
    answer: ExtentBuilder,
    table: Option<ExtentBuilder>,
    /// Rows of the answer that have not been added yet, and of the table.
    rows: Vec<Row>,
    documents: Vec<Row>,
    /// The document that is being read, and what it has made so far.
    current: Option<(String, Vec<Row>)>,
    total: u64,
}

impl Gathering {
    fn new(spool: &Path, table: bool) -> Self {
        let table = table.then(|| ExtentBuilder::new(spool));
        Self { answer: ExtentBuilder::new(spool), table, rows: Vec::new(), documents: Vec::new(), current: None, total: 0 }
    }

    /// One output document; those of one source document come one after the other.
    fn take(&mut self, id: Option<&Bson>, rows: Vec<Row>) {
        self.total += rows.len() as u64;
        if let Some(id) = id {
            let key = key(id);
            match &mut self.current {
                Some((current, gathered)) if *current == key => gathered.extend(rows.iter().cloned()),
                Some(_) | None => {
                    self.finish_document();
                    self.current = Some((key, rows.clone()));
                }
            }
        }
        self.rows.extend(rows);
    }

    fn finish_document(&mut self) {
        if let Some((key, rows)) = self.current.take().filter(|(_, rows)| !rows.is_empty()) {
            self.documents.push(document_row(&key, rows));
        }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= CHUNK_ROWS
    }

    fn flush(mut self) -> io::Result<Self> {
        std::mem::take(&mut self.rows).into_iter().try_for_each(|row| self.answer.push(row))?;
        if let Some(table) = &mut self.table {
            std::mem::take(&mut self.documents).into_iter().try_for_each(|row| table.push(row))?;
        }
        Ok(self)
    }

    fn finish(mut self) -> io::Result<(Extent, Option<Extent>)> {
        self.finish_document();
        let flushed = self.flush()?;
        Ok((flushed.answer.finish()?, flushed.table.map(ExtentBuilder::finish).transpose()?))
    }
}

/// A document's row in the table of its view: its key and the rows it makes, each once, in order.
pub(super) fn document_row(key: &str, rows: Vec<Row>) -> Row {
    Row::from_cells([Some(key), Some(&*packed(rows))])
}

/// The rows a document makes, as its view's table has them.
pub(super) fn packed(mut rows: Vec<Row>) -> String {
    rows.sort_unstable();
    rows.dedup();
    pack(&rows)
}

impl Reader {
    pub(super) fn new(server: Server, name: &str, spool: &Path) -> Self {
        Self { server, name: name.into(), spool: spool.into() }
    }

    /// The newest time that every later read will have.
    pub(super) async fn cluster_time(&self) -> Result<ClusterTime, SourceError> {
        Ok(cluster_time(self.server.cluster_time().await.map_err(|error| self.behind(error))?))
    }

    /// A member that takes too long will get there.
    fn behind(&self, error: Error) -> SourceError {
        const ACTION: &str = "read at a time that a majority has";
        match &*error.kind {
            ErrorKind::Command(command) if command.code == MAX_TIME_EXPIRED => self.server.unreachable(ACTION, said(&error)),
            _ => self.server.failed(ACTION, error),
        }
    }

    /// The same, not before `time`, at which this deployment has been followed.
    pub(super) async fn cluster_time_after(&self, time: ClusterTime) -> Result<ClusterTime, SourceError> {
        let after = self.server.cluster_time_after(timestamp(time)).await;
        match after.map_err(|error| self.behind(error))? {
            Some(at) => Ok(cluster_time(at)),
            None => Err(self.server.position_lost(format!(
                "its clock has never been at {time}: it was restored, or this is another deployment of the same name"
            ))),
        }
    }

    /// The result of a view's query.
    pub(super) fn answer<'a>(
        &'a self,
        view: &'a View<MongoQuery>,
        at: ClusterTime,
        observe: &'a (dyn Fn(u64) + Sync),
    ) -> BoxFuture<'a, Result<Extent, SourceError>> {
        Box::pin(async move {
            match self.answer_at(view, at, observe).await {
                Ok(extent) => Ok(extent),
                Err(Unread::Never(error)) => Err(error),
                Err(Unread::Then(error)) => Err(self.explained(view, error).await),
            }
        })
    }

    /// The same; an error tells whether it is that time that stands against it.
    pub(super) async fn answer_at(
        &self,
        view: &View<MongoQuery>,
        at: ClusterTime,
        observe: &(dyn Fn(u64) + Sync),
    ) -> Result<Extent, Unread> {
        let query = Query::new(&view.query).map_err(|problem| self.failed(view, problem))?;
        let documents = query.open(&self.server, timestamp(at)).await;
        let read = |document: &Document| (None, decode::rows(document, query.fields));
        let gathered = self.gather(view, documents, Gathering::new(&self.spool, false), &read, observe).await;
        gathered.map(|(answer, _)| answer)
    }

    /// The same with what each document makes, for a view that is followed document by document.
    pub(super) async fn load(
        &self,
        view: &View<MongoQuery>,
        shape: &PerDocument,
        table: u32,
        at: ClusterTime,
    ) -> Result<Reading, SourceError> {
        let cursor = self.server.aggregate_at(&shape.collection, shape.pipeline(None), timestamp(at)).await;
        let read = |document: &Document| (document.get(SOURCE_ID).cloned(), shape.rows(document));
        let gathering = Gathering::new(&self.spool, true);
        let (answer, documents) = match self.gather(view, cursor, gathering, &read, &|_| ()).await {
            Ok(gathered) => gathered,
            Err(Unread::Never(error)) => return Err(error),
            Err(Unread::Then(error)) => return Err(self.explained(view, error).await),
        };
        Ok(Reading { answer, tables: documents.map(|documents| (table, documents)).into_iter().collect(), now: None, unfit: None })
    }

    async fn gather(
        &self,
        view: &View<MongoQuery>,
        documents: Result<Documents, ReadError>,
        mut gathering: Gathering,
        read: Making<'_>,
        observe: &(dyn Fn(u64) + Sync),
    ) -> Result<(Extent, Option<Extent>), Unread> {
        let mut documents = match documents {
            Ok(documents) => documents,
            Err(error) => return Err(self.unread(view, error).await),
        };
        loop {
            let some = match documents.next().await {
                Ok(Some(some)) => some,
                Ok(None) => break,
                Err(error) => return Err(self.unread(view, error).await),
            };
            for document in some {
                let (id, rows) = read(&document);
                gathering.take(id.as_ref(), rows);
                if gathering.is_full() {
                    gathering = self.blocking(move || gathering.flush()).await?;
                    observe(gathering.total);
                }
            }
        }
        let total = gathering.total;
        let extents = self.blocking(move || gathering.finish()).await?;
        observe(total);
        Ok(extents)
    }

    async fn unread(&self, view: &View<MongoQuery>, error: ReadError) -> Unread {
        match error {
            ReadError::TooOld(_) | ReadError::Unavailable(_) => Unread::Then(error),
            ReadError::ArrayInArray { .. } | ReadError::Failed(_) => Unread::Never(self.explained(view, error).await),
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, SourceError> {
        let done = spawn_blocking(work).await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(io::Error::other(cancelled)),
        });
        done.map_err(|source| SourceError::Spool { name: self.name.to_string(), source })
    }

    fn failed(&self, view: &View<MongoQuery>, problem: String) -> SourceError {
        self.server.view(&view.fact_type.to_string(), problem)
    }

    /// Says why a view's query failed without quoting a document: what the server says while it reads may hold values ("Failed to
    /// parse number 'alice'"), what it says when it only plans the query does not.
    pub(super) async fn explained(&self, view: &View<MongoQuery>, error: ReadError) -> SourceError {
        let error = match error {
            ReadError::Failed(error) | ReadError::Unavailable(error) => error,
            ReadError::TooOld(_) => return self.failed(view, format!("{error}. Raise its parameter minSnapshotHistoryWindowInSeconds")),
            ReadError::ArrayInArray { .. } => return self.failed(view, error.to_string()),
        };
        if passes(&error) {
            return self.server.failed("read the collection", error);
        }
        let planning = match Query::new(&view.query) {
            Ok(query) => query.explain(&self.server).await.err(),
            Err(problem) => return self.failed(view, problem),
        };
        let problem = match (planning, &*error.kind) {
            (Some(error), _) => said(&error),
            (None, ErrorKind::Command(error)) => format!(
                "error {} ({}) while it read the documents. The server's own message may quote them; run the query in mongosh to see it",
                error.code, error.code_name
            ),
            (None, _) => "the server's answer could not be read".to_owned(),
        };
        self.failed(view, problem)
    }
}
