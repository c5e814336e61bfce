//! Comparing the fact store with the desired facts after a snapshot, and beginning an audit (`audit.rs`) every `reconcile_every` after
//! that.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::{
    crash::{self, Moment},
    data::ExtentBuilder,
    engine::{
        board::TargetState,
        error::EngineError,
        ingest::{Ingest, Session},
        shadow::Asked,
    },
    error::causes,
    store::Changes,
    target::TargetError,
};

/// How long a comparison waits for a batch on its way before it lets changes go on and tries again.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long after a failed comparison it is tried again.
pub(super) const COMPARE_AGAIN: Duration = Duration::from_secs(5);

/// Whether the fact store was compared with the desired facts since the last snapshot.
pub(super) enum Compared {
    /// Not yet; tried again at that time.
    Due(Instant),
    /// Yes; audited again at that time.
    Done(Option<Instant>),
}

impl Compared {
    pub(super) fn postpone(&mut self, by: Duration) {
        let at = Instant::now() + by;
        *self = match self {
            Self::Due(_) => Self::Due(at),
            Self::Done(_) => Self::Done(Some(at)),
        };
    }
}

impl Ingest {
    /// Compares the fact store with the desired facts after a snapshot, and again every `reconcile_every`.
    pub(super) async fn compare_if_due(&mut self, session: &mut Session) -> Result<(), EngineError> {
        if self.again.has_changed().unwrap_or(false) {
            self.again.mark_unchanged();
            info!(source = self.name, "something else stood in the fact store's place, comparing again");
            session.compared = Compared::Due(Instant::now());
            self.board.founded(self.index, None);
        }
        let due = match session.compared {
            Compared::Due(at) | Compared::Done(Some(at)) => at <= Instant::now(),
            Compared::Done(None) => false,
        };
        let known: Vec<usize> = (0..self.views.len()).filter(|&view| self.views[view].known).collect();
        if !due || known.is_empty() {
            return Ok(());
        }
        if let Some(shadow) = &self.shadow {
            let views = known.iter().map(|&view| self.views[view].clone()).collect();
            // A loop that is gone has ended with the process.
            let _ = shadow.send(Asked { source: self.index, name: self.name.clone(), views }).await;
            session.compared = Compared::Done(self.next_audit());
            return Ok(());
        }
        // Once it was compared, the stream need not wait for it.
        if let Compared::Done(_) = session.compared {
            if session.can_be_audited() {
                self.begin_audit(session, None);
            }
            return Ok(());
        }
        let ids = known.iter().map(|&view| self.views[view].id).collect();
        let waiting = self.writer.outbox_holds(ids).await?;
        // What waits is seen through: it is dropped, for the listing knows better. A batch on its way would look like drift, too, even one
        // that was read before a snapshot emptied the outbox.
        let writer = self.writer.clone();
        let Ok(nothing_under_way) = tokio::time::timeout(PATIENCE, writer.under_way()).await else {
            session.compared.postpone(PATIENCE);
            return Ok(());
        };
        // Where nothing waits nothing sets out while the store is listed, for what would come from this very loop.
        let nothing_under_way = waiting.then_some(nothing_under_way);
        let compared = self.compare(&known).await?;
        drop(nothing_under_way);
        match compared {
            Ok(changes) => {
                self.note(&known, &changes);
                self.met(&known);
                let (missing, stale) =
                    changes.views.iter().fold((0, 0), |(m, s), change| (m + change.inserted, s + change.removed + change.held));
                info!(source = self.name, missing, stale, "fact store compared");
                self.board.reconciled(self.index, missing, stale);
                self.board.founded(self.index, Some(changes.commit_no));
                session.compared = Compared::Done(self.next_audit());
                if let Some(position) = session.position.as_ref().filter(|_| session.proven) {
                    self.board.applied(self.index, position.clone(), changes.commit_no);
                }
            }
            Err(error) => {
                let reason = causes(&error);
                warn!(source = self.name, reason, "fact store cannot be compared, will retry");
                self.board.target(TargetState::Failing(reason));
                session.compared.postpone(COMPARE_AGAIN);
            }
        }
        Ok(())
    }

    /// The fact store was compared with these views.
    fn met(&mut self, known: &[usize]) {
        for &view in known {
            let record = &mut self.views[view];
            if !std::mem::replace(&mut record.met, true) && self.guard.adopts() {
                info!(source = self.name, fact_type = %record.fact_type, held = record.held, "fact type taken over");
            }
        }
    }

    /// Lists the fact store and corrects it. The inner error is the fact store's.
    async fn compare(&mut self, known: &[usize]) -> Result<Result<Changes, TargetError>, EngineError> {
        let mut views = Vec::with_capacity(known.len());
        for &view in known {
            let record = self.views[view].clone();
            let mut listed = ExtentBuilder::new(&self.spool);
            if let Err(error) = self.target.list(&record.fact_type, &mut |row| listed.push(row)).await {
                return Ok(Err(error));
            }
            let listed = tokio::task::spawn_blocking(move || listed.finish()).await.map_err(EngineError::panicked)?;
            views.push((record, listed.map_err(crate::store::StoreError::Rows)?));
        }
        crash::moment(Moment::Listed);
        let changes = self.writer.correct(&self.name, views, self.guard).await?;
        crash::moment(Moment::Compared);
        Ok(Ok(changes))
    }
}
