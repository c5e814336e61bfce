//! The engine against a scripted source: what happens when it goes away at the worst moment.
//!
//! The source is played by the test, event by event, so that every order of things is the one that is meant. Its tables are two lists of
//! rows with a moment each. One view has those whose moment has not come ("live"), the other those whose moment has come, each with what
//! the source computes of it ("begun"). The source's clock says 0 when it is first asked.

mod source;

use futures_util::FutureExt;

use crate::source::{Event, Role};

use source::{BEGUN, LIVE, Play, at, commit, loaded, read};

/// Moments half a second apart: what is seen at one of them is long over before the tenth.
const MOMENTS: [(&str, &str); 20] = [
    ("1", "00.5"),
    ("2", "01"),
    ("3", "01.5"),
    ("4", "02"),
    ("5", "02.5"),
    ("6", "03"),
    ("7", "03.5"),
    ("8", "04"),
    ("9", "04.5"),
    ("10", "05"),
    ("11", "05.5"),
    ("12", "06"),
    ("13", "06.5"),
    ("14", "07"),
    ("15", "07.5"),
    ("16", "08"),
    ("17", "08.5"),
    ("18", "09"),
    ("19", "09.5"),
    ("20", "10"),
];

/// No moment of this list comes while a test runs.
const NEVER: [(&str, &str); 1] = [("1", "59")];

