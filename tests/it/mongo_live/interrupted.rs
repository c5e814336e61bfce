//! The change stream breaks: cursors and sessions are killed, commands fail, the server dies while nothing happens.
//!
//! After each of these nothing is lost, and what the oplog still tells is not read from the collections again.

use std::collections::BTreeSet;

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::{
    app::App,
    documents::document,
    reads::Reads,
    views::{self, Mode},
};
use crate::support::{eventually_async, factsync::Process, github::Random};

/// For a cursor to be there.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// Documents in each of the two large collections.
const DOCUMENTS: i32 = 3_000;
/// What a few changed documents may cost: far less than one look at a collection.
const FEW: i64 = 600;

/// An application whose collections are too large to be read in passing, and only incremental views.
async fn large() -> App {
    let views = views::all().into_iter().filter(|view| view.mode == Mode::Incremental);
    let app = App::start(views.collect()).await;
    for collection in ["users", "repos"] {
        let member = |number: i32| doc! { "_id": format!("l{number}"), "role": "guest", "owner": format!("l{}", number / 2), "n": 1 };
        app.run_command(doc! { "insert": collection, "documents": (0..DOCUMENTS).map(member).collect::<Vec<_>>() }).await;
    }
    app
}

/// Changes a few documents of every collection, so that there is something to lose.
async fn change(app: &App, random: &mut Random) {
    for collection in super::operations::COLLECTIONS {
        let q = doc! { "_id": format!("l{}", random.below(u64::from(DOCUMENTS.unsigned_abs()))) };
        let u = doc! { "$set": { "role": format!("role-{}", random.below(1000)) } };
        app.run_command(doc! { "update": collection, "updates": [{ "q": q, "u": u }] }).await;
        let mut document = document(random);
        document.remove("_id");
        let _ = app.run_command(doc! { "insert": collection, "documents": [document] }).await;
        app.run_command(doc! { "delete": collection, "deletes": [{ "q": { "role": "guest" }, "limit": 1 }] }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incremental_views_read_only_the_documents_that_changed() {
    let mut random = Random::new("reads");
    let app = large().await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let reads = Reads::watch(&app).await;
    change(&app, &mut random).await;
    app.assert_settled(&process, "after a few changes").await;
    let read = reads.documents(&app).await;
    eprintln!("{read} documents were read for twelve changes");
    assert!(read < FEW, "{read} documents were read for twelve changes");
    assert!(read > 0, "the profiler shows nothing");
    // The foreign side of a lookup, found through an index of the main side.
    let reads = Reads::watch(&app).await;
    app.run_command(doc! { "update": "users", "updates": [{ "q": { "_id": "l7" }, "u": { "$set": { "active": false } } }] }).await;
    app.assert_settled(&process, "after a change of a foreign document").await;
    let read = reads.documents(&app).await;
    assert!(read < FEW, "{read} documents were read for one foreign change");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_cursor_loses_nothing_and_reads_nothing_again() {
    let mut random = Random::new("cursors");
    let app = large().await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let reads = Reads::watch(&app).await;
    for round in 0..6 {
        change(&app, &mut random).await;
        // Between two requests there may be nothing to kill.
        eventually_async(DEADLINE, "something was killed", async || {
            let killed = match round % 3 {
                0 => kill_cursors(&app).await,
                1 => kill_operations(&app).await,
                _ => kill_sessions(&app).await,
            };
            (killed > 0).then_some(())
        })
        .await;
        change(&app, &mut random).await;
        app.assert_settled(&process, &format!("round {round}")).await;
    }
    let read = reads.documents(&app).await;
    eprintln!("{read} documents were read in six rounds");
    assert!(read < 12 * FEW, "{read} documents were read in six rounds of a few changes");
}

/// What factsync does right now, idle cursors included.
async fn operations(app: &App) -> Vec<Document> {
    let pipeline = [
        doc! { "$currentOp": { "allUsers": true, "idleCursors": true } },
        doc! { "$match": { "appName": "factsync", "ns": { "$regex": "^live\\." } } },
    ];
    let cursor = app.client().database("admin").aggregate(pipeline).await.expect("operations");
    cursor.try_collect().await.expect("operations")
}

async fn kill_cursors(app: &App) -> usize {
    let of = |operation: &Document| {
        let idle = operation.get_document("cursor").and_then(|cursor| cursor.get_i64("cursorId"));
        idle.or_else(|_| operation.get_document("command").and_then(|command| command.get_i64("getMore"))).ok()
    };
    let mut killed = BTreeSet::new();
    for operation in operations(app).await {
        let Some(cursor) = of(&operation) else { continue };
        let ns = operation.get_str("ns").expect("a namespace");
        let (_, collection) = ns.split_once('.').expect("a collection");
        app.run_command(doc! { "killCursors": collection, "cursors": [cursor] }).await;
        killed.insert(cursor);
    }
    killed.len()
}

async fn kill_operations(app: &App) -> usize {
    let mut killed = 0;
    for operation in operations(app).await {
        if let Some(id @ Bson::Int32(_)) = operation.get("opid") {
            app.server.admin(doc! { "killOp": 1, "op": id }).await;
            killed += 1;
        }
    }
    killed
}

async fn kill_sessions(app: &App) -> usize {
    let sessions = operations(app).await.len();
    app.server.admin(doc! { "killAllSessions": [] }).await;
    sessions
}

/// A command of factsync's that fails, the error's code, and how often.
const FAILURES: [(&str, i32, i32); 12] = [
    ("getMore", 262, 1), // ExceededTimeLimit
    ("getMore", 262, 4), // more often than a driver resumes by itself
    ("getMore", 43, 2),  // CursorNotFound
    ("getMore", 237, 1), // CursorKilled
    ("getMore", 136, 1), // CappedPositionLost
    ("getMore", 280, 1), // ChangeStreamFatalError
    ("getMore", 286, 1), // ChangeStreamHistoryLost
    ("aggregate", 262, 2),
    ("aggregate", 246, 2), // SnapshotUnavailable
    ("aggregate", 239, 1), // SnapshotTooOld
    ("aggregate", 134, 3), // ReadConcernMajorityNotAvailableYet
    ("aggregate", 286, 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_loses_nothing() {
    let mut random = Random::new("failures");
    let app = App::start(views::all()).await;
    let process = app.started(&[]).await;
    change(&app, &mut random).await;
    for (command, code, times) in FAILURES {
        fail(&app, command, code, times).await;
        change(&app, &mut random).await;
        app.assert_settled(&process, &format!("after {times} times {code} of {command}")).await;
        let failed = app.server.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
        assert!(failed.get("count").is_some_and(|count| *count != Bson::Int64(0) && *count != Bson::Int32(0)), "it never failed: {failed}");
    }
}

/// The first commands of a process fail: it comes up all the same.
#[tokio::test(flavor = "multi_thread")]
async fn commands_that_fail_at_the_start_are_tried_again() {
    let mut random = Random::new("failing starts");
    let app = App::start(views::all()).await;
    let mut process: Option<Process> = None;
    for (command, code, times) in FAILURES {
        change(&app, &mut random).await;
        drop(process.take());
        fail(&app, command, code, times).await;
        let started = app.run(&[]);
        app.assert_settled(&started, &format!("started with {times} times {code} of {command}")).await;
        app.server.admin(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await;
        process = Some(started);
    }
}

async fn fail(app: &App, command: &str, code: i32, times: i32) {
    let data = doc! { "failCommands": [command], "errorCode": code, "appName": "factsync" };
    app.server.admin(doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data }).await;
}

/// The server dies and comes back while nobody writes: the next change is seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_while_nothing_happens_is_followed_again() {
    let mut random = Random::new("idle crash");
    let mut app = large().await;
    let process = app.started(&[]).await;
    change(&app, &mut random).await;
    app.assert_settled(&process, "before").await;
    app.server.kill();
    app.server.start_again().await;
    let reads = Reads::watch(&app).await;
    change(&app, &mut random).await;
    app.assert_settled(&process, "after").await;
    let read = reads.documents(&app).await;
    assert!(read < 2 * FEW, "{read} documents were read after a restart of the server");
}
