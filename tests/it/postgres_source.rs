//! The PostgreSQL source against real servers.
//!
//! The oracle is the server itself: `psql` over the same query, at a moment when nobody writes and the source says that
//! it has reached the end of the log.

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
        Event, Follow, Link, SourceError, SourceState,
        postgres::{Finding, Follower, Severity, apply_reset, apply_setup, explain, judge, plan_reset, preflight, setup_sql, snapshot},
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
        let start = from.clone();
        let task = tokio::spawn(async move {
            let mut link = Link { events: sender, durable: durable_receiver, wanted: wanted_receiver, stop: stop_receiver };
            follower.follow(start, &mut link).await
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
                    self.views.insert(view, rows(extent));
                }
            }
            Event::Progress(position) => self.advance(position),
            Event::ViewFailed { view, problem } => drop(self.failed.insert(view, problem.to_string())),
            Event::State(state) => self.states.push(state),
            Event::Head(_) => {}
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

async fn analysis_is_right(major: Major) {
    let (cluster, database) = cluster(major);
    // Queries with the columns they use and, where keys add to them, the columns published.
    let cases: [(&str, usize, &[(&str, &str)], &[(&str, &str)]); 14] = [
        ("SELECT id, name FROM org", 2, &[("org", "id name")], &[("org", "id name")]),
        ("SELECT name FROM org", 1, &[("org", "name")], &[("org", "id name")]),
        (
            "SELECT r.title FROM repo r JOIN org o ON o.id = r.org_id WHERE o.name > 'a'",
            1,
            &[("org", "id name"), ("repo", "org_id title")],
            &[],
        ),
        ("SELECT id FROM org_repo", 1, &[("org", "id name"), ("repo", "id org_id")], &[]),
        (
            "WITH a AS (SELECT org_id FROM member WHERE role = 'x') SELECT org_id FROM a",
            1,
            &[("member", "org_id role")],
            &[("member", "org_id role user_id")],
        ),
        (
            "SELECT id FROM org o WHERE EXISTS (SELECT 1 FROM member m WHERE m.org_id = o.id LIMIT 1)",
            1,
            &[("member", "org_id"), ("org", "id")],
            &[],
        ),
        (
            "SELECT (SELECT max(user_id) FROM member) FROM org",
            1,
            &[("member", "user_id"), ("org", "")],
            &[("member", "org_id user_id"), ("org", "id")],
        ),
        (
            "SELECT id FROM org UNION SELECT user_id FROM member WHERE role IN (SELECT title FROM repo)",
            1,
            &[("member", "role user_id"), ("org", "id"), ("repo", "title")],
            &[],
        ),
        ("SELECT o FROM org o", 1, &[("org", "id name secret")], &[]),
        ("SELECT name FROM part", 1, &[("part", "name")], &[("part", "id kind name")]),
        ("SELECT name FROM animal", 1, &[("animal", "name")], &[("animal", "id name"), ("dog", "id name")]),
        ("SELECT name FROM whole", 1, &[("whole", "name")], &[("whole", "*")]),
        ("SELECT shout(name) || id FROM org ORDER BY id LIMIT 1", 1, &[("org", "id name")], &[]),
        ("SELECT 'a' -- a comment", 1, &[], &[]),
    ];
    for (query, columns, used, published) in cases {
        let signature = signature(columns);
        let explanation = explain("app_db", &config(&cluster.url(&database), &[(&signature, query)])).await.expect("analysed");
        let view = &explanation.views[0].as_ref().expect(query).view;
        let mut got: Vec<_> = view.tables.values().map(|table| (table.name.as_str(), words(&table.columns))).collect();
        got.sort();
        let want =
            |tables: &[(&'static str, &str)]| tables.iter().map(|(table, columns)| (*table, (*columns).to_owned())).collect::<Vec<_>>();
        assert_eq!(got, want(used), "{query}");
        if !published.is_empty() {
            let mut got: Vec<_> = explanation
                .publication
                .iter()
                .map(|table| (table.name.as_str(), table.columns.as_ref().map_or("*".to_owned(), words)))
                .collect();
            got.sort();
            assert_eq!(got, want(published), "{query}");
        }
    }
}

fn words(words: &BTreeSet<String>) -> String {
    words.iter().cloned().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_tells_its_tables_and_columns() {
    analysis_is_right(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_tells_its_tables_and_columns_on_18() {
    analysis_is_right(Major::V18).await;
}

async fn refusals_are_right(major: Major) {
    let (cluster, database) = cluster(major);
    cluster.psql(
        &database,
        "CREATE ROLE limited LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO limited; ALTER TABLE member ENABLE ROW LEVEL SECURITY;",
    );
    let cases = [
        ("SELECT nothing FROM org", "does not exist"),
        ("SELECT id FROM", "syntax error"),
        ("SELECT id FROM org; SELECT 1", "multiple commands"),
        ("SELECT id, name FROM org", "2 columns and the fact type has 1 variable"),
        ("INSERT INTO org VALUES (3) RETURNING id", "not a SELECT"),
        ("WITH gone AS (DELETE FROM org RETURNING id) SELECT id FROM gone", "not a SELECT"),
        ("SELECT id FROM org WHERE id = $1", "parameter"),
        ("SELECT random() FROM org", "pg_catalog.random is volatile"),
        ("SELECT nextval('counter') FROM org", "volatile"),
        ("SELECT id FROM org WHERE clock_timestamp() > now()", "volatile"),
        ("SELECT lookup(id) FROM org", "public.lookup is STABLE"),
        ("SELECT pg_get_userbyid(id::oid) FROM org", "depends on more than the tables"),
        ("SELECT current_user FROM org", "who reads"),
        ("SELECT id FROM org TABLESAMPLE system (10)", "TABLESAMPLE"),
        ("SELECT id FROM org FOR UPDATE", "FOR UPDATE"),
        ("SELECT id FROM org LIMIT 1", "without ORDER BY"),
        ("SELECT id FROM (SELECT id FROM org OFFSET 1) x", "without ORDER BY"),
        ("SELECT DISTINCT ON (name) id FROM org", "without ORDER BY"),
        ("SELECT ctid FROM org", "system column"),
        ("SELECT id FROM org WHERE xmin = '5'", "system column"),
        ("SELECT id FROM fleeting", "an unlogged table"),
        ("SELECT id FROM frozen", "a materialized view"),
        ("SELECT relname FROM pg_class", "a system catalogue"),
        ("SELECT last_value FROM counter", "a sequence"),
        ("SELECT id FROM loose", "ALTER TABLE \"public\".\"loose\" REPLICA IDENTITY FULL"),
    ];
    let one = signature(1);
    let views: Vec<_> = cases.iter().map(|(query, _)| (one.as_str(), *query)).collect();
    let explanation = explain("app_db", &config(&cluster.url(&database), &views)).await.expect("analysed");
    for ((query, reason), view) in cases.iter().zip(&explanation.views) {
        let problem = view.as_ref().expect_err(query);
        assert!(problem.contains(reason), "{query}: {problem}");
    }
    let limited = cluster.url(&database).replace("postgres@", "limited@");
    let explanation = explain("app_db", &config(&limited, &[(&one, "SELECT user_id FROM member")])).await.expect("analysed");
    let problem = explanation.views[0].as_ref().expect_err("row-level security");
    assert!(problem.contains("BYPASSRLS"), "{problem}");
    let explanation =
        explain("app_db", &config(&cluster.url(&database), &[(&one, "SELECT user_id FROM member WHERE now() > 'epoch'")])).await;
    let view = explanation.expect("analysed").views.remove(0).expect("allowed");
    assert!(view.view.clock && view.reason.contains("depends on the time"), "{}", view.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_followed_is_refused_with_its_reason() {
    refusals_are_right(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_followed_is_refused_with_its_reason_on_18() {
    refusals_are_right(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_what_psql_reads_and_one_broken_view_hides_no_other() {
    let (cluster, database) = cluster(Major::V15);
    let queries = [
        "SELECT id, name FROM org",
        "SELECT id, public FROM repo",
        "SELECT id, 1 / (id - 10) FROM repo",
        "SELECT id, secret FROM org -- with a comment",
        "SELECT n, n::text || E'\\n\\\\N' FROM generate_series(1, 20000) n",
        "SELECT id, nothing FROM org",
    ];
    let two = signature(2);
    let views: Vec<_> = queries.iter().map(|query| (two.as_str(), *query)).collect();
    let config = config(&cluster.url(&database), &views);
    let spool = tempfile::tempdir().expect("a folder");
    let counted = std::sync::Mutex::new(BTreeMap::new());
    let observer = |view: usize, rows: u64| drop(counted.lock().expect("no panic").insert(view, rows));
    let snapshot = snapshot("app_db", &config, spool.path(), &observer).await.expect("read");
    assert!(snapshot.position.is_none());
    for ((number, query), view) in queries.iter().enumerate().zip(snapshot.views) {
        match view {
            Ok(extent) => same(&rows(extent), &oracle(&cluster, &database, query), query),
            Err(error) => {
                assert!(number == 2 || number == 5, "{error}");
                let wanted = if number == 2 { "division by zero" } else { "does not exist" };
                assert!(matches!(error, SourceError::View { .. }) && error.to_string().contains(wanted), "{error}");
            }
        }
    }
    assert_eq!(counted.lock().expect("no panic").get(&4), Some(&20_000));
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

async fn follows_under_writers(major: Major) {
    let (cluster, database) = cluster(major);
    let config = config(&cluster.url(&database), &VIEWS);
    // Writers run before the slot exists, while it is created and after.
    let writers: Vec<_> = (0..3).map(|seed| {
        let url = cluster.url(&database);
        tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connected");
            tokio::spawn(connection);
            let end = Instant::now() + Duration::from_secs(4);
            let mut n: i32 = seed;
            while Instant::now() < end {
                n += 3;
                let user = n % 50;
                let statement = match n % 7 {
                    0 => format!("INSERT INTO org VALUES ({n}, 'org {n}') ON CONFLICT DO NOTHING"),
                    1 => format!("UPDATE org SET name = 'new {n}' WHERE id = 1"),
                    2 => format!("DELETE FROM member WHERE user_id = {user}"),
                    3 => format!("INSERT INTO repo VALUES ({n}, {}, 't', true) ON CONFLICT DO NOTHING", n % 5),
                    4 => format!("UPDATE repo SET public = NOT public WHERE id % 10 = {}", n % 10),
                    5 => format!("BEGIN; INSERT INTO member VALUES ({user}, 1, 'r{n}') ON CONFLICT DO NOTHING; SAVEPOINT s; DELETE FROM member; ROLLBACK TO s; COMMIT"),
                    _ => format!("INSERT INTO part VALUES ({n}, {}, 'p') ON CONFLICT DO NOTHING", 1 + n % 2),
                };
                client.batch_execute(&statement).await.expect("the application writes");
            }
        })
    }).collect();
    let mut followed = Followed::start(&config, None);
    followed.until("the snapshot", |followed| followed.snapshots == 1).await;
    followed.until("a later cut", |followed| followed.cuts > 2).await;
    for writer in writers {
        // The events are taken in meanwhile, or the source would only wait.
        while !writer.is_finished() {
            followed.next().await;
        }
        writer.await.expect("no panic");
    }
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    assert_eq!(followed.snapshots, 1);
    let position = followed.stop().await;

    // While nobody follows, and after a restart of the server.
    cluster.psql(&database, "INSERT INTO member VALUES (900, 1, 'late'); DELETE FROM member WHERE user_id = 101; TRUNCATE repo");
    cluster.stop();
    cluster.start_again();
    let mut followed = Followed::start(&config, position);
    followed.catch_up(&cluster, &database).await;
    assert_eq!(followed.snapshots, 0, "a restart needs no new snapshot");
    for view in [0, 1, 2] {
        same(&followed.views[&view], &oracle(&cluster, &database, VIEWS[view].1), VIEWS[view].1);
    }
    assert!(!followed.views.contains_key(&3), "a view whose tables did not change is not read again");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_snapshot_and_stream_nor_over_a_restart() {
    follows_under_writers(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_snapshot_and_stream_nor_over_a_restart_on_18() {
    follows_under_writers(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wanted_position_past_the_last_commit_is_reached_at_once() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    // WAL that no publication has: the position lies past the last commit the stream knows.
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        cluster.psql(&database, "CREATE TABLE IF NOT EXISTS aside (id int); INSERT INTO aside SELECT generate_series(1, 1000)");
        let end: Position = cluster.psql(&database, "SELECT pg_current_wal_lsn()").parse().expect("a position");
        let start = Instant::now();
        followed.reach(end).await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}: it waited for the next regular heartbeat");
    assert_eq!(followed.cuts, 1, "no view was read for a table nobody uses");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_hears_what_is_durable_and_nothing_else() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    cluster.psql(&database, "INSERT INTO member VALUES (500, 1, 'x')");
    followed.catch_up(&cluster, &database).await;
    let position = followed.stop().await.expect("a position");
    let confirmed: Position = cluster.psql(&database, "SELECT confirmed_flush_lsn FROM pg_replication_slots").parse().expect("a position");
    assert!(position.reaches(&confirmed), "{confirmed} was acknowledged, {position} is durable");
    assert_eq!(confirmed, position, "the last acknowledgement got through before the stop");
    assert_eq!(cluster.psql(&database, "SELECT count(*) FROM pg_replication_slots"), "1", "temporary slots are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_or_ahead_is_a_lost_position() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    let position = followed.stop().await;
    let advance = "SELECT pg_logical_emit_message(true, 'x', ''); SELECT pg_replication_slot_advance('factsync', pg_current_wal_lsn())";
    for ruin in [advance, "SELECT pg_drop_replication_slot('factsync')"] {
        cluster.psql(&database, ruin);
        let (error, _) = Followed::start(&config, position.clone()).error().await;
        assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
    }
    cluster.psql(&database, "DELETE FROM member");
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_is_unreachable_and_nothing_is_lost() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    cluster.kill();
    let (error, position) = followed.error().await;
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    let (error, _) = Followed::start(&config, position.clone()).error().await;
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    cluster.start_again();
    cluster.psql(&database, "UPDATE member SET role = 'changed'");
    let mut followed = Followed::start(&config, position);
    followed.catch_up(&cluster, &database).await;
    same(&followed.views[&1], &oracle(&cluster, &database, VIEWS[1].1), VIEWS[1].1);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_the_standby_until_the_slot_is_free() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut first = Followed::start(&config, None);
    first.catch_up(&cluster, &database).await;
    let mut second = Followed::start(&config, None);
    second.until("standby", |second| second.states.contains(&SourceState::Standby)).await;
    first.stop().await;
    second.until("streaming", |second| second.states.contains(&SourceState::Streaming)).await;
    cluster.psql(&database, "DELETE FROM member");
    second.catch_up(&cluster, &database).await;
    assert!(second.views[&1].is_empty());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_partitions_and_unrelated_ddl() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    for change in [
        "INSERT INTO part VALUES (7, 1, 'n')",
        "CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3); INSERT INTO part_3 VALUES (8, 3, 'new')",
        "UPDATE part SET kind = 2 WHERE id = 1",
        "TRUNCATE part",
        "TRUNCATE member, repo",
        "ALTER TABLE repo ADD COLUMN unrelated text; INSERT INTO repo VALUES (77, 1, 't', true, 'u')",
        "INSERT INTO member VALUES (1, 1, 'x'); BEGIN; DELETE FROM member; ROLLBACK",
    ] {
        cluster.psql(&database, change);
        followed.catch_up(&cluster, &database).await;
        agrees(&followed, &cluster, &database);
    }
    // What the log does not carry shows with the next heartbeat.
    for change in ["INSERT INTO part VALUES (1, 1), (2, 2)", "TRUNCATE part_1", "ALTER TABLE part DETACH PARTITION part_2"] {
        cluster.psql(&database, change);
        let want = oracle(&cluster, &database, VIEWS[3].1);
        followed.until(change, |followed| followed.views[&3] == want).await;
    }
    assert_eq!(followed.snapshots, 1);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_columns_that_are_needed_are_published_and_the_application_goes_on() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    let columns =
        "SELECT string_agg(tablename || ':' || array_to_string(attnames, ','), ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(cluster.psql(&database, columns), "member:user_id,org_id,role org:id,name part:id,kind repo:id,org_id,public");
    // Every table can still be changed as before, also those the publication does not name.
    cluster.psql(
        &database,
        "UPDATE org SET secret = 'y', id = id + 100; DELETE FROM repo WHERE id = 10; UPDATE loose SET name = 'n'; DELETE FROM part;
         UPDATE whole SET name = 'z'; DELETE FROM loose",
    );
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_view_that_fails_does_not_stop_the_others_and_comes_back() {
    let (cluster, database) = cluster(Major::V15);
    let views =
        [VIEWS[1], ("has_quota(Org:_, Integer:_)", "SELECT id, 10 / (id - 1) FROM org"), ("is_loose(Thing:_)", "SELECT id FROM loose")];
    let mut followed = Followed::start(&config(&cluster.url(&database), &views), None);
    followed.catch_up(&cluster, &database).await;
    assert!(followed.failed[&1].contains("division by zero"), "{:?}", followed.failed);
    assert!(followed.failed[&2].contains("REPLICA IDENTITY FULL"), "{:?}", followed.failed);
    same(&followed.views[&0], &oracle(&cluster, &database, views[0].1), views[0].1);
    cluster.psql(&database, "DELETE FROM org WHERE id = 1; DELETE FROM member");
    followed.catch_up(&cluster, &database).await;
    for view in [0, 1] {
        same(&followed.views[&view], &oracle(&cluster, &database, views[view].1), views[view].1);
    }
    assert_eq!(followed.failed.keys().copied().collect::<Vec<_>>(), [2]);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_the_clock_changes_without_a_commit() {
    let (cluster, database) = cluster(Major::V15);
    cluster.psql(&database, "ALTER TABLE member ADD COLUMN until timestamptz; UPDATE member SET until = now() + interval '3 s'");
    let views = [("has_role(User:_)", "SELECT user_id FROM member WHERE until > now()")];
    let mut followed = Followed::start(&config(&cluster.url(&database), &views), None);
    followed.until("the snapshot", |followed| followed.snapshots == 1).await;
    followed.until("the grant's end", |followed| followed.views[&0].is_empty()).await;
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_or_publication_is_a_lost_position() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    cluster.psql(&database, "UPDATE member SET role = 'a'");
    followed.catch_up(&cluster, &database).await;
    // The change of its shape is in the stream before the next change of a row.
    cluster.psql(&database, "ALTER TABLE member RENAME COLUMN role TO rank; UPDATE member SET rank = 'b'");
    let (error, _) = followed.error().await;
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
    let mut follower = Follower::new("app_db", &config, std::env::temp_dir());
    let before = follower.prepare().await.expect("prepared");
    cluster.psql(&database, "ALTER TABLE repo ADD COLUMN more text; ALTER TABLE org ADD COLUMN more text");
    assert_eq!(follower.prepare().await.expect("prepared"), before, "columns that nobody uses change nothing");
    cluster.psql(&database, "DROP PUBLICATION factsync");
    let after = follower.prepare().await.expect("prepared");
    assert_ne!(after.fingerprint, before.fingerprint, "a publication that was away has missed changes");
    assert_eq!(after.system_identifier, before.system_identifier);
}

fn problems(findings: &[Finding]) -> Vec<String> {
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem);
    problems.map(|finding| format!("{} {}", finding.text, finding.remedy.as_deref().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_prints_what_preflight_misses_and_reset_removes_what_was_made() {
    let (cluster, database) = cluster(Major::V15);
    let admin = config(&cluster.url(&database), &VIEWS);
    let sync = config(&cluster.url(&database).replace("postgres@", "sync@"), &VIEWS);
    let script = setup_sql("app_db", &admin, Some("sync")).await.expect("a script");
    assert!(script.contains("CREATE ROLE \"sync\" WITH LOGIN REPLICATION;"), "{script}");
    assert!(script.contains("GRANT SELECT (\"id\", \"name\") ON \"public\".\"org\" TO \"sync\";"), "{script}");

    cluster.psql(&database, "CREATE ROLE sync LOGIN");
    let found = problems(&preflight("app_db", &sync).await);
    for wanted in ["no REPLICATION attribute", "no SELECT on public.org (id, name)", "publication \"factsync\" does not exist"] {
        assert!(found.iter().any(|problem| problem.contains(wanted)), "{wanted}: {found:?}");
    }
    let (error, _) = Followed::start(&sync, None).error().await;
    let SourceError::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.contains("CREATE PUBLICATION \"factsync\" FOR TABLE ONLY \"public\".\"org\" (\"id\", \"name\")"), "{hint}");

    let script = setup_sql("app_db", &admin, Some("sync")).await.expect("a script");
    apply_setup("app_db", &admin, &script).await.expect("applied");
    assert_eq!(problems(&preflight("app_db", &sync).await), Vec::<String>::new());
    let mut followed = Followed::start(&sync, None);
    cluster.psql(&database, "DELETE FROM member");
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    assert!(plan_reset("app_db", &admin).await.expect("a plan").slot_is_active);
    followed.stop().await;
    let dropped = apply_reset("app_db", &admin).await.expect("dropped");
    assert_eq!((dropped.slot.as_deref(), dropped.publication.as_deref()), (Some("factsync"), Some("factsync")));
    assert_eq!(cluster.psql(&database, "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)"), "0|0");
    assert_eq!(plan_reset("app_db", &admin).await.expect("a plan"), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_finds_every_problem_at_once() {
    let cluster = Cluster::start_with(Major::V15, &[("wal_level", "replica"), ("max_wal_senders", "1"), ("max_replication_slots", "1")]);
    let database = cluster.database();
    cluster.psql(&database, SCHEMA);
    let one = signature(1);
    let views = [(one.as_str(), "SELECT id FROM org"), (one.as_str(), "SELECT id FROM loose"), (one.as_str(), "SELECT id, name FROM org")];
    let findings = preflight("app_db", &config(&cluster.url(&database), &views)).await;
    let found = problems(&findings);
    for wanted in ["wal_level is \"replica\" Run ALTER SYSTEM", "has no primary key", "2 columns and the fact type has 1 variable"] {
        assert!(found.iter().any(|problem| problem.contains(wanted)), "{wanted}: {found:?}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(findings.iter().filter(|finding| finding.severity == Severity::Warning).count(), 2, "slots and senders");
    // A reconcile needs none of this.
    let read = snapshot("app_db", &config(&cluster.url(&database), &views), &std::env::temp_dir(), &|_, _| ()).await.expect("read");
    assert!(read.views[0].is_ok() && read.views[1].is_ok() && read.views[2].is_err());
    cluster.stop();
    let found = problems(&preflight("app_db", &config(&cluster.url(&database), &views)).await);
    assert!(found.len() == 1 && found[0].contains("could not connect"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_judges_queries_it_does_not_follow() {
    let (cluster, database) = cluster(Major::V15);
    let one = signature(1);
    let views = views(&[(&one, "SELECT now()::text"), (&one, "SELECT 1, 2"), (&one, "SELECT nothing")]);
    let findings = judge(&SecretString::from(cluster.url(&database)), &views).await;
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Fine, Severity::Problem, Severity::Problem]);
}

/// A server that takes only TLS and a password, with a certificate for `localhost` by an authority of its own; gives the authority's file.
fn with_tls(cluster: &Cluster) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let data = cluster.data_dir();
    let openssl = |arguments: &str| {
        let status = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&data)
            .stderr(std::process::Stdio::null())
            .status();
        assert!(status.expect("openssl is installed").success(), "{arguments}");
    };
    openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-authority");
    openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    std::fs::write(data.join("san.cnf"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").expect("written");
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san.cnf");
    let owner = std::fs::metadata(&data).expect("a directory");
    for file in ["server.key", "server.crt"] {
        chown(data.join(file), Some(owner.uid()), Some(owner.gid())).expect("owned by the server");
    }
    std::fs::set_permissions(data.join("server.key"), std::fs::Permissions::from_mode(0o600)).expect("private");
    let hba = std::fs::read_to_string(data.join("pg_hba.conf")).expect("a file");
    std::fs::write(
        data.join("pg_hba.conf"),
        format!("hostssl all,replication sync all scram-sha-256\nhost all,replication sync all reject\n{hba}"),
    )
    .expect("written");
    cluster.psql("postgres", "ALTER SYSTEM SET ssl = on; ALTER SYSTEM SET listen_addresses = 'localhost'");
    cluster.stop();
    cluster.start_again();
    let authority = std::env::temp_dir().join(format!("factsync-test-ca-{}.crt", cluster.port()));
    std::fs::copy(data.join("ca.crt"), &authority).expect("copied");
    authority
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_means_what_libpq_says_on_both_kinds_of_connection() {
    let (cluster, database) = cluster(Major::V15);
    let authority = with_tls(&cluster);
    let password = "p@ss:/?#[]%&= wörd'\"";
    cluster.psql(&database, &format!("CREATE ROLE sync SUPERUSER LOGIN PASSWORD '{}'", password.replace('\'', "''")));
    let encoded = "p%40ss%3A%2F%3F%23%5B%5D%25%26%3D%20w%C3%B6rd%27%22";
    let url = |host: &str, options: &str| format!("postgresql://sync:{encoded}@{host}:{}/{database}?{options}", cluster.port());
    let ca = authority.display();
    for (host, options) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ca}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", String::new()),
    ] {
        let mut followed = Followed::start(&config(&url(host, &options), &VIEWS), None);
        followed.catch_up(&cluster, &database).await;
        agrees(&followed, &cluster, &database);
        followed.stop().await;
    }
    let mut with_block = config(&url("localhost", "sslmode=disable"), &VIEWS);
    with_block.ssl = Some(SslConfig { ca_file: Some(authority.clone()), use_system_certs: true, mode: SslMode::Prefer });
    let mut followed = Followed::start(&with_block, None);
    followed.catch_up(&cluster, &database).await;
    followed.stop().await;

    for (host, options) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}")),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned()),
        ("localhost", "sslmode=disable".to_owned()),
        ("localhost", "sslmode=verify-full&sslrootcert=/nonexistent".to_owned()),
    ] {
        let (error, _) = Followed::start(&config(&url(host, &options), &VIEWS), None).error().await;
        assert_eq!(error.disposition(), Disposition::Operator, "{host} {options}: {error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40ss"), "{shown}");
    }
    std::fs::remove_file(authority).expect("removed");
}
