//! Where servers are found and where they listen.

use std::{
    hash::{BuildHasher, RandomState},
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
};

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
