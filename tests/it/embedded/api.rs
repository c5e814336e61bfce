//! Each endpoint, and what clients of all ages send to it.

use factsync::target::embedded::{DEVELOPMENT_KEY, Limits};
use serde_json::{Value, json};

use super::server::{Client, Server};

fn fact(predicate: &str, args: &[(&str, &str)]) -> Value {
    let args: Vec<_> = args.iter().map(|(type_name, id)| json!({"type": type_name, "id": id})).collect();
    json!({"predicate": predicate, "args": args})
}

fn role(user: &str, role: &str) -> Value {
    fact("has_role", &[("User", user), ("String", role), ("Repository", "acme")])
}

fn listed(client: &mut Client, target: &str) -> Value {
    let reply = client.get(target);
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

#[test]
fn a_batch_is_applied_in_order() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let reply = client.post(
        "/api/batch",
        json!([
            {"inserts": [role("bob", "owner"), role("eve", "owner")]},
            {"deletes": [role("eve", "owner")]},
            {"inserts": [role("ann", "reader")]},
        ]),
    );
    assert_eq!((reply.status, reply.json()), (200, json!({"message": "facts updated"})));
    assert_eq!(reply.offset(), 1);
    assert_eq!(listed(&mut client, "/api/facts?predicate=has_role"), json!([role("ann", "reader"), role("bob", "owner")]));
    let again = client.post("/api/batch", json!([{"inserts": [role("ann", "reader")]}, {"deletes": [role("nobody", "x")]}]));
    assert_eq!((again.status, again.offset()), (200, 1), "nothing is different, so the counter stays");
    assert_eq!(client.post("/api/batch", json!([])).offset(), 1, "Go sends empty batches");
}

#[test]
fn wildcards_select_by_type_by_id_and_by_arity() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let all = [
        fact("f", &[("User", "1")]),
        fact("f", &[("User", "1"), ("Team", "2")]),
        fact("f", &[("User", "1"), ("User", "2")]),
        fact("f", &[("Bot", "1"), ("Team", "2")]),
        fact("g", &[("User", "1")]),
    ];
    let numbers = |client: &mut Client, target: &str| -> Vec<usize> {
        let listed = listed(client, target);
        let mut numbers: Vec<_> =
            listed.as_array().expect("a list").iter().map(|fact| all.iter().position(|f| f == fact).expect("known")).collect();
        numbers.sort_unstable();
        numbers
    };
    client.post("/api/batch", json!([{"inserts": all}]));
    for (query, want) in [
        ("", vec![0, 1, 2, 3, 4]),
        ("predicate=f", vec![0, 1, 2, 3]),
        ("args.0.type=User&args.0.id=1", vec![0, 1, 2, 4]),
        ("args.1.id=2&args.1.type=Team&predicate=f", vec![1, 3]),
        ("predicate=f&args.1.type=User", vec![2]),
        ("args.0.id=1&predicate=f", vec![0, 1, 2, 3]),
        ("predicate=f&args.4.type=User", vec![]),
        ("predicate=f&args.4000000000.type=User", vec![]),
        ("predicate=unknown", vec![]),
        ("predicate=f&version=3", vec![0, 1, 2, 3]),
    ] {
        assert_eq!(numbers(&mut client, &format!("/api/facts?{query}")), want, "{query}");
    }
    for (pattern, left) in [
        (json!({"predicate": "f", "args": [{}, {"type": "User"}]}), vec![0, 1, 3, 4]),
        (json!({"predicate": "f", "args": [{"type": null, "id": "1"}]}), vec![1, 3, 4]),
        (json!({"predicate": "f", "args": [{"type": null, "id": null}, {"id": "2"}]}), vec![4]),
    ] {
        assert_eq!(client.request("DELETE", "/api/facts", pattern).json(), json!({"message": "facts updated"}));
        assert_eq!(numbers(&mut client, "/api/facts"), left);
    }
}

