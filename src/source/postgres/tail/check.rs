//! Whether what the stream tells still means what the plans say.
//!
//! Three occasions: a heartbeat's look at the catalogues, an analysis, and an announcement in the stream. Only the last stops the
//! stream, and it is what keeps wrong facts from being written: the server announces a table before its first row after a change of the
//! table or of the publication, and what such a change does to rows need not show in them. A row filter turns an UPDATE into a DELETE, an
//! attached partition brings rows that nobody has inserted, another table of the same view may have left the publication. So nothing behind
//! an announcement is read before the catalogues were looked at, after it arrived; and if they differ, before an analysis has said what
//! that means for whom it concerns. These views are then named ([`SourceError::ViewsChanged`]) and begin anew; none of the rows behind the
//! announcement has reached them.
//!
//! # Which views the stream waits for
//!
//! An analysis waits for every table of its views that somebody has locked, and a look waits for none. So the stream waits for the analysis
//! of those views only that are *in doubt*: since the last analysis of it something that the view names has become another thing, as two
//! looks tell ([`look`](crate::source::postgres::look)). It need not be the table that was announced, nor a table of the announcement's
//! transaction: another table of the view, its entry in the publication, a partition, a function, a label all count, and what every view
//! depends on (the publication as a whole, the schemas, the settings) puts all of them in doubt. The other views mean what they meant, for
//! the same reason for which nobody is asked when a look finds nothing new at all. A table that is locked by DDL that is not committed yet
//! is the same in every look; once that is committed, the table is announced before its first row, and not locked any more.
//! So what is waited for is a view of which one thing has changed and another one is locked, since nobody can say what it means.
//!
//! A doubt stays until an analysis that began after the look has ended: a look that finds nothing new since the last one says nothing of
//! what that one found. So it does not matter whether a heartbeat or the announcement comes first.
//!
//! An announcement also comes after VACUUM and at the start. A look then finds nothing new, for the price of a round trip.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{self, Instant};

use crate::{
    error::causes,
    source::{
        SourceError,
        postgres::{
            look::{Look, Thing, concerned},
            tail::{Essence, Tail},
        },
    },
};

/// Between two attempts at an analysis for which the stream waits, while somebody has locked a table.
const CHECK_AGAIN: Duration = Duration::from_millis(100);
/// How long a view may be in doubt, because somebody has locked a table for instance, before the attempt ends.
const ANALYSIS_PATIENCE: Duration = Duration::from_secs(60);

/// An analysis that has ended.
pub(super) struct Analyzed {
    essence: Essence,
    /// The looks that were taken before it began.
    looks: u64,
}

/// What the stream has waited for.
pub(super) enum Checked {
    /// What an announcement has asked for.
    Look(Look),
    /// The views that were in doubt after that.
    Doubted(Analyzed),
}

/// The views of which something has changed since they were last analysed.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// The looks that found something.
    looks: u64,
    /// For each view the last of them that concerns it, and when the first did.
    views: BTreeMap<usize, (u64, Instant)>,
}

impl Doubts {
    /// A look has found something that concerns `views`.
    fn raise(&mut self, views: BTreeSet<usize>, now: Instant) {
        self.looks += 1;
        for view in views {
            self.views.entry(view).or_insert((0, now)).0 = self.looks;
        }
    }

    /// An analysis of `views` has ended that began after so many looks.
    fn settle<'a>(&mut self, views: impl Iterator<Item = &'a usize>, looks: u64) {
        for view in views {
            if self.views.get(view).is_some_and(|(last, _)| *last <= looks) {
                self.views.remove(view);
            }
        }
    }

    fn views(&self) -> BTreeSet<usize> {
        self.views.keys().copied().collect()
    }

    /// Since when there is one.
    fn since(&self) -> Option<Instant> {
        self.views.values().map(|(_, since)| *since).min()
    }
}

impl Tail {
    /// Takes in what the catalogues say. What follows from it takes an analysis to tell, except of partitions, which are not in it.
    pub(super) fn looked(&mut self, look: Look) -> Result<(), SourceError> {
        let differences = self.plan.look.differences(&look);
        if differences.is_empty() {
            return Ok(());
        }
        self.plan.look = look;
        self.doubts.raise(concerned(&self.plan.named, &differences), Instant::now());
        // Also for partitions: an inheritance child has to be published before its changes are seen.
        self.analyze_soon();
        let changed = || differences.iter().filter_map(|thing| if let Thing::Shape(table) = thing { Some(*table) } else { None });
        for view in changed().flat_map(|table| self.plan.views.get(&table).into_iter().flatten()) {
            self.dirty.touch(*view, self.received);
        }
        let views: BTreeSet<usize> = changed().flat_map(|table| self.plan.images.users(table)).collect();
        if views.is_empty() {
            return Ok(());
        }
        let problem = "a partition was attached, detached, truncated or rewritten".to_owned();
        Err(self.changed(views.into_iter().collect(), problem))
    }

