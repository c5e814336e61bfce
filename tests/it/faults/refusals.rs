//! Batches that are too large, and facts that are refused.

use serde_json::{Value, json};

use super::{
    DEADLINE, Scene, config,
    store::{Act, Request, Store, error},
};
use crate::support::{
    eventually_async,
    factsync::{DEVELOPMENT_KEY, Factsync},
};

/// Refuses every batch with a user whose name contains one of `words`.
fn refusing(status: u16, words: &'static [&'static str]) -> impl FnMut(&Request) -> Act + Send {
    move |request| {
        let refused = |fact: &str| words.iter().any(|word| fact.contains(word));
        match request.changes().iter().any(|(_, fact)| refused(fact)) {
            true => Act::Say(error(status, "argument \u{1b}[31mtype\nnot used\u{202e} in policy")),
            false => Act::Serve,
        }
    }
}

/// Refuses batches of more than `most`.
fn small(most: usize) -> impl FnMut(&Request) -> Act + Send {
    move |request| if request.changes().len() > most { Act::Say(error(413, "too many facts")) } else { Act::Serve }
}

fn parked(status: &Value) -> Vec<(String, String)> {
    let line = |parked: &Value| {
        assert_eq!(parked["reason"], json!("argument [31mtype not used in policy"));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        (text(&parked["op"]), text(&parked["fact"]["args"][0]["id"]))
    };
    status["parked"].as_array().expect("a list").iter().map(line).collect()
}

