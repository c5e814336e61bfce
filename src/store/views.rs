//! Views and what is known of each.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Transaction, params};

use crate::{
    data::{Extent, Lsn},
    fact::FactType,
    store::{
        Failure, Store, StoreError,
        backlog::{self, Changed},
        facts,
        holds::HoldId,
        outbox, state,
    },
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
    /// Whether the fact store was ever compared with it.
    pub met: bool,
    /// What the stored state was made by: a plan of another fingerprint cannot use it. `None` if there is no usable state. If the view
    /// is demoted, which plan it was demoted for.
    pub fingerprint: Option<String>,
    /// Why the plan of this fingerprint is not trusted: the view is refreshed instead.
    pub demoted: Option<String>,
    /// Up to here its state has the commits, if it is ahead of its source.
    pub position: Option<Lsn>,
    /// What `now()` is in its state, in microseconds since 2000-01-01 UTC.
    pub clock: Option<i64>,
}

impl ViewRecord {
    /// Whether a dataflow of a plan with this fingerprint can go on with what is stored.
    pub fn has_state(&self, fingerprint: &str) -> bool {
        self.demoted.is_none() && self.fingerprint.as_deref() == Some(fingerprint)
    }

    /// Why the plan with this fingerprint is not trusted.
    pub fn demotion(&self, fingerprint: &str) -> Option<&str> {
        self.demoted.as_deref().filter(|_| self.fingerprint.as_deref() == Some(fingerprint))
    }
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
    /// Removals that wait for a person now.
    pub held: u64,
    /// The hold that this event has begun.
    pub began: Option<HoldId>,
    /// Of them those that this event has held, in that hold or in one that goes on.
    pub newly_held: u64,
    /// Removals that a person let go or forgot.
    pub let_go: u64,
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
    /// Settles whose views are whose, before [`Store::register`] takes each source's. `claims` has every source with its fact types;
    /// returned are the sources that the configuration no longer has.
    ///
    /// A view that another source feeds from now on keeps its facts and what waits of them, and nothing else of it is used: they are of
    /// the other source, so not even an unchanged position of its own makes them this one's.
    ///
    /// Of a source that is gone nothing is sent any more, because nothing is written outside of the configured fact types. Its position and
    /// views stay for the day it is back; what was not sent is then found by a comparison.
    pub fn reassign(&mut self, claims: &[(&str, Vec<&FactType>)]) -> Result<Vec<String>, StoreError> {
        let (gone, dropped, changed) = self.write(|tx| {
            for (source, fact_types) in claims {
                for fact_type in fact_types {
                    let moved = "SELECT id FROM view WHERE signature = ?1 AND source <> ?2";
                    let id = tx.query_row(moved, params![fact_type.to_string(), source], |row| row.get(0).map(ViewId)).optional()?;
                    if let Some(id) = id {
                        forget_state(tx, id)?;
                        tx.execute("UPDATE view SET source = ?2, known = 0 WHERE id = ?1", params![id.0, source])?;
                    }
                }
            }
            let names: Vec<&str> = claims.iter().map(|(source, _)| *source).collect();
            let names = serde_json::to_string(&names).expect("strings are JSON");
            let others = "(SELECT id FROM view WHERE source NOT IN (SELECT value FROM json_each(?1)))";
            tx.execute(&format!("DELETE FROM parked WHERE view IN {others}"), [&names])?;
            let mut ids = tx.prepare(&format!("SELECT id FROM view WHERE id IN {others}"))?;
            let ids = ids.query_map([&names], |row| row.get(0).map(ViewId))?.collect::<rusqlite::Result<Vec<_>>>()?;
            let (mut dropped, mut changed) = (0, Changed::default());
            for id in ids {
                dropped += outbox::forget(tx, id)?;
                backlog::forget(tx, &mut changed, id)?;
            }
            let mut gone =
                tx.prepare("UPDATE source SET compared = 0 WHERE name NOT IN (SELECT value FROM json_each(?1)) RETURNING name")?;
            let gone = gone.query_map([&names], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
            Ok((gone, dropped, changed))
        })?;
        self.outbox_len -= dropped;
        self.backlog.settle(changed);
        Ok(gone)
    }

    /// Makes the views of `source` those of the configuration and returns them in its order. Views that are gone take their
    /// desired facts along; the fact store keeps its own, which nobody claims any more.
    pub fn register(&mut self, source: &str, fact_types: &[&FactType]) -> Result<Vec<ViewRecord>, StoreError> {
        let signatures: Vec<String> = fact_types.iter().map(ToString::to_string).collect();
        let (ids, dropped, changed) = self.write(|tx| {
            let keep = serde_json::to_string(&signatures).expect("strings are JSON");
            let gone = "SELECT id FROM view WHERE source = ?1 AND signature NOT IN (SELECT value FROM json_each(?2))";
            let remove = |table: &str| tx.execute(&format!("DELETE FROM {table} WHERE view IN ({gone})"), params![source, keep]);
            for table in ["fact", "parked", "held", "hold", "skipped"] {
                remove(table)?;
            }
            let ids = tx.prepare(gone)?.query_map([source, &keep], |row| row.get(0).map(ViewId))?.collect::<rusqlite::Result<Vec<_>>>()?;
            let (mut dropped, mut changed) = (0, Changed::default());
            for id in ids {
                state::drop(tx, id)?;
                dropped += outbox::forget(tx, id)?;
                backlog::forget(tx, &mut changed, id)?;
            }
            tx.execute(&format!("DELETE FROM view WHERE id IN ({gone})"), params![source, keep])?;
            let ids = signatures.iter().map(|signature| register_one(tx, source, signature)).collect::<Result<Vec<_>, Failure>>()?;
            Ok((ids, dropped, changed))
        })?;
        self.outbox_len -= dropped;
        self.backlog.settle(changed);
        ids.into_iter().zip(fact_types).map(|(id, fact_type)| self.view(id, fact_type)).collect()
    }

    /// Starts a new history for `source`: no position, no usable state, not compared.
    pub fn begin(&mut self, source: &str, fingerprint: &str, identity: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute(
                "INSERT INTO source (name, fingerprint, identity, compared) VALUES (?1, ?2, ?3, 0) ON CONFLICT (name) DO UPDATE
                 SET position = NULL, settled = NULL, clock = NULL, fingerprint = excluded.fingerprint, identity = excluded.identity,
                     compared = 0",
                [source, fingerprint, identity],
            )?;
            tx.execute("UPDATE view SET known = 0, position = NULL WHERE source = ?1", [source])?;
            tx.execute("UPDATE view SET fingerprint = NULL WHERE source = ?1 AND demoted IS NULL", [source])?;
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

    /// Lets go of the state of `view`: it is loaded anew before changes can be applied to it. Its facts stay.
    pub fn drop_state(&mut self, view: ViewId) -> Result<(), StoreError> {
        self.write(|tx| Ok(forget_state(tx, view)?))
    }

    /// Remembers why the plan with `fingerprint` is not trusted with `view`, which is refreshed from now on. Its facts stay, and are not
    /// current: a start that comes before the next result must not take them for it, for it has no other reason to read the view again.
    pub fn demote(&mut self, view: ViewId, fingerprint: &str, why: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            forget_state(tx, view)?;
            tx.execute("UPDATE view SET fingerprint = ?2, demoted = ?3, failing = 1 WHERE id = ?1", params![view.0, fingerprint, why])?;
            Ok(())
        })
    }

