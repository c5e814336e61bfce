//! Files that older versions wrote.

use factsync::target::embedded::{EmbeddedStore, Limits};
use rusqlite::Connection;
use serde_json::json;

use super::server::Server;

#[test]
fn a_file_of_layout_version_1_opens_reads_and_writes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = Connection::open(folder.path().join("facts.db")).expect("SQLite opens a new file");
    file.execute_batch(include_str!("facts-v1.sql")).expect("the fixture is valid SQL");
    drop(file);
    let server = Server::start_in(folder, Limits::Growth);
    let mut client = server.connect();
    let names = |facts: Vec<factsync::fact::Fact>| facts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        names(client.facts("/api/facts")),
        [
            "f(A \"1\":1, B:2, C:3, D:4, E:žlu 日本)",
            "has_role(User:bob, String:owner, Repository:acme)",
            "has_role(User:eve, String:reader, Repository:acme)",
            "has_role(User:bob, String:owner)",
        ]
    );
    assert_eq!(names(client.facts("/api/facts?args.2.type=Repository&args.2.id=acme&args.1.id=reader")).len(), 1);
    assert_eq!(client.get("/api/policy").json(), json!({"policy": {"filename": "main.polar", "src": "actor User {}"}}));
    let reply = client.post("/api/batch", json!([{"deletes": [{"predicate": "has_role", "args": [{"id": "bob"}, {}, {}]}]}]));
    assert_eq!(reply.offset(), 42);
    assert_eq!(client.facts("/api/facts").len(), 3);
}

#[test]
fn what_a_killed_version_2_left_in_its_log_is_settled_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = Connection::open(folder.path().join("facts.db")).expect("SQLite opens a new file");
    file.execute_batch(include_str!("facts-v2.sql")).expect("the fixture is valid SQL");
    drop(file);
    let server = Server::start_in(folder, Limits::Growth);
    let mut client = server.connect();
    let names: Vec<_> = client.facts("/api/facts").iter().map(ToString::to_string).collect();
    assert_eq!(
        names,
        [
            "f(A \"1\":1, B:2, C:3, D:4, E:žlu 日本)",
            "has_role(User:bob, String:owner, Repository:acme)",
            "has_role(User:eve, String:reader, Repository:acme)",
            "new(User:ann)",
        ]
    );
    let again = client.post("/api/batch", json!([{"inserts": [{"predicate": "new", "args": [{"type": "User", "id": "ann"}]}]}]));
    assert_eq!(again.offset(), 41, "what was logged was counted when it was");
}

#[test]
fn a_new_file_has_the_layout_of_the_newest_fixture() {
    let layout = |file: Connection| -> Vec<String> {
        let mut statement =
            file.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").expect("every file has this table");
        statement.query_map([], |row| row.get(0)).expect("it is read").collect::<Result<_, _>>().expect("texts")
    };
    let fixture = Connection::open_in_memory().expect("SQLite opens memory");
    fixture.execute_batch(include_str!("facts-v2.sql")).expect("the fixture is valid SQL");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("facts.db");
    drop(EmbeddedStore::open(&path).expect("a new file opens"));
    let new = Connection::open(&path).expect("it opens again");
    assert_eq!(layout(new), layout(fixture), "a changed layout needs a new version, an upgrade and a fixture");
}
