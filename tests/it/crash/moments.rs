//! A death at each moment of `src/crash.rs`: the next start ends with what the database says.
//!
//! [`scene`] is the list: it names for each moment what has to go on for it to come, and has no arm for the rest, so a moment that is
//! added without a test does not compile. One that never comes fails its test, for the process must end by the signal of `abort`.

use std::{fs, os::unix::process::ExitStatusExt, time::Duration};

use factsync::crash::Moment;

use super::SIGABRT;
use crate::support::{
    app::{App, fact_type},
    eventually_async,
    factsync::Process,
    github::{Github, Random},
    load::Load,
    postgres::Major,
};

/// What has to go on for a moment to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scene {
    /// Commits without end.
    Load,
    /// A first start, into a fact store that has facts.
    FirstStart,
    /// Sources that exchange their fact types: `several/changes.rs`.
    Exchange,
    /// A commit that is too large for a batch of changes and for one of facts.
    LargeCommit,
    /// A fact store that is away while much is committed.
    Outage,
    /// A fact store that does not answer, or refuses: `faults/deaths.rs`.
    Fault,
    /// A hold that a person ends: `hold/deaths.rs`.
    Hold,
    /// Commits of what no view reads.
    Quiet,
    /// Rows that cease to count.
    Time,
    /// A slot that is gone.
    LostSlot,
    /// DDL on a table of a view.
    Ddl,
    /// A query that is another one at the next start.
    OtherQuery,
    /// A state of a view that is wrong.
    BrokenState,
}

/// The scene of each moment.
fn scene(moment: Moment) -> Scene {
    match moment {
        Moment::SlotsKept | Moment::Reassigned | Moment::Registered => Scene::Exchange,
        Moment::Begun
        | Moment::Slotted
        | Moment::Read
        | Moment::Loading
        | Moment::Loaded
        | Moment::Replaced
        | Moment::Listed
        | Moment::Compared
        | Moment::Backfilled => Scene::FirstStart,
        Moment::Received
        | Moment::Computing
        | Moment::Writing
        | Moment::Committed
        | Moment::Telling
        | Moment::Told
        | Moment::Confirmed
        | Moment::Sending
        | Moment::Sent
        | Moment::Acknowledged
        | Moment::Answering => Scene::Load,
        Moment::Split | Moment::Settled => Scene::LargeCommit,
        Moment::Folded => Scene::Outage,
        Moment::Doubted | Moment::Parked => Scene::Fault,
        Moment::Released => Scene::Hold,
        Moment::Passed => Scene::Time,
        Moment::Advanced => Scene::Quiet,
        Moment::Forgotten => Scene::LostSlot,
        Moment::Dropped => Scene::Ddl,
        Moment::Marked => Scene::OtherQuery,
        Moment::Demoted => Scene::BrokenState,
    }
}

/// The moments of a scene.
pub(crate) fn of(wanted: Scene) -> impl Iterator<Item = Moment> {
    Moment::ALL.iter().copied().filter(move |moment| scene(*moment) == wanted)
}

/// Waits until `process` has died at its moment.
pub(crate) fn assert_died(mut process: Process, moment: &str) {
    eprintln!("dying at {moment}");
    let status = process.ended();
    assert_eq!(status.signal(), Some(SIGABRT), "{moment} did not come: {status}\n{}", process.log());
}

const SCHEMA: &str = "CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL, note text NOT NULL DEFAULT '');
    INSERT INTO member SELECT i, 'r' || i % 3 FROM generate_series(1, 1500) AS i";
const FACTS: [(&str, &str); 2] =
    [("has_role(User:_, String:_)", "SELECT id, role FROM member"), ("is_odd(User:_)", "SELECT id FROM member WHERE id % 2 = 1")];

/// For rows to end.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whole tables change here.
const NO_GUARD: &str = "max_removals: {count: 1000000, percent: 100}";

fn start(app: &App, moment: &str, more: &[&str]) -> Process {
    app.run_with(more, &[("DATABASE_URL", &app.url()), ("FACTSYNC_DIE_AT", moment)])
}

