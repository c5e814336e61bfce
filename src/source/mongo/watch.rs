//! The change stream of one database: from the server's batches to events, without their documents.
//!
//! The stream is opened on the database and projected by the server to what says *which* documents have changed: no event is then larger
//! than an `_id` and two names, whatever the documents are (an event of more than 16 MiB ends a stream that asks for documents:
//! <https://www.mongodb.com/docs/manual/changeStreams/#change-streams-and-documents-over-16-mib>), and a million updates are some hundred
//! megabytes. What the documents have become is read by query (`tail`).
//!
//! A *batch* is what one `getMore` returns, and whether the server had more when it stopped. That matters for transactions: all events of
//! one have the cluster time of its commit, and nothing in the last of them says that it is the last. But the server ends a batch for one
//! of three reasons only: it has as many events as were asked for, it is full, or the oplog ends here. A transaction is unwound from
//! one entry of the oplog, so in the third case it is complete. So is everything up to the batch's *post-batch resume token*, which the
//! server moves along while it scans entries that are no events of ours
//! (<https://github.com/mongodb/specifications/blob/master/source/change-streams/change-streams.md>).
//!
//! A router (mongos) merges the streams of its shards, and one of them may still tell of a time at which another one is. There only what is
//! *before* the post-batch resume token is complete.
//!
//! The stream is read by a task of its own, [`BATCHES_AHEAD`] batches ahead: while a batch is looked up, the server prepares the next.

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt;
use mongodb::{
    bson::{self, Binary, Bson, Document, RawBsonRef, RawDocument, Timestamp, doc, spec::BinarySubtype},
    error::Error,
    options::{CursorType, RunCursorCommandOptions},
    raw_batch_cursor::{RawBatch, RawBatchCursor},
};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use crate::{
    data::{ClusterTime, ResumeToken},
    source::{
        SourceError,
        mongo::{
            client::{Server, position_lost},
            fault::said,
        },
    },
};

/// Events in a batch: what is looked up by one query, and becomes one commit.
const BATCH_EVENTS: u32 = 1000;
/// A batch of this size may have ended because it is full (16 MiB), not because the oplog has ended.
const FULL_BYTES: usize = 8 << 20;
/// Batches that wait to be looked up: as many as become one commit (`tail`), so that the server prepares the next one meanwhile. Of an
/// event its id and its token are kept, some hundred bytes.
const BATCHES_AHEAD: usize = 8;
/// How long the server holds a request when there is nothing to tell; it answers at once when there is.
const AWAIT: Duration = Duration::from_secs(1);
/// How long beyond that an answer may take. A server that hangs says nothing at all, and nobody else would notice.
const PATIENCE: Duration = Duration::from_secs(30);

/// One change, as far as it is of interest here.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) at: ClusterTime,
    pub(super) token: ResumeToken,
    pub(super) what: What,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// A document was written or deleted.
    Document { collection: String, id: Bson },
    /// A collection has no documents any more.
    Dropped { collection: String },
    /// A collection has another name now, perhaps in place of one that had it before.
    Renamed { from: String, to: String },
    /// The database was dropped: the last event of this stream.
    Invalidated,
}

