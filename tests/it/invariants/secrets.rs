//! No secret reaches a log, an error, `/v1/status` or `/metrics`.

use crate::support::{
    app::App,
    eventually_async,
    factsync::{Factsync, Process},
    free_port,
};

const PASSWORD: &str = "correct-horse-battery";
const KEY: &str = "e_0123456789_54321_averysecretkeyofours01";
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

const SCHEMA: &str = "CREATE TABLE member (id text PRIMARY KEY); INSERT INTO member VALUES ('cell-of-alice')";
const FACTS: [(&str, &str); 2] =
    [("has_role(User:_)", "SELECT id FROM member"), ("has_age(User:_, Integer:_)", "SELECT 'x', id::int FROM member")];

/// Nothing that `process` says tells a secret, nor what is in a cell.
async fn assert_silent(process: &Process) {
    let mut said = vec![("log", process.log())];
    for path in ["/v1/status", "/metrics", "/readyz", "/", "/v1/wait?position=x"] {
        said.push((path, process.get(path).await.1));
    }
    for (place, text) in said {
        for secret in [PASSWORD, KEY, "cell-of-alice"] {
            assert!(!text.contains(secret), "{place} tells {secret}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_no_log_and_no_page() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let url = app.url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
    let env = [("DATABASE_URL", url.as_str()), ("OSO_AUTH", KEY), ("RUST_LOG", "debug")];
    let process = app.run_with(&["--target", "embedded"], &env);
    process.wait_ready().await;
    app.commit(&process, "INSERT INTO member VALUES ('1')").await;
    assert!(process.log().contains("invalid input syntax"), "the second view fails, on a cell:\n{}", process.log());
    assert_silent(&process).await;
    let (status, body) = process.get("/api/facts?predicate=has_role").await;
    assert_eq!(status, 401, "the development key is not ours: {body}");
    assert!(!body.contains(KEY), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_what_goes_wrong() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    // A database that is not there, and a fact store that does not know the key.
    let url = format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{}/app", free_port());
    let env = [("DATABASE_URL", url.as_str()), ("OSO_AUTH", KEY), ("RUST_LOG", "debug")];
    let store = Process::spawn(&["serve"], &[("OSO_AUTH", "e_0123456789_54321_anotherkey")]);
    let process = app.run_with(&["--target", store.url()], &env);
    eventually_async(DEADLINE, "it says that the database is not there", async || {
        (process.status().await["state"] == "retrying").then_some(())
    })
    .await;
    assert_silent(&process).await;
    drop(process);

    let url = app.url().replace("postgres@", &format!("postgres:{PASSWORD}@"));
    let process = app.run_with(&["--target", store.url()], &[("DATABASE_URL", &url), ("OSO_AUTH", KEY), ("RUST_LOG", "debug")]);
    eventually_async(DEADLINE, "it says that the key is wrong", async || {
        process.status().await["target"]["problem"].is_string().then_some(())
    })
    .await;
    assert_silent(&process).await;
    assert!(!store.log().contains(KEY), "{}", store.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_errors() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let config = app.config();
    let config = config.to_str().expect("UTF-8");

    for port in ["not-a-port", "99999"] {
        let url = format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/app");
        let output = Factsync::run(&["reconcile", config], &[("DATABASE_URL", &url), ("OSO_AUTH", KEY), ("OSO_URL", "http://127.0.0.1:9")]);
        assert_ne!(output.code(), 0);
        for secret in [PASSWORD, KEY] {
            assert!(!output.stderr.contains(secret) && !output.stdout.contains(secret), "{output:?}");
        }
    }
    for target in [format!("ftp://user:{PASSWORD}@127.0.0.1"), format!("http://user:{PASSWORD}@127.0.0.1:9")] {
        let output = Factsync::run(&["reconcile", config, "--target", &target], &[("DATABASE_URL", &app.url()), ("OSO_AUTH", KEY)]);
        assert_ne!(output.code(), 0);
        assert!(!output.stderr.contains(PASSWORD) && !output.stderr.contains(KEY), "{output:?}");
    }
}