    /// The stream has announced a table: it is not read until the catalogues have been looked at.
    pub(super) fn check(&mut self) {
        let (pulse, transaction) = (self.pulse.clone(), self.transaction.as_ref().map(|transaction| transaction.xid));
        self.checking = Some(Box::pin(async move { Ok(Checked::Look(pulse.look(transaction).await?)) }));
    }

    pub(super) fn checked(&mut self, checked: Checked) -> Result<(), SourceError> {
        self.rhythm.hear(Instant::now());
        match checked {
            Checked::Look(look) => {
                self.looked(look)?;
                self.resolve();
                Ok(())
            }
            Checked::Doubted(Analyzed { essence, looks }) => self.settle(essence?, looks),
        }
    }

    /// Has the stream wait for the views in doubt.
    fn resolve(&mut self) {
        let (views, looks, reanalyze) = (self.doubts.views(), self.doubts.looks, self.reanalyze.clone());
        if views.is_empty() {
            return;
        }
        self.checking = Some(Box::pin(async move {
            let started = Instant::now();
            loop {
                match reanalyze(views.clone()).await {
                    Err(SourceError::Unreachable { .. }) if started.elapsed() < ANALYSIS_PATIENCE => time::sleep(CHECK_AGAIN).await,
                    essence => return Ok(Checked::Doubted(Analyzed { essence, looks })),
                }
            }
        }));
    }

    /// Starts an analysis beside the stream: of all views, but if that was in vain, of those in doubt.
    pub(super) fn analyze(&mut self, now: Instant) {
        (self.analyzed, self.next_analysis) = (now, now + self.plan.analysis_every());
        let doubted = Some(self.doubts.views()).filter(|views| self.unanalyzed.is_some() && !views.is_empty());
        let analysis = (self.reanalyze)(doubted.unwrap_or_else(|| (0..self.plan.essence.len()).collect()));
        let looks = self.doubts.looks;
        self.analyzing = Some(Box::pin(async move { Analyzed { essence: analysis.await, looks } }));
    }

    /// It has ended. That it could not be had matters only to a view in doubt, whose tables somebody has locked for instance: the looks
    /// vouch for the others.
    pub(super) fn compare(&mut self, Analyzed { essence, looks }: Analyzed) -> Result<(), SourceError> {
        match essence {
            Ok(essence) => {
                if essence.len() == self.plan.essence.len() {
                    self.unanalyzed = None;
                }
                self.settle(essence, looks)?;
            }
            Err(error @ SourceError::Unreachable { .. }) if self.doubts.since().is_none_or(|since| since.elapsed() < ANALYSIS_PATIENCE) => {
                if self.unanalyzed.get_or_insert(self.analyzed).elapsed() >= ANALYSIS_PATIENCE {
                    tracing::warn!(
                        source = &*self.server.name,
                        reason = causes(&error),
                        "the queries cannot be analysed again for a while"
                    );
                }
            }
            Err(error) => return Err(error),
        }
        if self.unanalyzed.is_some_and(|since| since.elapsed() < ANALYSIS_PATIENCE || self.doubts.since().is_some()) {
            self.analyze_soon();
        }
        Ok(())
    }

    /// Tables, functions or the publication may have changed: then what the stream means for these views is no longer known.
    fn settle(&mut self, essence: BTreeMap<usize, String>, looks: u64) -> Result<(), SourceError> {
        self.doubts.settle(essence.keys(), looks);
        let views: Vec<usize> =
            essence.into_iter().filter(|(view, now)| self.plan.essence.get(*view) != Some(now)).map(|(view, _)| view).collect();
        if views.is_empty() {
            return Ok(());
        }
        Err(self.changed(views, "their tables, functions or publication have changed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubt_stays_until_an_analysis_that_began_after_the_look() {
        let (mut doubts, now) = (Doubts::default(), Instant::now());
        let of = |views: &[usize]| views.iter().copied().collect::<BTreeSet<usize>>();
        let before = doubts.looks;
        doubts.raise(of(&[1, 2]), now);
        doubts.settle(of(&[1, 2]).iter(), before);
        assert_eq!(doubts.views(), of(&[1, 2]), "it has seen what was before");
        let began = doubts.looks;
        doubts.raise(of(&[2, 3]), now + CHECK_AGAIN);
        doubts.settle(of(&[1, 2]).iter(), began);
        assert_eq!(doubts.views(), of(&[2, 3]));
        assert_eq!(doubts.since(), Some(now));
        doubts.settle(of(&[0, 2]).iter(), doubts.looks);
        assert_eq!((doubts.views(), doubts.since()), (of(&[3]), Some(now + CHECK_AGAIN)));
        doubts.settle(of(&[3]).iter(), doubts.looks);
        assert!(doubts.views().is_empty() && doubts.since().is_none());
    }
}