#[tokio::test(flavor = "multi_thread")]
async fn time_goes_on_while_the_source_is_away() {
    let mut play = Play::start().await;
    let attempt = play.attempt().await;
    assert_eq!(attempt.start.from, None);
    assert_eq!(attempt.start.roles, [Role::Load, Role::Load]);
    attempt.streams(loaded(10, &[(LIVE, &MOMENTS), (BEGUN, &MOMENTS)])).await;
    play.until("everything is there", |held| held.live == 20).await;
    attempt.clock(0).await;
    play.lose(attempt).await;
    // From here on nobody says what time it is.
    let at_first = play.held();
    assert!(at_first.live > 2, "this machine is too slow to see anything: {at_first:?}");
    play.until("time has passed", |held| held.live + 2 <= at_first.live).await;
    assert!(play.board.ready().is_err(), "the source is away");
    assert_eq!(play.board.wait(0, &at(11)).now_or_never(), None, "time is no commit");
    let alone = play.held();
    assert_eq!(alone.begun, at_first.begun, "what only the source can compute waits for it");

    play.here.send_replace(true);
    let attempt = play.attempt().await;
    assert_eq!(attempt.start.from, Some(at(10)), "the position has not moved");
    assert_eq!(attempt.start.roles, [Role::Incremental, Role::Incremental], "no view failed for good");
    // The rest comes at once: its clock is ahead of ours.
    attempt.clock(30_000_000).await;
    play.until("it has caught up", |held| held.live == 0 && held.begun == 20).await;
    assert_eq!(play.modes(), ["incremental", "incremental"]);
    attempt.streams(commit(20, LIVE, &[("21", "59")])).await;
    play.until("a commit is followed as before", |held| held.live == 1).await;
    play.end(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_gives_nothing_back() {
    let mut play = Play::start().await;
    let attempt = play.attempt().await;
    attempt.streams(loaded(10, &[(LIVE, &MOMENTS), (BEGUN, &NEVER)])).await;
    attempt.clock(5_200_000).await;
    play.until("half is over", |held| held.live <= 10).await;
    play.lose(attempt).await;
    play.here.send_replace(true);
    let attempt = play.attempt().await;
    attempt.clock(0).await;
    // A row that is written now is judged by the time that the views have seen, not by the source's.
    attempt.streams(commit(20, LIVE, &[("30", "01"), ("31", "59")])).await;
    play.until("the commit is in", |held| held.names.contains("31")).await;
    assert!(!play.held().names.contains("30"), "time went back");
    assert!(!play.held().names.contains("1"), "time went back");
    play.end(attempt).await;
}

/// The source goes away while it computes for a commit.
async fn lost_while_computing() -> (Play, source::Attempt) {
    let mut play = Play::start().await;
    let attempt = play.attempt().await;
    attempt.streams(loaded(10, &[(LIVE, &NEVER), (BEGUN, &NEVER)])).await;
    attempt.clock(1_000_000).await;
    play.until("everything is there", |held| held.live == 1).await;
    play.wait(at(10)).await;
    play.computes.send_replace(false);
    attempt.streams(commit(20, BEGUN, &[("7", "00")])).await;
    let again = play.attempt().await;
    (play, again)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_lost_its_source_while_it_computed_is_incremental_again() {
    // More often than a state may contradict itself.
    let (mut play, mut attempt) = lost_while_computing().await;
    let mut names = vec!["7".to_owned()];
    for lsn in [21, 31, 41, 51, 61] {
        assert_eq!(attempt.start.roles, [Role::Incremental, Role::Refresh { stale: true }], "before {lsn}");
        play.computes.send_replace(true);
        let rows: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "00")).collect();
        attempt.streams(read(lsn, BEGUN, &rows)).await;
        attempt = play.attempt().await;
        assert_eq!(attempt.start.roles, [Role::Incremental, Role::Load], "at {lsn}");
        attempt.streams(loaded(lsn, &[(BEGUN, &rows)])).await;
        // Behind it, so that it is loaded when this is there.
        attempt.streams(commit(lsn + 2, LIVE, &[(&lsn.to_string(), "59")])).await;
        play.until("it is loaded", |held| held.names.contains(&lsn.to_string()) && held.begun == names.len()).await;
        play.wait(at(lsn + 3)).await;
        assert_eq!(play.modes(), ["incremental", "incremental"], "at {lsn}");
        play.computes.send_replace(false);
        names.push(lsn.to_string());
        attempt.streams(commit(lsn + 5, BEGUN, &[(&lsn.to_string(), "00")])).await;
        attempt = play.attempt().await;
    }
    play.end(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_lost_its_source_while_it_was_loaded_is_loaded_again() {
    let mut play = Play::start().await;
    play.computes.send_replace(false);
    let mut attempt = play.attempt().await;
    attempt.streams(loaded(10, &[(LIVE, &NEVER), (BEGUN, &[("7", "00")])])).await;
    // More often than it is tried for any other reason.
    for lsn in 11..16 {
        attempt = play.attempt().await;
        assert_eq!(attempt.start.roles, [Role::Incremental, Role::Load], "before {lsn}");
        play.computes.send_replace(lsn == 15);
        attempt.streams(loaded(lsn, &[(BEGUN, &[("7", "00")])])).await;
    }
    attempt.clock(1_000_000).await;
    attempt.streams(commit(20, BEGUN, &[("8", "00")])).await;
    play.until("it is followed", |held| held.begun == 2).await;
    assert_eq!(play.modes(), ["incremental", "incremental"]);
    play.end(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_answered_before_a_view_that_failed_has_what_they_wait_for() {
    let (mut play, attempt) = lost_while_computing().await;
    // The attempt in which it failed is over, and nothing else was changed by that commit.
    assert_eq!(play.board.wait(0, &at(21)).now_or_never(), None, "it lacks the commit");
    assert_eq!(attempt.start.from, Some(at(21)), "which is in the others");
    attempt.streams(Event::Progress { received: at(30), settled: at(30) }).await;
    attempt.streams(commit(40, LIVE, &[("2", "59")])).await;
    play.until("the others go on", |held| held.live == 2).await;
    assert_eq!(play.board.wait(0, &at(21)).now_or_never(), None, "it still does");
    play.computes.send_replace(true);
    attempt.streams(read(50, BEGUN, &[("7", "00")])).await;
    play.wait(at(21)).await;
    assert_eq!(play.held().begun, 1);
    play.end(attempt).await;
}

/// The state is of the position at which the view was last followed: what came since reached its facts by another way.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_not_followed_is_not_used_when_its_plan_comes_back() {
    let mut play = Play::start().await;
    let mut attempt = play.attempt().await;
    attempt.streams(loaded(10, &[(LIVE, &NEVER), (BEGUN, &NEVER)])).await;
    attempt.clock(1_000_000).await;
    play.until("everything is there", |held| held.live == 1).await;
    play.wait(at(10)).await;
    for (indexed, role) in [(false, Role::Refresh { stale: true }), (true, Role::Load)] {
        play.lose(attempt).await;
        play.indexed.send_replace(indexed);
        play.here.send_replace(true);
        attempt = play.attempt().await;
        assert_eq!(attempt.start.roles, [role, Role::Incremental], "indexed: {indexed}");
        if !indexed {
            attempt.streams(read(20, LIVE, &[("2", "59")])).await;
            play.until("it was read again", |held| held.names.contains("2")).await;
            play.wait(at(20)).await;
        }
    }
    play.end(attempt).await;
}