/// Starts `app` again, in which nobody dies, and compares.
async fn ends_equal(app: &App, moment: &str) {
    let process = app.run(&[]);
    app.settle(&process).await;
    app.assert_equal(&process, moment).await;
    assert!(process.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_at_each_step_from_a_commit_to_its_acknowledgement() {
    let mut random = Random::new("deaths");
    let github = Github::start(Major::V15).await;
    let state = tempfile::tempdir().expect("a folder");
    let process = github.run(state.path(), &[]);
    process.wait_ready().await;
    assert!(process.terminate().success());
    for moment in of(Scene::Load) {
        let load = Load::start(&github, &mut random, 2);
        for times in [1, 2 + random.below(20)] {
            let moment = format!("{}:{times}", moment.name());
            assert_died(github.run_to_death(state.path(), &moment), &moment);
        }
        load.finish().await;
        let process = github.run(state.path(), &[]);
        process.wait_position(&github.position().await).await;
        super::kills::assert_no_snapshot(&process, true, 0);
        github.assert_equal(&process, &moment.name()).await;
        process.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_at_each_step_of_a_first_start() {
    let app = App::start(SCHEMA, &FACTS, NO_GUARD).await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let into = ["--target", store.url(), "--plan", "unlimited"];
    let mut round = 0;
    for moment in of(Scene::FirstStart) {
        // Each of the views is loaded, and there are several batches.
        let often = matches!(moment, Moment::Loading | Moment::Loaded | Moment::Backfilled);
        for times in if often { 1..=2 } else { 1..=1 } {
            let moment = format!("{}:{times}", moment.name());
            round += 1;
            // What the fact store has of the last round is wrong for every row in this one.
            app.sql(&format!("UPDATE member SET role = 'a{round}'; DELETE FROM member WHERE id % 100 = {round}")).await;
            let _ = fs::remove_dir_all(app.state());
            assert_died(start(&app, &moment, &into), &moment);
            app.sql(&format!("UPDATE member SET role = 'b{round}' WHERE id < 20; DELETE FROM member WHERE id % 100 = 50 + {round}")).await;
            let process = app.run(&into);
            app.settle(&process).await;
            app.assert_equal(&store, &moment).await;
            process.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_inside_of_a_large_commit() {
    let app = App::start(SCHEMA, &[("has_role(User:_, String:_)", "SELECT id, role FROM member WHERE length(note) > id")], NO_GUARD).await;
    assert!(app.started(&[]).await.terminate().success());
    let mut first = 0;
    for moment in of(Scene::LargeCommit) {
        // What the fact store logs of one commit is a slice.
        for times in if moment == Moment::Settled { 1..=1 } else { 1..=2 } {
            let moment = format!("{}:{times}", moment.name());
            let process = start(&app, &moment, &[]);
            first += 100;
            // Some 10 MB of changes, a thousand new facts, and the end of all there were.
            let rows = "repeat(md5(i::text), 250)";
            let rows = format!("SELECT i, 'r{first}' || i % 10, {rows} FROM generate_series({first}, {first} + 1200) AS i");
            app.sql(&format!("BEGIN; DELETE FROM member; INSERT INTO member {rows}; COMMIT")).await;
            assert_died(process, &moment);
            app.sql(&format!("DELETE FROM member WHERE id BETWEEN 500 AND 1000 + {first}")).await;
            ends_equal(&app, &moment).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_while_an_outage_is_folded() {
    let app = App::start("CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL)", &FACTS[..1], NO_GUARD).await;
    let facts = tempfile::tempdir().expect("a folder");
    let at = ["serve", "--limits", "off", "--state", facts.path().to_str().expect("UTF-8")];
    let mut store = Process::spawn(&at, &[]);
    let (url, listen) = (store.url().to_owned(), store.url().trim_start_matches("http://").to_owned());
    // So slow that a few hundred entries are a long queue.
    let into = ["--target", &*url, "--plan", "free"];
    assert!(app.started(&into).await.terminate().success());
    for moment in of(Scene::Outage) {
        for times in 1..=2 {
            let moment = format!("{}:1", moment.name());
            store.kill();
            let process = start(&app, &moment, &into);
            // Of a queue that takes longer than ten seconds the rest is folded.
            for round in 0..12 {
                let rows = "SELECT i, 'r' FROM generate_series(1, 400) AS i";
                let role = format!("'{times}.{round}'");
                app.sql(&format!("INSERT INTO member {rows} ON CONFLICT (id) DO UPDATE SET role = {role}")).await;
            }
            app.sql(&format!("DELETE FROM member WHERE id % 3 = {times}")).await;
            assert_died(process, &moment);
            app.sql("UPDATE member SET role = role || 'x' WHERE id < 10").await;
            store = Process::spawn(&[&at[..], &["--listen", &listen]].concat(), &[]);
            let process = app.run(&[&into[..2], &["--plan", "unlimited"]].concat());
            app.settle(&process).await;
            app.assert_equal(&store, &moment).await;
            process.kill();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_with_progress_that_changes_nothing() {
    let app = App::start(SCHEMA, &FACTS, NO_GUARD).await;
    assert!(app.started(&[]).await.terminate().success());
    app.sql("CREATE TABLE other (id int)").await;
    for moment in of(Scene::Quiet) {
        for times in 1..=2 {
            let moment = format!("{}:{times}", moment.name());
            let process = start(&app, &moment, &[]);
            process.wait_ready().await;
            app.sql("INSERT INTO other VALUES (1)").await;
            assert_died(process, &moment);
            app.sql(&format!("DELETE FROM member WHERE id = {times}")).await;
            ends_equal(&app, &moment).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_when_time_has_passed() {
    let schema = "CREATE TABLE member (id serial PRIMARY KEY, until timestamptz NOT NULL);
        INSERT INTO member (until) SELECT now() + '1 hour' FROM generate_series(1, 3)";
    let app = App::start(schema, &[("is_member(User:_)", "SELECT id FROM member WHERE until > now()")], "").await;
    assert!(app.started(&[]).await.terminate().success());
    for moment in of(Scene::Time) {
        for times in 1..=3 {
            let moment = format!("{}:{times}", moment.name());
            let mut process = start(&app, &moment, &[]);
            eventually_async(DEADLINE, "it dies when rows end", async || {
                app.sql("INSERT INTO member (until) VALUES (now() + interval '100 milliseconds')").await;
                process.has_ended().then_some(())
            })
            .await;
            assert_died(process, &moment);
            let process = app.run(&[]);
            // Here and there time passes at about the same time.
            eventually_async(DEADLINE, "the rows have ended", async || (process.facts("is_member").await.len() == 3).then_some(())).await;
            app.settle(&process).await;
            app.assert_equal(&process, &moment).await;
            assert!(process.terminate().success());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_before_the_checkpoint_forgets_a_lost_slot() {
    let app = App::start(SCHEMA, &FACTS, NO_GUARD).await;
    assert!(app.started(&[]).await.terminate().success());
    for moment in of(Scene::LostSlot) {
        app.sql("SELECT pg_drop_replication_slot('app')").await;
        app.sql("DELETE FROM member WHERE id < 10").await;
        assert_died(start(&app, &format!("{}:1", moment.name()), &[]), &moment.name());
        app.sql("DELETE FROM member WHERE id = 10").await;
        ends_equal(&app, &moment.name()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_after_ddl() {
    let roles = ["has_role(User:_, String:_)", "had_role(User:_, String:_)"].map(|signature| (signature, FACTS[0].1));
    let app = App::start(SCHEMA, &roles, NO_GUARD).await;
    assert!(app.started(&[]).await.terminate().success());
    for moment in of(Scene::Ddl) {
        for times in 1..=2 {
            let moment = format!("{}:{times}", moment.name());
            let process = start(&app, &moment, &[]);
            process.wait_ready().await;
            // Every row is another one, and no change says so.
            let to = if times == 1 { "bigint" } else { "int" };
            app.sql(&format!("ALTER PUBLICATION app DROP TABLE member; ALTER TABLE member ALTER id TYPE {to} USING id + 1")).await;
            app.sql("UPDATE member SET role = role || 'x' WHERE id < 100").await;
            assert_died(process, &moment);
            app.sql(&format!("DELETE FROM member WHERE id = 10 + {times}")).await;
            ends_equal(&app, &moment).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_between_a_changed_query_and_its_result() {
    let labelled = |order: &str| format!("SELECT id % 5, string_agg(role, ',' ORDER BY role {order}) FROM member GROUP BY id % 5");
    let signature = "is_labelled(Document:_, String:_)";
    for moment in of(Scene::OtherQuery) {
        let mut app =
            App::start("CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL)", &[(signature, &labelled("ASC"))], NO_GUARD).await;
        app.sql("INSERT INTO member SELECT i, 'n' || i FROM generate_series(1, 20) AS i").await;
        let process = app.started(&[]).await;
        assert_eq!(fact_type(&process.status().await, signature)["mode"], "refresh", "the test has lost its subject");
        assert!(process.terminate().success());
        app.configure(&[(signature, &labelled("DESC"))], NO_GUARD);
        assert_died(start(&app, &format!("{}:1", moment.name()), &[]), &moment.name());
        ends_equal(&app, &moment.name()).await;
    }
}

/// What a view keeps is gone from the local store, again and again, until its plan is not trusted any more.
#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_between_a_distrusted_plan_and_a_result_without_it() {
    for moment in of(Scene::BrokenState) {
        let facts = [FACTS[0], ("is_role(String:_)", "SELECT DISTINCT role FROM member")];
        let app = App::start(SCHEMA, &facts, NO_GUARD).await;
        app.sql("DELETE FROM member WHERE id > 100").await;
        assert!(app.started(&[]).await.terminate().success());
        let mut process = start(&app, &format!("{}:1", moment.name()), &[]);
        process.wait_ready().await;
        eventually_async(DEADLINE, "the plan is given up", async || {
            let file = rusqlite::Connection::open(app.state().join("state.db")).expect("opened");
            let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'state\\_%' ESCAPE '\\'";
            let mut tables = file.prepare(tables).expect("prepared");
            let tables: Vec<String> = tables.query_map([], |row| row.get(0)).expect("asked").map(|name| name.expect("a name")).collect();
            for table in tables {
                // Busy just now: the next time.
                let _ = file.execute(&format!("DELETE FROM {table}"), []);
            }
            app.sql("UPDATE member SET role = role || 'x' WHERE id = 1").await;
            process.has_ended().then_some(())
        })
        .await;
        assert_died(process, &moment.name());
        ends_equal(&app, &moment.name()).await;
    }
}
