//! Reading: streams, snapshots, and the store as a target of `run` and `reconcile`.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::TcpStream,
};

use factsync::{
    fact::{Fact, FactType, Value},
    target::{
        Batch, FactChange, FactStore, Op, TargetError,
        embedded::{DEVELOPMENT_KEY, EmbeddedStore, Limits},
    },
};
use uuid::Uuid;

use super::server::Server;

/// Enough that neither the sockets' buffers nor the channel hold the whole listing.
const MANY: usize = 120_000;

fn fact(n: usize) -> Fact {
    let args =
        vec![Value::new("User", format!("user-{n:08}")), Value::new("String", "member"), Value::new("Organization", (n % 97).to_string())];
    Fact { predicate: "has_role".into(), args }
}

fn batch(facts: impl Iterator<Item = Fact>, op: Op) -> Batch {
    Batch { request_id: Uuid::new_v4(), changes: facts.map(|fact| FactChange { op, fact }).collect() }
}

fn fill(server: &Server, count: usize) {
    let store = server.store();
    let entries = store.limits().entries;
    server.block_on(async {
        for start in (0..count).step_by(entries) {
            store.apply(&batch((start..count.min(start + entries)).map(fact), Op::Insert)).await.expect("the batch is applied");
        }
    });
}

#[test]
fn a_listing_is_one_snapshot_however_long_it_is_read() {
    let server = Server::start(Limits::Off);
    fill(&server, MANY);
    let mut slow = server.connect();
    slow.send(&format!("GET /api/facts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {DEVELOPMENT_KEY}\r\n\r\n"));
    // The head arrives once the snapshot is taken; nobody reads on until everything else is gone.
    slow.wait_for_data();
    let mut other = server.connect();
    assert_eq!(other.request("POST", "/api/clear_data", None).status, 200);
    assert!(other.facts("/api/facts").is_empty());
    let listed: Vec<Fact> = serde_json::from_slice(&slow.reply().body).expect("the whole listing");
    assert!(listed.iter().cloned().eq((0..MANY).map(fact)), "every fact, in order");
}

#[test]
fn the_same_question_has_the_same_order() {
    let server = Server::start(Limits::Off);
    fill(&server, 2_000);
    let mut client = server.connect();
    for query in [
        "",
        "?predicate=has_role",
        "?args.1.id=member",
        "?args.1.type=String&args.1.id=member&args.2.id=5",
        "?args.2.type=Organization&args.2.id=7",
    ] {
        let first = client.get(&format!("/api/facts{query}")).body;
        assert!(first.len() > 1_000, "{query} lists something");
        assert_eq!(client.get(&format!("/api/facts{query}")).body, first, "{query}");
    }
}

#[test]
fn listings_that_nobody_reads_on_do_not_block_others() {
    let server = Server::start(Limits::Off);
    fill(&server, MANY);
    // More than there are reading connections; each goes away in the middle of its listing.
    for _ in 0..40 {
        let mut stream = TcpStream::connect(server.address()).expect("the server listens");
        write!(stream, "GET /api/facts HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {DEVELOPMENT_KEY}\r\n\r\n")
            .expect("the server reads");
        let mut byte = [0];
        io::Read::read_exact(&mut stream, &mut byte).expect("the response begins");
    }
    let one = server.connect().facts("/api/facts?args.0.type=User&args.0.id=user-00000007");
    assert_eq!(one, [fact(7)]);
}

#[test]
fn as_a_target_it_lists_exactly_the_fact_type() {
    let server = Server::start(Limits::Off);
    fill(&server, 3_000);
    let store = server.store();
    let others = [
        "has_role(User:a, String:member)",
        "has_role(Bot:a, String:member, Organization:1)",
        "has_role(User:a, String:owner, Organization:1)",
    ];
    let others = others.map(|text| text.parse::<FactType>().expect(text).fact(&factsync::data::Row::from_texts([])).expect("all constant"));
    server.block_on(async {
        store.apply(&batch(others.into_iter(), Op::Insert)).await.expect("the batch is applied");
        let fact_type: FactType = "has_role(User:_, String:member, Organization:_)".parse().expect("a signature");
        let mut rows = BTreeSet::new();
        let mut each = |row| {
            rows.insert(row);
            Ok(())
        };
        store.list(&fact_type, &mut each).await.expect("it lists");
        let want: BTreeSet<_> = (0..3_000).map(|n| fact_type.row(&fact(n)).expect("its own fact")).collect();
        assert!(rows == want, "{} rows", rows.len());

        let mut seen = 0;
        let mut full = |_| {
            seen += 1;
            if seen < 700 { Ok(()) } else { Err(io::Error::from(io::ErrorKind::StorageFull)) }
        };
        let error = store.list(&fact_type, &mut full).await.expect_err("the receiver failed");
        assert!(matches!(error, TargetError::Receiver(_)) && seen == 700, "{error} after {seen}");
        store.probe().await.expect("it is healthy");
    });
}

#[test]
fn as_a_target_it_refuses_what_the_api_refuses() {
    let server = Server::start(Limits::Off);
    let store = server.store();
    let bad = Fact { predicate: "f".into(), args: vec![Value::new("User", "*")] };
    let changes = vec![FactChange { op: Op::Insert, fact: fact(1) }, FactChange { op: Op::Insert, fact: bad.clone() }];
    server.block_on(async {
        let error = store.apply(&Batch { request_id: Uuid::new_v4(), changes }).await.expect_err("it is invalid");
        assert!(matches!(&error, TargetError::Refused { status: 400, message } if message.starts_with("entry 2: argument 1: ")), "{error}");
        let absent = store.apply(&batch([bad, fact(1)].into_iter(), Op::Delete)).await.expect("nothing to delete is no error");
        assert_eq!(absent.0, "0");
        let large = store.apply(&batch((0..10_001).map(fact), Op::Insert)).await.expect_err("it is too large");
        assert!(matches!(large, TargetError::TooLarge { .. }), "{large}");
        let offset = store.apply(&batch([fact(1)].into_iter(), Op::Insert)).await.expect("it is applied");
        assert_eq!(offset.0, "1");
    });
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("missing").join("facts.db");
    let error = EmbeddedStore::open(&path).expect_err("the folder is missing");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert_eq!(error.to_string(), "could not open the embedded fact store");
    assert!(cause.contains("missing/facts.db"), "{cause}");
    std::fs::write(folder.path().join("facts.db"), "not a database, but long enough to be looked at: ".repeat(20)).expect("it is written");
    let error = EmbeddedStore::open(&folder.path().join("facts.db")).expect_err("it is no database");
    assert!(std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("facts.db")), "{error}");
}
