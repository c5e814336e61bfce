//! Databases that are not in UTF-8: what can be told in it is, and what cannot stops nothing but its own fact type.

use crate::support::{app::App, factsync::Process};

const FACTS: [(&str, &str); 3] = [
    ("said(A:_, B:_)", "SELECT id, v FROM said"),
    ("plain(A:_)", "SELECT id FROM said WHERE v = 'plain'"),
    ("other(A:_, B:_)", "SELECT id, v FROM other"),
];
const SCHEMA: &str = "CREATE TABLE said (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text);
    INSERT INTO said VALUES (1, E'caf\\xe9'), (2, 'plain'); INSERT INTO other VALUES (1, 'x')";

/// A follower of a database in `encoding`. The bytes of `SCHEMA` are what they are in LATIN1.
async fn follower(encoding: &str) -> (App, Process) {
    let mut app = App::start("SELECT 1", &FACTS, "").await;
    app.sql(&format!("CREATE DATABASE odd ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")).await;
    app.database = "odd".to_owned();
    app.cluster.psql("odd", &format!("SET client_encoding = {encoding}; {SCHEMA}"));
    app.client = app.cluster.client("odd").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    (app, process)
}

/// Runs `sql` with texts in the database's own encoding.
async fn commit(app: &App, process: &Process, encoding: &str, sql: &str) {
    app.cluster.psql("odd", &format!("SET client_encoding = {encoding}; {sql}"));
    app.settle(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_database_in_latin1() {
    let (app, process) = follower("LATIN1").await;
    app.assert_equal(&process, "read").await;
    assert_eq!(process.facts("said").await[0]["args"][1]["id"], "café");
    for sql in ["INSERT INTO said VALUES (3, E'na\\xefve')", "DELETE FROM said WHERE id = 1; INSERT INTO other VALUES (2, 'y')"] {
        commit(&app, &process, "LATIN1", sql).await;
        app.assert_equal(&process, sql).await;
    }
}

/// The server refuses to convert such a text, also when it streams it: then nothing of the source would ever arrive again.
#[tokio::test(flavor = "multi_thread")]
async fn loud_bytes_that_are_no_text_stop_only_their_own_fact_type() {
    let (mut app, process) = follower("SQL_ASCII").await;
    let ill = super::mode(&process.status().await, FACTS[0].0);
    assert!(ill.1.contains("22021"), "{ill:?}");
    app.compare_only(&FACTS[1..]);
    for sql in ["INSERT INTO said VALUES (3, E'na\\xefve'); INSERT INTO other VALUES (2, 'y')", "UPDATE said SET v = 'plain' WHERE id = 1"]
    {
        commit(&app, &process, "SQL_ASCII", sql).await;
        app.assert_equal(&process, sql).await;
    }
    // Mended at the source, it is read again by itself.
    commit(&app, &process, "SQL_ASCII", "DELETE FROM said WHERE id = 3").await;
    app.configure(&FACTS, "");
    app.assert_equal(&process, "mended").await;
}
