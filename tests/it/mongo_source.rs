//! The MongoDB source against a real mongod.

mod ahead;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use factsync::{
    config::{MongoConfig, MongoField, MongoQuery, MongoSelect, Place, SecretString, View},
    error::Disposition,
    source::{Snapshot, SourceError, mongo, postgres::Severity},
};
use mongodb::{
    Client, Database,
    bson::{Binary, Bson, DateTime, Decimal128, Document, Regex, Timestamp, doc, oid::ObjectId, spec::BinarySubtype},
};
use serde_json::{Value, json};

use crate::support::mongod::Mongod;

type Cells = Vec<Vec<Option<String>>>;

/// A fact type with as many variables as there are fields; a field's name ends in `[]` if it is an array to unwind.
fn view(number: usize, collection: &str, fields: &[&str], select: MongoSelect) -> View<MongoQuery> {
    let variables = vec!["String:_"; fields.len()].join(", ");
    let field = |name: &&str| MongoField { name: name.trim_end_matches("[]").to_owned(), is_array: name.ends_with("[]") };
    View {
        fact_type: format!("view_{number}({variables})").parse().expect("a signature"),
        place: Place { file: "sync.yaml".into(), line: number, column: 1 },
        query: MongoQuery { collection: collection.to_owned(), select, fields: fields.iter().map(field).collect() },
    }
}

fn find(filter: Value) -> MongoSelect {
    MongoSelect::Find(filter)
}

fn aggregate(stages: Value) -> MongoSelect {
    MongoSelect::Aggregate(stages.as_array().expect("stages").clone())
}

fn config(uri: &str, views: Vec<View<MongoQuery>>) -> MongoConfig {
    MongoConfig { connection_string: SecretString::from(uri.to_owned()), views }
}

async fn snapshot(config: &MongoConfig) -> Result<Snapshot, SourceError> {
    let spool = tempfile::tempdir().expect("a folder");
    mongo::snapshot("app", config, spool.path(), &|_, _| {}).await
}

/// Each view's rows in order, or its error.
async fn read(uri: &str, views: Vec<View<MongoQuery>>) -> Vec<Result<Cells, SourceError>> {
    let snapshot = snapshot(&config(uri, views)).await.expect("a snapshot");
    assert!(snapshot.position.is_some(), "a snapshot is one of a cluster time");
    let cells = |extent: factsync::data::Extent| extent.map(|row| row.expect("a row").cells()).collect();
    snapshot.views.into_iter().map(|view| view.map(cells)).collect()
}

fn some(rows: &[&[&str]]) -> Cells {
    rows.iter().map(|row| row.iter().map(|cell| Some((*cell).to_owned())).collect()).collect()
}

