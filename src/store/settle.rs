//! A view's netted flips become facts and outbox entries.
//!
//! Every write says whether the row was there before, so a flip that contradicts what is stored is noticed: then the view's
//! state is not what its tables were, and nothing of this transaction is written for it.

use std::{collections::BTreeMap, io, path::Path};

use rusqlite::{Transaction, params};

use crate::{
    data::{ExtentBuilder, Row},
    store::{Change, Failure, ViewRecord, facts::Set, outbox},
    target::Op,
    view::{Guard, Verdict, ViewError},
};

/// A view's numbers before a transaction.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) facts: u64,
    pub(super) held: u64,
    pub(super) skipped: BTreeMap<String, u64>,
}

/// Writes `net`. The inner error is the view's own; then nothing of it is written.
pub(super) fn settle(
    tx: &Transaction<'_>,
    outbox: &mut outbox::Writer,
    view: &ViewRecord,
    counts: &Counts,
    net: impl Iterator<Item = io::Result<(Row, i64)>>,
    guard: Guard,
    spool: &Path,
) -> Result<Result<Change, ViewError>, Failure> {
    tx.prepare_cached("SAVEPOINT settle")?.execute([])?;
    let pushed = outbox.len();
    let settling = Settling { tx, outbox, view, counts: counts.clone(), inserted: 0, removals: ExtentBuilder::new(spool), removed: 0 };
    let outcome = match settling.run(net, guard) {
        Ok(change) => Ok(change),
        Err(ViewError::State(error)) => return Err(error.into()),
        Err(why @ (ViewError::Eval(_) | ViewError::Remote(_) | ViewError::Budget(_) | ViewError::Broken(_))) => {
            tx.prepare_cached("ROLLBACK TO settle")?.execute([])?;
            outbox.take_back(pushed);
            Err(why)
        }
    };
    tx.prepare_cached("RELEASE settle")?.execute([])?;
    Ok(outcome)
}

struct Settling<'s, 't> {
    tx: &'s Transaction<'t>,
    outbox: &'s mut outbox::Writer,
    view: &'s ViewRecord,
    counts: Counts,
    inserted: u64,
    removals: ExtentBuilder,
    removed: u64,
}

impl Settling<'_, '_> {
    fn run(mut self, net: impl Iterator<Item = io::Result<(Row, i64)>>, guard: Guard) -> Result<Change, ViewError> {
        let before = self.counts.facts;
        self.write(net)?;
        let Self { tx, outbox, view, mut counts, inserted, removals, removed } = self;
        let verdict = guard.judge(removed, before);
        for row in removals.finish()? {
            disappear(tx, outbox, view, &mut counts, &row?, verdict)?;
        }
        let removed = if verdict == Verdict::Apply { removed } else { 0 };
        let Counts { facts, held, skipped } = counts;
        let json = serde_json::to_string(&skipped).expect("a map of counts is JSON");
        tx.prepare_cached("UPDATE view SET facts = ?2, skipped = ?3, held = ?4 WHERE id = ?1")
            .and_then(|mut update| update.execute(params![view.id.0, facts, json, held]))
            .map_err(failed)?;
        Ok(Change { view: view.id, inserted, removed, held, facts, skipped })
    }

    fn write(&mut self, net: impl Iterator<Item = io::Result<(Row, i64)>>) -> Result<(), ViewError> {
        for flip in net {
            let (row, weight) = flip?;
            match (weight, self.view.fact_type.admits(&row)) {
                (1, Ok(())) => self.appear(&row)?,
                (-1, Ok(())) => {
                    self.removals.push(row)?;
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
        let Self { tx, view, counts, .. } = self;
        if counts.held > 0 && Set::Held.remove(tx, view.id, row).map_err(failed)? {
            // It was never taken away.
            counts.held -= 1;
            return Ok(());
        }
        if !Set::Fact.insert(tx, view.id, row).map_err(failed)? {
            return Err(broken("a fact appeared that was there"));
        }
        self.outbox.push(tx, view.id, Op::Insert, row).map_err(failed)?;
        self.counts.facts += 1;
        self.inserted += 1;
        Ok(())
    }

    /// A row that makes no fact came or went.
    fn skip(&mut self, row: &Row, weight: i64, reason: &str) -> Result<(), ViewError> {
        let Self { tx, view, counts, .. } = self;
        if weight > 0 {
            if !Set::Skipped.insert(tx, view.id, row).map_err(failed)? {
                return Err(broken("a row that makes no fact appeared and was there"));
            }
            *counts.skipped.entry(reason.to_owned()).or_default() += 1;
            return Ok(());
        }
        if !Set::Skipped.remove(tx, view.id, row).map_err(failed)? {
            return Err(broken("a row that makes no fact went and was not there"));
        }
        let rows = counts.skipped.get_mut(reason).ok_or_else(|| broken("a row that makes no fact went and was not counted"))?;
        *rows -= 1;
        if *rows == 0 {
            counts.skipped.remove(reason);
        }
        Ok(())
    }
}

/// The query no longer has `row`.
fn disappear(
    tx: &Transaction<'_>,
    outbox: &mut outbox::Writer,
    view: &ViewRecord,
    counts: &mut Counts,
    row: &Row,
    verdict: Verdict,
) -> Result<(), ViewError> {
    let gone = || broken("a fact went that was not there");
    if counts.held > 0 && Set::Held.contains(tx, view.id, row).map_err(failed)? {
        return Err(gone());
    }
    match verdict {
        Verdict::Hold => {
            if !Set::Fact.contains(tx, view.id, row).map_err(failed)? {
                return Err(gone());
            }
            Set::Held.insert(tx, view.id, row).map_err(failed)?;
            counts.held += 1;
        }
        Verdict::Apply => {
            if !Set::Fact.remove(tx, view.id, row).map_err(failed)? {
                return Err(gone());
            }
            outbox.push(tx, view.id, Op::Delete, row).map_err(failed)?;
            counts.facts -= 1;
        }
    }
    Ok(())
}

fn failed(error: rusqlite::Error) -> ViewError {
    ViewError::State(io::Error::other(error))
}

fn broken(how: &str) -> ViewError {
    ViewError::Broken(how.to_owned())
}
