//! Starting mongod: a real server on a free port, as a replica set, gone with whoever started it.
//!
//! A thread of its own starts the process and stays until it ends. `setpriv --pdeathsig KILL` ties a child to the *thread*
//! that started it, so a test thread would take a shared server along; the keeper thread ends with the test process,
//! however that ends.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    thread::{self, JoinHandle},
    time::Duration,
};

use mongodb::{Client, bson::doc};
use tempfile::TempDir;
use tokio::{sync::oneshot, time::timeout};

use super::{free_port, tools_dir};

/// Starting takes 2 s, and 7 s on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Somebody else may take the port between our choosing it and mongod's binding it.
const ATTEMPTS: usize = 3;
/// Lines of mongod's log that a failed start shows.
const LOG_LINES: usize = 20;
/// The name of every replica set here.
pub(crate) const SET_NAME: &str = "rs0";

/// The server that tests share; it ends with the last of them that holds it.
static SHARED: tokio::sync::Mutex<Weak<Mongod>> = tokio::sync::Mutex::const_new(Weak::new());

/// A server, running unless it was killed.
pub(crate) struct Mongod {
    port: u16,
    arguments: Vec<String>,
    pub(super) process: Option<Running>,
    data: TempDir,
}

/// Its process.
pub(super) struct Running {
    child: Arc<Mutex<Child>>,
    keeper: JoinHandle<()>,
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
        let mongod = Self::uninitiated().await;
        let member = format!("127.0.0.1:{}", mongod.port);
        let direct = Client::with_uri_str(format!("mongodb://{member}/?directConnection=true")).await.expect("a client");
        let set = doc! { "_id": SET_NAME, "members": [{ "_id": 0, "host": &member }] };
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
        Self::launch(&["--replSet", SET_NAME]).await
    }

    /// A connection string for `database`; it finds the primary through the replica set if there is one.
    pub(crate) fn uri(&self, database: &str) -> String {
        format!("mongodb://127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A client on the calling test's runtime.
    pub(crate) async fn client(&self) -> Client {
        Client::with_uri_str(self.uri("")).await.expect("a client")
    }

    /// Ends it as a crash would (SIGKILL); its data and its port stay. Nothing happens if it does not run.
    pub(crate) fn kill(&mut self) {
        let Some(Running { child, keeper }) = self.process.take() else { return };
        child.lock().expect("not poisoned").kill().expect("killed");
        // Only when it has ended can it be started again, or its data be removed.
        keeper.join().expect("the keeper does not panic");
    }

    /// Starts it again after [`Self::kill`], and waits until it listens; a primary is another matter.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.is_none(), "it runs");
        self.spawn().await.unwrap_or_else(|log| panic!("mongod does not start again; its last words:\n{log}"));
    }

    /// A server with arguments of the test's own.
    pub(crate) async fn launch(arguments: &[&str]) -> Self {
        let mut log = String::new();
        for _ in 0..ATTEMPTS {
            let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
            let mut mongod = Self { port: free_port(), arguments, process: None, data: tempfile::tempdir().expect("a folder") };
            match mongod.spawn().await {
                Ok(()) => return mongod,
                Err(lines) => log = lines,
            }
        }
        panic!("mongod does not start; its last words:\n{log}");
    }

    async fn spawn(&mut self) -> Result<(), String> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(binary()).args(&self.arguments);
        command.args(["--bind_ip", "127.0.0.1", "--port", &self.port.to_string(), "--nounixsocket", "--oplogSize", "64"]);
        // Without these the journal alone takes 300 MB.
        command.args(["--wiredTigerCacheSizeGB", "0.25", "--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]);
        command.args(["--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=false"]);
        command.arg("--dbpath").arg(self.data.path()).stdout(Stdio::piped()).stderr(Stdio::null());

        let (started, starting) = oneshot::channel();
        let (ready, waiting) = oneshot::channel();
        let keeper = thread::spawn(move || keep(command, started, ready));
        let child = starting.await.expect("the keeper answers").expect("setpriv runs");
        self.process = Some(Running { child, keeper });
        let outcome = timeout(START_DEADLINE, waiting).await.expect("mongod starts in time").expect("the keeper answers");
        if outcome.is_err() {
            self.process = None;
        }
        outcome
    }
}

impl Drop for Mongod {
    fn drop(&mut self) {
        self.kill();
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
    let binary = tools_dir().join("mongod/mongod");
    assert!(binary.is_file(), "no mongod at {}; run tests/run.sh (or tests/tools/mongod.sh) to install it", binary.display());
    binary
}
