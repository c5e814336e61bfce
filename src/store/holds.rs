//! Held removals: facts that no query has, and whose removal waits for a person.
//!
//! What one judgement holds ([`Guard`]) is a hold, with a number that is never given out again. Its facts stay desired, so nothing sends
//! their removal and no comparison takes them for stale. A hold ends, wholly or fact by fact, in one of these ways:
//!
//! - the query has the fact again: it was never taken away;
//! - a comparison finds that the fact store no longer has it: there is nothing left to remove;
//! - [`Store::release`]: its facts are desired no longer, and their removals are the next commit that is sent;
//! - [`Store::forget_hold`]: its facts are desired no longer, and nothing is sent. They stay in the fact store until a comparison finds
//!   them there, whose removals are judged again: what is forgotten is the hold, never a revocation;
//! - a snapshot with `--allow-removals`, which is a release of everything.
//!
//! Each is one transaction: after a kill the hold is there with all of its facts, or it is gone and what it asks for is in the outbox.
//! Whoever comes second finds nothing under the number: of two who release at once one does, and a fact that the source has brought
//! back before is in no hold, while one that it brings back later is inserted after its removal.
//!
//! A fact is in one hold at most, so holds are few where limits are sensible. Where they are not (`max_removals` of nothing, and every
//! revocation is a hold of its own), the later ones of a view join its last one from [`MOST_HOLDS`] on.

use std::{collections::BTreeMap, fmt, io, path::Path, str::FromStr};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row as SqlRow, Transaction, params};
use serde::Serialize;

use crate::{
    config::MaxRemovals,
    data::{ExtentBuilder, Row},
    store::{
        Change, Changes, Failure, Store, StoreError, ViewId,
        facts::{Rows, Set, reader, rows},
        outbox,
        state::prepared,
    },
    target::Op,
    view::{Cause, Guard, Occasion, Recent, TOGETHER_SECONDS, diff},
};

/// Holds of a view: more than a person looks through, and little enough for a status that is polled.
const MOST_HOLDS: u64 = 100;

/// Facts of a hold that are read at a time while it ends.
const PAGE_ROWS: usize = 4096;

/// The number of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct HoldId(i64);

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for HoldId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A hold as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its number.
    pub id: HoldId,
    /// Its view.
    pub view: ViewId,
    /// The view's signature.
    pub signature: String,
    /// The view's source.
    pub source: String,
    /// Why it holds.
    pub cause: Cause,
    /// Removals that wait in it.
    pub removals: u64,
    /// Out of how many facts they were judged, when the first of them was.
    pub facts: u64,
    /// When that was, in seconds since 1970; not known of holds of earlier releases.
    pub since: Option<u64>,
    /// Where the source stood then.
    pub position: Option<String>,
    /// The limits then.
    pub limits: Option<MaxRemovals>,
}

/// On what terms a view's changes are judged.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) guard: Guard,
    /// Seconds since 1970.
    pub(super) now: u64,
    /// Where the source stands.
    pub(super) position: Option<String>,
    pub(super) occasion: Occasion,
}

/// What is counted of a view for the guard.
#[derive(Debug, Clone)]
pub(super) struct Numbers {
    /// Desired facts, those that are held among them.
    pub(super) facts: u64,
    pub(super) held: u64,
    pub(super) recent: Recent,
}

impl Numbers {
    pub(super) fn of(tx: &Connection, view: ViewId) -> Result<Self, Failure> {
        let mut select = tx.prepare_cached("SELECT facts, held, recent FROM view WHERE id = ?1")?;
        let (facts, held, recent): (_, _, String) = select.query_row([view.0], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(Self { facts, held, recent: recent_from(&recent)? })
    }
}

pub(super) fn recent_from(text: &str) -> Result<Recent, Failure> {
    serde_json::from_str(text).map_err(|_| Failure::Malformed("count of recent facts"))
}

pub(super) fn recent_to(recent: &Recent) -> String {
    serde_json::to_string(recent).expect("a list of numbers is JSON")
}

/// The held facts of a view, within a transaction that changes them.
pub(super) struct Holds<'t> {
    tx: &'t Connection,
    view: ViewId,
    held: u64,
    /// Of each hold, how many of its facts are held no longer.
    ended: BTreeMap<i64, u64>,
    /// The hold that takes more, and how many it has taken.
    open: Option<(i64, u64)>,
    has: Option<CachedStatement<'t>>,
    end: Option<CachedStatement<'t>>,
    add: Option<CachedStatement<'t>>,
}

