//! What happens to the facts while somebody compares them with the fact store: so that a comparison needs no pause.
//!
//! ```text
//!      t0: watch_facts            the fact store is listed          t1: sight                     t2: settle_drift
//!  ────┬──────────────────────────────────────────────────────────────┬─────────────────────────────┬────
//!      what waits ──┐                                                 │ desired facts as of t1      │
//!      what is pushed meanwhile ──> journal: on their way in [t0, t1] ┘                             │ journal of (t1, t2]
//! ```
//!
//! **Why no difference that is found is one of time.** A fact that did not wait to be sent at t0 and was not pushed into the outbox until
//! t1 was desired, or not, all the time; and nothing of ours was on its way to the fact store that changes it, because an entry leaves
//! outbox and backlog only when it is acknowledged, and whoever begins holds up delivery for that moment. So the listing, whenever in
//! between it came by, shows what the desired facts of t1 say, or there is drift. Everything else was *on its way* and is not judged; the
//! next comparison does it.
//!
//! **Why a repair is safe.** What is found is put into the backlog in a transaction at t2, but for facts that were pushed since t1: the
//! outbox makes these right. For all others nothing waits, which is what an entry of the backlog means.
//!
//! **What was refused.** A parked change that was neither pushed nor refused since t0 is judged like any other: it differs, and is tried
//! again if there is a repair, or it does not differ any more, and is parked no longer. One that was refused meanwhile was on its way.
//!
//! What changes desired facts by another way than the outbox (a snapshot, the comparison after it) ends the journals of its views:
//! [`Store::sight`] and [`Store::settle_drift`] then give nothing, and the comparison is begun again.
//!
//! **Foreign facts.** No history of all facts is kept. But once a comparison has left the fact store equal to the desired facts, a fact
//! that is there and should not be has come back after we removed it, or somebody else wrote it. What was removed since this process began
//! is in a [`Bloom`] filter. So *foreign* is said only of what is provably not a revocation of ours that got lost; what is not proven, as
//! everything in the first comparison, is *stale*. A filter errs towards stale only, and more so as it fills up.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::{
    data::{Extent, ExtentBuilder, Row, Sought},
    store::{
        Change, Changes, Failure, Store, StoreError, ViewId, ViewRecord,
        backlog::Changed,
        cut::{correct_one, number, stored_position},
        facts::{Rows, Set, each, reader},
        holds::{Holds, Numbers, Terms},
        outbox,
    },
    target::Op,
    view::{Guard, Occasion},
};

/// The most changes that may wait when a journal begins: they are copied into it in one go, which takes a tenth of a second, and with more
/// of them on their way there is little to judge.
const MOST_WAITING: u64 = 100_000;
/// Bits of the filter of removals, a megabyte: of half a million removals it takes one in a hundred that was never ours for ours.
const FILTER_BITS: u64 = 1 << 23;
/// Bits that a removal sets.
const FILTER_HASHES: u64 = 5;

/// Holds a journal; it ends when this is dropped.
#[derive(Debug, Clone)]
pub struct Watching(Arc<()>);

/// The facts of some views that were on their way since.
struct Journal {
    holder: Weak<()>,
    spool: PathBuf,
    /// `None` after something else than the outbox changed the view, or the spool failed.
    views: BTreeMap<ViewId, Option<Moves>>,
}

/// What happened to the facts of a view.
struct Moves {
    /// On their way since they were asked for last.
    pushed: ExtentBuilder,
    /// Refused since the journal began.
    parked: ExtentBuilder,
}

/// All journals, and what was removed.
#[derive(Default)]
pub(super) struct Journals {
    open: Vec<Journal>,
    removed: Bloom,
    /// Views whose facts in the fact store were once what they should be, but for what was removed since.
    equal: BTreeSet<ViewId>,
}

/// The journals of a store, shared with whoever pushes into its outbox.
#[derive(Clone, Default)]
pub(super) struct SharedJournals(Arc<Mutex<Journals>>);

impl SharedJournals {
    pub(super) fn lock(&self) -> MutexGuard<'_, Journals> {
        // What a panic left half done are facts too many in a journal, at the worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journals {
    /// A change of a fact is on its way. One that is rolled back does no harm here.
    pub(super) fn push(&mut self, view: ViewId, op: Op, row: &[u8]) {
        if op == Op::Delete {
            self.removed.add(view, row);
        }
        if self.open.is_empty() {
            return;
        }
        self.open.retain(|journal| journal.holder.strong_count() > 0);
        for journal in &mut self.open {
            let Some(entry) = journal.views.get_mut(&view) else { continue };
            let kept = entry.as_mut().map(|moves| Row::from_bytes(row).and_then(|row| moves.pushed.push(row)));
            if let Some(Err(_)) = kept {
                *entry = None;
            }
        }
    }

