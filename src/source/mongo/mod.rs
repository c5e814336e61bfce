//! The mongo source.

use std::path::Path;

use crate::{
    config::MongoConfig,
    source::{Observer, Snapshot, SourceError},
};

/// Reads every view once; see [`crate::source::snapshot`].
pub async fn snapshot(name: &str, config: &MongoConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    let _ = (config, spool, observer);
    Err(SourceError::Unsupported { name: name.to_owned(), problem: String::new() })
}
