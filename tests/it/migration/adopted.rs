//! `run --adopt`: the first contact removes nothing, and what it adopted stays until a person lets go.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{FACTS, PUBLIC, ROLE, SCHEMA, TOPIC};
use crate::support::{
    app::{App, delete, fact, insert},
    eventually_async,
    factsync::{Factsync, Process},
    free_port,
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

fn role(id: u32, role: &str) -> Value {
    fact("has_role", &[&format!("User:{id}"), &format!("String:{role}")])
}

fn one(predicate: &str, type_name: &str, id: u32) -> Value {
    fact(predicate, &[&format!("{type_name}:{id}")])
}

async fn all(store: &Process) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for predicate in ["has_role", "is_public", "is_topic"] {
        all.extend(store.facts(predicate).await.iter().map(Value::to_string));
    }
    all
}

/// What the queries want, and `more`.
fn wanted(more: &[Value]) -> BTreeSet<String> {
    let ids = 1..=5;
    let wanted = ids.flat_map(|id| [role(id, "reader"), one("is_public", "Repository", id), one("is_topic", "Topic", id)]);
    wanted.chain(more.iter().cloned()).map(|fact| fact.to_string()).collect()
}

async fn held(process: &Process) -> BTreeMap<String, u64> {
    let status = process.status().await;
    let held = status["held"].as_array().expect("a list").clone();
    held.iter().map(|held| (held["fact_type"].as_str().expect("a text").to_owned(), held["removals"].as_u64().expect("a number"))).collect()
}

fn counts(held: &[(&str, u64)]) -> BTreeMap<String, u64> {
    held.iter().map(|(fact_type, removals)| ((*fact_type).to_owned(), *removals)).collect()
}

async fn delivered(process: &Process) -> u64 {
    let (_, metrics) = process.get("/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix("factsync_delivered_facts_total "));
    line.map_or(0, |value| value.trim().parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_what_is_there_is_taken_over_until_a_person_lets_go() {
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 0s").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    // Nearly everything is there already, and three facts that no query has.
    let foreign = [role(77, "admin"), one("is_public", "Repository", 77), one("is_topic", "Topic", 77), one("is_topic", "Topic", 78)];
    let missing = [role(1, "reader"), one("is_topic", "Topic", 2)];
    let there: Vec<Value> = wanted(&foreign).iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    insert(&store, &there).await;
    delete(&store, &missing).await;
    let target = ["--target", store.url(), "--plan", "unlimited"];
    let with = |flags: &[&'static str]| flags.iter().copied().chain(target).map(str::to_owned).collect::<Vec<_>>();
    let start = async |flags: &[&'static str]| {
        let flags = with(flags);
        let process = app.started(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
        app.settle(&process).await;
        process
    };

    let process = start(&["--adopt"]).await;
    assert_eq!(all(&store).await, wanted(&foreign));
    assert_eq!(delivered(&process).await, 2, "what matches is not written");
    assert_eq!(held(&process).await, counts(&[(ROLE, 1), (PUBLIC, 1), (TOPIC, 2)]));
    assert!(!process.log().contains("nothing to adopt"), "{}", process.log());

    // From here on revocations go, also of a refreshed fact type, and what the query brings is no longer held.
    app.commit(&process, "DELETE FROM topic WHERE id = 5; DELETE FROM member WHERE id = 5; INSERT INTO topic VALUES (78)").await;
    let mut expected = wanted(&foreign);
    for gone in [role(5, "reader"), one("is_topic", "Topic", 5)] {
        assert!(expected.remove(&gone.to_string()));
    }
    assert_eq!(all(&store).await, expected);
    assert_eq!(held(&process).await, counts(&[(ROLE, 1), (PUBLIC, 1), (TOPIC, 1)]));
    app.commit(&process, "DELETE FROM topic WHERE id = 78").await;
    expected.remove(&one("is_topic", "Topic", 78).to_string());
    assert_eq!(all(&store).await, expected);

    // Over a restart without the flag, and over a new snapshot.
    assert!(process.terminate().success());
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    let process = start(&[]).await;
    assert_eq!((all(&store).await, held(&process).await), (expected.clone(), counts(&[(ROLE, 1), (PUBLIC, 1), (TOPIC, 1)])));

    // A second contact adopts nothing.
    assert!(process.terminate().success());
    insert(&store, &[role(88, "admin")]).await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    let process = start(&["--adopt"]).await;
    assert!(process.log().contains("nothing to adopt"), "{}", process.log());
    assert_eq!(all(&store).await, expected, "what came later is drift");

    assert!(process.terminate().success());
    let process = start(&["--allow-removals"]).await;
    assert_eq!(held(&process).await, counts(&[]));
    app.assert_equal(&store, "with --allow-removals").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_crash_before_the_first_comparison_forgets_neither_what_is_there_nor_what_was_revoked() {
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 0s").await;
    let port = free_port();
    let (folder, address) = (tempfile::tempdir().expect("a folder"), format!("127.0.0.1:{port}"));
    let url = format!("http://{address}");
    let serve =
        || Process::spawn(&["serve", "--limits", "off", "--listen", &address, "--state", folder.path().to_str().expect("UTF-8")], &[]);
    let store = serve();
    let foreign = [role(77, "admin"), one("is_topic", "Topic", 77)];
    let there: Vec<Value> = wanted(&foreign).iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    insert(&store, &there).await;
    assert!(store.terminate().success());

    // The fact store is away: the snapshot is taken, and access is revoked.
    let flags = ["--adopt", "--target", &url, "--plan", "unlimited"];
    let process = app.run(&flags);
    let applied = async |process: &Process, facts: u64| {
        eventually_async(DEADLINE, "the revocation is applied", async || {
            let status = process.status().await;
            let lines = status["fact_types"].as_array().expect("a list").clone();
            let all: u64 = lines.iter().map(|line| line["facts"].as_u64().expect("a number")).sum();
            (all == facts && status["state"] == "streaming").then_some(())
        })
        .await;
    };
    applied(&process, 15).await;
    app.sql("DELETE FROM member WHERE id = 1; DELETE FROM topic WHERE id = 1").await;
    applied(&process, 13).await;
    process.kill();
    let process = app.run(&flags);
    applied(&process, 13).await;
    let store = serve();
    process.wait_ready().await;
    app.settle(&process).await;
    let mut expected = wanted(&foreign);
    expected.remove(&role(1, "reader").to_string());
    expected.remove(&one("is_topic", "Topic", 1).to_string());
    assert_eq!(all(&store).await, expected, "what was seen to be revoked is gone, what was there stays");
    assert_eq!(held(&process).await, counts(&[(ROLE, 1), (TOPIC, 1)]));
}

#[test]
fn flags_that_contradict_each_other_are_a_usage_error() {
    for (flags, named) in [
        (["--adopt", "--allow-removals"], "--allow-removals"),
        (["--shadow", "--allow-removals"], "--allow-removals"),
        (["--shadow", "--adopt"], "--adopt"),
        (["--shadow", "--shadow-grace=1h"], "10m"),
        (["--max-parked=1", "--shadow-grace=1s"], "--shadow"),
        (["--adopt", "--shadow-grace=1s"], "--adopt"),
    ] {
        let output = Factsync::run(&["run", "examples/quickstart/quickstart.yaml", flags[0], flags[1]], &[]).expect_code(2);
        assert!(output.stderr.contains(named), "{}", output.stderr);
    }
}
