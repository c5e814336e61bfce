//! Loud: what cannot be applied is counted and shown, and stops nothing else.

use serde_json::{Value, json};

use crate::support::{
    app::{App, fact_type},
    eventually_async,
    factsync::Process,
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

const SCHEMA: &str = "
CREATE TABLE member (id text PRIMARY KEY, role text, weight int NOT NULL DEFAULT 1);
CREATE TABLE repository (id int PRIMARY KEY, name text);
ALTER TABLE repository REPLICA IDENTITY FULL;
INSERT INTO member VALUES ('1', 'reader'), ('2', 'reader');
INSERT INTO repository VALUES (1, 'one')";

const ROLE: &str = "has_role(User:_, String:_)";
const SHARE: &str = "has_share(User:_, Integer:_)";
const PUBLIC: &str = "is_public(Repository:_)";
const NAME: &str = "has_name(Repository:_, String:_)";
const FACTS: [(&str, &str); 4] = [
    (ROLE, "SELECT id, role FROM member"),
    (SHARE, "SELECT id, 100 / weight FROM member WHERE length(id) < 10 AND id NOT IN ('', '*')"),
    (PUBLIC, "SELECT id FROM repository"),
    (NAME, "SELECT id, name FROM repository"),
];

async fn line(process: &Process, signature: &str) -> Value {
    fact_type(&process.status().await, signature).clone()
}

async fn problem(process: &Process, signature: &str) -> Option<String> {
    line(process, signature).await["problem"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_rows_that_make_no_fact_are_counted_and_the_others_flow() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    app.sql("INSERT INTO member VALUES ('3', NULL)").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let role = line(&process, ROLE).await;
    assert_eq!((&role["skipped_rows"], &role["facts"]), (&json!(1), &json!(2)), "{role:#}");

    app.commit(
        &process,
        "INSERT INTO member VALUES ('', 'reader'), ('*', 'reader'), (repeat('x', 600), 'reader'), ('4', ''), ('5', 'reader')",
    )
    .await;
    let role = line(&process, ROLE).await;
    assert_eq!((&role["skipped_rows"], &role["facts"]), (&json!(5), &json!(3)), "{role:#}");
    let skipped = json!({"an argument is NULL": 1, "an id is empty": 2, "an id is \"*\"": 1, "an id is longer than 512 bytes": 1});
    assert_eq!(role["skipped"], skipped);
    let (_, metrics) = process.get("/metrics").await;
    assert!(metrics.contains(&format!("factsync_skipped_rows{{fact_type=\"{ROLE}\"}} 5")), "{metrics}");
    assert_eq!(process.log().matches("an id is empty").count(), 1, "logged once per cause:\n{}", process.log());
    let roles = process.facts("has_role").await;
    assert_eq!(roles.len(), 3, "{roles:?}");

    app.commit(&process, "DELETE FROM member WHERE length(id) <> 1; UPDATE member SET role = 'reader'; DELETE FROM member WHERE id = '*'")
        .await;
    let role = line(&process, ROLE).await;
    assert_eq!((&role["skipped_rows"], &role["facts"]), (&json!(0), &json!(5)), "{role:#}");
    assert_eq!(role["skipped"], Value::Null, "{role:#}");
    app.assert_equal(&process, "mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_query_that_fails_keeps_its_facts_and_heals() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let before = process.facts("has_share").await;
    app.commit(&process, "INSERT INTO member VALUES ('6', 'admin', 0)").await;
    let said = problem(&process, SHARE).await.expect("a problem is shown");
    assert!(said.contains("division by zero"), "{said}");
    assert_eq!(process.facts("has_share").await, before);
    assert_eq!(problem(&process, ROLE).await, None);
    assert_eq!(process.facts("has_role").await.len(), 3, "the other view of the table flows on");

    // Still so after a restart: nobody may believe that it is up to date.
    assert!(process.terminate().success());
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert!(problem(&process, SHARE).await.is_some_and(|said| said.contains("division by zero")), "{:#}", process.status().await);
    assert_eq!(process.facts("has_share").await, before);

    app.commit(&process, "UPDATE member SET weight = 5 WHERE id = '6'").await;
    assert_eq!(problem(&process, SHARE).await, None);
    app.assert_equal(&process, "mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_query_that_fails_heals_after_a_restart_without_a_change_of_its_tables() {
    let schema = "CREATE TABLE member (id int PRIMARY KEY); INSERT INTO member VALUES (1);
                  CREATE ROLE reader LOGIN REPLICATION;
                  CREATE TABLE secret (id int PRIMARY KEY); INSERT INTO secret VALUES (1)";
    // A refresh view, which reads its table again; an incremental one is told what changed, whatever it may read.
    let secrets = "SELECT id FROM secret ORDER BY id LIMIT 1000";
    let facts = [("has_role(User:_)", "SELECT id FROM member"), ("has_secret(User:_)", secrets)];
    let app = App::start(schema, &facts, "").await.into_owner();
    // The publication is the owner's; the role only reads.
    app.sql("CREATE PUBLICATION app FOR TABLE member, secret WITH (publish_via_partition_root = true)").await;
    app.sql("GRANT SELECT ON member, secret TO reader").await;
    let url = app.url().replace("postgres@", "reader@");
    let env = [("DATABASE_URL", url.as_str())];
    let process = app.run_with(&[], &env);
    process.wait_ready().await;
    app.settle(&process).await;
    app.assert_equal(&process, "with all privileges").await;
    app.commit(&process, "REVOKE SELECT ON secret FROM reader; INSERT INTO secret VALUES (2); INSERT INTO member VALUES (2)").await;
    assert!(problem(&process, "has_secret(User:_)").await.is_some_and(|said| said.contains("permission denied")));
    process.kill();
    app.sql("GRANT SELECT ON secret TO reader").await;
    let process = app.run_with(&[], &env);
    app.settle(&process).await;
    eventually_async(DEADLINE, "the view is read again", async || problem(&process, "has_secret(User:_)").await.is_none().then_some(()))
        .await;
    app.settle(&process).await;
    app.assert_equal(&process, "with all privileges again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_ghosts_of_a_query_that_failed_at_the_first_start_go_when_it_heals() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    crate::support::app::insert(&store, &[crate::support::app::fact("has_share", &["User:999", "Integer:1"])]).await;
    app.sql("INSERT INTO member VALUES ('6', 'admin', 0)").await;
    let process = app.started(&["--target", store.url(), "--plan", "unlimited"]).await;
    app.settle(&process).await;
    assert!(problem(&process, SHARE).await.is_some());
    assert_eq!(store.facts("has_share").await.len(), 1, "nothing is known about them yet");
    app.commit(&process, "UPDATE member SET weight = 5 WHERE id = '6'").await;
    app.assert_equal(&store, "mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_dropped_column_stops_only_the_fact_type_that_used_it() {
    let app = App::start(SCHEMA, &FACTS, "").await.into_owner();
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.sql("ALTER TABLE repository DROP COLUMN name").await;
    app.sql("INSERT INTO repository VALUES (2)").await;
    let said = eventually_async(DEADLINE, "the problem is shown", async || problem(&process, NAME).await).await;
    assert!(said.contains("name"), "{said}");
    app.settle(&process).await;
    assert_eq!(process.facts("is_public").await.len(), 2, "the other view of the table flows on");
    assert_eq!(process.facts("has_name").await.len(), 1, "its facts stay");
    app.commit(&process, "INSERT INTO member VALUES ('8', 'admin')").await;
    assert_eq!(process.facts("has_role").await.len(), 3);

    app.sql("ALTER TABLE repository ADD COLUMN name text; UPDATE repository SET name = 'again'").await;
    eventually_async(DEADLINE, "it heals", async || problem(&process, NAME).await.is_none().then_some(())).await;
    app.settle(&process).await;
    app.assert_equal(&process, "mended").await;
}
