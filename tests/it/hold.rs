//! Accidents at a source, and the person who decides: what is held, shown, released and dropped, over kills, outages and races.
//!
//! The oracle is the source: what its query returns is what the fact store has in the end, and what it had before the accident is there
//! until somebody says otherwise.

mod commands;
mod deaths;
mod sources;

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    app::{App, fact_type},
    eventually_async,
    factsync::{DEVELOPMENT_KEY, Factsync, Output, Process, client},
};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE repository (id int PRIMARY KEY);
INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 40) i;
INSERT INTO repository SELECT i FROM generate_series(1, 40) i";

const ROLE: &str = "has_role(User:_, String:_)";
const PUBLIC: &str = "is_public(Repository:_)";
const FACTS: [(&str, &str); 2] = [(ROLE, "SELECT id, role FROM member"), (PUBLIC, "SELECT id FROM repository")];
const LIMITS: &str = "max_removals: {count: 4, percent: 20}";

/// `factsync hold ARGS` of `process`.
fn hold(process: &Process, args: &[&str]) -> Output {
    let address = process.url().trim_start_matches("http://");
    Factsync::run(&[&["hold"], args, &["--listen", address]].concat(), &[])
}

/// Asks `process` to do `what` with the hold `id`, as somebody with the key; the status.
async fn post(url: &str, id: u64, what: &str) -> Result<u16, reqwest::Error> {
    let request = client().post(format!("{url}/v1/holds/{id}/{what}")).bearer_auth(DEVELOPMENT_KEY);
    Ok(request.send().await?.status().as_u16())
}

/// What `/v1/status` says is held.
async fn held(process: &Process) -> Vec<Value> {
    process.status().await["held"].as_array().expect("a list").clone()
}

/// How many removals are in each hold of `signature`.
async fn removals(process: &Process, signature: &str) -> Vec<u64> {
    let held = held(process).await;
    held.iter().filter(|hold| hold["fact_type"] == signature).map(|hold| hold["removals"].as_u64().expect("a number")).collect()
}

async fn first(process: &Process) -> u64 {
    held(process).await[0]["id"].as_u64().expect("a number")
}

async fn count(process: &Process, predicate: &str) -> usize {
    process.facts(predicate).await.len()
}

