//! A release is whole or has not been: whatever dies around it.

use std::os::unix::process::ExitStatusExt;

use super::*;
use crate::support::{free_port, github::Random};

/// What `abort` ends a process with.
const SIGABRT: i32 = 6;

/// Rounds of a kill at random.
const KILLS: u64 = 6;

const MANY: &str = "INSERT INTO member SELECT i, 'reader' FROM generate_series(41, 3000) i";

/// After a restart the hold is whole or gone; ends with it gone, and the fact store as the query says.
async fn assert_whole(app: &App, process: &Process, context: &str) -> bool {
    app.settle(process).await;
    let waits = removals(process, ROLE).await;
    assert!(waits.is_empty() || waits == [3_000], "{context}: half of it: {waits:?}");
    if !waits.is_empty() {
        assert_eq!(count(process, "has_role").await, 3_000, "{context}");
        hold(process, &["release", "--all"]).expect_code(0);
    }
    delivered(process).await;
    app.assert_equal(process, context).await;
    waits.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_kill_around_a_release_leaves_the_whole_hold_or_none_of_it() {
    let mut random = Random::new("releases");
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    app.sql(MANY).await;
    // On the disk, and nobody was told.
    let mut process = app.run_with(&[], &[("DATABASE_URL", &app.url()), ("FACTSYNC_DIE_AT", "released:1")]);
    process.wait_ready().await;
    app.commit(&process, "DELETE FROM member").await;
    let id = first(&process).await;
    assert!(post(process.url(), id, "release").await.is_err(), "it dies before it answers");
    assert_eq!(process.ended().signal(), Some(SIGABRT), "{}", process.log());
    let mut process = app.started(&[]).await;
    assert!(assert_whole(&app, &process, "after a death behind the transaction").await, "it was on the disk");

    for round in 0..KILLS {
        app.commit(&process, &format!("INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 40) i; {MANY}")).await;
        app.commit(&process, "TRUNCATE member").await;
        let id = first(&process).await;
        let url = process.url().to_owned();
        let patience = Duration::from_micros(random.below(30_000));
        // Killed before the answer, or after it.
        let answered = tokio::time::timeout(patience, post(&url, id, "release")).await;
        process.kill();
        process = app.started(&[]).await;
        let gone = assert_whole(&app, &process, &format!("round {round}, killed after {patience:?}")).await;
        assert!(gone || !matches!(answered, Ok(Ok(200))), "round {round}: what was answered is on the disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_release_while_the_fact_store_is_away_is_delivered_when_it_is_back() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let facts = tempfile::tempdir().expect("a folder");
    let address = format!("127.0.0.1:{}", free_port());
    let serve = || {
        let state = facts.path().to_str().expect("a UTF-8 path");
        Process::spawn(&["serve", "--limits", "off", "--listen", &address, "--state", state], &[])
    };
    let store = serve();
    let more = ["--target", store.url(), "--plan", "unlimited"].map(str::to_owned);
    let more = more.each_ref().map(String::as_str);
    let process = app.started(&more).await;
    app.commit(&process, "DELETE FROM member WHERE id <= 30").await;
    store.kill();
    // While it is away another accident is held, and each of the two has its own fate.
    app.sql("TRUNCATE repository").await;
    eventually_async(DEADLINE, "the second one is held", async || (held(&process).await.len() == 2).then_some(())).await;
    let released = hold(&process, &["release", &first(&process).await.to_string()]).expect_code(0).json();
    assert_eq!(released["released"][0]["removals"], 30);
    // One of the released comes back, and the process dies before anything was sent.
    app.sql("INSERT INTO member VALUES (7, 'reader')").await;
    process.kill();
    let process = app.run(&more);
    let store = serve();
    app.settle(&process).await;
    delivered(&process).await;
    assert_eq!((count(&store, "has_role").await, count(&store, "is_public").await), (11, 40));
    assert_eq!(removals(&process, PUBLIC).await, [40]);
    hold(&process, &["release", "--all", "--target", process.url()]).expect_code(0);
    delivered(&process).await;
    app.assert_equal(&store, "both released").await;
}
