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
mod places;
pub(crate) mod postgres;
pub(crate) mod proxy;
pub(crate) mod replica_set;
pub(crate) mod secured_mongod;

pub(crate) use places::{free_port, tools_dir};

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    process::Command,
    time::{Duration, Instant},
};

/// Pause between two looks at a condition: short against every start-up time here, long enough not to burn a core.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

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
