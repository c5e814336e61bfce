//! The real binary: commands that end ([`Factsync::run`]) and processes that serve ([`Process::spawn`]).
//!
//! Every process starts in the repository's root, as the README's commands do, unless the test names another directory. No setting
//! of the developer's own reaches it, and its state directory is a fresh one unless the test names one.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{command, daemon::Daemon, eventually_async};

/// From the start until the HTTP server listens. A first run against a loaded machine's PostgreSQL takes a few seconds.
const LISTEN_DEADLINE: Duration = Duration::from_secs(60);

/// The design allows 10 s for a graceful stop; the rest is for a loaded machine.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// For a position or a state to be reached.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(180);

/// How long a position is waited for; with `FACTSYNC_LONG=1` as long as the largest transaction that a test can be asked for takes.
fn patience() -> Duration {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 20 * PROGRESS_DEADLINE } else { PROGRESS_DEADLINE }
}

/// Settings of the developer's own that must not reach a test.
pub(crate) const FOREIGN_ENVIRONMENT: [&str; 5] = ["OSO_AUTH", "OSO_AUTH_FILE", "OSO_URL", "DATABASE_URL", "RUST_LOG"];

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_factsync");

/// The public key of Oso's local development server, which the embedded store accepts on loopback.
pub(crate) const DEVELOPMENT_KEY: &str = "e_0123456789_12345_osotesttoken01xiIn";

/// Commands that end by themselves.
#[derive(Debug)]
pub(crate) struct Factsync;

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code.
    pub(crate) status: ExitStatus,
    /// Results.
    pub(crate) stdout: String,
    /// Progress, logs and errors.
    pub(crate) stderr: String,
}

impl Factsync {
    /// Runs the binary with `args` to its end. Without `--state` its state directory is a fresh one that is deleted afterwards.
    pub(crate) fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
        let state = tempfile::tempdir().expect("a temporary directory can be created");
        let output = prepared(root(), args, env, &state).stdin(Stdio::null()).output().expect("the binary can be run");
        let text = |bytes| String::from_utf8(bytes).expect("factsync writes UTF-8");
        Output { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Output {
    /// The exit code; panics when a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }

    /// Itself, after checking that the exit code is `code`.
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON ({error}): {}", self.stdout))
    }
}

/// A `run` or `serve` that is listening.
#[derive(Debug)]
pub(crate) struct Process {
    daemon: Daemon,
    url: String,
    log: Arc<Mutex<String>>,
    client: reqwest::Client,
    /// Deleted when the process is gone, unless the test brought its own.
    _state: TempDir,
}

impl Process {
    /// Starts the binary with `args` and waits until it says where it listens. `--listen 127.0.0.1:0` and a fresh `--state` are
    /// added where `args` lack them.
    pub(crate) fn spawn(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::spawn_in(root(), args, env)
    }

    /// [`Self::spawn`] in another directory than the repository's root.
    pub(crate) fn spawn_in(directory: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().expect("a temporary directory can be created");
        let mut command = prepared(directory, args, env, &state);
        if !args.iter().any(|arg| arg.starts_with("--listen")) {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut daemon, pipes) = Daemon::spawn(command);
        let log = Arc::new(Mutex::new(String::new()));
        let address = collect(pipes.stderr.expect("stderr is piped"), Arc::clone(&log));
        collect(pipes.stdout.expect("stdout is piped"), Arc::clone(&log));
        let Ok(url) = address.recv_timeout(LISTEN_DEADLINE) else {
            // The pipe ends a moment before the process does.
            let status = daemon.wait(Duration::from_secs(1));
            daemon.signal("KILL");
            let log = log.lock().expect("no reader panics").clone();
            panic!("factsync {args:?} does not listen (exit status {status:?}):\n{log}");
        };
        Self { daemon, url, log, client: client(), _state: state }
    }

    /// `http://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// What it has written to stderr and stdout so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no reader panics").clone()
    }

