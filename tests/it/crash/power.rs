//! Power losses: what was not synced is gone or there by halves, and nothing that somebody was told is gone.
//!
//! After each of them the local store stands at or beyond what the source was told, which is what the database itself says of its slot;
//! in the end the fact store holds what the queries return. `FACTSYNC_POWER` sets how many there are.

use std::path::Path;

use factsync::data::Position;

use super::{
    disk::{Disk, Left},
    kills::{assert_no_snapshot, has_position},
};
use crate::support::{
    factsync::Process,
    github::{Github, Random},
    load::Load,
    postgres::Major,
};

/// How often the power is cut.
fn cuts() -> u64 {
    std::env::var("FACTSYNC_POWER").ok().map_or(8, |text| text.parse().expect("FACTSYNC_POWER is a number"))
}

/// Cuts between two comparisons.
const COMPARED_EVERY: u64 = 8;

fn run(github: &Github, disk: &Disk, more: &[&str]) -> Process {
    let (state, url) = (disk.state(), github.url());
    let mut args = vec!["run", "examples/github/github.yaml", "--limits", "off", "--state", state.to_str().expect("UTF-8")];
    args.extend(more);
    let environment = disk.environment();
    let mut env: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    env.push(("DATABASE_URL", &url));
    Process::spawn(&args, &env)
}

/// Where the local store in `state` stands, as SQLite recovers it; read in a copy, for the next start is to find it as it is.
fn stands_at(state: &Path) -> Option<Position> {
    let copy = tempfile::tempdir().expect("a folder");
    for name in ["state.db", "state.db-wal"] {
        // A store that was never synced has neither.
        let _ = std::fs::copy(state.join(name), copy.path().join(name));
    }
    let file = rusqlite::Connection::open(copy.path().join("state.db")).expect("SQLite recovers it");
    let sound: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(sound, "ok");
    let position: Option<String> = file.query_row("SELECT position FROM source", [], |row| row.get(0)).ok().flatten();
    position.map(|text| text.parse().expect("a position"))
}

/// What the source was told, if it has a slot.
async fn told(github: &Github) -> Option<Position> {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE NOT temporary";
    let row = github.client.query_opt(sql, &[]).await.expect("asked")?;
    row.get::<_, Option<String>>(0).map(|text| text.parse().expect("a position"))
}

/// Cuts the power again and again, of a disk with the local store and, unless `into` names another, the fact store.
async fn losses(name: &str, into: Option<&Process>) {
    let mut random = Random::new(name);
    let github = Github::start(Major::V15).await;
    let mut disk = Disk::new();
    let target = into.map(|store| ["--target", store.url(), "--plan", "unlimited"]);
    let more: &[&str] = target.as_ref().map_or(&[], |target| target);
    let (mut stored, mut lost, mut kept) = (false, 0, 0);
    let mut load = Load::start(&github, &mut random, 2);
    for round in 1..=cuts() {
        let process = run(&github, &disk, more);
        // The first ones may have nothing on the disk when it ends.
        if round > 2 {
            process.wait_ready().await;
        }
        load.goes_on(random.below(100)).await;
        assert_no_snapshot(&process, stored, round);
        stored = stored || has_position(&process).await;
        process.kill();
        let taken = disk.cut(if round % 2 == 0 { Left::Some } else { Left::Nothing }, &mut random);
        (lost, kept) = (lost + taken.writes, kept + taken.kept);
        let (here, told) = (stands_at(&disk.state()), told(&github).await);
        // A new slot has a position of its own before anybody knows it here.
        if let (true, Some(told)) = (stored || here.is_some(), &told) {
            let here = here.as_ref().unwrap_or_else(|| panic!("round {round}: the store is gone, and {told} was acknowledged: {taken:?}"));
            assert!(here.end() >= told.end(), "round {round}: the store stands at {here}, and {told} was acknowledged: {taken:?}");
        }
        stored |= here.is_some();
        if round % COMPARED_EVERY == 0 || round == cuts() {
            load.finish().await;
            let process = run(&github, &disk, more);
            process.wait_position(&github.position().await).await;
            assert_no_snapshot(&process, stored, round);
            github.assert_equal(into.unwrap_or(&process), &format!("after {round} losses")).await;
            process.kill();
            disk.cut(Left::Nothing, &mut random);
            load = Load::start(&github, &mut random, 2);
        }
    }
    load.finish().await;
    eprintln!("{name}: {} losses took {lost} writes away, of which {kept} were kept in part", cuts());
    assert!(stored && lost > 0 && kept > 0, "the test has lost its subject");
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_power_loss_takes_nothing_that_was_acknowledged() {
    losses("power", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_power_loss_beside_a_fact_store_that_has_none() {
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    losses("power here", Some(&store)).await;
}

/// The fact store alone, from its first answer on: not even its directory may be missing.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_and_a_power_loss_take_no_answered_fact() {
    let mut random = Random::new("power of the fact store");
    let mut disk = Disk::new();
    let environment = disk.environment();
    let env: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let state = disk.state();
    let args = ["serve", "--limits", "off", "--state", state.to_str().expect("UTF-8")];
    let fact = |round: u64, n: u64| crate::support::app::fact("has_role", &[&format!("User:{round}"), &format!("String:{n}")]);
    let mut answered = 0;
    for round in 0..cuts() {
        let process = Process::spawn(&args, &env);
        assert_eq!(process.facts("has_role").await.len(), answered, "before round {round}");
        // Few go into the tables, many into the log first.
        for size in [1, 200, 1 + random.below(400)] {
            let facts: Vec<_> = (0..size).map(|n| fact(round, answered as u64 + n)).collect();
            crate::support::app::insert(&process, &facts).await;
            answered += facts.len();
        }
        process.kill();
        disk.cut(if round % 2 == 0 { Left::Nothing } else { Left::Some }, &mut random);
    }
}