/// The error and its causes, as a person sees them.
fn chain(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[tokio::test]
async fn every_type_has_its_text_or_none() {
    let mongod = Mongod::shared().await;
    let database = mongod.client().await.database("types");
    let bytes = (0..16).collect::<Vec<u8>>();
    let binary = |subtype| Bson::Binary(Binary { subtype, bytes: bytes.clone() });
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"));
    let id: ObjectId = "65f0a1b2c3d4e5f601020304".parse().expect("an id");
    let values: Vec<(Bson, Option<&str>)> = vec![
        ("é\u{0}x".into(), Some("é\u{0}x")),
        (Bson::Symbol("old".into()), Some("old")),
        (id.into(), Some("65f0a1b2c3d4e5f601020304")),
        (7_i32.into(), Some("7")),
        (i64::MAX.into(), Some("9223372036854775807")),
        (3.0.into(), Some("3")),
        (0.1.into(), Some("0.1")),
        (f64::NAN.into(), None),
        (decimal("12345678901234567890.50"), Some("12345678901234567890.5")),
        (decimal("3E+2"), Some("300")),
        (decimal("Infinity"), None),
        (true.into(), Some("true")),
        (DateTime::from_millis(1_767_323_045_000).into(), Some("2026-01-02T03:04:05Z")),
        (DateTime::from_millis(1_767_323_045_020).into(), Some("2026-01-02T03:04:05.020Z")),
        (binary(BinarySubtype::Uuid), Some("00010203-0405-0607-0809-0a0b0c0d0e0f")),
        (binary(BinarySubtype::UuidOld), Some("00010203-0405-0607-0809-0a0b0c0d0e0f")),
        (binary(BinarySubtype::Generic), None),
        (doc! {"a": 1}.into(), None),
        (vec![1, 2].into(), None),
        (Bson::Null, None),
        (Bson::Timestamp(Timestamp { time: 1, increment: 1 }), None),
        (Bson::RegularExpression(Regex { pattern: "a".try_into().expect("a pattern"), options: "".try_into().expect("options") }), None),
        (Bson::JavaScriptCode("1".into()), None),
        (Bson::MinKey, None),
        (Bson::MaxKey, None),
    ];
    let documents = values.iter().enumerate().map(|(n, (value, _))| doc! { "_id": format!("{n:02}"), "deep": { "value": value.clone() } });
    database.collection("all").insert_many(documents).await.expect("inserted");
    database.collection("all").insert_one(doc! { "_id": "missing" }).await.expect("inserted");

    let got = read(&mongod.uri("types"), vec![view(0, "all", &["_id", "deep.value"], find(json!({})))]).await.remove(0).expect("a view");
    let mut want: Cells = values.iter().enumerate().map(|(n, (_, text))| vec![Some(format!("{n:02}")), text.map(str::to_owned)]).collect();
    want.push(vec![Some("missing".to_owned()), None]);
    assert_eq!(got, want);
}

#[tokio::test]
async fn arrays_are_unwound_in_find_and_in_aggregate() {
    let mongod = Mongod::shared().await;
    let repositories = mongod.client().await.database("arrays").collection::<Document>("repositories");
    let documents = [
        doc! { "_id": 1, "members": ["ann", "bob", null], "teams": [{ "id": 7, "role": "read" }, { "id": 8, "role": "write" }] },
        doc! { "_id": 2, "members": "cid", "teams": [] },
        doc! { "_id": 3, "members": [] },
        doc! { "_id": 4, "members": null },
        doc! { "_id": 5 },
    ];
    repositories.insert_many(documents).await.expect("inserted");
    let everything = || find(json!({}));
    let views = read(
        &mongod.uri("arrays"),
        vec![
            view(0, "repositories", &["members[]", "_id"], everything()),
            view(1, "repositories", &["_id", "teams.id[]"], everything()),
            view(2, "repositories", &["_id", "members"], everything()),
            view(3, "repositories", &["_id", "members[]"], aggregate(json!([{ "$match": { "_id": { "$lt": 3 } } }]))),
            view(4, "repositories", &["teams.id", "teams.role", "_id"], aggregate(json!([{ "$unwind": "$teams" }]))),
        ],
    )
    .await;
    let views: Vec<Cells> = views.into_iter().map(|view| view.expect("a view")).collect();
    let none_of = |id: &str| vec![None, Some(id.to_owned())];
    assert_eq!(views[0], [vec![none_of("1")], some(&[&["ann", "1"], &["bob", "1"], &["cid", "2"]])].concat());
    assert_eq!(views[1], some(&[&["1", "7"], &["1", "8"]]));
    let ids: Vec<_> = views[2].iter().map(|row| (row[0].as_deref(), row[1].as_deref())).collect();
    assert_eq!(ids, [(Some("1"), None), (Some("2"), Some("cid")), (Some("3"), None), (Some("4"), None), (Some("5"), None)]);
    let null = vec![Some("1".to_owned()), None];
    assert_eq!(views[3], [vec![null], some(&[&["1", "ann"], &["1", "bob"], &["2", "cid"]])].concat());
    assert_eq!(views[4], some(&[&["7", "read", "1"], &["8", "write", "1"]]));
}

#[tokio::test]
async fn filters_and_pipelines_take_extended_json() {
    let mongod = Mongod::shared().await;
    let users = mongod.client().await.database("extended").collection::<Document>("users");
    let (old, new) = (ObjectId::new(), ObjectId::new());
    let at = |text| DateTime::parse_rfc3339_str(text).expect("a date");
    users.insert_one(doc! { "_id": old, "at": at("2020-01-01T00:00:00Z"), "n": 1_i64 }).await.expect("inserted");
    users.insert_one(doc! { "_id": new, "at": at("2030-01-01T00:00:00Z"), "n": 2_i64 }).await.expect("inserted");
    let views = read(
        &mongod.uri("extended"),
        vec![
            view(0, "users", &["n"], find(json!({ "_id": { "$oid": old.to_hex() } }))),
            view(1, "users", &["n"], find(json!({ "at": { "$gt": { "$date": "2025-06-01T00:00:00Z" } } }))),
            view(
                2,
                "users",
                &["_id.year", "sum"],
                aggregate(json!([
                    { "$match": { "at": { "$lt": { "$date": { "$numberLong": "1893456000001" } } } } },
                    { "$group": { "_id": { "year": { "$year": "$at" } }, "sum": { "$sum": "$n" } } },
                ])),
            ),
        ],
    )
    .await;
    let views: Vec<Cells> = views.into_iter().map(|view| view.expect("a view")).collect();
    assert_eq!(views, [some(&[&["1"]]), some(&[&["2"]]), some(&[&["2020", "1"], &["2030", "2"]])]);
}

/// More rows than a chunk and a batch hold, and the observer hears of all of them.
#[tokio::test]
async fn many_documents_come_in_batches() {
    const DOCUMENTS: u64 = 25_000;
    let mongod = Mongod::shared().await;
    let many = mongod.client().await.database("many").collection::<Document>("many");
    many.insert_many((0..DOCUMENTS).map(|n| doc! { "_id": n as i64 })).await.expect("inserted");
    let (seen, reports) = (AtomicU64::new(0), AtomicU64::new(0));
    let observer = |view: usize, rows: u64| {
        assert_eq!(view, 0);
        assert!(seen.swap(rows, Ordering::Relaxed) <= rows, "the count only grows");
        reports.fetch_add(1, Ordering::Relaxed);
    };
    let spool = tempfile::tempdir().expect("a folder");
    let config = config(&mongod.uri("many"), vec![view(0, "many", &["_id"], find(json!({})))]);
    let snapshot = mongo::snapshot("app", &config, spool.path(), &observer).await.expect("a snapshot");
    let extent = snapshot.views.into_iter().next().expect("one").expect("a view");
    assert_eq!(extent.count() as u64, DOCUMENTS);
    assert_eq!(seen.load(Ordering::Relaxed), DOCUMENTS);
    assert!(reports.load(Ordering::Relaxed) > 2, "it reports on the way");
}

/// A writer moves one token between two collections, each time in one transaction; whoever reads both at one time sees it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_views_show_one_state_while_transactions_commit() {
    const SNAPSHOTS: usize = 40;
    let mongod = Mongod::shared().await;
    let client = mongod.client().await;
    let database = client.database("moving");
    database.collection::<Document>("left").insert_one(doc! { "_id": "token", "moves": 0_i64 }).await.expect("inserted");
    database.create_collection("right").await.expect("created");
    let stop = AtomicBool::new(false);
    let writer = async {
        let mut moves = 0_i64;
        while !stop.load(Ordering::Relaxed) {
            moves += 1;
            let (from, to) = if moves % 2 == 1 { ("left", "right") } else { ("right", "left") };
            move_token(&client, &database, from, to, moves).await;
        }
        moves
    };
    let reader = async {
        let mut states = std::collections::BTreeSet::new();
        for _ in 0..SNAPSHOTS {
            let view = |number, collection| view(number, collection, &["_id", "moves"], find(json!({})));
            let views = read(&mongod.uri("moving"), vec![view(0, "left"), view(1, "right"), view(2, "left")]).await;
            let [left, right, again] = <[_; 3]>::try_from(views).expect("three views").map(|view| view.expect("a view"));
            assert_eq!(left, again, "the same collection twice");
            let both = [left, right].concat();
            assert_eq!(both.len(), 1, "the token is in one place: {both:?}");
            states.insert(both);
        }
        stop.store(true, Ordering::Relaxed);
        states.len()
    };
    let (moves, states) = tokio::join!(writer, reader);
    assert!(states > 2, "the writer moved during the reads: {states} states, {moves} moves");
}

