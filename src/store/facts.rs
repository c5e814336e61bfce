//! Desired facts as rows of the table: how they are written, and how a view's are read.

use std::{io, path::Path};

use rusqlite::{CachedStatement, Connection, params};

use crate::{
    data::{Extent, Row},
    store::{Failure, ViewId, state::prepared},
    target::Op,
};

/// A set of a view's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    /// What the fact store should hold.
    Fact,
    /// Rows of the query that make no fact.
    Skipped,
}

/// What is read row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// What the fact store should hold.
    Facts,
    /// The removals that wait.
    Held,
    /// The query's result as far as it is known: facts that are not only held, and rows that make no fact.
    Result,
}

impl Rows {
    fn page(self, first: bool) -> &'static str {
        // An empty row is a possible key, so the first page is not "after nothing" but everything.
        match (self, first) {
            (Self::Facts, true) => "SELECT row FROM fact WHERE view = ?1 AND ?2 IS NULL ORDER BY row LIMIT ?3",
            (Self::Facts, false) => "SELECT row FROM fact WHERE view = ?1 AND row > ?2 ORDER BY row LIMIT ?3",
            (Self::Held, true) => "SELECT row FROM held WHERE view = ?1 AND ?2 IS NULL ORDER BY row LIMIT ?3",
            (Self::Held, false) => "SELECT row FROM held WHERE view = ?1 AND row > ?2 ORDER BY row LIMIT ?3",
            (Self::Result, true) => {
                "SELECT row FROM fact WHERE view = ?1 AND ?2 IS NULL
                     AND NOT EXISTS (SELECT 1 FROM held WHERE held.view = ?1 AND held.row = fact.row)
                 UNION ALL SELECT row FROM skipped WHERE view = ?1 AND ?2 IS NULL ORDER BY row LIMIT ?3"
            }
            (Self::Result, false) => {
                "SELECT row FROM fact WHERE view = ?1 AND row > ?2
                     AND NOT EXISTS (SELECT 1 FROM held WHERE held.view = ?1 AND held.row = fact.row)
                 UNION ALL SELECT row FROM skipped WHERE view = ?1 AND row > ?2 ORDER BY row LIMIT ?3"
            }
        }
    }
}

/// One of a view's sets, its statements kept from the first use on: finding one again costs as much as a small write.
pub(super) struct Members<'c> {
    connection: &'c Connection,
    set: Set,
    view: ViewId,
    insert: Option<CachedStatement<'c>>,
    remove: Option<CachedStatement<'c>>,
    contains: Option<CachedStatement<'c>>,
}

impl Members<'_> {
    /// Adds a row; `false` if it is in already.
    pub(super) fn insert(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let sql = match self.set {
            Set::Fact => "INSERT OR IGNORE INTO fact VALUES (?1, ?2)",
            Set::Skipped => "INSERT OR IGNORE INTO skipped VALUES (?1, ?2)",
        };
        Ok(prepared(&mut self.insert, self.connection, sql)?.execute(params![self.view.0, row.as_bytes()])? == 1)
    }

    /// Takes a row out; `false` if it is not in.
    pub(super) fn remove(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let sql = match self.set {
            Set::Fact => "DELETE FROM fact WHERE view = ?1 AND row = ?2",
            Set::Skipped => "DELETE FROM skipped WHERE view = ?1 AND row = ?2",
        };
        Ok(prepared(&mut self.remove, self.connection, sql)?.execute(params![self.view.0, row.as_bytes()])? == 1)
    }

    /// Whether a row is in.
    pub(super) fn contains(&mut self, row: &Row) -> rusqlite::Result<bool> {
        let sql = match self.set {
            Set::Fact => "SELECT 1 FROM fact WHERE view = ?1 AND row = ?2",
            Set::Skipped => "SELECT 1 FROM skipped WHERE view = ?1 AND row = ?2",
        };
        prepared(&mut self.contains, self.connection, sql)?.exists(params![self.view.0, row.as_bytes()])
    }

    /// A net change.
    pub(super) fn write(&mut self, op: Op, row: &Row) -> rusqlite::Result<()> {
        let changed = match op {
            Op::Insert => self.insert(row)?,
            Op::Delete => self.remove(row)?,
        };
        assert!(changed, "a net change changes exactly one row");
        Ok(())
    }
}

impl Set {
    /// This set of `view`.
    pub(super) fn of(self, connection: &Connection, view: ViewId) -> Members<'_> {
        Members { connection, set: self, view, insert: None, remove: None, contains: None }
    }

    /// Takes all of a view's rows out.
    pub(super) fn clear(self, connection: &Connection, view: ViewId) -> rusqlite::Result<()> {
        let sql = match self {
            Self::Fact => "DELETE FROM fact WHERE view = ?1",
            Self::Skipped => "DELETE FROM skipped WHERE view = ?1",
        };
        connection.prepare_cached(sql)?.execute([view.0])?;
        Ok(())
    }
}

pub(super) fn count(facts: u64, op: Op) -> u64 {
    match op {
        Op::Insert => facts + 1,
        Op::Delete => facts - 1,
    }
}

/// Rows read at a time while a view is walked.
const PAGE_ROWS: i64 = 4096;

/// A connection that sees one committed state, whatever the writer does meanwhile.
pub(super) fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

/// The desired facts of a view, in row order.
pub(super) fn desired(path: &Path, view: ViewId) -> Result<Extent, Failure> {
    Ok(rows(reader(path)?, Rows::Facts, view))
}

/// A view's rows, a page at a time by key: an [`Extent`] outlives any statement, and a page keeps memory constant.
///
/// The connection stays in one read transaction, so all pages are of one state.
pub(super) fn rows(connection: Connection, which: Rows, view: ViewId) -> Extent {
    let mut page = Vec::new().into_iter();
    let mut after: Option<Vec<u8>> = None;
    let mut done = false;
    Extent::from_sorted(std::iter::from_fn(move || {
        loop {
            if let Some(bytes) = page.next() {
                return Some(Row::from_bytes(bytes));
            }
            if done {
                return None;
            }
            match next_page(&connection, which, view, after.as_deref()) {
                Ok(rows) => {
                    done = rows.len() < PAGE_ROWS as usize;
                    after = rows.last().cloned();
                    page = rows.into_iter();
                }
                Err(error) => {
                    done = true;
                    return Some(Err(io::Error::other(error)));
                }
            }
        }
    }))
}

/// Calls `to` with the rows that `connection` sees.
pub(super) fn each(connection: &Connection, which: Rows, view: ViewId, to: &mut dyn FnMut(Row) -> io::Result<()>) -> io::Result<()> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = next_page(connection, which, view, after.as_deref()).map_err(io::Error::other)?;
        let last = page.len() < PAGE_ROWS as usize;
        after = page.last().cloned();
        page.into_iter().try_for_each(|bytes| to(Row::from_bytes(bytes)?))?;
        if last {
            return Ok(());
        }
    }
}

fn next_page(connection: &Connection, which: Rows, view: ViewId, after: Option<&[u8]>) -> rusqlite::Result<Vec<Vec<u8>>> {
    connection.prepare_cached(which.page(after.is_none()))?.query_map(params![view.0, after, PAGE_ROWS], |row| row.get(0))?.collect()
}
