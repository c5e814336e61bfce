//! The outbox: fact changes that are committed here and not yet acknowledged by the fact store.
//!
//! Entries leave in key order, `(commit_no, op, seq, index)`: commit by commit, and the deletes of a commit before its inserts, so
//! a transaction too large for one batch never widens access in between. An entry goes only when the fact store has
//! acknowledged it, together with the token it gave for it.
//!
//! They are stored as blocks (`block.rs`), each of one view and one operation, `seq` being the block's number within its commit. What
//! goes is always the start of the order, so of one block at most a part is gone: `sent` says how many of its entries. SQLite overwrites
//! a row that keeps its length in place, so the pages with the entries are written again for it twice at most: when the number of
//! those gone takes another byte.
//!
//! **Nothing that was pushed is lost.** [`Writer`] keeps a block open for each operation until an entry no longer belongs into it. Who
//! pushes need not know: a savepoint first writes what is open, so that it belongs to whoever pushed it, and the only way to learn how
//! many entries a transaction has, without which it gets no commit number, is [`Writer::finish`], which writes the rest.

use std::io;

use rusqlite::{
    Connection, OptionalExtension, Transaction, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};

use crate::{
    data::Row,
    store::{
        Failure, Store, StoreError, ViewId,
        backlog::{self, Changed},
        block::{self, Block, Limits},
        journal::SharedJournals,
        set_meta,
    },
    target::{Offset, Op},
};

/// An entry's place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutboxKey {
    /// The commit it belongs to.
    pub commit_no: u64,
    op: i64,
    seq: u64,
    index: u64,
}

/// One change to be sent.
#[derive(Debug, Clone)]
pub struct OutboxEntry {
    /// Where it stands.
    pub key: OutboxKey,
    /// Its view.
    pub view: ViewId,
    /// What happens.
    pub op: Op,
    /// To which fact.
    pub row: Row,
}

/// Where a change waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// In the outbox, at this place of its order.
    Live(OutboxKey),
    /// In the backlog, which has no order (`backlog.rs`).
    Backlog,
}

/// A change that waits to be acknowledged, wherever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Where.
    pub lane: Lane,
    /// Its view.
    pub view: ViewId,
    /// What happens.
    pub op: Op,
    /// To which fact.
    pub row: Row,
}

impl From<OutboxEntry> for Waiting {
    fn from(OutboxEntry { key, view, op, row }: OutboxEntry) -> Self {
        Self { lane: Lane::Live(key), view, op, row }
    }
}

/// A change the fact store refused.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Its view.
    pub view: ViewId,
    /// What should have happened.
    pub op: Op,
    /// To which fact.
    pub row: Row,
    /// The fact store's words.
    pub reason: String,
}

/// What an acknowledgement took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Entries of the outbox.
    pub outbox: u64,
    /// Changes that had been refused.
    pub unparked: u64,
}

/// Gathers the entries of one commit into blocks and numbers them.
pub(super) struct Writer {
    commit_no: u64,
    limits: Limits,
    /// Blocks written.
    seq: u64,
    /// Entries in them.
    written: u64,
    /// By operation, what is not written yet.
    open: [Option<Block>; 2],
    /// Who wants to know what is on its way.
    journals: SharedJournals,
}

/// Where a [`Writer`] was at a savepoint.
pub(super) struct Mark {
    seq: u64,
    written: u64,
}

impl Writer {
    pub(super) fn new(commit_no: u64, limits: Limits, journals: SharedJournals) -> Self {
        Self { commit_no, limits, seq: 0, written: 0, open: [None, None], journals }
    }

    pub(super) fn push(&mut self, tx: &Transaction<'_>, view: ViewId, op: Op, row: &[u8]) -> rusqlite::Result<()> {
        self.journals.lock().push(view, op, row);
        let goes_on = |block: &Block| block.view == view && block.takes(row, self.limits);
        if !self.open[slot(op)].as_ref().is_some_and(goes_on) {
            self.close(tx, op)?;
        }
        self.open[slot(op)].get_or_insert_with(|| Block::new(view)).push(row);
        Ok(())
    }

