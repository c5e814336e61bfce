//! A fact store on a plain socket, because a cut answer and half a head are what an HTTP library takes care not to send.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::support::free_port;

/// The pause between two bytes of an answer that dribbles: an answer has some hundred, so it takes about a second.
const DRIBBLE: Duration = Duration::from_millis(10);

/// What becomes of a request.
pub(super) enum Act {
    /// What a fact store does.
    Serve,
    /// These bytes are the answer.
    Say(Vec<u8>),
    /// The batch is applied, and these bytes are the answer.
    Apply(Vec<u8>),
    /// The connection is closed instead of an answer; the batch was applied or not.
    Cut { applied: bool },
    /// The batch is applied, and no answer ever comes.
    Silence,
    /// Served, and the answer comes byte by byte.
    Dribble,
    /// Served, and the answer comes once the test says so.
    Hold(Arc<Notify>),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) at: Instant,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) key: String,
    pub(super) id: String,
    pub(super) body: String,
}

/// A fact of a batch, and whether it is inserted.
pub(super) type Change = (bool, String);

impl Request {
    /// What it would change, in order.
    pub(super) fn changes(&self) -> Vec<Change> {
        if self.method != "POST" {
            return Vec::new();
        }
        let changesets: Vec<Value> = serde_json::from_str(&self.body).expect("a batch is an array");
        let of = |set: &Value, key: &str| set[key].as_array().cloned().unwrap_or_default();
        let changes = |set: &Value| {
            let deletes = of(set, "deletes").into_iter().map(|fact| (false, fact.to_string()));
            deletes.chain(of(set, "inserts").into_iter().map(|fact| (true, fact.to_string()))).collect::<Vec<_>>()
        };
        changesets.iter().flat_map(changes).collect()
    }

    /// Whether it is a batch that changes something, and not one that only asks whether writes are taken.
    pub(super) fn writes(&self) -> bool {
        !self.changes().is_empty()
    }
}

type Rule = Box<dyn FnMut(&Request) -> Act + Send>;

struct State {
    facts: BTreeSet<String>,
    rule: Rule,
    requests: Vec<Request>,
    /// What was applied, in order, without what changed nothing.
    applied: Vec<Change>,
}

/// The fact store; it ends with the test's runtime.
pub(super) struct Store {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: Mutex<JoinHandle<()>>,
}

/// `has_role(User:user, String:member)` as the API writes it.
pub(super) fn fact(user: &str) -> String {
    json!({"predicate": "has_role", "args": [{"type": "User", "id": user}, {"type": "String", "id": "member"}]}).to_string()
}

/// The user of a fact.
pub(super) fn user(fact: &str) -> String {
    let fact: Value = serde_json::from_str(fact).expect("a fact is JSON");
    fact["args"][0]["id"].as_str().expect("a text").to_owned()
}

/// An answer as it goes over the wire; `headers` end in `\r\n` each.
pub(super) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Whatever\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

/// An error of the API.
pub(super) fn error(status: u16, message: &str) -> Vec<u8> {
    answer(status, "", &json!({ "message": message }).to_string())
}

impl Store {
    /// Holds the facts of `users`.
    pub(super) async fn start(users: &[&str]) -> Self {
        let facts = users.iter().map(|user| fact(user)).collect();
        let state = State { facts, rule: Box::new(|_| Act::Serve), requests: Vec::new(), applied: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let server = Mutex::new(serve(address, state.clone()).await);
        Self { address, state, server }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here on `rule` says what becomes of each request.
    pub(super) fn obey(&self, rule: impl FnMut(&Request) -> Act + Send + 'static) {
        self.state().rule = Box::new(rule);
    }

    /// The next batches meet `acts`, one each; everything else is served.
    pub(super) fn script(&self, acts: impl IntoIterator<Item = Act>) {
        let mut acts: VecDeque<Act> = acts.into_iter().collect();
        self.obey(move |request| if request.writes() { acts.pop_front().unwrap_or(Act::Serve) } else { Act::Serve });
    }

    /// From here on it does what a fact store does.
    pub(super) fn behave(&self) {
        self.obey(|_| Act::Serve);
    }

    /// Forgets the requests so far.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.requests.clear();
        state.applied.clear();
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// The batches, whatever became of them.
    pub(super) fn attempts(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::writes).collect()
    }

    /// What was changed, in order: whether the fact began, and its user.
    pub(super) fn applied(&self) -> Vec<(bool, String)> {
        self.state().applied.iter().map(|(inserted, fact)| (*inserted, user(fact))).collect()
    }

    pub(super) fn users(&self) -> BTreeSet<String> {
        self.state().facts.iter().map(|fact| user(fact)).collect()
    }

    /// Closes every connection and refuses new ones.
    pub(super) async fn stop(&self) {
        let server = std::mem::replace(&mut *self.server.lock().expect("no panic"), tokio::spawn(async {}));
        server.abort();
        // Its end is what counts, and that it was aborted is no news.
        let _ = server.await;
    }

    /// Is there again, at the same address.
    pub(super) async fn resume(&self) {
        let server = serve(self.address, self.state.clone()).await;
        *self.server.lock().expect("no panic") = server;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

async fn serve(address: SocketAddr, state: Arc<Mutex<State>>) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).await.expect("nobody else listens there");
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((connection, _)) = listener.accept().await {
            let state = state.clone();
            // What the client does to the connection is the client's affair.
            connections.spawn(async move { drop(converse(connection, &state).await) });
        }
    })
}

