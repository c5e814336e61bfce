//! The backlog: facts in which the fact store is known to differ, without an order between them.
//!
//! Two things make one: a comparison finds differences, the whole of a first load at the worst; and *catch-up* folds an outbox that has
//! become too long into it, which nets what happened to each fact. Entries are keyed by operation and fact, so deletes are found first,
//! however many inserts wait.
//!
//! **What an entry means.** The fact store lacks the fact (insert) or has it (delete), the desired facts of some moment say otherwise, and
//! nothing about this fact was acknowledged since. What the outbox still holds about it is later. So:
//!
//! - an entry may be sent when everything in the outbox has been, or goes in the same batch: then the fact store is as of one commit, but
//!   for what the backlog still holds. It is compared with the desired facts of that very moment all the same, and dropped if they
//!   disagree: a backlog never brings back what a live change removed;
//! - whoever acknowledges an entry of the outbox takes the entry of the same fact out of here.
//!
//! **When two cancel.** An entry of the outbox that is folded onto one of the opposite operation leaves nothing to do, provided that the
//! fact store is as the entry says. It may not be, if the entry was on its way and no answer came. Such entries are *doubted*: what is
//! folded onto them replaces them, which costs a write that may change nothing, and never a revocation. Each entry carries the number of
//! the process that put it here (its epoch), for of an earlier process nobody knows what it had on its way.

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::{
    data::Row,
    store::{
        Failure, Store, StoreError, ViewId,
        facts::Set,
        meta,
        outbox::{self, Lane, OutboxKey, Waiting, slot},
        set_meta,
    },
    target::Op,
};

/// The epoch of an entry in doubt: no process has this number.
pub(super) const DOUBTED: i64 = 0;
/// Where the keys of an operation begin: no view has this number.
const BEGINNING: (i64, Vec<u8>) = (-1, Vec::new());

/// What is known of the backlog without reading it.
#[derive(Debug)]
pub(super) struct Backlog {
    /// By operation, entries.
    counts: [u64; 2],
    /// Up to this commit everything is delivered but for the backlog. Of no meaning while there is none.
    pub(super) floor: u64,
    /// The number of this process.
    epoch: i64,
    /// By operation, after which key the next entries are taken: each has its turn, however many come before it.
    turns: [(i64, Vec<u8>); 2],
}

impl Backlog {
    /// Reads it, and takes a number if there are entries of an earlier process.
    pub(super) fn open(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |key: &str| Ok::<_, rusqlite::Error>(meta(connection, key)?.and_then(|text| text.parse().ok()));
        let of = |op: Op| connection.query_row("SELECT count(*) FROM backlog WHERE op = ?1", [op], |row| row.get(0));
        let counts: [u64; 2] = [of(Op::Delete)?, of(Op::Insert)?];
        let mut epoch = number("epoch")?.unwrap_or(1);
        if counts != [0, 0] {
            epoch += 1;
            set_meta(connection, "epoch", &epoch.to_string())?;
        }
        let floor = number("floor")?.map_or(0, i64::unsigned_abs);
        Ok(Self { counts, floor, epoch, turns: [BEGINNING, BEGINNING] })
    }

    pub(super) fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The number of this process.
    pub(super) fn epoch(&self) -> i64 {
        self.epoch
    }

    /// What a transaction that is committed did to the counts.
    pub(super) fn settle(&mut self, changed: Changed) {
        for (count, by) in self.counts.iter_mut().zip(changed.counts) {
            *count = count.checked_add_signed(by).expect("no more entries go than there are");
        }
        self.floor = changed.floor.unwrap_or(self.floor);
    }
}

/// What a transaction does to the backlog; counted in [`Store`] only when it is committed.
#[derive(Debug, Default)]
pub(super) struct Changed {
    counts: [i64; 2],
    added: bool,
    floor: Option<u64>,
}

impl Changed {
    fn one_more(&mut self, op: Op) {
        self.counts[slot(op)] += 1;
        self.added = true;
    }

    fn less(&mut self, op: Op, entries: usize) {
        self.counts[slot(op)] -= i64::try_from(entries).expect("entries fit into a transaction");
    }

    /// Whether entries were added.
    pub(super) fn grew(&self) -> bool {
        self.added
    }

    /// If the backlog is `fresh`: what is in it is of commits after `floor`.
    pub(super) fn begin(&mut self, tx: &Transaction<'_>, fresh: bool, floor: u64) -> rusqlite::Result<()> {
        if fresh {
            set_meta(tx, "floor", &floor.to_string())?;
            self.floor = Some(floor);
        }
        Ok(())
    }
}

