//! Starting mongod: a real server on a free port, as a replica set of one node, gone with whoever started it.
//!
//! A thread of its own starts the process and stays until it ends. `setpriv --pdeathsig KILL` ties a child to the *thread*
//! that started it, so a test thread would take a shared server along; the keeper thread ends with the test process,
//! however that ends.

use std::{
    collections::VecDeque,
    env,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::Duration,
};

use mongodb::{Client, bson::doc};
use tempfile::TempDir;
use tokio::{sync::oneshot, time::timeout};

/// Starting takes 2 s, and 7 s on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Somebody else may take the port between our choosing it and mongod's binding it.
const ATTEMPTS: usize = 3;
/// Lines of mongod's log that a failed start shows.
const LOG_LINES: usize = 20;

/// The server that tests share; it ends with the last of them that holds it.
static SHARED: tokio::sync::Mutex<Weak<Mongod>> = tokio::sync::Mutex::const_new(Weak::new());

/// A running server.
pub(crate) struct Mongod {
    port: u16,
    child: Arc<Mutex<Child>>,
    keeper: Option<JoinHandle<()>>,
    _data: TempDir,
}

impl Mongod {
    /// The server of this test process, started if there is none. Give each test a database of its own.
    pub(crate) async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(mongod) = shared.upgrade() {
            return mongod;
        }
        let mongod = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&mongod);
        mongod
    }

    /// A replica set of one node whose primary takes writes.
    pub(crate) async fn start() -> Self {
        let mongod = Self::launch(&["--replSet", "rs0"]).await;
        let member = format!("127.0.0.1:{}", mongod.port);
        let direct = Client::with_uri_str(format!("mongodb://{member}/?directConnection=true")).await.expect("a client");
        let set = doc! { "_id": "rs0", "members": [{ "_id": 0, "host": &member }] };
        direct.database("admin").run_command(doc! { "replSetInitiate": set }).await.expect("initiated");
        // The driver waits until it can select a primary.
        mongod.client().await.database("admin").run_command(doc! { "ping": 1 }).await.expect("a primary");
        mongod
    }

    /// A server that is no replica set.
    pub(crate) async fn standalone() -> Self {
        Self::launch(&[]).await
    }

    /// A replica set that nobody has initiated.
    pub(crate) async fn uninitiated() -> Self {
        Self::launch(&["--replSet", "rs0"]).await
    }

    /// A connection string for `database`; it finds the primary through the replica set if there is one.
    pub(crate) fn uri(&self, database: &str) -> String {
        format!("mongodb://127.0.0.1:{}/{database}", self.port)
    }

    /// A client on the calling test's runtime.
    pub(crate) async fn client(&self) -> Client {
        Client::with_uri_str(self.uri("")).await.expect("a client")
    }

    async fn launch(arguments: &[&str]) -> Self {
        let mut log = String::new();
        for _ in 0..ATTEMPTS {
            match Self::attempt(arguments).await {
                Ok(mongod) => return mongod,
                Err(lines) => log = lines,
            }
        }
        panic!("mongod does not start; its last words:\n{log}");
    }

    async fn attempt(arguments: &[&str]) -> Result<Self, String> {
        let data = tempfile::tempdir().expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary()).args(arguments);
        command.args(["--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--nounixsocket", "--oplogSize", "64"]);
        // Without these the journal alone takes 300 MB.
        command.args(["--wiredTigerCacheSizeGB", "0.25", "--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]);
        command.args(["--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=false"]);
        command.arg("--dbpath").arg(data.path()).stdout(Stdio::piped()).stderr(Stdio::null());

        let (started, starting) = oneshot::channel();
        let (ready, waiting) = oneshot::channel();
        let keeper = thread::spawn(move || keep(command, started, ready));
        let child = starting.await.expect("the keeper answers").expect("setpriv runs");
        let mongod = Self { port, child, keeper: Some(keeper), _data: data };
        timeout(START_DEADLINE, waiting).await.expect("mongod starts in time").expect("the keeper answers").map(|()| mongod)
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.child.lock().expect("not poisoned").kill().expect("killed");
        // Joined before the data directory is removed.
        self.keeper.take().map(JoinHandle::join);
    }
}

/// Starts the process, tells when it listens or what it said instead, and reads its log to the end.
fn keep(mut command: Command, started: oneshot::Sender<std::io::Result<Arc<Mutex<Child>>>>, ready: oneshot::Sender<Result<(), String>>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return drop(started.send(Err(error))),
    };
    let log = child.stdout.take().expect("it is piped");
    let child = Arc::new(Mutex::new(child));
    let _ = started.send(Ok(Arc::clone(&child)));
    let (mut ready, mut last) = (Some(ready), VecDeque::new());
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        if line.contains("\"Waiting for connections\"") {
            ready.take().map(|ready| ready.send(Ok(())));
        }
        last.push_back(line);
        if last.len() > LOG_LINES {
            last.pop_front();
        }
    }
    ready.take().map(|ready| ready.send(Err(Vec::from(last).join("\n"))));
    child.lock().expect("not poisoned").wait().expect("it has ended");
}

fn binary() -> PathBuf {
    let tools = env::var_os("FACTSYNC_TOOLS").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tools"), PathBuf::from);
    let binary = tools.join("mongod/mongod");
    assert!(binary.is_file(), "no mongod at {}; run tests/run.sh (or tests/tools/mongod.sh) to install it", binary.display());
    binary
}
