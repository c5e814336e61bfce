//! No secret reaches a log, an error, `/v1/status`, `/metrics`, a page or a `Debug` output, and neither does the content of a row.
//!
//! Every log is looked through at level `trace`, which also has what the drivers say.

use std::{fs, path::PathBuf};

use factsync::config;

use crate::support::{
    app::{App, ROLE},
    eventually_async,
    factsync::{Factsync, Output, Process},
    free_port,
    mongod::Mongod,
};

const PASSWORD: &str = "correct-horse-battery";
const KEY: &str = "e_0123456789_54321_averysecretkeyofours01";
/// In the file that OSO_AUTH_FILE names.
const FILED_KEY: &str = "e_0123456789_54321_akeythatisinafile00001";
const PASSPHRASE: &str = "staple-of-the-private-key";
const IN_URL: &str = "hunter-in-the-url";
/// In cells: an id of a fact, one that makes its query fail, and one that the server computes with.
const CELLS: [&str; 3] = ["cell-of-alice", "cell-not-a-number", "cell-to-be-shouted"];
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

const SCHEMA: &str = "CREATE TABLE member (id text PRIMARY KEY); INSERT INTO member VALUES ('cell-of-alice'), ('cell-not-a-number');
    CREATE TABLE shouted (id text PRIMARY KEY); INSERT INTO shouted VALUES ('cell-to-be-shouted')";
const FACTS: [(&str, &str); 3] = [
    ("has_role(User:_)", "SELECT id FROM member"),
    ("has_age(User:_, Integer:_)", "SELECT 'x', id::int FROM member"),
    ("has_name(User:_)", "SELECT initcap(id) FROM shouted"),
];

/// `text` tells no secret and no cell.
fn assert_hides(place: &str, text: &str) {
    let lower = text.to_lowercase();
    for secret in [PASSWORD, KEY, FILED_KEY, PASSPHRASE, IN_URL].into_iter().chain(CELLS) {
        assert!(!lower.contains(&secret.to_lowercase()), "{place} tells {secret}: {text}");
    }
}

fn assert_output_hides(output: &Output) {
    assert_hides("stdout", &output.stdout);
    assert_hides("stderr", &output.stderr);
}

/// Nothing that `process` says tells a secret, nor what is in a cell.
async fn assert_silent(process: &Process) {
    assert_hides("the log", &process.log());
    for path in
        ["/v1/status", "/metrics", "/readyz", "/healthz", "/", "/v1/wait?position=x", "/v1/wait?position=0/1&timeout_ms=1", "/nothing"]
    {
        assert_hides(path, &process.get(path).await.1);
    }
}