/// Requests one after the other, until one ends the connection.
async fn converse(connection: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let (reader, mut writer) = connection.into_split();
    let mut reader = BufReader::new(reader);
    while let Some(request) = receive(&mut reader).await? {
        let (act, applies) = decide(state, &request);
        let served = || state.lock().expect("no panic").served(&request);
        if applies {
            state.lock().expect("no panic").apply(&request);
        }
        match act {
            Act::Serve => writer.write_all(&served()).await?,
            Act::Say(bytes) | Act::Apply(bytes) => {
                let whole = bytes.windows(4).any(|end| end == b"\r\n\r\n");
                writer.write_all(&bytes).await?;
                if !whole || cut_short(&bytes) {
                    return Ok(());
                }
            }
            Act::Cut { .. } => return Ok(()),
            // Ends when the client closes.
            Act::Silence => return reader.read_u8().await.map(|_| ()),
            Act::Dribble => {
                let mut pace = tokio::time::interval(DRIBBLE);
                for byte in served() {
                    pace.tick().await;
                    writer.write_all(&[byte]).await?;
                }
            }
            Act::Hold(release) => {
                release.notified().await;
                writer.write_all(&served()).await?;
            }
        }
    }
    Ok(())
}

/// Whether an answer is shorter than it says, so that the connection cannot go on after it.
fn cut_short(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() < length)
}

/// What becomes of `request`, and whether that applies it.
fn decide(state: &Mutex<State>, request: &Request) -> (Act, bool) {
    let mut state = state.lock().expect("no panic");
    state.requests.push(request.clone());
    let act = (state.rule)(request);
    let applies = match &act {
        Act::Serve | Act::Apply(_) | Act::Silence | Act::Dribble | Act::Hold(_) => true,
        Act::Cut { applied } => *applied,
        Act::Say(_) => false,
    };
    (act, applies)
}

impl State {
    fn apply(&mut self, request: &Request) {
        for (inserted, fact) in request.changes() {
            let changed = if inserted { self.facts.insert(fact.clone()) } else { self.facts.remove(&fact) };
            if changed {
                self.applied.push((inserted, fact));
            }
        }
    }

    /// The answer of a fact store, which has applied the request if it is a batch.
    fn served(&self, request: &Request) -> Vec<u8> {
        match request.method.as_str() {
            "POST" => answer(200, &format!("OsoOffset: {}\r\n", self.applied.len()), r#"{"message":"ok"}"#),
            _ if request.path.starts_with("/api/facts?predicate=has_role&") => {
                let facts: Vec<&str> = self.facts.iter().map(String::as_str).collect();
                answer(200, "", &format!("[{}]", facts.join(",")))
            }
            _ => answer(200, "", "[]"),
        }
    }
}

/// The next request; `None` when the client has closed.
async fn receive(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { at: Instant::now(), method, path, key: String::new(), id: String::new(), body: String::new() };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "authorization" => request.key = value.trim_start_matches("Bearer ").to_owned(),
            "x-request-id" => request.id = value.to_owned(),
            "content-length" => length = value.parse().expect("a length"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    request.body = String::from_utf8(body).expect("a body is text");
    Ok(Some(request))
}
