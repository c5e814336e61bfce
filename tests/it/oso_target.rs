//! The Oso Cloud client against a server that follows a script, byte by byte.
//!
//! The server is a plain socket, because most of what is tested here (a cut body, an answer that never comes, a connection
//! closed after the batch was read) is what an HTTP server library takes care not to do. One connection is one request and one
//! entry of the script.

use std::{
    collections::HashMap,
    error::Error,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use factsync::{
    config::SecretString,
    data::Row,
    error::Disposition,
    fact::{Fact, FactType},
    target::{
        Batch, FactChange, FactStore, Offset, Op, TargetError, batch,
        oso::{OsoCloud, Timeouts},
        quota::{Budget, Plan},
        retry::{Attempts, apply_with_retry},
    },
};
use uuid::Uuid;

const KEY: &str = "e_0123456789_12345_notasecretbutactasone";
const FACT: &str = r#"{"predicate":"f","args":[{"type":"User","id":"1"}]}"#;
const OTHER: &str = r#"{"predicate":"f","args":[{"type":"User","id":"2"}]}"#;
/// `[FACT]`, as gzip has it.
const FACTS_GZIPPED: &[u8] = &[
    31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 139, 174, 86, 42, 40, 74, 77, 201, 76, 78, 44, 73, 85, 178, 82, 74, 83, 210, 81, 74, 44, 74, 47, 86,
    178, 138, 174, 86, 42, 169, 44, 0, 137, 133, 22, 167, 22, 1, 133, 51, 83, 128, 108, 67, 165, 218, 216, 218, 88, 0, 8, 111, 212, 177,
    53, 0, 0, 0,
];

/// What the server does with one connection.
enum Act {
    /// Reads the request, sends these bytes and closes.
    Answer(Vec<u8>),
    /// Closes once the request's head is there, its body unread.
    CutBefore,
    /// Reads the request, sends these bytes, then nothing, and keeps the connection.
    FallSilent(Vec<u8>),
    /// Reads the request and sends these bytes, then spaces until the client has enough.
    Endless(Vec<u8>),
}

/// A request that was read to its end.
#[derive(Debug, Clone)]
struct Request {
    line: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for act in script {
                let Ok((connection, _)) = listener.accept() else { return };
                // What the client does to the connection is the client's affair.
                let _ = perform(act, connection, &seen);
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("not poisoned").clone()
    }

    fn client(&self) -> OsoCloud {
        OsoCloud::new(&self.url, SecretString::from(KEY), Plan::Growth).expect("a client")
    }

    fn impatient_client(&self) -> OsoCloud {
        let silence = Duration::from_millis(200);
        let timeouts = Timeouts { silence, write: silence, ..Timeouts::default() };
        OsoCloud::with_timeouts(&self.url, SecretString::from(KEY), Plan::Growth, timeouts).expect("a client")
    }
}

fn perform(act: Act, connection: TcpStream, seen: &Mutex<Vec<Request>>) -> io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut request = read_head(&mut reader)?;
    if matches!(act, Act::CutBefore) {
        return Ok(());
    }
    let length = request.header("content-length").map_or(0, |length| length.parse().expect("a length"));
    request.body = vec![0; length];
    reader.read_exact(&mut request.body)?;
    seen.lock().expect("not poisoned").push(request);
    let mut writer = connection;
    match act {
        Act::CutBefore => Ok(()),
        Act::Answer(bytes) => writer.write_all(&bytes),
        Act::FallSilent(bytes) => {
            writer.write_all(&bytes)?;
            // Ends when the client closes.
            reader.read(&mut [0]).map(|_| ())
        }
        Act::Endless(bytes) => {
            writer.write_all(&bytes)?;
            loop {
                writer.write_all(&[b' '; 4096])?;
            }
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let mut lines = lines.into_iter();
    let line = lines.next().unwrap_or_default();
    let split = |line: String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Ok(Request { line, headers: lines.filter_map(split).collect(), body: Vec::new() })
}

/// An answer with its length.
fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Whatever\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

fn applied(offset: &str) -> Act {
    Act::Answer(answer(200, &format!("OsoOffset: {offset}\r\n"), r#"{"message":"ok"}"#))
}

/// An answer in chunks, without the last chunk.
fn chunks(parts: &[&str]) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for part in parts {
        bytes.extend(format!("{:x}\r\n{part}\r\n", part.len()).into_bytes());
    }
    bytes
}

fn change(op: Op, id: u32) -> FactChange {
    let fact_type: FactType = "f(User:_)".parse().expect("a signature");
    FactChange { op, fact: fact_type.fact(&Row::from_texts([id.to_string().as_str()])).expect("a fact") }
}

fn batch_of(count: u32) -> Batch {
    Batch { request_id: Uuid::new_v4(), changes: (0..count).map(|id| change(Op::Insert, id)).collect() }
}

/// An error as a person sees it, with all its causes. Neither that nor the debug form may hold the key.
fn shown(error: &TargetError) -> String {
    let first: &(dyn Error + 'static) = error;
    let causes = std::iter::successors(Some(first), |error| (**error).source());
    let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    assert!(!text.contains(KEY) && !format!("{error:?}").contains(KEY), "the key is in an error");
    text
}

async fn refused(act: Act) -> TargetError {
    let server = Server::start(vec![act]);
    soon(server.client().apply(&batch_of(1))).await.expect_err("not applied")
}

/// What must end of itself, long before this deadline.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an end within 20 seconds")
}

async fn listed(client: &OsoCloud, signature: &str) -> Result<Vec<Fact>, TargetError> {
    let fact_type: FactType = signature.parse().expect("a signature");
    let mut facts = Vec::new();
    let mut keep = |row: Row| {
        facts.push(fact_type.stored_fact(&row));
        Ok(())
    };
    client.list(&fact_type, &mut keep).await?;
    Ok(facts)
}

/// What a listing of `f(User:_)` makes of an answer.
async fn listing(bytes: Vec<u8>) -> Result<usize, TargetError> {
    let server = Server::start(vec![Act::Answer(bytes)]);
    listed(&server.client(), "f(User:_)").await.map(|facts| facts.len())
}

#[tokio::test]
async fn a_batch_goes_out_as_the_api_wants_it() {
    let server = Server::start(vec![applied("off-1")]);
    let client = OsoCloud::new(&format!("{}/base/", server.url), SecretString::from(KEY), Plan::Growth).expect("a client");
    let batch = Batch { request_id: Uuid::new_v4(), changes: vec![change(Op::Insert, 1), change(Op::Delete, 2)] };
    assert_eq!(client.apply(&batch).await.expect("applied"), Offset("off-1".into()));
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert_eq!(request.line, "POST /base/api/batch HTTP/1.1");
    assert_eq!(request.header("authorization"), Some(&*format!("Bearer {KEY}")));
    assert_eq!(request.header("user-agent"), Some(concat!("factsync/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(request.header("x-osoapiversion"), Some("0"));
    assert_eq!(request.header("x-request-id"), Some(&*batch.request_id.to_string()));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("accept"), Some("application/json"));
    assert_eq!(request.header("osooffset"), None);
    assert_eq!(request.body, batch::body(&batch.changes));
}

#[tokio::test]
async fn the_last_offset_is_sent_back_and_survives_an_answer_without_one() {
    let without = || Act::Answer(answer(200, "", r#"{"message":"ok"}"#));
    let server =
        Server::start(vec![without(), applied("off-1"), without(), Act::Answer(answer(200, "", "[]")), applied("off-2"), without()]);
    let client = server.client();
    let apply = || async { client.apply(&batch_of(1)).await.expect("applied").0 };
    assert_eq!(apply().await, "0");
    assert_eq!(apply().await, "off-1");
    assert_eq!(apply().await, "off-1");
    listed(&client, "f(User:_)").await.expect("listed");
    assert_eq!(apply().await, "off-2");
    assert_eq!(apply().await, "off-2");
    let sent: Vec<Option<String>> = server.requests().iter().map(|request| request.header("osooffset").map(str::to_owned)).collect();
    let off = |n: u32| Some(format!("off-{n}"));
    assert_eq!(sent, [None, None, off(1), off(1), off(1), off(2)]);
}

#[tokio::test]
async fn an_empty_batch_is_not_sent() {
    let server = Server::start(vec![]);
    assert_eq!(server.client().apply(&batch_of(0)).await.expect("nothing to do"), Offset("0".into()));
}

#[tokio::test]
async fn a_busy_store_says_when_to_come_back() {
    for (status, headers, want) in [
        (429, "Retry-After: 7\r\n", Some(Duration::from_secs(7))),
        (429, "", None),
        (503, "Retry-After: 1\r\n", Some(Duration::from_secs(1))),
        (500, "Retry-After: soon\r\n", None),
    ] {
        let error = refused(Act::Answer(answer(status, headers, r#"{"message":"slow down"}"#))).await;
        let TargetError::Busy { status: got, message, retry_after } = &error else { panic!("{}", shown(&error)) };
        assert_eq!((*got, message.as_str(), *retry_after), (status, "slow down", want));
    }
}

#[tokio::test]
async fn a_batch_whose_fate_is_unknown_is_repeated_with_the_same_id() {
    let failed = || Act::Answer(answer(500, "", "oops"));
    // Applied, and the answer lost: at its first byte, in its head, in its body.
    let lost = [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"mess"];
    for act in lost.map(|bytes| Act::Answer(bytes.to_vec())).into_iter().chain([failed(), Act::CutBefore]) {
        let was_read = !matches!(act, Act::CutBefore);
        let server = Server::start(vec![act, applied("off-9")]);
        let batch = batch_of(3);
        let offset = apply_with_retry(&server.client(), &batch, Attempts::default()).await.expect("the second attempt");
        assert_eq!(offset, Offset("off-9".into()));
        let requests = server.requests();
        assert_eq!(requests.len(), 1 + usize::from(was_read));
        for request in requests {
            assert_eq!(request.header("x-request-id"), Some(&*batch.request_id.to_string()));
            assert_eq!(request.body, batch::body(&batch.changes));
        }
    }
}

#[tokio::test]
async fn a_store_that_is_not_there_is_unreachable() {
    // A port that is never given out: a free one could be another test's by now.
    let client = OsoCloud::new("http://127.0.0.1:1/base", SecretString::from(KEY), Plan::Growth).expect("a client");
    let error = client.probe().await.expect_err("nobody listens");
    assert!(matches!(&error, TargetError::Unreachable { url, .. } if url == "http://127.0.0.1:1"), "{}", shown(&error));
    assert_eq!(error.disposition(), Disposition::Retry);
    assert!(shown(&error).contains("onnection refused"), "{}", shown(&error));
}

#[tokio::test]
async fn a_success_that_is_not_the_apis_is_garbage() {
    for bytes in [
        answer(200, "", "<html>Welcome to our guest network</html>"),
        answer(200, "", "{}"),
        answer(200, "", r#"{"message":1}"#),
        answer(200, "", r#""ok""#),
        answer(200, "", ""),
        answer(204, "", ""),
        answer(200, "", &" ".repeat(1 << 20)),
    ] {
        let error = refused(Act::Answer(bytes)).await;
        assert!(matches!(error, TargetError::Garbage { .. }), "{}", shown(&error));
        assert_eq!(error.disposition(), Disposition::Retry);
    }
}

#[tokio::test]
async fn the_offset_of_a_garbled_answer_is_not_taken() {
    let garbled = Act::Answer(answer(200, "OsoOffset: elsewhere\r\n", "<html>"));
    let server = Server::start(vec![garbled, Act::Answer(answer(200, "", r#"{"message":"ok"}"#))]);
    let client = server.client();
    client.apply(&batch_of(1)).await.expect_err("garbage");
    assert_eq!(client.apply(&batch_of(1)).await.expect("applied"), Offset("0".into()));
}

#[tokio::test]
async fn refusals_say_who_acts_and_never_repeat_the_key() {
    let echo = format!(r#"{{"message":"Bearer {KEY} may not do that"}}"#);
    for (status, want) in [(401, "OSO_AUTH"), (403, "OSO_AUTH"), (413, "413"), (400, "400"), (422, "422"), (409, "409")] {
        let error = refused(Act::Answer(answer(status, "", &echo))).await;
        let text = shown(&error);
        assert!(text.contains(want) && text.contains("Bearer [key] may not do that"), "{text}");
        assert_eq!(error.disposition(), Disposition::Operator);
        let kind = match error {
            TargetError::Key { status, .. } | TargetError::Refused { status, .. } => status,
            TargetError::TooLarge { .. } => 413,
            other => panic!("{}", shown(&other)),
        };
        assert_eq!(kind, status);
    }
    assert!(!format!("{:?}", Server::start(vec![]).client()).contains(KEY));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(vec![applied("off-1")]);
    for status in [301, 302, 303, 307, 308] {
        let location = format!("Location: {}/api/batch?key={KEY}\r\n", elsewhere.url);
        let error = refused(Act::Answer(answer(status, &location, ""))).await;
        assert!(matches!(error, TargetError::Garbage { .. }));
        assert!(shown(&error).contains("redirect") && shown(&error).contains(&elsewhere.url), "{}", shown(&error));
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn an_endless_answer_is_read_no_further_than_needed() {
    let endless = |status: u16, start: &str| {
        Act::Endless(format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 1000000000000\r\n\r\n{start}").into_bytes())
    };
    let error = refused(endless(500, "out of order")).await;
    assert!(matches!(&error, TargetError::Busy { status: 500, message, .. } if message == "out of order"), "{}", shown(&error));
    let error = refused(endless(200, "{\"message\":\"ok\"}")).await;
    assert!(matches!(error, TargetError::Garbage { .. }), "{}", shown(&error));
}

#[tokio::test]
async fn silence_ends_in_an_error() {
    let begun = chunks(&["[", FACT]);
    let partial = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"mess".to_vec();
    let server = Server::start(vec![Act::FallSilent(vec![]), Act::FallSilent(partial), Act::FallSilent(vec![]), Act::FallSilent(begun)]);
    let client = server.impatient_client();
    for _ in 0..2 {
        let error = soon(client.apply(&batch_of(1))).await.expect_err("no whole answer to a write");
        assert!(matches!(error, TargetError::Unreachable { .. }), "{}", shown(&error));
    }
    for _ in 0..2 {
        let error = soon(listed(&client, "f(User:_)")).await.expect_err("no whole list");
        assert!(matches!(error, TargetError::Unreachable { .. }), "{}", shown(&error));
    }
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_listing_asks_by_pattern_and_takes_only_its_own() {
    let facts = [
        r#"{"predicate":"has_role","args":[{"type":"User","id":"é \" 1"},{"type":"String","id":"admin"}]}"#,
        r#"{"predicate":"has_role","args":[{"type":"User","id":"1"}]}"#,
        r#"{"predicate":"has_role","args":[{"type":"User","id":"1"},{"type":"String","id":"admin"},{"type":"Org","id":"2"}]}"#,
        r#"{"predicate":"has_role","args":[{"type":"Group","id":"1"},{"type":"String","id":"admin"}]}"#,
        r#"{"predicate":"has_role","args":[{"type":"User","id":"1"},{"type":"String","id":"reader"}]}"#,
        r#"{"predicate":"other","args":[{"type":"User","id":"1"},{"type":"String","id":"admin"}]}"#,
    ];
    let server = Server::start(vec![Act::Answer(answer(200, "", &format!("[{}]", facts.join(", "))))]);
    let listed = listed(&server.client(), "has_role(User:_, admin)").await.expect("listed");
    assert_eq!(listed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["has_role(User:é \" 1, String:admin)"]);
    let [request] = &server.requests()[..] else { panic!("one request") };
    let path = "GET /api/facts?predicate=has_role&args.0.type=User&args.1.type=String&args.1.id=admin HTTP/1.1";
    assert_eq!(request.line, path);
    assert!(request.header("x-request-id").is_some_and(|id| id.parse::<Uuid>().is_ok()));
}

#[tokio::test]
async fn a_whole_listing_counts_however_it_arrives() {
    let end = "0\r\n\r\n";
    let chunked = |parts: &[&str]| [chunks(parts), end.as_bytes().to_vec()].concat();
    let zipped = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", FACTS_GZIPPED.len()).into_bytes();
    let two = format!("[{FACT},{OTHER}]");
    for (bytes, want) in [
        (answer(200, "", "[]"), 0),
        (answer(200, "", "null"), 0),
        (answer(200, "", &two), 2),
        (chunked(&["[", &FACT[..30], &FACT[30..], "\n,", OTHER, "]"]), 2),
        (chunked(&two.split_inclusive(char::is_alphanumeric).collect::<Vec<_>>()), 2),
        ([zipped, FACTS_GZIPPED.to_vec()].concat(), 1),
    ] {
        assert_eq!(listing(bytes).await.expect("a listing"), want);
    }
}

#[tokio::test]
async fn a_listing_that_is_not_whole_is_an_error_and_not_a_shorter_one() {
    let end = b"0\r\n\r\n".to_vec();
    let short = |body: &str| [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n".to_vec(), body.as_bytes().to_vec()].concat();
    let zipped = |length: usize| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        [head, FACTS_GZIPPED[..length].to_vec()].concat()
    };
    let open = format!("[{FACT},{OTHER}");
    let closed = format!("[{FACT}]");
    for (what, bytes) in [
        ("a chunked body cut in a chunk", chunks(&[&open])[..120].to_vec()),
        ("a chunked body cut after a chunk", chunks(&["[", FACT, ","])),
        ("a chunked body cut after the array", chunks(&[&closed])),
        ("a chunked body that ends in the array", [chunks(&[&open]), end.clone()].concat()),
        ("a body shorter than its length", short(&open)),
        ("a body shorter than its length whose array is closed", short(&closed)),
        ("a body of its length with an open array", answer(200, "", &open)),
        ("an array closed early and garbage", answer(200, "", &format!("{closed},{OTHER}]"))),
        ("an array and an error", answer(200, "", &format!("{closed}{{\"message\":\"timeout\"}}"))),
        ("gzip cut in the middle", zipped(40)),
        ("gzip without its checksum", zipped(FACTS_GZIPPED.len() - 8)),
        ("nothing", answer(200, "", "")),
        ("no content", answer(204, "", "")),
        ("a page", answer(200, "", "<html></html>")),
        ("another answer", answer(200, "", r#"{"message":"ok"}"#)),
        ("a body until the connection closes, with an open array", format!("HTTP/1.1 200 OK\r\n\r\n{open}").into_bytes()),
    ] {
        let Err(error) = listing(bytes).await else { panic!("{what} passed for a listing") };
        assert_eq!(error.disposition(), Disposition::Retry, "{what}: {}", shown(&error));
        assert!(!shown(&error).contains("\"id\""), "{}", shown(&error));
    }
}

#[tokio::test]
async fn a_listing_that_cannot_be_kept_stops() {
    let server = Server::start(vec![Act::Answer(answer(200, "", &format!("[{FACT},{OTHER}]")))]);
    let fact_type: FactType = "f(User:_)".parse().expect("a signature");
    let mut full = |_| Err(io::Error::from(io::ErrorKind::StorageFull));
    let error = server.client().list(&fact_type, &mut full).await.expect_err("no room");
    assert!(matches!(&error, TargetError::Receiver(cause) if cause.kind() == io::ErrorKind::StorageFull), "{}", shown(&error));
}

#[tokio::test]
async fn a_probe_tells_a_good_address_and_key_from_others() {
    let wrong = r#"{"message":"not found"}"#;
    let server = Server::start(vec![
        Act::Answer(answer(200, "", "[]")),
        Act::Answer(answer(401, "", "")),
        Act::Answer(answer(404, "", wrong)),
        Act::Answer(answer(200, "", "<html>Hello</html>")),
    ]);
    let client = server.client();
    client.probe().await.expect("it answers and takes the key");
    assert!(matches!(client.probe().await, Err(TargetError::Key { status: 401, .. })));
    for _ in 0..2 {
        let error = client.probe().await.expect_err("another server");
        assert!(matches!(error, TargetError::Garbage { .. }), "{}", shown(&error));
    }
    assert!(server.requests().iter().all(|request| request.line.starts_with("GET ") && request.body.is_empty()));
}

#[tokio::test]
async fn writes_wait_for_the_quota_of_the_plan() {
    let server = Server::start((0..3).map(|n| applied(&n.to_string())).collect());
    let client = OsoCloud::new(&server.url, SecretString::from(KEY), Plan::Free).expect("a client");
    assert_eq!(client.limits().entries, 20);
    let started = Instant::now();
    assert_eq!(client.quota().budget(), Some(Budget { per_minute: 1_000, used: 0 }));
    for _ in 0..2 {
        apply_with_retry(&client, &batch_of(20), Attempts::ONCE).await.expect("applied");
    }
    assert_eq!(client.quota().budget(), Some(Budget { per_minute: 1_000, used: 40 }));
    // 20 at once, then 980 a minute.
    assert!(started.elapsed() >= Plan::Free.time_for(40), "{:?}", started.elapsed());
    assert!(Plan::Free.time_for(40) > Duration::from_secs(1));
}