async fn move_token(client: &Client, database: &Database, from: &str, to: &str, moves: i64) {
    let mut session = client.start_session().await.expect("a session");
    session.start_transaction().await.expect("started");
    let (from, to) = (database.collection::<Document>(from), database.collection::<Document>(to));
    from.delete_one(doc! { "_id": "token" }).session(&mut session).await.expect("deleted");
    to.insert_one(doc! { "_id": "token", "moves": moves }).session(&mut session).await.expect("inserted");
    session.commit_transaction().await.expect("committed");
}

#[tokio::test]
async fn a_bad_query_hides_no_other_view_and_quotes_no_document() {
    let mongod = Mongod::shared().await;
    let users = mongod.client().await.database("bad").collection::<Document>("users");
    users.insert_one(doc! { "_id": 1, "age": "secret-age" }).await.expect("inserted");
    let views = read(
        &mongod.uri("bad"),
        vec![
            view(0, "users", &["_id"], aggregate(json!([{ "$frobnicate": {} }]))),
            view(1, "users", &["_id", "age"], aggregate(json!([{ "$set": { "age": { "$toInt": "$age" } } }]))),
            view(2, "users", &["_id"], find(json!({ "_id": { "$oid": "no id" } }))),
            view(3, "users", &["_id"], find(json!({}))),
            view(4, "nobody", &["_id"], find(json!({}))),
        ],
    )
    .await;
    let [stage, convert, filter, good, missing] = <[_; 5]>::try_from(views).expect("five views");
    let stage = stage.expect_err("no such stage");
    let want = "could not read fact type \"view_0(String:_)\" from source \"app\": ";
    assert!(stage.to_string().starts_with(want) && stage.to_string().contains("'$frobnicate'"), "{stage}");
    assert_eq!(stage.disposition(), Disposition::Operator);
    let convert = chain(&convert.expect_err("no number"));
    assert!(convert.contains("(ConversionFailure)") && !convert.contains("secret-age"), "{convert}");
    let filter = filter.expect_err("no id").to_string();
    assert!(filter.contains("could not read find as Extended JSON"), "{filter}");
    assert_eq!(good.expect("a view"), some(&[&["1"]]));
    assert_eq!(missing.expect("a view"), some(&[]), "a collection that does not exist is empty");
}

