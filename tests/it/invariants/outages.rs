//! A source that goes away and comes back is an ordinary event; so is a factsync that dies beside its standby.

use std::time::Duration;

use crate::support::{
    eventually_async,
    factsync::Process,
    github::{Github, Random},
    load::Load,
    postgres::Major,
};

const DEADLINE: Duration = Duration::from_secs(60);

async fn state(process: &Process) -> String {
    process.status().await["sources"][0]["state"].as_str().expect("a text").to_owned()
}

async fn reaches(process: &Process, wanted: &str) {
    eventually_async(DEADLINE, &format!("the source is {wanted}"), async || (state(process).await == wanted).then_some(())).await;
}

/// An outage under load: `outage` takes the server away and returns when it is gone, and the server comes back afterwards.
async fn heals_after(test: &str, outage: fn(&Github)) {
    let mut random = Random::new(test);
    let mut github = Github::start(Major::V15).await;
    let folder = tempfile::tempdir().expect("a folder");
    let process = github.run(folder.path(), &[]);
    process.wait_ready().await;
    for round in 0..2 {
        let load = Load::start(&github, &mut random, 2);
        load.goes_on(20 + random.below(100)).await;
        outage(&github);
        reaches(&process, "retrying").await;
        let reason = process.status().await["sources"][0]["reason"].clone();
        assert!(reason.is_string(), "round {round}: no reason");
        let (code, _) = process.get("/readyz").await;
        assert_eq!(code, 503);
        github.cluster.start_again();
        github.client = github.cluster.client(&github.database).await;
        load.goes_on(20 + random.below(100)).await;
        load.finish().await;
        process.wait_position(&github.position().await).await;
        reaches(&process, "streaming").await;
        github.assert_equal(&process, &format!("round {round}, after the outage")).await;
    }
    assert_eq!(process.log().matches("reading every view").count(), 1, "an outage needs no new snapshot:\n{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_server_restart_under_load_is_an_ordinary_event() {
    heals_after("restart", |github| github.cluster.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_server_crash_under_load_is_an_ordinary_event() {
    heals_after("crash", |github| github.cluster.kill()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_terminated_connections_come_back() {
    let mut random = Random::new("terminate");
    let github = Github::start(Major::V15).await;
    let folder = tempfile::tempdir().expect("a folder");
    let process = github.run(folder.path(), &[]);
    process.wait_ready().await;
    let load = Load::start(&github, &mut random, 2);
    let lost = || process.log().matches("source lost, will retry").count();
    for victims in ["backend_type = 'walsender'", "application_name = 'factsync'", "backend_type = 'walsender'"] {
        load.goes_on(30 + random.below(50)).await;
        let before = lost();
        let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {victims} AND pid <> pg_backend_pid()");
        // Between two attempts there may be nobody to terminate.
        eventually_async(DEADLINE, "a connection is missed", async || {
            github.client.query(&sql, &[]).await.expect("the superuser may");
            (lost() > before).then_some(())
        })
        .await;
    }
    load.finish().await;
    process.wait_position(&github.position().await).await;
    github.assert_equal(&process, "after the terminations").await;
    assert_eq!(process.log().matches("reading every view").count(), 1, "{}", process.log());
    assert!(process.log().contains("source lost, will retry"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_standby_takes_over() {
    let mut random = Random::new("standby");
    let github = Github::start(Major::V15).await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let folders = [0, 1].map(|_| tempfile::tempdir().expect("a folder"));
    let mut first = github.run_into(store.url(), folders[0].path());
    first.wait_ready().await;
    let load = Load::start(&github, &mut random, 2);
    // Twice: the second time the one that takes over has an old state of its own.
    for folder in [&folders[1], &folders[0]] {
        let second = github.run_into(store.url(), folder.path());
        reaches(&second, "standby").await;
        load.goes_on(random.below(100)).await;
        assert_eq!(state(&second).await, "standby", "there is one at a time");
        first.kill();
        reaches(&second, "streaming").await;
        first = second;
    }
    load.finish().await;
    first.wait_position(&github.position().await).await;
    github.assert_equal(&store, "after two failovers").await;
}