    /// A change of a fact was refused.
    pub(super) fn park(&mut self, view: ViewId, row: &Row) {
        for entry in self.open.iter_mut().filter_map(|journal| journal.views.get_mut(&view)) {
            if let Some(Err(_)) = entry.as_mut().map(|moves| moves.parked.push(row.clone())) {
                *entry = None;
            }
        }
    }

    /// Something else than the outbox changes the desired facts of `view`.
    pub(super) fn disturb(&mut self, view: ViewId) {
        self.equal.remove(&view);
        self.open.iter_mut().filter_map(|journal| journal.views.get_mut(&view)).for_each(|moves| *moves = None);
    }

    /// The fact store is made what it should be for `view`, but for what is `held`.
    pub(super) fn made_equal(&mut self, view: ViewId) {
        self.equal.insert(view);
    }

    /// How many journals there are.
    #[cfg(test)]
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Whether a fact that should not be there was certainly not one of ours.
    fn is_foreign(&self, view: ViewId, row: &[u8]) -> bool {
        self.equal.contains(&view) && !self.removed.may_have(view, row)
    }

    /// Everything since the last time it was asked; `None` if a view was disturbed.
    fn take(&mut self, watching: &Watching) -> Option<BTreeMap<ViewId, ExtentBuilder>> {
        let holder = Arc::downgrade(&watching.0);
        let journal = self.open.iter_mut().find(|journal| journal.holder.ptr_eq(&holder))?;
        let spool = journal.spool.clone();
        let fresh = |moves: &mut Moves| std::mem::replace(&mut moves.pushed, ExtentBuilder::new(&spool));
        journal.views.iter_mut().map(|(view, moves)| Some((*view, fresh(moves.as_mut()?)))).collect()
    }

    /// The same of a journal that ends by it.
    fn end(&mut self, watching: &Watching) -> Option<BTreeMap<ViewId, Moves>> {
        let holder = Arc::downgrade(&watching.0);
        let journal = self.open.extract_if(.., |journal| journal.holder.ptr_eq(&holder)).next()?;
        journal.views.into_iter().map(|(view, moves)| Some((view, moves?))).collect()
    }
}

/// A set that never denies what is in it.
struct Bloom {
    bits: Vec<u64>,
    hasher: RandomState,
}

impl Default for Bloom {
    fn default() -> Self {
        Self { bits: Vec::new(), hasher: RandomState::new() }
    }
}

impl Bloom {
    fn places(&self, view: ViewId, row: &[u8]) -> impl Iterator<Item = (usize, u64)> + use<> {
        let hash = self.hasher.hash_one((view, row));
        // Two halves make as many hashes as are wanted (Kirsch and Mitzenmacher).
        let (first, step) = (hash >> 32, (hash & u64::from(u32::MAX)) | 1);
        (0..FILTER_HASHES).map(move |n| {
            let bit = first.wrapping_add(n.wrapping_mul(step)) % FILTER_BITS;
            (usize::try_from(bit / 64).expect("a megabyte fits"), 1 << (bit % 64))
        })
    }

    fn add(&mut self, view: ViewId, row: &[u8]) {
        if self.bits.is_empty() {
            self.bits = vec![0; usize::try_from(FILTER_BITS / 64).expect("a megabyte fits")];
        }
        for (word, bit) in self.places(view, row) {
            self.bits[word] |= bit;
        }
    }

    fn may_have(&self, view: ViewId, row: &[u8]) -> bool {
        !self.bits.is_empty() && self.places(view, row).all(|(word, bit)| self.bits[word] & bit != 0)
    }
}

/// The desired facts of one moment, with what was on its way until then.
pub struct Sight {
    connection: Connection,
    on_their_way: BTreeMap<ViewId, ExtentBuilder>,
}

impl Sight {
    /// Calls `to` with each desired fact of `view` in row order.
    pub fn desired(&self, view: ViewId, to: &mut dyn FnMut(Row) -> io::Result<()>) -> io::Result<()> {
        each(&self.connection, Rows::Facts, view, to)
    }

    /// The same with those of them that its query does not have, and whose removal waits for a person.
    pub fn held(&self, view: ViewId, to: &mut dyn FnMut(Row) -> io::Result<()>) -> io::Result<()> {
        each(&self.connection, Rows::Held, view, to)
    }

    /// The facts of `view` that were on their way, once.
    pub fn on_their_way(&mut self, view: ViewId) -> io::Result<Extent> {
        self.on_their_way.remove(&view).map_or_else(|| Ok(Extent::from_sorted(std::iter::empty())), ExtentBuilder::finish)
    }
}

/// In what a view's facts in the fact store differ.
pub struct Found {
    /// Whose.
    pub view: ViewRecord,
    /// Desired and not stored, in row order.
    pub missing: Extent,
    /// Stored and not desired, in row order.
    pub stale: Extent,
}

