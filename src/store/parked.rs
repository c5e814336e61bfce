//! What the fact store refused, as a person is shown it: how many changes, and the first of them, revocations before grants.

use crate::{
    data::Row,
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
    pub first: Vec<Parked>,
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

    fn first_parked(&self, limit: usize) -> Result<Vec<Parked>, StoreError> {
        let rows = self.read(|connection| {
            connection
                .prepare_cached("SELECT view, op, row, reason FROM parked ORDER BY op, view, row LIMIT ?1")?
                .query_map([limit], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?)))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(view, op, row, reason)| Ok(Parked { view: ViewId(view), op, row: Row::from_bytes(row)?, reason })).collect()
    }
}
