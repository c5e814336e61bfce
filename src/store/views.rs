//! Desired facts: a view's new result, or a comparison with the fact store, in one transaction.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, Transaction, params};

use crate::{
    data::{Extent, ExtentBuilder, Position, Row},
    fact::FactType,
    store::{Failure, Store, StoreError, outbox, set_meta},
    target::Op,
    view::{Guard, Skipped, Verdict, diff, refresh},
};

/// A view's number in this store; it stays with the signature for as long as the configuration has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub(super) i64);

/// A view as stored.
#[derive(Debug, Clone)]
pub struct ViewRecord {
    /// Its number.
    pub id: ViewId,
    /// Its signature.
    pub fact_type: FactType,
    /// Whether its desired facts are those of a full result. If not, nothing is known about what the fact store should hold,
    /// and comparing would remove everything.
    pub known: bool,
    /// Whether its last run failed, so that its desired facts are those of an earlier position.
    pub failing: bool,
    /// Desired facts.
    pub facts: u64,
    /// Distinct rows of the last run that made no fact, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Removals that wait for a person.
    pub held: u64,
}

/// What one event did to one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The view.
    pub view: ViewId,
    /// Facts put into the outbox as inserts.
    pub inserted: u64,
    /// Facts put into the outbox as deletes.
    pub removed: u64,
    /// Removals held back.
    pub held: u64,
    /// Desired facts now.
    pub facts: u64,
    /// Distinct rows that made no fact.
    pub skipped: BTreeMap<String, u64>,
}

/// What one event did.
#[derive(Debug, Default)]
pub struct Changes {
    /// View by view.
    pub views: Vec<Change>,
    /// The last commit number given out; when the outbox is empty up to it, the event is delivered.
    pub commit_no: u64,
}

impl Store {
    /// Makes the views of `source` those of the configuration and returns them in its order. Views that are gone take their
    /// desired facts along; the fact store keeps its own, which nobody claims any more.
    pub fn register(&mut self, source: &str, fact_types: &[&FactType]) -> Result<Vec<ViewRecord>, StoreError> {
        let signatures: Vec<String> = fact_types.iter().map(ToString::to_string).collect();
        let (ids, dropped) = self.write(|tx| {
            let keep = serde_json::to_string(&signatures).expect("strings are JSON");
            let gone = "SELECT id FROM view WHERE source = ?1 AND signature NOT IN (SELECT value FROM json_each(?2))";
            let remove = |table: &str| tx.execute(&format!("DELETE FROM {table} WHERE view IN ({gone})"), params![source, keep]);
            remove("fact")?;
            remove("parked")?;
            let dropped = remove("outbox")? as u64;
            tx.execute(&format!("DELETE FROM view WHERE id IN ({gone})"), params![source, keep])?;
            let ids = signatures.iter().map(|signature| register_one(tx, source, signature)).collect::<Result<Vec<_>, Failure>>()?;
            Ok((ids, dropped))
        })?;
        self.outbox_len -= dropped;
        ids.into_iter().zip(fact_types).map(|(id, fact_type)| self.view(id, fact_type)).collect()
    }

