//! Values up to a gigabyte, PostgreSQL's own limit: who does not use the column is not concerned; who does is refreshed from then on.

use super::{commit, mode, peak};
use crate::support::{app::App, factsync::Process};

const SCHEMA: &str = "
CREATE TABLE doc (id int PRIMARY KEY, name text, body text, unused text);
CREATE TABLE member (id int PRIMARY KEY, role text);
INSERT INTO doc VALUES (1, 'a', 'x', 'y'), (2, 'b', repeat('x', 700), 'y'); INSERT INTO member VALUES (1, 'admin')";

const TAGGED: &str = "tagged(Doc:_, String:_)";
const LONG: &str = "long(Doc:_)";
const NAMED: &str = "named(Doc:_, String:_)";
const FACTS: [(&str, &str); 4] = [
    (TAGGED, "SELECT id, body FROM doc WHERE length(body) <= 512"),
    (LONG, "SELECT id FROM doc WHERE length(body) > 600"),
    (NAMED, "SELECT id, name FROM doc"),
    ("has_role(User:_, String:_)", "SELECT id, role FROM member"),
];

/// The output is the long value itself, which makes no fact.
const WHOLE: (&str, &str) = ("whole(Doc:_, String:_)", "SELECT id, body FROM doc");

/// Characters of a value that is too long; the longest possible one with `FACTSYNC_LONG`.
fn length() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { (1 << 30) - 200 } else { 40 << 20 }
}

async fn follower(extra: &[(&str, &str)]) -> (App, Process) {
    let facts: Vec<(&str, &str)> = FACTS.iter().chain(extra).copied().collect();
    let mut app = App::start(SCHEMA, &facts, "").await;
    app.compare_only(&FACTS);
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    (app, process)
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_long_value_of_a_column_that_nobody_uses_costs_nothing() {
    let (app, process) = follower(&[]).await;
    let before = peak(&process);
    let size = length();
    commit(&app, &process, &format!("INSERT INTO doc VALUES (3, 'c', 'z', repeat('x', {size})); UPDATE doc SET name = 'd' WHERE id = 3"))
        .await;
    app.assert_equal(&process, "an unused value").await;
    let after = peak(&process);
    assert!(after < before + 16, "{before} MiB before, {after} MiB after {size} characters");
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_long_value_of_a_used_column_has_its_fact_types_refreshed() {
    let (app, process) = follower(&[WHOLE]).await;
    let before = peak(&process);
    for (signature, _) in FACTS.iter().chain(&[WHOLE]) {
        assert_eq!(mode(&process.status().await, signature).0, "incremental", "{signature}");
    }
    let size = length();
    commit(&app, &process, &format!("INSERT INTO doc VALUES (3, 'c', repeat('x', {size}), 'y'); INSERT INTO member VALUES (2, 'r')")).await;
    app.assert_equal(&process, "a used value").await;
    let after = peak(&process);
    eprintln!("{before} MiB before, {after} MiB after a value of {size} characters");
    // The message once, as it comes from the wire.
    assert!(after < before + (size >> 20) + 48, "{before} MiB before, {after} MiB after {size} characters");
    let status = process.status().await;
    for (signature, wanted) in [(TAGGED, "refresh"), (LONG, "refresh"), (WHOLE.0, "refresh"), (NAMED, "incremental")] {
        let (mode, why) = mode(&status, signature);
        assert_eq!(mode, wanted, "{signature}: {why}");
        assert!(wanted == "incremental" || why.contains("too long"), "{signature}: {why}");
    }
    for sql in [
        "INSERT INTO member VALUES (3, 'r'); UPDATE doc SET name = 'e' WHERE id = 3; DELETE FROM doc WHERE id = 2",
        "UPDATE doc SET body = 'short' WHERE id = 3",
        "DELETE FROM doc WHERE id = 3; INSERT INTO doc VALUES (3, 'f', 'new')",
    ] {
        commit(&app, &process, sql).await;
        app.assert_equal(&process, sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_long_value_that_is_there_at_the_start() {
    let size = length();
    let schema = format!("{SCHEMA}; INSERT INTO doc VALUES (3, 'c', repeat('x', {size}), repeat('y', {size}))");
    let facts: Vec<(&str, &str)> = FACTS.into_iter().chain([WHOLE]).collect();
    let mut app = App::start(&schema, &facts, "").await;
    app.compare_only(&FACTS);
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    let after = peak(&process);
    eprintln!("{after} MiB with a value of {size} characters");
    assert!(after < 160, "{after} MiB with a value of {size} characters: the server cuts it");
    app.assert_equal(&process, "loaded").await;
    let status = process.status().await;
    assert!(mode(&status, LONG).1.contains("too long"), "{status:#}");
    assert_eq!(mode(&status, NAMED).0, "incremental");
    for sql in ["INSERT INTO member VALUES (2, 'r'); DELETE FROM doc WHERE id = 2", "UPDATE doc SET body = 'short' WHERE id = 3"] {
        commit(&app, &process, sql).await;
        app.assert_equal(&process, sql).await;
    }
}

/// Messages wait between the connection and the loop: a few of them, however long they are. The condition drops these rows, so nothing else
/// keeps them.
#[tokio::test(flavor = "multi_thread")]
async fn bounded_many_rows_that_are_not_too_long() {
    let app = App::start(SCHEMA, &[FACTS[0], FACTS[2]], "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let before = peak(&process);
    commit(&app, &process, "INSERT INTO doc SELECT i, 'n', repeat(md5(i::text), 3000), '' FROM generate_series(1000, 2200) AS i").await;
    let after = peak(&process);
    eprintln!("{before} MiB before, {after} MiB after 1,200 values of 96 kB");
    assert_eq!(mode(&process.status().await, TAGGED).0, "incremental");
    app.assert_equal(&process, "many").await;
    assert!(after < before + 90, "{before} MiB before, {after} MiB after 115 MB");
}
