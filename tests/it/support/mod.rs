//! Servers and processes for tests.
//!
//! Everything here is real: PostgreSQL, mongod and the factsync binary, each on a free port, in a directory that is gone when
//! the test ends. No process outlives its test, even one that is killed: see [`daemon`].
#![allow(dead_code, reason = "the helpers are an offer: which of them are used changes with every test")]

pub(crate) mod app;
pub(crate) mod certificates;
pub(crate) mod daemon;
pub(crate) mod factsync;
pub(crate) mod generate;
pub(crate) mod github;
pub(crate) mod load;
pub(crate) mod mongod;
pub(crate) mod postgres;
pub(crate) mod proxy;

use std::{
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Pause between two looks at a condition: short against every start-up time here, long enough not to burn a core.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Ports that tests take: below Linux's ephemeral range (32768 and up), so that no outgoing connection occupies the port of a server
/// that is stopped and started again.
const PORTS: Range<u16> = 20_000..32_000;

/// Where `tests/run.sh` puts what it installs.
pub(crate) fn tools_dir() -> PathBuf {
    match std::env::var_os("FACTSYNC_TOOLS") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"),
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let width = u64::from(PORTS.end - PORTS.start);
    for attempt in 0..1_000_u64 {
        // A fresh `RandomState` is the standard library's source of randomness; parallel tests must not probe in the same order.
        let offset = RandomState::new().hash_one(attempt) % width;
        let port = PORTS.start + u16::try_from(offset).expect("the offset is below the width of a u16 range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// Whether this process may act as another user.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").expect("Linux has /proc").uid() == 0
}

/// A command that dies with the thread that spawns it: the kernel sends SIGKILL when that thread ends, however it ends.
///
/// `setpriv` executes the program in its own place, so the child's pid is the program's. For anything that outlives a call, spawn it
/// through [`daemon::Daemon`], which holds such a thread.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Polls `condition` until it gives a value, and panics with `description` when `deadline` has passed.
///
/// This is the one place where tests pause. They use it only for what cannot be waited for as an event: another process that
/// becomes ready, or dies.
pub(crate) fn eventually<T>(deadline: Duration, description: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "still waiting after {deadline:?}: {description}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// [`eventually`] for tests on a runtime, which must keep running while they wait.
pub(crate) async fn eventually_async<T>(deadline: Duration, description: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < deadline, "still waiting after {deadline:?}: {description}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