/// What one answer of the server tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    /// In the order of the oplog.
    pub(super) events: Vec<Event>,
    /// Whether the oplog ended here, so that everything is complete up to `reached`.
    pub(super) ended: bool,
    /// How far the server has looked, and what resumes the stream there.
    pub(super) reached: ClusterTime,
    pub(super) token: ResumeToken,
    /// The server's own time.
    pub(super) head: ClusterTime,
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// What the driver or the server says.
    #[error(transparent)]
    Driver(#[from] Error),
    /// The server says something that this program does not know.
    #[error("{0} of the change stream is not as this program knows it")]
    Unreadable(&'static str),
    /// The server says nothing, not even that there is nothing.
    #[error("the server has not answered for {PATIENCE:?}")]
    Silent,
    /// The stream has ended, and nothing in it said why.
    #[error("the server has ended the change stream")]
    Ended,
}

/// What it means for the source.
pub(super) fn lost(server: &Server, fault: Fault) -> SourceError {
    const ACTION: &str = "follow the change stream";
    match fault {
        Fault::Driver(error) if position_lost(&error) => server.position_lost(said(&error)),
        Fault::Driver(error) => server.failed(ACTION, error),
        fault @ (Fault::Silent | Fault::Ended) => server.unreachable(ACTION, fault),
        fault @ Fault::Unreadable(_) => server.refused(ACTION, "This server is newer than this factsync: upgrade factsync.", fault),
    }
}

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Since {
    /// Everything up to here is known.
    pub(super) time: ClusterTime,
    pub(super) token: ResumeToken,
}

impl Since {
    fn stage(&self) -> Document {
        match token_document(&self.token) {
            // Unlike a time alone, the token of an event tells a server that has another history. Unlike `resumeAfter` this takes the token
            // of an event that ended a stream, too.
            Some(token) => doc! { "$changeStream": { "startAfter": token } },
            // The time itself and not the one after it, at which nobody has written yet: the server names what it was asked for as reached.
            None => doc! { "$changeStream": { "startAtOperationTime": timestamp(self.time) } },
        }
    }

    /// Whether an event is not known yet.
    fn lacks(&self, event: &Event) -> bool {
        event.at > self.time || self.token.data().is_some()
    }
}

/// What separates a token's `_data` from its `_typeBits`, which say what numbers in it were before they became comparable bytes. Without
/// them the server does not take a token back that has, for instance, a Decimal128 in its `_id`.
const TYPE_BITS: char = '.';

/// A token as one text: both parts are hexadecimal.
fn token(document: &RawDocument) -> Result<ResumeToken, bson::error::Error> {
    let data = document.get_str("_data")?;
    let bits = match document.get("_typeBits")? {
        Some(RawBsonRef::Binary(bits)) => bits.bytes.iter().fold(TYPE_BITS.to_string(), |hex, byte| format!("{hex}{byte:02x}")),
        Some(_) | None => String::new(),
    };
    Ok(ResumeToken::new(&format!("{data}{bits}")))
}

/// The reverse; `None` without a token.
fn token_document(token: &ResumeToken) -> Option<Document> {
    let text = token.data()?;
    let Some((data, bits)) = text.split_once(TYPE_BITS) else { return Some(doc! { "_data": text }) };
    let bytes = (0..bits.len() / 2).filter_map(|at| u8::from_str_radix(bits.get(2 * at..2 * at + 2)?, 16).ok());
    let bits = Binary { subtype: BinarySubtype::Generic, bytes: bytes.collect() };
    Some(doc! { "_data": data, "_typeBits": bits })
}

/// A cluster time as BSON has it.
pub(super) fn timestamp(time: ClusterTime) -> Timestamp {
    Timestamp { time: time.seconds(), increment: time.increment() }
}

/// The reverse.
pub(super) fn cluster_time(timestamp: Timestamp) -> ClusterTime {
    ClusterTime::new(timestamp.time, timestamp.increment)
}

/// An open stream. Dropping it ends the task and the server's cursor.
pub(super) struct Watch {
    batches: mpsc::Receiver<Result<Batch, Fault>>,
    _reader: JoinSet<()>,
}

impl Watch {
    /// Opens a stream of the events that concern `collections`.
    pub(super) async fn open(server: &Server, collections: &BTreeSet<String>, since: &Since) -> Result<Self, Fault> {
        let cursor = open(server, collections, since, BATCH_EVENTS).await?;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let mut reader = JoinSet::new();
        reader.spawn(read(cursor, server.is_router(), since.clone(), sender));
        Ok(Self { batches, _reader: reader })
    }

    /// The next batch; `None` after an event that ends the stream. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Batch, Fault>> {
        self.batches.recv().await
    }
}

/// Whether anything has happened since, without waiting for it: a look ahead of the stream, which is being held by the server.
pub(super) async fn peek(server: Server, collections: BTreeSet<String>, since: Since) -> Result<Batch, Fault> {
    let mut cursor = open(&server, &collections, &since, 1).await?;
    match cursor.next().await {
        Some(batch) => parse(&batch?, 1, server.is_router(), &since),
        None => Ok(Batch::default()),
    }
}

async fn open(server: &Server, collections: &BTreeSet<String>, since: &Since, events: u32) -> Result<RawBatchCursor, Error> {
    let names: Vec<&str> = collections.iter().map(String::as_str).collect();
    let concerned = doc! { "$match": { "$or": [
        { "ns.coll": { "$in": names.clone() } },
        { "to.coll": { "$in": names } },
        { "operationType": { "$in": ["dropDatabase", "invalidate"] } },
    ] } };
    let told = doc! { "$project": { "operationType": 1, "clusterTime": 1, "ns": 1, "to": 1, "documentKey": 1 } };
    let batch_size = i64::from(events);
    let command = doc! { "aggregate": 1, "pipeline": [since.stage(), concerned, told], "cursor": { "batchSize": batch_size } };
    let mut options = RunCursorCommandOptions::default();
    options.cursor_type = Some(CursorType::TailableAwait);
    options.max_time = Some(AWAIT);
    options.batch_size = Some(events);
    options.selection_criteria = server.read_preference().cloned();
    server.database.run_cursor_command(command).with_options(options).batch().await
}

