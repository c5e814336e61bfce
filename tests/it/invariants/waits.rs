//! Exact, for those who ask: `/v1/wait` answers as soon as it may, and never before.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, future::join_all, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    app::App,
    command,
    daemon::Daemon,
    eventually_async,
    factsync::{BINARY, Factsync, Process},
    free_port,
};

const SCHEMA: &str = "CREATE TABLE member (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); INSERT INTO member VALUES (1)";
const FACTS: [(&str, &str); 1] = [("has_role(User:_)", "SELECT id FROM member")];

/// An answer within milliseconds, on a machine whose cores are shared. A wait for the next idle heartbeat takes ten seconds.
const AT_ONCE: Duration = Duration::from_secs(3);
/// For four thousand connections on such a machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A stop that waited for open connections would take eight seconds.
const STOP: Duration = Duration::from_secs(6);

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
    assert!(body.contains(r#"source \"app\" is streaming at "#), "it says where the source is: {body}");
    assert!(asked.elapsed() >= Duration::from_millis(200) && asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    for query in [
        "",
        "?position=",
        "?position=nonsense",
        "?position=0%2FGG",
        "?position=0",
        "?position=0%2F1&timeout_ms=soon",
        "?position=0%2F1&timeout_ms=-1",
        "?position=0%2F1&timeout=5",
        "?position=0%2F1&position=0%2F2",
        "?position=0%2F1&source=nobody",
        "?position=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ] {
        let (status, body) = process.get(&format!("/v1/wait{query}")).await;
        assert_eq!(status, 400, "{query}: {body}");
        assert!(body.contains("message"), "{query}: {body}");
    }
    let (_, body) = process.get("/v1/wait?position=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").await;
    assert!(body.contains("a SHA-256 digest is a position of a CSV file"), "{body}");
    assert!(body.contains("is postgres and has an LSN such as 16/B374D848"), "{body}");
    let (_, body) = process.get("/v1/wait?position=0%2F1&timeout=5").await;
    assert!(body.contains("unknown field `timeout`") && body.contains("timeout_ms"), "{body}");
    // No patience at all is a question: is it there?
    assert_eq!(wait(&process, "0/1", 0).await.0, 200);
    assert_eq!(wait(&process, &future, 0).await.0, 504);
    // Somebody who waits for the future does not slow down those who wait for the present.
    let (late, _) = tokio::join!(wait(&process, &future, 1500), async {
        let asked = Instant::now();
        app.commit(&process, "INSERT INTO member VALUES (5)").await;
        assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    });
    assert_eq!(late.0, 504);
}

/// What the issue asks of one process.
const WAITERS: usize = 1000;
/// The server's own limit.
const MOST_WAITERS: usize = 4096;

/// Connections that have all asked the same.
async fn ask_all(process: &Process, count: usize, position: &str, timeout_ms: u64) -> Vec<TcpStream> {
    let address = process.url().strip_prefix("http://").expect("an http URL");
    let request =
        format!("GET /v1/wait?position={position}&timeout_ms={timeout_ms} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    // One after the other: a burst of them would overflow the listener's queue, and the kernel tries again only after a second.
    stream::iter(0..count)
        .map(async |_| {
            let mut connection = TcpStream::connect(address).await.expect("it accepts connections");
            connection.write_all(request.as_bytes()).await.expect("it reads requests");
            connection
        })
        .buffered(64)
        .collect()
        .await
}

/// The answer on `connection`: status line, headers and body as they came.
async fn answer(mut connection: TcpStream) -> String {
    let mut text = String::new();
    connection.read_to_string(&mut text).await.expect("an answer arrives");
    text
}

async fn answers(connections: Vec<TcpStream>) -> Vec<String> {
    join_all(connections.into_iter().map(answer)).await
}

/// Waits until that many requests wait in `process`.
async fn inside(process: &Process, count: usize) {
    let line = format!("factsync_waiters {count}");
    eventually_async(PATIENCE, "every request waits", async || {
        let (_, metrics) = process.get("/metrics").await;
        metrics.lines().any(|found| found == line).then_some(())
    })
    .await;
}

fn serve(address: &str, state: &str) -> Process {
    Process::spawn(&["serve", "--limits", "off", "--listen", address, "--state", state], &[])
}

/// The connections' other ends are this process's.
fn allow_open_files() {
    let most = rlimit::increase_nofile_limit(u64::MAX).expect("the limit of open files can be raised");
    assert!(most > 2 * MOST_WAITERS as u64, "this test needs more than {most} open files");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_thousand_waiters_all_get_the_same_right_answer() {
    allow_open_files();
    let app = App::start(SCHEMA, &FACTS, "").await;
    let folder = tempfile::tempdir().expect("a folder");
    let (address, folder) = (format!("127.0.0.1:{}", free_port()), folder.path().to_str().expect("UTF-8").to_owned());
    let store = serve(&address, &folder);
    let target = store.url().to_owned();
    let process = app.started(&["--target", &target, "--plan", "unlimited"]).await;
    let before = app.settle(&process).await;
    // While the fact store is away nobody may be answered.
    store.kill();
    app.sql("DELETE FROM member WHERE id = 1; INSERT INTO member VALUES (2)").await;
    let position = app.position().await;
    let waiters = ask_all(&process, WAITERS, &position, 55_000).await;
    inside(&process, WAITERS).await;
    let (status, body) = wait(&process, &position, 300).await;
    assert_eq!(status, 504, "nothing is acknowledged by a fact store that is away: {body}");
    assert!(body.contains("the fact store does not answer"), "{body}");

    let store = serve(&address, &folder);
    let answers = answers(waiters).await;
    let (first, rest) = answers.split_first().expect("a thousand answers");
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let (_, body) = first.split_once("\r\n\r\n").expect("a body");
    let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body["position"], position);
    let token = |offset: &str| offset.parse::<u64>().expect("the embedded store's tokens are numbers");
    let offset = body["offset"].as_str().expect("a token");
    assert!(token(offset) > token(&before), "the token {offset} is not younger than {before}");
    let without_date = |answer: &str| answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n");
    for other in rest {
        assert_eq!(without_date(other), without_date(first));
    }
    assert_eq!(store.facts("has_role").await.len(), 1, "what they waited for is there");
    app.assert_equal(&store, "after the waits").await;
}

/// Resident memory of `process` in KiB.
fn resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    line.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a size")
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_waiters_cost_what_they_hold_and_leave_nothing_behind() {
    allow_open_files();
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let future = app.ask("SELECT pg_current_wal_lsn() + 1000000000").await;
    let alone = resident(&process);
    let mut rounds = Vec::new();
    for round in 0..8 {
        let waiters = ask_all(&process, WAITERS, &future, 500).await;
        for answer in answers(waiters).await {
            assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        }
        inside(&process, 0).await;
        let now = resident(&process);
        assert!(now < alone + 100 * 1024, "round {round}: a thousand waiters made {alone} KiB {now} KiB");
        rounds.push(now);
    }
    // What a thousand connections leave free goes back to the system at times, so one number says little. What stays shows in the least.
    let (first, last) = (rounds[1], rounds[5..].iter().min().expect("there are three"));
    assert!(*last < first + 10 * 1024, "four thousand more waiters made {first} KiB {last} KiB: {rounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_more_waiters_than_the_limit_are_told_to_come_back() {
    allow_open_files();
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let future = app.ask("SELECT pg_current_wal_lsn() + 1000000000").await;
    let waiters = ask_all(&process, MOST_WAITERS, &future, 50_000).await;
    inside(&process, MOST_WAITERS).await;
    let refused = answer(ask_all(&process, 1, &future, 50).await.remove(0)).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("\r\nretry-after: 1\r\n") && refused.contains("4096 requests are waiting already"), "{refused}");
    // Everything else goes on, and who leaves makes room.
    assert_eq!(process.get("/healthz").await.0, 200);
    drop(waiters);
    inside(&process, 0).await;
    assert_eq!(wait(&process, "0/1", 1000).await.0, 200);
    // A stop is not held up by those who wait.
    let waiters = ask_all(&process, 10, &future, 50_000).await;
    inside(&process, waiters.len()).await;
    let asked = Instant::now();
    assert!(tokio::task::spawn_blocking(|| process.terminate()).await.expect("it stops").success());
    assert!(asked.elapsed() < STOP, "stopping took {:?}", asked.elapsed());
    for answer in answers(waiters).await {
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("being stopped"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_the_soft_limit_of_open_files_is_not_the_limit_of_waiters() {
    let state = tempfile::tempdir().expect("a folder");
    let mut command = command("prlimit");
    command.args(["--nofile=256:", BINARY, "serve", "--listen", "127.0.0.1:0", "--state"]).arg(state.path());
    let (mut daemon, _pipes) = Daemon::spawn(command);
    let limits = format!("/proc/{}/limits", daemon.pid());
    eventually_async(PATIENCE, "the soft limit is the hard one", async || {
        let limits = std::fs::read_to_string(&limits).expect("the process runs");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("Linux says so");
        let limits: Vec<&str> = line.split_whitespace().collect();
        (limits[0] != "256" && limits[0] == limits[1]).then_some(())
    })
    .await;
    daemon.signal("KILL");
    daemon.wait(PATIENCE).expect("SIGKILL ends a process");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_the_command_asks_again_as_long_as_it_has_patience() {
    // A factsync that lets the first one wait in vain, for an outage longer than one request may last takes minutes.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let served = tokio::spawn(async move {
        for (status, body) in [("504 Gateway Timeout", r#"{"message":"not yet"}"#), ("200 OK", r#"{"position":"0/1","offset":"7"}"#)] {
            let (mut connection, _) = listener.accept().await.expect("it asks");
            let mut request = vec![0; 4096];
            let length = connection.read(&mut request).await.expect("a request");
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            assert!(request.starts_with("GET /v1/wait?position=0%2F1&timeout_ms=55000 "), "{request}");
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            connection.write_all(answer.as_bytes()).await.expect("it reads the answer");
        }
    });
    let args = ["wait", "--position", "0/1", "--timeout", "10m", "--target", &url].map(str::to_owned);
    let waited = tokio::task::spawn_blocking(move || Factsync::run(&args.each_ref().map(String::as_str), &[])).await.expect("it ends");
    assert_eq!(waited.expect_code(0).json()["offset"], "7");
    served.await.expect("both were asked for");
}
