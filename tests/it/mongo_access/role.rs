//! The role that `setup` prints: enough for everything that is done with a database, and for nothing else.
//!
//! There is no mongosh here, so node runs the script with a `db` that prints each command, and the driver sends them.

use std::{io::Write, process::Command, process::Stdio};

use futures_util::StreamExt;
use mongodb::{
    Client, Database,
    bson::{Bson, Document, doc},
};

use super::{Config, SECRET};
use crate::support::{eventually_async, factsync::Output, secured_mongod::Secured};

/// Until a source that cannot be used says so.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(30);

/// What mongosh offers the script, as commands on stdout, one a line: `DATABASE COMMAND`.
const MONGOSH: &str = r#"
const exists = process.argv[2] === "again";
const print = (name, command) => console.log(name + " " + JSON.stringify(command));
const passwordPrompt = () => "pass-word";
const db = { getSiblingDB: (name) => ({
  getRole: () => (exists ? {} : null),
  getUser: () => (exists ? {} : null),
  createRole: ({ role, ...more }) => print(name, { createRole: role, ...more }),
  updateRole: (role, more) => print(name, { updateRole: role, ...more }),
  createUser: ({ user, ...more }) => print(name, { createUser: user, ...more }),
  grantRolesToUser: (user, roles) => print(name, { grantRolesToUser: user, roles }),
}) };
"#;

