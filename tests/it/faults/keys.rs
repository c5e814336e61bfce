//! Keys that are rotated, read-only, or come from a file.

use serde_json::json;

use super::{
    DEADLINE, Scene,
    store::{Act, Request, Store, error},
};
use crate::support::{
    eventually_async,
    factsync::{Factsync, Process},
};

const FIRST: &str = "e_0123456789_11111_thefirstkey";
const SECOND: &str = "e_0123456789_22222_thesecondkey";

/// Takes requests under `key` only.
fn only(key: &'static str) -> impl FnMut(&Request) -> Act + Send {
    move |request| if request.key == key { Act::Serve } else { Act::Say(error(401, "invalid API key")) }
}

/// Takes reads only.
fn read_only(request: &Request) -> Act {
    if request.method == "GET" { Act::Serve } else { Act::Say(error(403, "this key is read-only")) }
}

fn assert_silent(process: &Process) {
    for key in [FIRST, SECOND] {
        assert!(!process.log().contains(key), "a key is in the log:\n{}", process.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_parks_nothing_and_loses_nothing() {
    let scene = Scene::start_with(&["a", "b"], &[], &[("OSO_AUTH", FIRST)]).await;
    scene.store.obey(only(SECOND));
    scene.write(&["b", "c"]);
    scene.not_ready("refused the key with 401: invalid API key").await;
    let status = scene.process.status().await;
    assert_eq!((&status["outbox"]["facts"], &status["outbox"]["parked"]), (&json!(2), &json!(0)), "{status:#}");
    assert_eq!(status["target"]["reachable"], json!(false));
    scene.store.obey(only(FIRST));
    scene.recovered(&["b", "c"]).await;
    assert_silent(&scene.process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_key_is_told_and_the_revocation_waits() {
    let scene = Scene::start_with(&["a", "b"], &[], &[("OSO_AUTH", FIRST)]).await;
    scene.store.obey(read_only);
    scene.write(&["b"]);
    scene.not_ready("refused the key with 403: this key is read-only").await;
    eventually_async(DEADLINE, "the revocation waits", async || (scene.outbox().await["facts"] == json!(1)).then_some(())).await;
    assert_eq!(scene.outbox().await["parked"], json!(0));
    scene.store.behave();
    scene.recovered(&["b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_key_at_the_start_writes_nothing_until_it_may() {
    let store = Store::start(&["a", "stale"]).await;
    store.obey(read_only);
    let scene = Scene::launch(store, &["a", "b"], &[], &[("OSO_AUTH", FIRST)]);
    eventually_async(DEADLINE, "the key is refused", async || {
        scene.process.status().await["target"]["problem"].as_str()?.contains("403").then_some(())
    })
    .await;
    assert_eq!(scene.process.get("/readyz").await.0, 503);
    assert!(scene.store.applied().is_empty());
    scene.store.behave();
    scene.recovered(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_in_a_file_is_rotated_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    let path = file.to_str().expect("UTF-8");
    std::fs::write(&file, format!("{FIRST}\n")).expect("written");
    let scene = Scene::start_with(&["a", "b"], &[], &[("OSO_AUTH_FILE", path), ("RUST_LOG", "debug")]).await;
    scene.store.obey(only(SECOND));
    scene.write(&["b", "c"]);
    scene.not_ready("OSO_AUTH_FILE").await;
    // As a mounted secret is replaced: at once, by another file.
    let next = folder.path().join("next");
    std::fs::write(&next, format!("{SECOND}\n")).expect("written");
    std::fs::rename(next, &file).expect("renamed");
    scene.recovered(&["b", "c"]).await;
    // From then on no request tries the old one first.
    scene.store.forget();
    scene.write(&["c"]);
    scene.recovered(&["c"]).await;
    let requests = scene.store.requests();
    assert!(!requests.is_empty() && requests.iter().all(|request| request.key == SECOND), "{requests:?}");
    assert_silent(&scene.process);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_rotated_in_time_costs_one_refusal_and_no_wait() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, FIRST).expect("written");
    let scene = Scene::start_with(&["a", "b"], &[], &[("OSO_AUTH_FILE", file.to_str().expect("UTF-8"))]).await;
    std::fs::write(&file, SECOND).expect("written");
    scene.store.obey(only(SECOND));
    scene.write(&["b", "c"]);
    scene.recovered(&["b", "c"]).await;
    assert!(!scene.process.log().contains("will retry"), "{}", scene.process.log());
    let refused = scene.store.requests().into_iter().filter(|request| request.key == FIRST).count();
    assert_eq!(refused, 1, "{:?}", scene.store.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_takes_its_key_from_a_file_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{FIRST}\n")).expect("written");
    let path = file.to_str().expect("UTF-8");
    let served = Process::spawn(&["serve"], &[("OSO_AUTH_FILE", path)]);
    assert_eq!(served.get("/api/facts").await.0, 401);
    let request = crate::support::factsync::client().get(format!("{}/api/facts", served.url())).bearer_auth(FIRST);
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    // And it takes an empty batch, which is how a run asks whether it takes writes.
    let quickstart = "examples/quickstart/quickstart.yaml";
    Factsync::run(&["reconcile", quickstart, "--perform-updates", "--target", served.url()], &[("OSO_AUTH_FILE", path)]).expect_code(0);
    assert_silent(&served);
}

#[test]
fn two_keys_or_a_file_that_is_none_are_misuse() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, missing) = (folder.path().join("key"), folder.path().join("missing"));
    std::fs::write(&file, SECOND).expect("written");
    let (file, missing) = (file.to_str().expect("UTF-8"), missing.to_str().expect("UTF-8"));
    let quickstart = "examples/quickstart/quickstart.yaml";
    for args in [&["run", quickstart][..], &["reconcile", quickstart], &["serve"]] {
        let both = Factsync::run(args, &[("OSO_AUTH", FIRST), ("OSO_AUTH_FILE", file)]).expect_code(2);
        assert!(both.stderr.starts_with("error: OSO_AUTH and OSO_AUTH_FILE are both set"), "{}", both.stderr);
        let none = Factsync::run(args, &[("OSO_AUTH_FILE", missing)]).expect_code(2);
        assert!(none.stderr.contains("OSO_AUTH_FILE") && none.stderr.contains(missing), "{}", none.stderr);
        assert!(!both.stderr.contains("e_0123456789") && both.stdout.is_empty() && none.stdout.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_needs_no_more_than_a_read_only_key() {
    let store = Store::start(&[]).await;
    store.obey(read_only);
    let (url, quickstart) = (store.url(), "examples/quickstart/quickstart.yaml");
    let looked = tokio::task::block_in_place(|| Factsync::run(&["reconcile", quickstart, "--target", &url], &[("OSO_AUTH", FIRST)]));
    looked.expect_code(0);
    let args = ["reconcile", quickstart, "--perform-updates", "--target", &url];
    let wrote = tokio::task::block_in_place(|| Factsync::run(&args, &[("OSO_AUTH", FIRST)])).expect_code(1);
    assert!(wrote.stderr.contains("403: this key is read-only"), "{}", wrote.stderr);
}
