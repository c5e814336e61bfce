//! A fact type joins a history that is under way: it is read, the others go on.

use super::{Copies, assert_incremental};
use crate::support::{app::App, github::Random};

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE team (id int PRIMARY KEY, role text NOT NULL, name text NOT NULL);
CREATE TABLE repository (id int PRIMARY KEY, public boolean NOT NULL);
INSERT INTO member SELECT i, 'r' || i % 5 FROM generate_series(1, 50) AS i;
INSERT INTO team SELECT i, 'r' || i, 't' || i FROM generate_series(0, 4) AS i;
INSERT INTO repository SELECT i, i % 2 = 0 FROM generate_series(1, 50) AS i";

const FACTS: [(&str, &str); 3] = [
    ("has_role(User:_, String:_)", "SELECT id, role FROM member /* roles */"),
    ("is_public(Repository:_)", "SELECT id FROM repository WHERE public /* public */"),
    // Of its tables one is also another one's, which is further back in the log. It needs no more columns of it: those that are published
    // decide what the stream tells, so with others the other one would be read again, too.
    ("is_in(User:_, String:_)", "SELECT m.id, t.name FROM member AS m JOIN team AS t ON t.role = m.role /* teams */"),
];

/// Random writes to all tables, until the receiver is told.
async fn write(client: tokio_postgres::Client, mut random: Random, stop: tokio::sync::watch::Receiver<bool>) -> u64 {
    let mut done = 0;
    while !*stop.borrow() {
        let (a, b) = (random.below(60), random.below(5));
        let sql = match random.below(6) {
            0 => format!("INSERT INTO member VALUES ({a}, 'r{b}') ON CONFLICT (id) DO UPDATE SET role = 'r{b}'"),
            1 => format!("DELETE FROM member WHERE id = {a}"),
            2 => format!("UPDATE team SET name = 'n{a}' WHERE id = {b}"),
            3 => format!("DELETE FROM team WHERE id = {b}; INSERT INTO team VALUES ({b}, 'r{b}', 'again{a}')"),
            4 => format!("INSERT INTO repository VALUES ({a}, true) ON CONFLICT (id) DO UPDATE SET public = NOT repository.public"),
            _ => format!("UPDATE member SET id = id + 100 WHERE id = {a}; DELETE FROM member WHERE id >= 100"),
        };
        match client.batch_execute(&sql).await {
            Ok(()) => done += 1,
            // The other writer was first; the server has rolled back.
            Err(error) => assert!(error.as_db_error().is_some(), "the connection is lost: {error:?}"),
        }
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_fact_type_joins_a_running_history() {
    let mut random = Random::new("joining");
    let mut app = App::start(SCHEMA, &FACTS[..2], "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "with two").await;
    assert!(process.terminate().success());

    app.configure(&FACTS, "");
    let copies = Copies::watch(&app).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writers: Vec<_> = {
        let mut writers = Vec::new();
        for _ in 0..2 {
            let client = app.cluster.client(&app.database).await;
            writers.push(tokio::spawn(write(client, random.split(), stopped.clone())));
        }
        writers
    };
    let process = app.started(&[]).await;
    assert_incremental(&process, FACTS.len()).await;
    // Behind the writers, in the middle of what they do.
    process.wait_position(&app.position().await).await;
    stop.send_replace(true);
    for writer in writers {
        let done = writer.await.expect("a writer does not panic");
        assert!(done > 0, "a writer wrote nothing");
        eprintln!("{done} transactions");
    }
    app.settle(&process).await;
    app.assert_equal(&process, "with three").await;
    assert_incremental(&process, FACTS.len()).await;
    let log = process.log();
    assert!(!log.contains("reading every view") && !log.contains("read again"), "{log}");
    assert_eq!(["roles", "public", "teams"].map(|text| copies.of(&app, &format!("/* {text} */"))), [0, 0, 1], "only the new one is read");

    // And from now on it is one of them.
    assert!(process.terminate().success());
    app.sql("UPDATE team SET name = 'x' WHERE id = 1; DELETE FROM member WHERE id < 20").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "after another start").await;
    assert_eq!(copies.of(&app, "/* teams */"), 1, "it is not read again");
}