/// The slice of the backlog that goes next.
#[derive(Debug, Default)]
pub struct Turn {
    /// All of one operation: deletes while there are any.
    pub entries: Vec<Waiting>,
    /// Entries that were dropped because the desired facts disagree.
    pub dropped: u64,
}

impl Store {
    /// How many entries the backlog has.
    pub fn backlog_len(&self) -> u64 {
        self.backlog.len()
    }

    /// Whether it has deletes.
    pub fn backlog_deletes(&self) -> bool {
        self.backlog.counts[slot(Op::Delete)] > 0
    }

    /// The next entries, at most `limit`, each of which the desired facts confirm now. Those they do not confirm are left for what the
    /// outbox still says about their facts; if it is empty they are gone.
    pub fn backlog(&mut self, limit: usize) -> Result<Turn, StoreError> {
        let Some(op) = [Op::Delete, Op::Insert].into_iter().find(|op| self.backlog.counts[slot(*op)] > 0) else {
            return Ok(Turn::default());
        };
        let (mut keys, mut to) = (self.keys_after(op, limit)?, BEGINNING);
        if keys.is_empty() {
            // Around: what was put before the last turn's end.
            self.backlog.turns[slot(op)] = BEGINNING;
            keys = self.keys_after(op, limit)?;
        }
        if keys.len() == limit {
            to = keys.last().cloned().unwrap_or(BEGINNING);
        }
        let rows = keys.into_iter().map(|(view, row)| Ok((ViewId(view), Row::from_bytes(row)?)));
        let rows: Vec<(ViewId, Row)> = rows.collect::<std::io::Result<_>>().map_err(|_| self.malformed("backlog entry"))?;
        let mut turn = Turn::default();
        let mut void = Vec::new();
        self.read(|connection| {
            for of_view in rows.chunk_by(|a, b| a.0 == b.0) {
                let mut desired = Set::Fact.of(connection, of_view[0].0);
                for (view, row) in of_view {
                    let confirmed = desired.contains(row)? == (op == Op::Insert);
                    let waiting = Waiting { lane: Lane::Backlog, view: *view, op, row: row.clone() };
                    if confirmed { &mut turn.entries } else { &mut void }.push(waiting);
                }
            }
            Ok(())
        })?;
        self.backlog.turns[slot(op)] = to;
        if !void.is_empty() && self.outbox_len == 0 {
            let changed = self.write(|tx| {
                let mut changed = Changed::default();
                void.iter().try_for_each(|entry| take_out(tx, &mut changed, entry))?;
                Ok(changed)
            })?;
            self.backlog.settle(changed);
            turn.dropped = void.len() as u64;
        }
        Ok(turn)
    }