    /// Writes what is open of `op`.
    fn close(&mut self, tx: &Transaction<'_>, op: Op) -> rusqlite::Result<()> {
        let Some(Block { view, count, bytes }) = self.open[slot(op)].take() else { return Ok(()) };
        let mut insert = tx.prepare_cached("INSERT INTO outbox VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6)")?;
        insert.execute(params![self.commit_no, op, self.seq, view.0, count, bytes])?;
        self.seq += 1;
        self.written += count;
        Ok(())
    }

    /// Writes what is open and tells how many entries there are.
    pub(super) fn finish(mut self, tx: &Transaction<'_>) -> rusqlite::Result<u64> {
        [Op::Delete, Op::Insert].into_iter().try_for_each(|op| self.close(tx, op))?;
        Ok(self.written)
    }

    /// Begins a part of the transaction that [`Writer::roll_back`] can undo.
    pub(super) fn savepoint(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<Mark> {
        // What others pushed must not go with it.
        [Op::Delete, Op::Insert].into_iter().try_for_each(|op| self.close(tx, op))?;
        tx.prepare_cached("SAVEPOINT part")?.execute([])?;
        Ok(Mark { seq: self.seq, written: self.written })
    }

    /// Undoes everything since `mark`, in the file and here.
    pub(super) fn roll_back(&mut self, tx: &Transaction<'_>, mark: Mark) -> rusqlite::Result<()> {
        self.open = [None, None];
        (self.seq, self.written) = (mark.seq, mark.written);
        tx.prepare_cached("ROLLBACK TO part")?.execute([])?;
        self.keep(tx, mark)
    }

    /// Makes what came after the mark a part of the transaction like any other.
    pub(super) fn keep(&mut self, tx: &Transaction<'_>, Mark { .. }: Mark) -> rusqlite::Result<()> {
        tx.prepare_cached("RELEASE part")?.execute([])?;
        Ok(())
    }
}

/// A block as stored, of which something is to be sent.
struct Stored {
    commit_no: u64,
    op: Op,
    seq: u64,
    view: ViewId,
    count: u64,
    sent: u64,
    bytes: Vec<u8>,
}

impl Stored {
    /// What is to be sent of it, at most `limit`; `None` if it is none of ours.
    fn entries(&self, limit: usize) -> Option<Vec<OutboxEntry>> {
        let &Self { commit_no, op, seq, view, count, sent, ref bytes } = self;
        // A block of which everything is gone would be read for ever and never go.
        let rows = block::rows(bytes, count).filter(|_| sent < count)?;
        let entry = |(index, row): (u64, &[u8])| {
            let key = OutboxKey { commit_no, op: code(op), seq, index };
            Some(OutboxEntry { key, view, op, row: Row::from_bytes(row).ok()? })
        };
        (0..).zip(rows).skip(usize::try_from(sent).ok()?).take(limit).map(entry).collect()
    }
}

impl Store {
    /// The first `limit` entries.
    pub fn outbox(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        let mut entries = Vec::new();
        for block in self.blocks(limit)? {
            entries.extend(block.entries(limit - entries.len()).ok_or_else(|| self.malformed("outbox block"))?);
        }
        Ok(entries)
    }

    /// The first blocks, as many as `limit` entries need.
    fn blocks(&self, limit: usize) -> Result<Vec<Stored>, StoreError> {
        let sql = "SELECT commit_no, op, seq, view, count, sent, entries FROM outbox ORDER BY commit_no, op, seq";
        self.read(|connection| {
            let mut select = connection.prepare_cached(sql)?;
            let mut rows = select.query([])?;
            let (mut blocks, mut waiting) = (Vec::new(), 0);
            while waiting < limit as u64
                && let Some(row) = rows.next()?
            {
                let block = Stored {
                    commit_no: row.get(0)?,
                    op: row.get(1)?,
                    seq: row.get(2)?,
                    view: ViewId(row.get(3)?),
                    count: row.get(4)?,
                    sent: row.get(5)?,
                    bytes: row.get(6)?,
                };
                waiting += block.count.saturating_sub(block.sent);
                blocks.push(block);
            }
            Ok(blocks)
        })
    }

    /// How many entries wait.
    pub fn outbox_len(&self) -> u64 {
        self.outbox_len
    }

