//! Exact, for those who ask: `/v1/wait` answers as soon as it may, and never before.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::support::{app::App, factsync::Process};

const SCHEMA: &str = "CREATE TABLE member (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO member VALUES (1)";
const FACTS: [(&str, &str); 1] = [("has_role(User:_)", "SELECT id FROM member")];

/// An answer within milliseconds, on a machine whose cores are shared. A wait for the next idle heartbeat takes ten seconds.
const AT_ONCE: Duration = Duration::from_secs(3);

async fn wait(process: &Process, position: &str, timeout_ms: u64) -> (u16, String) {
    process.get(&format!("/v1/wait?position={}&timeout_ms={timeout_ms}", position.replace('/', "%2F"))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_wait_answers_when_the_facts_of_the_position_are_there() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    for id in 2..12 {
        app.sql(&format!("INSERT INTO member VALUES ({id})")).await;
        let asked = Instant::now();
        app.settle(&process).await;
        let facts = process.facts("has_role").await;
        assert_eq!(facts.len(), id, "the wait for row {id} was answered too early");
        assert!(asked.elapsed() < AT_ONCE, "row {id} took {:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_wait_past_the_last_commit_answers_at_once() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    for sql in [
        "INSERT INTO other VALUES (1)",
        "INSERT INTO other SELECT i FROM generate_series(2, 5000) i",
        "BEGIN; INSERT INTO member VALUES (77); ROLLBACK",
        "SELECT pg_switch_wal()",
        "CREATE TABLE another (id int)",
        "VACUUM member",
        "CHECKPOINT",
    ] {
        app.sql(sql).await;
        let asked = Instant::now();
        app.settle(&process).await;
        assert!(asked.elapsed() < AT_ONCE, "{sql} took {:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_wait_for_the_future_times_out_and_nonsense_is_refused() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let future = app.ask("SELECT pg_current_wal_lsn() + 1000000000").await;
    let asked = Instant::now();
    let (status, body) = wait(&process, &future, 200).await;
    assert_eq!(status, 504, "{body}");
    assert!(body.contains(&future) && body.contains("message"), "{body}");
    assert!(asked.elapsed() >= Duration::from_millis(200) && asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    for query in [
        "",
        "?position=",
        "?position=nonsense",
        "?position=0%2FGG",
        "?position=0",
        "?position=0%2F1&timeout_ms=soon",
        "?position=0%2F1&timeout_ms=-1",
        "?position=0%2F1&source=nobody",
    ] {
        let (status, body) = process.get(&format!("/v1/wait{query}")).await;
        assert_eq!(status, 400, "{query}: {body}");
        assert!(body.contains("message"), "{query}: {body}");
    }
    // Somebody who waits for the future does not slow down those who wait for the present.
    let (late, _) = tokio::join!(wait(&process, &future, 1500), async {
        let asked = Instant::now();
        app.commit(&process, "INSERT INTO member VALUES (5)").await;
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    });
    assert_eq!(late.0, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_two_hundred_waiters_all_get_their_answer() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    let mut positions = Vec::new();
    for id in 100..120 {
        app.sql(&format!("INSERT INTO member VALUES ({id})")).await;
        positions.push(app.position().await);
    }
    let waiters = (0..200).map(|index| wait(&process, &positions[index % positions.len()], 20_000));
    for (status, body) in join_all(waiters).await {
        assert_eq!(status, 200, "{body}");
    }
    app.assert_equal(&process, "after the waits").await;
}