/// How many facts of a view differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Differing {
    /// Desired and not stored: a grant that is missing.
    pub missing: u64,
    /// Stored and not desired, and perhaps once written by us: access that should be gone.
    pub stale: u64,
    /// Stored and not desired, and certainly written by somebody else.
    pub foreign: u64,
}

impl Store {
    /// Begins a journal of `views`; `None` if too much waits to be sent.
    ///
    /// The caller sees to it that nothing of these views is under way to the fact store in this moment that outbox and backlog lack.
    pub fn watch_facts(&mut self, views: &[ViewId]) -> Result<Option<Watching>, StoreError> {
        if self.outbox_len + self.backlog.len() > MOST_WAITING {
            return Ok(None);
        }
        let spool = self.spool();
        let waiting = self.write(|tx| {
            let moves = |view| Ok::<_, Failure>(Moves { pushed: waiting(tx, view, &spool)?, parked: ExtentBuilder::new(&spool) });
            views.iter().map(|view| Ok((*view, Some(moves(*view)?)))).collect()
        });
        let watching = Watching(Arc::new(()));
        self.journals.lock().open.push(Journal { holder: Arc::downgrade(&watching.0), spool, views: waiting? });
        Ok(Some(watching))
    }

    /// The desired facts as they are now, and what was on its way so far; `None` if something else has changed them meanwhile.
    pub fn sight(&mut self, watching: &Watching) -> Result<Option<Sight>, StoreError> {
        let Some(on_their_way) = self.journals.lock().take(watching) else { return Ok(None) };
        let connection = reader(&self.path).and_then(|connection| {
            // A reader's transaction begins with its first read.
            connection.query_row("SELECT 1 FROM meta LIMIT 1", [], |_| Ok(()))?;
            Ok(connection)
        });
        let connection = connection.map_err(|error| self.failed("read", error.into()))?;
        Ok(Some(Sight { connection, on_their_way }))
    }

    /// Classifies what was `found` at the last sight and, with a guard, puts it into the backlog; `None` if something else has changed the
    /// desired facts since.
    pub fn settle_drift(
        &mut self,
        source: &str,
        watching: &Watching,
        found: Vec<Found>,
        mend: Option<Guard>,
    ) -> Result<Option<(Vec<Differing>, Changes)>, StoreError> {
        let journals = self.journals.clone();
        let Some(mut since) = journals.lock().end(watching) else { return Ok(None) };
        let (before, epoch, fresh, spool) = (self.commit_no, self.backlog.epoch(), self.backlog.len() == 0, self.spool());
        let now = (self.time)();
        let (outcomes, changed) = self.write(|tx| {
            let (mut outcomes, mut changed) = (Vec::with_capacity(found.len()), Changed::default());
            let position = stored_position(tx, source)?.map(|position| position.to_string());
            let mend = mend.map(|guard| Terms { guard, now, position, occasion: Occasion::Change });
            for found in found {
                let nothing = || Moves { pushed: ExtentBuilder::new(&spool), parked: ExtentBuilder::new(&spool) };
                let moves = since.remove(&found.view.id).unwrap_or_else(nothing);
                let settling = Settling { tx, journals: &journals, moves, spool: &spool, epoch };
                outcomes.push(settling.run(found, &mut changed, mend.as_ref())?);
            }
            number(tx, &mut changed, fresh, before)?;
            Ok((outcomes, changed))
        })?;
        self.commit_no += u64::from(changed.grew());
        self.backlog.settle(changed);
        let (differing, views): (Vec<Differing>, Vec<Option<Change>>) = outcomes.into_iter().unzip();
        Ok(Some((differing, Changes { views: views.into_iter().flatten().collect(), commit_no: self.commit_no })))
    }
}

/// The drift of one view on its way into the backlog.
struct Settling<'t> {
    tx: &'t Transaction<'t>,
    journals: &'t SharedJournals,
    /// What was pushed since the sight, and refused since the journal began.
    moves: Moves,
    spool: &'t Path,
    epoch: i64,
}

