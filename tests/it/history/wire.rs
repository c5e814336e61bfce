//! HTTP as bytes: what a server framework would not let a test do, such as to hang up before, in and after an answer.
//!
//! As little of HTTP/1.1 as the client under test speaks: requests with `Content-Length` and connections that are kept.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The longest request: a batch of Oso Cloud has at most 960 KiB.
const LONGEST: usize = 2 << 20;

/// A request.
pub(super) struct Request {
    /// `GET` or `POST`.
    pub(super) method: String,
    pub(super) path: String,
    /// Decoded, what follows the `?`.
    pub(super) query: Vec<(String, String)>,
    /// Its `X-Request-ID`.
    pub(super) id: String,
    pub(super) body: Vec<u8>,
}

/// What the other side gets.
pub(super) enum Answer {
    /// A status, headers and JSON.
    Whole { status: u16, headers: String, body: String },
    /// The start of one, and then the end of the connection.
    Torn { body: String },
    /// The end of the connection.
    HangUp,
    /// Nothing until the other side gives up.
    Silence,
}

/// A connection with what was read of it and not used yet.
pub(super) struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Answers are small, and the next request waits for them.
        stream.set_nodelay(true).expect("the connection is there");
        Self { stream, read: Vec::new() }
    }

    /// The next request; `None` when there is none to come.
    pub(super) async fn request(&mut self) -> Option<Request> {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break self.read.drain(..end + 4).collect::<Vec<u8>>();
            }
            self.more().await?;
        };
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?);
        let header = |name: &str| {
            let of = |line: &str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned());
            head.split("\r\n").find_map(of)
        };
        assert_eq!(header("transfer-encoding"), None, "bodies come with their length");
        let length: usize = header("content-length").map_or(0, |text| text.parse().expect("a length"));
        assert!(length <= LONGEST, "a request of {length} bytes");
        while self.read.len() < length {
            self.more().await?;
        }
        let body = self.read.drain(..length).collect();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        Some(Request { method, path: path.to_owned(), query, id: header("x-request-id").unwrap_or_default(), body })
    }

    async fn more(&mut self) -> Option<()> {
        let mut buffer = [0; 8 << 10];
        let read = self.stream.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        self.read.extend_from_slice(&buffer[..read]);
        Some(())
    }

    /// Whether the connection goes on after `answer`.
    pub(super) async fn answer(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::Whole { status, headers, body } => {
                let text = format!(
                    "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                    body.len()
                );
                self.stream.write_all(text.as_bytes()).await.is_ok()
            }
            Answer::Torn { body } => {
                let text = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
                // The other side may be gone already, which is the same to both.
                let _ = self.stream.write_all(text.as_bytes()).await;
                let _ = self.stream.write_all(&body.as_bytes()[..body.len() / 2]).await;
                let _ = self.stream.shutdown().await;
                false
            }
            Answer::HangUp => false,
            Answer::Silence => {
                while self.more().await.is_some() {}
                false
            }
        }
    }
}
