//! HTTP: any requests, one after the other, to the router of a run with the embedded store.
//!
//! A request is a line `METHOD TARGET`, lines of headers, an empty line and a body; lines of `%%%%` separate requests. It carries the
//! API key unless the line begins with `!`. A model holds the facts that are there: what was refused changes nothing, what was
//! accepted changes exactly what its body says, and what needs the key is not done without it.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use factsync::{
    config::{SecretString, load},
    engine::Board,
    fact::{Fact, Pattern, PatternValue},
    server,
    target::{
        embedded::{self, Access, EmbeddedStore, Limits},
        quota::Plan,
    },
    telemetry,
};
use serde_json::Value as Json;
use tokio::{runtime::Runtime, sync::watch};
use tower::ServiceExt;

/// The key; no answer may show it.
const KEY: &str = "Zq9-the-key-of-the-store";
/// Requests of one input.
const MOST_REQUESTS: usize = 8;
/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Two sources, so that a position alone may not tell which is meant.
const CONFIG: &str = "
facts:
  has_role(User:_, String:_): {db: app, query: 'SELECT a, b FROM t'}
  owns(User:_, Repo:_): {db: other, query: 'SELECT a, b FROM t'}
dbs:
  app: {connection_string: 'postgresql:///app'}
  other: {connection_string: 'postgresql:///other'}
";

static SERVED: LazyLock<Served> = LazyLock::new(Served::start);

struct Served {
    runtime: Runtime,
    router: Router,
}

impl Served {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let folder = crate::config::folder();
        let (file, store) = (folder.join("sync.yaml"), folder.join("facts.db"));
        fs::write(&file, CONFIG).expect("written");
        let config = load(&[file], &|_| None).expect("a configuration");
        let board = Arc::new(Board::new(&config, "embedded", Plan::Unlimited));
        let store = EmbeddedStore::open(&store).expect("a store");
        // Whoever would wait is told that the process ends.
        let (_, stop) = watch::channel(true);
        let access = Access::new(SecretString::from(KEY));
        let api = embedded::router(store, access.clone(), Limits::Off);
        Self { runtime, router: server::router(board, telemetry::init_metrics(), Some(access), Some(api), stop) }
    }

    fn answer(&self, request: Request<Body>) -> Answer {
        let router = self.router.clone();
        self.runtime.block_on(async {
            let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            let (parts, body) = response.into_parts();
            let body = axum::body::to_bytes(body, MAX_ANSWER_BYTES).await.expect("a body in memory").to_vec();
            Answer { status: parts.status, id: parts.headers.get("x-request-id").map(|id| id.as_bytes().to_vec()), body }
        })
    }

    /// Everything that is there.
    fn facts(&self) -> BTreeSet<Fact> {
        let request = Request::get("/api/facts").header(header::AUTHORIZATION, format!("Bearer {KEY}")).body(Body::empty());
        let answer = self.answer(request.expect("a request"));
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let listed: Vec<Fact> = serde_json::from_slice(&answer.body).expect("a list of facts");
        let facts: BTreeSet<Fact> = listed.iter().cloned().collect();
        assert_eq!(facts.len(), listed.len(), "a fact is listed twice");
        facts
    }
}

struct Answer {
    status: StatusCode,
    id: Option<Vec<u8>>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request in pieces.
struct Asked<'a> {
    keyed: bool,
    method: Method,
    target: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let clear = Request::post("/api/clear_data").header(header::AUTHORIZATION, format!("Bearer {KEY}")).body(Body::empty());
    assert_eq!(SERVED.answer(clear.expect("a request")).status, StatusCode::OK);
    let mut model = BTreeSet::new();
    for part in crate::config::split(data, MOST_REQUESTS) {
        // Somebody who knows the key is not who this is about: an answer repeats what was asked for, and a fact what was written.
        if part.windows(KEY.len()).any(|bytes| bytes == KEY.as_bytes()) {
            continue;
        }
        let Some(asked) = parse(part) else { continue };
        let Some(request) = request(&asked) else { continue };
        let path = request.uri().path().to_owned();
        let answer = SERVED.answer(request);
        judge(&asked, &path, &answer);
        let before = model;
        model = SERVED.facts();
        follow(&asked, &path, &answer, &before, &model);
    }
}

fn parse(part: &[u8]) -> Option<Asked<'_>> {
    let end = part.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = end.map_or((part, &[][..]), |end| (&part[..end], &part[end + 2..]));
    let mut lines = std::str::from_utf8(head).ok()?.lines();
    let first = lines.next()?;
    let (first, keyed) = first.strip_prefix('!').map_or((first, true), |first| (first, false));
    let (method, target) = first.split_once(' ')?;
    let headers = lines.filter_map(|line| line.split_once(": ")).collect();
    Some(Asked { keyed, method: method.parse().ok()?, target, headers, body })
}

fn request(asked: &Asked<'_>) -> Option<Request<Body>> {
    let mut request = Request::builder().method(asked.method.clone()).uri(asked.target);
    if asked.keyed {
        request = request.header(header::AUTHORIZATION, format!("Bearer {KEY}"));
    }
    for (name, value) in &asked.headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(asked.body.to_vec())).ok()
}

