//! Whole results: a cut of a source becomes desired facts, a listing of the fact store corrects what is sent.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{OptionalExtension, Transaction, params};

use crate::{
    data::{Extent, ExtentBuilder, Lsn, Position, Row},
    store::{
        Change, Changes, Failure, Store, StoreError, ViewRecord,
        adopt::{self, Adopted, Seen},
        backlog::{self, Changed, DOUBTED},
        facts::{Rows, Set, count, desired, reader, rows},
        journal::note_removal,
        outbox, set_meta,
    },
    target::Op,
    view::{Guard, Skipped, Verdict, diff, refresh},
};

/// Where a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The state that results are of. Beyond `position` for views that are loaded while others still wait for the commits in between.
    pub cut: Position,
    /// Up to here every reported result and commit is in.
    pub position: Position,
    /// Up to here no view lacks anything, refresh views included.
    pub settled: Position,
}

impl From<Position> for Reached {
    /// No view lacks anything up to `position`.
    fn from(position: Position) -> Self {
        Self { cut: position.clone(), settled: position.clone(), position }
    }
}

/// A view's new result.
#[derive(Debug)]
pub struct Fresh {
    /// The view.
    pub view: ViewRecord,
    /// All rows of its query.
    pub answer: Extent,
    /// Its state, if [`Store::load`] has built one from the same snapshot: it becomes usable together with these facts.
    pub loaded: Option<LoadedState>,
}

/// A state that [`Store::load`] has built and that no facts belong to yet.
#[derive(Debug)]
pub struct LoadedState {
    pub(super) fingerprint: String,
    pub(super) clock: i64,
}

impl From<(ViewRecord, Extent)> for Fresh {
    fn from((view, answer): (ViewRecord, Extent)) -> Self {
        Self { view, answer, loaded: None }
    }
}

impl Store {
    /// Replaces the desired facts by a snapshot's results. Nothing is sent: the comparison with the fact store that
    /// follows ([`Store::correct`]) knows what differs, so whatever waited for these views is dropped; but revocations where that
    /// comparison would adopt what they revoke.
    pub fn replace(&mut self, source: &str, reached: &Reached, views: Vec<Fresh>, guard: Guard) -> Result<Changes, StoreError> {
        let (path, spool) = (self.path.clone(), self.spool());
        let (before, fresh) = (self.commit_no, self.backlog.len() == 0);
        let journals = self.journals.clone();
        let (views, dropped, changed) = self.write(|tx| {
            let mut changes = Vec::with_capacity(views.len());
            let (mut dropped, mut changed) = (0, Changed::default());
            let position = follow_cut(tx, source, reached)?;
            for Fresh { view, answer, loaded } in views {
                let first = adopt::first_contact(tx, view.id, guard)?;
                let mut revoked = if first { adopt::revoked(tx, view.id, &spool)? } else { ExtentBuilder::new(&spool) };
                journals.lock().disturb(view.id);
                dropped += outbox::forget(tx, view.id)?;
                backlog::forget(tx, &mut changed, view.id)?;
                tx.execute("DELETE FROM parked WHERE view = ?1", [view.id.0])?;
                let mut adopted = Adopted::of(tx, view.id, guard, &spool);
                let mut stored = Set::Fact.of(tx, view.id);
                let mut skipped = Skipped::new();
                let mut facts = view.facts;
                for change in refresh(&view.fact_type, answer, desired(&path, view.id)?, &mut skipped) {
                    let (op, row) = change?;
                    if op == Op::Delete && adopted.keeps(&row)? {
                        continue;
                    }
                    facts = count(facts, op);
                    stored.write(op, &row)?;
                    if first && op == Op::Delete {
                        revoked.push(row)?;
                    }
                }
                for row in revoked.finish()? {
                    let row = row?;
                    if !stored.contains(&row)? {
                        // Whether the fact store has it nobody knows.
                        backlog::add(tx, &mut changed, (view.id, Op::Delete, &row), DOUBTED)?;
                    }
                }
                changes.push(finish(tx, &view, facts, &skipped, adopted.finish()?)?);
                found(tx, &view, loaded, &reached.cut, &position)?;
            }
            number(tx, &mut changed, fresh, before)?;
            tx.execute("UPDATE source SET compared = 0 WHERE name = ?1", [source])?;
            Ok((changes, dropped, changed))
        })?;
        self.outbox_len -= dropped;
        self.commit_no += u64::from(changed.grew());
        self.backlog.settle(changed);
        Ok(Changes { views, commit_no: self.commit_no })
    }

