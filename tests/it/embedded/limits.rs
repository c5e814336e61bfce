//! The documented limits: what is too much is refused with the status the service uses, and changes nothing.

use factsync::target::embedded::{DEVELOPMENT_KEY, Limits};
use serde_json::{Value, json};

use super::server::{Client, Server};

fn facts(range: std::ops::Range<usize>) -> Vec<Value> {
    range.map(|n| json!({"predicate": "f", "args": [{"type": "User", "id": n.to_string()}, {"type": "String", "id": "x"}]})).collect()
}

fn everything() -> Value {
    json!([{"deletes": [{"predicate": "f", "args": [{}, {}]}]}])
}

fn fill(client: &mut Client, count: usize, per_batch: usize) {
    for start in (0..count).step_by(per_batch) {
        let reply = client.post("/api/batch", json!([{"inserts": facts(start..count.min(start + per_batch))}]));
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[test]
fn a_batch_has_at_most_1000_entries_on_growth_and_20_on_free() {
    for (limits, most) in [(Limits::Growth, 1_000), (Limits::Free, 20)] {
        let server = Server::start(limits);
        let mut client = server.connect();
        let split = json!([{"inserts": facts(0..most)}, {"deletes": facts(0..1)}]);
        assert!(client.post("/api/batch", split).error(413).contains(&format!("this plan takes {most}")));
        assert!(client.post("/api/bulk_load", json!(facts(0..most + 1))).error(413).contains("entries"));
        assert!(client.facts("/api/facts").is_empty());
        assert_eq!(client.post("/api/batch", json!([{"inserts": facts(0..most)}])).status, 200);
    }
    let server = Server::start(Limits::Off);
    assert_eq!(server.connect().post("/api/batch", json!([{"inserts": facts(0..5_000)}])).status, 200);
}

#[test]
fn a_body_over_960_kib_is_413_and_its_sender_reads_that() {
    let server = Server::start(Limits::Growth);
    // The second is what an SDK sends at most: it must not fail with a broken pipe half way.
    for (size, status) in [(960 * 1024, 200), (960 * 1024 + 1, 413), (10 * 1024 * 1024, 413)] {
        let mut client = server.connect();
        let body = format!("[{}]", " ".repeat(size - 2));
        let request = |framing: &str, body: &str| {
            format!("POST /api/batch HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {DEVELOPMENT_KEY}\r\n{framing}\r\n\r\n{body}")
        };
        let reply = client.raw(&request(&format!("Content-Length: {size}"), &body));
        assert_eq!(reply.status, status, "{size}: {reply:?}");
        let reply = client.raw(&request("Transfer-Encoding: chunked", &format!("{size:x}\r\n{body}\r\n0\r\n\r\n")));
        assert_eq!(reply.status, status, "{size}, chunked: {reply:?}");
    }
    let mut client = server.connect();
    assert_eq!(client.post("/api/policy", json!({"src": " ".repeat(1024 * 1024)})).status, 200, "only facts have the low limit");
}

#[test]
fn a_wildcard_delete_touches_at_most_10000_facts() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    fill(&mut client, 10_001, 1_000);
    let other = json!({"predicate": "g", "args": [{"type": "T", "id": "1"}]});
    let both = json!([{"deletes": facts(0..1)}, {"inserts": [facts(0..1)[0], other]}, everything()[0]]);
    let message = client.post("/api/batch", both).error(413);
    assert!(message.starts_with("entry 4: ") && message.contains("10000"), "{message}");
    assert_eq!(client.facts("/api/facts").len(), 10_001, "nothing of the batch is left");
    client.post("/api/batch", json!([{"deletes": facts(0..1)}]));
    assert_eq!(client.post("/api/batch", everything()).status, 200, "10,000 are allowed");
    assert!(client.facts("/api/facts").is_empty());
}

#[test]
fn fact_updates_a_minute_are_limited_and_429_says_for_how_long() {
    let server = Server::start(Limits::Free);
    let mut client = server.connect();
    fill(&mut client, 980, 20);
    let one = |client: &mut Client, n| client.post("/api/batch", json!([{"inserts": facts(n..n + 1)}]));
    // A wildcard delete costs what it removes, and at least one.
    let nothing = json!([{"deletes": [{"predicate": "nothing", "args": [{}]}]}]);
    assert_eq!(client.post("/api/batch", nothing).status, 200);
    let reply = client.post("/api/batch", everything());
    assert!(reply.error(429).contains("1000 fact updates a minute"));
    let seconds: u64 = reply.header("retry-after").expect("a Retry-After").parse().expect("whole seconds");
    assert!((1..=61).contains(&seconds), "{seconds}");
    assert_eq!(client.facts("/api/facts").len(), 980, "a refused delete removes nothing");
    for n in 0..19 {
        assert_eq!(one(&mut client, n).status, 200, "what was refused was not charged, repeats are: {n}");
    }
    assert_eq!(one(&mut client, 5_000).status, 429);
    assert_eq!(client.get("/api/facts?predicate=g").status, 200, "reads cost nothing");
    assert_eq!(client.request("POST", "/api/clear_data", None).status, 200);
}

#[test]
fn more_than_1000_facts_are_neither_listed_nor_deleted_on_free() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    fill(&mut client, 1_001, 1_000);
    assert_eq!(client.facts("/api/facts").len(), 1_001);
    drop(client);
    let server = server.restart_with(Limits::Free);
    let mut client = server.connect();
    assert!(client.get("/api/facts?predicate=f").error(400).contains("more than 1000 facts"));
    assert!(client.post("/api/batch", everything()).error(413).contains("more than the quota of 1000"), "no minute can pay it");
    assert_eq!(client.facts("/api/facts?predicate=f&args.0.type=User&args.0.id=7").len(), 1);
    client.post("/api/batch", json!([{"deletes": facts(0..1)}]));
    assert_eq!(client.facts("/api/facts").len(), 1_000);
}
