//! Commits into views: rows' state, facts, outbox and position in one transaction.
//!
//! A store transaction takes as many commits of the source as are there, and ends at a commit. They are handed to each view's dataflow
//! a chunk at a time; what the chunks flip is netted by row, and only what is left in the end is written, removals judged by the guard.
//!
//! A view whose dataflow fails is left out from there on: what it flipped is forgotten, so its facts stay what they were, and its state
//! loses its fingerprint, so that nothing is computed from it any more. The other views are not concerned.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Transaction, params};

use crate::{
    data::{ChangeBatch, Lsn, Position, ResumeToken},
    store::{
        Change, Failure, Store, StoreError, ViewId, ViewRecord,
        cut::{move_to, stored_position},
        facts::{Rows, reader, rows},
        flips::{Flips, against},
        holds::{Numbers, Terms, recent_from},
        maintain::Maintain,
        outbox,
        settle::{Counts, settle},
        state::ViewState,
    },
    view::{Guard, Occasion, Remote, ViewError},
};

/// Batches are collected up to this size before their changes are computed: one-row commits come in small ones, and what is computed
/// at once is netted and written in key order.
const CHUNK_BYTES: usize = 4 << 20;

/// A store transaction takes no further batch after this many changes: those who wait for a commit wait for the whole of it, and a
/// kill loses it.
const TRANSACTION_CHANGES: usize = 100_000;

/// A view that is kept up to date change by change.
pub struct Live<'a> {
    /// Which; its state is of this dataflow's plan.
    pub record: &'a ViewRecord,
    /// What computes it.
    pub dataflow: &'a mut dyn Maintain,
    /// Where in the images each table's columns are.
    pub columns: &'a BTreeMap<u32, Vec<usize>>,
}

/// What became of a view.
#[derive(Debug)]
pub enum Applied {
    /// It is up to date.
    Changed(Change),
    /// It could not be kept up to date: its facts stay as they were before, and its state is not used any more.
    Failed {
        /// What its facts and counts are.
        change: Change,
        /// Why.
        why: ViewError,
    },
}

/// What a store transaction did.
#[derive(Debug)]
pub struct Followed {
    /// The views of which something changed.
    pub views: Vec<Applied>,
    /// The last commit number given out; when the outbox is empty up to it, everything here is delivered.
    pub commit_no: u64,
    /// Where the source stands.
    pub position: Option<Position>,
    /// Row changes it was made of.
    pub changes: usize,
    /// When time next changes something by itself: [`Store::advance_clock`] is then due.
    pub due: Option<i64>,
}

