//! One request inside the writer's transaction.
//!
//! [`Apply::run`] runs in a savepoint of its own. It either does everything the request asks for, in order, or answers why not;
//! the caller then rolls the savepoint back. Facts are a set, so a request that is applied again changes nothing.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension, params, params_from_iter};
use tokio::time::Instant;

use crate::{
    fact::{Fact, MAX_ARGUMENTS},
    target::embedded::{
        limits::{OverQuota, Quota},
        pending::Pending,
        select::{Selection, key},
    },
};

/// What a request asks the writer for.
#[derive(Debug)]
pub(super) enum Work {
    /// These changes, in order.
    Changes(Vec<Change>),
    /// Every fact goes; the policy stays.
    Clear,
    /// The policy's text is replaced.
    Policy(Policy),
    /// Nothing, but with the fact tables up to date: what a read asks for.
    Settle,
}

impl Work {
    /// How much it is, in entries of a batch.
    pub(super) fn entries(&self) -> usize {
        match self {
            Self::Changes(changes) => changes.len(),
            Self::Clear | Self::Policy(_) | Self::Settle => 1,
        }
    }
}

/// One entry of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// The fact becomes true.
    Insert(Fact),
    /// The fact ceases to be true.
    Delete(Fact),
    /// Every fact that is meant ceases to be true.
    DeleteMatching(Selection),
}

/// A policy as it was posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) filename: Option<String>,
    pub(super) src: String,
}

/// Under which limits a request is applied.
#[derive(Debug)]
pub(super) struct Terms {
    /// The most facts that one wildcard delete may touch.
    pub(super) max_removed: Option<u64>,
    /// The quota that pays for it.
    pub(super) quota: Option<Arc<Quota>>,
    /// When it arrived; the quota's clock.
    pub(super) arrived: Instant,
}

impl Terms {
    /// No limits.
    pub(super) fn none() -> Self {
        Self { max_removed: None, quota: None, arrived: Instant::now() }
    }
}

/// Why a request was not applied. Its savepoint is rolled back; the store goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("entry {entry}: this wildcard delete touches more than {limit} facts; narrow it, or delete in parts")]
    TooManyRemoved {
        /// Its number in the request, from 1.
        entry: usize,
        limit: u64,
    },
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
}

/// Why [`Apply::run`] did not finish.
#[derive(Debug)]
pub(super) enum Failure {
    /// Because of the request.
    Refused(Refusal),
    /// Because of SQLite or the disk.
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<OverQuota> for Failure {
    fn from(error: OverQuota) -> Self {
        Self::Refused(error.into())
    }
}

/// Shape ids kept in memory; far more than schemas have, it only keeps a client that makes up types from filling the memory.
const MAX_CACHED_SHAPES: usize = 10_000;

/// The ids of the shapes that were used lately, by [`Shapes::name`].
#[derive(Debug, Default)]
pub(super) struct Shapes {
    ids: HashMap<Vec<u8>, i64>,
    name: Vec<u8>,
}

impl Shapes {
    /// Forgets everything: a rolled-back savepoint may have taken a new shape with it.
    pub(super) fn forget(&mut self) {
        self.ids.clear();
    }

    /// The id of `fact`'s shape, which it is given if it has none.
    fn intern(&mut self, connection: &Connection, fact: &Fact) -> rusqlite::Result<i64> {
        if let Some(id) = self.find(connection, fact)? {
            return Ok(id);
        }
        connection
            .prepare_cached("INSERT INTO shape (predicate, types) VALUES (?1, ?2)")?
            .execute(params![fact.predicate, self.types(fact)])?;
        Ok(self.keep(connection.last_insert_rowid()))
    }

    /// The id of `fact`'s shape, if there ever was a fact of it.
    fn find(&mut self, connection: &Connection, fact: &Fact) -> rusqlite::Result<Option<i64>> {
        self.set_name(fact);
        if let Some(id) = self.ids.get(&self.name) {
            return Ok(Some(*id));
        }
        let mut statement = connection.prepare_cached("SELECT id FROM shape WHERE predicate = ?1 AND types = ?2")?;
        let id = statement.query_row(params![fact.predicate, self.types(fact)], |row| row.get(0)).optional()?;
        Ok(id.map(|id| self.keep(id)))
    }

    fn keep(&mut self, id: i64) -> i64 {
        if self.ids.len() >= MAX_CACHED_SHAPES {
            self.ids.clear();
        }
        self.ids.insert(self.name.clone(), id);
        id
    }

    /// Sets `name` to the types as a JSON array and, after it, the predicate. No two shapes share one: the array ends at its
    /// closing bracket, and the rest is the predicate.
    fn set_name(&mut self, fact: &Fact) {
        self.name.clear();
        for (n, arg) in fact.args.iter().enumerate() {
            self.name.push(if n == 0 { b'[' } else { b',' });
            serde_json::to_writer(&mut self.name, &arg.type_name).expect("a string is JSON and memory takes it");
        }
        self.name.push(b']');
        self.name.extend_from_slice(fact.predicate.as_bytes());
    }

    fn types(&self, fact: &Fact) -> &str {
        let types = &self.name[..self.name.len() - fact.predicate.len()];
        std::str::from_utf8(types).expect("JSON of strings is UTF-8")
    }
}

/// The tools for one request.
#[derive(Debug)]
pub(super) struct Apply<'a> {
    pub(super) connection: &'a Connection,
    pub(super) shapes: &'a mut Shapes,
    pub(super) terms: &'a Terms,
}

