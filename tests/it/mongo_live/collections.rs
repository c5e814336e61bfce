//! Collections come, go and change places; documents and transactions are as large as they can be.

use mongodb::{
    ClientSession,
    bson::{Document, doc},
    error::{Error, TRANSIENT_TRANSACTION_ERROR},
};

use super::{
    app::{App, DATABASE},
    operations::index,
    views::{self, Mode, Select, View},
};
use crate::support::{eventually_async, factsync::Process};

/// Bytes of a text that makes a document nearly as large as one may be.
const LARGE: usize = 15 * 1024 * 1024;
/// For a status to change.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

async fn populate(app: &App, collection: &str, name: &str) {
    let member = |number: i32| {
        let id = format!("{name}{number}");
        doc! { "_id": id, "role": name, "owner": format!("{name}0"), "n": number, "team": ["t", name] }
    };
    app.run_command(doc! { "insert": collection, "documents": (0..5).map(member).collect::<Vec<_>>() }).await;
}

async fn rename(app: &App, from: &str, to: &str, over: bool) {
    let full = |name: &str| format!("{DATABASE}.{name}");
    app.server.admin(doc! { "renameCollection": full(from), "to": full(to), "dropTarget": over }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_and_renames_are_followed() {
    let app = App::start(views::all()).await;
    for collection in ["users", "repos", "team.eu", "folders"] {
        populate(&app, collection, "a").await;
    }
    let process = app.started(&[]).await;
    app.assert_settled(&process, "at first").await;
    app.run_command(doc! { "drop": "users" }).await;
    app.assert_settled(&process, "users was dropped").await;
    populate(&app, "users", "b").await;
    app.assert_settled(&process, "users is there again").await;
    rename(&app, "team.eu", "team.us", false).await;
    app.assert_settled(&process, "team.eu was renamed away").await;
    populate(&app, "spare", "c").await;
    rename(&app, "spare", "team.eu", false).await;
    app.assert_settled(&process, "another collection became team.eu").await;
    rename(&app, "team.us", "team.eu", true).await;
    app.assert_settled(&process, "the first one took its place").await;
    rename(&app, "repos", "folders", true).await;
    app.assert_settled(&process, "one viewed collection took the place of another").await;
    app.run_command(index("repos")).await;
    populate(&app, "repos", "d").await;
    app.assert_settled(&process, "repos is there again").await;
    // All of it once more while nobody looks.
    process.kill();
    app.run_command(doc! { "drop": "folders" }).await;
    rename(&app, "users", "folders", false).await;
    populate(&app, "users", "e").await;
    rename(&app, "repos", "spare", false).await;
    let process = app.run(&[]);
    app.assert_settled(&process, "after a restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_takes_its_facts_along_and_may_come_back() {
    let app = App::start(views::all()).await;
    let mut process = app.started(&[]).await;
    for round in 0..4 {
        for collection in ["users", "repos", "team.eu", "folders"] {
            populate(&app, collection, "a").await;
        }
        app.assert_settled(&process, "populated").await;
        if round == 2 {
            process.kill();
            app.database().drop().await.expect("dropped");
            process = app.run(&[]);
        } else {
            app.database().drop().await.expect("dropped");
        }
        // Now and then something is there before anybody has seen the end of what was.
        if round % 2 == 0 {
            populate(&app, "users", "b").await;
        }
        app.assert_settled(&process, "dropped").await;
    }
}

/// Inserts documents of several oplog entries in one transaction. A server with little cache left asks for it again.
async fn insert_at_once(app: &App, blobs: Vec<(&str, String)>) {
    let mut session = app.client().start_session().await.expect("a session");
    loop {
        match try_insert(app, &mut session, &blobs).await {
            Ok(()) => return,
            Err(error) => assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}"),
        }
        // The server has ended it already; the driver wants to hear it too.
        let _ = session.abort_transaction().await;
    }
}

async fn try_insert(app: &App, session: &mut ClientSession, blobs: &[(&str, String)]) -> Result<(), Error> {
    session.start_transaction().await?;
    for (collection, blob) in blobs {
        let document = doc! { "_id": "c", "role": "admin", "owner": "c", "n": 1, "blob": blob };
        app.database().collection(collection).insert_one(document).session(&mut *session).await?;
    }
    session.commit_transaction().await
}

/// With the images that an event could hold, it would be three times as large as an event may be.
#[tokio::test(flavor = "multi_thread")]
async fn documents_and_transactions_of_the_largest_size_are_followed() {
    let app = App::start(views::all()).await;
    app.run_command(doc! { "collMod": "users", "changeStreamPreAndPostImages": { "enabled": true } }).await;
    let large = |letter: &str, bytes: usize| letter.repeat(bytes);
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": "a", "role": "admin", "blob": large("a", LARGE) }] }).await;
    let process = app.started(&[]).await;
    app.assert_settled(&process, "read").await;
    let update = |u: Document| doc! { "update": "users", "updates": [{ "q": { "_id": "a" }, "u": u }] };
    app.run_command(update(doc! { "$set": { "role": "member", "blob": large("b", LARGE) } })).await;
    app.assert_settled(&process, "updated").await;
    app.run_command(update(doc! { "role": "guest", "blob": large("c", LARGE) })).await;
    app.assert_settled(&process, "replaced").await;
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": "b", "role": "admin", "blob": large("d", LARGE) }] }).await;
    app.assert_settled(&process, "inserted").await;
    let blobs =
        ["users", "repos", "team.eu"].into_iter().enumerate().map(|(number, collection)| (collection, large("e", LARGE / 2 - number)));
    insert_at_once(&app, blobs.collect()).await;
    app.assert_settled(&process, "a large transaction").await;
    app.run_command(doc! { "delete": "users", "deletes": [{ "q": {}, "limit": 0 }] }).await;
    app.assert_settled(&process, "deleted").await;
}

/// One view's expression fails on one document.
#[tokio::test(flavor = "multi_thread")]
async fn loud_a_document_that_a_query_fails_on_stops_that_view_only() {
    let mut views: Vec<View> = views::all().into_iter().filter(|view| view.predicate() == "has_role").collect();
    let fields = &["_id", "n"];
    let select = Select::Aggregate(serde_json::json!([{ "$set": { "n": { "$toInt": "$n" } } }]));
    views.push(View { signature: "has_number(User:_, Number:_)", collection: "users", select, fields, mode: Mode::Incremental });
    let app = App::start(views).await;
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": "a", "role": "admin", "n": "1" }] }).await;
    let process = app.started(&[]).await;
    app.assert_settled(&process, "at first").await;
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": "b", "role": "admin", "n": "secret-value" }] }).await;
    let problem = eventually_async(DEADLINE, "the problem is shown", async || problem(&process, "has_number").await).await;
    assert!(!problem.contains("secret-value") && !process.log().contains("secret-value"), "{problem}");
    app.run_command(doc! { "insert": "users", "documents": [{ "_id": "c", "role": "guest", "n": "3" }] }).await;
    let goes_on = async || (process.facts("has_role").await.len() == 3).then_some(());
    eventually_async(DEADLINE, "the other view goes on", goes_on).await;
    app.run_command(doc! { "delete": "users", "deletes": [{ "q": { "_id": "b" }, "limit": 1 }] }).await;
    app.assert_settled(&process, "after the document has gone").await;
}

/// What `/v1/status` says is wrong with the fact type of `predicate`.
async fn problem(process: &Process, predicate: &str) -> Option<String> {
    let status = process.status().await;
    let lines = status["fact_types"].as_array().expect("a list");
    let line = lines.iter().find(|line| line["fact_type"].as_str().is_some_and(|name| name.starts_with(predicate)))?;
    line["problem"].as_str().map(str::to_owned)
}

/// A lookup without its index is refreshed, and what was known of its documents before is worth nothing when the index is back.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_goes_and_comes_back_leaves_nothing_stale() {
    let app = App::start(views::all().into_iter().filter(|view| view.predicate() == "has_grant").collect()).await;
    populate(&app, "users", "a").await;
    populate(&app, "repos", "a").await;
    let owned = async |owner: &str| {
        let updates = [doc! { "q": { "_id": "a1" }, "u": { "$set": { "owner": owner } } }];
        app.run_command(doc! { "update": "repos", "updates": updates }).await;
    };
    let mut modes = Vec::new();
    for step in ["there", "gone", "back"] {
        match step {
            "gone" => app.run_command(doc! { "dropIndexes": "repos", "index": "owner_1" }).await,
            _ => app.run_command(index("repos")).await,
        };
        let process = app.started(&[]).await;
        app.assert_settled(&process, &format!("the index is {step}")).await;
        owned("a2").await;
        app.assert_settled(&process, &format!("a change while the index is {step}")).await;
        app.run_command(doc! { "delete": "repos", "deletes": [{ "q": { "owner": "a0" }, "limit": 1 }] }).await;
        app.assert_settled(&process, &format!("a delete while the index is {step}")).await;
        owned("a3").await;
        modes.push(process.status().await["fact_types"][0]["mode"].as_str().map(str::to_owned));
        app.assert_settled(&process, &format!("another change while the index is {step}")).await;
        assert!(process.terminate().success());
    }
    assert_eq!(modes, ["incremental", "refresh", "incremental"].map(|mode| Some(mode.to_owned())));
}
