//! A fact store served on a free port, and a client that sends exactly the bytes it is told to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use axum::serve::ListenerExt;
use factsync::target::embedded::{Access, DEVELOPMENT_KEY, EmbeddedStore, Limits, router};
use serde_json::Value;
use tempfile::TempDir;

/// For an answer to arrive: more than any request takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A served store; gone with its file when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    store: Option<EmbeddedStore>,
    address: SocketAddr,
    limits: Limits,
    folder: Option<TempDir>,
}

impl Server {
    pub(crate) fn start(limits: Limits) -> Self {
        Self::start_in(tempfile::tempdir().expect("a temporary folder"), limits)
    }

    /// On a memory file system if there is one: for tests that make thousands of commits and are not about durability.
    pub(crate) fn start_in_memory(limits: Limits) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::start_in(folder.expect("a temporary folder"), limits)
    }

    /// Over the file in `folder`.
    pub(crate) fn start_in(folder: TempDir, limits: Limits) -> Self {
        let store = EmbeddedStore::open(&folder.path().join("facts.db")).expect("the store opens");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts");
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let routes = router(store.clone(), Access::new(DEVELOPMENT_KEY.into()), limits);
        // As `factsync serve` does it: without Nagle's algorithm, which holds the end of a stream back for 40 ms.
        let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("the option can be set"));
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { runtime: Some(runtime), store: Some(store), address, limits, folder: Some(folder) }
    }

    /// Ends the server and serves the same file again, on another port.
    pub(crate) fn restart(self) -> Self {
        let limits = self.limits;
        self.restart_with(limits)
    }

    /// The same under other limits.
    pub(crate) fn restart_with(mut self, limits: Limits) -> Self {
        self.stop();
        let folder = self.folder.take().expect("it is taken only here");
        Self::start_in(folder, limits)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    /// The store itself, as `run` has it. The handle must be gone before the server is.
    pub(crate) fn store(&self) -> EmbeddedStore {
        self.store.clone().expect("it is served")
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it runs").block_on(work)
    }

    fn stop(&mut self) {
        self.store = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(DEADLINE);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One kept-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("the option can be set");
        Self { stream: BufReader::new(stream) }
    }

    /// Sends a request with the key and, if there is a body, its length.
    pub(crate) fn request(&mut self, method: &str, target: &str, body: impl Into<Option<Value>>) -> Reply {
        let body = body.into().map(|body| body.to_string());
        self.raw(&request(method, target, body.as_deref()))
    }

    pub(crate) fn get(&mut self, target: &str) -> Reply {
        self.request("GET", target, None)
    }

    pub(crate) fn post(&mut self, target: &str, body: Value) -> Reply {
        self.request("POST", target, body)
    }

    /// The facts that `target` lists.
    pub(crate) fn facts(&mut self, target: &str) -> Vec<factsync::fact::Fact> {
        let reply = self.get(target);
        assert_eq!(reply.status, 200, "{target}: {reply:?}");
        serde_json::from_slice(&reply.body).expect("a list of facts")
    }

    /// Sends these bytes and reads one response.
    pub(crate) fn raw(&mut self, request: &str) -> Reply {
        self.send(request);
        self.reply()
    }

    pub(crate) fn send(&mut self, request: &str) {
        self.stream.get_mut().write_all(request.as_bytes()).expect("the server reads");
    }

    /// As [`Client::request`]; `None` if the server is gone before it has answered.
    pub(crate) fn try_request(&mut self, method: &str, target: &str, body: &Value) -> Option<Reply> {
        let request = request(method, target, Some(&body.to_string()));
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        // Answers are small and come in one piece, so whoever has the beginning has all of it.
        self.stream.fill_buf().ok().filter(|begun| !begun.is_empty())?;
        Some(self.reply())
    }

    /// Waits until a response begins, and leaves it where it is.
    pub(crate) fn wait_for_data(&mut self) {
        self.stream.fill_buf().expect("a response begins");
    }

    /// Reads one response.
    pub(crate) fn reply(&mut self) -> Reply {
        let line = self.line();
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {line:?}"));
        let mut reply = Reply { status, headers: Vec::new(), body: Vec::new() };
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            reply.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            while let size @ 1.. = usize::from_str_radix(&self.line(), 16).expect("the size of a chunk") {
                self.read(size, &mut reply.body);
                assert_eq!(self.line(), "");
            }
            assert_eq!(self.line(), "");
        } else if let Some(size) = reply.header("content-length") {
            let size = size.parse().expect("a length");
            self.read(size, &mut reply.body);
        }
        reply
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line arrives");
        line.trim_end().to_owned()
    }

    fn read(&mut self, size: usize, into: &mut Vec<u8>) {
        let start = into.len();
        into.resize(start + size, 0);
        self.stream.read_exact(&mut into[start..]).expect("the body arrives");
    }
}

fn request(method: &str, target: &str, body: Option<&str>) -> String {
    let length = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
    let body = body.unwrap_or_default();
    format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {DEVELOPMENT_KEY}\r\n{length}\r\n{body}")
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The consistency token, which every change must have.
    pub(crate) fn offset(&self) -> i64 {
        self.header("osooffset").and_then(|offset| offset.parse().ok()).unwrap_or_else(|| panic!("no OsoOffset: {self:?}"))
    }

    /// The text of an error with `status`, whose body must be exactly `{"message"}`.
    pub(crate) fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.header("osooffset").is_none(), "nothing was changed: {self:?}");
        let json = self.json();
        assert_eq!(json.as_object().expect("an object").len(), 1, "{json}");
        json["message"].as_str().expect("a text").to_owned()
    }
}
