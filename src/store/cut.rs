//! Whole results: a cut of a source becomes desired facts, a listing of the fact store corrects what is sent.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{OptionalExtension, Transaction, params};

use crate::{
    data::{Extent, ExtentBuilder, Lsn, Position, Row, Sought},
    store::{
        Change, Changes, Failure, Store, StoreError, ViewRecord, adopt,
        backlog::{self, Changed, DOUBTED},
        facts::{Set, count, desired},
        holds::{Holds, Numbers, Staying, Terms, recent_to},
        journal::note_removal,
        outbox, set_meta,
    },
    target::Op,
    view::{Cause, Guard, Occasion, Recent, Skipped, Step, Verdict, diff, refresh},
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
    /// follows ([`Store::correct`]) knows what differs, so whatever waited for these views is dropped; but revocations, which that
    /// comparison must neither adopt nor judge again (`adopt.rs`).
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
                let mut revoked = adopt::revoked(tx, view.id, &spool)?;
                journals.lock().disturb(view.id);
                dropped += outbox::forget(tx, view.id)?;
                backlog::forget(tx, &mut changed, view.id)?;
                tx.execute("DELETE FROM parked WHERE view = ?1", [view.id.0])?;
                let Numbers { mut facts, held, .. } = Numbers::of(tx, view.id)?;
                let mut staying = Staying::of(Holds::of(tx, view.id, held), guard, &spool);
                let mut stored = Set::Fact.of(tx, view.id);
                let mut skipped = Skipped::new();
                for change in refresh(&view.fact_type, answer, desired(&path, view.id)?, &mut skipped) {
                    let (op, row) = change?;
                    if op == Op::Delete && staying.keeps(&row)? {
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
                let held = staying.finish(&path)?.finish()?;
                // What a snapshot no longer has is judged by that comparison.
                changes.push(finish(tx, &view, (facts, held), &Recent::default(), &skipped)?);
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
        let (path, spool, now) = (self.path.clone(), self.spool(), (self.time)());
        self.commit(|tx, outbox| {
            let mut changes = Vec::with_capacity(views.len());
            let position = follow_cut(tx, source, reached)?;
            let terms = Terms { guard, now, position: Some(reached.cut.to_string()), occasion: Occasion::Change };
            for Fresh { view, answer, loaded } in views {
                changes.push(apply_one(tx, outbox, &view, answer, &terms, (&path, &spool))?);
                found(tx, &view, loaded, &reached.cut, &position)?;
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
        let now = (self.time)();
        let journals = self.journals.clone();
        let (views, dropped, changed) = self.write(|tx| {
            let (mut changes, mut dropped, mut changed) = (Vec::with_capacity(views.len()), 0, Changed::default());
            let position = stored_position(tx, source)?.map(|position| position.to_string());
            let terms = Terms { guard, now, position, occasion: Occasion::Change };
            for (view, listed) in views {
                let seen = Sought::from(adopt::revoked(tx, view.id, &spool)?.finish()?);
                dropped += outbox::forget(tx, view.id)?;
                backlog::forget(tx, &mut changed, view.id)?;
                // What is still wanted and still refused will be parked again.
                tx.execute("DELETE FROM parked WHERE view = ?1", [view.id.0])?;
                let differences = diff(desired(&path, view.id)?, listed);
                let id = view.id;
                journals.lock().disturb(id);
                let differences = differences.inspect(|difference| note_removal(&journals, id, difference));
                changes.push(correct_one(tx, &mut changed, view, differences, (&terms, seen), (epoch, &spool))?);
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

/// The new result of one view: desired facts and outbox change by the net difference, of which the guard may hold the removals.
fn apply_one(
    tx: &Transaction<'_>,
    outbox: &mut outbox::Writer,
    view: &ViewRecord,
    answer: Extent,
    terms: &Terms,
    (path, spool): (&Path, &Path),
) -> Result<Change, Failure> {
    let Numbers { mut facts, held, mut recent } = Numbers::of(tx, view.id)?;
    let mut staying = Staying::of(Holds::of(tx, view.id, held), terms.guard, spool);
    let (mut stored, mut skipped, mut removals) = (Set::Fact.of(tx, view.id), Skipped::new(), ExtentBuilder::new(spool));
    let (mut inserted, mut removed) = (0, 0);
    for change in refresh(&view.fact_type, answer, desired(path, view.id)?, &mut skipped) {
        match change? {
            (Op::Insert, row) => {
                stored.write(Op::Insert, &row)?;
                outbox.push(tx, view.id, Op::Insert, row.as_bytes())?;
                inserted += 1;
            }
            (Op::Delete, row) if staying.keeps(&row)? => {}
            (Op::Delete, row) => {
                removals.push(row)?;
                removed += 1;
            }
        }
    }
    facts += inserted;
    let mut holds = staying.finish(path)?;
    // What is held the query did not have; what of it is held no longer it has again.
    let had = facts - inserted - held;
    let step = Step { occasion: terms.occasion, before: had, inserted: inserted + held - holds.len(), removed };
    let verdict = terms.guard.judge(step, &mut recent, terms.now);
    let mut began = None;
    if let Verdict::Hold(cause) = verdict {
        began = holds.open(cause, had, terms)?;
    }
    for row in removals.finish()? {
        let row = row?;
        match verdict {
            Verdict::Hold(_) => holds.add(&row)?,
            Verdict::Apply => {
                stored.write(Op::Delete, &row)?;
                outbox.push(tx, view.id, Op::Delete, row.as_bytes())?;
                facts -= 1;
            }
        }
    }
    let (removed, newly_held) = if verdict == Verdict::Apply { (removed, 0) } else { (0, removed) };
    let change = finish(tx, view, (facts, holds.finish()?), &recent, &skipped)?;
    Ok(Change { inserted, removed, began, newly_held, ..change })
}

/// The differences of one view, of which the guard may hold the removals; all of them if this is the first contact and what is there is
/// adopted. What is in `seen` was let go before and is neither held nor counted.
pub(super) fn correct_one(
    tx: &Transaction<'_>,
    changed: &mut Changed,
    view: ViewRecord,
    differences: impl Iterator<Item = std::io::Result<(Op, Row)>>,
    (terms, mut seen): (&Terms, Sought),
    (epoch, spool): (i64, &Path),
) -> Result<Change, Failure> {
    let ViewRecord { id, skipped, .. } = view;
    let Numbers { mut facts, held, .. } = Numbers::of(tx, id)?;
    let (mut stored, mut holds) = (Set::Fact.of(tx, id), Holds::of(tx, id, held));
    let mut removals = ExtentBuilder::new(spool);
    let (mut inserted, mut removed, mut stale) = (0, 0, 0);
    for difference in differences {
        match difference? {
            // The query does not have it, and the fact store no longer has it: there is nothing left to hold, and nothing to bring back.
            (Op::Insert, row) if holds.end(&row)? => {
                stored.write(Op::Delete, &row)?;
                facts -= 1;
            }
            (Op::Insert, row) => {
                backlog::add(tx, changed, (id, Op::Insert, &row), epoch)?;
                inserted += 1;
            }
            (Op::Delete, row) if seen.has(&row)? => {
                backlog::add(tx, changed, (id, Op::Delete, &row), epoch)?;
                removed += 1;
            }
            (Op::Delete, row) => {
                removals.push(row)?;
                stale += 1;
            }
        }
    }
    // Held facts are no difference here, and nothing that a removal could be a share of.
    let there = facts - holds.len() - inserted + stale;
    let adopted = stale > 0 && adopt::first_contact(tx, id, terms.guard)?;
    let verdict = if adopted { Verdict::Hold(Cause::Adopted) } else { terms.guard.judge_comparison(stale, there) };
    let mut began = None;
    if let Verdict::Hold(cause) = verdict {
        began = holds.open(cause, there, terms)?;
    }
    for row in removals.finish()? {
        let row = row?;
        match verdict {
            Verdict::Hold(_) => {
                // A change that brings it back ends the hold, as if it had been desired before.
                stored.write(Op::Insert, &row)?;
                holds.add(&row)?;
            }
            Verdict::Apply => backlog::add(tx, changed, (id, Op::Delete, &row), epoch)?,
        }
    }
    let newly_held = if verdict == Verdict::Apply { 0 } else { stale };
    (facts, removed) = (facts + newly_held, removed + stale - newly_held);
    let held = holds.finish()?;
    tx.execute("UPDATE view SET facts = ?2, held = ?3, met = 1 WHERE id = ?1", params![id.0, facts, held])?;
    Ok(Change { view: id, inserted, removed, held, began, newly_held, let_go: 0, facts, skipped })
}

/// Writes down what a whole result makes of a view.
fn finish(
    tx: &Transaction<'_>,
    view: &ViewRecord,
    (facts, held): (u64, u64),
    recent: &Recent,
    skipped: &Skipped,
) -> Result<Change, Failure> {
    let skipped: BTreeMap<String, u64> = skipped.iter().map(|(reason, rows)| (reason.to_string(), *rows)).collect();
    let json = serde_json::to_string(&skipped).expect("a map of counts is JSON");
    tx.execute(
        "UPDATE view SET known = 1, failing = 0, facts = ?2, skipped = ?3, held = ?4, recent = ?5 WHERE id = ?1",
        params![view.id.0, facts, json, held, recent_to(recent)],
    )?;
    Ok(Change { view: view.id, inserted: 0, removed: 0, held, began: None, newly_held: 0, let_go: 0, facts, skipped })
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
