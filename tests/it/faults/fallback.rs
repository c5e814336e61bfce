//! A fallback node in the place of the fact store: it answers reads, up to half an hour late, and takes no writes.

use serde_json::json;

use super::{
    DEADLINE, Scene,
    store::{Act, Request, Store, answer, error, fact},
};
use crate::support::eventually_async;

/// A fallback node that holds `users`, as they were half an hour ago.
fn fallback(users: &[&str], refusal: u16) -> impl FnMut(&Request) -> Act + Send + use<> {
    let facts: Vec<String> = users.iter().map(|user| fact(user)).collect();
    let listing = format!("[{}]", facts.join(","));
    move |request| match request.method.as_str() {
        "GET" if request.path.contains("predicate=has_role&") => Act::Say(answer(200, "", &listing)),
        "GET" => Act::Say(answer(200, "", "[]")),
        _ => Act::Say(error(refusal, "no such operation")),
    }
}

/// The fact store holds `drift`, which the fallback node does not know. Whoever compared with the node would take the fact store for
/// corrected, and leave access that should be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_a_fallback_node_leads_to_nothing() {
    for refusal in [404, 405] {
        let store = Store::start(&["a", "drift"]).await;
        store.obey(fallback(&["a", "gone"], refusal));
        let scene = Scene::launch(store, &["a", "b"], &[], &[]);
        eventually_async(DEADLINE, "it says that this is no fact store", async || {
            scene.process.status().await["target"]["problem"].as_str()?.contains("fallback node").then_some(())
        })
        .await;
        let status = scene.process.status().await;
        assert!(status["last_reconcile"].is_null() && status["outbox"]["facts"] == json!(0), "{status:#}");
        assert_eq!(scene.process.get("/readyz").await.0, 503);
        scene.store.behave();
        scene.recovered(&["a", "b"]).await;
        let applied = scene.store.applied();
        assert_eq!(applied, [(false, "drift".to_owned()), (true, "b".to_owned())], "what the node said was written");
    }
}

/// It takes over between the question whether writes are taken and the listing, and gives way after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_node_that_takes_over_for_the_listing_alone_is_noticed() {
    let store = Store::start(&["a", "drift"]).await;
    let (mut node, mut listed) = (fallback(&["a"], 405), false);
    let mut questions_after = 0;
    store.obey(move |request| {
        let is_node = questions_after == 0;
        if request.path.contains("predicate=has_role&") && is_node {
            listed = true;
            return node(request);
        }
        if listed && request.method == "POST" && is_node {
            questions_after += 1;
            return node(request);
        }
        Act::Serve
    });
    let scene = Scene::launch(store, &["a", "b"], &[], &[]);
    scene.recovered(&["a", "b"]).await;
    assert!(scene.process.log().contains("fallback node"), "{}", scene.process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_node_that_takes_over_delays_and_changes_nothing() {
    let scene = Scene::start(&["a", "b"]).await;
    scene.store.obey(fallback(&["a", "b"], 405));
    scene.write(&["b", "c"]);
    scene.not_ready("not Oso's facts API").await;
    let outbox = scene.outbox().await;
    assert_eq!((&outbox["facts"], &outbox["parked"]), (&json!(2), &json!(0)), "{outbox}");
    scene.store.behave();
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.store.applied(), [(false, "a".to_owned()), (true, "c".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_node_that_takes_over_is_told_before_a_revocation_needs_it() {
    let scene = Scene::start(&["a"]).await;
    scene.store.obey(fallback(&["a"], 404));
    scene.not_ready("fallback node").await;
    scene.store.behave();
    scene.write(&["b"]);
    scene.recovered(&["b"]).await;
}
