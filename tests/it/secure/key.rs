//! Nothing changes without the key, on any path, by any method.
//!
//! The paths are read from the source text, so that a new route is tried without anybody remembering to.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::support::{
    app::{App, fact, insert},
    factsync::{Process, client, root},
};

const METHODS: [Method; 8] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::TRACE];
/// Bodies that the API would take with the key.
const BODIES: [&str; 5] = [
    r#"[{"inserts":[{"predicate":"planted","args":[{"type":"User","id":"eve"}]}]}]"#,
    r#"{"predicate":"planted","args":[{"type":"User","id":"eve"}]}"#,
    r#"[{"deletes":[{"predicate":"kept","args":[{"type":null,"id":null}]}]}]"#,
    r#"{"policy":"actor Eve {}"}"#,
    "",
];

/// Every path that is routed anywhere in the server and in the embedded store's API.
fn routed() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let server = std::fs::read_dir(root().join("src/server")).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files = server.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    for file in files.chain([root().join("src/target/embedded/api.rs")]) {
        let text = std::fs::read_to_string(&file).expect("a source file");
        let file = file.display();
        for (_, after) in text.match_indices(".route(").map(|(at, found)| text.split_at(at + found.len())) {
            let argument = after.trim_start();
            let (prefixes, argument) = match argument.strip_prefix("&at(") {
                Some(rest) => (&["/api", "//api"][..], rest),
                None => (&[""][..], argument),
            };
            let path = argument.strip_prefix('"').and_then(|rest| rest.split_once('"')).map(|(path, _)| path);
            let path =
                path.unwrap_or_else(|| panic!("{file} routes something else than a literal: {}", &argument[..40.min(argument.len())]));
            // A parameter is filled with something.
            let path: Vec<_> = path.split('/').map(|part| if part.starts_with('{') { "1" } else { part }).collect();
            paths.extend(prefixes.iter().map(|prefix| format!("{prefix}{}", path.join("/"))));
        }
    }
    assert!(paths.len() > 20 && paths.contains("/api/batch") && paths.contains("/v1/status"), "the routes were not found: {paths:?}");
    paths
}

/// Everything the API tells of the store.
async fn contents(process: &Process) -> Vec<(u16, String)> {
    let mut told = Vec::new();
    for path in ["/api/facts?predicate=kept", "/api/facts?predicate=planted", "/api/facts?predicate=has_role", "/api/policy"] {
        told.push(process.get(path).await);
    }
    told
}

/// Tries every path by every method, without a key and with others than the right one.
async fn try_everything(process: &Process) {
    let before = contents(process).await;
    assert!(before[0].1.contains("carol"), "{before:?}");
    let client = client();
    let right = "e_0123456789_12345_osotesttoken01xiIn";
    let keys = [None, Some("Bearer "), Some("Bearer e_0123456789_12345_osotesttoken01xiI"), Some("Basic ZTpl"), Some(right)];
    for path in routed() {
        for method in &METHODS {
            let reads = [Method::GET, Method::HEAD].contains(method);
            let bodies = if reads { &BODIES[4..] } else { &BODIES[..] };
            for (key, body) in keys.iter().flat_map(|key| bodies.iter().map(move |body| (key, *body))) {
                let mut request = client.request(method.clone(), format!("{}{path}", process.url())).body(body);
                if let Some(key) = key {
                    request = request.header("authorization", *key);
                }
                let response = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
                let status = response.status().as_u16();
                assert!(reads || matches!(status, 401 | 404 | 405), "{method} {path} with {key:?} is answered {status}");
                let told = response.headers();
                let opens = told.keys().find(|name| name.as_str().starts_with("access-control-"));
                assert_eq!(opens, None, "{method} {path} lets other sites in");
            }
        }
    }
    assert_eq!(contents(process).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_method_on_any_path_changes_anything_without_the_key() {
    let facts = [("has_role(User:_)", "SELECT id FROM member")];
    let app = App::start("CREATE TABLE member (id text PRIMARY KEY); INSERT INTO member VALUES ('ann')", &facts, "").await;
    let running = app.started(&["--target", "embedded"]).await;
    let serving = Process::spawn(&["serve"], &[]);
    for process in [&running, &serving] {
        insert(process, &[fact("kept", &["User:carol"])]).await;
        try_everything(process).await;
        let (_, kept) = process.get("/api/facts?predicate=kept").await;
        let kept: Value = serde_json::from_str(&kept).expect("JSON");
        assert_eq!(kept.as_array().map(Vec::len), Some(1));
    }
}
