//! Spellings, exit codes and guards.

use serde_json::json;

use super::{Desk, assert_nothing_left, fact, summary};
use crate::support::factsync::Factsync;

#[tokio::test(flavor = "multi_thread")]
async fn flags_stand_before_or_after_the_file_and_osos_spelling_works() {
    let desk = Desk::new();
    let config = desk.members([("1", "red")]);
    let target = desk.store.url();
    let want = desk.reconcile(&[&config]).expect_code(0).stdout;
    for args in [
        &["experimental", "reconcile", &config, "--json", "--target", target][..],
        &["experimental", "reconcile", "--target", target, "--json", &config],
        &["--target", target, "experimental", "reconcile", "--json", &config],
        &["--target", target, "reconcile", "--json", &config],
        &["reconcile", &config, "--target", target],
    ] {
        assert_eq!(Factsync::run(args, &[]).expect_code(0).stdout, want, "{args:?}");
    }
    let args = ["experimental", "reconcile", "--perform-updates", "--exit-code", "--summarized-output", &config, "--target", target];
    Factsync::run(&args, &[]).expect_code(3);
    assert_eq!(desk.store.facts("member").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn oso_url_and_oso_auth_say_where_facts_go_as_for_osos_cli() {
    let desk = Desk::new();
    let config = desk.members([("1", "red")]);
    let env = [("OSO_URL", desk.store.url()), ("OSO_AUTH", crate::support::factsync::DEVELOPMENT_KEY)];
    Factsync::run(&["reconcile", &config, "--perform-updates"], &env).expect_code(0);
    assert_eq!(desk.store.facts("member").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_has_an_exit_code_only_on_request_and_only_when_there_is_some() {
    let desk = Desk::new();
    let config = desk.members([("1", "red")]);
    desk.reconcile(&[&config]).expect_code(0);
    desk.reconcile(&["--exit-code", &config]).expect_code(3);
    desk.reconcile(&["--exit-code", "--perform-updates", &config]).expect_code(3);
    desk.reconcile(&["--exit-code", &config]).expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_changes_than_allowed_are_reported_and_none_is_written() {
    let desk = Desk::new();
    desk.batch(json!([{"inserts": [fact("member", &["User:9", "String:parent", "Team:red"])]}])).await;
    let config = desk.members([("1", "red"), ("2", "red")]);
    let before = desk.stored("member").await;

    let refused = desk.reconcile(&["--max-changes", "2", "--perform-updates", &config]).expect_code(4);
    assert_eq!(summary(&refused.json())[0], ("member(User:null, String:parent, Team:null)".to_owned(), 2, 1));
    assert!(refused.stderr.contains("3 changes are more than --max-changes 2: nothing was written"), "{}", refused.stderr);
    assert_eq!(desk.stored("member").await, before);

    desk.reconcile(&["--max-changes", "2", &config]).expect_code(0);
    desk.reconcile(&["--max-changes", "3", "--perform-updates", &config]).expect_code(0);
    assert_nothing_left(&desk.reconcile(&["--max-changes", "0", "--perform-updates", &config]).expect_code(0).json());
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_removals_are_held_while_adds_go_and_a_person_can_let_them_go() {
    let desk = Desk::new();
    desk.members([("1", "red"), ("2", "red"), ("3", "red"), ("4", "red")]);
    let config = desk.write("guarded.yaml", &guarded(&desk));
    desk.reconcile(&[&config, "--perform-updates"]).expect_code(0);

    desk.members([("1", "red"), ("2", "red"), ("3", "red"), ("5", "red")]);
    desk.reconcile(&[&config, "--perform-updates"]).expect_code(0);
    assert_eq!(desk.store.facts("member").await.len(), 4, "one removal is below the limit");

    desk.members([("1", "red"), ("6", "red")]);
    // Who only looks removes nothing, so nothing is refused.
    assert_eq!(summary(&desk.reconcile(&[&config]).expect_code(0).json())[0].2, 3);
    let held = desk.reconcile(&[&config, "--perform-updates"]).expect_code(4);
    assert_eq!(summary(&held.json())[0].2, 3, "what is held is reported");
    let want = "member(User:_, String:parent, Team:_): 3 removals of 4 facts are held, more than max_removals allows";
    assert!(held.stderr.contains(want) && held.stderr.contains("--allow-removals lets them go"), "{}", held.stderr);
    assert_eq!(desk.store.facts("member").await.len(), 5, "the add went, no removal did");

    desk.reconcile(&[&config, "--perform-updates", "--allow-removals"]).expect_code(0);
    assert_eq!(desk.store.facts("member").await.len(), 2);
}

/// The configuration of [`Desk::members`] with a small `max_removals`.
fn guarded(desk: &Desk) -> String {
    let plain = std::fs::read_to_string(desk.folder.path().join("members.yaml")).expect("written before");
    format!("{plain}sync:\n  max_removals: {{count: 1, percent: 10}}\n")
}
