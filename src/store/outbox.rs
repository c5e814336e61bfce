//! The outbox: fact changes that are committed here and not yet acknowledged by the fact store.
//!
//! Entries leave in key order, `(commit_no, op, seq)`: commit by commit, and the deletes of a commit before its inserts, so
//! a transaction too large for one batch never widens access in between. An entry goes only when the fact store has
//! acknowledged it, together with the token it gave for it.

use rusqlite::{Transaction, params};

use crate::{
    data::Row,
    store::{Store, StoreError, ViewId, set_meta},
    target::{Offset, Op},
};

/// An entry's place in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutboxKey {
    /// The commit it belongs to.
    pub commit_no: u64,
    op: i64,
    seq: u64,
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

/// Numbers the entries of one commit.
pub(super) struct Writer {
    commit_no: u64,
    seq: u64,
}

impl Writer {
    pub(super) fn new(commit_no: u64) -> Self {
        Self { commit_no, seq: 0 }
    }

    /// Entries so far.
    pub(super) fn len(&self) -> u64 {
        self.seq
    }

    /// Goes on after the first `len` entries; those beyond were rolled back.
    pub(super) fn take_back(&mut self, len: u64) {
        self.seq = len;
    }

    pub(super) fn push(&mut self, tx: &Transaction<'_>, view: ViewId, op: Op, row: &Row) -> rusqlite::Result<()> {
        tx.prepare_cached("INSERT INTO outbox VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            self.commit_no,
            code(op),
            self.seq,
            view.0,
            row.as_bytes()
        ])?;
        self.seq += 1;
        Ok(())
    }
}

impl Store {
    /// The first `limit` entries.
    pub fn outbox(&self, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        let rows = self.read(|connection| {
            connection
                .prepare_cached("SELECT commit_no, op, seq, view, row FROM outbox ORDER BY commit_no, op, seq LIMIT ?1")?
                .query_map([limit], |row| {
                    Ok((OutboxKey { commit_no: row.get(0)?, op: row.get(1)?, seq: row.get(2)? }, row.get(3)?, row.get::<_, Vec<u8>>(4)?))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(key, view, row)| Ok(OutboxEntry { key, view: ViewId(view), op: op(key.op), row: Row::from_bytes(row)? }))
            .collect()
    }

    /// How many entries wait.
    pub fn outbox_len(&self) -> u64 {
        self.outbox_len
    }

    /// Whether entries of one of `views` wait.
    pub fn outbox_holds(&self, views: &[ViewId]) -> Result<bool, StoreError> {
        let ids = serde_json::to_string(&views.iter().map(|view| view.0).collect::<Vec<_>>()).expect("numbers are JSON");
        self.read(|connection| {
            connection
                .query_row("SELECT EXISTS (SELECT 1 FROM outbox WHERE view IN (SELECT value FROM json_each(?1)))", [ids], |row| row.get(0))
        })
    }

    /// The fact store has acknowledged everything up to `last`; keeps its token. Returns how many entries went.
    pub fn acknowledge(&mut self, last: OutboxKey, offset: &Offset) -> Result<u64, StoreError> {
        let gone = self.write(|tx| {
            let gone = remove_up_to(tx, last)?;
            set_meta(tx, "offset", &offset.0)?;
            Ok(gone)
        })?;
        self.outbox_len -= gone;
        Ok(gone)
    }

    /// Takes the first entry, which the fact store refuses, out of the way.
    pub fn park(&mut self, entry: &OutboxEntry, reason: &str) -> Result<(), StoreError> {
        let gone = self.write(|tx| {
            tx.execute(
                "INSERT INTO parked VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET reason = excluded.reason",
                params![entry.view.0, code(entry.op), entry.row.as_bytes(), reason],
            )?;
            Ok(remove_up_to(tx, entry.key)?)
        })?;
        self.outbox_len -= gone;
        Ok(())
    }

    /// How many changes the fact store refused.
    pub fn parked_len(&self) -> Result<u64, StoreError> {
        self.read(|connection| connection.query_row("SELECT count(*) FROM parked", [], |row| row.get(0)))
    }

    /// What the fact store refused, at most `limit`.
    pub fn parked(&self, limit: usize) -> Result<Vec<Parked>, StoreError> {
        let rows = self.read(|connection| {
            connection
                .prepare("SELECT view, op, row, reason FROM parked ORDER BY view, op, row LIMIT ?1")?
                .query_map([limit], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(view, code, row, reason)| Ok(Parked { view: ViewId(view), op: op(code), row: Row::from_bytes(row)?, reason }))
            .collect()
    }
}

fn remove_up_to(tx: &Transaction<'_>, last: OutboxKey) -> rusqlite::Result<u64> {
    let gone = tx.execute("DELETE FROM outbox WHERE (commit_no, op, seq) <= (?1, ?2, ?3)", params![last.commit_no, last.op, last.seq])?;
    Ok(gone as u64)
}

/// On disk a delete is 0 and an insert 1: the order in which a commit's entries leave.
fn code(op: Op) -> i64 {
    match op {
        Op::Delete => 0,
        Op::Insert => 1,
    }
}

fn op(code: i64) -> Op {
    if code == 0 { Op::Delete } else { Op::Insert }
}