impl<'t> Holds<'t> {
    /// Those of `view`, which are `held`.
    pub(super) fn of(tx: &'t Connection, view: ViewId, held: u64) -> Self {
        Self { tx, view, held, ended: BTreeMap::new(), open: None, has: None, end: None, add: None }
    }

    /// How many are held.
    pub(super) fn len(&self) -> u64 {
        self.held
    }

    /// Whether the removal of `row` waits.
    pub(super) fn has(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM held WHERE view = ?1 AND row = ?2";
        Ok(self.held > 0 && prepared(&mut self.has, self.tx, sql)?.exists(params![self.view.0, row.as_bytes()])?)
    }

    /// The removal of `row` waits no longer; `false` if it did not.
    pub(super) fn end(&mut self, row: &Row) -> rusqlite::Result<bool> {
        if self.held == 0 {
            return Ok(false);
        }
        let sql = "DELETE FROM held WHERE view = ?1 AND row = ?2 RETURNING hold";
        let mut delete = prepared(&mut self.end, self.tx, sql)?.query(params![self.view.0, row.as_bytes()])?;
        let Some(hold) = delete.next()?.map(|row| row.get(0)).transpose()? else { return Ok(false) };
        *self.ended.entry(hold).or_default() += 1;
        self.held -= 1;
        Ok(true)
    }

    /// What [`Holds::add`] adds from here on waits for `cause`, judged out of `facts`; the hold, if it is a new one.
    pub(super) fn open(&mut self, cause: Cause, facts: u64, terms: &Terms) -> rusqlite::Result<Option<HoldId>> {
        let joined = self.joined(cause, terms.now)?;
        let id = match joined {
            Some(id) => id,
            None => {
                let limits = terms.guard.limits();
                let sql = "INSERT INTO hold (view, cause, removals, facts, since, last, position, most, percent)
                           VALUES (?1, ?2, 0, ?3, ?4, ?4, ?5, ?6, ?7)";
                let (most, percent) = (limits.map(|limits| limits.count.cast_signed()), limits.map(|limits| limits.percent));
                self.tx.prepare_cached(sql)?.insert(params![self.view.0, cause.name(), facts, terms.now, terms.position, most, percent])?
            }
        };
        self.tx.prepare_cached("UPDATE hold SET last = ?2 WHERE id = ?1")?.execute(params![id, terms.now])?;
        self.open = Some((id, 0));
        Ok(joined.is_none().then_some(HoldId(id)))
    }

