//! Runs the queries in one exported snapshot, several at a time, and reads the tables of views that are loaded.
//!
//! Every worker imports the same snapshot (`SET TRANSACTION SNAPSHOT`), so it does not matter which of them runs what: all
//! results are of one state. A query that fails poisons only its worker's transaction; the worker opens another one on the
//! same snapshot, which works as long as its exporter lives, and the other views go on.
//!
//! # What a snapshot does not keep
//!
//! Commands that give a table another file (a rewrite by ALTER TABLE, TRUNCATE) take effect for older snapshots, too: there the table is
//! empty from then on, and so is one that was made anew under the same name. What is missing would be revoked. A lock keeps such commands
//! away from a table, but only from the moment on at which its query has it. So after each query, while the locks are held, the file that
//! each locked relation has is compared with the one that it had in the snapshot ([`REPLACED`]); where they differ, nothing that was read
//! is used.
//! `CLUSTER` and `VACUUM FULL` keep the rows' visibility, but cannot be told apart, so reading is tried again.
//!
//! Loaded views that depend on the time are read by one worker in one transaction, with a savepoint for each: `now()` is the
//! transaction's, so it is one for all of them.

use std::{
    collections::{BTreeMap, VecDeque},
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
        Observer, Reading, Snapshot, SourceError,
        postgres::{
            copy::{Decoder, bounded_query},
            fault,
            pulse::micros,
            session::{Purpose, Server, Session},
        },
    },
};

/// Connections that read at a time. One COPY keeps one core of the server busy; four use what a small primary can spare.
const READERS: usize = 4;
/// Rows between two calls of the observer.
const OBSERVE_EVERY: u64 = 4096;

/// The relations that this transaction has locked and whose file is not the one of its snapshot. `pg_class` is read in the snapshot and
/// `pg_relation_filenode` tells what is; one that the snapshot does not have was made later; an index
/// that was does not matter.
const REPLACED: &str = "SELECT pg_catalog.string_agg(coalesce(n.nspname || '.' || c.relname, l.relation::pg_catalog.regclass::text), ', ')
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_class c ON c.oid = l.relation
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation' AND l.granted
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
      AND (c.oid IS NULL AND pg_catalog.pg_get_indexdef(l.relation) IS NULL
        OR c.relkind IN ('r', 'm') AND c.relfilenode <> 0 AND c.relpersistence <> 't'
        AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid))";

/// A query as it is run.
#[derive(Debug, Clone)]
struct Query {
    fact_type: String,
    variables: usize,
    sql: String,
}

/// What is read besides the query's result when a view is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// For each table the query that gives the cells of its rows, and how many they are.
    pub(crate) tables: BTreeMap<u32, (String, usize)>,
    /// Whether the view depends on the time.
    pub(crate) clock: bool,
}

/// Reads views; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reader {
    server: Server,
    queries: Arc<[Query]>,
    spool: PathBuf,
}

/// A view's number and what was read, or why it could not be.
pub(crate) type Outcome = (usize, Result<Reading, SourceError>);

/// One step of a worker.
#[derive(Debug, Clone)]
enum Job {
    /// The results of these views, all with the same `now()` if they depend on it.
    Answers { views: Vec<usize>, clock: bool },
    /// A table of a view: its OID, the query, the count of its columns.
    Table(usize, u32, String, usize),
}