    /// Starts a new history for `source`: no position, not compared.
    pub fn begin(&mut self, source: &str, fingerprint: &str, identity: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute(
                "INSERT INTO source VALUES (?1, NULL, ?2, ?3, 0) ON CONFLICT (name) DO UPDATE
                 SET position = NULL, fingerprint = excluded.fingerprint, identity = excluded.identity, compared = 0",
                [source, fingerprint, identity],
            )?;
            tx.execute("UPDATE view SET known = 0 WHERE source = ?1", [source])?;
            Ok(())
        })
    }

    /// Remembers that the last run of `view` failed: only a run that succeeds makes its desired facts current again.
    pub fn mark_failing(&mut self, view: ViewId) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE view SET failing = 1 WHERE id = ?1", [view.0])?;
            Ok(())
        })
    }

    /// Replaces the desired facts by a snapshot's results. Nothing is sent: the comparison with the fact store that
    /// follows ([`Store::correct`]) knows what differs, so whatever waited in the outbox for these views is dropped.
    pub fn replace(&mut self, source: &str, position: &Position, views: Vec<(ViewRecord, Extent)>) -> Result<Changes, StoreError> {
        let path = self.path.clone();
        let commit_no = self.commit_no;
        let (views, dropped) = self.write(|tx| {
            let mut changes = Vec::with_capacity(views.len());
            let mut dropped = 0;
            for (view, wanted) in views {
                dropped += tx.execute("DELETE FROM outbox WHERE view = ?1", [view.id.0])? as u64;
                tx.execute("DELETE FROM parked WHERE view = ?1", [view.id.0])?;
                let mut skipped = Skipped::new();
                let stored = desired(&path, view.id)?;
                let mut facts = view.facts;
                for change in refresh(&view.fact_type, wanted, stored, &mut skipped) {
                    let (op, row) = change?;
                    facts = count(facts, op);
                    write_fact(tx, view.id, op, &row)?;
                }
                changes.push(finish(tx, &view, facts, &skipped, 0)?);
            }
            tx.execute("UPDATE source SET position = ?2, compared = 0 WHERE name = ?1", params![source, position.to_string()])?;
            Ok((changes, dropped))
        })?;
        self.outbox_len -= dropped;
        Ok(Changes { views, commit_no })
    }

    /// Applies the new results of some views, all as of `position`: desired facts and outbox change by the net difference.
    pub fn apply(
        &mut self,
        source: &str,
        position: &Position,
        views: Vec<(ViewRecord, Extent)>,
        guard: Guard,
    ) -> Result<Changes, StoreError> {
        let path = self.path.clone();
        let spool = self.spool();
        self.commit(|tx, outbox| {
            let mut changes = Vec::with_capacity(views.len());
            for (view, wanted) in views {
                let mut skipped = Skipped::new();
                let stored = desired(&path, view.id)?;
                let mut facts = view.facts;
                let mut removals = ExtentBuilder::new(&spool);
                let (mut inserted, mut removed) = (0, 0);
                for change in refresh(&view.fact_type, wanted, stored, &mut skipped) {
                    match change? {
                        (Op::Insert, row) => {
                            write_fact(tx, view.id, Op::Insert, &row)?;
                            outbox.push(tx, view.id, Op::Insert, &row)?;
                            inserted += 1;
                        }
                        (Op::Delete, row) => {
                            removals.push(row)?;
                            removed += 1;
                        }
                    }
                }
                facts += inserted;
                let held = match guard.judge(removed, view.facts) {
                    Verdict::Hold => removed,
                    Verdict::Apply => {
                        for row in removals.finish()? {
                            let row = row?;
                            write_fact(tx, view.id, Op::Delete, &row)?;
                            outbox.push(tx, view.id, Op::Delete, &row)?;
                        }
                        facts -= removed;
                        0
                    }
                };
                let change = finish(tx, &view, facts, &skipped, held)?;
                changes.push(Change { inserted, removed: removed - held, ..change });
            }
            tx.execute("UPDATE source SET position = ?2 WHERE name = ?1", params![source, position.to_string()])?;
            Ok(changes)
        })
    }

    /// Puts into the outbox what makes the fact store, whose rows are `listed`, equal the desired facts.
    ///
    /// The caller sees to it that nothing of these views was under way to the fact store while it was listed.
    pub fn correct(&mut self, source: &str, views: Vec<(ViewRecord, Extent)>, guard: Guard) -> Result<Changes, StoreError> {
        let path = self.path.clone();
        let spool = self.spool();
        self.commit(|tx, outbox| {
            let mut changes = Vec::with_capacity(views.len());
            for (view, listed) in views {
                let mut removals = ExtentBuilder::new(&spool);
                let (mut inserted, mut removed) = (0, 0);
                for change in diff(desired(&path, view.id)?, listed) {
                    match change? {
                        (Op::Insert, row) => {
                            outbox.push(tx, view.id, Op::Insert, &row)?;
                            inserted += 1;
                        }
                        (Op::Delete, row) => {
                            removals.push(row)?;
                            removed += 1;
                        }
                    }
                }
                let ViewRecord { id, mut facts, held, skipped, .. } = view;
                // A hold of a re-run stays as it is: it is no difference here, since the desired facts still have it.
                let held = match guard.judge(removed, facts - inserted + removed) {
                    Verdict::Hold => {
                        // From now on it is one of those: each re-run judges it anew, and does not forget it.
                        for row in removals.finish()? {
                            write_fact(tx, id, Op::Insert, &row?)?;
                        }
                        facts += std::mem::take(&mut removed);
                        facts - view.facts + held
                    }
                    Verdict::Apply => {
                        for row in removals.finish()? {
                            outbox.push(tx, id, Op::Delete, &row?)?;
                        }
                        held
                    }
                };
                tx.execute("UPDATE view SET facts = ?2, held = ?3 WHERE id = ?1", params![id.0, facts, held])?;
                changes.push(Change { view: id, inserted, removed, held, facts, skipped });
            }
            tx.execute("UPDATE source SET compared = 1 WHERE name = ?1", [source])?;
            Ok(changes)
        })
    }

    /// The desired facts of `view`, in row order, as of now.
    pub fn desired(&self, view: ViewId) -> Result<Extent, StoreError> {
        desired(&self.path, view).map_err(|failure| match failure {
            Failure::Sqlite(source) => StoreError::Sqlite { action: "read", path: self.path.clone(), source },
            Failure::Store(error) => error,
        })
    }

    /// The view `id` as it stands.
    fn view(&self, id: ViewId, fact_type: &FactType) -> Result<ViewRecord, StoreError> {
        let (known, failing, facts, skipped, held) = self.read(|connection| {
            connection.query_row("SELECT known, failing, facts, skipped, held FROM view WHERE id = ?1", [id.0], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?, row.get(4)?))
            })
        })?;
        let skipped = serde_json::from_str(&skipped).map_err(|_| self.malformed("count of skipped rows"))?;
        Ok(ViewRecord { id, fact_type: fact_type.clone(), known, failing, facts, skipped, held })
    }

    /// Runs `body` as the next commit, which takes a number only if something is to be sent.
    fn commit(
        &mut self,
        body: impl FnOnce(&Transaction<'_>, &mut outbox::Writer) -> Result<Vec<Change>, Failure>,
    ) -> Result<Changes, StoreError> {
        let before = self.commit_no;
        let (views, commit_no, pushed) = self.write(|tx| {
            let mut writer = outbox::Writer::new(before + 1);
            let views = body(tx, &mut writer)?;
            let commit_no = if writer.len() == 0 { before } else { before + 1 };
            set_meta(tx, "commit_no", &commit_no.to_string())?;
            Ok((views, commit_no, writer.len()))
        })?;
        self.commit_no = commit_no;
        self.outbox_len += pushed;
        Ok(Changes { views, commit_no })
    }

    fn spool(&self) -> std::path::PathBuf {
        self.path.parent().map_or_else(|| ".".into(), |folder| folder.join("spool"))
    }
}

