//! A TCP proxy before a fact store, which can lose answers and refuse connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What it does with the fact store's answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Open,
    /// Passes requests on and closes the connection instead of giving the answer.
    LoseAnswers,
    /// Closes every connection at once.
    Down,
}

/// The proxy; it ends with the test's runtime.
pub(crate) struct Proxy {
    address: SocketAddr,
    mode: Arc<AtomicU8>,
    lost: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens before `upstream`, an `http://` URL.
    pub(crate) async fn start(upstream: &str) -> Self {
        let upstream = upstream.strip_prefix("http://").expect("an http URL").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (mode, lost) = (Arc::new(AtomicU8::new(Mode::Open as u8)), Arc::new(AtomicU64::new(0)));
        let proxy = Self { address, mode: mode.clone(), lost: lost.clone() };
        tokio::spawn(async move {
            while let Ok((down, _)) = listener.accept().await {
                let Ok(up) = TcpStream::connect(&upstream).await else { continue };
                let ((down_read, down_write), (up_read, up_write)) = (down.into_split(), up.into_split());
                tokio::spawn(requests(down_read, up_write, mode.clone()));
                tokio::spawn(answers(up_read, down_write, mode.clone(), lost.clone()));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// How many answers were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

fn is(mode: &AtomicU8, wanted: Mode) -> bool {
    mode.load(Ordering::SeqCst) == wanted as u8
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: Arc<AtomicU8>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if is(&mode, Mode::Down) || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Returning drops the writing half, which closes the client's connection.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mode: Arc<AtomicU8>, lost: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if is(&mode, Mode::LoseAnswers) {
            lost.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
