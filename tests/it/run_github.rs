//! `run` on the GitHub example equals `psql` over the same queries: after the snapshot, under random transactions, after a
//! restart.

use crate::support::{
    github::{Github, Random, work},
    postgres::Major,
};

/// Transactions in all; `FACTSYNC_LONG=1` makes it ten times as many.
fn transactions() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 10_000 } else { 1_000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_after_snapshot_random_transactions_and_restart() {
    equals_psql(Major::V15, transactions()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_on_postgresql_18() {
    equals_psql(Major::V18, transactions() / 5).await;
}

async fn equals_psql(major: Major, transactions: u64) {
    let mut random = Random::new("equals_psql");
    let github = Github::start(major).await;
    let state = tempfile::tempdir().expect("a folder");
    let process = github.run(state.path(), &[]);
    process.wait_ready().await;
    github.assert_equal(&process, "after the snapshot").await;

    for tenth in 1..=10 {
        work(&github.client, &mut random, transactions / 10).await;
        process.wait_position(&github.position().await).await;
        github.assert_equal(&process, &format!("after {tenth} tenths of the transactions")).await;
    }

    assert!(process.terminate().success());
    work(&github.client, &mut random, transactions / 10).await;
    let process = github.run(state.path(), &[]);
    process.wait_position(&github.position().await).await;
    github.assert_equal(&process, "after a restart").await;
    assert!(!process.log().contains("reading every view"), "a restart needs no new snapshot:\n{}", process.log());
}
