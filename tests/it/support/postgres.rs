//! PostgreSQL clusters, one for each test.
//!
//! `initdb` costs seconds, a copy of its result tens of milliseconds: so it runs once per server version, into a template below
//! [`tools_dir`], under a lock because tests are parallel processes. PostgreSQL refuses to run as root, so root starts it as the user
//! `postgres`, which is also why clusters live in `/tmp` and why binaries in a place that user cannot read are copied first.
//!
//! A server ends with its test, however that ends: see [`Daemon`].

use std::{
    fs::{File, OpenOptions},
    io::{Seek, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio_postgres::NoTls;

use super::{command, daemon::Daemon, eventually, free_port, is_root, tools_dir};

/// A start replays at most what one test wrote, and a loaded machine is slow; a hundred times the usual 0.3 s.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A fast shutdown writes one checkpoint.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Lines of the server's log shown when a test fails.
const LOG_TAIL: usize = 60;

/// Settings of every cluster: what logical replication needs, and no time spent on surviving a power loss.
const SETTINGS: [(&str, &str); 9] = [
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("fsync", "off"),
    ("max_replication_slots", "20"),
    ("max_wal_senders", "20"),
    ("shared_buffers", "32MB"),
    ("max_connections", "60"),
    ("autovacuum", "off"),
    ("log_line_prefix", "%m [%p] %d "),
];

/// The servers that tests run against: the oldest and the newest major that is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Major {
    /// The distribution's server: 15 on Debian 12.
    V15,
    /// The newest, unpacked by `tests/tools/postgres18.sh`.
    V18,
}

impl Major {
    /// The directory of `postgres`, `initdb` and `psql`, readable by the user who will run them.
    fn binaries(self) -> PathBuf {
        match self {
            Self::V15 => distribution_binaries(),
            Self::V18 => readable_by_server(&tools_dir().join("postgres18")).join("bin"),
        }
    }
}

/// A server with its own data directory and port; stopped and deleted when dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    binaries: PathBuf,
    port: u16,
    databases: AtomicU32,
    server: Mutex<Option<Daemon>>,
    /// Deleted after `server` has been stopped by [`Drop`].
    home: TempDir,
}

impl Cluster {
    /// A running, empty cluster.
    pub(crate) fn start(major: Major) -> Self {
        Self::start_with(major, &[])
    }

    /// A running, empty cluster with settings that override [`SETTINGS`].
    pub(crate) fn start_with(major: Major, settings: &[(&str, &str)]) -> Self {
        let binaries = major.binaries();
        let template = template(&binaries);
        let home = server_tempdir();
        let cluster = Self { binaries, port: free_port(), databases: AtomicU32::new(0), server: Mutex::new(None), home };
        succeed(Command::new("cp").arg("-a").arg("--").arg(&template).arg(cluster.data_dir()));
        cluster.configure(settings);
        cluster.start_again();
        cluster
    }

    /// A physical standby that follows this server, with settings that override those of its primary.
    pub(crate) fn standby(&self, settings: &[(&str, &str)]) -> Self {
        let home = server_tempdir();
        let port = free_port();
        let standby = Self { binaries: self.binaries.clone(), port, databases: AtomicU32::new(1000), server: Mutex::new(None), home };
        let mut backup = as_server(self.binaries.join("pg_basebackup"));
        backup.args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync", "--dbname", &self.url("postgres")]);
        succeed(backup.arg("--pgdata").arg(standby.data_dir()).current_dir("/"));
        standby.configure(settings);
        standby.start_again();
        standby
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        assert_eq!(self.psql("postgres", "SELECT pg_promote()"), "t");
    }

    /// Serves at `port` from the next start on.
    pub(crate) fn take_port(&mut self, port: u16) {
        self.port = port;
        self.configure(&[]);
    }

    /// A copy of its data; the server must be stopped.
    pub(crate) fn copy_data(&self) -> TempDir {
        assert!(self.running().is_none(), "a running server's files are no backup");
        let copy = server_tempdir();
        succeed(Command::new("cp").arg("-a").arg("--").arg(self.data_dir()).arg(copy.path()));
        copy
    }

    /// Puts a copy in the place of its data; the server must be stopped.
    pub(crate) fn put_back(&self, copy: &TempDir) {
        assert!(self.running().is_none(), "the server is running");
        std::fs::remove_dir_all(self.data_dir()).expect("the data can be deleted");
        succeed(Command::new("cp").arg("-a").arg("--").arg(copy.path().join("data")).arg(self.home.path()));
    }

    /// URL of a database, over TCP, as the superuser, without a password.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1; it stays the same over a restart.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where `psql` is.
    pub(crate) fn bin_dir(&self) -> &Path {
        &self.binaries
    }