    /// The hold that goes on: a flood is one, however many commits it takes.
    fn joined(&self, cause: Cause, now: u64) -> rusqlite::Result<Option<i64>> {
        let sql = "SELECT count(*), max(id), max(iif(cause = ?2 AND last >= ?3, id, NULL)) FROM hold WHERE view = ?1";
        let since = now.saturating_sub(TOGETHER_SECONDS);
        let mut select = self.tx.prepare_cached(sql)?;
        let (count, last, series): (u64, Option<i64>, Option<i64>) =
            select.query_row(params![self.view.0, Cause::Series.name(), since], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let goes_on = series.filter(|_| cause == Cause::Series);
        Ok(goes_on.or_else(|| last.filter(|_| count >= MOST_HOLDS)))
    }

    /// The removal of `row` waits.
    pub(super) fn add(&mut self, row: &Row) -> rusqlite::Result<()> {
        let (hold, added) = self.open.as_mut().expect("a hold is opened before something is put into it");
        let sql = "INSERT INTO held VALUES (?1, ?2, ?3)";
        prepared(&mut self.add, self.tx, sql)?.execute(params![self.view.0, row.as_bytes(), *hold])?;
        *added += 1;
        self.held += 1;
        Ok(())
    }

    /// Writes down how many there are of each hold, and returns how many of all.
    pub(super) fn finish(self) -> rusqlite::Result<u64> {
        let added = self.open.into_iter().map(|(hold, added)| (hold, added.cast_signed()));
        let ended = self.ended.into_iter().map(|(hold, ended)| (hold, -ended.cast_signed()));
        for (hold, by) in ended.chain(added) {
            self.tx.prepare_cached("UPDATE hold SET removals = removals + ?2 WHERE id = ?1")?.execute(params![hold, by])?;
            self.tx.prepare_cached("DELETE FROM hold WHERE id = ?1 AND removals = 0")?.execute([hold])?;
        }
        Ok(self.held)
    }
}

/// The held facts of a view while a new result is compared with what is stored.
pub(super) struct Staying<'t> {
    holds: Holds<'t>,
    rows: ExtentBuilder,
    /// Whether nobody has let go of them.
    firm: bool,
}

impl<'t> Staying<'t> {
    pub(super) fn of(holds: Holds<'t>, guard: Guard, spool: &Path) -> Self {
        Self { holds, rows: ExtentBuilder::new(spool), firm: guard != Guard::Off }
    }

    /// Whether `row`, which the new result lacks, stays because it was held before.
    pub(super) fn keeps(&mut self, row: &Row) -> Result<bool, Failure> {
        if !self.firm || !self.holds.has(row)? {
            return Ok(false);
        }
        self.rows.push(row.clone())?;
        Ok(true)
    }

    /// Ends the holds of all others: the new result has them, or they were let go.
    pub(super) fn finish(self, path: &Path) -> Result<Holds<'t>, Failure> {
        let Self { mut holds, rows: staying, .. } = self;
        if holds.held > 0 {
            for change in diff(staying.finish()?, rows(reader(path)?, Rows::Held, holds.view)) {
                let (op, row) = change?;
                if op == Op::Delete {
                    holds.end(&row)?;
                }
            }
        }
        Ok(holds)
    }
}

/// What becomes of a hold's removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Sent,
    Forgotten,
}

impl Store {
    /// All holds, oldest first, also those of sources that the configuration no longer has.
    pub fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        let sql = "SELECT hold.id, view.id, signature, source, cause, removals, hold.facts, since, hold.position, most, percent
                   FROM hold JOIN view ON view.id = hold.view ORDER BY hold.id";
        let holds = self.read(|connection| {
            connection.prepare_cached(sql)?.query_map([], |row| Ok((hold(row)?, row.get::<_, String>(4)?)))?.collect::<Result<Vec<_>, _>>()
        })?;
        let whole = |(hold, cause): (Hold, String)| Some(Hold { cause: Cause::named(&cause)?, ..hold });
        holds.into_iter().map(whole).collect::<Option<_>>().ok_or_else(|| self.malformed("cause of a hold"))
    }

    /// The first facts of `hold` in row order, at most `limit`.
    pub fn held_facts(&self, hold: HoldId, limit: usize) -> Result<Vec<Row>, StoreError> {
        let view = self.read(|connection| view_of(connection, hold))?;
        let Some(view) = view else { return Ok(Vec::new()) };
        page(&self.connection, view, hold, None, limit).map_err(|failure| self.failed("read", failure))
    }

    /// Lets the removals of `hold` go; `None` if there is no such hold.
    pub fn release(&mut self, hold: HoldId) -> Result<Option<Changes>, StoreError> {
        self.end_hold(hold, End::Sent)
    }

    /// Forgets `hold`: the fact store keeps its facts, until a comparison finds them; `None` if there is no such hold.
    pub fn forget_hold(&mut self, hold: HoldId) -> Result<Option<Changes>, StoreError> {
        self.end_hold(hold, End::Forgotten)
    }

    fn end_hold(&mut self, hold: HoldId, end: End) -> Result<Option<Changes>, StoreError> {
        let journals = self.journals.clone();
        let change = self.attempt_commit(|tx, outbox| {
            let Some(view) = view_of(tx, hold)? else { return Ok(None) };
            if end == End::Forgotten {
                // It stays in the fact store, and was ours.
                journals.lock().disturb(view);
            }
            let removals = take_out(tx, outbox, view, hold, end)?;
            tx.execute("DELETE FROM held WHERE view = ?1 AND hold = ?2", params![view.0, hold.0])?;
            tx.execute("DELETE FROM hold WHERE id = ?1", [hold.0])?;
            let sql = "UPDATE view SET facts = facts - ?2, held = held - ?2 WHERE id = ?1 RETURNING facts, held, skipped";
            let numbers = tx.query_row(sql, params![view.0, removals], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)));
            let (facts, held, skipped) = numbers?;
            let skipped = serde_json::from_str(&skipped).map_err(|_| Failure::Malformed("count of skipped rows"))?;
            let removed = if end == End::Sent { removals } else { 0 };
            Ok(Some(Change { view, inserted: 0, removed, held, began: None, newly_held: 0, let_go: removals, facts, skipped }))
        })?;
        Ok(change.map(|change| Changes { views: vec![change], commit_no: self.commit_no }))
    }
}

