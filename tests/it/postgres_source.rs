//! The PostgreSQL source against real servers.
//!
//! The oracle is the server itself: `psql` over the same query, at a moment when nobody writes and the source says that
//! it has reached the end of the log.

mod administration;
mod analysis;
mod evaluation;
mod following;
mod incremental;
mod locked;
mod shadow;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use factsync::{
    config::{Place, PostgresConfig, SecretString, SslConfig, SslMode, View},
    data::{Extent, Position},
    error::Disposition,
    source::{
        Event, Follow, Link, SourceError, SourceState, Start,
        postgres::{
            Finding, Follower, Prepared, Severity, apply_reset, apply_setup, explain, judge, plan_reset, preflight, setup_sql, snapshot,
        },
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::support::postgres::{Cluster, Major};

/// Everything here takes milliseconds on an idle machine; tests share it with compilers.
const DEADLINE: Duration = Duration::from_secs(60);

type Rows = BTreeSet<Vec<Option<String>>>;

fn config(url: &str, views: &[(&str, &str)]) -> PostgresConfig {
    let connection_string = SecretString::from(url.to_owned());
    PostgresConfig { connection_string, ssl: None, slot: "factsync".to_owned(), views: self::views(views) }
}

fn views(views: &[(&str, &str)]) -> Vec<View<String>> {
    let views = views.iter().map(|(fact_type, query)| View {
        fact_type: fact_type.parse().expect("a signature"),
        place: Place { file: PathBuf::from("test.yaml"), line: 1, column: 1 },
        query: (*query).to_owned(),
    });
    views.collect()
}

fn rows(extent: Extent) -> Rows {
    extent.map(|row| row.expect("a readable extent").cells()).collect()
}

/// A signature with as many variables as there are columns.
fn signature(columns: usize) -> String {
    format!("has_relation({})", vec!["Thing:_"; columns].join(", "))
}

/// A source that is followed in a task, and what it has said.
struct Followed {
    task: JoinHandle<Result<(), SourceError>>,
    events: mpsc::Receiver<Event>,
    durable: watch::Sender<Option<Position>>,
    wanted: watch::Sender<Option<Position>>,
    stop: watch::Sender<bool>,
    views: BTreeMap<usize, Rows>,
    failed: BTreeMap<usize, String>,
    position: Option<Position>,
    snapshots: usize,
    cuts: usize,
    states: Vec<SourceState>,
}

impl Followed {
    fn start(config: &PostgresConfig, from: Option<Position>) -> Self {
        let mut follower = Follower::new("app_db", config, std::env::temp_dir());
        let (sender, events) = mpsc::channel(16);
        let (durable, durable_receiver) = watch::channel(from.clone());
        let (wanted, wanted_receiver) = watch::channel(None);
        let (stop, stop_receiver) = watch::channel(false);
        let (start, views) = (from.clone(), config.views.len());
        let task = tokio::spawn(async move {
            let mut link = Link { events: sender, durable: durable_receiver, wanted: wanted_receiver, stop: stop_receiver };
            follower.follow(Start::refreshing(start, views), &mut link).await
        });
        let (views, failed, states) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        Self { task, events, durable, wanted, stop, views, failed, position: from, snapshots: 0, cuts: 0, states }
    }

    /// Takes in one event; `false` at the end.
    async fn next(&mut self) -> bool {
        let event = timeout(DEADLINE, self.events.recv()).await.expect("the source says something in time");
        let Some(event) = event else { return false };
        match event {
            Event::Cut { position, views, snapshot } => {
                self.advance(position);
                self.snapshots += usize::from(snapshot);
                self.cuts += 1;
                for (view, extent) in views {
                    self.failed.remove(&view);
                    self.views.insert(view, rows(extent.answer));
                }
            }
            Event::Progress { settled: position, .. } => self.advance(position),
            Event::ViewFailed { view, problem } => drop(self.failed.insert(view, problem.to_string())),
            Event::State(state) => self.states.push(state),
            Event::Head(_) | Event::WalKept { .. } | Event::Changes { .. } | Event::Clock { .. } => {}
        }
        true
    }

    async fn expect_next(&mut self, what: &str) {
        if !self.next().await {
            panic!("the source ended before {what}: {:?}", (&mut self.task).await);
        }
    }

    fn advance(&mut self, position: Position) {
        if let Some(before) = &self.position {
            assert!(position.reaches(before), "{position} is before {before}");
        }
        self.position = Some(position.clone());
        self.durable.send_replace(Some(position));
    }

    /// Until everything that is committed now has arrived.
    async fn catch_up(&mut self, cluster: &Cluster, database: &str) {
        let end: Position = cluster.psql(database, "SELECT pg_current_wal_lsn()").parse().expect("a position");
        self.reach(end).await;
    }

    async fn reach(&mut self, wanted: Position) {
        self.wanted.send_replace(Some(wanted.clone()));
        while !self.position.as_ref().is_some_and(|position| position.reaches(&wanted)) {
            self.expect_next("that position").await;
        }
    }

    async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.expect_next(what).await;
        }
    }