/// With a password, which nobody asks for and everybody might tell.
fn with_password(app: &App) -> String {
    app.url().replace(&format!("{ROLE}@"), &format!("{ROLE}:{PASSWORD}@"))
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_no_log_and_no_page() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let url = with_password(&app);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), FILED_KEY).expect("written");
    let filed = file.path().to_str().expect("UTF-8");
    for (format, key) in [("text", ("OSO_AUTH", KEY)), ("json", ("OSO_AUTH_FILE", filed))] {
        let env = [("DATABASE_URL", url.as_str()), key, ("RUST_LOG", "trace")];
        let process = app.run_with(&["--target", "embedded", "--log", format], &env);
        process.wait_ready().await;
        app.sql(&format!("INSERT INTO member VALUES ('1{format}'); INSERT INTO shouted VALUES ('cell-to-be-shouted-{format}')")).await;
        app.settle(&process).await;
        let status = process.status().await;
        let name = crate::support::app::fact_type(&status, "has_name(User:_)");
        assert_eq!(
            (&name["mode"], &name["problem"]),
            (&"incremental".into(), &serde_json::Value::Null),
            "the server computes with the cell"
        );
        assert!(process.log().contains("invalid input syntax"), "the second view fails, on a cell:\n{}", process.log());
        assert_silent(&process).await;
        let (code, body) = process.get("/api/facts?predicate=has_role").await;
        assert_eq!(code, 401, "the development key is not ours: {body}");
        assert_hides("a refusal", &body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_what_goes_wrong() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    // A database that is not there, and a fact store that does not know the key.
    let url = format!("postgresql://{ROLE}:{PASSWORD}@127.0.0.1:{}/app", free_port());
    let env = [("DATABASE_URL", url.as_str()), ("OSO_AUTH", KEY), ("RUST_LOG", "trace")];
    let store = Process::spawn(&["serve"], &[("OSO_AUTH", "e_0123456789_54321_anotherkey"), ("RUST_LOG", "trace")]);
    let process = app.run_with(&["--target", store.url()], &env);
    eventually_async(DEADLINE, "it says that the database is not there", async || {
        (process.status().await["state"] == "retrying").then_some(())
    })
    .await;
    assert_silent(&process).await;
    drop(process);

    let url = with_password(&app);
    let process = app.run_with(&["--target", store.url()], &[("DATABASE_URL", &url), ("OSO_AUTH", KEY), ("RUST_LOG", "trace")]);
    eventually_async(DEADLINE, "it says that the key is wrong", async || {
        process.status().await["target"]["problem"].is_string().then_some(())
    })
    .await;
    assert_silent(&process).await;
    assert_silent(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_errors() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    app.set_up();
    let config = app.config();
    let config = config.to_str().expect("UTF-8");
    let trace = ("RUST_LOG", "trace");

    let good = with_password(&app);
    for url in [
        format!("postgresql://{ROLE}:{PASSWORD}@127.0.0.1:not-a-port/app"),
        format!("postgresql://{ROLE}:{PASSWORD}@127.0.0.1:99999/app"),
        format!("postgresql://{ROLE}:{PASSWORD}@127.0.0.1/app/with@strange/{PASSWORD}?{PASSWORD}"),
        format!("{good}?sslmode={PASSWORD}"),
        format!("{good}?sslcert=/nonexistent&sslkey=/nonexistent&sslpassword={PASSPHRASE}"),
        format!("{good}?sslmode=verify-full"),
        format!("{good}?channel_binding=require"),
        format!("host=127.0.0.1 password='{PASSWORD}"),
    ] {
        for command in ["reconcile", "check", "explain", "setup"] {
            let output =
                Factsync::run(&[command, config], &[("DATABASE_URL", &url), ("OSO_AUTH", KEY), ("OSO_URL", "http://127.0.0.1:9"), trace]);
            assert_ne!(output.code(), 0, "{command} {url}: {output:?}");
            assert_output_hides(&output);
        }
    }
    for target in [format!("ftp://user:{IN_URL}@127.0.0.1"), format!("http://user:{IN_URL}@127.0.0.1:9"), format!("https://{IN_URL}@h:x")] {
        for command in [&["reconcile", config][..], &["status"], &["wait", "--position", "0/1"], &["check", config]] {
            let args: Vec<&str> = command.iter().copied().chain(["--target", &target]).collect();
            let output = Factsync::run(&args, &[("DATABASE_URL", &good), ("OSO_AUTH", KEY), trace]);
            assert_ne!(output.code(), 0, "{args:?}");
            assert_output_hides(&output);
        }
    }
    // A query that fails on a cell, where nobody asked for rows.
    let output = Factsync::run(&["check", config], &[("DATABASE_URL", &good), trace]);
    assert_output_hides(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_mongodb_stay_out_too() {
    let mongod = Mongod::shared().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mongo.yaml");
    let facts = "facts:\n  has_role(User:_):\n    db: app\n    collection: users\n    fields: [_id]\n    query:\n      find: {}\n";
    fs::write(&file, format!("version: 1\nsource: mongodb\n{facts}dbs:\n  app: {{connection_string: $MONGODB_URL}}\n")).expect("written");
    let config = file.to_str().expect("UTF-8");
    let address = mongod.uri("secrets").replace("mongodb://", &format!("mongodb://user:{PASSWORD}@"));
    let unescaped = address.replace(PASSWORD, &format!("{PASSWORD}/@{PASSWORD}"));
    for uri in [
        &address,
        &unescaped,
        &format!("{address}?tlsCertificateKeyFilePassword={PASSPHRASE}"),
        &format!("{address}?authMechanism={PASSWORD}"),
    ] {
        for command in ["check", "reconcile"] {
            let output = Factsync::run(&[command, config], &[("MONGODB_URL", uri), ("RUST_LOG", "trace")]);
            assert_ne!(output.code(), 0, "{output:?}");
            assert_output_hides(&output);
        }
    }
}

#[test]
fn secrets_are_in_no_debug_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path
    };
    let postgres = "version: 1\nsource: postgres\nfacts:\n  a(User:_): {db: x, query: SELECT 1}\ndbs:\n  x: {connection_string: $URL}\n";
    let mongo = "version: 1\nsource: mongodb\nfacts:\n  b(User:_): {db: y, collection: c, fields: [_id], query: {find: {}}}\n\
                 dbs:\n  y: {connection_string: $MONGO}\n";
    let files = [write("postgres.yaml", postgres), write("mongo.yaml", mongo)];
    let lookup = |name: &str| {
        Some(match name {
            "URL" => format!("postgresql://u:{PASSWORD}@h/d"),
            "MONGO" => format!("mongodb://u:{PASSWORD}@h/d"),
            _ => return None,
        })
    };
    let config = config::load(&files, &lookup).expect("valid");
    assert_eq!(config.sources.len(), 2);
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("REDACTED"), "{shown}");
    assert_hides("Debug", &shown);
    let key = factsync::target::oso::KeySource::Told(KEY.into());
    assert_hides("Debug", &format!("{key:?} {:?}", factsync::target::embedded::Access::new(KEY.into())));
    // A mistake in one file shows what stands there, and that may be a variable's value.
    let broken = write("broken.yaml", &postgres.replace("$URL", &format!("\"postgresql://u:{PASSWORD}@h/d?sslmode=wrong\"")));
    let problems = config::load(&[broken], &lookup).expect_err("a wrong sslmode");
    assert_hides("a problem", &format!("{problems} {problems:?}"));
}
