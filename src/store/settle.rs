//! A view's netted flips become facts and outbox entries.
//!
//! Every write says whether the row was there before, so a flip that contradicts what is stored is noticed: then the view's
//! state is not what its tables were, and nothing of this transaction is written for it.

use std::{collections::BTreeMap, io, path::Path};

use rusqlite::{Transaction, params};

use crate::{
    data::{ExtentBuilder, Row},
    store::{
        Change, Failure, ViewRecord,
        facts::{Members, Set},
        holds::{Holds, Numbers, Terms, recent_to},
        outbox,
    },
    target::Op,
    view::{Step, Verdict, ViewError},
};

/// A view's numbers before a transaction.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) numbers: Numbers,
    pub(super) skipped: BTreeMap<String, u64>,
}

/// Writes `net`. The inner error is the view's own; then nothing of it is written.
pub(super) fn settle(
    tx: &Transaction<'_>,
    outbox: &mut outbox::Writer,
    view: &ViewRecord,
    counts: &Counts,
    net: impl Iterator<Item = io::Result<(Row, i64)>>,
    terms: &Terms,
    spool: &Path,
) -> Result<Result<Change, ViewError>, Failure> {
    let mark = outbox.savepoint(tx)?;
    let settling = Settling {
        tx,
        outbox: &mut *outbox,
        view,
        counts: counts.clone(),
        stored: Set::Fact.of(tx, view.id),
        holds: Holds::of(tx, view.id, counts.numbers.held),
        skips: Set::Skipped.of(tx, view.id),
        appeared: 0,
        inserted: 0,
        removals: Removals::Few(Vec::new()),
        removed: 0,
        spool,
    };
    match settling.run(net, terms) {
        Ok(change) => {
            outbox.keep(tx, mark)?;
            Ok(Ok(change))
        }
        Err(ViewError::State(error)) => Err(error.into()),
        Err(why @ (ViewError::Eval(_) | ViewError::Remote(_) | ViewError::Budget(_) | ViewError::Broken(_))) => {
            outbox.roll_back(tx, mark)?;
            Ok(Err(why))
        }
    }
}

/// Removals kept in memory: nearly every transaction has fewer, and they come in order and each once. A fact takes a few hundred bytes,
/// so they are less than what a view's flips may take.
const FEW_REMOVALS: usize = 1_000;

/// What waits for the guard, which must know how many there are.
enum Removals {
    Few(Vec<Row>),
    Many(ExtentBuilder),
}

impl Removals {
    fn push(&mut self, row: Row, spool: &Path) -> io::Result<()> {
        match self {
            Self::Few(rows) if rows.len() < FEW_REMOVALS => rows.push(row),
            Self::Few(rows) => {
                let mut many = ExtentBuilder::new(spool);
                rows.drain(..).chain([row]).try_for_each(|row| many.push(row))?;
                *self = Self::Many(many);
            }
            Self::Many(many) => many.push(row)?,
        }
        Ok(())
    }

    fn finish(self) -> io::Result<Box<dyn Iterator<Item = io::Result<Row>>>> {
        Ok(match self {
            Self::Few(rows) => Box::new(rows.into_iter().map(Ok)),
            Self::Many(many) => Box::new(many.finish()?),
        })
    }
}

struct Settling<'s, 't> {
    tx: &'s Transaction<'t>,
    outbox: &'s mut outbox::Writer,
    view: &'s ViewRecord,
    counts: Counts,
    stored: Members<'s>,
    holds: Holds<'s>,
    skips: Members<'s>,
    /// Facts that the query did not have and has now; those that were only held are not inserted.
    appeared: u64,
    inserted: u64,
    removals: Removals,
    removed: u64,
    spool: &'s Path,
}

impl Settling<'_, '_> {
    fn run(mut self, net: impl Iterator<Item = io::Result<(Row, i64)>>, terms: &Terms) -> Result<Change, ViewError> {
        // What is held the query does not have.
        let had = self.counts.numbers.facts - self.counts.numbers.held;
        self.write(net)?;
        let step = Step { occasion: terms.occasion, before: had, inserted: self.appeared, removed: self.removed };
        let verdict = terms.guard.judge(step, &mut self.counts.numbers.recent, terms.now);
        let mut began = None;
        if let Verdict::Hold(cause) = verdict {
            began = self.holds.open(cause, had, terms).map_err(failed)?;
        }
        let removals = std::mem::replace(&mut self.removals, Removals::Few(Vec::new()));
        for row in removals.finish()? {
            self.disappear(&row?, verdict)?;
        }
        let Self { tx, view, counts, inserted, removed, holds, .. } = self;
        let (removed, newly_held) = if verdict == Verdict::Apply { (removed, 0) } else { (0, removed) };
        let held = holds.finish().map_err(failed)?;
        let Counts { numbers: Numbers { facts, recent, .. }, skipped } = counts;
        let json = serde_json::to_string(&skipped).expect("a map of counts is JSON");
        tx.prepare_cached("UPDATE view SET facts = ?2, skipped = ?3, held = ?4, recent = ?5 WHERE id = ?1")
            .and_then(|mut update| update.execute(params![view.id.0, facts, json, held, recent_to(&recent)]))
            .map_err(failed)?;
        Ok(Change { view: view.id, inserted, removed, held, began, newly_held, let_go: 0, facts, skipped })
    }