impl Store {
    /// Applies the commits of `first` and as many further batches as `more` yields, in one transaction that ends at a commit.
    ///
    /// `more(false)` must not wait; `more(true)` is called inside of a source's transaction and must. `None` there means that the rest
    /// does not come: then nothing happened at all, and the result is `None`. `now` is the source's time; it never goes back here.
    /// Commits that a view has already are left out for it. `settled` says, when all batches are taken, up to where refresh views lack
    /// nothing.
    #[expect(clippy::too_many_arguments, reason = "what happened, what it happens to, and the terms of it")]
    pub fn follow(
        &mut self,
        source: &str,
        first: ChangeBatch,
        more: &mut dyn FnMut(bool) -> Option<ChangeBatch>,
        settled: &dyn Fn() -> Option<Position>,
        now: i64,
        live: &mut [Live<'_>],
        remote: &mut dyn Remote,
        guard: Guard,
    ) -> Result<Option<Followed>, StoreError> {
        let (store, spool) = (self.path.clone(), self.spool());
        let place = Place { store: &store, spool: &spool, kept_bytes: self.kept_flips };
        let terms = Terms { guard, now: (self.time)(), position: None, occasion: Occasion::Change };
        let followed = self.attempt_commit(|tx, outbox| {
            let mut run = Run::new(tx, source, live, place)?;
            run.advance(now, remote)?;
            let mut gathered = Gathered::new(first);
            loop {
                gathered.fill(more);
                run.apply(&gathered.batches, now, remote)?;
                match gathered.next(more) {
                    Next::Batch => {}
                    Next::Enough => break,
                    Next::Lost => return Ok(None),
                }
            }
            let followed = run.finish(outbox, gathered.last, settled(), now, terms)?;
            Ok(Some(Followed { changes: gathered.changes, ..followed }))
        })?;
        Ok(followed.map(|followed| Followed { commit_no: self.commit_no, ..followed }))
    }

    /// Lets time pass: every view is as of `to`.
    pub fn advance_clock(
        &mut self,
        source: &str,
        to: i64,
        live: &mut [Live<'_>],
        remote: &mut dyn Remote,
        guard: Guard,
    ) -> Result<Followed, StoreError> {
        let (store, spool) = (self.path.clone(), self.spool());
        let place = Place { store: &store, spool: &spool, kept_bytes: self.kept_flips };
        let terms = Terms { guard, now: (self.time)(), position: None, occasion: Occasion::Time };
        let followed = self.attempt_commit(|tx, outbox| {
            let mut run = Run::new(tx, source, live, place)?;
            run.advance(to, remote)?;
            run.finish(outbox, None, None, to, terms).map(Some)
        })?;
        let followed = followed.expect("time never gives up");
        Ok(Followed { commit_no: self.commit_no, ..followed })
    }

    /// [`Store::advance_clock`] without the source: `remote` fails. If views need it, nothing happens at all, and the inner error
    /// names them, so that the others can go on without them.
    pub fn advance_clock_alone(
        &mut self,
        source: &str,
        to: i64,
        live: &mut [Live<'_>],
        remote: &mut dyn Remote,
        guard: Guard,
    ) -> Result<Result<Followed, Vec<ViewId>>, StoreError> {
        let (store, spool) = (self.path.clone(), self.spool());
        let place = Place { store: &store, spool: &spool, kept_bytes: self.kept_flips };
        let terms = Terms { guard, now: (self.time)(), position: None, occasion: Occasion::Time };
        let mut stuck = Vec::new();
        let followed = self.attempt_commit(|tx, outbox| {
            let mut run = Run::new(tx, source, live, place)?;
            run.advance(to, remote)?;
            let needy = run.views.iter().filter(|view| matches!(view.failed, Some(ViewError::Remote(_))));
            stuck.extend(needy.map(|view| view.live.record.id));
            if stuck.is_empty() { run.finish(outbox, None, None, to, terms).map(Some) } else { Ok(None) }
        })?;
        Ok(followed.map(|followed| Followed { commit_no: self.commit_no, ..followed }).ok_or(stuck))
    }
}

/// Batches on their way into the dataflows.
struct Gathered {
    batches: Vec<ChangeBatch>,
    /// Whether there may be another one right now.
    idle: bool,
    /// Changes so far, of all batches.
    changes: usize,
    /// Where the last commit ends, and what resumes the log there.
    last: Option<(Lsn, ResumeToken)>,
}

/// How a store transaction goes on.
enum Next {
    /// There is another batch.
    Batch,
    /// It ends here, at a commit.
    Enough,
    /// The rest of a transaction does not come.
    Lost,
}

impl Gathered {
    fn new(first: ChangeBatch) -> Self {
        let mut gathered = Self { batches: Vec::new(), idle: false, changes: 0, last: None };
        gathered.push(first);
        gathered
    }

    fn push(&mut self, batch: ChangeBatch) {
        self.changes += batch.len();
        if let Some(commit) = batch.commits().last() {
            self.last = Some((commit.end, batch.token().clone()));
        }
        let ended = batch.commits().last().map_or(0, |commit| commit.changes);
        assert!(ended == batch.len() || batch.open().is_some(), "a transaction that does not end in its batch says where it will");
        self.batches.push(batch);
    }

    /// Takes what is there, up to a chunk.
    fn fill(&mut self, more: &mut dyn FnMut(bool) -> Option<ChangeBatch>) {
        let size = |batches: &[ChangeBatch]| batches.iter().map(ChangeBatch::size).sum::<usize>();
        while !self.idle && self.changes < TRANSACTION_CHANGES && size(&self.batches) < CHUNK_BYTES {
            match more(false) {
                Some(batch) => self.push(batch),
                None => self.idle = true,
            }
        }
    }

    /// Lets go of what was applied and takes one more batch, if the transaction goes on.
    fn next(&mut self, more: &mut dyn FnMut(bool) -> Option<ChangeBatch>) -> Next {
        let inside = self.batches.last().is_some_and(|batch| batch.open().is_some());
        self.batches.clear();
        if !inside && (self.idle || self.changes >= TRANSACTION_CHANGES) {
            return Next::Enough;
        }
        match more(inside) {
            Some(batch) => self.push(batch),
            None if inside => return Next::Lost,
            None => return Next::Enough,
        }
        self.idle = false;
        Next::Batch
    }
}

/// Where in `batch` the changes begin that a view lacks which has everything before `position`.
fn lacking(batch: &ChangeBatch, position: Lsn) -> usize {
    // Commits come in the order of their records.
    let commits = batch.commits();
    let present = commits.partition_point(|commit| commit.start < position);
    if present == commits.len() && batch.open().is_some_and(|start| start < position) {
        return batch.len();
    }
    present.checked_sub(1).map_or(0, |last| commits[last].changes)
}

/// One store transaction under way.
struct Run<'t, 'l, 'a> {
    tx: &'t Transaction<'t>,
    source: &'t str,
    stored: Option<Position>,
    views: Vec<Running<'l, 'a>>,
    place: Place<'t>,
}

/// Where things are kept.
#[derive(Debug, Clone, Copy)]
struct Place<'t> {
    store: &'t Path,
    spool: &'t Path,
    /// See [`Flips::new`].
    kept_bytes: usize,
}

/// A view in it.
struct Running<'l, 'a> {
    live: &'l mut Live<'a>,
    counts: Counts,
    /// It has the commits before this.
    position: Lsn,
    clock: Option<i64>,
    flips: Flips,
    failed: Option<ViewError>,
}

impl<'t, 'l, 'a> Run<'t, 'l, 'a> {
    fn new(tx: &'t Transaction<'t>, source: &'t str, live: &'l mut [Live<'a>], place: Place<'t>) -> Result<Self, Failure> {
        let stored = stored_position(tx, source)?;
        let here = stored.as_ref().and_then(Position::end).unwrap_or_default();
        let views = live.iter_mut().map(|live| Running::new(tx, live, here, place)).collect::<Result<Vec<_>, Failure>>()?;
        Ok(Self { tx, source, stored, views, place })
    }

    fn advance(&mut self, to: i64, remote: &mut dyn Remote) -> Result<(), Failure> {
        self.views.iter_mut().try_for_each(|view| view.advance(self.tx, self.place, to, remote))
    }

    fn apply(&mut self, batches: &[ChangeBatch], now: i64, remote: &mut dyn Remote) -> Result<(), Failure> {
        self.views.iter_mut().try_for_each(|view| view.apply(self.tx, self.place, batches, now, remote))
    }

    /// Writes down what is left of the flips, the time, and that the source stands behind its `last` commit. A view that failed lacks
    /// something, so then nothing new is `settled`.
    fn finish(
        self,
        outbox: &mut outbox::Writer,
        last: Option<(Lsn, ResumeToken)>,
        settled: Option<Position>,
        now: i64,
        terms: Terms,
    ) -> Result<Followed, Failure> {
        let Self { tx, source, stored, views, place } = self;
        let stands = match (&stored, &last) {
            (Some(stored), Some((end, token))) => Some(stored.at(*end, token.clone())),
            (stored, _) => stored.clone(),
        };
        let terms = Terms { position: stands.map(|position| position.to_string()), ..terms };
        let (mut applied, mut due) = (Vec::new(), None);
        for mut view in views {
            let next = view.next_due(tx)?;
            due = due.into_iter().chain(next).min();
            applied.extend(view.finish(tx, outbox, &terms, place)?);
        }
        // Before its first result a source has no position to go on from.
        let position = match (stored, last) {
            (Some(stored), Some((end, token))) if stored.end().is_some_and(|here| here < end) => {
                let whole = !applied.iter().any(|view| matches!(view, Applied::Failed { .. }));
                let position = stored.at(end, token);
                move_to(tx, source, &position, settled.filter(|_| whole).as_ref())?;
                Some(position)
            }
            (stored, _) => stored,
        };
        tx.prepare_cached("UPDATE source SET clock = ?2 WHERE name = ?1 AND (clock IS NULL OR clock < ?2)")?
            .execute(params![source, now])?;
        Ok(Followed { views: applied, commit_no: 0, position, changes: 0, due })
    }
}

impl<'l, 'a> Running<'l, 'a> {
    fn new(tx: &Transaction<'_>, live: &'l mut Live<'a>, here: Lsn, place: Place<'_>) -> Result<Self, Failure> {
        let sql = "SELECT facts, held, recent, skipped, position, clock FROM view WHERE id = ?1";
        let (facts, held, recent, skipped, position, clock) = tx.prepare_cached(sql)?.query_row([live.record.id.0], |row| {
            let texts = (row.get::<_, String>(2)?, row.get::<_, String>(3)?);
            Ok((row.get(0)?, row.get(1)?, texts.0, texts.1, row.get::<_, Option<u64>>(4)?, row.get(5)?))
        })?;
        let skipped = serde_json::from_str(&skipped).map_err(|_| Failure::Malformed("count of skipped rows"))?;
        let position = position.map_or(here, |ahead| here.max(Lsn(ahead)));
        Ok(Self {
            live,
            counts: Counts { numbers: Numbers { facts, held, recent: recent_from(&recent)? }, skipped },
            position,
            clock,
            flips: Flips::new(place.spool, place.kept_bytes),
            failed: None,
        })
    }

