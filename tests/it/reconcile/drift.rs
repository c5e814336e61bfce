//! What differs is found exactly, told in the contract's form, and nothing else is touched.

use serde_json::{Value, json};

use super::{Desk, assert_nothing_left, fact};

fn member(user: &str, team: &str) -> Value {
    fact("member", &[&format!("User:{user}"), "String:parent", &format!("Team:{team}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_stale_facts_are_found_exactly_and_foreign_ones_stay() {
    let desk = Desk::new();
    let config = desk.members([("1", "red"), ("2", "red"), ("3", "blue")]);
    desk.reconcile(&[&config, "--perform-updates"]).expect_code(0);
    let foreign = [
        fact("member", &["User:1", "String:owner", "Team:red"]),
        fact("member", &["Robot:1", "String:parent", "Team:red"]),
        fact("member", &["User:1", "String:parent"]),
        fact("member", &["User:1", "String:parent", "Team:red", "Team:red"]),
        fact("guest", &["User:1", "String:parent", "Team:red"]),
    ];
    // An id that no query of ours would have written is still stale, and still removed.
    let stale = [member("2", "blue"), member("\"é\\\u{1f980}", "red")];
    let inserts = json!([foreign.as_slice(), stale.as_slice()].concat());
    desk.batch(json!([{"deletes": [member("1", "red"), member("3", "blue")]}, {"inserts": inserts}])).await;
    let strangers = desk.stored("guest").await;

    let want = format!(
        concat!(
            r#"{{"type":"facts","fact_types":[{{"fact_type":{{"predicate":"member","args":[{{"type":"User","id":null}},"#,
            r#"{{"type":"String","id":"parent"}},{{"type":"Team","id":null}}]}},"add":[{},{}],"remove":[{},{}]}}]}}"#,
            "\n"
        ),
        text("1", "red"),
        text("3", "blue"),
        text("\\\"é\\\\\u{1f980}", "red"),
        text("2", "blue"),
    );
    let found = desk.reconcile(&[&config]).expect_code(0);
    assert_eq!(found.stdout, want);
    assert_eq!(desk.reconcile(&[&config]).stdout, want, "looking changes nothing");

    desk.reconcile(&[&config, "--perform-updates"]).expect_code(0);
    assert_nothing_left(&desk.reconcile(&[&config]).json());
    let left = desk.store.facts("member").await;
    assert!(foreign[..4].iter().all(|fact| left.contains(fact)), "{left:?}");
    assert_eq!(left.len(), 3 + 4, "{left:?}");
    assert_eq!(desk.stored("guest").await, strangers);
}

/// A fact's JSON, with the contract's keys in the contract's order.
fn text(user: &str, team: &str) -> String {
    format!(
        concat!(
            r#"{{"predicate":"member","args":[{{"type":"User","id":"{}"}},{{"type":"String","id":"parent"}},"#,
            r#"{{"type":"Team","id":"{}"}}]}}"#
        ),
        user, team
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_thousand_changes_are_counted_and_fewer_on_request() {
    let desk = Desk::new();
    let users: Vec<String> = (0..1_001).map(|n| n.to_string()).collect();
    let rows = |count: usize| users[..count].iter().map(|user| (user.as_str(), "red"));
    let counts = |adds, removes| {
        format!(
            concat!(
                r#"{{"type":"counts","fact_types":[{{"fact_type":{{"predicate":"member","args":[{{"type":"User","id":null}},"#,
                r#"{{"type":"String","id":"parent"}},{{"type":"Team","id":null}}]}},"add_count":{},"remove_count":{}}}]}}"#,
                "\n"
            ),
            adds, removes
        )
    };
    let config = desk.members(rows(1_000));
    let listed = desk.reconcile(&[&config]).expect_code(0).json();
    assert_eq!(listed["fact_types"][0]["add"].as_array().expect("a list").len(), 1_000);
    assert_eq!(desk.reconcile(&[&config, "--summarized-output"]).expect_code(0).stdout, counts(1_000, 0));

    let config = desk.members(rows(1_001));
    assert_eq!(desk.reconcile(&[&config, "--perform-updates"]).expect_code(0).stdout, counts(1_001, 0));
    assert_eq!(desk.reconcile(&[&config, "--summarized-output"]).expect_code(0).stdout, counts(0, 0));
    assert_eq!(desk.store.facts("member").await.len(), 1_001);

    let config = desk.members(rows(2));
    assert_eq!(desk.reconcile(&[&config, "--summarized-output"]).expect_code(0).stdout, counts(0, 999));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_make_no_fact_are_told_and_what_they_once_made_is_removed() {
    let desk = Desk::new();
    let config = desk.members([("1", "red"), ("", "red"), ("*", "red"), ("1", "red"), (&"x".repeat(600), "red")]);
    desk.batch(json!([{"inserts": [member("gone", "red")]}])).await;
    let output = desk.reconcile(&[&config, "--perform-updates"]).expect_code(0);
    let want = "1 wanted, 1 stored, 1 to add, 1 to remove, rows that make no fact: \
                1 because an argument is NULL, 1 because an id is \"*\", 1 because an id is longer than 512 bytes";
    assert!(output.stderr.contains(want), "{}", output.stderr);
    assert_eq!(desk.stored("member").await, ["member(User:1, String:parent, Team:red)"]);
}
