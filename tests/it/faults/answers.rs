//! Answers that are no success, and some that only look like one.

use std::time::Duration;

use serde_json::json;

use super::{
    Scene,
    store::{Act, Store, answer, error, fact},
};

/// The time between the first two attempts.
fn pause(scene: &Scene) -> Duration {
    let attempts = scene.store.attempts();
    attempts[1].at - attempts[0].at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_store_is_given_the_seconds_it_asks_for() {
    let scene = Scene::start(&["a", "b"]).await;
    scene.store.script([Act::Say(answer(429, "Retry-After: 2\r\n", r#"{"message":"slow down"}"#))]);
    scene.write(&["b", "c"]);
    scene.not_ready("slow down").await;
    scene.recovered(&["b", "c"]).await;
    assert!(pause(&scene) >= Duration::from_secs(2), "{:?}", pause(&scene));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_store_that_names_no_seconds_is_asked_again_soon() {
    // Oso's own is always in seconds. A date needs two clocks that agree; one that is far off must not stop us.
    for header in ["", "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT\r\n"] {
        let scene = Scene::start(&["a", "b"]).await;
        scene.store.script([Act::Say(answer(429, header, ""))]);
        scene.write(&["b", "c"]);
        scene.recovered(&["b", "c"]).await;
        assert!(pause(&scene) < Duration::from_secs(10), "{header:?}: {:?}", pause(&scene));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_busy_every_other_time_is_compared_all_the_same() {
    let store = Store::start(&["a", "stale"]).await;
    let mut busy = false;
    store.obey(move |_| {
        busy = !busy;
        if busy { Act::Say(error(429, "slow down")) } else { Act::Serve }
    });
    let scene = Scene::launch(store, &["a", "b"], &[], &[]);
    scene.recovered(&["a", "b"]).await;
    assert_eq!(scene.process.status().await["last_reconcile"]["stale"], json!(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_store_is_sent_the_same_batch_until_it_answers() {
    let scene = Scene::start(&["a", "b"]).await;
    // Whether one of them had applied it is not known from outside.
    let broken = |status| Act::Say(answer(status, "", "<html>out of order</html>"));
    scene.store.script([broken(500), broken(502), Act::Apply(error(503, "too slow")), broken(504)]);
    scene.write(&["b", "c"]);
    scene.not_ready("out of order").await;
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.repetitions(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_is_not_the_apis_is_no_success() {
    let scene = Scene::start(&["a", "b"]).await;
    let says = |body| Act::Say(answer(200, "OsoOffset: elsewhere\r\n", body));
    let login = "<html>Welcome to our guest network</html>";
    let proxy = Act::Apply(answer(200, "OsoOffset: elsewhere\r\n", r#"{"status":"ok"}"#));
    scene.store.script([says(login), says(r#"{"mess"#), proxy, says("[]"), Act::Say(answer(204, "", ""))]);
    scene.write(&["b", "c"]);
    scene.not_ready("not Oso's facts API").await;
    scene.recovered(&["b", "c"]).await;
    assert_eq!(scene.repetitions(), 6);
    assert_ne!(scene.process.status().await["target"]["offset"], json!("elsewhere"));
    assert!(!scene.process.log().contains("guest network"), "it repeats what a stranger says");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_neither_the_batch_nor_the_key_elsewhere() {
    let (scene, elsewhere) = (Scene::start(&["a", "b"]).await, Store::start(&[]).await);
    let to = |status| Act::Say(answer(status, &format!("Location: {}/api/batch\r\n", elsewhere.url()), ""));
    scene.store.script([to(301), to(307)]);
    scene.write(&["b", "c"]);
    scene.not_ready("a redirect, which is not followed").await;
    scene.recovered(&["b", "c"]).await;
    assert!(elsewhere.requests().is_empty(), "{:?}", elsewhere.requests());
}

/// The fact store holds a fact that should not be there. A listing that does not show it, taken for a whole one, would leave it there.
#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_is_none_is_never_compared() {
    let store = Store::start(&["a", "stale"]).await;
    let whole = format!("[{}", fact("a"));
    let listings = [
        answer(200, "", "<html>Welcome to our guest network</html>"),
        // Both end where a fact does: with the length it should have, and without.
        answer(200, "", &whole),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{whole}").into_bytes(),
    ];
    let mut listings = listings.into_iter();
    store.obey(move |request| match request.path.starts_with("/api/facts?predicate=has_role&") {
        true => listings.next().map_or(Act::Serve, Act::Say),
        false => Act::Serve,
    });
    let scene = Scene::launch(store, &["a", "b"], &[], &[]);
    scene.recovered(&["a", "b"]).await;
    assert_eq!(scene.store.applied(), [(false, "stale".to_owned()), (true, "b".to_owned())], "something else was written");
    assert_eq!(scene.process.status().await["last_reconcile"]["stale"], json!(1));
}
