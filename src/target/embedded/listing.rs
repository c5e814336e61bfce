//! A listing as a stream of JSON: `[{"predicate":…,"args":[…]},…]`, never whole in memory.
//!
//! A blocking thread walks the snapshot and writes text into chunks; a bounded channel carries them to the socket. A receiver
//! that stalls ends the listing, because its snapshot keeps the WAL from being checkpointed. After an error the body ends without
//! its last chunk, so no client takes a part for the whole.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use rusqlite::Connection;
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tracing::warn;

use crate::target::embedded::{
    EmbeddedStore,
    select::{Halt, Selection, Shape},
    writer::WriteError,
};

/// Bytes after which a chunk is sent: enough that the channel and the socket cost little per fact.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that may wait for the socket.
const QUEUE: usize = 4;

/// How long a receiver may take for one chunk.
const STALL: Duration = Duration::from_secs(30);

/// Why a listing was not begun, or not finished.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListingError {
    #[error("more than {limit} facts match; this plan lists no more, so narrow the pattern")]
    TooMany { limit: u64 },
    #[error("the fact store could not be read")]
    Failed(#[source] rusqlite::Error),
    #[error("the fact store is not up to date and cannot be brought up to date: {0}")]
    Behind(#[from] WriteError),
}

/// The facts of `selection` as a response body; an error if they are more than `limit` or cannot be read.
pub(super) async fn listing(store: &EmbeddedStore, selection: Selection, limit: Option<u64>) -> Result<Body, ListingError> {
    let lease = store.lease().await?;
    let (chunks, mut received) = mpsc::channel(QUEUE);
    let writer = Writer { chunk: Vec::new(), shape: None, first: true, chunks: chunks.clone(), runtime: Handle::current() };
    // Detached: it ends when the body is dropped, at the next chunk, or after `STALL`.
    tokio::task::spawn_blocking(move || match lease.read(|connection| writer.write(connection, &selection, limit)) {
        Ok(()) | Err(Stop::Gone) => {}
        Err(Stop::Refused(error)) => {
            warn!(error = %error, "a listing was not finished");
            // Nobody to tell if the receiver is gone as well.
            let _ = chunks.blocking_send(Err(error));
        }
    });
    let first = received.recv().await.transpose()?.unwrap_or_default();
    // A listing of one chunk has a length, so that it goes out in one piece.
    let Some(second) = received.recv().await else { return Ok(first.into()) };
    let begun = stream::iter([Ok(first), second]);
    Ok(Body::from_stream(begun.chain(stream::unfold(received, async |mut received| Some((received.recv().await?, received))))))
}

/// Why the writing ends early.
enum Stop {
    /// Nobody receives any more, or too slowly.
    Gone,
    /// The receiver is to be told.
    Refused(ListingError),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Refused(ListingError::Failed(error))
    }
}

struct Writer {
    chunk: Vec<u8>,
    /// The shape that the last fact had, and what stands around the ids of its facts.
    shape: Option<(i64, Vec<Vec<u8>>)>,
    first: bool,
    chunks: mpsc::Sender<Result<Bytes, ListingError>>,
    runtime: Handle,
}

impl Writer {
    fn write(mut self, connection: &Connection, selection: &Selection, limit: Option<u64>) -> Result<(), Stop> {
        if let Some(limit) = limit
            && selection.count(connection, limit + 1)? > limit
        {
            return Err(Stop::Refused(ListingError::TooMany { limit }));
        }
        self.chunk.push(b'[');
        let visited = selection.visit(connection, |shape, ids| {
            self.fact(shape, ids);
            if self.chunk.len() < CHUNK_BYTES { Ok(()) } else { self.send().ok_or(Halt::Enough) }
        });
        match visited {
            Ok(()) => {}
            Err(Halt::Enough) => return Err(Stop::Gone),
            Err(Halt::Sql(error)) => return Err(error.into()),
        }
        self.chunk.push(b']');
        self.send().ok_or(Stop::Gone)
    }

    fn fact(&mut self, shape: &Shape, ids: &[&str]) {
        if self.shape.as_ref().is_none_or(|(id, _)| *id != shape.id) {
            self.shape = Some((shape.id, around(shape)));
        }
        let (_, around) = self.shape.as_ref().expect("it has just been set");
        let skip = usize::from(std::mem::replace(&mut self.first, false));
        // The first piece starts with the comma that separates this fact from the one before.
        self.chunk.extend_from_slice(&around[0][skip..]);
        for (id, after) in ids.iter().zip(&around[1..]) {
            push_json(&mut self.chunk, id);
            self.chunk.extend_from_slice(after);
        }
    }

    /// Hands the chunk over; `None` if nobody takes it in time.
    fn send(&mut self) -> Option<()> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8));
        let sent = self.runtime.block_on(timeout(STALL, self.chunks.send(Ok(chunk.into()))));
        sent.ok()?.ok()
    }
}

/// What stands before, between and after the ids of every fact of `shape`.
fn around(shape: &Shape) -> Vec<Vec<u8>> {
    let mut piece = b",{\"predicate\":".to_vec();
    push_json(&mut piece, &shape.predicate);
    piece.extend_from_slice(b",\"args\":[");
    let mut pieces = Vec::with_capacity(shape.types.len() + 1);
    for (n, type_name) in shape.types.iter().enumerate() {
        piece.extend_from_slice(if n == 0 { b"{\"type\":" } else { b"},{\"type\":" });
        push_json(&mut piece, type_name);
        piece.extend_from_slice(b",\"id\":");
        pieces.push(std::mem::take(&mut piece));
    }
    pieces.push(b"}]}".to_vec());
    pieces
}

fn push_json(bytes: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(bytes, text).expect("a string is JSON and memory takes it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Fact, Value};

    #[test]
    fn the_text_is_the_facts_own_json() {
        let fact = Fact {
            predicate: "has \"role\"".into(),
            args: vec![Value::new("User\n", "žlu \"q\" \\ \u{1} 日本 😀"), Value::new("String", "x"), Value::new("T", "1")],
        };
        let types = fact.args.iter().map(|arg| arg.type_name.clone()).collect();
        let pieces = around(&Shape { id: 1, predicate: fact.predicate.clone(), types });
        let mut text = pieces[0].clone();
        for (arg, after) in fact.args.iter().zip(&pieces[1..]) {
            push_json(&mut text, &arg.id);
            text.extend_from_slice(after);
        }
        assert_eq!(text.strip_prefix(b","), Some(serde_json::to_vec(&fact).expect("a fact is JSON").as_slice()));
    }
}