    /// The data directory, to edit `pg_hba.conf` for example.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Creates a fresh database and gives its name.
    pub(crate) fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// A connection to `database`, driven by a task of the current runtime.
    pub(crate) async fn client(&self, database: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), NoTls).await.expect("the cluster accepts connections");
        // Its error reaches the test through the client's next call.
        tokio::spawn(connection);
        client
    }

    /// Runs SQL through `psql` and gives its unaligned output, one line per row, columns separated by `|`.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> String {
        // A file and not a pipe: psql may answer before it has read everything, and then both sides would block.
        let mut script = tempfile::tempfile().expect("a temporary file can be created");
        script.write_all(sql.as_bytes()).expect("the script can be written");
        script.rewind().expect("a file can be rewound");
        let output = Command::new(self.binaries.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-", &self.url(database)])
            .stdin(script)
            .output()
            .expect("psql can be run");
        assert!(output.status.success(), "psql failed on {sql:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("psql writes UTF-8").trim_end_matches('\n').to_owned()
    }

    /// Starts the server after [`Self::stop`] or [`Self::kill`], and waits until it accepts connections.
    pub(crate) fn start_again(&self) {
        let mut running = self.running();
        assert!(running.is_none(), "the server is running already");
        let (mut server, _) = Daemon::spawn(self.server_command());
        eventually(START_DEADLINE, "PostgreSQL accepts connections", || {
            if let Some(status) = server.exit_status() {
                panic!("PostgreSQL did not start ({status}):\n{}", tail(&self.log(), LOG_TAIL));
            }
            self.accepts_connections().then_some(())
        });
        *running = Some(server);
    }

    /// Shuts down fast: open connections are closed, a checkpoint is written.
    pub(crate) fn stop(&self) {
        let mut server = self.running().take().expect("the server is running");
        server.signal("INT");
        server.wait(STOP_DEADLINE).expect("PostgreSQL stops in time");
    }

    /// Kills the postmaster without notice, as a crash would, and waits until its backends have noticed.
    pub(crate) fn kill(&self) {
        let mut server = self.running().take().expect("the server is running");
        // They hold the shared memory: a server that starts too early refuses to.
        let backends = children(server.pid());
        server.signal("KILL");
        server.wait(STOP_DEADLINE).expect("SIGKILL ends a process");
        eventually(STOP_DEADLINE, "the backends of a killed postmaster exit", || {
            backends.iter().all(|pid| !is_postgres(*pid)).then_some(())
        });
    }

    fn running(&self) -> MutexGuard<'_, Option<Daemon>> {
        // A poisoned lock means that a start panicked: the cluster is still there to be stopped.
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("postgres.log")
    }

    /// Appends to `postgresql.conf` rather than to the command line, so that tests can `ALTER SYSTEM`.
    fn configure(&self, settings: &[(&str, &str)]) {
        let home = self.home.path().display().to_string();
        let port = self.port.to_string();
        let own = [("unix_socket_directories", home.as_str()), ("port", port.as_str())];
        let mut file = OpenOptions::new().append(true).open(self.data_dir().join("postgresql.conf")).expect("the template has a config");
        for (name, value) in SETTINGS.iter().chain(&own).chain(settings) {
            writeln!(file, "{name} = '{}'", value.replace('\'', "''")).expect("the config can be written");
        }
    }

    fn server_command(&self) -> Command {
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log can be opened");
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--pdeathsig", "KILL", "--"]);
            command.arg(self.binaries.join("postgres"));
            command
        } else {
            command(self.binaries.join("postgres"))
        };
        command.arg("-D").arg(self.data_dir()).current_dir("/").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file handle can be cloned")).stderr(log);
        command
    }

    fn accepts_connections(&self) -> bool {
        let port = self.port.to_string();
        let mut probe = Command::new(self.binaries.join("pg_isready"));
        probe.args(["--quiet", "--host=127.0.0.1", "--username=postgres", "--dbname=postgres", "--port", &port]);
        probe.status().expect("pg_isready can be run").success()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of PostgreSQL on port {}:\n{}", self.port, tail(&self.log(), LOG_TAIL));
        }
        if let Some(mut server) = self.running().take() {
            // Immediate shutdown: nobody will read this data again.
            server.signal("QUIT");
            if server.wait(STOP_DEADLINE).is_none() {
                server.signal("KILL");
            }
        }
    }
}

/// The processes that `pid` has started and that still run.
fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().expect("the kernel lists pids")).collect()
}

fn is_postgres(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
}

/// Debian keeps the server outside PATH; 15 where there is one, else whichever the distribution ships.
fn distribution_binaries() -> PathBuf {
    let configured = Command::new("pg_config").arg("--bindir").output().ok().filter(|output| output.status.success());
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let packaged = ["15", "16", "17", "14"].map(|major| Path::new("/usr/lib/postgresql").join(major).join("bin"));
    let mut candidates = packaged.into_iter().chain(configured);
    candidates.find(|dir| dir.join("initdb").exists()).expect("PostgreSQL is not installed; run tests/run.sh to install it")
}

