//! Whether what the stream tells still means what the plans say.
//!
//! Three occasions: a heartbeat's look at the catalogues, an analysis, and an announcement in the stream. Only the last stops the
//! stream, and it is what keeps wrong facts from being written: the server announces a table before its first row after a change of the
//! table or of the publication, and what such a change does to rows need not show in them. A row filter turns an UPDATE into a DELETE, an
//! attached partition brings rows that nobody has inserted, another table of the same view may have left the publication. So nothing behind
//! an announcement is read before the catalogues were looked at, after it arrived; and if they differ, before an analysis has said whom
//! that concerns. Its views are then named ([`SourceError::ViewsChanged`]) and begin anew; none of the rows behind the announcement has
//! reached them.
//!
//! An announcement also comes after VACUUM and at the start. A look then finds nothing new, for the price of a round trip.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::{self, Instant};

use crate::source::{
    SourceError,
    postgres::{pulse::Look, tail::Tail},
};

/// Between two attempts at an analysis for which the stream waits, while somebody has locked a table.
const CHECK_AGAIN: Duration = Duration::from_millis(100);
/// How long the analysis may fail, because somebody has locked a table for instance, before the attempt ends.
const ANALYSIS_PATIENCE: Duration = Duration::from_secs(60);
/// What a look found that the stream has asked for.
pub(super) enum Checked {
    /// Nothing has changed.
    Same,
    /// Something has; what the views depend on now.
    Other(Look, Vec<String>),
}

impl Tail {
    /// Takes in what the catalogues say. What follows from it takes an analysis to tell, except of partitions, which are not in it.
    pub(super) fn looked(&mut self, look: Look) -> Result<(), SourceError> {
        if look == self.plan.look {
            return Ok(());
        }
        // Also for partitions: an inheritance child has to be published before its changes are seen.
        self.analyze_soon();
        let before = std::mem::replace(&mut self.plan.look, look).shapes;
        let now = &self.plan.look.shapes;
        let changed: Vec<u32> = before.into_iter().filter(|(table, shape)| now.get(table) != Some(shape)).map(|(table, _)| table).collect();
        for view in changed.iter().flat_map(|table| self.plan.views.get(table).into_iter().flatten()) {
            self.dirty.touch(*view, self.received);
        }
        let views: BTreeSet<usize> = changed.iter().flat_map(|table| self.plan.images.users(*table)).collect();
        if views.is_empty() {
            return Ok(());
        }
        let problem = "a partition was attached, detached, truncated or rewritten".to_owned();
        Err(self.changed(views.into_iter().collect(), problem))
    }

    /// The stream has announced a table: it is not read until the catalogues have been looked at.
    pub(super) fn check(&mut self) {
        let (pulse, reanalyze) = (self.pulse.clone(), self.reanalyze.clone());
        let (before, transaction) = (self.plan.look.clone(), self.transaction.as_ref().map(|transaction| transaction.xid));
        self.checking = Some(Box::pin(async move {
            let look = pulse.look(transaction).await?;
            if look == before {
                return Ok(Checked::Same);
            }
            let started = Instant::now();
            loop {
                match reanalyze().await {
                    Err(SourceError::Unreachable { .. }) if started.elapsed() < ANALYSIS_PATIENCE => time::sleep(CHECK_AGAIN).await,
                    essence => return Ok(Checked::Other(look, essence?)),
                }
            }
        }));
    }

    pub(super) fn checked(&mut self, checked: Checked) -> Result<(), SourceError> {
        self.rhythm.hear(Instant::now());
        match checked {
            Checked::Same => Ok(()),
            Checked::Other(look, essence) => {
                self.compare(Ok(essence))?;
                let look_of_partitions = Look { shapes: look.shapes.clone(), ..self.plan.look.clone() };
                self.looked(look_of_partitions)?;
                self.plan.look = look;
                Ok(())
            }
        }
    }

    /// Tables, functions or the publication have changed: what the stream means for these views is no longer known.
    pub(super) fn compare(&mut self, essence: Result<Vec<String>, SourceError>) -> Result<(), SourceError> {
        let essence = match (essence, self.unanalyzed) {
            (Ok(essence), _) => essence,
            (Err(SourceError::Unreachable { .. }), since) if since.is_none_or(|since| since.elapsed() < ANALYSIS_PATIENCE) => {
                self.unanalyzed.get_or_insert(self.analyzed);
                self.analyze_soon();
                return Ok(());
            }
            (Err(error), _) => return Err(error),
        };
        self.unanalyzed = None;
        let pairs = self.plan.essence.iter().zip(&essence).enumerate();
        let views: Vec<usize> = pairs.filter(|(_, (before, now))| before != now).map(|(view, _)| view).collect();
        if views.is_empty() {
            return Ok(());
        }
        Err(self.changed(views, "their tables, functions or publication have changed".to_owned()))
    }
}
