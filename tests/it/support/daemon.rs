//! Long-running child processes that cannot outlive their test.
//!
//! The kernel sends a child its death signal when the *thread* that spawned it ends, not the process. So each daemon is spawned by a thread
//! of its own, which then does nothing but wait for it: it lives exactly as long as the daemon or the test's process, whichever
//! ends first, even if the test is killed.

use std::{
    process::{ChildStderr, ChildStdout, Command, ExitStatus},
    sync::mpsc,
    time::Duration,
};

/// A child process; its command should set a death signal, see [`super::command`].
#[derive(Debug)]
pub(crate) struct Daemon {
    pid: u32,
    exited: mpsc::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
}

/// The ends of the pipes that its command asked for.
#[derive(Debug)]
pub(crate) struct Pipes {
    /// Standard output.
    pub(crate) stdout: Option<ChildStdout>,
    /// Standard error.
    pub(crate) stderr: Option<ChildStderr>,
}

impl Daemon {
    /// Starts `command`, and panics when it cannot be executed.
    pub(crate) fn spawn(mut command: Command) -> (Self, Pipes) {
        let (started, start) = mpsc::channel();
        let (exit, exited) = mpsc::channel();
        std::thread::spawn(move || {
            let mut child = command.spawn().unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
            let pipes = Pipes { stdout: child.stdout.take(), stderr: child.stderr.take() };
            started.send((child.id(), pipes)).expect("the spawning thread waits for the pid");
            let status = child.wait().expect("a child can be waited for");
            // Nobody listens when the daemon was dropped first.
            let _ = exit.send(status);
        });
        let (pid, pipes) = start.recv().expect("the daemon's thread starts it");
        (Self { pid, exited, status: None }, pipes)
    }

    /// Its process id, which is also that of the program behind `setpriv`.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.status = self.status.or_else(|| self.exited.try_recv().ok());
        self.status
    }

    /// Waits until it ends; `None` when it is still running after `deadline`.
    pub(crate) fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        self.status = self.status.or_else(|| self.exited.recv_timeout(deadline).ok());
        self.status
    }

    /// Sends `signal` (a name such as `TERM`), unless it has ended.
    pub(crate) fn signal(&mut self, signal: &str) {
        if self.exit_status().is_none() {
            // It may end right now, so failing to find it is no error.
            let _ = Command::new("kill").args(["-s", signal, &self.pid.to_string()]).output().expect("kill can be run");
        }
    }
}

#[test]
fn a_daemon_reports_the_signal_that_ended_it() {
    use std::os::unix::process::ExitStatusExt;
    let mut command = super::command("sleep");
    command.arg("600");
    let (mut daemon, _) = Daemon::spawn(command);
    assert_eq!(daemon.exit_status(), None);
    assert_eq!(daemon.wait(Duration::from_millis(10)), None);
    daemon.signal("TERM");
    let status = daemon.wait(Duration::from_secs(10)).expect("sleep obeys SIGTERM");
    assert_eq!(status.signal(), Some(15));
    daemon.signal("KILL");
    assert_eq!(daemon.exit_status(), Some(status), "a second signal changes nothing");
}

#[test]
fn a_daemon_dies_with_the_process_that_started_it() {
    // A shell stands for the test process: it starts a daemon, says its pid and is killed before it can clean up.
    let mut shell = super::command("sh");
    shell.args(["-c", "setpriv --pdeathsig KILL sleep 600 & echo $!; wait"]).stdout(std::process::Stdio::piped());
    let (mut shell, pipes) = Daemon::spawn(shell);
    let mut stdout = std::io::BufReader::new(pipes.stdout.expect("stdout is piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut stdout, &mut line).expect("the shell says a pid");
    let comm = format!("/proc/{}/comm", line.trim());
    super::eventually(Duration::from_secs(10), "sleep runs", || {
        std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() == "sleep").then_some(())
    });
    shell.signal("KILL");
    super::eventually(Duration::from_secs(10), "sleep dies", || {
        let state = std::fs::read_to_string(comm.replace("comm", "stat")).unwrap_or_default();
        // Gone, or a zombie that init has not collected yet.
        (state.is_empty() || state.contains(") Z ")).then_some(())
    });
}