    /// Applies the new results of some views, all as of one position: desired facts and outbox change by the net difference.
    pub fn apply(&mut self, source: &str, reached: &Reached, views: Vec<Fresh>, guard: Guard) -> Result<Changes, StoreError> {
        let path = self.path.clone();
        let spool = self.spool();
        self.commit(|tx, outbox| {
            let mut changes = Vec::with_capacity(views.len());
            let position = follow_cut(tx, source, reached)?;
            for Fresh { view, answer, loaded } in views {
                let mut skipped = Skipped::new();
                let before = desired(&path, view.id)?;
                let (mut stored, mut holds) = (Set::Fact.of(tx, view.id), Set::Held.of(tx, view.id));
                let mut facts = view.facts;
                let mut removals = ExtentBuilder::new(&spool);
                let mut adopted = Adopted::of(tx, view.id, guard, &spool);
                let (mut inserted, mut removed) = (0, 0);
                for change in refresh(&view.fact_type, answer, before, &mut skipped) {
                    match change? {
                        (Op::Insert, row) => {
                            stored.write(Op::Insert, &row)?;
                            outbox.push(tx, view.id, Op::Insert, row.as_bytes())?;
                            inserted += 1;
                        }
                        (Op::Delete, row) if adopted.keeps(&row)? => {}
                        (Op::Delete, row) => {
                            removals.push(row)?;
                            removed += 1;
                        }
                    }
                }
                facts += inserted;
                // Each result is judged anew: what was held and is still gone is among the removals, unless it was adopted.
                let adopted = adopted.finish()?;
                let verdict = guard.judge(removed, view.facts);
                for row in removals.finish()? {
                    let row = row?;
                    match verdict {
                        Verdict::Hold => drop(holds.insert(&row)?),
                        Verdict::Apply => {
                            stored.write(Op::Delete, &row)?;
                            outbox.push(tx, view.id, Op::Delete, row.as_bytes())?;
                            facts -= 1;
                        }
                    }
                }
                let held = if verdict == Verdict::Hold { removed } else { 0 };
                let change = finish(tx, &view, facts, &skipped, adopted + held)?;
                found(tx, &view, loaded, &reached.cut, &position)?;
                changes.push(Change { inserted, removed: removed - held, ..change });
            }
            Ok(changes)
        })
    }

    /// Puts into the backlog what makes the fact store, whose rows are `listed`, equal the desired facts. What waited for these views is
    /// dropped, for the listing knows better.
    ///
    /// The caller sees to it that nothing of these views was under way to the fact store while it was listed, or is now.
    pub fn correct(&mut self, source: &str, views: Vec<(ViewRecord, Extent)>, guard: Guard) -> Result<Changes, StoreError> {
        let (path, spool) = (self.path.clone(), self.spool());
        let (before, epoch, fresh) = (self.commit_no, self.backlog.epoch(), self.backlog.len() == 0);
        let journals = self.journals.clone();
        let (views, dropped, changed) = self.write(|tx| {
            let (mut changes, mut dropped, mut changed) = (Vec::with_capacity(views.len()), 0, Changed::default());
            for (view, listed) in views {
                let first = adopt::first_contact(tx, view.id, guard)?;
                let seen = if first { Some(Seen::new(adopt::revoked(tx, view.id, &spool)?)?) } else { None };
                dropped += outbox::forget(tx, view.id)?;
                backlog::forget(tx, &mut changed, view.id)?;
                // What is still wanted and still refused will be parked again.
                tx.execute("DELETE FROM parked WHERE view = ?1", [view.id.0])?;
                let differences = diff(desired(&path, view.id)?, listed);
                let id = view.id;
                journals.lock().disturb(id);
                let differences = differences.inspect(|difference| note_removal(&journals, id, difference));
                changes.push(correct_one(tx, &mut changed, view, differences, (guard, seen), (epoch, &spool))?);
                journals.lock().made_equal(id);
            }
            number(tx, &mut changed, fresh, before)?;
            tx.execute("UPDATE source SET compared = 1 WHERE name = ?1", [source])?;
            Ok((changes, dropped, changed))
        })?;
        self.outbox_len -= dropped;
        self.commit_no += u64::from(changed.grew());
        self.backlog.settle(changed);
        Ok(Changes { views, commit_no: self.commit_no })
    }

