//! Clients that mean no good, over raw sockets, against a server of little patience.

use std::time::Instant;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const HEAD: Duration = Duration::from_millis(400);
/// Long against every limit below, short against a test's patience.
const DEADLINE: Duration = Duration::from_secs(20);
/// An answer that no socket's buffers hold.
const LARGE: usize = 64 << 20;

struct Server {
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<io::Result<()>>,
}

async fn start(connections: usize) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let router = Router::new()
        .route("/", get(async || "well"))
        .route("/large", get(async || vec![b'x'; LARGE]))
        .route("/unread", post(async || "not read"))
        .route("/read", post(async |body: axum::body::Bytes| body.len().to_string()));
    let (stop, stopped) = watch::channel(false);
    let patience = Patience { connections, head: HEAD, silence: Duration::from_millis(1500) };
    let served = tokio::spawn(serve(listener, router, patience, stopped, Duration::from_secs(5)));
    Server { address, stop, served }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    /// Sends `text` and gives what comes back until the connection is closed.
    async fn tell(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.expect("sent");
        to_the_end(&mut stream).await
    }

    /// Whether somebody who behaves is served.
    async fn is_well(&self) -> bool {
        let answer = timeout(DEADLINE, self.tell("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        answer.await.is_ok_and(|answer| answer.ends_with("well"))
    }
}

/// All that comes until the other end closes; a reset is an end too.
async fn to_the_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("the server ends the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends a byte every now and then until the server has had enough; gives how long that took.
async fn dribble(stream: &mut TcpStream, byte: &[u8]) -> Duration {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(HEAD / 8);
    let mut answer = [0; 1024];
    loop {
        assert!(began.elapsed() < DEADLINE, "whoever dribbles is never cut off");
        tokio::select! {
            read = stream.read(&mut answer) => if read.is_ok_and(|count| count > 0) { continue } else { return began.elapsed() },
            _ = ticks.tick() => if stream.write_all(byte).await.is_err() { return began.elapsed() },
        }
    }
}

#[tokio::test]
async fn a_head_that_dribbles_in_is_cut_off_and_so_is_silence() {
    let server = start(8).await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").await.expect("sent");
    let took = dribble(&mut slow, b"x").await;
    assert!(took >= HEAD / 2, "it had less than its time: {took:?}");
    // Not a byte, and an idle connection after a request: the same.
    let mut silent = server.connect().await;
    assert_eq!(to_the_end(&mut silent).await, "");
    let answer = server.tell("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.ends_with("well"), "{answer}");
    assert!(server.is_well().await);
}

#[tokio::test]
async fn a_body_that_nobody_reads_ends_the_connection() {
    let server = start(8).await;
    let mut slow = server.connect().await;
    slow.write_all(b"POST /unread HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx").await.expect("sent");
    let took = dribble(&mut slow, b"x").await;
    assert!(took < DEADLINE / 2, "{took:?}");
    assert!(server.is_well().await);
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_is_cut_off() {
    let server = start(1).await;
    let mut deaf = server.connect().await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let mut first = [0; 1];
    deaf.read_exact(&mut first).await.expect("the answer begins");
    // There is one connection, and it is let go of.
    assert!(server.is_well().await);
}

#[tokio::test]
async fn who_comes_when_there_are_too_many_waits_and_is_served() {
    let server = start(2).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    for stream in [&mut first, &mut second] {
        stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
    }
    let began = Instant::now();
    assert!(server.is_well().await);
    assert!(began.elapsed() >= HEAD / 2, "a third connection was served beside two: {:?}", began.elapsed());
    assert!(server.is_well().await);
}

#[tokio::test]
async fn a_head_too_large_or_with_too_many_headers_is_431() {
    let server = start(8).await;
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES));
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-Many: x\r\n".repeat(MOST_HEADERS + 1));
    for text in [large, many] {
        let answer = server.tell(&text).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(!answer.contains("well"), "{answer}");
    }
    assert!(server.is_well().await);
}

/// A request inside another one's body, for those who let two readers disagree about where the body ends.
#[tokio::test]
async fn what_two_readers_could_understand_differently_is_refused() {
    let server = start(8).await;
    let inner = "GET /unread HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 0\r\n Transfer-Encoding: chunked",
    ] {
        let answer = server.tell(&format!("POST /read HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n{inner}")).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{head}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}: {answer}");
    }
    // Chunks win over a length, and then nothing of the connection is read as a second request.
    let both = format!("POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}");
    let answer = server.tell(&both).await;
    assert_eq!(answer.matches("HTTP/1.1 2").count().min(2), answer.matches("HTTP/1.1 200").count(), "{answer}");
    assert!(!answer.contains("not read"), "{answer}");
}

#[tokio::test]
async fn a_stop_lets_a_request_end_and_no_other_begin() {
    let server = start(8).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let mut begun = [0; 12];
    idle.read_exact(&mut begun).await.expect("an answer");
    server.stop.send_replace(true);
    to_the_end(&mut idle).await;
    timeout(DEADLINE, server.served).await.expect("it ends").expect("no panic").expect("no error");
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}
