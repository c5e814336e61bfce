//! A fact store that remembers every state it was in.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::followed::{Answers, arguments};

/// What it holds and has held.
#[derive(Debug, Default)]
pub(crate) struct Record {
    facts: BTreeSet<String>,
    /// After every batch: the facts of each query.
    pub(crate) states: Vec<Answers>,
    /// Inserts of what was there and deletes of what was not.
    pub(super) idle: Vec<String>,
    repeated: BTreeSet<String>,
    queries: usize,
}

/// The fact store; it ends with the test's runtime.
pub(crate) struct Recorder {
    pub(crate) url: String,
    record: Arc<Mutex<Record>>,
}

type Shared = State<Arc<Mutex<Record>>>;

impl Recorder {
    /// For facts whose predicates are `q0` and so on, `queries` of them.
    pub(crate) async fn start(queries: usize) -> Self {
        let record = Arc::new(Mutex::new(Record { queries, ..Record::default() }));
        let router = Router::new().route("/api/batch", post(batch)).route("/api/facts", get(facts)).with_state(record.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, record }
    }

    /// How many batches it has acknowledged.
    pub(crate) fn batches(&self) -> usize {
        self.record.lock().expect("no panic").states.len()
    }

    /// The states since the first `seen`, after each batch.
    pub(crate) fn since(&self, seen: usize) -> Vec<Answers> {
        self.record.lock().expect("no panic").states[seen..].to_vec()
    }

    /// The facts it holds.
    pub(crate) fn holds(&self) -> Answers {
        self.record.lock().expect("no panic").state()
    }

    /// Everything it remembers; it starts anew.
    pub(super) fn take(&self) -> Record {
        std::mem::take(&mut *self.record.lock().expect("no panic"))
    }
}

async fn facts(State(record): Shared, Query(query): Query<Vec<(String, String)>>) -> Json<Value> {
    let predicate = query.iter().find(|(key, _)| key == "predicate").map(|(_, value)| value.clone());
    let facts = record.lock().expect("no panic").facts.clone();
    let facts = facts.iter().map(|fact| serde_json::from_str::<Value>(fact).expect("stored as JSON"));
    Json(facts.filter(|fact| fact["predicate"].as_str() == predicate.as_deref()).collect())
}

async fn batch(State(record): Shared, headers: HeaderMap, Json(changesets): Json<Vec<Value>>) -> Response {
    let mut record = record.lock().expect("no panic");
    let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).expect("a request id").to_owned();
    // A batch may come twice, and the second time changes nothing.
    if record.repeated.insert(id) {
        for changeset in &changesets {
            for (kind, facts) in changeset.as_object().expect("a changeset") {
                for fact in facts.as_array().expect("facts") {
                    record.apply(kind, fact.to_string());
                }
            }
        }
        let state = record.state();
        record.states.push(state);
    }
    ([("OsoOffset", record.states.len().to_string())], Json(json!({ "message": "ok" }))).into_response()
}

impl Record {
    fn apply(&mut self, kind: &str, fact: String) {
        let changed = match kind {
            "inserts" => self.facts.insert(fact.clone()),
            "deletes" => self.facts.remove(&fact),
            other => panic!("{other:?} is neither inserts nor deletes"),
        };
        if !changed {
            self.idle.push(format!("{kind}: {fact}"));
        }
    }

    fn state(&self) -> Answers {
        let mut state = vec![BTreeSet::new(); self.queries];
        for fact in &self.facts {
            let fact: Value = serde_json::from_str(fact).expect("stored as JSON");
            let number = fact["predicate"].as_str().and_then(|name| name.strip_prefix('q')?.parse::<usize>().ok());
            state[number.expect("q and a number")].insert(arguments(&fact));
        }
        state
    }
}