    /// Whether something of `views` waits, in the outbox or in the backlog.
    pub fn outbox_holds(&self, views: &[ViewId]) -> Result<bool, StoreError> {
        let ids = serde_json::to_string(&views.iter().map(|view| view.0).collect::<Vec<_>>()).expect("numbers are JSON");
        let sql = "SELECT EXISTS (SELECT 1 FROM outbox WHERE view IN (SELECT value FROM json_each(?1)))
                       OR EXISTS (SELECT 1 FROM json_each(?1) JOIN backlog ON op IN (0, 1) AND view = value)";
        self.read(|connection| connection.query_row(sql, [ids], |row| row.get(0)))
    }

    /// The fact store has acknowledged `entries`: of the outbox the first ones, in their order. Keeps its token. What was
    /// parked of these facts is settled.
    ///
    /// On the disk before the next batch is sent: if a power failure brought back two batches, sending the first again would undo for a
    /// moment what the second revoked.
    pub fn acknowledge(&mut self, entries: &[Waiting], offset: &Offset) -> Result<Gone, StoreError> {
        let superseding = self.backlog.len() > 0;
        let (gone, unparked, changed) = self.write(|tx| {
            let (mut gone, mut changed) = (0, Changed::default());
            if let Some(last) = last_live(entries) {
                gone = remove_up_to(tx, last)?;
            }
            for entry in entries.iter().filter(|_| superseding) {
                match entry.lane {
                    Lane::Live(_) => backlog::supersede(tx, &mut changed, entry)?,
                    Lane::Backlog => backlog::take_out(tx, &mut changed, entry)?,
                }
            }
            let unparked = unpark(tx, entries)?;
            set_meta(tx, "offset", &offset.0)?;
            Ok((gone, unparked, changed))
        })?;
        self.outbox_len -= gone;
        self.backlog.settle(changed);
        Ok(Gone { outbox: gone, unparked })
    }

    /// Takes an entry, which the fact store refuses, out of the way; of the outbox it is the first one.
    pub fn park(&mut self, entry: &Waiting, reason: &str) -> Result<(), StoreError> {
        let (gone, changed) = self.write(|tx| {
            let mut changed = Changed::default();
            tx.execute(
                "INSERT INTO parked VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET reason = excluded.reason",
                params![entry.view.0, entry.op, entry.row.as_bytes(), reason],
            )?;
            let gone = match entry.lane {
                Lane::Live(key) => {
                    backlog::supersede(tx, &mut changed, entry)?;
                    remove_up_to(tx, key)?
                }
                Lane::Backlog => {
                    backlog::take_out(tx, &mut changed, entry)?;
                    0
                }
            };
            Ok((gone, changed))
        })?;
        self.outbox_len -= gone;
        self.backlog.settle(changed);
        Ok(())
    }

