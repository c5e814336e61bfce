//! What the server holds for equal, which indexes it uses, and which times it can read at.

use std::time::{Duration, Instant};

use mongodb::{IndexModel, options::IndexOptions};
use serde_json::{Value, json};

use super::*;
use crate::source::mongo::{lookup::indexed, shape::tests::classes};

/// The server drops old states a second or two after it was told to.
const HISTORY_DEADLINE: Duration = Duration::from_secs(60);

fn view(stages: Value) -> PerDocument {
    let field = |name: &str| MongoField { name: name.to_owned(), is_array: false };
    let select = MongoSelect::Aggregate(stages.as_array().expect("stages").clone());
    let query = MongoQuery { collection: "main".to_owned(), select, fields: vec![field("_id"), field("a")] };
    match Shape::of(&query).expect("Extended JSON") {
        Shape::PerDocument(view) => view,
        other => panic!("{other:?}"),
    }
}

fn numbers(from: i32, to: i32) -> Vec<Bson> {
    (from..to).map(Bson::from).collect()
}

#[tokio::test]
async fn ids_and_times_and_indexes_are_what_the_server_takes_them_for() {
    let bench = Bench::start().await;
    equality(&bench).await;
    index_on_id(&bench).await;
    index_on_the_local_field(&bench).await;
    arrays_in_arrays(&bench).await;
    times(&bench).await;
}

