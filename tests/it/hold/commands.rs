//! What is asked and answered: who may, what is shown, and exit codes.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_listed_for_everybody_and_ended_by_whoever_has_the_key() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let env = [("DATABASE_URL", app.url()), ("OSO_AUTH", "key-of-this-test".to_owned())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let process = app.run_with(&["--target", "embedded"], &env);
    process.wait_ready().await;
    let nothing = hold(&process, &["list"]).expect_code(0).json();
    assert_eq!(nothing, serde_json::json!({ "held": [] }));
    app.commit(&process, "DELETE FROM member").await;
    assert_eq!(hold(&process, &["list"]).expect_code(0).json()["held"], process.status().await["held"]);
    let (_, metrics) = process.get("/metrics").await;
    assert!(metrics.contains(&format!("factsync_held_removals{{fact_type=\"{ROLE}\"}} 40")), "{metrics}");

    // With the wrong key, which is the development key, nothing is shown and nothing is changed.
    let id = first(&process).await;
    for what in ["release", "drop"] {
        let refused = hold(&process, &[what, &id.to_string()]).expect_code(1);
        assert!(refused.stderr.contains("the API key is missing or wrong"), "{}", refused.stderr);
        let bare = client().post(format!("{}/v1/holds/{id}/{what}", process.url())).send().await.expect("an answer");
        assert_eq!(bare.status().as_u16(), 401);
    }
    assert!(hold(&process, &["list", "--facts"]).expect_code(1).stdout.is_empty());
    assert_eq!(process.get(&format!("/v1/holds/{id}")).await.0, 401);
    assert_eq!(removals(&process, ROLE).await, [40]);

    let address = process.url().trim_start_matches("http://");
    let keyed = |args: &[&str]| Factsync::run(&[args, &["--listen", address]].concat(), &[("OSO_AUTH", "key-of-this-test")]);
    let facts = keyed(&["hold", "list", "--facts"]).expect_code(0).json();
    let listed = facts["held"][0]["listed"].as_array().expect("a list");
    assert_eq!((listed.len(), &listed[0]["predicate"], &listed[0]["args"][1]["id"]), (40, &"has_role".into(), &"reader".into()));
    keyed(&["hold", "release", &id.to_string()]).expect_code(0);
    // Once.
    let gone = keyed(&["hold", "release", &id.to_string()]).expect_code(1);
    assert!(gone.stderr.contains(&format!("there is no hold {id}: it was released")), "{}", gone.stderr);
    let nothing = keyed(&["hold", "release", "--all"]).expect_code(1);
    assert!(nothing.stderr.contains("nothing is held, so there is nothing to release"), "{}", nothing.stderr);
    assert!(!process.log().contains("key-of-this-test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_refused_by_name() {
    let serve = Process::spawn(&["serve"], &[]);
    for args in [&["list"][..], &["release", "1"], &["drop", "--all"]] {
        let refused = hold(&serve, args).expect_code(1);
        assert!(refused.stderr.contains("is a fact store alone"), "{}", refused.stderr);
    }
    hold(&serve, &["release"]).expect_code(2);
    hold(&serve, &["release", "1", "--all"]).expect_code(2);
    hold(&serve, &["release", "one"]).expect_code(2);
    let nobody = Factsync::run(&["hold", "list", "--listen", "127.0.0.1:1"], &[]).expect_code(1);
    assert!(nobody.stderr.contains("Is `factsync run` running there?"), "{}", nobody.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_none_is_not_found() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    for id in ["7", "-1", "x", "99999999999999999999", "1%0d%0aX"] {
        let path = format!("/v1/holds/{id}");
        let (status, body) = process.get(&path).await;
        assert!(status == 404 && body.contains("there is no hold"), "{path}: {status} {body}");
        let request = client().post(format!("{}{path}/release", process.url())).bearer_auth(DEVELOPMENT_KEY);
        assert_eq!(request.send().await.expect("an answer").status().as_u16(), 404, "{path}");
    }
    let request = client().get(format!("{}/v1/holds/1/release", process.url())).bearer_auth(DEVELOPMENT_KEY);
    assert_eq!(request.send().await.expect("an answer").status().as_u16(), 405, "reading changes nothing");
}

/// What a run without delivery holds is shown, and nobody can send it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_releases_nothing() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member").await;
    let id = first(&process).await;
    assert!(process.terminate().success());
    let process = app.run(&["--shadow"]);
    let refused = hold(&process, &["release", &id.to_string()]).expect_code(1);
    assert!(refused.stderr.contains("runs with --shadow and writes nothing"), "{}", refused.stderr);
    assert_eq!(removals(&process, ROLE).await, [40]);
}