/// What a job brought for one view.
enum Part {
    Answer(Extent, Option<i64>),
    Table(u32, Extent),
    /// Its tables do not do, for this reason.
    Unfit(String),
}

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

    /// Reads `views` in `snapshot`, which must stay exported until this returns; those in `loads` with their tables. In the order of their
    /// numbers.
    ///
    /// A view of its own that fails is in the result; an `Err` means that the server or the spool failed.
    pub(crate) async fn read(
        &self,
        snapshot: &str,
        views: &[usize],
        loads: &BTreeMap<usize, Load>,
        observer: Observer<'_>,
    ) -> Result<Vec<Outcome>, SourceError> {
        let jobs = jobs(views, loads);
        let workers = READERS.min(jobs.len());
        let queue = Mutex::new(jobs);
        let workers = (0..workers).map(|_| self.work(snapshot, &queue, observer));
        let parts = future::try_join_all(workers).await?.into_iter().flatten();
        Ok(assemble(parts))
    }

    async fn work(
        &self,
        snapshot: &str,
        queue: &Mutex<VecDeque<Job>>,
        observer: Observer<'_>,
    ) -> Result<Vec<(usize, Result<Part, SourceError>)>, SourceError> {
        let failed = |error| fault::sql(&self.server.name, "read in a snapshot", error);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let session = self.server.connect(Purpose::Read).await?;
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", escape_literal(snapshot));
        session.client.batch_execute(&begin).await.map_err(failed)?;
        let mut parts = Vec::new();
        while let Some(job) = next() {
            let (views, clock) = match &job {
                Job::Answers { views, clock } => (views.clone(), *clock),
                Job::Table(view, ..) => (vec![*view], false),
            };
            let now = if clock { Some(self.now(&session).await?) } else { None };
            for view in views {
                session.client.batch_execute("SAVEPOINT one").await.map_err(failed)?;
                let part = match &job {
                    Job::Answers { .. } => self.answer(&session, view, observer).await.map(|answer| Part::Answer(answer, now)),
                    Job::Table(_, oid, sql, width) => self.table(&session, view, (*oid, sql), *width).await,
                };
                if part.is_ok() {
                    self.check_files(&session, view).await?;
                }
                match &part {
                    Ok(_) => session.client.batch_execute("RELEASE one").await.map_err(failed)?,
                    Err(SourceError::View { .. }) => session.client.batch_execute("ROLLBACK TO one").await.map_err(failed)?,
                    Err(_) => return part.map(|_| Vec::new()),
                }
                parts.push((view, part));
            }
        }
        session.close().await;
        Ok(parts)
    }

    /// Whether what was read is what the snapshot had.
    async fn check_files(&self, session: &Session, view: usize) -> Result<(), SourceError> {
        let row = session.client.query_one(REPLACED, &[]).await.map_err(|error| fault::sql(&self.server.name, "read a view", error))?;
        let Some(replaced) = row.get::<_, Option<String>>(0) else { return Ok(()) };
        let problem = format!("{replaced} was rewritten, truncated or made anew while it was read");
        Err(SourceError::ViewsChanged { name: self.server.name.to_string(), views: vec![view], problem })
    }

    async fn now(&self, session: &Session) -> Result<i64, SourceError> {
        let sql = format!("SELECT {}", micros("pg_catalog.now()"));
        let row = session.client.query_one(&sql, &[]).await;
        row.map(|row| row.get(0)).map_err(|error| fault::sql(&self.server.name, "ask for the time", error))
    }

    async fn answer(&self, session: &Session, view: usize, observer: Observer<'_>) -> Result<Extent, SourceError> {
        let query = &self.queries[view];
        let statement = session.client.prepare(&query.sql).await.map_err(|error| self.failed(query, error))?;
        let columns = statement.columns();
        if columns.len() != query.variables || !statement.params().is_empty() {
            let counts = format!("the query has {} columns and {} parameters", columns.len(), statement.params().len());
            return Err(self.problem(query, format!("{counts}; the fact type needs {} columns and no parameter", query.variables)));
        }
        let booleans = columns.iter().map(|column| is_boolean(column.type_())).collect();
        let types: Vec<u32> = columns.iter().map(|column| column.type_().oid()).collect();
        let sql = bounded_query(&query.sql, &types);
        self.copy(session, query, &sql, booleans, &|rows| observer(view, rows)).await.map(|(answer, _)| answer)
    }

    /// Rows of a table, every cell as the change log has it: a boolean stays `t` or `f`.
    async fn table(&self, session: &Session, view: usize, (oid, sql): (u32, &str), width: usize) -> Result<Part, SourceError> {
        let (rows, cut) = self.copy(session, &self.queries[view], sql, vec![false; width], &|_| ()).await?;
        Ok(if cut == 0 { Part::Table(oid, rows) } else { Part::Unfit(format!("{cut} values of its tables are too long to be followed")) })
    }

    async fn copy(
        &self,
        session: &Session,
        query: &Query,
        sql: &str,
        booleans: Vec<bool>,
        observer: &(dyn Fn(u64) + Sync),
    ) -> Result<(Extent, u64), SourceError> {
        let failed = |error| self.failed(query, error);
        let spool = |source| SourceError::Spool { name: self.server.name.to_string(), source };
        let mut decoder = Decoder::new(booleans);
        let mut builder = ExtentBuilder::new(&self.spool);
        let mut rows = 0;
        let chunks = session.client.copy_out(&format!("COPY (\n{sql}\n) TO STDOUT")).await.map_err(failed)?;
        pin_mut!(chunks);
        while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
            let mut spilled = Ok(());
            let decoded = decoder.feed(&chunk, |row| {
                rows += 1;
                if rows % OBSERVE_EVERY == 0 {
                    observer(rows);
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
        let cut = decoder.cut();
        decoder.finish().map_err(|error| self.problem(query, error.to_string()))?;
        observer(rows);
        Ok((builder.finish().map_err(spool)?, cut))
    }

    fn failed(&self, query: &Query, error: tokio_postgres::Error) -> SourceError {
        match fault::of_query(&error) {
            Some(problem) => self.problem(query, problem),
            None => fault::sql(&self.server.name, "read a view", error),
        }
    }

    fn problem(&self, query: &Query, problem: String) -> SourceError {
        SourceError::View { name: self.server.name.to_string(), fact_type: query.fact_type.clone(), problem }
    }
}

/// Tables first: they are usually larger than results, and what is started last should be short.
fn jobs(views: &[usize], loads: &BTreeMap<usize, Load>) -> VecDeque<Job> {
    let load = |view: &usize| loads.get(view);
    let tables = views.iter().filter_map(|view| Some((view, load(view)?)));
    let mut jobs: VecDeque<Job> = tables
        .flat_map(|(view, load)| load.tables.iter().map(|(oid, (sql, width))| Job::Table(*view, *oid, sql.clone(), *width)))
        .collect();
    let (clock, others): (Vec<usize>, Vec<usize>) = views.iter().partition(|view| load(view).is_some_and(|load| load.clock));
    if !clock.is_empty() {
        jobs.push_back(Job::Answers { views: clock, clock: true });
    }
    jobs.extend(others.into_iter().map(|view| Job::Answers { views: vec![view], clock: false }));
    jobs
}

/// Puts together what the jobs brought; a view of which one part failed has failed.
fn assemble(parts: impl Iterator<Item = (usize, Result<Part, SourceError>)>) -> Vec<Outcome> {
    let mut tables: BTreeMap<usize, BTreeMap<u32, Extent>> = BTreeMap::new();
    let mut answers: BTreeMap<usize, (Extent, Option<i64>)> = BTreeMap::new();
    let mut outcomes: BTreeMap<usize, Result<Reading, SourceError>> = BTreeMap::new();
    let mut unfit = BTreeMap::new();
    for (view, part) in parts {
        match part {
            Ok(Part::Table(oid, rows)) => drop(tables.entry(view).or_default().insert(oid, rows)),
            Ok(Part::Answer(answer, now)) => drop(answers.insert(view, (answer, now))),
            Ok(Part::Unfit(why)) => drop(unfit.insert(view, why)),
            Err(problem) => drop(outcomes.entry(view).or_insert(Err(problem))),
        }
    }
    for (view, (answer, now)) in answers {
        let tables = tables.remove(&view).unwrap_or_default();
        outcomes.entry(view).or_insert(Ok(Reading { answer, tables, now, unfit: unfit.remove(&view) }));
    }
    outcomes.into_iter().collect()
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
    let outcomes = reader.read(exported.get(0), &views, &BTreeMap::new(), observer).await?;
    // Only now may the exporting transaction end.
    exporter.close().await;
    Ok(Snapshot { position: None, views: outcomes.into_iter().map(|(_, outcome)| outcome.map(|reading| reading.answer)).collect() })
}
