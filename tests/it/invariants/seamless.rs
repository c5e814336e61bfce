//! Seamless: no change falls between snapshot and stream.

use crate::support::{
    github::{Github, Random},
    load::Load,
    postgres::Major,
};

/// Snapshots taken; `FACTSYNC_LONG=1` makes it ten times as many.
fn rounds() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 40 } else { 4 }
}

#[tokio::test(flavor = "multi_thread")]
async fn seamless_a_snapshot_under_writers_loses_nothing() {
    snapshots_under_load(Major::V15, rounds()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seamless_a_snapshot_under_writers_on_postgresql_18() {
    snapshots_under_load(Major::V18, rounds() / 2).await;
}

async fn snapshots_under_load(major: Major, rounds: u64) {
    let mut random = Random::new("seamless");
    let github = Github::start(major).await;
    for round in 0..rounds {
        let load = Load::start(&github, &mut random, 3);
        load.goes_on(random.below(50)).await;
        // A new state directory: it drops the old slot and creates one, whose snapshot falls between two commits somewhere.
        let state = tempfile::tempdir().expect("a folder");
        let process = github.run(state.path(), &[]);
        process.wait_ready().await;
        // The writers end at a random distance: what is lost shows best when nothing comes after it.
        load.goes_on(random.below(30)).await;
        load.finish().await;
        process.wait_position(&github.position().await).await;
        github.assert_equal(&process, &format!("round {round}")).await;
        assert!(process.terminate().success());
    }
}
