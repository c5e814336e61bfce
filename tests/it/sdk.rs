//! Oso's official SDKs, unmodified, against the embedded fact store.
//!
//! The scripts in `tests/sdk` hold the expectations; here are the servers they talk to: one with the limits of each plan, and a proxy
//! that loses an answer, so that the SDKs' own repetition is tried as well.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use factsync::{
    fact::{Fact, Value},
    target::embedded::{DEVELOPMENT_KEY, Limits},
};

use crate::{embedded::server::Server, support::tools_dir};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name)
}

/// Runs `command`, the SDK of `language`, and checks what it left in the store.
fn run(language: &str, mut command: Command, installed: &Path) {
    assert!(
        installed.exists(),
        "the official {language} SDK is missing at \"{}\": run tests/run.sh (or tests/tools/sdks.sh) to install it",
        installed.display()
    );
    let (growth, free) = (Server::start(Limits::Growth), Server::start(Limits::Free));
    let lossy = Lossy::start(growth.address());
    let output = command
        .env("FACTSYNC_URL", growth.url())
        .env("FACTSYNC_FREE_URL", free.url())
        .env("FACTSYNC_LOSSY_URL", format!("http://{}", lossy.address))
        .env("FACTSYNC_KEY", DEVELOPMENT_KEY)
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the {language} SDK's script failed:\n{text}");
    assert!(text.contains("checks passed"), "{text}");
    let finished = Fact { predicate: "finished".into(), args: vec![Value::new("String", language)] };
    assert_eq!(growth.connect().facts("/api/facts"), [finished], "the script ran to its end, against this store");
    assert_eq!(lossy.lost.load(Ordering::Relaxed), 1, "an answer was lost");
    assert!(lossy.seen.load(Ordering::Relaxed) >= 2, "and the request repeated");
}

#[test]
fn the_python_sdk_works_unmodified() {
    let python = tools_dir().join("sdk-python/bin/python");
    let mut command = Command::new(&python);
    command.arg(script("python_sdk.py"));
    run("python", command, &python);
}

#[test]
fn the_node_sdk_works_unmodified() {
    let package = tools_dir().join("sdk-node/node_modules/oso-cloud");
    let mut command = Command::new("node");
    command.arg(script("node_sdk.mjs")).env("FACTSYNC_SDK", &package);
    run("node", command, &package);
}

/// A proxy that passes on the first request, and hangs up instead of passing back the answer. Lives as long as the test process.
struct Lossy {
    address: SocketAddr,
    seen: &'static AtomicUsize,
    lost: &'static AtomicUsize,
}

impl Lossy {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let [seen, lost]: [&'static AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2].map(|count| &*Box::leak(Box::new(count)));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection arrives");
                let lose = seen.fetch_add(1, Ordering::Relaxed) == 0;
                let upstream = TcpStream::connect(server).expect("the server listens");
                if lose {
                    lose_answer(client, upstream);
                    lost.fetch_add(1, Ordering::Relaxed);
                } else {
                    pass(client.try_clone().expect("a handle"), upstream.try_clone().expect("a handle"));
                    pass(upstream, client);
                }
            }
        });
        Self { address, seen, lost }
    }
}

/// Passes the request on, waits until it is answered, which means that it was applied, and hangs up.
fn lose_answer(client: TcpStream, mut upstream: TcpStream) {
    pass(client.try_clone().expect("a handle"), upstream.try_clone().expect("a handle"));
    upstream.read_exact(&mut [0]).expect("the server answers");
    client.shutdown(Shutdown::Both).expect("the client is still there");
}

/// Copies one direction, on a thread that ends with the connection.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(size @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..size]).is_err() {
                break;
            }
        }
        // The other side may be gone already.
        let _ = to.shutdown(Shutdown::Write);
    });
}