impl Apply<'_> {
    /// Does `work`; says whether anything is different now.
    pub(super) fn run(&mut self, work: &Work) -> Result<bool, Failure> {
        let before = self.connection.total_changes();
        match work {
            Work::Changes(changes) => self.changes(changes)?,
            Work::Clear => self.clear()?,
            Work::Policy(policy) => self.policy(policy)?,
            // Done before any work that is not logged.
            Work::Settle => {}
        }
        Ok(self.connection.total_changes() != before)
    }

    /// Does `changes` through the log, which has room for them.
    pub(super) fn log(&mut self, changes: Vec<Change>, pending: &mut Pending) -> Result<bool, Failure> {
        let cost = changes.len() as u64;
        self.terms.quota.as_deref().map_or(Ok(()), |quota| quota.charge(self.terms.arrived, cost))?;
        Ok(pending.log(self.connection, self.shapes, changes)?)
    }

    /// The quota is asked twice: with what is known beforehand, so that a request over it costs no work, and with the whole
    /// cost at the end, which is the only time it is charged.
    fn changes(&mut self, changes: &[Change]) -> Result<(), Failure> {
        let quota = self.terms.quota.as_deref();
        quota.map_or(Ok(()), |quota| quota.ask(self.terms.arrived, changes.len() as u64))?;
        let mut cost = 0;
        for (index, change) in changes.iter().enumerate() {
            cost += match change {
                Change::Insert(fact) => self.set(fact, true)?,
                Change::Delete(fact) => self.set(fact, false)?,
                Change::DeleteMatching(selection) => self.delete_matching(index + 1, selection)?,
            };
        }
        Ok(quota.map_or(Ok(()), |quota| quota.charge(self.terms.arrived, cost))?)
    }

    fn set(&mut self, fact: &Fact, wanted: bool) -> Result<u64, Failure> {
        set(self.connection, self.shapes, fact, wanted)?;
        Ok(1)
    }

    /// Counts first: a delete that is to be refused must not have to be undone.
    fn delete_matching(&mut self, entry: usize, selection: &Selection) -> Result<u64, Failure> {
        if let Some(limit) = self.terms.max_removed
            && selection.count(self.connection, limit + 1)? > limit
        {
            return Err(Failure::Refused(Refusal::TooManyRemoved { entry, limit }));
        }
        Ok(selection.delete(self.connection)?.max(1))
    }

    fn clear(&mut self) -> Result<(), Failure> {
        for arity in 1..=MAX_ARGUMENTS {
            self.connection.execute(&format!("DELETE FROM facts{arity}"), [])?;
        }
        Ok(())
    }

    fn policy(&mut self, policy: &Policy) -> Result<(), Failure> {
        self.connection
            .prepare_cached(
                "INSERT INTO policy (id, filename, src) VALUES (1, ?1, ?2)
                 ON CONFLICT (id) DO UPDATE SET filename = excluded.filename, src = excluded.src
                 WHERE filename IS NOT excluded.filename OR src IS NOT excluded.src",
            )?
            .execute(params![policy.filename, policy.src])?;
        Ok(())
    }
}

/// Makes `fact` true or ceases it.
pub(super) fn set(connection: &Connection, shapes: &mut Shapes, fact: &Fact, wanted: bool) -> rusqlite::Result<()> {
    const INSERT: [&str; MAX_ARGUMENTS] = [
        "INSERT OR IGNORE INTO facts1 VALUES (?, ?)",
        "INSERT OR IGNORE INTO facts2 VALUES (?, ?, ?)",
        "INSERT OR IGNORE INTO facts3 VALUES (?, ?, ?, ?)",
        "INSERT OR IGNORE INTO facts4 VALUES (?, ?, ?, ?, ?)",
        "INSERT OR IGNORE INTO facts5 VALUES (?, ?, ?, ?, ?, ?)",
    ];
    const DELETE: [&str; MAX_ARGUMENTS] = [
        "DELETE FROM facts1 WHERE shape = ? AND i0 = ?",
        "DELETE FROM facts2 WHERE shape = ? AND i0 = ? AND i1 = ?",
        "DELETE FROM facts3 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ?",
        "DELETE FROM facts4 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ? AND i3 = ?",
        "DELETE FROM facts5 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ? AND i3 = ? AND i4 = ?",
    ];
    let (sql, shape) = match wanted {
        true => (INSERT, shapes.intern(connection, fact)?),
        false => match shapes.find(connection, fact)? {
            Some(shape) => (DELETE, shape),
            None => return Ok(()),
        },
    };
    connection.prepare_cached(sql[fact.args.len() - 1])?.execute(params_from_iter(key(fact, shape)))?;
    Ok(())
}

/// Whether the tables hold `fact`.
pub(super) fn holds(connection: &Connection, shapes: &mut Shapes, fact: &Fact) -> rusqlite::Result<bool> {
    const SQL: [&str; MAX_ARGUMENTS] = [
        "SELECT 1 FROM facts1 WHERE shape = ? AND i0 = ?",
        "SELECT 1 FROM facts2 WHERE shape = ? AND i0 = ? AND i1 = ?",
        "SELECT 1 FROM facts3 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ?",
        "SELECT 1 FROM facts4 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ? AND i3 = ?",
        "SELECT 1 FROM facts5 WHERE shape = ? AND i0 = ? AND i1 = ? AND i2 = ? AND i3 = ? AND i4 = ?",
    ];
    let Some(shape) = shapes.find(connection, fact)? else { return Ok(false) };
    connection.prepare_cached(SQL[fact.args.len() - 1])?.exists(params_from_iter(key(fact, shape)))
}

/// The policy that is stored, if there is one.
pub(super) fn stored_policy(connection: &Connection) -> rusqlite::Result<Option<Policy>> {
    connection.query_row("SELECT filename, src FROM policy", [], |row| Ok(Policy { filename: row.get(0)?, src: row.get(1)? })).optional()
}
