//! Lost positions: noticed, named and healed by a snapshot and a comparison that costs the fact store the real differences only.
//!
//! In each test access is revoked where no change log will tell it. The oracle is the database: what its queries return before and
//! after, and how many facts that is apart; the writes are what the fact store acknowledged (`factsync_delivered_facts_total`).

mod budget;
mod clusters;
mod promoted;
mod slots;
mod takeover;

use std::collections::BTreeSet;

use crate::support::{
    app::App,
    factsync::Process,
    postgres::{Cluster, Major},
};

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE repository (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 100) i;
INSERT INTO repository SELECT i, 'repository ' || i FROM generate_series(1, 50) i";

const FACTS: [(&str, &str); 2] =
    [("has_role(User:_, String:_)", "SELECT id, role FROM member"), ("is_public(Repository:_)", "SELECT id FROM repository")];

/// What changes while nobody looks: deletes, changes, inserts.
const CHANGE: &str = "DELETE FROM member WHERE id BETWEEN 2 AND 5; UPDATE member SET role = 'writer' WHERE id IN (6, 7);
    INSERT INTO member VALUES (1000, 'admin'); DELETE FROM repository WHERE id = 3";

async fn app(major: Major, sync: &str) -> App {
    App::start_on(major, SCHEMA, &FACTS, sync).await
}

async fn app_on(cluster: Cluster, sync: &str) -> App {
    App::on(cluster, SCHEMA, &FACTS, sync).await
}

/// The facts that the queries of the application's database make now.
async fn wanted(app: &App) -> BTreeSet<String> {
    let sql = "SELECT string_agg(fact, E'\\n') FROM (SELECT 'role ' || id || ' ' || role FROM member
               UNION ALL SELECT 'public ' || id FROM repository) AS f (fact)";
    app.ask(sql).await.lines().map(str::to_owned).collect()
}

/// Facts that the fact store has acknowledged to this process.
async fn delivered(process: &Process) -> u64 {
    metric(process, "factsync_delivered_facts_total").await.unwrap_or_default()
}

/// The first value of a metric, whatever its labels.
async fn metric(process: &Process, name: &str) -> Option<u64> {
    let (_, metrics) = process.get("/metrics").await;
    let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))?;
    line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>().expect("a number") as u64)
}

/// Runs until everything is settled and stops in good order, with every acknowledgement sent.
async fn ran(app: &App) -> BTreeSet<String> {
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    assert!(process.terminate().success());
    wanted(app).await
}

/// The process says why it read everything, in its log and in its status, holds what the database says, and wrote the differences to
/// `before` only; `already` is what it had written by then.
async fn assert_healed(app: &App, process: &Process, before: &BTreeSet<String>, already: u64, why: &str) {
    app.settle(process).await;
    let log = process.log();
    assert!(log.contains("reading every view") && log.contains(why), "the log does not say \"{why}\":\n{log}");
    let status = process.status().await;
    let reason = status["sources"][0]["snapshot"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains(why), "the status does not say \"{why}\": {status:#}");
    app.assert_equal(process, why).await;
    let differences = before.symmetric_difference(&wanted(app).await).count() as u64;
    let writes = delivered(process).await - already;
    eprintln!("{why}: {writes} writes, {differences} differences");
    assert_eq!(writes, differences, "{why}");
    // And it goes on from there, change by change.
    app.commit(process, "DELETE FROM member WHERE id BETWEEN 20 AND 29").await;
    app.assert_equal(process, "followed again").await;
    assert_eq!(process.log().matches("reading every view").count(), log.matches("reading every view").count());
}

/// The same for a process that is started now.
async fn heals(app: &App, before: &BTreeSet<String>, why: &str) -> Process {
    let process = app.run(&[]);
    assert_healed(app, &process, before, 0, why).await;
    process
}

/// Nothing was lost: it goes on without a snapshot, and writes the differences only.
async fn goes_on(app: &App, before: &BTreeSet<String>) -> Process {
    let process = app.run(&[]);
    app.settle(&process).await;
    assert!(!process.log().contains("reading every view"), "{}", process.log());
    app.assert_equal(&process, "nothing was lost").await;
    let differences = before.symmetric_difference(&wanted(app).await).count() as u64;
    assert_eq!(delivered(&process).await, differences);
    process
}