#[test]
fn the_older_endpoints_do_what_they_did() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let one = client.post("/api/facts", role("bob", "owner"));
    assert_eq!((one.status, one.offset(), one.json()), (200, 1, role("bob", "owner")));
    let load = client.post("/api/bulk_load", json!([role("eve", "owner"), role("ann", "owner")]));
    assert_eq!((load.status, load.offset()), (200, 2));
    let bulk = client.post(
        "/api/bulk",
        json!({"tell": [role("bob", "owner")], "delete": [{"predicate": "has_role", "args": [{"type": "User"}, {}, {}]}]}),
    );
    assert_eq!((bulk.status, bulk.offset()), (200, 3));
    assert_eq!(listed(&mut client, "/api/facts"), json!([role("bob", "owner")]), "deletes go first");
    let gone = client.post("/api/bulk_delete", json!([role("bob", "owner"), role("nobody", "owner")]));
    assert_eq!((gone.status, gone.offset()), (200, 4));
    assert_eq!(listed(&mut client, "/api/facts"), json!([]));
    assert!(client.post("/api/bulk", json!({"tells": []})).error(400).contains("missing field"));
}

#[test]
fn the_policy_is_text_and_outlives_clear_data() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    assert_eq!(client.get("/api/policy").json(), json!({"policy": null}));
    assert_eq!(client.get("/api/policy_metadata?version=2").json(), json!({"metadata": {"resources": {}}}));
    let new = client.post("/api/policy?force=true", json!({"src": "actor User {}", "filename": ""}));
    assert_eq!((new.status, new.offset()), (200, 1));
    let same = client.post("/api/policy", json!({"src": "actor User {}", "filename": ""}));
    assert_eq!((same.status, same.offset(), same.json()), (202, 1, json!({"message": "policy unchanged"})));
    assert_eq!(client.post("/api/policy", json!({"src": "actor User {}"})).status, 200, "no file name is another one");
    client.post("/api/batch", json!([{"inserts": [role("bob", "owner")]}]));
    let cleared = client.request("POST", "/api/clear_data", None);
    assert_eq!((cleared.status, cleared.json(), cleared.offset()), (200, json!({"message": "facts cleared"}), 4));
    assert_eq!(listed(&mut client, "/api/facts"), json!([]));
    assert_eq!(client.get("/api/policy?id=1").json(), json!({"policy": {"filename": null, "src": "actor User {}"}}));
    client.post("/api/batch", json!([{"inserts": [role("bob", "owner")]}]));
    assert_eq!(listed(&mut client, "/api/facts"), json!([role("bob", "owner")]), "its shape is known as before");
}

