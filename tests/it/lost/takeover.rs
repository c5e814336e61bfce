//! A second instance takes over when the first one is killed: with a state directory of its own, or with the same one.

use std::time::{Duration, Instant};

use super::{CHANGE, app, delivered, wanted};
use crate::support::{
    app::App,
    eventually_async,
    factsync::{Factsync, Process},
    postgres::Major,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// What a takeover may take; on an idle machine it takes a fraction of that.
const SECONDS: Duration = Duration::from_secs(20);

/// Kills `first`, commits at once, and waits until the fact store of `store` has that commit. Tells how long it took.
async fn takeover(app: &App, first: Process, store: &Process) -> Duration {
    let killed = Instant::now();
    first.kill();
    app.sql(CHANGE).await;
    eventually_async(DEADLINE, "the first commit after the kill arrives", async || {
        let roles = store.facts_or_none("has_role").await?;
        roles.iter().any(|fact| fact["args"][0]["id"] == "1000").then_some(())
    })
    .await;
    killed.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_standby_with_its_own_state_takes_over_in_seconds() {
    let app = app(Major::V15, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let into = ["--target", store.url(), "--plan", "unlimited"];
    let own = tempfile::tempdir().expect("a folder");
    let first = app.started(&into).await;
    app.commit(&first, "DELETE FROM member WHERE id = 1").await;
    let before = wanted(&app).await;
    let second = app.run(&[&into[..], &["--state", own.path().to_str().expect("UTF-8")]].concat());
    eventually_async(DEADLINE, "it waits", async || (second.status().await["state"] == "standby").then_some(())).await;
    let took = takeover(&app, first, &store).await;
    app.settle(&second).await;
    app.assert_equal(&store, "after the takeover").await;
    let differences = before.symmetric_difference(&wanted(&app).await).count() as u64;
    eprintln!("takeover with a state of its own: {took:?}; {} writes, {differences} differences", delivered(&second).await);
    assert_eq!(delivered(&second).await, differences);
    assert!(took < SECONDS, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_standby_on_the_same_state_takes_over_in_seconds_without_a_snapshot() {
    let app = app(Major::V15, "").await;
    let first = app.started(&["--standby"]).await;
    app.commit(&first, "DELETE FROM member WHERE id = 1").await;
    let before = wanted(&app).await;
    let second = app.run(&["--standby"]);
    assert!(second.log().contains("waiting for the state directory as the standby"), "{}", second.log());
    assert_eq!(second.get("/healthz").await.0, 200);
    let (code, why) = second.get("/readyz").await;
    assert!(code == 503 && why.contains("in use by process"), "{code} {why}");
    let took = takeover(&app, first, &second).await;
    app.settle(&second).await;
    app.assert_equal(&second, "after the takeover").await;
    assert!(!second.log().contains("reading every view"), "{}", second.log());
    let differences = before.symmetric_difference(&wanted(&app).await).count() as u64;
    eprintln!("takeover with the same state: {took:?}; {} writes, {differences} differences", delivered(&second).await);
    assert_eq!(delivered(&second).await, differences);
    assert!(took < SECONDS, "{took:?}");
    second.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_stopped_ends_at_once_and_disturbs_nobody() {
    let app = app(Major::V15, "").await;
    let first = app.started(&[]).await;
    let second = app.run(&["--standby"]);
    assert!(second.terminate().success());
    app.commit(&first, CHANGE).await;
    app.assert_equal(&first, "the standby is gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_refused_and_a_kill_frees_the_state() {
    let app = app(Major::V15, "").await;
    let first = app.started(&[]).await;
    let pid = first.pid();
    let (config, state) = (app.config(), app.state());
    let args = ["run", config.to_str().expect("UTF-8"), "--state", state.to_str().expect("UTF-8"), "--listen", "127.0.0.1:0"];
    let refused = tokio::task::block_in_place(|| Factsync::run(&args, &[("DATABASE_URL", &app.url())])).expect_code(1);
    assert!(refused.stderr.contains(&format!("in use by process {pid}")), "{}", refused.stderr);
    assert!(refused.stderr.contains("--standby"), "the way out is not named: {}", refused.stderr);
    app.commit(&first, "DELETE FROM member WHERE id = 1").await;
    first.kill();
    app.sql(CHANGE).await;
    let second = app.started(&[]).await;
    app.settle(&second).await;
    app.assert_equal(&second, "after the kill").await;
    assert!(!second.log().contains("reading every view"), "{}", second.log());
}