    fn keys_after(&self, op: Op, limit: usize) -> Result<Vec<(i64, Vec<u8>)>, StoreError> {
        let (view, row) = &self.backlog.turns[slot(op)];
        let sql = "SELECT view, row FROM backlog WHERE op = ?1 AND (view, row) > (?2, ?3) ORDER BY view, row LIMIT ?4";
        self.read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            select.query_map(params![op, view, row, limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Entries of the backlog were on their way and nobody knows whether they arrived. They are the next ones again, so that in an outage
    /// not ever more of them come into doubt.
    pub fn doubt(&mut self, entries: &[Waiting]) -> Result<(), StoreError> {
        self.backlog.turns = [BEGINNING, BEGINNING];
        self.write(|tx| {
            let mut update = tx.prepare_cached("UPDATE backlog SET epoch = ?4 WHERE op = ?1 AND view = ?2 AND row = ?3")?;
            for Waiting { view, op, row, .. } in entries.iter().filter(|entry| entry.lane == Lane::Backlog) {
                update.execute(params![op, view.0, row.as_bytes(), DOUBTED])?;
            }
            Ok(())
        })
    }

    /// Folds the first entries of the outbox into the backlog, at most `limit`; returns how many. Of those up to `tried` nobody knows
    /// whether they arrived.
    pub fn fold(&mut self, tried: Option<OutboxKey>, limit: usize) -> Result<u64, StoreError> {
        let entries = self.outbox(limit)?;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(0) };
        let (floor, fresh) = (first.key.commit_no - 1, self.backlog.len() == 0);
        let (counts, epoch) = (self.backlog.counts, self.backlog.epoch);
        let (gone, changed) = self.write(|tx| {
            let mut changed = Changed::default();
            changed.begin(tx, fresh, floor)?;
            for entry in &entries {
                let tried = tried.is_some_and(|tried| entry.key <= tried);
                fold_one(tx, &mut changed, counts, (entry.view, entry.op, &entry.row), (epoch, tried))?;
            }
            Ok((outbox::remove_up_to(tx, last.key)?, changed))
        })?;
        self.outbox_len -= gone;
        self.backlog.settle(changed);
        Ok(gone)
    }

    /// Everything up to this commit is delivered.
    pub fn delivered(&self) -> Result<u64, StoreError> {
        // Without the entries: a block of them is some sixteen pages.
        let sql = "SELECT commit_no FROM outbox ORDER BY commit_no, op, seq LIMIT 1";
        let first: Option<u64> = self.read(|connection| connection.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional())?;
        let outbox = first.map_or(self.commit_no, |first| first - 1);
        Ok(if self.backlog.len() == 0 { outbox } else { outbox.min(self.backlog.floor) })
    }
}

/// Adds a difference that a comparison found, when nothing was on its way.
pub(super) fn add(tx: &Transaction<'_>, changed: &mut Changed, (view, op, row): (ViewId, Op, &Row), epoch: i64) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO backlog VALUES (?1, ?2, ?3, ?4)")?.execute(params![op, view.0, row.as_bytes(), epoch])?;
    changed.one_more(op);
    Ok(())
}

/// Folds one entry of the outbox into what has `counts` entries, but for what `changed`.
fn fold_one(
    tx: &Transaction<'_>,
    changed: &mut Changed,
    counts: [u64; 2],
    (view, op, row): (ViewId, Op, &Row),
    (epoch, tried): (i64, bool),
) -> rusqlite::Result<()> {
    let before = opposite(op);
    // In a backlog of one operation, a large commit's for instance, there is nothing to look for.
    let any = counts[slot(before)].checked_add_signed(changed.counts[slot(before)]) != Some(0);
    let mut undone: Option<i64> = None;
    if any {
        let mut remove = tx.prepare_cached("DELETE FROM backlog WHERE op = ?1 AND view = ?2 AND row = ?3 RETURNING epoch")?;
        undone = remove.query_row(params![before, view.0, row.as_bytes()], |row| row.get(0)).optional()?;
        changed.less(before, usize::from(undone.is_some()));
    }
    if undone == Some(epoch) {
        // The fact store is as that entry says, whatever became of this one.
        return Ok(());
    }
    let epoch = if undone.is_none() && !tried { epoch } else { DOUBTED };
    let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO backlog VALUES (?1, ?2, ?3, ?4)")?;
    if insert.execute(params![op, view.0, row.as_bytes(), epoch])? == 1 {
        changed.one_more(op);
    } else {
        let mut doubt = tx.prepare_cached("UPDATE backlog SET epoch = ?4 WHERE op = ?1 AND view = ?2 AND row = ?3")?;
        doubt.execute(params![op, view.0, row.as_bytes(), DOUBTED])?;
    }
    Ok(())
}

/// Takes an entry out: it has arrived, is refused, or no longer holds.
pub(super) fn take_out(tx: &Transaction<'_>, changed: &mut Changed, Waiting { view, op, row, .. }: &Waiting) -> Result<(), Failure> {
    let mut remove = tx.prepare_cached("DELETE FROM backlog WHERE op = ?1 AND view = ?2 AND row = ?3")?;
    changed.less(*op, remove.execute(params![op, view.0, row.as_bytes()])?);
    Ok(())
}

/// Takes out what the backlog has about the fact of an entry of the outbox, which has arrived and is later.
pub(super) fn supersede(tx: &Transaction<'_>, changed: &mut Changed, entry: &Waiting) -> Result<(), Failure> {
    take_out(tx, changed, entry)?;
    take_out(tx, changed, &Waiting { op: opposite(entry.op), ..entry.clone() })
}

/// Drops what waits of `view`.
pub(super) fn forget(tx: &Transaction<'_>, changed: &mut Changed, view: ViewId) -> rusqlite::Result<()> {
    for op in [Op::Delete, Op::Insert] {
        changed.less(op, tx.prepare_cached("DELETE FROM backlog WHERE op = ?1 AND view = ?2")?.execute(params![op, view.0])?);
    }
    Ok(())
}

fn opposite(op: Op) -> Op {
    match op {
        Op::Delete => Op::Insert,
        Op::Insert => Op::Delete,
    }
}