    /// What it writes, also after it has ended.
    pub(crate) fn shared_log(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.log)
    }

    /// `GET path`, with the development key; the status and the body.
    #[expect(clippy::disallowed_methods, reason = "what a test asks for is small")]
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(DEVELOPMENT_KEY);
        let response = request.send().await.unwrap_or_else(|error| panic!("GET {path}: {error:?}\n{}", self.log()));
        let status = response.status().as_u16();
        (status, response.text().await.expect("the body arrives"))
    }

    /// `/v1/status`.
    pub(crate) async fn status(&self) -> Value {
        let (status, body) = self.get("/v1/status").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("/v1/status is not JSON ({error}): {body}"))
    }

    /// Waits until every fact of the commits up to `position` is acknowledged, and gives the answer. Asks again as long as a machine may
    /// take on which everything else runs too, since the server answers within a minute; no test is about that time.
    pub(crate) async fn wait_position(&self, position: &str) -> Value {
        let (path, begun) = (format!("/v1/wait?position={}&timeout_ms=50000", position.replace('/', "%2F")), Instant::now());
        loop {
            let (status, body) = self.get(&path).await;
            if status == 504 && begun.elapsed() < patience() {
                continue;
            }
            assert_eq!(status, 200, "waiting for {position}: {body}; {:#}\n{}", self.status().await, self.log());
            return serde_json::from_str(&body).unwrap_or_else(|error| panic!("/v1/wait is not JSON ({error}): {body}"));
        }
    }

    /// Waits until `/readyz` says that it has caught up.
    pub(crate) async fn wait_ready(&self) {
        eventually_async(PROGRESS_DEADLINE, "factsync is ready", async || {
            let (status, body) = self.get("/readyz").await;
            assert!(status == 200 || status == 503, "/readyz answered {status}: {body}");
            (status == 200).then_some(())
        })
        .await;
    }

    /// Every fact that the embedded store holds of `predicate`, in the API's own JSON.
    pub(crate) async fn facts(&self, predicate: &str) -> Vec<Value> {
        let (status, body) = self.get(&format!("/api/facts?predicate={predicate}")).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("the list of facts is not JSON ({error}): {body}"))
    }

    /// The same; `None` while it does not answer with facts, as a standby.
    #[expect(clippy::disallowed_methods, reason = "what a test asks for is small")]
    pub(crate) async fn facts_or_none(&self, predicate: &str) -> Option<Vec<Value>> {
        let request = self.client.get(format!("{}/api/facts?predicate={predicate}", self.url)).bearer_auth(DEVELOPMENT_KEY);
        let response = request.send().await.ok().filter(|response| response.status().as_u16() == 200)?;
        response.json().await.ok()
    }

    /// Asks it to stop (SIGTERM) and gives its exit status.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        self.daemon.signal("TERM");
        let Some(status) = self.daemon.wait(STOP_DEADLINE) else {
            panic!("factsync still runs {STOP_DEADLINE:?} after SIGTERM:\n{}", self.log());
        };
        status
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let Some(status) = tokio::task::block_in_place(|| self.daemon.wait(PROGRESS_DEADLINE)) else {
            panic!("factsync still runs after {PROGRESS_DEADLINE:?}:\n{}", self.log());
        };
        status
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.daemon.exit_status().is_some()
    }

    /// Stops it in its tracks (SIGSTOP); it answers nobody until [`Self::go_on`].
    pub(crate) fn pause(&self) {
        self.send("STOP");
    }

    /// Lets it go on (SIGCONT).
    pub(crate) fn go_on(&self) {
        self.send("CONT");
    }

    fn send(&self, signal: &str) {
        let status = Command::new("kill").args(["-s", signal, &self.pid().to_string()]).status().expect("kill can be run");
        assert!(status.success());
    }

    /// Ends it as a crash would (SIGKILL).
    pub(crate) fn kill(mut self) {
        self.daemon.signal("KILL");
        self.daemon.wait(STOP_DEADLINE).expect("SIGKILL ends a process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of factsync at {}:\n{}", self.url, self.log());
        }
        self.daemon.signal("KILL");
        // Its state directory is deleted next; a process still writing would leave half of it behind.
        self.daemon.wait(STOP_DEADLINE);
    }
}

/// An HTTP client; reqwest without a TLS provider of its own wants one installed, even for plain HTTP.
pub(crate) fn client() -> reqwest::Client {
    // An error means that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("the TLS provider is installed")
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn prepared(directory: &Path, args: &[&str], env: &[(&str, &str)], state: &TempDir) -> Command {
    let mut command = command(BINARY);
    command.args(args).current_dir(directory);
    if !args.iter().any(|arg| arg.starts_with("--state")) {
        command.arg("--state").arg(state.path());
    }
    for name in FOREIGN_ENVIRONMENT {
        command.env_remove(name);
    }
    command.envs(env.iter().copied());
    command
}

/// Copies `from` into `log` line by line, on a thread that ends with the pipe; the receiver gets the first address it names.
fn collect(from: impl Read + Send + 'static, log: Arc<Mutex<String>>) -> mpsc::Receiver<String> {
    let (found, address) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Ok(line) = line else { return };
            let mut log = log.lock().expect("no reader panics");
            log.push_str(&line);
            log.push('\n');
            if let Some(url) = listening(&line) {
                // Nobody listens after the first one.
                let _ = found.send(url);
            }
        }
    });
    address
}

/// The address in a line that says `listening on http://ADDR`, in a text or a JSON log.
fn listening(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("listening on http://")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"[]:.-".contains(c)).unwrap_or(rest.len());
    Some(format!("http://{}", &rest[..end]))
}

#[test]
fn the_address_is_found_in_text_and_json_logs() {
    assert_eq!(listening("listening on http://127.0.0.1:7878"), Some("http://127.0.0.1:7878".to_owned()));
    let json = r#"{"level":"INFO","fields":{"message":"listening on http://[::1]:80"}}"#;
    assert_eq!(listening(json), Some("http://[::1]:80".to_owned()));
    assert_eq!(listening("listening on port 80"), None);
}