#[test]
fn raw_requests_of_real_clients_are_understood() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let key = format!("Authorization: Bearer {DEVELOPMENT_KEY}\r\nHost: localhost\r\n");
    let body = json!([{"inserts": [fact("f", &[("User", "a b&c=d/é+%")])]}]).to_string();
    for head in ["POST /api/batch? HTTP/1.1", "POST //api/batch HTTP/1.1", "POST /api/batch HTTP/1.1\r\nContent-Type: text/plain"] {
        let reply = client.raw(&format!("{head}\r\n{key}Content-Length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(reply.status, 200, "{head}: {reply:?}");
    }
    for head in [
        "GET /api/facts?predicate=f&args.0.type=User&args.0.id=a+b%26c%3Dd%2F%C3%A9%2B%25 HTTP/1.1\r\nOsoOffset: off-12",
        "GET //api/facts?args.0.id=a%20b%26c%3Dd%2F%c3%a9%2B%25 HTTP/1.1\r\nContent-Type: application/json\r\nOsoOffset: 99999",
        "GET /api/facts? HTTP/1.1\r\nAccept-Encoding: gzip,deflate",
    ] {
        let reply = client.raw(&format!("{head}\r\n{key}\r\n"));
        assert_eq!(reply.json(), json!([fact("f", &[("User", "a b&c=d/é+%")])]), "{head}");
    }
    for head in ["POST /api/clear_data?", "POST //api/clear_data"] {
        assert_eq!(client.raw(&format!("{head} HTTP/1.1\r\n{key}Content-Length: 0\r\n\r\n")).status, 200, "{head}");
        assert_eq!(client.raw(&format!("{head} HTTP/1.1\r\n{key}\r\n")).status, 200, "{head}, without a length");
    }
    let chunked = client.raw(&format!("POST /api/batch HTTP/1.1\r\n{key}Transfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n"));
    assert_eq!(chunked.status, 200, "{chunked:?}");
}

#[test]
fn every_response_has_the_requests_id() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let id = "92d8b7eb-aab6-4ea8-91e5-a750d7d06be6";
    for (path, key, status) in [
        ("/api/facts", DEVELOPMENT_KEY, 200),
        ("/api/facts", "wrong", 401),
        ("/api/list", DEVELOPMENT_KEY, 404),
        ("/api/batch", DEVELOPMENT_KEY, 405),
    ] {
        let reply =
            client.raw(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nX-Request-ID: {id}\r\n\r\n"));
        assert_eq!((reply.status, reply.header("x-request-id")), (status, Some(id)), "{path}");
    }
    let (first, second) = (client.get("/api/policy"), client.get("/api/policy"));
    let [first, second] = [first, second].map(|reply| reply.header("x-request-id").expect("an id").parse::<uuid::Uuid>().expect("a UUID"));
    assert_ne!(first, second);
}

#[test]
fn without_the_key_there_is_only_the_healthcheck() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    for header in ["", "Authorization: Bearer wrong\r\n", "Authorization: Bearer\r\n"] {
        for target in [
            "GET /api/facts",
            "GET //api/facts",
            "POST /api/batch",
            "POST /api/clear_data",
            "GET /api/policy",
            "POST /api/authorize",
            "GET /api/x",
        ] {
            let reply = client.raw(&format!("{target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n"));
            assert!(reply.error(401).contains("API key"), "{target}");
        }
        for target in ["GET /api/healthcheck", "GET //api/healthcheck"] {
            let reply = client.raw(&format!("{target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n"));
            assert_eq!((reply.status, reply.json()), (200, json!({"message": "ok"})));
        }
    }
}

#[test]
fn what_is_not_served_is_404_or_405_in_json() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    for path in [
        "authorize",
        "authorize_resources",
        "list",
        "actions",
        "query",
        "evaluate_query",
        "authorize_query",
        "evaluate_query_local",
        "expect",
        "agents/event/x",
    ] {
        assert!(client.post(&format!("/api/{path}?"), json!({})).error(404).contains("fact store"), "{path}");
    }
    for path in ["/api", "/api/", "/api/facts/", "//api/nothing", "/elsewhere"] {
        client.get(path).error(404);
    }
    for (method, path) in
        [("GET", "/api/batch"), ("PUT", "/api/facts"), ("DELETE", "/api/policy"), ("POST", "/api/healthcheck"), ("GET", "//api/clear_data")]
    {
        client.request(method, path, None).error(405);
    }
}

