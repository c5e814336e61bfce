//! Many writers at a time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
    thread,
};

use factsync::{
    fact::{Fact, Value},
    target::embedded::Limits,
};
use serde_json::json;

use super::server::Server;

const WRITERS: usize = 32;
const BATCHES: usize = 10;
const FACTS: usize = 50;

fn facts(writer: usize, batch: usize) -> impl Iterator<Item = Fact> {
    let fact =
        move |n| Fact { predicate: "f".into(), args: vec![Value::new("User", format!("{writer}-{batch}-{n}")), Value::new("String", "x")] };
    // The last fact is everybody's.
    (0..FACTS).map(fact).chain([Fact { predicate: "shared".into(), args: vec![Value::new("Batch", batch.to_string())] }])
}

#[test]
fn concurrent_batches_share_commits_and_none_is_lost() {
    let server = Server::start(Limits::Off);
    let ready = Arc::new(Barrier::new(WRITERS));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (mut client, ready) = (server.connect(), Arc::clone(&ready));
            thread::spawn(move || {
                ready.wait();
                let mut offset = 0;
                for batch in 0..BATCHES {
                    let facts: Vec<_> = facts(writer, batch).collect();
                    let reply = client.post("/api/batch", json!([{"inserts": facts}]));
                    assert_eq!(reply.status, 200, "{reply:?}");
                    assert!(reply.offset() > offset, "each batch has new facts");
                    offset = reply.offset();
                    // What was answered is there, whoever asks.
                    let target = format!("/api/facts?predicate=f&args.0.type=User&args.0.id={writer}-{batch}-0");
                    assert_eq!(client.facts(&target), facts[..1], "read your own write");
                }
                offset
            })
        })
        .collect();
    let commits = writers.into_iter().map(|writer| writer.join().expect("no writer fails")).max().expect("there are writers");
    assert!(commits < (WRITERS * BATCHES) as i64, "{commits} commits for {} batches: none was shared", WRITERS * BATCHES);
    let want: BTreeSet<_> = (0..WRITERS).flat_map(|writer| (0..BATCHES).flat_map(move |batch| facts(writer, batch))).collect();
    assert_eq!(server.connect().facts("/api/facts").into_iter().collect::<BTreeSet<_>>(), want);
}

#[test]
fn a_reader_never_sees_half_a_batch() {
    const FLIPS: usize = 300;
    let server = Server::start(Limits::Off);
    let fact = |predicate: &str| json!({"predicate": predicate, "args": [{"type": "User", "id": "1"}]});
    let flip = move |from: &str, to: &str| json!([{"deletes": [fact(from)]}, {"inserts": [fact(to)]}]);
    let mut client = server.connect();
    client.post("/api/batch", flip("b", "a"));
    let writer = thread::spawn(move || {
        for _ in 0..FLIPS {
            client.post("/api/batch", flip("a", "b"));
            client.post("/api/batch", flip("b", "a"));
        }
    });
    let (mut reader, mut seen) = (server.connect(), BTreeSet::new());
    while !writer.is_finished() {
        let listed = reader.facts("/api/facts");
        assert_eq!(listed.len(), 1, "one of two facts is true at any time: {listed:?}");
        seen.extend(listed);
    }
    writer.join().expect("the writer does not fail");
    assert_eq!(seen.len(), 2, "the reader saw both states");
}
