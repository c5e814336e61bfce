//! Views in doubt: what the stream waits for while somebody has locked a table, and what a fingerprint is made of.

use super::{
    incremental::{begin, of_queries, prepared, tables},
    shadow::plans,
    *,
};
use crate::support::eventually_async;

async fn fingerprints(config: &PostgresConfig) -> Vec<String> {
    let prepared = Follower::new("app_db", config, std::env::temp_dir()).prepare().await.expect("prepared");
    prepared.views.into_iter().map(|view| view.fingerprint).collect()
}

async fn attempts_that_waited_for_a_lock(cluster: &Cluster, more_than: usize) {
    let tried = || cluster.log().matches("canceling statement due to lock timeout").count() > more_than;
    eventually_async(DEADLINE, "analyses are tried", async || tried().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_the_announced_and_the_locked_table_is_waited_for() {
    let (cluster, database) = tables(Major::V15);
    let config = of_queries(&cluster, &database, &["SELECT doc.id FROM doc JOIN one ON one.id = doc.id", "SELECT id FROM bag"]);
    let mut followed = begin(&config, &plans(&config).await);
    followed.catch_up(&cluster, &database).await;
    let client = cluster.client(&database).await;
    client.batch_execute("BEGIN; LOCK TABLE doc").await.expect("locked");
    // What concerns the view of the other table only goes on.
    cluster.psql(&database, "ALTER TABLE bag ADD COLUMN c1 int; INSERT INTO bag VALUES (101)");
    followed.catch_up(&cluster, &database).await;
    let before = cluster.log().matches("canceling statement due to lock timeout").count();
    cluster.psql(&database, "ALTER TABLE one ADD COLUMN c1 int; INSERT INTO one VALUES (101)");
    attempts_that_waited_for_a_lock(&cluster, before + 2).await;
    client.batch_execute("COMMIT").await.expect("unlocked");
    cluster.psql(&database, "INSERT INTO doc VALUES (60)");
    followed.catch_up(&cluster, &database).await;
    followed.agree(&cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_heartbeat_saw_first_is_still_in_doubt_when_the_stream_gets_there() {
    let (cluster, database, config, plans) = prepared(Major::V15).await;
    let mut followed = begin(&config, &plans);
    followed.catch_up(&cluster, &database).await;
    let client = cluster.client(&database).await;
    // No analysis of everything can end meanwhile.
    client.batch_execute("BEGIN; LOCK TABLE doc").await.expect("locked");
    let filter = "BEGIN; ALTER PUBLICATION factsync DROP TABLE one; ALTER PUBLICATION factsync ADD TABLE one (id) WHERE (id < 50); COMMIT";
    cluster.psql(&database, filter);
    // A heartbeat has seen it: it asks for analyses.
    let asked = cluster.log().matches("canceling statement due to lock timeout").count();
    attempts_that_waited_for_a_lock(&cluster, asked).await;
    // Under the filter this is a DELETE.
    cluster.psql(&database, "UPDATE one SET id = id + 100 WHERE id = 1");
    let (error, _, shadows) = timeout(DEADLINE, followed.error()).await.expect("the views are named");
    let SourceError::ViewsChanged { views, .. } = &error else { panic!("{error}") };
    assert!(views.contains(&3), "{error}");
    assert_eq!(shadows[&3].len(), 2, "nothing behind the announcement has reached the view");
    client.batch_execute("COMMIT").await.expect("unlocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_between_the_analysis_and_the_look_is_in_the_survey() {
    let (cluster, database) = tables(Major::V15);
    cluster.psql(&database, "CREATE VIEW shown AS SELECT id FROM one");
    let config = of_queries(&cluster, &database, &["SELECT id FROM shown"]);
    fingerprints(&config).await;
    let more = of_queries(&cluster, &database, &["SELECT id FROM shown", "SELECT id FROM grants_only"]);
    cluster.psql(&database, "CREATE TABLE grants_only (id int PRIMARY KEY)");
    let client = cluster.client(&database).await;
    // In the way of the publication, and not of the analysis.
    client.batch_execute("BEGIN; LOCK TABLE grants_only IN SHARE MODE").await.expect("locked");
    let preparing = tokio::spawn(async move { fingerprints(&more).await });
    let waits = || cluster.psql(&database, "SELECT count(*) FROM pg_locks WHERE NOT granted") == "1";
    eventually_async(DEADLINE, "the publication waits", async || waits().then_some(())).await;
    cluster.psql(&database, "CREATE OR REPLACE VIEW shown AS SELECT id FROM one WHERE id > 1");
    client.batch_execute("COMMIT").await.expect("unlocked");
    let prepared = preparing.await.expect("no panic");
    assert_eq!(prepared[0], fingerprints(&config).await[0], "it is of the old view");
}

/// Columns of an enum, of a domain over it, of an array of the domain; and of texts and a domain over them.
const TYPES: &str = "
    CREATE DOMAIN felt AS mood; CREATE DOMAIN deeply AS felt; CREATE DOMAIN word AS text CHECK (value <> '');
    CREATE TABLE plain (id int PRIMARY KEY, body text, kind mood);
    CREATE TABLE feeling (id int PRIMARY KEY, kind felt);
    CREATE TABLE depth (id int PRIMARY KEY, kind deeply);
    CREATE TABLE feelings (id int PRIMARY KEY, kinds mood[]);
    CREATE TABLE words (id int PRIMARY KEY, body word);
    CREATE VIEW happy AS SELECT p.id, w.body FROM plain p JOIN words w USING (id) WHERE p.kind = 'happy'";
/// The first six depend on the labels.
const QUERIES: [&str; 10] = [
    "SELECT id, kind FROM plain",
    "SELECT id, kind FROM feeling",
    "SELECT id, kind FROM depth",
    "SELECT id, kinds FROM feelings",
    "SELECT id, unnest(kinds) FROM feelings",
    "SELECT id, body FROM happy",
    "SELECT id, body FROM plain",
    "SELECT id, body FROM words",
    "SELECT id, body FROM doc",
    "SELECT id, name FROM tree WHERE kind IN (SELECT id FROM one)",
];

async fn fingerprints_are_each_views_own(major: Major) {
    let (cluster, database) = tables(major);
    cluster.psql(&database, TYPES);
    let config = of_queries(&cluster, &database, &QUERIES);
    let together = fingerprints(&config).await;
    let alone = async || {
        let mut alone = Vec::new();
        for query in QUERIES {
            alone.extend(fingerprints(&of_queries(&cluster, &database, &[query])).await);
        }
        alone
    };
    assert_eq!(alone().await, together, "what other views there are is nothing to a view");
    cluster.psql(&database, "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'");
    let renamed = fingerprints(&config).await;
    let changed: Vec<usize> = (0..QUERIES.len()).filter(|view| renamed[*view] != together[*view]).collect();
    assert_eq!(changed, [0, 1, 2, 3, 4, 5], "a label is told through domains and arrays");
    assert_eq!(alone().await, renamed);
}

#[tokio::test(flavor = "multi_thread")]
async fn fingerprints_are_each_views_own_on_15() {
    fingerprints_are_each_views_own(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fingerprints_are_each_views_own_on_18() {
    fingerprints_are_each_views_own(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_was_out_of_the_publication_for_a_while_makes_a_hole() {
    let (cluster, database) = tables(Major::V15);
    cluster.psql(
        &database,
        "CREATE PUBLICATION factsync FOR TABLES IN SCHEMA public
         WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)",
    );
    let config = of_queries(&cluster, &database, &["SELECT id FROM one"]);
    let before = fingerprints(&config).await;
    assert_eq!(fingerprints(&config).await, before);
    cluster.psql(&database, "ALTER PUBLICATION factsync DROP TABLES IN SCHEMA public");
    cluster.psql(&database, "ALTER PUBLICATION factsync ADD TABLES IN SCHEMA public");
    assert_ne!(fingerprints(&config).await, before);
}
