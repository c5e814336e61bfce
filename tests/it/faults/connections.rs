//! Connections that break, stall or are refused, before and after a batch was applied.

use std::sync::Arc;

use serde_json::json;
use tokio::sync::Notify;

use super::{
    DEADLINE, Scene,
    store::{Act, answer},
};
use crate::support::eventually_async;

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_cut_off_is_sent_again_whether_it_was_applied_or_not() {
    let scene = Scene::start(&["a", "b"]).await;
    let mut half = answer(200, "", r#"{"message":"ok"}"#);
    half.truncate(half.len() - 4);
    let head = b"HTTP/1.1 200 O".to_vec();
    scene.store.script([Act::Cut { applied: false }, Act::Cut { applied: true }, Act::Apply(head), Act::Apply(half)]);
    scene.write(&["b", "c"]);
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.repetitions(), 5);
    assert_eq!(scene.store.applied(), [(false, "a".to_owned()), (true, "c".to_owned())], "a repetition changed something");
}

/// The client's patience, half a minute, is part of what is tested.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_never_answers_is_sent_the_same_batch_again() {
    let scene = Scene::start(&["a", "b"]).await;
    scene.store.script([Act::Silence]);
    scene.write(&["b", "c"]);
    let attempted = async || (scene.store.attempts().len() == 2).then_some(());
    eventually_async(DEADLINE, "the client's patience ends", attempted).await;
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.repetitions(), 2);
    assert!(scene.process.log().contains("could not reach the fact store"), "{}", scene.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_an_answer() {
    let scene = Scene::start(&["a", "b"]).await;
    scene.store.script([Act::Dribble]);
    scene.write(&["b", "c"]);
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.repetitions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_overtakes_a_batch_that_is_not_answered() {
    let scene = Scene::start(&["a", "b"]).await;
    let release = Arc::new(Notify::new());
    scene.store.script([Act::Hold(release.clone())]);
    scene.write(&["a", "b", "c"]);
    eventually_async(DEADLINE, "the grant is on its way", async || (scene.store.attempts().len() == 1).then_some(())).await;
    scene.write(&["a", "b"]);
    eventually_async(DEADLINE, "the revocation waits behind it", async || (scene.outbox().await["facts"] == json!(2)).then_some(())).await;
    assert_eq!(scene.store.attempts().len(), 1);
    release.notify_one();
    scene.recovered(&["a", "b"]).await;
    assert_eq!(scene.store.applied(), [(true, "c".to_owned()), (false, "c".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_finds_everything_when_it_is_back() {
    let scene = Scene::start(&["a", "b"]).await;
    scene.store.stop().await;
    // More than one commit: a grant that ends while it waits, and a revocation.
    for users in [&["a", "b", "c"][..], &["a", "b"], &["b"], &["b", "d"]] {
        let before = scene.process.status().await["sources"][0]["position"].clone();
        scene.write(users);
        eventually_async(DEADLINE, "the source is followed all the same", async || {
            (scene.process.status().await["sources"][0]["position"] != before).then_some(())
        })
        .await;
    }
    scene.not_ready("could not reach the fact store").await;
    assert_eq!(scene.process.status().await["target"]["reachable"], json!(false));
    scene.store.resume().await;
    scene.recovered(&["b", "d"]).await;
    let applied = scene.store.applied();
    let position = |change: (bool, &str)| applied.iter().position(|(inserted, user)| (*inserted, user.as_str()) == change);
    assert!(position((false, "a")).is_some() && position((false, "a")) < position((true, "d")), "{applied:?}");
    assert!(position((true, "c")).is_none() || position((true, "c")) < position((false, "c")), "{applied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_is_told_before_there_is_something_to_send() {
    let scene = Scene::start(&["a"]).await;
    scene.store.stop().await;
    scene.not_ready("could not reach the fact store").await;
    scene.store.resume().await;
    scene.write(&["b"]);
    scene.recovered(&["b"]).await;
}