    /// Lets go of what is held: a person said so.
    pub fn release(&mut self, views: &[ViewRecord]) -> Result<Changes, StoreError> {
        let path = self.path.clone();
        self.commit(|tx, outbox| {
            let mut changes = Vec::with_capacity(views.len());
            for view in views {
                let mut removed = 0;
                let mut stored = Set::Fact.of(tx, view.id);
                for row in rows(reader(&path)?, Rows::Held, view.id) {
                    let row = row?;
                    stored.write(Op::Delete, &row)?;
                    outbox.push(tx, view.id, Op::Delete, row.as_bytes())?;
                    removed += 1;
                }
                Set::Held.clear(tx, view.id)?;
                let facts = view.facts - removed;
                tx.execute("UPDATE view SET facts = ?2, held = 0 WHERE id = ?1", params![view.id.0, facts])?;
                changes.push(Change { view: view.id, inserted: 0, removed, held: 0, facts, skipped: view.skipped.clone() });
            }
            Ok(changes)
        })
    }

    /// Records that nothing changed up to there.
    pub fn advance(&mut self, source: &str, reached: &Reached) -> Result<(), StoreError> {
        self.write(|tx| {
            let stored = stored_position(tx, source)?;
            Ok(move_to(tx, source, &furthest(stored.as_ref(), &reached.position), Some(&reached.settled))?)
        })
    }
}

/// What is in the backlog since `before` is a commit of its own.
pub(super) fn number(tx: &Transaction<'_>, changed: &mut Changed, fresh: bool, before: u64) -> Result<(), Failure> {
    if changed.grew() {
        set_meta(tx, "commit_no", &(before + 1).to_string())?;
        changed.begin(tx, fresh, before)?;
    }
    Ok(())
}

/// The differences of one view, of which the guard may hold the removals. With `seen` this is the first contact, and all of them are
/// held but for what is in there.
pub(super) fn correct_one(
    tx: &Transaction<'_>,
    changed: &mut Changed,
    view: ViewRecord,
    differences: impl Iterator<Item = std::io::Result<(Op, Row)>>,
    (guard, mut seen): (Guard, Option<Seen>),
    (epoch, spool): (i64, &Path),
) -> Result<Change, Failure> {
    let ViewRecord { id, mut facts, mut held, skipped, .. } = view;
    let (mut stored, mut holds) = (Set::Fact.of(tx, id), if seen.is_some() { Set::Adopted } else { Set::Held }.of(tx, id));
    let mut any_hold = Set::Held.of(tx, id);
    let mut removals = ExtentBuilder::new(spool);
    let (mut inserted, mut stale) = (0, 0);
    for difference in differences {
        match difference? {
            // The query does not have it, and the fact store no longer has it: there is nothing left to hold, and nothing to bring back.
            (Op::Insert, row) if held > 0 && any_hold.remove(&row)? => {
                stored.write(Op::Delete, &row)?;
                (facts, held) = (facts - 1, held - 1);
            }
            (Op::Insert, row) => {
                backlog::add(tx, changed, (id, Op::Insert, &row), epoch)?;
                inserted += 1;
            }
            (Op::Delete, row) => {
                removals.push(row)?;
                stale += 1;
            }
        }
    }
    // A hold of a re-run stays as it is: it is no difference here, since the desired facts still have it.
    let verdict = if seen.is_some() { Verdict::Hold } else { guard.judge(stale, facts - inserted + stale) };
    let mut removed = 0;
    for row in removals.finish()? {
        let row = row?;
        let waits = match (verdict, &mut seen) {
            (Verdict::Apply, _) => false,
            (Verdict::Hold, None) => true,
            (Verdict::Hold, Some(seen)) => !seen.has(&row)?,
        };
        if waits {
            // From now on it is one of those: a re-run judges it anew, unless it is adopted, and a change that brings it back ends it.
            stored.write(Op::Insert, &row)?;
            holds.insert(&row)?;
            (facts, held) = (facts + 1, held + 1);
        } else {
            backlog::add(tx, changed, (id, Op::Delete, &row), epoch)?;
            removed += 1;
        }
    }
    tx.execute("UPDATE view SET facts = ?2, held = ?3, met = 1 WHERE id = ?1", params![id.0, facts, held])?;
    Ok(Change { view: id, inserted, removed, held, facts, skipped })
}

