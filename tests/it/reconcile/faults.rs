//! What fails is named, and the rest is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::IntoResponse,
};
use factsync::target::embedded::{Access, DEVELOPMENT_KEY, EmbeddedStore, Limits, router};
use mongodb::bson::doc;
use serde_json::Value;

use super::{Desk, assert_nothing_left, told, write};
use crate::support::{
    factsync::{Factsync, Process},
    free_port,
    mongod::Mongod,
    postgres::{Cluster, Major},
};

/// The error of the fact type `signature`, and how many facts are to be added to each of the others.
fn failed<'a>(report: &'a Value, signature: &str) -> (&'a str, Vec<usize>) {
    let entries = report["fact_types"].as_array().expect("entries");
    let (failed, others): (Vec<&Value>, Vec<&Value>) = entries.iter().partition(|entry| told(&entry["fact_type"]) == signature);
    assert!(failed[0].get("add").is_none(), "a fact type that failed has no changes: {report}");
    let adds = others.iter().map(|entry| entry["add"].as_array().unwrap_or_else(|| panic!("another one failed: {report}")).len());
    (failed[0]["error"].as_str().expect("an error"), adds.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_fails_while_it_runs_is_named_and_hides_no_other() {
    let (cluster, desk) = (Cluster::start(Major::V15), Desk::new());
    let database = cluster.database();
    cluster.psql(&database, "CREATE TABLE t (n int PRIMARY KEY); INSERT INTO t VALUES (1), (0), (2)");
    let yaml = "version: 1\nsource: postgres\nfacts:\n  first(N:_): {db: app, query: SELECT n FROM t}\n  \
                broken(N:_): {db: app, query: SELECT 1 / n FROM t ORDER BY n DESC}\n  \
                last(N:_): {db: app, query: SELECT n + 1 FROM t}\ndbs:\n  app: {connection_string: $DATABASE_URL}\n";
    let (config, url) = (desk.write("broken.yaml", yaml), cluster.url(&database));
    let output = desk.reconcile_in(&[("DATABASE_URL", &url)], &[&config, "--perform-updates"]).expect_code(1);
    let report = output.json();
    let (error, others) = failed(&report, "broken(N:null)");
    assert!(error.contains("\"broken(N:_)\"") && error.contains("division by zero"), "{error}");
    assert_eq!(others, [3, 3]);
    assert!(output.stderr.contains("broken(N:_): failed: "), "{}", output.stderr);
    assert_eq!(desk.stored("first").await.len() + desk.stored("last").await.len(), 6);
    assert!(desk.store.facts("broken").await.is_empty());
    // Neither drift nor a guard hides the failure.
    desk.reconcile_in(&[("DATABASE_URL", &url)], &[&config, "--exit-code"]).expect_code(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_mongodb_refuses_is_named_and_hides_no_other() {
    let (mongod, desk) = (Mongod::shared().await, Desk::new());
    let database = mongod.client().await.database("reconcile_faults");
    database.collection("c").insert_one(doc! {"_id": "1", "zero": 0}).await.expect("inserted");
    let yaml = "version: 1\nsource: mongodb\nfacts:\n  \
                planned(N:_): {db: app, collection: c, query: {aggregate: [{$nonsense: 1}]}, fields: [_id]}\n  \
                fine(N:_): {db: app, collection: c, query: {find: {}}, fields: [_id]}\ndbs:\n  app: {connection_string: $MONGODB_URL}\n";
    let (config, uri) = (desk.write("broken.yaml", yaml), mongod.uri("reconcile_faults"));
    let output = desk.reconcile_in(&[("MONGODB_URL", &uri)], &[&config, "--perform-updates"]).expect_code(1);
    let report = output.json();
    let (error, others) = failed(&report, "planned(N:null)");
    assert!(error.contains("\"planned(N:_)\"") && error.contains("$nonsense"), "{error}");
    assert_eq!(others, [1]);
    assert_eq!(desk.stored("fine").await, ["fine(N:1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_away_fails_its_own_fact_types_only() {
    let desk = Desk::new();
    let yaml =
        "version: 1\nsource: postgres\nfacts:\n  away(N:_): {db: app, query: SELECT 1}\ndbs:\n  app: {connection_string: $DATABASE_URL}\n";
    let (config, url) = (desk.write("away.yaml", yaml), format!("postgresql://postgres@127.0.0.1:{}/app", free_port()));
    let members = desk.members([("1", "red")]);
    let report = desk.reconcile_in(&[("DATABASE_URL", &url)], &[&config, &members, "--perform-updates"]).expect_code(1).json();
    let (error, others) = failed(&report, "away(N:null)");
    assert!(error.contains("source \"app\"") && error.contains("onnection refused"), "{error}");
    assert_eq!(others, [1]);
    assert_eq!(desk.store.facts("member").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fact_store_that_is_away_or_refuses_the_key_is_one_clear_error() {
    let desk = Desk::new();
    let quickstart = "examples/quickstart/quickstart.yaml";
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let begun = Instant::now();
    let away = Factsync::run(&["reconcile", quickstart, "--target", &nobody], &[]).expect_code(1);
    assert_eq!(away.stdout, "");
    assert_eq!(away.stderr.matches(&format!("error: could not reach the fact store at \"{nobody}\"")).count(), 1, "{}", away.stderr);
    assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?} to say so", begun.elapsed());

    let key = [("OSO_AUTH", "e_a_wrong_key")];
    let refused = Factsync::run(&["reconcile", quickstart, "--target", desk.store.url()], &key).expect_code(1);
    assert_eq!(refused.stdout, "");
    assert!(refused.stderr.contains("refused the key with 401") && refused.stderr.contains("Set OSO_AUTH"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("wrong_key"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_names_its_url_and_that_url_works_beside_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let csv = write(folder.path(), "badges.csv", "user\n1\n");
    let yaml = format!("version: 1\nsource: csv\nfacts:\n  has_badge(User:_):\n    path: {csv}\n    fields: [user]\n");
    let config = write(folder.path(), "badges.yaml", &yaml);
    let state = folder.path().join("state").to_str().expect("UTF-8").to_owned();
    let running = Process::spawn(&["run", "examples/quickstart/quickstart.yaml", "--state", &state], &[]);
    running.wait_ready().await;

    let locked = Factsync::run(&["reconcile", &config, "--state", &state], &[]).expect_code(1);
    assert_eq!(locked.stdout, "");
    let want =
        format!("the state directory \"{state}\" is in use by process {}. Its fact store answers at {}", running.pid(), running.url());
    assert!(locked.stderr.contains(&want) && locked.stderr.contains(&format!("--target {}", running.url())), "{}", locked.stderr);

    let beside = ["reconcile", &config, "--perform-updates", "--state", &state, "--target", running.url()];
    Factsync::run(&beside, &[]).expect_code(0);
    assert_eq!(running.facts("has_badge").await.len(), 1);
    assert_nothing_left(&Factsync::run(&beside, &[]).expect_code(0).json());
    assert!(running.terminate().success());

    // Nobody holds it any more: the embedded store has what was written through the URL.
    assert_nothing_left(&Factsync::run(&["reconcile", &config, "--state", &state], &[]).expect_code(0).json());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_free_plans_quota_is_kept_without_ever_being_refused() {
    let desk = Desk::with_limits("free");
    let users: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    let config = desk.members(users.iter().map(|user| (user.as_str(), "red")));
    let output = desk.reconcile(&[&config, "--perform-updates", "--plan", "free"]).expect_code(0);
    assert!(!output.stderr.contains("will retry"), "{}", output.stderr);
    assert!(output.stderr.contains("writing 60 changes takes at least"), "{}", output.stderr);
    assert_eq!(desk.store.facts("member").await.len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_every_other_request_ends_up_equal() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(&folder.path().join("facts.db")).expect("the store opens");
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    let busy = middleware::from_fn(move |request: Request, next: Next| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            if number.is_multiple_of(2) { (StatusCode::TOO_MANY_REQUESTS, "slow down").into_response() } else { next.run(request).await }
        }
    });
    let routes = router(store, Access::new(DEVELOPMENT_KEY.into()), Limits::Off).layer(busy);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await });

    let args = ["reconcile", "examples/quickstart/quickstart.yaml", "--perform-updates", "--target", &url];
    let first = Factsync::run(&args, &[]).expect_code(0);
    assert!(first.stderr.contains("429") && first.stderr.contains("will retry"), "{}", first.stderr);
    assert_nothing_left(&Factsync::run(&args, &[]).expect_code(0).json());
    assert!(requests.load(Ordering::SeqCst) >= 8, "two listings and a batch, twice each, and two listings again");
    server.abort();
}
