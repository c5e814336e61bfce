//! Accidents of other sources, at a new snapshot, and a source that is another database.

use mongodb::bson::{Document, doc};

use super::*;
use crate::support::{
    mongod::Mongod,
    postgres::{Cluster, Major},
};

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_snapshot_keeps_what_is_held_and_judges_what_is_new() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id <= 20").await;
    let id = first(&process).await;
    assert!(process.terminate().success());
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    // Three are gone without anybody having seen it, four are back.
    app.sql("DELETE FROM member WHERE id > 37; INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 4) i; TRUNCATE repository")
        .await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert_eq!((removals(&process, ROLE).await, removals(&process, PUBLIC).await), (vec![16], vec![40]));
    assert_eq!(first(&process).await, id, "it is the one it was");
    assert_eq!((count(&process, "has_role").await, count(&process, "is_public").await), (37, 40), "three are not too many");
    hold(&process, &["release", "--all"]).expect_code(0);
    delivered(&process).await;
    app.assert_equal(&process, "released").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_another_database_behind_the_url_changes_nothing() {
    let app = App::start(SCHEMA, &FACTS, LIMITS).await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert!(process.terminate().success());
    // Another database of the same server: the same schema, and nothing in it.
    let url = empty(&app.cluster).await;
    let process = app.run_with(&[], &[("DATABASE_URL", &url)]);
    eventually_async(DEADLINE, "it is refused", async || {
        let source = process.status().await["sources"][0].clone();
        let reason = source["reason"].as_str().unwrap_or_default();
        (source["state"] == "failed" && reason.contains("not the database this state directory was made from")).then_some(())
    })
    .await;
    assert_eq!((count(&process, "has_role").await, held(&process).await), (40, Vec::new()));
    assert_eq!(process.get("/readyz").await.0, 503);
    assert!(process.terminate().success());
    // A database of the same name on another server may be a restore, so it is followed; what it lacks is held. Tests copy one cluster, so
    // the second cannot be told from the first, as a clone of its disk could not.
    for other in [Cluster::start(Major::V18), Cluster::start(Major::V15)] {
        let url = empty(&other).await;
        let process = app.run_with(&[], &[("DATABASE_URL", &url)]);
        process.wait_ready().await;
        let waiting = [removals(&process, ROLE).await, removals(&process, PUBLIC).await].map(|holds| holds.iter().sum::<u64>());
        assert_eq!(waiting, [40, 40]);
        assert_eq!((count(&process, "has_role").await, count(&process, "is_public").await), (40, 40));
        assert!(process.terminate().success());
    }
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    assert_eq!(held(&process).await, Vec::<Value>::new());
    app.assert_equal(&process, "the right one goes on").await;
}

/// The URL of a new database with the schema and without rows.
async fn empty(cluster: &Cluster) -> String {
    let database = cluster.database();
    let client = cluster.client(&database).await;
    client.batch_execute(SCHEMA).await.expect("the schema");
    client.batch_execute("TRUNCATE member; TRUNCATE repository").await.expect("emptied");
    cluster.url(&database)
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_a_dropped_or_emptied_collection_waits_and_is_released() {
    let mongod = Mongod::shared().await;
    let client = mongod.client().await;
    let emptied = doc! { "delete": "users", "deletes": [{ "q": {}, "limit": 0 }] };
    for (database, accident) in [("hold_emptied", emptied), ("hold_dropped", doc! { "drop": "users" })] {
        let users = client.database(database).collection::<Document>("users");
        users.insert_many((0..40).map(|id| doc! { "_id": id, "role": "reader" })).await.expect("inserted");
        let folder = tempfile::tempdir().expect("a folder");
        let yaml = "{version: 1, source: mongodb, dbs: {app: {connection_string: $MONGODB_URL}}, \n\
                    sync: {max_removals: {count: 4, percent: 20}},\n\
                    facts: {\"has_role(User:_, String:_)\": {db: app, collection: users, fields: [_id, role], query: {find: {}}}}}";
        let config = folder.path().join("app.yaml");
        std::fs::write(&config, yaml).expect("written");
        let run = || {
            let state = folder.path().join("state");
            let args = ["run", config.to_str().expect("UTF-8"), "--state", state.to_str().expect("UTF-8")];
            Process::spawn(&args, &[("MONGODB_URL", &mongod.uri(database))])
        };
        let process = run();
        process.wait_ready().await;
        assert_eq!(count(&process, "has_role").await, 40, "{database}");
        client.database(database).run_command(accident).await.expect("done");
        eventually_async(DEADLINE, "it is held", async || (removals(&process, ROLE).await == [40]).then_some(())).await;
        users.insert_one(doc! { "_id": 99, "role": "owner" }).await.expect("inserted");
        eventually_async(DEADLINE, "a grant goes on", async || (count(&process, "has_role").await == 41).then_some(())).await;
        process.kill();
        let process = run();
        process.wait_ready().await;
        assert_eq!((removals(&process, ROLE).await, count(&process, "has_role").await), (vec![40], 41), "{database}");
        hold(&process, &["release", "--all"]).expect_code(0);
        delivered(&process).await;
        let left = process.facts("has_role").await;
        assert!(left.len() == 1 && left[0]["args"][0]["id"] == "99", "{database}: {left:?}");
        client.database(database).drop().await.expect("dropped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guarded_an_emptied_file_waits_while_the_rest_of_its_changes_flow_and_is_released() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("members.csv");
    let put = |rows: std::ops::Range<u32>| {
        let text: String = rows.map(|id| format!("{id},reader\n")).collect();
        let new = folder.path().join("new.csv");
        std::fs::write(&new, format!("user,role\n{text}")).and_then(|()| std::fs::rename(&new, &file)).expect("replaced");
    };
    put(0..40);
    let yaml =
        format!("version: 1\nsource: csv\nfacts:\n  {ROLE}:\n    path: {}\n    fields: [user, role]\nsync:\n  {LIMITS}\n", file.display());
    let config = folder.path().join("app.yaml");
    std::fs::write(&config, yaml).expect("written");
    let state = folder.path().join("state");
    let run = || Process::spawn(&["run", config.to_str().expect("UTF-8"), "--state", state.to_str().expect("UTF-8")], &[]);
    let process = run();
    process.wait_ready().await;
    put(0..0);
    eventually_async(DEADLINE, "it is held", async || (removals(&process, ROLE).await == [40]).then_some(())).await;
    put(100..120);
    eventually_async(DEADLINE, "grants flow", async || (count(&process, "has_role").await == 60).then_some(())).await;
    // A single revocation of the new ones goes at once, though forty wait.
    put(101..120);
    eventually_async(DEADLINE, "a revocation flows", async || (count(&process, "has_role").await == 59).then_some(())).await;
    assert_eq!(removals(&process, ROLE).await, [40]);
    assert!(process.terminate().success());
    let process = run();
    process.wait_ready().await;
    // Ten of the held are back.
    put(30..120);
    eventually_async(DEADLINE, "ten are held no longer", async || (removals(&process, ROLE).await == [30]).then_some(())).await;
    hold(&process, &["release", "--all"]).expect_code(0);
    eventually_async(DEADLINE, "the rest goes", async || (count(&process, "has_role").await == 90).then_some(())).await;
}