#[tokio::test]
async fn a_probe_judges_every_query_without_running_it() {
    let mongod = Mongod::shared().await;
    let users = mongod.client().await.database("probed").collection::<Document>("users");
    users.insert_one(doc! { "_id": 1, "age": "x" }).await.expect("inserted");
    let views = vec![
        view(0, "users", &["_id"], find(json!({ "age": { "$exists": true } }))),
        view(1, "users", &["_id"], find(json!({ "$nope": 1 }))),
        view(2, "nobody", &["_id"], aggregate(json!([{ "$match": {} }]))),
        view(3, "nobody", &["_id"], aggregate(json!([{ "$match": { "$nope": 1 } }]))),
        view(4, "users", &["_id"], find(json!({ "_id": { "$oid": 1 } }))),
        view(5, "users", &["_id"], aggregate(json!([{ "$set": { "age": { "$toInt": "$age" } } }]))),
    ];
    let findings = mongo::probe("app", &config(&mongod.uri("probed"), views)).await.expect("probed");
    let placed: Vec<_> = findings.iter().filter_map(|finding| Some((finding.place.as_ref()?.line, finding))).collect();
    let numbers: Vec<_> = placed.iter().map(|(line, finding)| (*line, finding.severity == Severity::Problem)).collect();
    assert_eq!(numbers, [(1, true), (2, false), (3, false), (3, true), (4, true)], "{findings:?}");
    assert_eq!(placed[1].1.text, "database \"probed\" has no collection \"nobody\", so it counts as empty");
    assert!(placed[0].1.text.contains("$nope"), "{findings:?}");
}

