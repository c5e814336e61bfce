//! Idempotent, scoped and net: what reaches the fact store, and what never does.

use serde_json::{Value, json};

use crate::support::{
    app::{App, fact, insert},
    eventually_async,
    factsync::Process,
    proxy::{Mode, Proxy},
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL, note text NOT NULL DEFAULT '');
CREATE TABLE granted (id int PRIMARY KEY, member int NOT NULL, role text NOT NULL);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 20) i;
INSERT INTO granted VALUES (1, 7, 'reader'), (2, 50, 'admin'), (3, 50, 'admin')";

const FACTS: [(&str, &str); 3] = [
    ("has_role(User:_, String:_)", "SELECT id, role FROM member UNION SELECT member, role FROM granted"),
    // Not distinct: a fact has as many rows as there are grants.
    ("granted(User:_, String:_)", "SELECT member, role FROM granted"),
    ("has_relation(User:_, parent, User:_)", "SELECT id, id + 1 FROM member WHERE id < 5"),
];

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_a_batch_whose_answer_is_lost_changes_nothing_when_it_comes_again() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let proxy = Proxy::start(store.url()).await;
    let target = proxy.url();
    let more = ["--target", target.as_str(), "--plan", "unlimited"];
    let mut process = app.started(&more).await;
    app.settle(&process).await;
    for (round, sql) in [
        "INSERT INTO member VALUES (100, 'admin'); DELETE FROM member WHERE id = 2",
        "DELETE FROM member WHERE id = 100; INSERT INTO member VALUES (2, 'writer')",
        "UPDATE member SET role = 'admin' WHERE id > 10",
    ]
    .into_iter()
    .enumerate()
    {
        let before = proxy.lost();
        proxy.set(Mode::LoseAnswers);
        app.sql(sql).await;
        eventually_async(DEADLINE, "answers are lost", async || (proxy.lost() >= before + 2).then_some(())).await;
        // The fact store has it; factsync does not know, and in the second round it is killed before it learns.
        app.assert_equal(&store, "the batch arrived").await;
        if round == 1 {
            process.kill();
            proxy.set(Mode::Open);
            process = app.run(&more);
        }
        proxy.set(Mode::Open);
        app.settle(&process).await;
        app.assert_equal(&store, &format!("round {round}, after the repetition")).await;
        assert_eq!(process.status().await["outbox"]["facts"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_changes_that_are_undone_and_redone_during_an_outage_end_equal() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let proxy = Proxy::start(store.url()).await;
    let process = app.started(&["--target", &proxy.url(), "--plan", "unlimited"]).await;
    app.settle(&process).await;
    proxy.set(Mode::Down);
    for round in 0..5 {
        app.sql("DELETE FROM member WHERE id = 3").await;
        app.sql(&format!("INSERT INTO member VALUES (3, 'role{round}')")).await;
        app.sql("TRUNCATE granted; INSERT INTO granted VALUES (1, 7, 'reader')").await;
    }
    proxy.set(Mode::Open);
    app.settle(&process).await;
    app.assert_equal(&store, "after the outage").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scoped_facts_under_no_configured_signature_are_left_alone() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let foreign = [
        fact("has_permission", &["User:1", "String:read"]),
        fact("has_role", &["Robot:1", "String:reader"]),
        fact("has_role", &["User:1", "Role:reader"]),
        fact("has_role", &["User:1", "String:reader", "Organization:1"]),
        fact("has_role", &["User:1"]),
        fact("has_relation", &["User:1", "String:child", "User:2"]),
        fact("has_relation", &["User:1", "String:parent", "Group:2"]),
    ];
    // Under a configured signature, and no query returns it: this one must go.
    let ghost = fact("has_role", &["User:999", "String:admin"]);
    insert(&store, &foreign[..4]).await;
    insert(&store, std::slice::from_ref(&ghost)).await;
    let process = app.started(&["--target", store.url(), "--plan", "unlimited"]).await;
    insert(&store, &foreign[4..]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    app.commit(&process, "TRUNCATE member; INSERT INTO member VALUES (1, 'reader')").await;
    app.assert_equal(&store, "beside foreign facts").await;
    assert_beside(&store, &foreign, &ghost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scoped_facts_in_the_store_of_the_run_itself_are_left_alone() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    let foreign = [fact("has_role", &["Robot:1", "String:reader"]), fact("has_relation", &["User:1", "String:child", "User:2"])];
    let ghost = fact("has_role", &["User:999", "String:admin"]);
    insert(&process, &foreign).await;
    insert(&process, std::slice::from_ref(&ghost)).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    assert!(process.terminate().success());
    // Whoever makes factsync compare again gets rid of what somebody else wrote under its signatures, and of nothing else.
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    let process = app.run(&[]);
    app.commit(&process, "DELETE FROM member WHERE id = 2").await;
    app.assert_equal(&process, "beside foreign facts").await;
    assert_beside(&process, &foreign, &ghost).await;
}

/// All of `foreign` are in the fact store of `process`, and `ghost` is not.
async fn assert_beside(process: &Process, foreign: &[Value], ghost: &Value) {
    let mut all: Vec<Value> = Vec::new();
    for predicate in ["has_permission", "has_role", "has_relation"] {
        all.extend(process.facts(predicate).await);
    }
    for fact in foreign {
        assert!(all.contains(fact), "{fact} is gone: {}", json!(all));
    }
    assert!(!all.contains(ghost), "{ghost} is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn net_what_changes_no_fact_sends_nothing() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    let before = app.settle(&process).await;
    for sql in [
        "UPDATE member SET role = role",
        "UPDATE member SET note = 'changed'",
        "BEGIN; DELETE FROM member WHERE id = 5; INSERT INTO member VALUES (5, 'reader'); COMMIT",
        "BEGIN; UPDATE member SET role = 'admin'; ROLLBACK",
        // Supported by `member` already, and a second row for the same fact.
        "INSERT INTO granted VALUES (4, 50, 'admin')",
        "DELETE FROM granted WHERE id = 4",
    ] {
        let after = app.commit(&process, sql).await;
        assert_eq!(after, before, "{sql} sent something");
    }
    let after = app.commit(&process, "UPDATE member SET role = 'writer' WHERE id = 5").await;
    assert_ne!(after, before, "the token does not move at all");
    app.assert_equal(&process, "at the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn net_a_fact_stays_until_its_last_row_goes() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let role = [fact("has_role", &["User:7", "String:reader"]), fact("granted", &["User:50", "String:admin"])];
    for (sql, still) in [
        ("DELETE FROM member WHERE id = 7", [true, true]),
        ("DELETE FROM granted WHERE id = 2", [true, true]),
        ("DELETE FROM granted WHERE id = 3", [true, false]),
        ("DELETE FROM granted WHERE id = 1", [false, false]),
    ] {
        app.commit(&process, sql).await;
        for (fact, still) in role.iter().zip(still) {
            let held = process.facts(fact["predicate"].as_str().expect("a text")).await.contains(fact);
            assert_eq!(held, still, "{fact} after {sql}");
        }
        app.assert_equal(&process, sql).await;
    }
}
