//! What the fact store refused, as a person is shown it: how many changes, and the first of them, revocations before grants.

use crate::{
    data::Row,
    fact::{Fact, FactType},
    store::{Parked, Store, StoreError, ViewId},
    target::Op,
};

/// Everything that is parked, told in bounded space.
#[derive(Debug, Default)]
pub struct ParkedSummary {
    /// Facts that should be gone and may still be there.
    pub revocations: u64,
    /// Facts that should be there.
    pub grants: u64,
    /// The first of both, the revocations first.
    pub first: Vec<(Fact, Parked)>,
}

impl Store {
    /// Counts what is parked and reads at most `limit` of it.
    pub fn parked_summary(&self, limit: usize) -> Result<ParkedSummary, StoreError> {
        let counts = self.read(|connection| {
            connection
                .prepare_cached("SELECT op, count(*) FROM parked GROUP BY op")?
                .query_map([], |row| Ok((row.get::<_, Op>(0)?, row.get::<_, u64>(1)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut summary = ParkedSummary::default();
        for (op, count) in counts {
            match op {
                Op::Delete => summary.revocations = count,
                Op::Insert => summary.grants = count,
            }
        }
        if summary.revocations + summary.grants > 0 {
            summary.first = self.first_parked(limit)?;
        }
        Ok(summary)
    }

    fn first_parked(&self, limit: usize) -> Result<Vec<(Fact, Parked)>, StoreError> {
        let sql = "SELECT p.view, p.op, p.row, p.reason, v.signature FROM parked p JOIN view v ON v.id = p.view
                   ORDER BY p.op, p.view, p.row LIMIT ?1";
        let rows = self.read(|connection| {
            connection
                .prepare_cached(sql)?
                .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?, row.get::<_, String>(4)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let parked = |(view, op, row, reason, signature): (i64, Op, Vec<u8>, String, String)| {
            let fact_type: FactType = signature.parse().map_err(|_| self.malformed("a fact type's signature"))?;
            let row = Row::from_bytes(row)?;
            Ok((fact_type.stored_fact(&row), Parked { view: ViewId(view), op, row, reason }))
        };
        rows.into_iter().map(parked).collect()
    }
}
