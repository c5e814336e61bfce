//! Large and odd: what a database may hold although hardly any test data does.
//!
//! Values near a gigabyte and transactions of millions of rows cost time and disk, never memory; every type, every name, every way of
//! changing a row gives the facts that `psql` gives; clocks that jump and databases that are idle stop nothing.

mod arguments;
mod clocks;
mod encodings;
mod idle;
mod large;
mod long_values;
mod names;
mod statements;

use std::time::Duration;

use serde_json::Value;

use crate::support::{
    app::{App, fact_type},
    eventually_async,
    factsync::Process,
};

/// For the largest of them, in a debug build on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(3 * 60 * 60);

/// Runs `sql` and waits until its facts are acknowledged, longer than a single request may wait.
async fn commit(app: &App, process: &Process, sql: &str) {
    app.sql(sql).await;
    let position = app.position().await.replace('/', "%2F");
    eventually_async(PATIENCE, "its facts are acknowledged", async || {
        let (status, body) = process.get(&format!("/v1/wait?position={position}&timeout_ms=50000")).await;
        assert!(status == 200 || status == 504, "{status}: {body}");
        (status == 200).then_some(())
    })
    .await;
}

/// The most memory the process ever had resident, in MiB.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB") / 1024
}

/// The mode of a fact type and why it is that.
fn mode(status: &Value, signature: &str) -> (String, String) {
    let line = fact_type(status, signature);
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    (text("mode"), format!("{} {}", text("reason"), text("problem")))
}
