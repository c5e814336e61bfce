//! What a fuzz target needs of the CSV reader, which is private.
//!
//! Compiled with `--cfg fuzzing` only, by `fuzz/run.sh`.

use std::io::Read;

use crate::source::csv::{decode::Gate, snapshot::reader_of};

/// The records of a content, as far as a snapshot reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Each record's cells.
    pub records: Vec<Vec<String>>,
    /// The digest of all bytes.
    pub digest: String,
}

/// Reads `bytes` in whatever pieces they come. The error is why a snapshot refuses it.
pub fn records(bytes: impl Read) -> Result<Content, String> {
    let mut reader = reader_of(Gate::new(bytes, None));
    let mut records = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) => error.to_string(),
            csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
            other => format!("{other:?}"),
        })?;
        records.push(record.iter().map(str::to_owned).collect());
    }
    Ok(Content { records, digest: reader.into_inner().prefix().digest })
}
