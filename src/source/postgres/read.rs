//! Runs the queries in one exported snapshot, several at a time.
//!
//! Every worker imports the same snapshot (`SET TRANSACTION SNAPSHOT`), so it does not matter which of them runs which query: all
//! results are of one state. A query that fails poisons only its worker's transaction; the worker opens another one on the
//! same snapshot, which works as long as its exporter lives, and the other views go on.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{TryStreamExt, future, pin_mut};
use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::{Kind, Type};

use crate::{
    config::{PostgresConfig, View},
    data::{Extent, ExtentBuilder},
    source::{
        Observer, Snapshot, SourceError,
        postgres::{
            copy::Decoder,
            fault,
            session::{Purpose, Server, Session},
        },
    },
};

/// Connections that read at a time. One COPY keeps one core of the server busy; four use what a small primary can spare.
const READERS: usize = 4;
/// Rows between two calls of the observer.
const OBSERVE_EVERY: u64 = 4096;

/// A query as it is run.
#[derive(Debug, Clone)]
struct Query {
    fact_type: String,
    variables: usize,
    sql: String,
}

/// Reads views; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    server: Server,
    queries: Arc<[Query]>,
    spool: PathBuf,
}

/// A view's number and its result, or why it has none.
pub(crate) type Outcome = (usize, Result<Extent, SourceError>);

impl Reader {
    /// A reader of `views` that spills into `spool`.
    pub(crate) fn new(server: Server, views: &[View<String>], spool: &Path) -> Self {
        let queries = views.iter().map(|view| Query {
            fact_type: view.fact_type.to_string(),
            variables: view.fact_type.variables(),
            sql: view.query.clone(),
        });
        Self { server, queries: queries.collect(), spool: spool.to_owned() }
    }

    /// Reads `views` in `snapshot`, which must stay exported until this returns. In the order of their numbers.
    ///
    /// A view of its own that fails is in the result; an `Err` means that the server or the spool failed.
    pub(crate) async fn read(&self, snapshot: &str, views: &[usize], observer: Observer<'_>) -> Result<Vec<Outcome>, SourceError> {
        let queue = Mutex::new(views.iter().copied().collect::<VecDeque<usize>>());
        let workers = (0..READERS.min(views.len())).map(|_| self.work(snapshot, &queue, observer));
        let mut outcomes: Vec<Outcome> = future::try_join_all(workers).await?.into_iter().flatten().collect();
        outcomes.sort_by_key(|(view, _)| *view);
        Ok(outcomes)
    }

    async fn work(&self, snapshot: &str, queue: &Mutex<VecDeque<usize>>, observer: Observer<'_>) -> Result<Vec<Outcome>, SourceError> {
        let failed = |error| fault::sql(&self.server.name, "read in a snapshot", error);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let session = self.server.connect(Purpose::Read).await?;
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", escape_literal(snapshot));
        session.client.batch_execute(&begin).await.map_err(failed)?;
        let mut outcomes = Vec::new();
        while let Some(view) = next() {
            let outcome = self.view(&session, view, observer).await;
            let outcome = match outcome {
                Err(error @ SourceError::View { .. }) => {
                    session.client.batch_execute(&format!("ROLLBACK; {begin}")).await.map_err(failed)?;
                    Err(error)
                }
                Err(error) => return Err(error),
                Ok(extent) => Ok(extent),
            };
            outcomes.push((view, outcome));
        }
        session.close().await;
        Ok(outcomes)
    }

    async fn view(&self, session: &Session, view: usize, observer: Observer<'_>) -> Result<Extent, SourceError> {
        let query = &self.queries[view];
        let failed = |error: tokio_postgres::Error| match fault::of_query(&error) {
            Some(problem) => self.problem(query, problem),
            None => fault::sql(&self.server.name, "read a view", error),
        };
        let spool = |source| SourceError::Spool { name: self.server.name.to_string(), source };
        let statement = session.client.prepare(&query.sql).await.map_err(failed)?;
        let columns = statement.columns();
        if columns.len() != query.variables || !statement.params().is_empty() {
            let counts = format!("the query has {} columns and {} parameters", columns.len(), statement.params().len());
            return Err(self.problem(query, format!("{counts}; the fact type needs {} columns and no parameter", query.variables)));
        }
        let mut decoder = Decoder::new(columns.iter().map(|column| is_boolean(column.type_())).collect());
        let mut builder = ExtentBuilder::new(&self.spool);
        let mut rows = 0;
        let chunks = session.client.copy_out(&format!("COPY (\n{}\n) TO STDOUT", query.sql)).await.map_err(failed)?;
        pin_mut!(chunks);
        while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
            let mut spilled = Ok(());
            let decoded = decoder.feed(&chunk, |row| {
                rows += 1;
                if rows % OBSERVE_EVERY == 0 {
                    observer(view, rows);
                }
                // A failing disk is not the query's fault, so the two errors are kept apart.
                if spilled.is_ok() {
                    spilled = builder.push(row);
                }
                Ok(())
            });
            spilled.map_err(spool)?;
            decoded.map_err(|error| self.problem(query, error.to_string()))?;
        }
        decoder.finish().map_err(|error| self.problem(query, error.to_string()))?;
        observer(view, rows);
        builder.finish().map_err(spool)
    }

    fn problem(&self, query: &Query, problem: String) -> SourceError {
        SourceError::View { name: self.server.name.to_string(), fact_type: query.fact_type.clone(), problem }
    }
}

fn is_boolean(column_type: &Type) -> bool {
    match column_type.kind() {
        Kind::Domain(base) => is_boolean(base),
        _ => *column_type == Type::BOOL,
    }
}

/// Reads every view once, in one state; see [`crate::source::snapshot`].
///
/// It takes no slot, needs no REPLICATION privilege and works with any `wal_level`. In return the state has no position:
/// nothing ties an ordinary snapshot to a place in the log, because transactions become visible in another order than they
/// are written.
pub async fn snapshot(name: &str, config: &PostgresConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    let server = Server::new(name, config)?;
    let failed = |error| fault::sql(name, "export a snapshot", error);
    let exporter = server.connect(Purpose::Read).await?;
    exporter.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(failed)?;
    let exported = exporter.client.query_one("SELECT pg_catalog.pg_export_snapshot()", &[]).await.map_err(failed)?;
    let views: Vec<usize> = (0..config.views.len()).collect();
    let reader = Reader::new(server, &config.views, spool);
    let outcomes = reader.read(exported.get(0), &views, observer).await?;
    // Only now may the exporting transaction end.
    exporter.close().await;
    Ok(Snapshot { position: None, views: outcomes.into_iter().map(|(_, outcome)| outcome).collect() })
}
