//! The process is killed while it writes: what was answered is there afterwards, and nothing is there by halves.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
    thread,
};

use factsync::fact::{Fact, Value};
use serde_json::json;

use super::server::Client;
use crate::support::factsync::Process;

const WRITERS: usize = 8;

/// Answers each writer waits for before the process is killed.
const ANSWERS: usize = 20;

/// Facts of one batch; it is applied as a whole or not at all.
const FACTS: usize = 7;

fn facts(writer: usize, batch: usize) -> impl Iterator<Item = Fact> {
    (0..FACTS).map(move |n| {
        let args = [("Writer", writer), ("Batch", batch), ("Integer", n)];
        Fact { predicate: "f".into(), args: args.map(|(type_name, id)| Value::new(type_name, id.to_string())).to_vec() }
    })
}

pub(super) fn serve(state: &str) -> Process {
    Process::spawn(&["serve", "--limits", "off", "--state", state], &[])
}

pub(super) fn connect(process: &Process) -> Client {
    Client::connect(process.url().trim_start_matches("http://").parse().expect("an address"))
}

/// Writes batch after batch until the process is gone; says how many were answered.
fn write_until_killed(mut client: Client, writer: usize, killing: &Barrier) -> usize {
    let mut answered = 0;
    loop {
        let batch: Vec<_> = facts(writer, answered).collect();
        let Some(reply) = client.try_request("POST", "/api/batch", &json!([{"inserts": batch}])) else { return answered };
        assert_eq!(reply.status, 200, "{reply:?}");
        answered += 1;
        if answered == ANSWERS {
            killing.wait();
        }
    }
}

#[test]
fn kill_9_loses_no_answered_batch_and_leaves_none_by_halves() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let state = state.path().to_str().expect("the path is UTF-8");
    let process = serve(state);
    let killing = Arc::new(Barrier::new(WRITERS + 1));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (client, killing) = (connect(&process), Arc::clone(&killing));
            thread::spawn(move || write_until_killed(client, writer, &killing))
        })
        .collect();
    // Everybody writes on from here.
    killing.wait();
    process.kill();
    let answered: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("no writer fails")).collect();

    let process = serve(state);
    let found: BTreeSet<_> = connect(&process).facts("/api/facts").into_iter().collect();
    for (writer, answered) in answered.into_iter().enumerate() {
        assert!(answered >= ANSWERS);
        assert!((0..answered).flat_map(|batch| facts(writer, batch)).all(|fact| found.contains(&fact)), "writer {writer} lost a batch");
        let unanswered = facts(writer, answered).filter(|fact| found.contains(fact)).count();
        assert!(unanswered == 0 || unanswered == FACTS, "writer {writer} has {unanswered} of {FACTS} facts of its last batch");
    }
    let again = connect(&process).post("/api/batch", json!([{"inserts": [facts(99, 0).next()]}]));
    assert_eq!(again.status, 200, "it takes changes again: {again:?}");
}