    fn write(&mut self, net: impl Iterator<Item = io::Result<(Row, i64)>>) -> Result<(), ViewError> {
        for flip in net {
            let (row, weight) = flip?;
            match (weight, self.view.fact_type.admits(&row)) {
                (1, Ok(())) => self.appear(&row)?,
                (-1, Ok(())) => {
                    self.removals.push(row, self.spool)?;
                    self.removed += 1;
                }
                (1 | -1, Err(reason)) => self.skip(&row, weight, &reason.to_string())?,
                _ => return Err(broken("a row came or went twice")),
            }
        }
        Ok(())
    }

    /// The query has a fact that it did not have.
    fn appear(&mut self, row: &Row) -> Result<(), ViewError> {
        self.appeared += 1;
        if self.holds.end(row).map_err(failed)? {
            // It was never taken away.
            return Ok(());
        }
        if !self.stored.insert(row).map_err(failed)? {
            return Err(broken("a fact appeared that was there"));
        }
        self.outbox.push(self.tx, self.view.id, Op::Insert, row.as_bytes()).map_err(failed)?;
        self.counts.numbers.facts += 1;
        self.inserted += 1;
        Ok(())
    }

    /// A row that makes no fact came or went.
    fn skip(&mut self, row: &Row, weight: i64, reason: &str) -> Result<(), ViewError> {
        let Self { skips, counts, .. } = self;
        if weight > 0 {
            if !skips.insert(row).map_err(failed)? {
                return Err(broken("a row that makes no fact appeared and was there"));
            }
            *counts.skipped.entry(reason.to_owned()).or_default() += 1;
            return Ok(());
        }
        if !skips.remove(row).map_err(failed)? {
            return Err(broken("a row that makes no fact went and was not there"));
        }
        let rows = counts.skipped.get_mut(reason).ok_or_else(|| broken("a row that makes no fact went and was not counted"))?;
        *rows -= 1;
        if *rows == 0 {
            counts.skipped.remove(reason);
        }
        Ok(())
    }

    /// The query no longer has `row`.
    fn disappear(&mut self, row: &Row, verdict: Verdict) -> Result<(), ViewError> {
        let gone = || broken("a fact went that was not there");
        if self.holds.has(row).map_err(failed)? {
            return Err(gone());
        }
        match verdict {
            Verdict::Hold(_) => {
                if !self.stored.contains(row).map_err(failed)? {
                    return Err(gone());
                }
                self.holds.add(row).map_err(failed)?;
            }
            Verdict::Apply => {
                if !self.stored.remove(row).map_err(failed)? {
                    return Err(gone());
                }
                self.outbox.push(self.tx, self.view.id, Op::Delete, row.as_bytes()).map_err(failed)?;
                self.counts.numbers.facts -= 1;
            }
        }
        Ok(())
    }
}

fn failed(error: rusqlite::Error) -> ViewError {
    ViewError::State(io::Error::other(error))
}

fn broken(how: &str) -> ViewError {
    ViewError::Broken(how.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_come_out_as_they_went_in_however_many_there_are() {
        let spool = tempfile::tempdir().expect("a folder");
        for count in [0, 1, FEW_REMOVALS, FEW_REMOVALS + 1, 3 * FEW_REMOVALS] {
            let rows: Vec<Row> = (0..count).map(|at| Row::from_texts([format!("{at:09}").as_str()])).collect();
            let mut removals = Removals::Few(Vec::new());
            rows.iter().try_for_each(|row| removals.push(row.clone(), spool.path())).expect("kept");
            assert_eq!(matches!(removals, Removals::Many(_)), count > FEW_REMOVALS);
            let out = removals.finish().expect("sorted").collect::<io::Result<Vec<_>>>().expect("read");
            assert!(out == rows, "{count}");
        }
    }
}
