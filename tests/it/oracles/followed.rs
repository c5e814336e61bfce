//! A generated application with a factsync that follows it, and PostgreSQL's own answers to compare with.

use std::collections::BTreeSet;

use tempfile::TempDir;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{
    eventually_async,
    factsync::Process,
    generate::{Case, query::Query, transaction::Transaction},
    postgres::Cluster,
};

/// For a slot to become inactive after its reader was killed.
const SLOT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// The most columns a generated query has.
const MAX_ARITY: usize = 3;

/// Why a generated query may be a refresh view, by what the reason says; any other reason is a mistake.
const MAY_REFRESH: [&str; 4] = [
    "refers to the query around it by more than equalities",
    "which only the database can do",
    "is not total, so the database may choose among rows",
    "it uses the time other than by comparing now()",
];

/// Rows without NULLs, as the facts of one query have them.
pub(crate) type Answer = BTreeSet<Vec<String>>;

/// The answers of every query, in order.
pub(crate) type Answers = Vec<Answer>;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    RolledBack,
}

/// A running case.
pub(super) struct Followed {
    pub(super) database: String,
    /// Has the oracle prepared.
    pub(super) client: Client,
    pub(super) process: Process,
    queries: usize,
    _folder: TempDir,
}

impl Followed {
    /// Creates the database and waits until factsync has caught up with it; `more` goes to its command line.
    pub(super) async fn start(cluster: &Cluster, case: &Case, more: &[&str]) -> Self {
        let database = cluster.database();
        let client = cluster.client(&database).await;
        client.batch_execute(&case.schema.ddl()).await.unwrap_or_else(|error| panic!("{error:?}"));
        prepare(&client, &case.queries).await;
        let (process, folder) = follow(cluster, &database, &case.queries, more);
        process.wait_ready().await;
        modes(&process, &case.queries).await;
        Self { client, process, queries: case.queries.len(), database, _folder: folder }
    }

    /// Commits `transaction`, or rolls it back if it violates a constraint.
    pub(super) async fn run(&self, transaction: &Transaction) -> Outcome {
        execute(&self.client, transaction).await
    }

    /// The facts of each query, after all commits so far have arrived.
    pub(super) async fn facts(&self) -> Answers {
        self.process.wait_position(&self.position().await).await;
        let mut answers = Answers::new();
        for number in 0..self.queries {
            answers.push(self.process.facts(&format!("q{number}")).await.iter().map(arguments).collect());
        }
        answers
    }

    /// Where the facts differ from what the queries return now, after all commits so far have arrived.
    pub(super) async fn difference(&self) -> Option<String> {
        let facts = self.facts().await;
        let wanted = ask(&self.client, self.queries).await;
        let pairs = facts.iter().zip(&wanted).enumerate();
        pairs.filter(|(_, (facts, wanted))| facts != wanted).map(|(number, (facts, wanted))| difference(number, facts, wanted)).next()
    }

    pub(super) async fn position(&self) -> String {
        let row = self.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position");
        row.get(0)
    }

    /// Ends it and gives its slot back.
    pub(super) async fn stop(self) {
        end(self.process, &self.client, &self.database).await;
    }
}

/// Starts factsync on `queries` over `database`, whose name is also the slot's.
pub(super) fn follow(cluster: &Cluster, database: &str, queries: &[Query], more: &[&str]) -> (Process, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("case.yaml");
    std::fs::write(&config, configuration(queries, database)).expect("the configuration can be written");
    let mut args = vec!["run", config.to_str().expect("UTF-8"), "--limits", "off"];
    args.extend(more);
    (Process::spawn(&args, &[("DATABASE_URL", &cluster.url(database))]), folder)
}

/// Which views are incremental; panics where one is not without one of the reasons there may be.
pub(super) async fn modes(process: &Process, queries: &[Query]) -> Vec<bool> {
    let status = process.status().await;
    let lines = status["fact_types"].as_array().expect("a list");
    let line = |(number, query): (usize, &Query)| {
        let name = format!("q{number}(");
        let line = lines.iter().find(|line| line["fact_type"].as_str().is_some_and(|fact_type| fact_type.starts_with(&name)));
        let line = line.unwrap_or_else(|| panic!("there is no q{number} in {status:#}"));
        let incremental = line["mode"] == "incremental";
        if !incremental {
            let reason = line["reason"].as_str().unwrap_or_default();
            assert!(MAY_REFRESH.iter().any(|allowed| reason.contains(allowed)), "{reason}: {}", query.sql);
            eprintln!("{:?} is {}, because {}: {}", query.class, line["mode"], line["reason"], query.sql);
        }
        incremental
    };
    queries.iter().enumerate().map(line).collect()
}

