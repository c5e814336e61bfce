//! Every view at one cluster time.
//!
//! All views are read in one snapshot session: the first command's answer fixes the cluster time, and the driver sends it
//! with every later command (<https://www.mongodb.com/docs/manual/reference/read-concern-snapshot/>). So a transaction that
//! wrote to two collections shows in both views or in neither. That is also why the views are read one after the other: a
//! session is not shared. The server keeps old states for `minSnapshotHistoryWindowInSeconds`, 300 by default; a snapshot
//! that takes longer fails by that name.

use std::{io, path::Path};

use mongodb::{
    ClientSession,
    error::{Error, ErrorKind},
};
use tokio::task::spawn_blocking;

use crate::{
    config::{MongoConfig, MongoQuery, View},
    data::{Extent, ExtentBuilder, Row},
    error::Disposition,
    source::{
        Observer, Snapshot, SourceError,
        mongo::{
            client::{Server, passes},
            decode,
            query::Query,
        },
    },
};

/// Rows collected before they go to the builder, which sorts and writes files and so runs on a blocking thread: often
/// enough to stay small, rarely enough that handing them over costs nothing.
const CHUNK_ROWS: usize = 8192;
/// `SnapshotTooOld`: the server has dropped the state the session reads.
const SNAPSHOT_TOO_OLD: i32 = 239;

/// Reads every view once; see [`crate::source::snapshot`].
pub async fn snapshot(name: &str, config: &MongoConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    let server = Server::connect(name, config).await?;
    let mut session = server.snapshot_session().await?;
    let mut views = Vec::with_capacity(config.views.len());
    for (number, view) in config.views.iter().enumerate() {
        let reader = Reader { server: &server, name, view, spool, observe: &|rows| observer(number, rows) };
        match Box::pin(reader.read(&mut session)).await {
            // The server is gone: the other views would only wait for it, one timeout after the other.
            Err(error) if error.disposition() == Disposition::Retry => return Err(error),
            result => views.push(result),
        }
    }
    Ok(Snapshot { position: None, views })
}

/// Reads one view.
struct Reader<'a> {
    server: &'a Server,
    name: &'a str,
    view: &'a View<MongoQuery>,
    spool: &'a Path,
    observe: &'a (dyn Fn(u64) + Sync),
}

impl Reader<'_> {
    async fn read(&self, session: &mut ClientSession) -> Result<Extent, SourceError> {
        let query = Query::new(&self.view.query).map_err(|problem| self.failed(problem))?;
        let mut cursor = match query.open(self.server, session).await {
            Ok(cursor) => cursor,
            Err(error) => return Err(self.explained(&query, error).await),
        };
        let mut builder = ExtentBuilder::new(self.spool);
        let (mut chunk, mut total) = (Vec::new(), 0);
        while let Some(document) = cursor.next(session).await {
            match document {
                Ok(document) => chunk.extend(decode::rows(&document, query.fields)),
                Err(error) => return Err(self.explained(&query, error).await),
            }
            if chunk.len() >= CHUNK_ROWS {
                total += chunk.len() as u64;
                let rows = std::mem::take(&mut chunk);
                builder = self.blocking(move || add(builder, rows)).await?;
                (self.observe)(total);
            }
        }
        total += chunk.len() as u64;
        let extent = self.blocking(move || add(builder, chunk)?.finish()).await?;
        (self.observe)(total);
        Ok(extent)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, SourceError> {
        let done = spawn_blocking(work).await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(io::Error::other(cancelled)),
        });
        done.map_err(|source| SourceError::Spool { name: self.name.to_owned(), source })
    }

    fn failed(&self, problem: String) -> SourceError {
        self.server.view(&self.view.fact_type.to_string(), problem)
    }

    /// Says why a query failed without quoting a document: what the server says while it reads may hold values ("Failed to
    /// parse number 'alice'"), what it says when it only plans the query does not.
    async fn explained(&self, query: &Query<'_>, error: Error) -> SourceError {
        if passes(&error) {
            return self.server.failed("read the collection", error);
        }
        let planning = query.explain(self.server).await.err();
        self.failed(match (planning, &*error.kind) {
            (Some(error), _) => error.to_string(),
            (None, ErrorKind::Command(error)) if error.code == SNAPSHOT_TOO_OLD => {
                "the server no longer has the snapshot's state. Raise its parameter minSnapshotHistoryWindowInSeconds".to_owned()
            }
            (None, ErrorKind::Command(error)) => format!(
                "error {} ({}) while it read the documents. The server's own message may quote them; run the query in mongosh to see it",
                error.code, error.code_name
            ),
            (None, _) => "the server's answer could not be read".to_owned(),
        })
    }
}

fn add(mut builder: ExtentBuilder, rows: Vec<Row>) -> io::Result<ExtentBuilder> {
    rows.into_iter().try_for_each(|row| builder.push(row))?;
    Ok(builder)
}
