//! Reading at an exact cluster time.
//!
//! `readConcern: {level: "snapshot", atClusterTime: T}` answers from the state at T, whatever was written since, as long as the
//! server still has that state (`minSnapshotHistoryWindowInSeconds`, 300 by default) and nobody has created, dropped or
//! indexed the collection since ([`ReadError::Unavailable`]). A `getMore` of such a cursor reads at T too. The server takes no
//! T that is ahead of its own clock, and one that is not yet majority-committed it waits for.

use std::{collections::BTreeMap, time::Duration};

use futures_util::TryStreamExt;
use mongodb::{
    bson::{Bson, Document, Timestamp, doc},
    error::{Error, ErrorKind},
    raw_batch_cursor::RawBatchCursor,
};

use crate::{
    data::Row,
    source::mongo::{
        client::Server,
        lookup,
        shape::{PerDocument, SOURCE_ID, key},
    },
};

/// Documents asked for at a time. Decoded they take some 1 KiB each, and unasked the server fills each answer up to 16 MiB: a quarter of a
/// million small ones (a first read of a million then took 370 MiB).
const BATCH_DOCUMENTS: u32 = 4_000;
/// Ids in one command. On mongod 6.0 20,000 documents by id take 0.41 s in commands of 100, 0.17 s of 1,000 and 0.17 s of 10,000.
const IDS_IN_COMMAND: usize = 1000;
/// Bytes of values in one command. A command ends at 16 MiB, and an `_id` may be megabytes long.
const BYTES_IN_COMMAND: usize = 4 << 20;
/// How long a member may take to get to a time that others have seen; an election takes some seconds.
const MEMBER_PATIENCE: Duration = Duration::from_secs(10);
/// `InvalidOptions`: of `afterClusterTime` that it is ahead of the server's clock.
const INVALID_OPTIONS: i32 = 72;
/// `SnapshotTooOld`.
const SNAPSHOT_TOO_OLD: i32 = 239;
/// `SnapshotUnavailable`.
const SNAPSHOT_UNAVAILABLE: i32 = 246;

/// Why nothing could be read at a time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The server has dropped the state at that time.
    #[error("the server no longer has the state at that time")]
    TooOld(#[source] Error),
    /// The collection was created, dropped or indexed after that time, so it can only be read at a later one.
    #[error("the collection has changed its catalog entry since that time")]
    Unavailable(#[source] Error),
    /// A document has an array in an array where a `$lookup` finds its local values, so [`lookup::affected`] would miss it.
    #[error("a document has an array in an array at \"{path}\", where a $lookup follows the elements")]
    ArrayInArray {
        /// The path, which is from the configuration.
        path: String,
    },
    /// Anything else.
    #[error("could not read at a cluster time")]
    Failed(#[source] Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        match &*error.kind {
            ErrorKind::Command(command) if command.code == SNAPSHOT_TOO_OLD => Self::TooOld(error),
            ErrorKind::Command(command) if command.code == SNAPSHOT_UNAVAILABLE => Self::Unavailable(error),
            _ => Self::Failed(error),
        }
    }
}

/// Documents as they come, one answer of the server at a time.
pub(super) struct Documents(RawBatchCursor);

impl Documents {
    /// The next documents; `None` at the end. There may be none in an answer that is not the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Document>>, ReadError> {
        let Some(batch) = self.0.try_next().await? else { return Ok(None) };
        let broken = |error: mongodb::bson::error::Error| ReadError::Failed(error.into());
        let mut documents = Vec::new();
        for document in batch.doc_slices()? {
            let document = document.map_err(broken)?.as_document().map(Document::try_from);
            documents.extend(document.transpose().map_err(broken)?);
        }
        Ok(Some(documents))
    }
}

impl Server {
    /// A time up to which everything is majority-committed, so that a snapshot can be read at it now. It comes with the answer
    /// to a majority read, of a collection that need not exist.
    pub(super) async fn cluster_time(&self) -> Result<Timestamp, Error> {
        self.majority_time(doc! { "level": "majority" }).await
    }

    /// The same, not before `time`, which somebody has seen: a member that is behind, or has just been elected, is waited for. `None` if
    /// the deployment's own clock has never been there.
    pub(super) async fn cluster_time_after(&self, time: Timestamp) -> Result<Option<Timestamp>, Error> {
        match self.majority_time(doc! { "level": "majority", "afterClusterTime": time }).await {
            Ok(time) => Ok(Some(time)),
            Err(error) => match &*error.kind {
                ErrorKind::Command(command) if command.code == INVALID_OPTIONS => Ok(None),
                _ => Err(error),
            },
        }
    }

    async fn majority_time(&self, concern: Document) -> Result<Timestamp, Error> {
        let wait = i64::try_from(MEMBER_PATIENCE.as_millis()).unwrap_or(i64::MAX);
        let nothing = doc! { "find": "factsync.time", "limit": 1, "singleBatch": true, "readConcern": concern, "maxTimeMS": wait };
        let answer = self.run(nothing).await?;
        answer.get_timestamp("operationTime").map_err(Error::custom)
    }