/// `install` itself, or a copy of it in `/tmp` when the server's user cannot read it (a clone below `/root`, say).
fn readable_by_server(install: &Path) -> PathBuf {
    let postgres = install.join("bin/postgres");
    assert!(postgres.exists(), "{} is missing; run tests/run.sh to install it", postgres.display());
    if !is_root() || as_server("test").arg("-x").arg(&postgres).status().expect("test can be run").success() {
        return install.to_owned();
    }
    let version = std::fs::read_to_string(install.join("version")).expect("postgres18.sh writes the version last");
    let copy = Path::new("/tmp").join(format!("factsync-postgres-{}", version.trim()));
    once(&copy, |partial| succeed(Command::new("cp").arg("-a").arg("--").arg(install).arg(partial)));
    copy
}

/// An initialized data directory to copy, made on first use.
fn template(binaries: &Path) -> PathBuf {
    let version = succeed(Command::new(binaries.join("postgres")).arg("--version"));
    let version = version.split_whitespace().nth(2).expect("the third word of --version is the number").to_owned();
    let template = tools_dir().join(format!("postgres-template-{version}"));
    once(&template, |partial| {
        let home = server_tempdir();
        let data = home.path().join("data");
        let mut initdb = as_server(binaries.join("initdb"));
        initdb.arg("-D").arg(&data).current_dir("/");
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
        succeed(&mut initdb);
        succeed(Command::new("cp").arg("-a").arg("--").arg(&data).arg(partial))
    });
    template
}

/// Makes `path` by calling `make` on a neighbour of it and renaming that, unless it is there; one process at a time.
fn once(path: &Path, make: impl FnOnce(&Path) -> String) {
    std::fs::create_dir_all(path.parent().expect("the path has a parent")).expect("the tools directory can be created");
    let lock = File::create(beside(path, "lock")).expect("the lock file can be created");
    lock.lock().expect("the lock can be taken");
    if path.exists() {
        return;
    }
    let partial = beside(path, "partial");
    // Left behind by a run that was killed.
    let _ = std::fs::remove_dir_all(&partial);
    make(&partial);
    std::fs::rename(&partial, path).expect("a finished directory can be renamed");
}

/// A neighbour of `path`, on the same file system.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().expect("the path has a name").to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

/// A fresh directory that the server's user owns.
fn server_tempdir() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("factsync-postgres-");
    if !is_root() {
        return builder.tempdir().expect("a temporary directory can be created");
    }
    let dir = builder.tempdir_in("/tmp").expect("a temporary directory can be created");
    succeed(Command::new("chown").arg("postgres:").arg(dir.path()));
    dir
}

/// A command run by the user who may run PostgreSQL.
fn as_server(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[test]
fn both_majors_start_with_logical_replication() {
    for (major, prefix) in [(Major::V15, ""), (Major::V18, "18.")] {
        let cluster = Cluster::start(major);
        let version = cluster.psql("postgres", "SHOW server_version");
        assert!(version.starts_with(prefix), "{major:?} is {version}");
        assert_eq!(cluster.psql("postgres", "SHOW wal_level"), "logical");
        let slot = cluster.psql("postgres", "SELECT slot_name FROM pg_create_logical_replication_slot('s', 'pgoutput')");
        assert_eq!(slot, "s");
    }
}

#[test]
fn committed_rows_survive_a_stop_and_a_kill() {
    let cluster = Cluster::start_with(Major::V15, &[("max_wal_senders", "2")]);
    let database = cluster.database();
    assert_ne!(database, cluster.database(), "each call creates a database of its own");
    assert_eq!(cluster.psql(&database, "SHOW max_wal_senders"), "2");
    cluster.psql(&database, "CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (2, NULL)");
    cluster.stop();
    cluster.start_again();
    cluster.psql(&database, "INSERT INTO t VALUES (3, 'after stop')");
    cluster.kill();
    assert!(!cluster.accepts_connections(), "a killed server does not answer");
    cluster.start_again();
    assert_eq!(cluster.psql(&database, "SELECT * FROM t ORDER BY a"), "1|x\n2|\n3|after stop");
}

#[tokio::test]
async fn a_client_and_psql_see_the_same_database() {
    let cluster = Cluster::start(Major::V15);
    let database = cluster.database();
    let client = cluster.client(&database).await;
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await.expect("a superuser may create a table");
    assert_eq!(cluster.psql(&database, "TABLE t"), "7");
}

#[test]
#[should_panic(expected = "division by zero")]
fn psql_panics_with_what_the_server_said() {
    Cluster::start(Major::V15).psql("postgres", "SELECT 1/0");
}