/// What holds for every answer.
fn judge(asked: &Asked<'_>, path: &str, answer: &Answer) {
    let shown = || format!("{} {path}: {} {}", asked.method, answer.status, answer.text());
    assert!(answer.status != StatusCode::INTERNAL_SERVER_ERROR, "{}", shown());
    let may_be_stopping = path.starts_with("/v1/") || path == "/readyz";
    assert!(answer.status != StatusCode::SERVICE_UNAVAILABLE || may_be_stopping, "{}", shown());
    assert!(!answer.text().contains(KEY), "{}", shown());
    let is_api = path.starts_with("/api/") || path.starts_with("//api/");
    let open = path.trim_start_matches('/') == "api/healthcheck";
    // A HEAD has no body.
    if (is_api || path == "/v1/wait") && answer.status.as_u16() >= 400 && asked.method != Method::HEAD {
        let told = serde_json::from_slice::<Json>(&answer.body).ok().and_then(|body| body["message"].as_str().map(str::to_owned));
        let is_method = answer.status == StatusCode::METHOD_NOT_ALLOWED && !is_api;
        assert!(is_method || told.is_some_and(|told| !told.is_empty()), "{}", shown());
    }
    if is_api {
        let wanted = asked.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
        if let Some((_, wanted)) = wanted {
            assert_eq!(answer.id.as_deref(), Some(wanted.as_bytes()), "{}", shown());
        }
        assert!(asked.keyed || open || !answer.status.is_success(), "without the key: {}", shown());
    }
}

/// What the request did is what it says.
fn follow(asked: &Asked<'_>, path: &str, answer: &Answer, before: &BTreeSet<Fact>, after: &BTreeSet<Fact>) {
    let shown = || format!("{} {path} {}: {}", asked.method, answer.status, String::from_utf8_lossy(asked.body));
    let writes = asked.method == Method::POST || asked.method == Method::DELETE;
    let writes = writes
        && matches!(
            path.trim_start_matches('/'),
            "api/batch" | "api/facts" | "api/bulk" | "api/bulk_load" | "api/bulk_delete" | "api/clear_data"
        );
    if !answer.status.is_success() || !writes {
        assert_eq!(before, after, "{}", shown());
        return;
    }
    if path.ends_with("api/clear_data") {
        assert!(after.is_empty(), "{}", shown());
        return;
    }
    let mut wanted = before.clone();
    if meant(asked, path, &mut wanted).is_some() {
        assert_eq!(*after, wanted, "{}", shown());
    }
}

/// Plays the body on `facts`; `None` where it is in a form that this reading does not know.
fn meant(asked: &Asked<'_>, path: &str, facts: &mut BTreeSet<Fact>) -> Option<()> {
    let body: Json = serde_json::from_slice(asked.body).ok()?;
    let list = |value: &Json| -> Option<Vec<Pattern>> { value.as_array()?.iter().map(pattern).collect() };
    let mut changes: Vec<(bool, Vec<Pattern>)> = Vec::new();
    match (path.trim_start_matches('/'), asked.method.as_str()) {
        ("api/facts", "POST") => changes.push((true, vec![pattern(&body)?])),
        ("api/facts", "DELETE") => changes.push((false, vec![pattern(&body)?])),
        ("api/bulk_load", "POST") => changes.push((true, list(&body)?)),
        ("api/bulk_delete", "POST") => changes.push((false, list(&body)?)),
        ("api/bulk", "POST") => changes.extend([(false, list(body.get("delete")?)?), (true, list(body.get("tell")?)?)]),
        ("api/batch", "POST") => {
            for changeset in body.as_array()? {
                let of = |key: &str| changeset.as_object()?.get(key).filter(|list| !list.is_null());
                changes.push(match (of("inserts"), of("deletes")) {
                    (Some(facts), None) => (true, list(facts)?),
                    (None, Some(facts)) => (false, list(facts)?),
                    _ => return None,
                });
            }
        }
        _ => return None,
    }
    for (insert, patterns) in changes {
        for pattern in patterns {
            if insert {
                facts.insert(concrete(&pattern)?);
            } else {
                facts.retain(|fact| !pattern.matches(fact));
            }
        }
    }
    Some(())
}

fn pattern(value: &Json) -> Option<Pattern> {
    let object = value.as_object()?;
    let arg = |arg: &Json| {
        let arg = arg.as_object()?;
        let text = |key: &str| match arg.get(key) {
            None | Some(Json::Null) => Some(None),
            Some(Json::String(text)) => Some(Some(text.clone())),
            Some(Json::Number(number)) if key == "id" && (number.is_i64() || number.is_u64()) => Some(Some(number.to_string())),
            Some(_) => None,
        };
        Some(PatternValue { type_name: text("type")?, id: text("id")? })
    };
    let args = object.get("args")?.as_array()?.iter().map(arg).collect::<Option<_>>()?;
    Some(Pattern { predicate: object.get("predicate")?.as_str()?.to_owned(), args })
}

fn concrete(pattern: &Pattern) -> Option<Fact> {
    let value = |arg: &PatternValue| Some(factsync::fact::Value::new(arg.type_name.clone()?, arg.id.clone()?));
    Some(Fact { predicate: pattern.predicate.clone(), args: pattern.args.iter().map(value).collect::<Option<_>>()? })
}