    /// An error of the store stops everything, one of the view only the view.
    fn note(&mut self, outcome: Result<(), ViewError>) -> Result<(), Failure> {
        match outcome {
            Ok(()) => Ok(()),
            Err(ViewError::State(error)) => Err(error.into()),
            Err(why @ (ViewError::Eval(_) | ViewError::Remote(_) | ViewError::Budget(_) | ViewError::Broken(_))) => {
                self.failed = Some(why);
                Ok(())
            }
        }
    }

    fn advance(&mut self, tx: &Transaction<'_>, place: Place<'_>, to: i64, remote: &mut dyn Remote) -> Result<(), Failure> {
        let Some(from) = self.clock.filter(|from| *from < to && self.failed.is_none() && self.live.dataflow.has_clock()) else {
            return Ok(());
        };
        let mut state = ViewState::new(tx, self.live.record.id);
        let flips = &mut self.flips;
        let outcome = self.live.dataflow.advance(from, to, place.spool, &mut state, remote, &mut |flip| flips.push(flip));
        self.clock = Some(to);
        self.note(outcome)
    }

    fn apply(
        &mut self,
        tx: &Transaction<'_>,
        place: Place<'_>,
        batches: &[ChangeBatch],
        now: i64,
        remote: &mut dyn Remote,
    ) -> Result<(), Failure> {
        let Live { record, dataflow, columns } = &mut *self.live;
        let now = self.clock.map_or(now, |clock| clock.max(now));
        let lacking = batches.iter().flat_map(|batch| batch.changes(lacking(batch, self.position)..batch.len()));
        let mut changes = lacking.filter(|(table, _)| columns.contains_key(table)).peekable();
        let mut state = ViewState::new(tx, record.id);
        let flips = &mut self.flips;
        let mut outcome = Ok(());
        while self.failed.is_none() && outcome.is_ok() && changes.peek().is_some() {
            let mut chunk = changes.by_ref().take(dataflow.chunk_changes());
            outcome = dataflow.apply(&mut chunk, columns, now, place.spool, &mut state, remote, &mut |flip| flips.push(flip));
        }
        drop(changes);
        drop(state);
        self.note(outcome)
    }