    /// What a pipeline makes of a collection at a time.
    pub(super) async fn aggregate_at(&self, collection: &str, pipeline: Vec<Document>, at: Timestamp) -> Result<Documents, ReadError> {
        self.read_at(doc! { "aggregate": collection, "pipeline": pipeline, "allowDiskUse": true }, at).await
    }

    /// The same for documents with chosen ids, which the index on `_id` finds: without the hint the server may try others.
    pub(super) async fn aggregate_ids_at(&self, collection: &str, pipeline: Vec<Document>, at: Timestamp) -> Result<Documents, ReadError> {
        self.read_at(doc! { "aggregate": collection, "pipeline": pipeline, "allowDiskUse": true, "hint": { "_id": 1 } }, at).await
    }

    /// The documents of a collection that pass `filter` at a time.
    pub(super) async fn find_at(
        &self,
        collection: &str,
        filter: Document,
        projection: Document,
        at: Timestamp,
    ) -> Result<Documents, ReadError> {
        self.aggregate_at(collection, vec![doc! { "$match": filter }, doc! { "$project": projection }], at).await
    }

    /// The rows at a time of the documents with these ids, under their keys. A document that is gone, or that the query makes
    /// nothing of, has no entry. (Where the collection's collation holds two ids for equal, the one that is there has one.)
    pub(super) async fn rows_of(&self, view: &PerDocument, ids: &[Bson], at: Timestamp) -> Result<BTreeMap<String, Vec<Row>>, ReadError> {
        let mut rows = BTreeMap::new();
        for ids in commands(ids).collect::<Vec<_>>() {
            lookup::refuse_arrays_in_arrays(self, view, Some(ids), at).await?;
            let mut documents = self.aggregate_ids_at(&view.collection, view.pipeline(Some(ids)), at).await?;
            // A document that two commands ask for, by ids that are equal, has its rows once.
            let mut of_command: BTreeMap<String, Vec<Row>> = BTreeMap::new();
            while let Some(documents) = documents.next().await? {
                for document in documents {
                    of_command.entry(source_key(&document)?).or_default().extend(view.rows(&document));
                }
            }
            rows.append(&mut of_command);
        }
        Ok(rows)
    }

    /// Runs a `find` or an `aggregate` at a time.
    pub(super) async fn read_at(&self, mut command: Document, at: Timestamp) -> Result<Documents, ReadError> {
        if command.contains_key("find") {
            command.insert("batchSize", BATCH_DOCUMENTS);
        } else {
            command.insert("cursor", doc! { "batchSize": BATCH_DOCUMENTS });
        }
        command.insert("readConcern", doc! { "level": "snapshot", "atClusterTime": at });
        let mut run = self.database.run_cursor_command(command).batch_size(BATCH_DOCUMENTS);
        if let Some(criteria) = self.read_preference() {
            run = run.selection_criteria(criteria.clone());
        }
        Ok(Documents(run.batch().await?))
    }
}

/// The key of the document that an output document comes from.
pub(super) fn source_key(output: &Document) -> Result<String, ReadError> {
    let missing = || ReadError::Failed(Error::custom(format!("an output document has no {SOURCE_ID}")));
    output.get(SOURCE_ID).map(key).ok_or_else(missing)
}

/// The values in slices that each fit into a command.
pub(super) fn commands(mut values: &[Bson]) -> impl Iterator<Item = &[Bson]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |value: &&Bson| {
            bytes += size(value);
            bytes <= BYTES_IN_COMMAND
        };
        let count = values.iter().take(IDS_IN_COMMAND).take_while(fits).count().max(1).min(values.len());
        let (slice, rest) = values.split_at(count);
        values = rest;
        (!slice.is_empty()).then_some(slice)
    })
}

/// About the bytes of a value in a command; what has no variable part counts as the largest of these.
fn size(value: &Bson) -> usize {
    const FIXED: usize = 32;
    FIXED
        + match value {
            Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => text.len(),
            Bson::Binary(binary) => binary.bytes.len(),
            Bson::Array(items) => items.iter().map(size).sum(),
            Bson::Document(document) => document.iter().map(|(name, value)| name.len() + size(value)).sum(),
            _ => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_full_and_fit() {
        let lengths = |values: &[Bson]| commands(values).map(<[Bson]>::len).collect::<Vec<_>>();
        let number = |number: usize| Bson::Int64(number as i64);
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&(0..2 * IDS_IN_COMMAND + 1).map(number).collect::<Vec<_>>()), [IDS_IN_COMMAND, IDS_IN_COMMAND, 1]);
        let long = Bson::String("x".repeat(BYTES_IN_COMMAND / 2 - 100));
        let larger = Bson::from(doc! { "a": ["x".repeat(2 * BYTES_IN_COMMAND)] });
        assert_eq!(lengths(&[long.clone(), long.clone(), long.clone(), larger, 1.into(), long]), [2, 1, 1, 2]);
    }
}
