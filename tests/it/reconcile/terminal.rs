//! What a person sees while it works, and that a pipe sees only JSON.

use std::process::Command;

use super::Desk;
use crate::support::factsync::BINARY;

const CSI: &str = "\u{1b}[";

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_there_is_a_line_per_fact_type_and_stdout_is_one_line_of_json() {
    let desk = Desk::new();
    let output = desk.reconcile(&["examples/quickstart/quickstart.yaml", "--perform-updates"]).expect_code(0);
    output.json();
    assert_eq!(output.stdout.matches('\n').count(), 1, "{}", output.stdout);
    let lines: Vec<&str> = output.stderr.lines().collect();
    let want = [
        "has_role(User:_, String:_, Organization:_): 3 wanted, 0 stored, 3 to add, 0 to remove",
        "has_relation(Repository:_, String:organization, Organization:_): 3 wanted, 0 stored, 3 to add, 0 to remove",
        "writing: 6 changes written",
    ];
    assert_eq!(lines, want);
}

/// `script` (of Debian's essential package bsdutils) gives the command a terminal of its own.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_there_are_bars_and_stdout_is_still_nothing_but_json() {
    let desk = Desk::new();
    let stdout = desk.folder.path().join("stdout");
    let state = desk.folder.path().join("state");
    let command = format!(
        "'{BINARY}' reconcile examples/quickstart/quickstart.yaml --perform-updates --state '{}' --target {} > '{}'",
        state.display(),
        desk.store.url(),
        stdout.display()
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).current_dir(crate::support::factsync::root());
    for name in crate::support::factsync::FOREIGN_ENVIRONMENT {
        script.env_remove(name);
    }
    let output = script.env("TERM", "xterm").env("COLUMNS", "200").output().expect("script can be run");
    let screen = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{screen}");
    assert!(screen.contains(CSI), "no bar moved: {screen}");
    assert!(screen.contains("has_role(User:_, String:_, Organization:_)") && screen.contains("6 changes written"), "{screen}");
    let json = std::fs::read_to_string(&stdout).expect("stdout was redirected");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(super::summary(&report).len(), 2);
    assert!(!json.contains('\u{1b}'), "{json}");
}
