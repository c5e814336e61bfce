//! Exact and atomic, seen from outside: a reader of the fact store, who asks again and again while an application writes, sees
//! nothing but states that the queries had, in their order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
};

use mongodb::bson::{Document, doc};
use serde_json::json;

use super::{
    app::{App, DATABASE, position},
    operations::{Outcome, Writer},
    oracle::Facts,
    views::{self, Mode, Select, View},
};
use crate::support::{factsync::Process, github::Random};

/// Tokens that are in one of two places each.
const TOKENS: [&str; 3] = ["x", "y", "z"];
/// Transactions that move them.
const MOVES: i64 = 400;

/// Where each token is, by `predicate`.
fn places() -> Vec<View> {
    let place = |signature, collection| View {
        signature,
        collection,
        select: Select::Find(json!({})),
        fields: &["_id", "moves"],
        mode: Mode::Incremental,
    };
    vec![place("is_left(Token:_, Move:_)", "users"), place("is_right(Token:_, Move:_)", "repos")]
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_token_that_moves_between_collections_is_always_in_one_place() {
    let mut random = Random::new("tokens");
    let app = App::start(places()).await;
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for token in TOKENS {
        app.run_command(doc! { "insert": "users", "documents": [{ "_id": token, "moves": 0 }] }).await;
        places.insert(token, 0);
    }
    let mut process = app.started(&[]).await;
    app.settle(&process).await;
    let stop = AtomicBool::new(false);
    let writer = async {
        for number in 1..=MOVES {
            move_tokens(&app, &mut random, &mut places, number).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let reader = async {
        let (mut states, mut looks, mut last) = (BTreeSet::new(), 0, 0);
        while !stop.load(Ordering::Relaxed) {
            let facts = app.stored(&process).await;
            let latest = in_one_place(&facts);
            assert!(latest >= last, "move {latest} was seen after {last}");
            last = latest;
            states.insert(facts);
            looks += 1;
            // Half way through, a crash.
            if looks == 40 {
                process.kill();
                process = app.run(&[]);
            }
        }
        (states.len(), looks, process)
    };
    let ((), (states, looks, process)) = tokio::join!(writer, reader);
    eprintln!("{states} states in {looks} looks at {MOVES} moves");
    assert!(states > 5, "only {states} states were seen in {looks} looks");
    app.assert_settled(&process, "after the moves").await;
    assert_eq!(in_one_place(&app.stored(&process).await), MOVES);
}

/// Moves some of the tokens to the other place, in one transaction, and writes the number of the move to all of them.
async fn move_tokens(app: &App, random: &mut Random, places: &mut BTreeMap<&str, usize>, number: i64) {
    let collections = ["users", "repos"];
    let mut session = app.client().start_session().await.expect("a session");
    session.start_transaction().await.expect("none is open");
    for token in TOKENS {
        let from = places[token];
        let to = if random.below(2) == 0 { from } else { 1 - from };
        let collection = |place: usize| app.database().collection::<Document>(collections[place]);
        collection(from).delete_one(doc! { "_id": token }).session(&mut session).await.expect("deleted");
        collection(to).insert_one(doc! { "_id": token, "moves": number }).session(&mut session).await.expect("inserted");
        places.insert(token, to);
    }
    session.commit_transaction().await.expect("committed");
}

/// Panics unless each token is in one place and all were moved by the same transaction; tells which.
fn in_one_place(facts: &Facts) -> i64 {
    let rows: Vec<&Vec<String>> = facts.values().flatten().collect();
    let tokens: BTreeSet<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    let moves: BTreeSet<&str> = rows.iter().map(|row| row[1].as_str()).collect();
    assert!(rows.len() == TOKENS.len() && tokens.len() == TOKENS.len(), "a token is in two places, or in none: {facts:?}");
    assert_eq!(moves.len(), 1, "half of a transaction: {facts:?}");
    moves.first().expect("one").parse().expect("a number")
}

/// Operations of the next test, after each of which the server is asked for every answer.
const STEPS: usize = 150;

#[tokio::test(flavor = "multi_thread")]
async fn exact_only_states_that_the_queries_had_are_seen_and_in_their_order() {
    let mut random = Random::new("states");
    let incremental = views::all().into_iter().filter(|view| view.mode == Mode::Incremental);
    let app = App::start(incremental.collect()).await;
    let process = app.started(&[]).await;
    let mut writer = Writer::new(app.client(), DATABASE, random.split()).await;
    let stop = AtomicBool::new(false);
    let write = async {
        let mut answers = vec![app.answers(None).await];
        while answers.len() < STEPS {
            // A large transaction is delivered in several batches, deletes first.
            if writer.small_step().await == Outcome::Done {
                answers.push(app.answers(writer.operation_time()).await);
            }
        }
        stop.store(true, Ordering::Relaxed);
        answers
    };
    let read = async {
        let mut seen: Vec<Facts> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let facts = app.stored(&process).await;
            if seen.last() != Some(&facts) {
                seen.push(facts);
            }
        }
        seen
    };
    let (answers, seen) = tokio::join!(write, read);
    let end = writer.operation_time().expect("it has written");
    process.wait_position(&position(end)).await;
    app.assert_equal(&process, "at the end").await;
    assert_in_order(&answers, &seen);
    eprintln!("{} states were seen of {}", seen.len(), answers.len());
    assert!(seen.len() > 5, "only {} states were seen", seen.len());
}

/// Panics unless each of `seen` is one of `answers`, at or after the one before it.
fn assert_in_order(answers: &[Facts], seen: &[Facts]) {
    let mut at = 0;
    for (look, facts) in seen.iter().enumerate() {
        let found = answers[at..].iter().position(|answer| answer == facts);
        at += found.unwrap_or_else(|| {
            let nearest = answers.iter().enumerate().min_by_key(|(_, answer)| differences(answer, facts).len()).expect("some");
            panic!("look {look}: no answer from {at} on; the nearest, {}, differs in {:?}", nearest.0, differences(nearest.1, facts))
        });
    }
}

fn differences(left: &Facts, right: &Facts) -> Vec<String> {
    let mut all = Vec::new();
    for (name, rows) in left {
        all.extend(rows.symmetric_difference(&right[name]).map(|row| format!("{name}{row:?}")));
    }
    all
}

/// Waits are answered for writes that no view reads, in this database and in others, and for no future.
#[tokio::test(flavor = "multi_thread")]
async fn exact_a_wait_for_a_write_that_no_view_reads_is_answered() {
    let app = App::start(places()).await;
    let process = app.started(&[]).await;
    for (database, collection) in [(DATABASE, "marks"), ("elsewhere", "marks"), (DATABASE, "users")] {
        let mut session = app.client().start_session().await.expect("a session");
        let collection = app.client().database(database).collection::<Document>(collection);
        collection.insert_one(doc! { "moves": 1 }).session(&mut session).await.expect("inserted");
        process.wait_position(&position(session.operation_time().expect("a time"))).await;
    }
    app.assert_equal(&process, "after three writes").await;
    assert_refused(&process).await;
}

async fn assert_refused(process: &Process) {
    for nonsense in ["nonsense", "1", "1:", ":1", "1:x", "-1:1", "0/1", "99999999999:1"] {
        let (status, body) = process.get(&format!("/v1/wait?position={}&timeout_ms=100", nonsense.replace('/', "%2F"))).await;
        assert_eq!(status, 400, "{nonsense}: {body}");
    }
    let (status, body) = process.get("/v1/wait?position=4000000000:1&timeout_ms=100").await;
    assert_eq!(status, 504, "{body}");
}
