//! What factsync remembers is gone: its position from the server's oplog, or its state directory from the disk.
//!
//! A new snapshot is compared with what was there, and only real differences are written, the deletes above all: a fact that
//! went while nobody looked must not stay.

use std::process::Command;

use mongodb::bson::{Document, Timestamp, doc};

use super::{
    app::{App, delivered},
    server::{Oplog, Server},
    views::{self, View},
};
use crate::support::factsync::Process;

/// Bytes of the documents that fill it.
const FILLING: usize = 200_000;
/// Documents after which it must be overwritten.
const MOST_FILLINGS: u32 = 5_000;

/// Two views without a pipeline.
fn plain() -> Vec<View> {
    views::all().into_iter().filter(|view| ["has_role", "is_counted", "owns"].contains(&view.predicate())).collect()
}

async fn populate(app: &App) {
    let user = |number: i32| doc! { "_id": number, "role": format!("role-{number}") };
    app.run_command(doc! { "insert": "users", "documents": (0..40).map(user).collect::<Vec<_>>() }).await;
    let repo = |number: i32| doc! { "_id": number, "owner": number % 4 };
    app.run_command(doc! { "insert": "repos", "documents": (0..8).map(repo).collect::<Vec<_>>() }).await;
}

/// Takes one role away, changes one, gives one: for `has_role` a delete, a delete and an insert, an insert; for `is_counted` the
/// same four; for `owns` the deleted user's two repositories.
async fn change(app: &App) -> u64 {
    app.run_command(doc! { "delete": "users", "deletes": [{ "q": { "_id": 1 }, "limit": 1 }] }).await;
    app.run_command(doc! { "update": "users", "updates": [{ "q": { "_id": 2 }, "u": { "$set": { "role": "owner" } } }] }).await;
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": 99, "role": "guest" }] }).await;
    4 + 4 + 2
}

/// Writes until the oplog no longer holds the operation at `time`.
async fn roll_over(app: &App, time: Timestamp) {
    let oplog = app.client().database("local").collection::<Document>("oplog.rs");
    let filling = app.client().database("filling").collection::<Document>("filling");
    for round in 0..MOST_FILLINGS {
        filling.insert_one(doc! { "filling": "x".repeat(FILLING) }).await.expect("inserted");
        if round % 20 == 19 {
            let first = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await.expect("an oplog").expect("an entry");
            if first.get_timestamp("ts").expect("a time") > time {
                eprintln!("the oplog was overwritten after {} documents", round + 1);
                return;
            }
        }
    }
    panic!("the oplog still holds {time:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_was_overwritten_meanwhile_leaves_no_ghosts() {
    let app = App::on(Server::with_oplog(Oplog::Small).await, plain()).await;
    populate(&app).await;
    let process = app.started(&[]).await;
    app.assert_settled(&process, "before").await;
    let last = app.mark().await;
    app.settle(&process).await;
    assert!(process.terminate().success());
    let changes = change(&app).await;
    let end = app.mark().await;
    roll_over(&app, last.max(end)).await;
    let process = app.run(&[]);
    app.assert_settled(&process, "after").await;
    assert_eq!(delivered(&process).await, changes, "only differences are written");
    change_again(&app, &process).await;
}

/// The same while it runs and sleeps: its cursor is what is lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_was_overwritten_under_the_cursor_leaves_no_ghosts() {
    let app = App::on(Server::with_oplog(Oplog::Small).await, plain()).await;
    populate(&app).await;
    let process = app.started(&[]).await;
    app.assert_settled(&process, "before").await;
    let before = delivered(&process).await;
    signal(&process, "STOP");
    let changes = change(&app).await;
    let end = app.mark().await;
    roll_over(&app, end).await;
    signal(&process, "CONT");
    app.assert_settled(&process, "after").await;
    assert_eq!(delivered(&process).await - before, changes, "only differences are written");
    change_again(&app, &process).await;
}

async fn change_again(app: &App, process: &Process) {
    app.run_command(doc! { "delete": "users", "deletes": [{ "q": { "_id": { "$lt": 5 } }, "limit": 0 }] }).await;
    app.assert_settled(process, "followed again").await;
}

fn signal(process: &Process, signal: &str) {
    let status = Command::new("kill").args(["-s", signal, &process.pid().to_string()]).status().expect("kill can be run");
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_a_stop_and_a_start_with_nothing_happening_write_nothing() {
    let app = App::start(views::all()).await;
    populate(&app).await;
    let process = app.started(&[]).await;
    app.assert_settled(&process, "at first").await;
    assert!(delivered(&process).await > 0);
    let mut process = process;
    for round in 0..3 {
        if round == 2 {
            process.kill();
        } else {
            assert!(process.terminate().success());
        }
        process = app.started(&[]).await;
        app.assert_settled(&process, "after a restart").await;
        assert_eq!(delivered(&process).await, 0, "nothing happened, and something was written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_was_deleted_costs_the_differences_only() {
    let app = App::start(plain()).await;
    populate(&app).await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let into = ["--target", store.url(), "--plan", "unlimited"];
    let process = app.started(&into).await;
    app.settle(&process).await;
    app.assert_equal(&store, "at first").await;
    assert!(process.terminate().success());
    let changes = change(&app).await;
    std::fs::remove_dir_all(app.state()).expect("removed");
    let process = app.started(&into).await;
    app.settle(&process).await;
    app.assert_equal(&store, "after").await;
    assert_eq!(delivered(&process).await, changes, "only differences are written");
}