    fn next_due(&mut self, tx: &Transaction<'_>) -> Result<Option<i64>, Failure> {
        let Some(now) = self.clock.filter(|_| self.failed.is_none() && self.live.dataflow.has_clock()) else { return Ok(None) };
        let (outcome, due) = match self.live.dataflow.next_due(now, &ViewState::new(tx, self.live.record.id)) {
            Ok(due) => (Ok(()), due),
            Err(error) => (Err(error), None),
        };
        self.note(outcome)?;
        Ok(due)
    }

    fn finish(
        self,
        tx: &Transaction<'_>,
        outbox: &mut outbox::Writer,
        terms: &Terms,
        place: Place<'_>,
    ) -> Result<Option<Applied>, Failure> {
        let Self { live, counts, position: _, clock, flips, failed } = self;
        let view = live.record;
        tx.prepare_cached("UPDATE view SET clock = ?2 WHERE id = ?1 AND clock <> ?2")?.execute(params![view.id.0, clock])?;
        let outcome = match failed {
            Some(why) => Err(why),
            None if flips.is_empty() => return Ok(None),
            None => {
                let result = if flips.is_cleared() { Some(rows(reader(place.store)?, Rows::Result, view.id)) } else { None };
                let net = against(flips.finish()?, result);
                settle(tx, outbox, view, &counts, net, terms, place.spool)?
            }
        };
        Ok(Some(match outcome {
            Ok(change) => Applied::Changed(change),
            Err(why) => {
                tx.execute("UPDATE view SET fingerprint = NULL, position = NULL, failing = 1 WHERE id = ?1", [view.id.0])?;
                let Counts { numbers: Numbers { facts, held, .. }, skipped } = counts;
                Applied::Failed {
                    change: Change { view: view.id, inserted: 0, removed: 0, held, began: None, newly_held: 0, let_go: 0, facts, skipped },
                    why,
                }
            }
        }))
    }
}