async fn read(mut cursor: RawBatchCursor, router: bool, since: Since, batches: mpsc::Sender<Result<Batch, Fault>>) {
    loop {
        let next = match timeout(AWAIT + PATIENCE, cursor.next()).await {
            Ok(Some(batch)) => batch.map_err(Fault::from).and_then(|batch| parse(&batch, BATCH_EVENTS, router, &since)),
            Ok(None) => return,
            Err(_) => Err(Fault::Silent),
        };
        let failed = next.is_err();
        // Nobody listens any more, or nothing more is to come.
        if batches.send(next).await.is_err() || failed {
            return;
        }
    }
}

fn parse(batch: &RawBatch, asked: u32, router: bool, since: &Since) -> Result<Batch, Fault> {
    let documents = batch.doc_slices()?;
    let (mut events, mut count) = (Vec::new(), 0);
    for document in documents {
        let document = document.ok().and_then(|document| document.as_document());
        count += 1;
        events.extend(event(document.ok_or(Fault::Unreadable("an event"))?)?.filter(|event| since.lacks(event)));
    }
    let full = count >= asked || documents.as_bytes().len() >= FULL_BYTES;
    let reply = batch.as_raw_document();
    let cursor = reply.get_document("cursor").map_err(|_| Fault::Unreadable("a batch"))?;
    let token = cursor.get_document("postBatchResumeToken").ok().and_then(|document| token(document).ok());
    let token = token.ok_or(Fault::Unreadable("the resume token"))?;
    let reached = token.data().and_then(token_time).ok_or(Fault::Unreadable("the resume token"))?;
    let last = events.last().map(|event: &Event| event.at).unwrap_or_default();
    let (ended, reached) = if router { (!full && reached > last, ClusterTime(reached.0.saturating_sub(1))) } else { (!full, reached) };
    let head = reply.get_timestamp("operationTime").map(cluster_time).unwrap_or(reached).max(reached);
    Ok(Batch { events, ended, reached, token, head })
}

/// The cluster time at the start of a resume token: the type byte of a timestamp (0x82) and its eight bytes, in hexadecimal
/// (`resume_token.h` and `key_string.h` in the server's source).
fn token_time(data: &str) -> Option<ClusterTime> {
    let time = data.strip_prefix("82")?.get(..16)?;
    u64::from_str_radix(time, 16).ok().map(ClusterTime)
}

fn event(document: &RawDocument) -> Result<Option<Event>, Fault> {
    read_event(document).map_err(|_| Fault::Unreadable("an event"))
}

fn read_event(document: &RawDocument) -> Result<Option<Event>, bson::error::Error> {
    let collection = || Ok::<_, bson::error::Error>(document.get_document("ns")?.get_str("coll")?.to_owned());
    let what = match document.get_str("operationType")? {
        "insert" | "update" | "replace" | "delete" => {
            let id = document.get_document("documentKey")?.get("_id")?.map(Bson::try_from).transpose()?;
            What::Document { collection: collection()?, id: id.unwrap_or(Bson::Undefined) }
        }
        "drop" => What::Dropped { collection: collection()? },
        "rename" => What::Renamed { from: collection()?, to: document.get_document("to")?.get_str("coll")?.to_owned() },
        "invalidate" => What::Invalidated,
        // Each collection of a dropped database has been dropped by an event of its own, and what a later server tells besides changes no
        // document.
        _ => return Ok(None),
    };
    let token = token(document.get_document("_id")?)?;
    Ok(Some(Event { at: cluster_time(document.get_timestamp("clusterTime")?), token, what }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::RawDocumentBuf;

    #[test]
    fn a_token_goes_back_as_it_came() {
        let bits = Binary { subtype: BinarySubtype::Generic, bytes: vec![0x82, 0x00, 0x0f] };
        for document in [doc! { "_data": "8265AB01" }, doc! { "_data": "8265AB01", "_typeBits": bits }] {
            let raw = RawDocumentBuf::try_from(&document).expect("BSON");
            let token = token(&raw).expect("a token");
            let stored: ResumeToken = ResumeToken::new(token.data().expect("data"));
            assert_eq!(token_document(&stored), Some(document));
        }
        assert_eq!(token_document(&ResumeToken::default()), None);
    }

    #[test]
    fn a_token_begins_with_its_time() {
        assert_eq!(token_time("826B02FF8E000000082B0229296E04"), Some(ClusterTime::new(0x6B02_FF8E, 8)));
        assert_eq!(token_time("82"), None);
        assert_eq!(token_time("7F6B02FF8E00000008"), None);
    }

    #[test]
    fn what_was_known_at_a_time_is_not_told_again() {
        let (time, token) = (ClusterTime::new(7, 1), ResumeToken::new("8201"));
        let event = |at: ClusterTime| Event { at, token: token.clone(), what: What::Invalidated };
        let since = Since { time, token: ResumeToken::default() };
        assert_eq!([time, time.next()].map(|at| since.lacks(&event(at))), [false, true]);
        // The rest of a transaction has the time of its beginning, and a token knows where in it we are.
        assert!(Since { time, token: token.clone() }.lacks(&event(time)));
    }
}