    /// The desired facts of `view`, in row order, as of now.
    pub fn desired(&self, view: ViewId) -> Result<Extent, StoreError> {
        facts::desired(&self.path, view).map_err(|failure| self.failed("read", failure))
    }

    /// The view as it stands now.
    pub fn reread(&self, view: &ViewRecord) -> Result<ViewRecord, StoreError> {
        self.view(view.id, &view.fact_type)
    }

    /// The view `id` as it stands.
    pub fn view(&self, id: ViewId, fact_type: &FactType) -> Result<ViewRecord, StoreError> {
        let sql = "SELECT known, failing, facts, skipped, held, fingerprint, demoted, position, clock, met FROM view WHERE id = ?1";
        let read = |row: &rusqlite::Row<'_>| {
            let record = ViewRecord {
                id,
                fact_type: fact_type.clone(),
                known: row.get(0)?,
                failing: row.get(1)?,
                facts: row.get(2)?,
                skipped: BTreeMap::new(),
                held: row.get(4)?,
                fingerprint: row.get(5)?,
                demoted: row.get(6)?,
                position: row.get::<_, Option<u64>>(7)?.map(Lsn),
                clock: row.get(8)?,
                met: row.get(9)?,
            };
            Ok((record, row.get::<_, String>(3)?))
        };
        let (mut record, skipped) = self.read(|connection| connection.query_row(sql, [id.0], read))?;
        record.skipped = serde_json::from_str(&skipped).map_err(|_| self.malformed("count of skipped rows"))?;
        Ok(record)
    }
}

/// Without a fingerprint nothing of it is used any more.
pub(super) fn forget_state(tx: &Transaction<'_>, view: ViewId) -> rusqlite::Result<()> {
    state::drop(tx, view)?;
    facts::Set::Skipped.clear(tx, view)?;
    tx.execute("UPDATE view SET fingerprint = NULL, demoted = NULL, position = NULL, clock = NULL WHERE id = ?1", [view.0])?;
    Ok(())
}

fn register_one(tx: &Transaction<'_>, source: &str, signature: &str) -> Result<ViewId, Failure> {
    let id = tx.query_row(
        "INSERT INTO view (source, signature) VALUES (?1, ?2) ON CONFLICT (signature) DO UPDATE
         SET fingerprint = iif(source = excluded.source, fingerprint, NULL), known = iif(source = excluded.source, known, 0),
             source = excluded.source
         RETURNING id",
        [source, signature],
        |row| row.get(0),
    )?;
    Ok(ViewId(id))
}