/// The unique index on `_id` takes one of each class of equal values.
async fn equality(bench: &Bench) {
    let ids = bench.collection("ids");
    let (mut taken, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for (value, class) in classes() {
        kinds.insert(class);
        let id = Bson::Document(doc! { "v": value });
        let inserted = ids.insert_one(doc! { "_id": &id }).await;
        assert_eq!(inserted.is_ok(), taken.insert(key(&id)), "{id}: {inserted:?}");
    }
    assert_eq!(taken.len(), kinds.len());
    let all: Vec<Bson> = bench.ids("ids").await;
    let found = ids.count_documents(equals_any("_id", &all)).await.expect("counted");
    assert_eq!(found, taken.len() as u64);
}

/// By id, only these documents are read, though another index fits the filter.
async fn index_on_id(bench: &Bench) {
    let documents = (0..2000).map(|number| doc! { "_id": number, "a": number % 2 }).collect();
    bench.fill("main", documents).await;
    bench.collection("main").create_index(IndexModel::builder().keys(doc! { "a": 1 }).build()).await.expect("an index");
    for stages in [json!([{ "$match": { "a": 1 } }]), json!([{ "$match": { "a": 1 } }, { "$set": { "b": "$$ROOT" } }])] {
        let view = view(stages);
        let ids = numbers(0, 1500);
        let aggregate = doc! { "aggregate": "main", "pipeline": view.pipeline(Some(&ids)), "cursor": {}, "hint": { "_id": 1 } };
        let plan =
            bench.database.run_command(doc! { "explain": aggregate, "verbosity": "queryPlanner" }).await.expect("a plan").to_string();
        assert!(plan.contains("\"indexName\": \"_id_\"") && !plan.contains("COLLSCAN") && !plan.contains("\"a_1\""), "{plan}");
        let rows = bench.server.rows_of(&view, &ids, bench.now().await).await.expect("rows");
        assert_eq!(rows.len(), 750);
        assert_eq!(
            rows[&key(&Bson::Int64(749))].iter().map(Row::cells).collect::<Vec<_>>(),
            [[Some("749".to_owned()), Some("1".to_owned())]]
        );
    }
    let view_of_all = view(json!([]));
    let twice: Vec<Bson> = numbers(0, 1500).into_iter().chain([Bson::Double(0.0)]).collect();
    let rows = bench.server.rows_of(&view_of_all, &twice, bench.now().await).await.expect("rows");
    assert_eq!(rows[&key(&0.into())].len(), 1, "asked for in two commands");
    let all = view(json!([{ "$match": { "a": 1 } }])).pipeline(None);
    let explain = doc! { "explain": { "aggregate": "main", "pipeline": all, "cursor": {} }, "verbosity": "queryPlanner" };
    let plan = bench.database.run_command(explain).await.expect("a plan").to_string();
    assert!(plan.contains("\"a_1\""), "{plan}");
}

async fn index_on_the_local_field(bench: &Bench) {
    let of = |field: &str| view(json!([{ "$lookup": { "from": "x", "localField": field, "foreignField": "k", "as": "r" } }]));
    let create = |keys: Document, options: IndexOptions| {
        let index = IndexModel::builder().keys(keys).options(options).build();
        async { bench.collection("main").create_index(index).await.expect("an index") }
    };
    let collation = mongodb::options::Collation::builder().locale("en").build();
    create(doc! { "first.part": -1, "b": 1 }, IndexOptions::default()).await;
    create(doc! { "sparse": 1 }, IndexOptions::builder().sparse(true).build()).await;
    create(doc! { "partial": 1 }, IndexOptions::builder().partial_filter_expression(doc! { "a": 1 }).build()).await;
    create(doc! { "hidden": 1 }, IndexOptions::builder().hidden(true).build()).await;
    create(doc! { "text": "text" }, IndexOptions::default()).await;
    create(doc! { "collated": 1 }, IndexOptions::builder().collation(collation).build()).await;
    for (field, want) in [
        ("_id", true),
        ("a", true),
        ("first.part", true),
        ("first", false),
        ("b", false),
        ("sparse", false),
        ("partial", false),
        ("hidden", false),
        ("text", false),
        ("collated", false),
        ("none", false),
    ] {
        let view = of(field);
        assert_eq!(indexed(&bench.server, &view, &view.lookups[0]).await.expect("indexes"), want, "{field}");
    }
    let mut elsewhere = of("a");
    elsewhere.collection = "nowhere".to_owned();
    assert!(!indexed(&bench.server, &elsewhere, &elsewhere.lookups[0]).await.expect("no indexes"));
}

async fn arrays_in_arrays(bench: &Bench) {
    let join = |path: &str| {
        let lookup = json!({ "$lookup": { "from": "x", "localField": "a.b", "foreignField": "k", "as": "r" } });
        view(json!([{ "$unwind": path }, lookup]))
    };
    bench.fill("main", vec![doc! { "_id": 1, "a": [{ "b": 1 }] }, doc! { "_id": 2, "a": [[{ "b": 1 }]] }]).await;
    let at = bench.now().await;
    let (inner, outer) = (join("$a.b"), join("$a"));
    assert!(bench.server.rows_of(&inner, &numbers(1, 3), at).await.is_ok(), "what is unwound is the local field itself");
    assert!(bench.server.rows_of(&outer, &numbers(1, 2), at).await.is_ok(), "the other document is not asked for");
    let refused = bench.server.rows_of(&outer, &numbers(1, 3), at).await;
    assert!(matches!(&refused, Err(ReadError::ArrayInArray { path }) if path == "a"), "{refused:?}");
}

async fn times(bench: &Bench) {
    let view = view(json!([]));
    bench.fill("main", vec![doc! { "_id": 1, "a": "old" }]).await;
    let before = bench.now().await;
    bench.fill("main", vec![doc! { "_id": 1, "a": "new" }]).await;
    let cell = |rows: BTreeMap<String, Vec<Row>>| rows[&key(&1.into())][0].cells()[1].clone();
    for (at, want) in [(before, "old"), (bench.now().await, "new")] {
        let rows = bench.server.rows_of(&view, &numbers(1, 2), at).await.expect("rows");
        assert_eq!(cell(rows).as_deref(), Some(want));
    }
    bench.collection("late").insert_one(doc! {}).await.expect("inserted");
    let late = bench.server.aggregate_at("late", Vec::new(), before).await.map(drop);
    assert!(matches!(late, Err(ReadError::Unavailable(_))), "{late:?}");

    let admin = bench.mongod.client().await.database("admin");
    admin.run_command(doc! { "setParameter": 1, "minSnapshotHistoryWindowInSeconds": 0 }).await.expect("set");
    let deadline = Instant::now() + HISTORY_DEADLINE;
    loop {
        match bench.server.rows_of(&view, &numbers(1, 2), before).await {
            Err(ReadError::TooOld(_)) => break,
            Err(error) => panic!("{error:?}"),
            Ok(_) => assert!(Instant::now() < deadline, "the server keeps old states"),
        }
        bench.collection("main").insert_one(doc! {}).await.expect("inserted");
    }
}