/// Runs what `setup` printed, as an administrator would.
async fn apply(admin: &Client, script: &Output, again: &str) {
    let mut node = Command::new("node");
    node.args(["-", again]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = node.spawn().expect("node is installed; tests/run.sh does that");
    node.stdin.take().expect("piped").write_all(format!("{MONGOSH}{}", script.stdout).as_bytes()).expect("written");
    let output = node.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", script.stdout);
    for line in String::from_utf8(output.stdout).expect("text").lines() {
        let (database, command) = line.split_once(' ').expect("a database and a command");
        let command: Document = serde_json::from_str(command).expect("a command");
        admin.database(database).run_command(command).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

async fn seed(database: &Database) {
    database.collection("users").insert_one(doc! { "_id": "ann", "role": "admin" }).await.expect("inserted");
}

#[tokio::test]
async fn the_role_is_enough_for_snapshots_and_change_streams() {
    const DATABASE: &str = "role_enough";
    let secured = Secured::shared().await;
    let admin = secured.root().await;
    seed(&admin.database(DATABASE)).await;
    let uri = secured.uri("sync:pass-word", DATABASE, "authSource=admin");
    let script = Config::new().run(&["setup"], &uri).expect_code(0);
    // Once more changes nothing: the role and the user are there.
    apply(&admin, &script, "first").await;
    apply(&admin, &script, "again").await;

    assert_eq!(Config::new().reconciled(&uri), ["ann admin"]);
    let told = Config::new().check(&uri).expect_code(0).stdout;
    assert!(told.contains("ok: a change stream on the database can be opened") && told.contains("0 problems, 0 warnings"), "{told}");

    let client = Client::with_uri_str(&uri).await.expect("a client");
    let database = client.database(DATABASE);
    let now = database.run_command(doc! { "ping": 1 }).await.expect("an answer").get_timestamp("operationTime").expect("a time");
    let mut stream = database.watch().start_at_operation_time(now).await.expect("a change stream on the database");
    let change = doc! { "$set": { "role": "none" } };
    admin.database(DATABASE).collection::<Document>("users").update_one(doc! { "_id": "ann" }, change).await.expect("updated");
    let event = stream.next().await.expect("an event").expect("the change");
    assert_eq!(event.document_key, Some(doc! { "_id": "ann" }));
    // As it was before the change.
    let at = doc! { "level": "snapshot", "atClusterTime": now };
    let find = doc! { "find": "users", "readConcern": at.clone() };
    let aggregate = doc! { "aggregate": "users", "pipeline": [], "cursor": {}, "readConcern": at };
    for command in [find, aggregate] {
        let answer = database.run_command(command).await.expect("a snapshot");
        let batch = answer.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch")).expect("documents");
        let role = batch[0].as_document().and_then(|found| found.get_str("role").ok());
        assert_eq!(role, Some("admin"));
    }
}

/// What is revoked in the database is revoked in the fact store, by a user of exactly this role, over TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_is_enough_to_follow() {
    const DATABASE: &str = "role_followed";
    let secured = Secured::shared().await;
    let admin = secured.root().await;
    seed(&admin.database(DATABASE)).await;
    let uri = secured.uri("follower:pass-word", DATABASE, "authSource=admin");
    let config = Config::new();
    apply(&admin, &config.run(&["setup"], &uri).expect_code(0), "first").await;
    let process = config.follow(&uri);
    process.wait_ready().await;
    assert_eq!(process.facts("has_role").await.len(), 1);
    let delete = doc! { "delete": "users", "deletes": [{ "q": { "_id": "ann" }, "limit": 1 }] };
    let answer = admin.database(DATABASE).run_command(delete).await.expect("deleted");
    let time = answer.get_timestamp("operationTime").expect("a time");
    process.wait_position(&format!("{}:{}", time.time, time.increment)).await;
    assert_eq!(process.facts("has_role").await, [""; 0]);
    assert!(!process.log().contains(SECRET), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_refused_says_what_to_do() {
    let secured = Secured::shared().await;
    let own = secured.uri("nobody:pass-word", "role_refused", "serverSelectionTimeoutMS=1500");
    let other = own.replace(&secured.certificates().file("ca.crt"), &secured.certificates().file("server.crt"));
    for (uri, wanted) in [(own, "Check the user, the password and authSource"), (other, "another authority than those in tlsCAFile")] {
        let config = Config::new();
        let process = config.follow(&uri);
        let told = eventually_async(DEADLINE, "the source has failed", async || {
            let status = process.status().await;
            (status["sources"][0]["state"] == "failed").then(|| status.to_string())
        });
        let told = told.await;
        assert!(told.contains(wanted), "{told}");
        for text in [told, process.log()] {
            assert!(!text.contains(SECRET), "{text}");
        }
    }
}

#[tokio::test]
async fn the_role_is_enough_for_nothing_else() {
    const DATABASE: &str = "role_bounds";
    let secured = Secured::shared().await;
    let admin = secured.root().await;
    seed(&admin.database(DATABASE)).await;
    seed(&admin.database("role_beyond")).await;
    let uri = secured.uri("bound:pass-word", DATABASE, "authSource=admin");
    apply(&admin, &Config::new().run(&["setup"], &uri).expect_code(0), "first").await;
    let client = Client::with_uri_str(&uri).await.expect("a client");
    let (own, other) = (client.database(DATABASE), client.database("role_beyond"));
    for (database, command) in [
        (&own, doc! { "insert": "users", "documents": [{ "_id": "eve" }] }),
        (&own, doc! { "delete": "users", "deletes": [{ "q": {}, "limit": 0 }] }),
        (&own, doc! { "drop": "users" }),
        (&own, doc! { "createIndexes": "users", "indexes": [{ "key": { "role": 1 }, "name": "role" }] }),
        (&own, doc! { "aggregate": "users", "pipeline": [{ "$out": "copy" }], "cursor": {} }),
        (&other, doc! { "find": "users" }),
        (&other, doc! { "listCollections": 1 }),
        (&client.database("local"), doc! { "find": "oplog.rs", "limit": 1 }),
        (&client.database("admin"), doc! { "getParameter": "*" }),
    ] {
        let error = database.run_command(command.clone()).await.expect_err("refused");
        let code = match &*error.kind {
            mongodb::error::ErrorKind::Command(error) => error.code,
            _ => 0,
        };
        assert_eq!(code, 13, "{command}: {error}");
    }
}

#[tokio::test]
async fn check_names_each_privilege_that_is_taken_away() {
    const DATABASE: &str = "role_less";
    const NEEDED: [&str; 4] = ["find", "changeStream", "listCollections", "listIndexes"];
    let secured = Secured::shared().await;
    let admin = secured.root().await;
    seed(&admin.database(DATABASE)).await;
    let uri = secured.uri("less:pass-word", DATABASE, "authSource=admin");
    apply(&admin, &Config::new().run(&["setup"], &uri).expect_code(0), "first").await;
    for taken in NEEDED {
        let left: Vec<Bson> = NEEDED.into_iter().filter(|action| *action != taken).map(Bson::from).collect();
        let privileges = vec![doc! { "resource": { "db": DATABASE, "collection": "" }, "actions": left }];
        admin.database(DATABASE).run_command(doc! { "updateRole": "factsync", "privileges": privileges }).await.expect("updated");
        let told = Config::new().check(&uri).expect_code(1).stdout;
        let problem = format!("problem: the user may not {taken} on all of database \"{DATABASE}\"\n  Have an administrator run");
        assert!(told.contains(&problem) && told.contains("1 problems, 0 warnings"), "{taken}: {told}");
    }
}