impl Settling<'_> {
    fn run(self, found: Found, changed: &mut Changed, mend: Option<&Terms>) -> Result<(Differing, Option<Change>), Failure> {
        let Self { tx, journals, moves: Moves { pushed, mut parked }, spool, epoch } = self;
        let Found { view, missing, stale } = found;
        let counts = Cell::new(Differing::default());
        let count = |op: Op, row: &Row| {
            let foreign = op == Op::Delete && journals.lock().is_foreign(view.id, row.as_bytes());
            let Differing { missing, stale, foreign: others } = counts.get();
            counts.set(match (op, foreign) {
                (Op::Insert, _) => Differing { missing: missing + 1, ..counts.get() },
                (Op::Delete, false) => Differing { stale: stale + 1, ..counts.get() },
                (Op::Delete, true) => Differing { foreign: others + 1, ..counts.get() },
            });
        };
        let [mut moved_missing, mut moved_stale] = twice(pushed.finish()?, spool)?;
        let mut stored = Set::Fact.of(tx, view.id);
        let mut holds = Holds::of(tx, view.id, Numbers::of(tx, view.id)?.held);
        let each = missing.map(|row| (Op::Insert, row)).chain(stale.map(|row| (Op::Delete, row)));
        // The desired facts still say so but for what moved; a second look at them costs little beside the two comparisons before.
        let mut differences = each.filter_map(|(op, row)| {
            let judged = row.and_then(|row| {
                // A fact whose removal waits, and that is gone: nobody lacks it.
                if op == Op::Delete || !holds.has(&row).map_err(io::Error::other)? {
                    count(op, &row);
                }
                if mend.is_none() {
                    // It still differs, and nobody tries it again.
                    parked.push(row.clone())?;
                }
                let moved = match op {
                    Op::Insert => moved_missing.has(&row),
                    Op::Delete => moved_stale.has(&row),
                };
                let desired = stored.contains(&row).map_err(io::Error::other)?;
                Ok((!moved? && desired == (op == Op::Insert)).then_some((op, row)))
            });
            judged.transpose()
        });
        let Some(terms) = mend else {
            differences.try_for_each(|difference| difference.map(drop))?;
            drop(differences);
            unpark(tx, view.id, parked, spool)?;
            let Differing { stale, foreign, .. } = counts.get();
            if stale + foreign == 0 {
                journals.lock().made_equal(view.id);
            }
            return Ok((counts.get(), None));
        };
        let differences = differences.inspect(|difference| note_removal(journals, view.id, difference));
        let nothing_let_go = Sought::from(ExtentBuilder::new(spool).finish()?);
        let change = correct_one(tx, changed, view.clone(), differences, (terms, nothing_let_go), (epoch, spool))?;
        unpark(tx, view.id, parked, spool)?;
        // What is held is not what it should be, and the next comparison finds it among the desired facts.
        journals.lock().made_equal(view.id);
        Ok((counts.get(), Some(change)))
    }
}

/// What a comparison removes was removed by us.
pub(super) fn note_removal(journals: &SharedJournals, view: ViewId, difference: &io::Result<(Op, Row)>) {
    if let Ok((Op::Delete, row)) = difference {
        journals.lock().removed.add(view, row.as_bytes());
    }
}

/// What was refused of `view` is settled, but for what is `kept`.
fn unpark(tx: &Transaction<'_>, view: ViewId, kept: ExtentBuilder, spool: &Path) -> Result<(), Failure> {
    let mut select = tx.prepare_cached("SELECT row FROM parked WHERE view = ?1 AND op = ?2 AND row >= ?3 ORDER BY row LIMIT 1")?;
    let mut delete = tx.prepare_cached("DELETE FROM parked WHERE view = ?1 AND op = ?2 AND row = ?3")?;
    for (op, mut kept) in [Op::Delete, Op::Insert].into_iter().zip(twice(kept.finish()?, spool)?) {
        let mut from = Vec::new();
        while let Some(row) = select.query_row(params![view.0, op, from], |row| row.get::<_, Vec<u8>>(0)).optional()? {
            if !kept.has(&Row::from_bytes(row.clone())?)? {
                delete.execute(params![view.0, op, row])?;
            }
            // The least that is greater.
            from = [row, vec![0]].concat();
        }
    }
    Ok(())
}

/// What waits to be sent of `view`.
fn waiting(tx: &Transaction<'_>, view: ViewId, spool: &Path) -> Result<ExtentBuilder, Failure> {
    let mut waiting = ExtentBuilder::new(spool);
    for op in [Op::Delete, Op::Insert] {
        outbox::each(tx, view, op, |row| waiting.push(row))?;
        let mut select = tx.prepare_cached("SELECT row FROM backlog WHERE op = ?1 AND view = ?2")?;
        let mut rows = select.query(params![op, view.0])?;
        while let Some(row) = rows.next()? {
            waiting.push(Row::from_bytes(row.get::<_, Vec<u8>>(0)?)?)?;
        }
    }
    Ok(waiting)
}

/// The same rows for two who ask in row order.
fn twice(rows: Extent, spool: &Path) -> io::Result<[Sought; 2]> {
    let mut copies = [ExtentBuilder::new(spool), ExtentBuilder::new(spool)];
    for row in rows {
        let row = row?;
        copies.iter_mut().try_for_each(|copy| copy.push(row.clone()))?;
    }
    let [first, second] = copies;
    Ok([first.finish()?.into(), second.finish()?.into()])
}