/// Ends `process` and drops its slot.
pub(super) async fn end(process: Process, client: &Client, slot: &str) {
    process.kill();
    let sql = format!("SELECT pg_drop_replication_slot('{slot}')");
    eventually_async(SLOT_DEADLINE, "the slot is free", async || client.batch_execute(&sql).await.ok()).await;
}

/// How the facts of one query differ.
pub(crate) fn difference(number: usize, stored: &Answer, wanted: &Answer) -> String {
    let (missing, stale): (Vec<_>, Vec<_>) = (wanted.difference(stored).collect(), stored.difference(wanted).collect());
    format!("q{number} lacks {missing:?} and still has {stale:?}")
}

/// A fact's ids.
pub(super) fn arguments(fact: &serde_json::Value) -> Vec<String> {
    let args = fact["args"].as_array().expect("arguments");
    args.iter().map(|arg| arg["id"].as_str().expect("a text").to_owned()).collect()
}

/// Commits `transaction`, or rolls it back if it violates a constraint or meets another one.
pub(super) async fn execute(client: &Client, transaction: &Transaction) -> Outcome {
    let sql = transaction.sql();
    let Err(error) = client.batch_execute(&sql).await else { return Outcome::Committed };
    let state = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    // 23: a constraint; 40: a deadlock.
    assert!(state.starts_with("23") || state.starts_with("40"), "{error:?} in {sql}");
    client.batch_execute("ROLLBACK").await.expect("rolled back");
    Outcome::RolledBack
}

/// Prepares one statement that runs every query.
pub(super) async fn prepare(client: &Client, queries: &[Query]) {
    let part = |(number, query): (usize, &Query)| {
        let names: Vec<String> = (0..query.arity).map(|column| format!("c{column}")).collect();
        let padded: Vec<&str> = (0..MAX_ARITY).map(|column| names.get(column).map_or("NULL", String::as_str)).collect();
        format!("SELECT {number}, {} FROM ({}) AS q({})", padded.join(", "), query.sql, names.join(", "))
    };
    let parts: Vec<String> = queries.iter().enumerate().map(part).collect();
    let arity: Vec<String> = queries.iter().map(|query| query.arity.to_string()).collect();
    let settings = "SET TimeZone = 'UTC'; SET DateStyle = ISO; SET jit = off";
    let sql = format!("{settings}; PREPARE arity AS SELECT '{}'; PREPARE oracle AS {}", arity.join(","), parts.join(" UNION ALL "));
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"));
}

/// What `queries` queries return now, in one snapshot.
pub(super) async fn ask(client: &Client, queries: usize) -> Answers {
    let messages =
        client.simple_query("EXECUTE arity; EXECUTE oracle").await.unwrap_or_else(|error| panic!("the oracle failed: {error:?}"));
    let mut rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let arity = rows.next().and_then(|row| row.get(0)).expect("the arities");
    let arity: Vec<usize> = arity.split(',').filter_map(|text| text.parse().ok()).collect();
    let mut answers = vec![Answer::new(); queries];
    for row in rows {
        let number: usize = row.get(0).and_then(|text| text.parse().ok()).expect("the query's number");
        let cells: Option<Vec<String>> = (0..arity[number]).map(|column| row.get(1 + column).map(str::to_owned)).collect();
        // A row with a NULL makes no fact.
        answers[number].extend(cells);
    }
    answers
}

fn configuration(queries: &[Query], slot: &str) -> String {
    let mut yaml = String::from("version: 1\nsource: postgres\nfacts:\n");
    for (number, query) in queries.iter().enumerate() {
        let (arguments, told) = (vec!["String:_"; query.arity].join(", "), query.told.as_ref().unwrap_or(&query.sql));
        yaml.push_str(&format!("  q{number}({arguments}):\n    db: app\n    query: |-\n      {told}\n"));
    }
    yaml + &format!("dbs:\n  app:\n    connection_string: $DATABASE_URL\nsync:\n  slot: {slot}\n")
}