async fn metric(scene: &Scene, name: &str) -> f64 {
    let (_, text) = scene.process.get("/metrics").await;
    let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_goes_in_pieces_and_in_order() {
    let scene = Scene::start(&["a1", "a2", "a3", "a4", "a5"]).await;
    scene.store.obey(small(2));
    scene.write(&["b1", "b2", "b3", "b4"]);
    scene.recovered(&["b1", "b2", "b3", "b4"]).await;
    let applied = scene.store.applied();
    let first_insert = applied.iter().position(|(inserted, _)| *inserted).expect("an insert");
    assert_eq!((applied.len(), first_insert), (9, 5), "deletes first: {applied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_refused_facts_are_found_wherever_they_stand_and_the_rest_goes_on_in_order() {
    for status in [400, 409, 422] {
        let scene = Scene::start(&["a", "b"]).await;
        // Several commits become one queue behind a store that is broken first.
        scene.store.obey(|request| if request.writes() { Act::Say(error(503, "later")) } else { Act::Serve });
        for users in [&["a", "b", "bad1", "c"][..], &["b", "bad1", "c", "d"], &["b", "bad1", "bad2", "c", "d", "e"]] {
            let before = scene.process.status().await["sources"][0]["position"].clone();
            scene.write(users);
            eventually_async(DEADLINE, "the next state is read", async || {
                (scene.process.status().await["sources"][0]["position"] != before).then_some(())
            })
            .await;
        }
        scene.store.obey(refusing(status, &["bad"]));
        scene.holds(&["b", "c", "d", "e"]).await;
        let (applied, told) = (scene.store.applied(), scene.process.status().await);
        let grants: Vec<&str> = applied.iter().filter(|(inserted, _)| *inserted).map(|(_, user)| user.as_str()).collect();
        assert_eq!(grants, ["c", "d", "e"], "in the order of the commits");
        assert_eq!(applied.len(), 4, "and a's role is gone: {applied:?}");
        let insert = |user: &str| ("insert".to_owned(), user.to_owned());
        assert_eq!((parked(&told), &told["outbox"]["parked"]), (vec![insert("bad1"), insert("bad2")], &json!(2)), "{told:#}");
        // Grants are not what readiness is about, unless somebody says so.
        scene.process.wait_ready().await;
        scene.assert_repetitions();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_refused_revocation_is_never_ready() {
    let scene = Scene::start(&["a", "b", "c"]).await;
    scene.store.obey(refusing(400, &["\"b\""]));
    scene.write(&["a", "d"]);
    scene.holds(&["a", "b", "d"]).await;
    scene.not_ready("Access that should be gone is not").await;
    let told = scene.process.status().await;
    assert_eq!(parked(&told), [("delete".to_owned(), "b".to_owned())], "{told:#}");
    assert_eq!(metric(&scene, "factsync_parked_facts").await, 1.0);
    assert_eq!(metric(&scene, "factsync_parked_revocations").await, 1.0);
    // What the fact store takes goes on all the same.
    scene.write(&["d"]);
    scene.holds(&["b", "d"]).await;
    assert_eq!(scene.process.get("/readyz").await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_refused_grants_are_too_many_where_somebody_says_so() {
    let scene = Scene::start_with(&["a"], &["--max-parked", "1"], &[]).await;
    scene.store.obey(refusing(422, &["bad"]));
    scene.write(&["a", "b", "bad1"]);
    scene.holds(&["a", "b"]).await;
    scene.process.wait_ready().await;
    scene.write(&["a", "b", "bad1", "bad2"]);
    scene.not_ready("more than --max-parked 1").await;
    assert_eq!(metric(&scene, "factsync_parked_revocations").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_twenty_parked_facts_are_listed_and_all_are_counted() {
    let users: Vec<String> = (0..25).map(|n| format!("bad{n:02}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let store = Store::start(&[]).await;
    store.obey(refusing(400, &["bad"]));
    let scene = Scene::launch(store, &users, &[], &[]);
    eventually_async(DEADLINE, "all of them are parked", async || (scene.outbox().await["parked"] == json!(25)).then_some(())).await;
    assert_eq!(parked(&scene.process.status().await).len(), 20);
}

/// Waits until nothing is parked, and that is good enough for `/readyz`.
async fn nothing_parked(scene: &Scene) {
    eventually_async(DEADLINE, "nothing is parked any more", async || (scene.outbox().await["parked"] == json!(0)).then_some(())).await;
    assert_eq!(scene.process.status().await["parked"], json!([]));
    scene.process.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_revocation_is_tried_again_by_every_comparison_until_it_is_taken() {
    let scene = Scene::start_comparing(&["a", "b"]).await;
    scene.store.obey(refusing(400, &["\"b\""]));
    scene.write(&["a"]);
    let tries = || scene.store.attempts().iter().filter(|attempt| attempt.changes().iter().any(|(_, fact)| fact.contains("\"b\""))).count();
    eventually_async(DEADLINE, "it is tried again", async || (tries() >= 3).then_some(())).await;
    scene.not_ready("Access that should be gone is not").await;
    scene.store.behave();
    scene.holds(&["a"]).await;
    nothing_parked(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_grant_that_nobody_wants_any_more_leaves_the_list_at_once() {
    let scene = Scene::start_with(&["a"], &["--max-parked", "0"], &[]).await;
    let mut refuses = refusing(400, &["bad"]);
    scene.store.obey(move |request| match request.changes().iter().any(|(inserted, _)| *inserted) {
        true => refuses(request),
        false => Act::Serve,
    });
    scene.write(&["a", "bad"]);
    scene.not_ready("more than --max-parked 0").await;
    scene.write(&["a"]);
    nothing_parked(&scene).await;
    scene.holds(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reconcile_from_outside_repairs_leaves_the_list_with_the_next_comparison() {
    let scene = Scene::start_comparing(&["a", "b"]).await;
    // The run's own key may not revoke b; whoever repairs it may.
    let mut refuses = refusing(400, &["\"b\""]);
    scene.store.obey(move |request| if request.key == DEVELOPMENT_KEY { refuses(request) } else { Act::Serve });
    scene.write(&["a"]);
    scene.not_ready("Access that should be gone is not").await;
    let (config, url) = (config(&scene.folder), scene.store.url());
    let args = ["reconcile", &config, "--perform-updates", "--allow-removals", "--target", &url];
    let repaired = tokio::task::block_in_place(|| Factsync::run(&args, &[("OSO_AUTH", "e_0123456789_11111_another")]));
    repaired.expect_code(0);
    scene.holds(&["a"]).await;
    nothing_parked(&scene).await;
}
