//! A mongod of a test's own, which can be killed and started again on the same data and port.
//!
//! The shared one of `support` ends with its process; here a crash of the server is what is tested.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use mongodb::{
    Client, Database,
    bson::{Document, doc},
    options::ClientOptions,
};
use tempfile::TempDir;

use crate::support::{command, daemon::Daemon, eventually_async, free_port, tools_dir};

/// Starting takes 2 s, after a crash 2.5 s, and several times that on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// For SIGKILL.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// A test's own commands wait this long for a primary: longer than a restart takes.
const SELECTION: Duration = Duration::from_secs(60);
/// How much the oplog holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Oplog {
    /// More than any test writes.
    Ample,
    /// A megabyte, and what lies before it is gone after seconds.
    Small,
}

impl Oplog {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ample => &["--oplogSize", "512"],
            // It is cut up to the last checkpoint, of which there is one a minute otherwise.
            Self::Small => &["--oplogSize", "1", "--syncdelay", "1"],
        }
    }
}

/// A replica set of one node.
pub(super) struct Server {
    port: u16,
    oplog: Oplog,
    data: TempDir,
    daemon: Daemon,
    client: Client,
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::with_oplog(Oplog::Ample).await
    }

    pub(super) async fn with_oplog(oplog: Oplog) -> Self {
        let (port, data) = (free_port(), tempfile::tempdir().expect("a folder"));
        let daemon = launch(port, oplog, &data);
        let client = client(port).await;
        let server = Self { port, oplog, data, daemon, client };
        server.initiate().await;
        server
    }

    /// SIGKILL: what the disk holds is what there is.
    pub(super) fn kill(&mut self) {
        self.daemon.signal("KILL");
        self.daemon.wait(STOP_DEADLINE).expect("SIGKILL ends a process");
    }

    /// On the same data and port; returns when it takes writes.
    pub(super) async fn start_again(&mut self) {
        self.daemon = launch(self.port, self.oplog, &self.data);
        self.primary().await;
    }

    /// A client of the test's own.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn uri(&self, database: &str) -> String {
        format!("mongodb://127.0.0.1:{}/{database}", self.port)
    }

    /// Runs a command on `admin`.
    pub(super) async fn admin(&self, command: Document) -> Document {
        let admin: Database = self.client.database("admin");
        admin.run_command(command.clone()).await.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    async fn initiate(&self) {
        let member = format!("127.0.0.1:{}", self.port);
        let direct = Client::with_uri_str(format!("mongodb://{member}/?directConnection=true")).await.expect("a client");
        let set = doc! { "replSetInitiate": { "_id": "rs0", "members": [{ "_id": 0, "host": &member }] } };
        // The driver waits until the server listens.
        direct.database("admin").run_command(set).await.expect("initiated");
        self.primary().await;
    }

    async fn primary(&self) {
        eventually_async(START_DEADLINE, "mongod takes writes", async || {
            let hello = self.client.database("admin").run_command(doc! { "hello": 1 }).await.ok()?;
            hello.get_bool("isWritablePrimary").is_ok_and(|primary| primary).then_some(())
        })
        .await;
    }
}

async fn client(port: u16) -> Client {
    let mut options = ClientOptions::parse(format!("mongodb://127.0.0.1:{port}")).await.expect("a URI");
    options.server_selection_timeout = Some(SELECTION);
    Client::with_options(options).expect("a client")
}

fn launch(port: u16, oplog: Oplog, data: &TempDir) -> Daemon {
    let binary = tools_dir().join("mongod/mongod");
    assert!(binary.is_file(), "no mongod at {}; run tests/run.sh (or tests/tools/mongod.sh) to install it", binary.display());
    let mut command: Command = command(binary);
    command.args(["--replSet", "rs0", "--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--nounixsocket"]);
    // Without these the journal alone takes 300 MB.
    command.args(["--wiredTigerCacheSizeGB", "0.25", "--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=16MB)"]);
    command.args(["--setParameter", "enableTestCommands=1", "--setParameter", "diagnosticDataCollectionEnabled=false"]);
    command.args(oplog.arguments()).arg("--dbpath").arg(data.path());
    command.arg("--logpath").arg(data.path().join("mongod.log")).arg("--logappend");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Daemon::spawn(command).0
}
