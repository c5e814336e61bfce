//! The application goes on: whatever the publication holds, its own statements work and their facts follow.

use crate::support::app::App;

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL, note text, payload text);
CREATE TABLE event (day date NOT NULL, id int NOT NULL, actor int NOT NULL, PRIMARY KEY (day, id)) PARTITION BY RANGE (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE keyless (id int, role text);
CREATE TABLE whole (id int, role text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE coded (code text NOT NULL, role text, CONSTRAINT coded_key UNIQUE (code));
ALTER TABLE coded REPLICA IDENTITY USING INDEX coded_key;
CREATE TABLE unrelated (id int);
INSERT INTO member SELECT i, 'reader', 'n', repeat('x', 3000) FROM generate_series(1, 10) i;
INSERT INTO event SELECT '2026-01-01'::date + i, i, i FROM generate_series(0, 50) i;
INSERT INTO keyless VALUES (1, 'a'); INSERT INTO whole VALUES (1, 'a');
INSERT INTO coded VALUES ('x', 'a'); INSERT INTO unrelated VALUES (1)";

const FACTS: [(&str, &str); 4] = [
    ("has_role(User:_, String:_)", "SELECT id, role FROM member"),
    ("acted(User:_, Day:_)", "SELECT actor, day FROM event"),
    ("whole(User:_, String:_)", "SELECT id, role FROM whole"),
    ("coded(User:_, String:_)", "SELECT code, role FROM coded WHERE role IS NOT NULL"),
];
const KEYLESS: (&str, &str) = ("keyless(User:_, String:_)", "SELECT id, role FROM keyless");

/// One after the other on the application's own connection, each with its facts.
const STATEMENTS: [&str; 22] = [
    "UPDATE member SET note = 'm' WHERE id = 1",
    "UPDATE member SET payload = repeat('y', 5000)",
    "UPDATE member SET role = 'admin' WHERE id = 1",
    "UPDATE member SET id = id + 100 WHERE id = 2",
    "DELETE FROM member WHERE id = 3",
    "UPDATE event SET actor = 7 WHERE id = 1",
    // From one partition to another.
    "UPDATE event SET day = '2026-02-20' WHERE id = 2",
    "DELETE FROM event WHERE id = 3",
    "INSERT INTO event_2 VALUES ('2026-02-11', 900, 900)",
    "DELETE FROM event_1 WHERE id = 4",
    "UPDATE whole SET role = 'b'",
    "INSERT INTO whole VALUES (1, 'b'), (1, 'b')",
    "DELETE FROM whole WHERE ctid = (SELECT ctid FROM whole LIMIT 1)",
    "UPDATE coded SET role = 'b'",
    "UPDATE coded SET code = 'y'",
    "DELETE FROM coded",
    "UPDATE keyless SET role = 'b'",
    "DELETE FROM keyless",
    "UPDATE unrelated SET id = 2; DELETE FROM unrelated",
    "TRUNCATE whole, coded",
    "TRUNCATE event",
    "TRUNCATE member; INSERT INTO member VALUES (1, 'reader')",
];

#[tokio::test(flavor = "multi_thread")]
async fn exact_the_applications_statements_work_and_their_facts_follow() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "after the snapshot").await;
    for sql in STATEMENTS {
        app.commit(&process, sql).await;
        app.assert_equal(&process, sql).await;
    }
}

/// PostgreSQL's own rule, and worth knowing: a column that a publication lists cannot be dropped in passing.
#[tokio::test(flavor = "multi_thread")]
async fn loud_a_published_column_is_dropped_only_with_cascade() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.commit(&process, "ALTER TABLE member DROP COLUMN note, ADD COLUMN extra text").await;
    let refused = app.client.batch_execute("ALTER TABLE member DROP COLUMN role").await.expect_err("role is published");
    let said = refused.as_db_error().expect("the server says so").clone();
    assert!(said.detail().is_some_and(|detail| detail.contains("publication app")), "{said:?}");
    // CASCADE takes the table out of the publication; a new start puts it back with the columns that are left.
    app.sql("ALTER TABLE member DROP COLUMN role CASCADE; DELETE FROM member WHERE id = 1").await;
    assert!(process.terminate().success());
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let status = process.status().await;
    let role = crate::support::app::fact_type(&status, FACTS[0].0);
    assert!(role["problem"].as_str().is_some_and(|said| said.contains("role")), "{role:#}");
    assert_eq!(process.facts("has_role").await.len(), 10, "its facts stay");
    app.commit(&process, "UPDATE whole SET role = 'b'; UPDATE member SET payload = 'z'; DELETE FROM member WHERE id = 2").await;
    app.sql("ALTER TABLE member ADD COLUMN role text DEFAULT 'reader'").await;
    assert!(process.terminate().success());
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "with the column again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_table_without_a_key_is_refused_and_stays_writable() {
    let facts = [FACTS[0], KEYLESS];
    let app = App::start(SCHEMA, &facts, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    for sql in ["UPDATE keyless SET role = 'b'", "DELETE FROM keyless", "UPDATE member SET role = 'admin' WHERE id = 1"] {
        app.commit(&process, sql).await;
    }
    let status = process.status().await;
    let line = crate::support::app::fact_type(&status, KEYLESS.0);
    assert_eq!(line["mode"], "refused", "{line:#}");
    assert!(line["problem"].as_str().is_some_and(|said| said.contains("REPLICA IDENTITY FULL")), "{line:#}");
    assert_eq!(process.facts("has_role").await.len(), 10, "the other view flows");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_partition_that_comes_and_goes_changes_facts() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    for sql in [
        "CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
         INSERT INTO event VALUES ('2026-03-05', 1, 1)",
        "UPDATE event SET actor = 2 WHERE day = '2026-03-05'",
        "DELETE FROM event WHERE day = '2026-03-05'",
    ] {
        app.commit(&process, sql).await;
        app.assert_equal(&process, sql).await;
    }
}
