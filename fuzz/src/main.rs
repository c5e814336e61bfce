//! Fuzz targets: what comes from outside and is parsed by us, under inputs that grow by what they reach.
//!
//! One program, because linking it costs more than any of its targets; `FACTSYNC_FUZZ` names the target, and `run.sh` runs all of
//! them. Each target is a function that asserts what must hold for *any* bytes, beyond that nothing panics, hangs or eats memory.

#![no_main]

mod capture;
mod config;
mod csv;
mod http;
mod pgoutput;
mod planted;
mod signature;
mod tree;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// Names the target.
const TARGET: &str = "FACTSYNC_FUZZ";

/// Every target with its name.
const TARGETS: [(&str, fn(&[u8])); 7] = [
    ("config", config::run),
    ("csv", csv::run),
    ("http", http::run),
    ("pgoutput", pgoutput::run),
    ("planted", planted::run),
    ("signature", signature::run),
    ("tree", tree::run),
];

static CHOSEN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var(TARGET).unwrap_or_default();
    if name == capture::NAME {
        capture::run();
    }
    let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("{TARGET} is \"{name}\"; it must be one of {}", known.join(", "))).1
});

fuzz_target!(init: { LazyLock::force(&CHOSEN); }, |data: &[u8]| {
    CHOSEN(data);
});
