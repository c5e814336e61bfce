//! What the fact store holds of each fact type, beside what it should hold.
//!
//! Both are of a moment, and not of the same one. Facts that a commit has just changed, whose time is not over, are left out on
//! both sides: their commit is judged by itself. What is left has nothing to do with being late, unless more than [`MOST_CHANGES`] wait
//! to be taken, the fact store having been away.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tracing::{info, warn};

use crate::{
    data::{Extent, ExtentBuilder, Row},
    engine::{
        board::{Board, TargetState},
        error::EngineError,
        shadow::{
            MOST_CHANGES,
            observed::Observed,
            pending::Pending,
            report::{ComparisonLine, Line, Output},
        },
        writer::Writer,
    },
    error::causes,
    reconcile::{self, Comparison},
    store::{StoreError, ViewRecord},
};

/// How long after a failed listing it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Somebody wants to know how the fact store compares.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Asked {
    /// The source's number.
    pub(in crate::engine) source: usize,
    /// Its name.
    pub(in crate::engine) name: String,
    /// The fact types.
    pub(in crate::engine) views: Vec<ViewRecord>,
}

/// What a comparison needs.
#[derive(Clone)]
pub(super) struct Comparing {
    pub(super) writer: Writer,
    pub(super) store: Observed,
    pub(super) board: Arc<Board>,
    pub(super) output: Output,
    pub(super) spool: PathBuf,
    pub(super) pending: Arc<Mutex<Pending>>,
}

impl Comparing {
    /// Compares and reports, after `delay`.
    pub(super) async fn run(self, asked: Asked, delay: Duration) -> Result<(), EngineError> {
        tokio::time::sleep(delay).await;
        let (mut missing, mut stale) = (0, 0);
        for view in &asked.views {
            let mut comparison = self.compare(view).await?;
            let line = ComparisonLine::new(&asked.name, &mut comparison).map_err(StoreError::Rows)?;
            self.output.line(&Line::Comparison(line)).await;
            (missing, stale) = (missing + comparison.adds.len(), stale + comparison.removes.len());
        }
        info!(source = asked.name, missing, stale, "fact store compared, nothing written");
        self.board.reconciled(asked.source, missing, stale);
        Ok(())
    }

    async fn compare(&self, view: &ViewRecord) -> Result<Comparison, EngineError> {
        let stored = self.list(view).await?;
        let id = view.id;
        // After the listing, so that nothing is left out of both.
        let (desired, untaken) = self.writer.run(move |store| Ok((store.desired(id)?, store.outbox(MOST_CHANGES)?))).await?;
        let mut recent: HashSet<Row> = untaken.into_iter().filter(|entry| entry.view == id).map(|entry| entry.row).collect();
        recent.extend(self.pending.lock().unwrap_or_else(PoisonError::into_inner).rows(id).cloned());
        let recent = Arc::new(recent);
        let without = |rows: Extent| {
            let recent = recent.clone();
            Extent::from_sorted(rows.filter(move |row| row.as_ref().map_or(true, |row| !recent.contains(row))))
        };
        let compared = reconcile::compare(&view.fact_type, without(desired), without(stored), &self.spool).await;
        Ok(compared.map_err(|error| StoreError::Rows(std::io::Error::other(error)))?)
    }

    /// Everything the fact store holds of the fact type, however long it takes until it answers.
    async fn list(&self, view: &ViewRecord) -> Result<Extent, EngineError> {
        loop {
            let mut listed = ExtentBuilder::new(&self.spool);
            match self.store.list(&view.fact_type, &mut |row| listed.push(row)).await {
                Ok(()) => {
                    self.board.target(TargetState::Reachable);
                    let listed = tokio::task::spawn_blocking(move || listed.finish()).await.map_err(EngineError::panicked)?;
                    return Ok(listed.map_err(StoreError::Rows)?);
                }
                Err(error) => {
                    let (fact_type, reason) = (&view.fact_type, causes(&error));
                    warn!(%fact_type, reason, "fact store cannot be compared, will retry");
                    self.board.target(TargetState::Failing(reason));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}