#[tokio::test]
async fn without_an_initiated_replica_set_the_remedy_is_named() {
    for (mongod, options) in [(Mongod::standalone().await, ""), (Mongod::uninitiated().await, "?directConnection=true")] {
        let config = config(&(mongod.uri("app") + options), vec![view(0, "users", &["_id"], find(json!({})))]);
        let error = snapshot(&config).await.expect_err("no snapshots here");
        assert_eq!(error.disposition(), Disposition::Operator);
        assert_eq!(
            chain(&error),
            "source \"app\" refused to read a snapshot. Start mongod with --replSet and run rs.initiate() once in mongosh; \
             one node is enough.: the server is not a member of an initiated replica set"
        );
        assert_eq!(chain(&mongo::probe("app", &config).await.expect_err("nor for a probe")), chain(&error));
    }
}

#[tokio::test]
async fn no_error_holds_the_password() {
    let mongod = Mongod::shared().await;
    let host = mongod.uri("app").trim_start_matches("mongodb://").to_owned();
    let quick = "serverSelectionTimeoutMS=200";
    for (uri, disposition, want) in [
        (format!("mongodb://user:hunter2@{host}?authSource=admin&{quick}"), Disposition::Operator, "authSource"),
        // A "/" and a second "@" that should have been escaped: the driver takes a part of the password for the host.
        (format!("mongodb://user:hunter2/hunter2@{host}"), Disposition::Operator, "Percent-encode"),
        (format!("mongodb://user:hunter2@hunter2@{host}"), Disposition::Operator, "Percent-encode"),
        (format!("mongodb://user:hunter2@{host}?hunter2"), Disposition::Operator, "Percent-encode"),
        (format!("mongodb://user:hunter2@127.0.0.1:1/app?{quick}"), Disposition::Retry, "could not connect at source \"app\""),
        (mongod.uri(""), Disposition::Operator, "Name the database"),
    ] {
        let error = snapshot(&config(&uri, Vec::new())).await.expect_err(want);
        let text = format!("{} {error:?}", chain(&error));
        assert!(text.contains(want) && !text.contains("hunter2"), "{text}");
        assert_eq!(error.disposition(), disposition, "{text}");
    }
}

/// The server dies while it is read; the whole snapshot fails at once and is to be tried again.
#[tokio::test]
async fn a_server_that_dies_fails_the_snapshot_and_not_each_view() {
    let mongod = std::sync::Mutex::new(Some(Mongod::start().await));
    let uri = mongod.lock().expect("not poisoned").as_ref().map(|mongod| mongod.uri("app")).expect("it runs");
    let client = Client::with_uri_str(&uri).await.expect("a client");
    let many = client.database("app").collection::<Document>("many");
    many.insert_many((0..30_000).map(|n| doc! { "_id": n })).await.expect("inserted");
    let kill = |_: usize, _: u64| drop(mongod.lock().expect("not poisoned").take());
    let view = |number| view(number, "many", &["_id"], find(json!({})));
    let config = config(&format!("{uri}?serverSelectionTimeoutMS=200"), vec![view(0), view(1)]);
    let spool = tempfile::tempdir().expect("a folder");
    let error = mongo::snapshot("app", &config, spool.path(), &kill).await.expect_err("it died");
    assert_eq!(error.disposition(), Disposition::Retry, "{}", chain(&error));
}
