//! A fallback node in the place of the fact store: it answers reads, up to half an hour late, and takes no writes.

use serde_json::json;

use super::{
    Scene,
    store::{Act, Request, Store, answer, error, fact},
};

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

/// The fact store holds `drift`, which the fallback node does not know. Whoever took the comparison with the node for one with the fact
/// store would leave access that should be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_a_fallback_node_is_not_the_last_word() {
    for refusal in [404, 405] {
        let store = Store::start(&["a", "drift"]).await;
        store.obey(fallback(&["a", "gone"], refusal));
        let scene = Scene::launch(store, &["a", "b"], &[], &[]);
        scene.not_ready("not Oso's facts API").await;
        assert_eq!(scene.outbox().await["parked"], json!(0));
        scene.store.behave();
        scene.recovered(&["a", "b"]).await;
        let applied = scene.store.applied();
        assert!(applied.iter().all(|(inserted, user)| *inserted == (user == "b")), "what is not desired was written: {applied:?}");
        assert!(applied.contains(&(false, "drift".to_owned())), "{applied:?}");
    }
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