    /// What the fact store refused, at most `limit`.
    pub fn parked(&self, limit: usize) -> Result<Vec<Parked>, StoreError> {
        let rows = self.read(|connection| {
            connection
                .prepare("SELECT view, op, row, reason FROM parked ORDER BY view, op, row LIMIT ?1")?
                .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(view, op, row, reason)| Ok(Parked { view: ViewId(view), op, row: Row::from_bytes(row)?, reason })).collect()
    }
}

/// The last of `entries` that is of the outbox.
fn last_live(entries: &[Waiting]) -> Option<OutboxKey> {
    entries.iter().rev().find_map(|entry| match entry.lane {
        Lane::Live(key) => Some(key),
        Lane::Backlog => None,
    })
}

/// What happened to these facts since makes what was refused about them settled.
fn unpark(tx: &Transaction<'_>, entries: &[Waiting]) -> rusqlite::Result<u64> {
    if !tx.prepare_cached("SELECT 1 FROM parked LIMIT 1")?.exists([])? {
        return Ok(0);
    }
    let mut delete = tx.prepare_cached("DELETE FROM parked WHERE view = ?1 AND row = ?2")?;
    let settled = entries.iter().map(|entry| Ok(delete.execute(params![entry.view.0, entry.row.as_bytes()])? as u64));
    settled.sum()
}

/// Entries that wait, counted.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT coalesce(sum(count - sent), 0) FROM outbox", [], |row| row.get(0))
}

/// Calls `each` with every row of `view` that waits with `op`.
pub(super) fn each(tx: &Transaction<'_>, view: ViewId, op: Op, mut each: impl FnMut(Row) -> io::Result<()>) -> Result<(), Failure> {
    let mut select = tx.prepare("SELECT count, sent, entries FROM outbox WHERE view = ?1 AND op = ?2")?;
    let mut blocks = select.query(params![view.0, op])?;
    while let Some(block) = blocks.next()? {
        let (count, sent, bytes): (u64, usize, Vec<u8>) = (block.get(0)?, block.get(1)?, block.get(2)?);
        for row in block::rows(&bytes, count).ok_or(Failure::Malformed("outbox block"))?.into_iter().skip(sent) {
            each(Row::from_bytes(row)?)?;
        }
    }
    Ok(())
}

/// Drops what waits of `view`; returns how many entries.
pub(super) fn forget(tx: &Transaction<'_>, view: ViewId) -> rusqlite::Result<u64> {
    let gone = tx.query_row("SELECT coalesce(sum(count - sent), 0) FROM outbox WHERE view = ?1", [view.0], |row| row.get(0))?;
    tx.execute("DELETE FROM outbox WHERE view = ?1", [view.0])?;
    Ok(gone)
}

/// Everything up to `last` goes, and is counted. Its block may be gone already: a snapshot takes a view's blocks out while they are on
/// their way.
pub(super) fn remove_up_to(tx: &Transaction<'_>, last: OutboxKey) -> rusqlite::Result<u64> {
    let OutboxKey { commit_no, op, seq, index } = last;
    let block = params![commit_no, op, seq];
    let mut select = tx.prepare_cached("SELECT count, sent FROM outbox WHERE commit_no = ?1 AND op = ?2 AND seq = ?3")?;
    let stored: Option<(u64, u64)> = select.query_row(block, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let sent = index + 1;
    let (of_last, to) = match stored {
        Some((count, before)) if sent < count => {
            let mut update = tx.prepare_cached("UPDATE outbox SET sent = max(sent, ?4) WHERE commit_no = ?1 AND op = ?2 AND seq = ?3")?;
            update.execute(params![commit_no, op, seq, sent])?;
            (sent.saturating_sub(before), seq.checked_sub(1))
        }
        Some(_) | None => (0, Some(seq)),
    };
    // Before the first block of an operation there are only those of the other one and of earlier commits.
    let to = to.map_or(-1, |seq| i64::try_from(seq).unwrap_or(i64::MAX));
    let mut sum = tx.prepare_cached("SELECT coalesce(sum(count - sent), 0) FROM outbox WHERE (commit_no, op, seq) <= (?1, ?2, ?3)")?;
    let whole: u64 = sum.query_row(params![commit_no, op, to], |row| row.get(0))?;
    tx.prepare_cached("DELETE FROM outbox WHERE (commit_no, op, seq) <= (?1, ?2, ?3)")?.execute(params![commit_no, op, to])?;
    Ok(whole + of_last)
}

/// Makes blocks of the entries that layout 2 kept one by one, in their order.
pub(super) fn gather(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let mut select = tx.prepare("SELECT commit_no, op, view, row FROM outbox_entries ORDER BY commit_no, op, seq")?;
    let mut rows = select.query([])?;
    let mut commit: Option<Writer> = None;
    while let Some(row) = rows.next()? {
        let commit_no = row.get(0)?;
        if let Some(before) = commit.take_if(|writer| writer.commit_no != commit_no) {
            before.finish(tx)?;
        }
        let writer = commit.get_or_insert_with(|| Writer::new(commit_no, block::LIMITS, SharedJournals::default()));
        writer.push(tx, ViewId(row.get(2)?), row.get(1)?, row.get_ref(3)?.as_blob()?)?;
    }
    if let Some(last) = commit {
        last.finish(tx)?;
    }
    Ok(())
}

/// On disk a delete is 0 and an insert 1: the order in which a commit's entries leave.
fn code(op: Op) -> i64 {
    match op {
        Op::Delete => 0,
        Op::Insert => 1,
    }
}

/// Where something is kept for `op` that is kept for each.
pub(super) fn slot(op: Op) -> usize {
    match op {
        Op::Delete => 0,
        Op::Insert => 1,
    }
}

impl ToSql for Op {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(code(*self).into())
    }
}

impl FromSql for Op {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_i64()? {
            0 => Ok(Self::Delete),
            1 => Ok(Self::Insert),
            other => Err(FromSqlError::OutOfRange(other)),
        }
    }
}
