//! DDL reloads the views it touches, and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Copies, assert_incremental};
use crate::support::{app::App, eventually_async, factsync::Process};

/// Some changes only show in the look at the catalogue that is taken once a minute.
const DEADLINE: Duration = Duration::from_secs(150);

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL, note text);
CREATE TABLE repository (id int PRIMARY KEY, name text NOT NULL, public boolean NOT NULL DEFAULT true, note text);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 30) AS i;
INSERT INTO repository SELECT i, 'r' || i, i % 2 = 0 FROM generate_series(1, 30) AS i";

const FACTS: [(&str, &str); 2] = [
    ("has_role(User:_, String:_)", "SELECT id, role FROM member WHERE role <> 'nobody'"),
    ("is_named(Repository:_, String:_)", "SELECT id, name FROM repository WHERE public"),
];

/// Writes to `member` without pause until told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    async fn start(app: &App) -> Self {
        let client = app.cluster.client(&app.database).await;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (id, other) = (number % 60, number * 7 % 60);
                let sql = format!(
                    "BEGIN; INSERT INTO member VALUES ({id}, 'role{number}') ON CONFLICT (id) DO UPDATE SET role = excluded.role;
                     DELETE FROM member WHERE id = {other}; UPDATE member SET role = 'nobody' WHERE id = {}; COMMIT",
                    number * 11 % 60
                );
                client.batch_execute(&sql).await.expect("the writer's own rows");
                count.store(number, Ordering::Relaxed);
            }
        });
        Self { stop, done, task }
    }

    async fn goes_on(&self) {
        let goal = self.done.load(Ordering::Relaxed) + 20;
        eventually_async(DEADLINE, "the writer goes on", async || (self.done.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic");
    }
}

fn reloads(process: &Process) -> usize {
    process.log().matches("views changed").count()
}

/// Each changes what the second view depends on, and none of them touches the first. PostgreSQL lets nobody change the type of a column
/// that a publication lists, so that comes with taking the table out; factsync puts it back.
const TOUCHING: [(&str, &str); 6] = [
    (
        "another type of a column",
        "ALTER PUBLICATION app DROP TABLE repository; ALTER TABLE repository ALTER COLUMN name TYPE varchar(40);
         UPDATE repository SET name = 'w' WHERE id = 2",
    ),
    (
        "another type of the key",
        "ALTER PUBLICATION app DROP TABLE repository; ALTER TABLE repository ALTER COLUMN id TYPE bigint;
         UPDATE repository SET id = 5000000000 WHERE id = 4",
    ),
    (
        "a table under another name and a view in its place",
        "ALTER TABLE repository RENAME TO stored; CREATE VIEW repository AS SELECT id, name || '!' AS name, public, note FROM stored;
         UPDATE stored SET name = 'v' WHERE id = 6",
    ),
    ("another definition of that view", "CREATE OR REPLACE VIEW repository AS SELECT id, name || '?' AS name, public, note FROM stored"),
    ("the table again", "DROP VIEW repository; ALTER TABLE stored RENAME TO repository; DELETE FROM repository WHERE id = 8"),
    (
        "dropped and made again",
        "DROP TABLE repository; CREATE TABLE repository (public boolean NOT NULL, name text NOT NULL, id int PRIMARY KEY);
         INSERT INTO repository SELECT i % 3 = 0, 'n' || i, i FROM generate_series(1, 20) AS i",
    ),
];

/// None of them changes what a query returns.
const HARMLESS: [&str; 4] = [
    "ALTER TABLE repository ADD COLUMN extra text DEFAULT 'x'; UPDATE repository SET note = 'n'",
    "ALTER TABLE repository ALTER COLUMN extra TYPE varchar(10), DROP COLUMN note; DELETE FROM repository WHERE id = 10",
    "ALTER TABLE member RENAME COLUMN note TO remark; CREATE INDEX ON member (role)",
    "CREATE TABLE unrelated (id int PRIMARY KEY); DROP TABLE unrelated; VACUUM repository",
];

#[tokio::test(flavor = "multi_thread")]
async fn related_ddl_reloads_only_the_views_it_touches() {
    let app = App::start(SCHEMA, &FACTS, "").await.into_owner();
    let mut copies = Copies::watch(&app).await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert_incremental(&process, FACTS.len()).await;
    assert!(copies.of(&app, "member") > 0 && copies.of(&app, "repository") > 0, "both are read at first");
    copies.forget(&app);
    for (what, sql) in TOUCHING {
        let before = reloads(&process);
        let writer = Writer::start(&app).await;
        writer.goes_on().await;
        app.sql(sql).await;
        eventually_async(DEADLINE, what, async || (reloads(&process) > before).then_some(())).await;
        // A write from the middle of the reload, and some of the other table before and after it.
        app.sql("UPDATE repository SET public = NOT public WHERE id = 12").await;
        eventually_async(DEADLINE, "it is read again", async || (copies.of(&app, "FROM ONLY") > 0).then_some(())).await;
        writer.goes_on().await;
        writer.finish().await;
        app.settle(&process).await;
        eventually_async(DEADLINE, "both are current", async || {
            let status = process.status().await;
            let lines = status["fact_types"].as_array().expect("a list").clone();
            lines.iter().all(|line| line["problem"].is_null() && line["mode"] == "incremental").then_some(())
        })
        .await;
        app.settle(&process).await;
        app.assert_equal(&process, what).await;
        assert_eq!(copies.of(&app, "member"), 0, "{what}: the other view is not read again");
        copies.forget(&app);
        for _ in 0..2 {
            app.commit(&process, "UPDATE repository SET public = NOT public WHERE id IN (12, 13)").await;
            app.assert_equal(&process, what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unrelated_ddl_reloads_nothing() {
    let app = App::start(SCHEMA, &FACTS, "").await.into_owner();
    let mut copies = Copies::watch(&app).await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    copies.forget(&app);
    let analyses = || app.cluster.log()[copies.seen..].matches("debug_print_rewritten = on").count();
    for sql in HARMLESS {
        for statement in sql.split(';') {
            app.sql(statement).await;
        }
        app.commit(&process, "INSERT INTO member VALUES (500, 'x'); INSERT INTO repository (id, name) VALUES (500, 'x')").await;
        app.assert_equal(&process, sql).await;
        app.commit(&process, "DELETE FROM member WHERE id = 500; DELETE FROM repository WHERE id = 500").await;
        app.assert_equal(&process, sql).await;
    }
    eventually_async(Duration::from_secs(90), "the queries are analysed again", async || (analyses() > 0).then_some(())).await;
    app.commit(&process, "DELETE FROM member WHERE id = 7; DELETE FROM repository WHERE id = 14").await;
    app.assert_equal(&process, "after another analysis").await;
    assert_incremental(&process, FACTS.len()).await;
    assert_eq!((reloads(&process), copies.all(&app)), (0, 0), "{}", process.log());
}
