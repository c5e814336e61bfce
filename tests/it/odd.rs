//! Large and odd: what a database may hold although hardly any test data does.
//!
//! Values near a gigabyte and transactions of millions of rows cost time and disk, never memory; every type, every name, every way of
//! changing a row gives the facts that `psql` gives; clocks that jump and databases that are idle stop nothing.

mod clocks;
mod encodings;
mod idle;
mod large;
mod long_values;
mod names;
mod statements;
mod types;

use serde_json::Value;

use crate::support::{app::fact_type, factsync::Process};

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