#[test]
fn a_refused_batch_says_which_entry_and_changes_nothing() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    client.post("/api/batch", json!([{"inserts": [role("bob", "owner")]}]));
    let arg = |value: Value| json!({"predicate": "f", "args": [{"type": "String", "id": "x"}, value]});
    let six = fact("f", &[("String", "x"); 6]);
    for (bad, want) in [
        (arg(json!({"type": null, "id": null})), "argument 2: a fact to insert needs a type and an id"),
        (arg(json!({"type": "User"})), "argument 2: a fact to insert needs a type and an id"),
        (arg(json!({})), "argument 2: a fact to insert"),
        (arg(json!({"type": "User", "id": ""})), "argument 2: an id is empty"),
        (arg(json!({"type": "", "id": "x"})), "argument 2: the type is empty"),
        (arg(json!({"type": "User", "id": "*"})), "argument 2: an id is \"*\""),
        (arg(json!({"type": "User", "id": "é".repeat(257)})), "argument 2: an id is longer than 512 bytes"),
        (arg(json!({"type": "T".repeat(513), "id": "x"})), "argument 2: the type is longer"),
        (arg(json!({"type": "Integer", "id": "12345678901234567890"})), "argument 2: an Integer"),
        (arg(json!({"type": "Integer", "id": "007"})), "argument 2: an Integer"),
        (arg(json!({"type": "Boolean", "id": "True"})), "argument 2: a Boolean"),
        (arg(json!({"type": "User", "id": 1.5})), "argument 2: the id is a JSON number that is no 64-bit integer"),
        (arg(json!({"type": "User", "id": true})), "argument 2: the id is a JSON boolean"),
        (arg(json!({"type": "User", "id": {"a": [1]}})), "argument 2: the id is a JSON object"),
        (arg(json!({"type": 7, "id": "x"})), "argument 2: the type is a JSON number"),
        (json!({"predicate": "", "args": [{"type": "User", "id": "x"}]}), "the predicate is empty"),
        (json!({"predicate": null, "args": [{"type": "User", "id": "x"}]}), "the predicate is missing"),
        (fact("f", &[]), "it has 0 arguments"),
        (six.clone(), "it has 6 arguments"),
    ] {
        let body = json!([{"inserts": [role("eve", "owner")]}, {"deletes": [role("bob", "owner")]}, {"inserts": [bad, role("x", "y")]}]);
        let message = client.post("/api/batch", body).error(400);
        assert!(message.starts_with("entry 3: ") && message.contains(want), "{bad}: {message}");
        assert!(client.post("/api/facts", bad.clone()).error(400).starts_with("entry 1: "));
    }
    for (bad, want) in [
        (fact("f", &[("User", "*")]), "a wildcard is null"),
        (fact("f", &[("User", "")]), "a wildcard is null"),
        (fact("f", &[]), "0 arguments"),
        (six, "6 arguments"),
    ] {
        assert!(client.post("/api/bulk_delete", json!([bad])).error(400).contains(want), "{bad}");
    }
    assert_eq!(listed(&mut client, "/api/facts"), json!([role("bob", "owner")]));
}

#[test]
fn what_is_no_batch_is_refused_with_the_reason() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    for (body, want) in [
        (json!({"inserts": []}), "expected a sequence"),
        (json!([{}]), "changeset 1 has neither"),
        (json!([{"inserts": []}, {"insert": []}]), "changeset 2 has neither"),
        (json!([{"inserts": [], "deletes": []}]), "changeset 1 has both"),
        (json!([{"inserts": [{"predicate": "f"}]}]), "missing field `args`"),
        (json!([{"inserts": {}}]), "expected a sequence"),
    ] {
        assert!(client.post("/api/batch", body.clone()).error(400).contains(want), "{body}");
    }
    assert!(client.request("POST", "/api/batch", None).error(400).contains("EOF"));
    for query in ["args.x.type=User", "args.0.ids=1", "args.0=1"] {
        assert!(client.get(&format!("/api/facts?{query}")).error(400).contains("args.N.type"), "{query}");
    }
}

#[test]
fn json_integers_are_ids_in_decimal() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let with = |id: Value| json!({"predicate": "f", "args": [{"type": "User", "id": id}]});
    client.post("/api/batch", json!([{"inserts": [with(json!(123)), with(json!(-5)), with(json!(u64::MAX)), with(json!("123"))]}]));
    let want = ["-5", "123", "18446744073709551615"].map(|id| fact("f", &[("User", id)]));
    assert_eq!(listed(&mut client, "/api/facts"), json!(want));
    client.post("/api/batch", json!([{"deletes": [with(json!(123))]}]));
    assert_eq!(listed(&mut client, "/api/facts").as_array().map(Vec::len), Some(2));
}

#[test]
fn a_restart_keeps_facts_policy_and_counter() {
    let server = Server::start(Limits::Growth);
    let mut client = server.connect();
    let odd = fact("has \"x\"", &[("Type\u{0}\n", "日本 😀\u{0}"), ("Boolean", "true"), ("Integer", "-7"), ("a", "b"), ("c", "d")]);
    client.post("/api/batch", json!([{"inserts": [role("bob", "owner"), odd]}]));
    let offset = client.post("/api/policy", json!({"src": "actor User {}"})).offset();
    drop(client);
    let server = server.restart();
    let mut client = server.connect();
    assert_eq!(listed(&mut client, "/api/facts"), json!([odd, role("bob", "owner")]));
    assert_eq!(client.get("/api/policy").json()["policy"]["src"], "actor User {}");
    assert_eq!(client.post("/api/batch", json!([{"deletes": [odd]}])).offset(), offset + 1);
}
