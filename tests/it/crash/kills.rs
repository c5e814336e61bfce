//! Atomic: `kill -9` anywhere and a restart end in the same state as no kill.
//!
//! Writers never pause while factsync is killed at random moments, counted in their transactions. Nothing is checked in
//! between but that no restart reads everything again once a snapshot was stored: a position that was lost would show there,
//! facts that were lost show at the end.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    factsync::Process,
    free_port,
    github::{Github, Random},
    load::Load,
    postgres::Major,
};

/// How often factsync is killed: `FACTSYNC_KILLS`, with nextest's profile `campaign` if it is many; without it `FACTSYNC_LONG=1` makes it
/// ten times as many.
fn kills() -> u64 {
    let many = if std::env::var_os("FACTSYNC_LONG").is_some() { 80 } else { 8 };
    std::env::var("FACTSYNC_KILLS").ok().map_or(many, |text| text.parse().expect("FACTSYNC_KILLS is a number"))
}

/// Kills between two comparisons: what one of them lost must not be made up for by what comes later.
const COMPARED_EVERY: u64 = 25;

/// What the design allows a graceful stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_kill_at_any_moment_ends_in_the_same_state_as_none() {
    let mut random = Random::new("kills");
    let github = Github::start(Major::V15).await;
    let state = tempfile::tempdir().expect("a folder");
    let began = Instant::now();
    let (mut load, mut done, mut stored) = (Load::start(&github, &mut random, 2), 0, false);
    for round in 1..=kills() {
        let process = github.run(state.path(), &[]);
        // Every other one gets to work first; the others are killed while they start, read and compare.
        if round % 2 == 0 {
            process.wait_ready().await;
        }
        load.goes_on(random.below(100)).await;
        assert_no_snapshot(&process, stored, round);
        stored = stored || has_position(&process).await;
        process.kill();
        if round % COMPARED_EVERY == 0 || round == kills() {
            done += load.finish().await;
            let process = github.run(state.path(), &[]);
            process.wait_position(&github.position().await).await;
            assert_no_snapshot(&process, stored, round);
            github.assert_equal(&process, &format!("after {round} kills")).await;
            process.kill();
            eprintln!("{round} kills in {:?}, {done} transactions", began.elapsed());
            load = Load::start(&github, &mut random, 2);
        }
    }
    load.finish().await;
    assert!(stored, "no process lived long enough to store a snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_kills_of_factsync_and_of_its_fact_store() {
    let mut random = Random::new("both");
    let github = Github::start(Major::V15).await;
    let (state, facts) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let address = format!("127.0.0.1:{}", free_port());
    let mut store = serve(&address, facts.path());
    let url = store.url().to_owned();
    let mut process = github.run_into(&url, state.path());
    process.wait_ready().await;
    // The first process takes the snapshot; those after it must not.
    let mut followed = false;
    let load = Load::start(&github, &mut random, 2);
    for round in 0..kills() {
        load.goes_on(random.below(200)).await;
        let victims = random.below(3);
        if victims > 0 {
            assert_no_snapshot(&process, followed, round);
            process.kill();
            followed = true;
            process = github.run_into(&url, state.path());
        }
        if victims < 2 {
            store.kill();
            // For a while the outbox grows.
            load.goes_on(random.below(100)).await;
            store = serve(&address, facts.path());
        }
    }
    load.finish().await;
    process.wait_position(&github.position().await).await;
    github.assert_equal(&store, "after the last kill").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_is_graceful_and_ends_in_time() {
    let mut random = Random::new("stop");
    let github = Github::start(Major::V15).await;
    let state = tempfile::tempdir().expect("a folder");
    let load = Load::start(&github, &mut random, 2);
    for round in 0..3 {
        let process = github.run(state.path(), &[]);
        if round > 0 {
            process.wait_ready().await;
        }
        load.goes_on(random.below(200)).await;
        let asked = Instant::now();
        let status = process.terminate();
        assert!(status.success(), "round {round}: {status}");
        assert!(asked.elapsed() < STOP_LIMIT, "round {round}: stopped after {:?}", asked.elapsed());
    }
    load.finish().await;
    let process = github.run(state.path(), &[]);
    process.wait_position(&github.position().await).await;
    github.assert_equal(&process, "after the stops").await;
}

fn serve(address: &str, state: &Path) -> Process {
    let state = state.to_str().expect("a UTF-8 path");
    Process::spawn(&["serve", "--limits", "off", "--listen", address, "--state", state], &[])
}

pub(super) fn assert_no_snapshot(process: &Process, stored: bool, round: u64) {
    let log = process.log();
    assert!(
        !stored || !(log.contains("reading every view") || log.contains("position lost")),
        "round {round} needs a new snapshot:\n{log}"
    );
}

pub(super) async fn has_position(process: &Process) -> bool {
    process.status().await["sources"][0]["position"].is_string()
}
