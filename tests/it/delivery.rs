//! Delivery by `run` to a fact store that misbehaves: refuses one fact, is busy, fails, and applies without answering.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::support::{eventually_async, factsync::Process};

const DEADLINE: Duration = Duration::from_secs(60);

/// What the fact store does with the next batch.
#[derive(Clone, Copy)]
enum Fault {
    Busy,
    Broken,
    /// It applies the batch, and the answer breaks off.
    LostAnswer,
}

#[derive(Default)]
struct Store {
    facts: BTreeSet<String>,
    faults: VecDeque<Fault>,
    /// `X-Request-ID` and number of entries of every batch.
    batches: Vec<(String, usize)>,
}

type Shared = Arc<Mutex<Store>>;

/// Starts the fact store; it takes no fact whose text contains `refused`.
async fn start(faults: &[Fault]) -> (Shared, String) {
    let store = Shared::default();
    store.lock().expect("no panic").faults.extend(faults);
    let router = Router::new().route("/api/batch", post(batch)).route("/api/facts", get(facts)).with_state(store.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (store, url)
}

async fn facts(State(store): State<Shared>, Query(query): Query<Vec<(String, String)>>) -> Json<Value> {
    let predicate = query.iter().find(|(key, _)| key == "predicate").map(|(_, value)| value.clone());
    let facts = store.lock().expect("no panic").facts.clone();
    let facts = facts.iter().map(|fact| serde_json::from_str::<Value>(fact).expect("stored as JSON"));
    Json(facts.filter(|fact| fact["predicate"].as_str() == predicate.as_deref()).collect())
}

async fn batch(State(store): State<Shared>, headers: HeaderMap, Json(changesets): Json<Vec<Value>>) -> Response {
    let mut store = store.lock().expect("no panic");
    let of = |key: &str| changesets.iter().filter_map(|set| set[key].as_array()).flatten().map(Value::to_string).collect::<Vec<_>>();
    let (deletes, inserts) = (of("deletes"), of("inserts"));
    let id = headers.get("x-request-id").expect("a request id").to_str().expect("text").to_owned();
    store.batches.push((id, deletes.len() + inserts.len()));
    let fault = store.faults.pop_front();
    match fault {
        Some(Fault::Busy) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], Json(json!({"message": "busy"}))).into_response();
        }
        Some(Fault::Broken) => return (StatusCode::BAD_GATEWAY, "a proxy's page").into_response(),
        Some(Fault::LostAnswer) | None => {}
    }
    if inserts.iter().any(|fact| fact.contains("refused")) {
        return (StatusCode::BAD_REQUEST, Json(json!({"message": "argument type not used in policy"}))).into_response();
    }
    store.facts.retain(|fact| !deletes.contains(fact));
    store.facts.extend(inserts);
    if let Some(Fault::LostAnswer) = fault {
        let cut = futures_util::stream::iter([Ok("{\"mess"), Err(io::Error::other("cut"))]);
        return Body::from_stream(cut).into_response();
    }
    ([("OsoOffset", "17")], Json(json!({"message": "ok"}))).into_response()
}

/// A configuration over `members.csv` in `folder`.
fn configure(folder: &Path) -> String {
    let csv = folder.join("members.csv");
    let yaml =
        format!("version: 1\nsource: csv\nfacts:\n  has_role(User:_, String:_):\n    path: {}\n    fields: [user, role]\n", csv.display());
    let config = folder.join("members.yaml");
    std::fs::write(&config, yaml).expect("written");
    config.to_str().expect("a UTF-8 path").to_owned()
}

fn write_members(folder: &Path, users: &[&str]) {
    let rows: String = users.iter().map(|user| format!("{user},member\n")).collect();
    let next = folder.join("next.csv");
    std::fs::write(&next, format!("user,role\n{rows}")).expect("written");
    std::fs::rename(next, folder.join("members.csv")).expect("renamed");
}

fn users(store: &Shared) -> Vec<String> {
    let facts = store.lock().expect("no panic").facts.clone();
    let user = |fact: &String| {
        let fact: Value = serde_json::from_str(fact).expect("stored as JSON");
        fact["args"][0]["id"].as_str().expect("a text").to_owned()
    };
    facts.iter().map(user).collect()
}

async fn run(config: &str, url: &str) -> Process {
    let process = Process::spawn(&["run", config, "--target", url, "--plan", "unlimited"], &[]);
    process.wait_ready().await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_refused_fact_is_parked_and_stops_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = configure(folder.path());
    write_members(folder.path(), &["a", "b", "refused", "c", "d", "e", "f"]);
    let (store, url) = start(&[]).await;
    let process = run(&config, &url).await;
    assert_eq!(users(&store), ["a", "b", "c", "d", "e", "f"]);
    let status = process.status().await;
    assert_eq!((&status["outbox"]["parked"], &status["outbox"]["facts"]), (&json!(1), &json!(0)), "{status}");
    assert!(process.log().contains("argument type not used in policy"), "{}", process.log());

    // A revocation after it is not held up.
    write_members(folder.path(), &["refused", "b", "c"]);
    eventually_async(DEADLINE, "the revocation arrives", async || (users(&store) == ["b", "c"]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_a_batch_is_repeated_under_its_own_id_until_it_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = configure(folder.path());
    write_members(folder.path(), &["a", "b"]);
    let (store, url) = start(&[Fault::Busy, Fault::Broken, Fault::LostAnswer]).await;
    let process = run(&config, &url).await;
    assert_eq!(users(&store), ["a", "b"]);
    let batches = store.lock().expect("no panic").batches.clone();
    let (first, _) = &batches[0];
    assert_eq!(batches.len(), 4, "{batches:?}");
    assert!(batches.iter().all(|(id, entries)| id == first && *entries == 2), "{batches:?}");
    assert_eq!(process.status().await["target"]["offset"], json!("17"));
}
