//! What else `check`, `setup`, `explain` and `reset` say about a MongoDB source.

use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};

use super::Config;
use crate::support::mongod::Mongod;

async fn seeded(name: &str) -> (std::sync::Arc<Mongod>, Database) {
    let mongod = Mongod::shared().await;
    let database = mongod.client().await.database(name);
    database.collection("users").insert_one(doc! { "_id": "ann", "role": "admin" }).await.expect("inserted");
    (mongod, database)
}

#[tokio::test]
async fn views_and_time_series_are_named_with_what_to_query_instead() {
    let (mongod, database) = seeded("checks_kinds").await;
    let pipeline = vec![doc! { "$match": { "active": true } }];
    database.create_collection("active").view_on("users".to_owned()).pipeline(pipeline).await.expect("a view");
    let series = doc! { "create": "measured", "timeseries": { "timeField": "at" } };
    database.run_command(series).await.expect("a time series");
    let uri = mongod.uri("checks_kinds");
    let wanted = "\"active\" is a view, and a view has no changes of its own to follow\n  \
                  Query \"users\" with aggregate, and begin with the view's own pipeline: [{\"$match\":{\"active\":true}}].";
    let lookup = "aggregate: [{$lookup: {from: active, localField: _id, foreignField: _id, as: x}}]";
    for config in [Config::reading("active", "find: {}"), Config::reading("users", lookup)] {
        let told = config.check(&uri).expect_code(1).stdout;
        assert!(told.contains("mongo.yaml:4:") && told.contains(wanted) && told.contains("1 problems, 0 warnings"), "{told}");
    }
    let told = Config::reading("measured", "find: {}").check(&uri).expect_code(1).stdout;
    assert!(told.contains("\"measured\" is a time series collection"), "{told}");
    let told = Config::new().check(&uri).expect_code(0).stdout;
    assert!(told.contains("ok: connected to database \"checks_kinds\" of MongoDB 6.0.5"), "{told}");
    assert!(told.contains("ok: the oplog reaches back") && told.contains("0 problems, 0 warnings"), "{told}");
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_a_warning() {
    let mongod = Mongod::shared().await;
    let told = Config::new().check(&mongod.uri("checks_nowhere")).expect_code(0).stdout;
    assert!(told.contains("warning: database \"checks_nowhere\" has no collections, or does not exist"), "{told}");
}

/// The driver would read at the level of the connection string in place of a snapshot; the server's own profile says what it was asked.
#[tokio::test]
async fn a_read_concern_in_the_connection_string_takes_no_snapshot_away() {
    let (mongod, database) = seeded("checks_concern").await;
    database.run_command(doc! { "profile": 2 }).await.expect("profiled");
    let config = Config::new();
    let uris: Vec<String> =
        ["local", "majority", "linearizable"].iter().map(|level| mongod.uri(&format!("checks_concern?readConcernLevel={level}"))).collect();
    for uri in &uris {
        assert_eq!(config.reconciled(uri), ["ann admin"]);
        let told = config.check(uri).expect_code(0).stdout;
        assert!(told.contains("warning: readConcernLevel in the connection string is not used"), "{told}");
    }
    database.run_command(doc! { "profile": 0 }).await.expect("no longer profiled");
    let reads = doc! { "appName": "factsync", "command.find": "users", "op": "query" };
    let profile = database.collection::<Document>("system.profile");
    let levels = profile.distinct("command.readConcern.level", reads.clone()).await.expect("the levels");
    assert_eq!(levels, [Bson::from("snapshot")]);
    assert_eq!(profile.count_documents(reads).await.expect("counted"), uris.len() as u64);
}

#[tokio::test]
async fn a_role_that_no_member_has_and_another_set_are_told() {
    let (mongod, _) = seeded("checks_topology").await;
    let quick = "serverSelectionTimeoutMS=1500";
    let secondary = mongod.uri(&format!("checks_topology?replicaSet=rs0&readPreference=secondary&{quick}"));
    super::refused(&secondary, &["no member has the role that readPreference in the connection string asks for"]);
    let another = mongod.uri(&format!("checks_topology?replicaSet=another&{quick}"));
    super::refused(&another, &["replicaSet in the connection string may not be the set's name"]);
    let direct = mongod.uri(&format!("checks_topology?directConnection=true&{quick}"));
    assert_eq!(Config::new().reconciled(&direct), ["ann admin"]);
}

#[tokio::test]
async fn setup_reset_and_explain_know_mongodb() {
    let (mongod, _) = seeded("checks_commands").await;
    let uri = mongod.uri("checks_commands");
    let config = Config::reading("users", "aggregate: [{$lookup: {from: teams, localField: _id, foreignField: user, as: x}}]");
    let script = config.run(&["setup", "--role", "CN=sync"], &uri).expect_code(0).stdout;
    assert!(script.contains("const USER = \"CN=sync\";") && script.contains("changeStream"), "{script}");
    let applied = config.run(&["setup", "--apply"], &uri).expect_code(1);
    assert!(applied.stderr.contains("an administrator runs this in mongosh"), "{}", applied.stderr);
    assert!(applied.stdout.contains("const DATABASE = \"checks_commands\";"), "{}", applied.stdout);

    let explained = config.run(&["explain"], &uri).expect_code(0).stdout;
    assert!(explained.contains("reads teams, users"), "{explained}");

    let state = tempfile::tempdir().expect("a folder");
    std::fs::write(state.path().join("state.db"), "").expect("written");
    let reset = config.run(&["reset", "--yes", "--state", &state.path().display().to_string()], &uri).expect_code(0);
    assert!(reset.stderr.contains("factsync makes nothing on a MongoDB server"), "{}", reset.stderr);
}