fn register_one(tx: &Transaction<'_>, source: &str, signature: &str) -> Result<ViewId, Failure> {
    let id = tx.query_row(
        "INSERT INTO view (source, signature) VALUES (?1, ?2) ON CONFLICT (signature) DO UPDATE SET source = excluded.source RETURNING id",
        [source, signature],
        |row| row.get(0),
    )?;
    Ok(ViewId(id))
}

fn write_fact(tx: &Transaction<'_>, view: ViewId, op: Op, row: &Row) -> Result<(), Failure> {
    let sql = match op {
        Op::Insert => "INSERT INTO fact VALUES (?1, ?2)",
        Op::Delete => "DELETE FROM fact WHERE view = ?1 AND row = ?2",
    };
    let changed = tx.prepare_cached(sql)?.execute(params![view.0, row.as_bytes()])?;
    assert_eq!(changed, 1, "a net change changes exactly one desired fact");
    Ok(())
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

fn count(facts: u64, op: Op) -> u64 {
    match op {
        Op::Insert => facts + 1,
        Op::Delete => facts - 1,
    }
}

/// Rows read at a time while a view is walked.
const PAGE_ROWS: i64 = 4096;

/// The rows of a view, a page at a time by key: an [`Extent`] outlives any statement, and a page keeps memory constant.
///
/// The connection stays in one read transaction, so all pages are of one state whatever the writer does meanwhile.
fn desired(path: &Path, view: ViewId) -> Result<Extent, Failure> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.execute_batch("BEGIN")?;
    let mut page = Vec::new().into_iter();
    let mut after: Option<Vec<u8>> = None;
    let mut done = false;
    Ok(Extent::from_sorted(std::iter::from_fn(move || {
        loop {
            if let Some(bytes) = page.next() {
                return Some(Row::from_bytes(bytes));
            }
            if done {
                return None;
            }
            match next_page(&connection, view, after.as_deref()) {
                Ok(rows) => {
                    done = rows.len() < PAGE_ROWS as usize;
                    after = rows.last().cloned();
                    page = rows.into_iter();
                }
                Err(error) => {
                    done = true;
                    return Some(Err(std::io::Error::other(error)));
                }
            }
        }
    })))
}

fn next_page(connection: &Connection, view: ViewId, after: Option<&[u8]>) -> rusqlite::Result<Vec<Vec<u8>>> {
    // An empty row is a possible key, so the first page is not "after nothing" but everything.
    let sql = match after {
        Some(_) => "SELECT row FROM fact WHERE view = ?1 AND row > ?2 ORDER BY row LIMIT ?3",
        None => "SELECT row FROM fact WHERE view = ?1 AND ?2 IS NULL ORDER BY row LIMIT ?3",
    };
    connection.prepare_cached(sql)?.query_map(params![view.0, after, PAGE_ROWS], |row| row.get(0))?.collect()
}
