//! Bounded: a fact store that is down costs disk here, never log at the source.

use std::time::Duration;

use crate::support::{app::App, eventually_async, factsync::Process, free_port};

const DEADLINE: Duration = Duration::from_secs(30);

const SCHEMA: &str =
    "CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL); INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 50) i";
const FACTS: [(&str, &str); 1] = [("has_role(User:_, String:_)", "SELECT id, role FROM member")];

/// Waits until the slot no longer keeps the log before `position`.
async fn acknowledged(app: &App, position: &str) {
    let sql = format!("SELECT confirmed_flush_lsn >= '{position}' FROM pg_replication_slots WHERE slot_name = 'app'");
    eventually_async(DEADLINE, "the position is acknowledged upstream", async || (app.ask(&sql).await == "t").then_some(())).await;
}

fn serve(address: &str, state: &str) -> Process {
    Process::spawn(&["serve", "--limits", "off", "--listen", address, "--state", state], &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_an_outage_of_the_fact_store_holds_no_log_upstream() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let facts = tempfile::tempdir().expect("a folder");
    let (address, folder) = (format!("127.0.0.1:{}", free_port()), facts.path().to_str().expect("UTF-8"));
    let store = serve(&address, folder);
    let target = store.url().to_owned();
    let process = app.started(&["--target", &target, "--plan", "unlimited"]).await;
    app.settle(&process).await;

    store.kill();
    for round in 0..3 {
        app.sql(&format!(
            "INSERT INTO member SELECT i, 'admin' FROM generate_series({0}, {0} + 99) i; DELETE FROM member WHERE id = {round}",
            1000 + round * 100
        ))
        .await;
        acknowledged(&app, &app.position().await).await;
    }
    let status = process.status().await;
    assert!(status["outbox"]["facts"].as_u64().is_some_and(|facts| facts >= 300), "{status:#}");
    assert_eq!(status["target"]["reachable"], false, "{status:#}");
    assert!(status["target"]["problem"].is_string(), "{status:#}");
    let (code, why) = process.get("/readyz").await;
    assert_eq!(code, 503, "{why}");

    // Also over a restart, while the fact store is still down.
    process.kill();
    let process = app.run(&["--target", &target, "--plan", "unlimited"]);
    app.sql("DELETE FROM member WHERE id BETWEEN 5 AND 9").await;
    acknowledged(&app, &app.position().await).await;
    let store = serve(&address, folder);
    app.settle(&process).await;
    app.assert_equal(&store, "after the outage").await;
    assert_eq!(process.status().await["outbox"]["facts"], 0);
    assert!(!process.log().contains("reading every view"), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_fact_store_that_is_down_at_the_first_start_is_compared_when_it_comes() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let address = format!("127.0.0.1:{}", free_port());
    let process = app.run(&["--target", &format!("http://{address}"), "--plan", "unlimited"]);
    // The slot appears with the snapshot.
    eventually_async(DEADLINE, "there is a slot", async || {
        (app.ask("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'app'").await == "1").then_some(())
    })
    .await;
    app.sql("DELETE FROM member WHERE id <= 10; INSERT INTO member VALUES (100, 'admin')").await;
    acknowledged(&app, &app.position().await).await;
    let position = app.position().await.replace('/', "%2F");
    let (code, body) = process.get(&format!("/v1/wait?position={position}&timeout_ms=300")).await;
    assert_eq!(code, 504, "nothing is acknowledged by a fact store that is down: {body}");

    let facts = tempfile::tempdir().expect("a folder");
    let store = serve(&address, facts.path().to_str().expect("UTF-8"));
    app.settle(&process).await;
    app.assert_equal(&store, "after the outage").await;
    process.wait_ready().await;
}
