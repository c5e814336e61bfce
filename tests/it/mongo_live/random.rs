//! Random operations while factsync and the server are killed: what is left in the fact store is the server's own answer.

use std::collections::BTreeMap;

use super::{
    app::{App, DATABASE},
    load::{Load, add},
    operations::Kind,
    views::{self, Mode},
};
use crate::support::{factsync::Process, github::Random};

/// Operations of one test, in parts; `FACTSYNC_LONG=1` makes it ten times as many. After each part everything is compared.
const OPERATIONS: u64 = 5_000;
const PARTS: u64 = 10;
/// Kills in each part.
const KILLS: u64 = 2;
/// Sessions that write at the same time.
const WRITERS: u64 = 2;

fn parts() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 10 * PARTS } else { PARTS }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_random_operations_and_kills_end_equal_to_the_servers_own_answer() {
    let mut random = Random::new("kills of factsync");
    let app = App::start(views::all()).await;
    let mut worked: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut process = app.started(&[]).await;
    assert_modes(&app, &process).await;
    for part in 0..parts() {
        let load = Load::start(app.client(), DATABASE, &mut random, WRITERS, OPERATIONS / PARTS, false).await;
        for _ in 0..KILLS {
            load.goes_on(random.below(OPERATIONS / PARTS / KILLS)).await;
            process.kill();
            process = app.run(&[]);
            // Every other one gets to work first; the others are killed while they start.
            if random.below(2) == 0 {
                process.wait_ready().await;
            }
        }
        add(&mut worked, &load.finish().await);
        app.assert_settled(&process, &format!("part {part}")).await;
    }
    assert_all_kinds(&worked);
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_kills_of_the_server_end_equal_to_its_own_answer() {
    let mut random = Random::new("kills of mongod");
    let mut app = App::start(views::all()).await;
    let mut process = app.started(&[]).await;
    for part in 0..6 {
        let load = Load::start(app.client(), DATABASE, &mut random, WRITERS, 200, true).await;
        load.goes_on(random.below(200)).await;
        app.server.kill();
        if random.below(3) == 0 {
            process.kill();
            app.server.start_again().await;
            process = app.run(&[]);
        } else {
            app.server.start_again().await;
        }
        load.finish().await;
        app.assert_settled(&process, &format!("part {part}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_at_each_step_ends_equal_to_the_servers_own_answer() {
    let mut random = Random::new("deaths");
    let app = App::start(views::all()).await;
    let process = app.started(&[]).await;
    assert!(process.terminate().success());
    for moment in ["computing", "committed", "told", "sent", "acknowledged"] {
        for times in [1, 2 + random.below(10)] {
            let load = Load::start(app.client(), DATABASE, &mut random, WRITERS, 2_000, false).await;
            let mut process = app.run_to_death(&format!("{moment}:{times}"));
            process.ended();
            drop(process);
            load.stop().await;
            let process = app.run(&[]);
            app.assert_settled(&process, &format!("after {moment}:{times}")).await;
            assert!(process.terminate().success());
        }
    }
}

/// Panics unless every view is kept up to date as it should be, and none has a problem.
async fn assert_modes(app: &App, process: &Process) {
    let status = process.status().await;
    for view in &app.views {
        let lines = status["fact_types"].as_array().expect("a list");
        let line = lines.iter().find(|line| line["fact_type"] == view.signature).unwrap_or_else(|| panic!("{status:#}"));
        let mode = match view.mode {
            Mode::Incremental => "incremental",
            Mode::Refresh => "refresh",
        };
        assert_eq!(line["mode"], mode, "{line:#}");
        assert!(line["problem"].is_null(), "{line:#}");
    }
}

/// Panics if a kind of operation never worked: then nothing was tested of it.
fn assert_all_kinds(worked: &BTreeMap<Kind, u64>) {
    eprintln!("operations that worked: {worked:?}");
    for kind in Kind::all() {
        assert!(worked.contains_key(&kind), "{kind:?} never worked: {worked:?}");
    }
}