/// Takes the facts of `hold` out of the desired ones, and tells how many they were.
fn take_out(tx: &Transaction<'_>, outbox: &mut outbox::Writer, view: ViewId, hold: HoldId, end: End) -> Result<u64, Failure> {
    let mut desired = Set::Fact.of(tx, view);
    let (mut removals, mut after) = (0, None);
    loop {
        let page = page(tx, view, hold, after.as_ref(), PAGE_ROWS)?;
        let Some(last) = page.last() else { return Ok(removals) };
        for row in &page {
            desired.write(Op::Delete, row)?;
            match end {
                End::Sent => outbox.push(tx, view, Op::Delete, row.as_bytes())?,
                End::Forgotten => {}
            }
            removals += 1;
        }
        after = Some(last.clone());
    }
}

fn view_of(connection: &Connection, hold: HoldId) -> rusqlite::Result<Option<ViewId>> {
    connection.query_row("SELECT view FROM hold WHERE id = ?1", [hold.0], |row| row.get(0).map(ViewId)).optional()
}

fn page(connection: &Connection, view: ViewId, hold: HoldId, after: Option<&Row>, limit: usize) -> Result<Vec<Row>, Failure> {
    // No row has fewer bytes than none.
    let (sign, after) = if let Some(after) = after { (">", after.as_bytes()) } else { (">=", &[][..]) };
    let sql = format!("SELECT row FROM held WHERE view = ?1 AND row {sign} ?2 AND hold = ?3 ORDER BY row LIMIT ?4");
    let mut select = connection.prepare_cached(&sql)?;
    let rows = select.query_map(params![view.0, after, hold.0, limit], |row| row.get::<_, Vec<u8>>(0))?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(rows.into_iter().map(Row::from_bytes).collect::<io::Result<_>>()?)
}

/// A hold as it is read, but for its cause.
fn hold(row: &SqlRow<'_>) -> rusqlite::Result<Hold> {
    let limits = match (row.get::<_, Option<i64>>(9)?, row.get(10)?) {
        (Some(count), Some(percent)) => Some(MaxRemovals { count: count.cast_unsigned(), percent }),
        (Some(_) | None, Some(_) | None) => None,
    };
    Ok(Hold {
        id: HoldId(row.get(0)?),
        view: ViewId(row.get(1)?),
        signature: row.get(2)?,
        source: row.get(3)?,
        cause: Cause::Earlier,
        removals: row.get(5)?,
        facts: row.get(6)?,
        since: row.get(7)?,
        position: row.get(8)?,
        limits,
    })
}
