//! Guarded: what would remove too much waits for a person, and nothing else does.

use crate::support::{
    app::{App, fact, fact_type, insert},
    factsync::Process,
};

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE repository (id int PRIMARY KEY);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 20) i;
INSERT INTO repository SELECT i FROM generate_series(1, 20) i";

const ROLE: &str = "has_role(User:_, String:_)";
const PUBLIC: &str = "is_public(Repository:_)";
const FACTS: [(&str, &str); 2] = [(ROLE, "SELECT id, role FROM member"), (PUBLIC, "SELECT id FROM repository")];
const LIMITS: &str = "max_removals: {count: 2, percent: 20}";

async fn held(process: &Process) -> Vec<(String, u64)> {
    let status = process.status().await;
    let held = status["held"].as_array().expect("a list");
    held.iter().map(|held| (held["fact_type"].as_str().expect("a text").to_owned(), held["removals"].as_u64().expect("a number"))).collect()
}

async fn assert_held(process: &Process, removals: u64) {
    assert_eq!(held(process).await, [(ROLE.to_owned(), removals)], "{:#}", process.status().await);
    let (_, metrics) = process.get("/metrics").await;
    let line = format!("factsync_held_removals{{fact_type=\"{ROLE}\"}} {removals}");
    assert!(metrics.contains(&line), "no \"{line}\" in {metrics}");
}

async fn count(process: &Process, predicate: &str) -> usize {
    process.facts(predicate).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_mass_removal_is_held_while_everything_else_flows() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert_eq!(held(&process).await, []);

    app.commit(&process, "DELETE FROM member WHERE id <= 15").await;
    assert_held(&process, 15).await;
    assert_eq!(count(&process, "has_role").await, 20);

    // A grant of the same fact type, and a grant and a small revocation of another one.
    app.commit(&process, "INSERT INTO member VALUES (100, 'admin')").await;
    assert_eq!(count(&process, "has_role").await, 21);
    app.commit(&process, "DELETE FROM repository WHERE id <= 2; INSERT INTO repository VALUES (100)").await;
    assert_eq!(count(&process, "is_public").await, 19);
    assert_held(&process, 15).await;

    // Held over a restart as well, and let go by a person.
    assert!(process.terminate().success());
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert_held(&process, 15).await;
    assert_eq!(count(&process, "has_role").await, 21);
    assert!(process.terminate().success());
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    assert_eq!(held(&process).await, []);
    app.assert_equal(&process, "with --allow-removals").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_hold_ends_by_itself_when_the_rows_come_back() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id <= 15").await;
    assert_held(&process, 15).await;
    app.commit(&process, "INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 15) i").await;
    assert_eq!(held(&process).await, []);
    app.assert_equal(&process, "restored").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_an_empty_source_does_not_empty_a_full_fact_store_at_the_first_start() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    app.sql("DELETE FROM member").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let roles: Vec<_> = (1..=20).map(|id| fact("has_role", &[&format!("User:{id}"), "String:reader"])).collect();
    insert(&store, &roles).await;
    let more = ["--target", store.url(), "--plan", "unlimited"];
    let process = app.started(&more).await;
    app.settle(&process).await;
    assert_held(&process, 20).await;
    assert_eq!(count(&store, "has_role").await, 20);

    // What happens next in that fact type does not hide that it holds facts nobody wants.
    app.commit(&process, "INSERT INTO member VALUES (100, 'admin')").await;
    assert_eq!(count(&store, "has_role").await, 21);
    assert_held(&process, 20).await;
    app.commit(&process, "DELETE FROM member WHERE id = 100").await;
    assert_held(&process, fact_type(&process.status().await, ROLE)["facts"].as_u64().expect("a number")).await;

    assert!(process.terminate().success());
    let process = app.started(&["--allow-removals", "--target", store.url(), "--plan", "unlimited"]).await;
    app.settle(&process).await;
    assert_eq!(held(&process).await, []);
    app.assert_equal(&store, "with --allow-removals").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_removal_within_the_limits_of_a_new_snapshot_goes() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    assert!(process.terminate().success());
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    app.sql("DELETE FROM member WHERE id <= 2; DELETE FROM repository WHERE id <= 15").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert_eq!(count(&process, "has_role").await, 18);
    assert_eq!(count(&process, "is_public").await, 20, "a new snapshot is no way around the guard");
    assert_eq!(held(&process).await, [(PUBLIC.to_owned(), 15)]);
}