/// Waits until everything that is to be sent was.
async fn delivered(process: &Process) {
    eventually_async(DEADLINE, "everything is delivered", async || {
        let status = process.status().await;
        (status["outbox"]["facts"] == 0 && status["target"]["reachable"] == true).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_an_accident_in_one_statement_waits_over_a_restart_and_is_released() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let mut process = app.started(&[]).await;
    for accident in ["DELETE FROM member", "TRUNCATE member", "UPDATE member SET role = 'admin'", "DELETE FROM member WHERE id <> 1"] {
        app.commit(
            &process,
            "INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 40) i ON CONFLICT (id) DO UPDATE SET role = 'reader'",
        )
        .await;
        hold(&process, &["release", "--all"]);
        delivered(&process).await;
        app.assert_equal(&process, "before the accident").await;

        let before = count(&process, "has_role").await;
        app.commit(&process, accident).await;
        let waits = removals(&process, ROLE).await;
        assert!(waits.len() == 1 && waits[0] >= 39, "{accident}: {waits:?}");
        assert!(count(&process, "has_role").await >= before, "{accident}: something is gone");
        let shown = held(&process).await.remove(0);
        assert!(
            shown["facts"] == 40 && shown["source"] == "app" && shown["since"].is_string() && shown["position"].is_string(),
            "{shown:#}"
        );
        assert_eq!(shown["why"], "one change removes more than max_removals {count: 4, percent: 20}", "{accident}");
        assert!(!shown.to_string().contains("reader"), "no cell value: {shown:#}");
        // Small revocations and grants go on, of this fact type and of the other.
        app.commit(&process, "INSERT INTO member VALUES (90, 'owner'), (91, 'owner'); DELETE FROM repository WHERE id <= 2").await;
        app.commit(&process, "DELETE FROM member WHERE id = 91").await;
        assert_eq!(count(&process, "is_public").await, 38, "{accident}");
        assert_eq!(removals(&process, ROLE).await, waits, "{accident}");
        app.sql("INSERT INTO repository VALUES (1), (2)").await;

        // Over a restart, whichever way the process ended.
        process.kill();
        process = app.started(&[]).await;
        app.settle(&process).await;
        assert_eq!(removals(&process, ROLE).await, waits, "{accident}: after a restart");
        let id = first(&process).await;
        let released = hold(&process, &["release", &id.to_string()]).expect_code(0).json();
        assert_eq!((&released["released"][0]["id"], &released["released"][0]["removals"]), (&id.into(), &waits[0].into()));
        assert_eq!(held(&process).await, Vec::<Value>::new());
        delivered(&process).await;
        app.assert_equal(&process, accident).await;
        let facts = fact_type(&process.status().await, ROLE)["facts"].as_u64().expect("a number");
        assert_eq!(facts as usize, count(&process, "has_role").await, "{accident}: counted as it is");
        app.commit(&process, "DELETE FROM member WHERE id = 90").await;
    }
}

/// As a program that deletes object by object does.
#[tokio::test(flavor = "multi_thread")]
async fn guarded_row_by_row_in_many_commits_is_one_hold_and_lets_no_more_through_than_the_limit() {
    let app = App::start(SCHEMA, &FACTS, "max_removals: {count: 1000, percent: 20}").await;
    app.sql("INSERT INTO member SELECT i, 'reader' FROM generate_series(41, 6000) i").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    // Some of them, each seen for itself.
    for id in 1..=40 {
        app.commit(&process, &format!("DELETE FROM member WHERE id = {id}")).await;
    }
    assert_eq!(count(&process, "has_role").await, 5_960, "revocations one by one go at once");
    app.sql("DO $$ BEGIN FOR i IN 41..5040 LOOP DELETE FROM member WHERE id = i; COMMIT; END LOOP; END $$").await;
    app.settle(&process).await;
    let left = count(&process, "has_role").await;
    assert!(left >= 4_800, "a fifth of 6000 may go, and {} went", 6_000 - left);
    assert_eq!(removals(&process, ROLE).await.iter().sum::<u64>() as usize, left - 960);
    let holds = removals(&process, ROLE).await.len();
    assert!(holds <= 8, "a flood is one hold, and one for each step that is an accident by itself: {holds}");
    app.commit(&process, "INSERT INTO member VALUES (7000, 'owner')").await;
    assert_eq!(count(&process, "has_role").await, left + 1, "a grant in the middle of it");

    hold(&process, &["release", "--all"]).expect_code(0);
    delivered(&process).await;
    app.assert_equal(&process, "released").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_second_larger_accident_is_another_hold_and_is_not_let_go_with_the_first() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id <= 10").await;
    let one = first(&process).await;
    app.commit(&process, "TRUNCATE member").await;
    assert_eq!(removals(&process, ROLE).await, [10, 30]);
    hold(&process, &["release", &one.to_string()]).expect_code(0);
    delivered(&process).await;
    assert_eq!((count(&process, "has_role").await, removals(&process, ROLE).await), (30, vec![30]));
    // The table is restored from a backup: the rest of it was never gone.
    app.commit(&process, "INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 40) i").await;
    assert_eq!(held(&process).await, Vec::<Value>::new());
    app.assert_equal(&process, "restored").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_what_is_dropped_stays_until_a_comparison_finds_it_and_judges_it_again() {
    let app = App::start(SCHEMA, &FACTS, &format!("{LIMITS}\n  reconcile_every: 1s")).await;
    let process = app.started(&[]).await;
    app.commit(&process, "TRUNCATE member").await;
    let id = first(&process).await;
    hold(&process, &["drop", &id.to_string()]).expect_code(0);
    assert_eq!(count(&process, "has_role").await, 40, "nothing is sent");
    eventually_async(DEADLINE, "a comparison holds them again", async || {
        let held = held(&process).await;
        let again = held.first()?;
        assert_eq!((&again["removals"], &again["facts"]), (&40.into(), &40.into()));
        assert!(again["id"].as_u64() > Some(id) && again["why"].as_str()?.starts_with("a comparison would remove"), "{again:#}");
        Some(())
    })
    .await;
    assert_eq!(count(&process, "has_role").await, 40);
    hold(&process, &["release", "--all"]).expect_code(0);
    delivered(&process).await;
    app.assert_equal(&process, "released in the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_rows_that_come_back_while_two_people_release_are_not_revoked() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    for round in 0..6 {
        app.commit(&process, "DELETE FROM member").await;
        let id = first(&process).await;
        let url = process.url();
        let back = "INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 40, 2) i";
        let (one, other, ()) = tokio::join!(post(url, id, "release"), post(url, id, "release"), app.sql(back));
        let mut codes = [one.expect("an answer"), other.expect("an answer")];
        codes.sort_unstable();
        assert_eq!(codes, [200, 404], "round {round}: one of two releases it");
        app.settle(&process).await;
        delivered(&process).await;
        assert_eq!(held(&process).await, Vec::<Value>::new(), "round {round}");
        app.assert_equal(&process, &format!("round {round}")).await;
        app.commit(&process, "INSERT INTO member SELECT i, 'reader' FROM generate_series(2, 40, 2) i").await;
    }
}
