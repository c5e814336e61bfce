//! How each view would be followed, for `explain`.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use crate::{
    config::MongoConfig,
    source::{
        Follow, SourceError, ViewMode,
        mongo::{Follower, probe::collections_of},
    },
};

/// How a view is kept up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedView {
    /// `incremental`, `refresh` or `refused`.
    pub mode: &'static str,
    /// Why.
    pub reason: String,
    /// The collections it reads.
    pub reads: BTreeSet<String>,
}

/// Connects and judges every view as `run` does; reads no document.
pub async fn explain(name: &str, config: Arc<MongoConfig>) -> Result<Vec<ExplainedView>, SourceError> {
    let prepared = Follower::new(name, config.clone(), Path::new("")).prepare().await?;
    let explained = prepared.views.into_iter().zip(&config.views).map(|(prepared, view)| {
        let (mode, reason) = match prepared.mode {
            ViewMode::Incremental(_) => ("incremental", "a changed document's facts are looked up at the time of its change".to_owned()),
            ViewMode::Refresh(reason) => ("refresh", reason),
            ViewMode::Refused(problem) => ("refused", problem),
        };
        ExplainedView { mode, reason, reads: collections_of(&view.query) }
    });
    Ok(explained.collect())
}