    /// Stops it and gives the position that was durable.
    async fn stop(mut self) -> Option<Position> {
        self.stop.send_replace(true);
        while self.next().await {}
        self.task.await.expect("no panic").expect("a stop is no error");
        self.position
    }

    /// The error it ends with.
    async fn error(mut self) -> (SourceError, Option<Position>) {
        while self.next().await {}
        (self.task.await.expect("no panic").expect_err("an error"), self.position)
    }
}

/// What `psql` says the query returns.
fn oracle(cluster: &Cluster, database: &str, query: &str) -> Rows {
    let row = "(SELECT json_agg(value) FROM json_each(to_json(q)))";
    let json = cluster.psql(database, &format!("SELECT coalesce(json_agg({row}), '[]') FROM (\n{query}\n) q"));
    let rows: Vec<Vec<serde_json::Value>> = serde_json::from_str(&json).expect("JSON");
    let cell = |value: &serde_json::Value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    rows.iter().map(|row| row.iter().map(cell).collect()).collect()
}

/// Compares, and shows a few of the differences rather than all rows.
fn same(got: &Rows, want: &Rows, query: &str) {
    let missing: Vec<_> = want.difference(got).take(5).collect();
    let stale: Vec<_> = got.difference(want).take(5).collect();
    assert!(got == want, "{query}: {} rows, want {}; missing {missing:?}, stale {stale:?}", got.len(), want.len());
}

const SCHEMA: &str = "
    CREATE TABLE org (id int PRIMARY KEY, name text, secret text);
    CREATE TABLE repo (id int PRIMARY KEY, org_id int, title text, public boolean NOT NULL DEFAULT false);
    CREATE TABLE member (user_id int, org_id int, role text, PRIMARY KEY (user_id, org_id));
    CREATE VIEW org_repo AS SELECT r.id, o.name FROM repo r JOIN org o ON o.id = r.org_id;
    CREATE TABLE part (id int, kind int, name text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
    CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
    CREATE TABLE part_2 PARTITION OF part FOR VALUES IN (2);
    CREATE TABLE animal (id int PRIMARY KEY, name text);
    CREATE TABLE dog (owner int, PRIMARY KEY (id)) INHERITS (animal);
    CREATE TABLE loose (id int, name text);
    CREATE TABLE whole (id int, name text, extra text);
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
    CREATE MATERIALIZED VIEW frozen AS SELECT id FROM org;
    CREATE SEQUENCE counter;
    CREATE FUNCTION lookup(int) RETURNS text STABLE LANGUAGE sql AS 'SELECT name FROM org WHERE id = $1';
    CREATE FUNCTION shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT upper($1)';
    INSERT INTO org VALUES (1, 'acme', 'x'), (2, E'tab\\there', NULL);
    INSERT INTO repo VALUES (10, 1, 'one', true), (11, 2, NULL, false);
    INSERT INTO member VALUES (100, 1, 'admin'), (101, 1, 'member');
    INSERT INTO part VALUES (1, 1, 'a'), (2, 2, 'b');
";

fn cluster(major: Major) -> (Cluster, String) {
    let cluster = Cluster::start(major);
    let database = cluster.database();
    cluster.psql(&database, SCHEMA);
    (cluster, database)
}

const VIEWS: [(&str, &str); 4] = [
    ("has_relation(Repo:_, parent, Org:_)", "SELECT r.id, o.name FROM repo r JOIN org o ON o.id = r.org_id"),
    ("has_role(User:_, String:_, Org:_)", "SELECT user_id, role, org_id FROM member"),
    ("is_public(Repo:_)", "SELECT id FROM repo WHERE public"),
    ("has_relation(Part:_, kind, Kind:_)", "SELECT id, kind FROM part"),
];

fn agrees(followed: &Followed, cluster: &Cluster, database: &str) {
    for (view, (_, query)) in VIEWS.iter().enumerate() {
        same(&followed.views[&view], &oracle(cluster, database, query), query);
    }
}