fn finish(tx: &Transaction<'_>, view: &ViewRecord, facts: u64, skipped: &Skipped, held: u64) -> Result<Change, Failure> {
    let skipped: BTreeMap<String, u64> = skipped.iter().map(|(reason, rows)| (reason.to_string(), *rows)).collect();
    let json = serde_json::to_string(&skipped).expect("a map of counts is JSON");
    tx.execute(
        "UPDATE view SET known = 1, failing = 0, facts = ?2, skipped = ?3, held = ?4 WHERE id = ?1",
        params![view.id.0, facts, json, held],
    )?;
    Ok(Change { view: view.id, inserted: 0, removed: 0, held, facts, skipped })
}

/// Moves the source to where it stands with a cut, and tells where that is.
fn follow_cut(tx: &Transaction<'_>, source: &str, reached: &Reached) -> Result<Position, Failure> {
    let position = furthest(stored_position(tx, source)?.as_ref(), &reached.position);
    move_to(tx, source, &position, Some(&reached.settled))?;
    Ok(position)
}

/// Makes a state usable that was loaded at `cut`, while the source stands at `position`; a result without a state leaves the view
/// without one. A view that is ahead of its source gets a position of its own.
fn found(tx: &Transaction<'_>, view: &ViewRecord, loaded: Option<LoadedState>, cut: &Position, position: &Position) -> Result<(), Failure> {
    let Some(LoadedState { fingerprint, clock }) = loaded else { return Ok(()) };
    let ahead = match (cut.end(), position.end()) {
        // The source has commits that this state lacks and that do not come again: it is of no use.
        (Some(cut), Some(position)) if cut < position => return Ok(()),
        (Some(cut), Some(position)) if cut > position => Some(cut.0),
        (Some(_) | None, Some(_) | None) => None,
    };
    tx.execute(
        "UPDATE view SET fingerprint = ?2, clock = ?3, position = ?4, demoted = NULL WHERE id = ?1",
        params![view.id.0, fingerprint, clock, ahead],
    )?;
    Ok(())
}

pub(super) fn stored_position(tx: &Transaction<'_>, source: &str) -> Result<Option<Position>, Failure> {
    let mut select = tx.prepare_cached("SELECT position FROM source WHERE name = ?1")?;
    let text: Option<Option<String>> = select.query_row([source], |row| row.get(0)).optional()?;
    let Some(text) = text.flatten() else { return Ok(None) };
    Ok(Some(text.parse().map_err(|_| Failure::Malformed("position"))?))
}

/// The later one: positions of a log never move back.
fn furthest(stored: Option<&Position>, reached: &Position) -> Position {
    match stored {
        Some(stored) if stored.end() > reached.end() && reached.end().is_some() => stored.clone(),
        Some(_) | None => reached.clone(),
    }
}

/// Writes down where the source is; a view that was ahead of it and no longer is loses its own position.
pub(super) fn move_to(tx: &Transaction<'_>, source: &str, position: &Position, settled: Option<&Position>) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE source SET position = ?2, settled = coalesce(?3, settled) WHERE name = ?1")?.execute(params![
        source,
        position.stored(),
        settled.map(Position::stored)
    ])?;
    if let Some(Lsn(position)) = position.end() {
        tx.prepare_cached("UPDATE view SET position = NULL WHERE source = ?1 AND position <= ?2")?.execute(params![source, position])?;
    }
    Ok(())
}
