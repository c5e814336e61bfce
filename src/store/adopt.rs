//! Adoption: what the fact store holds at the first contact with a fact type, and no query wants, is taken over as held.
//!
//! Somebody else wrote these facts, and only a person can say whether they are mistakes or belong to something the queries leave out. So
//! they are held however few they are, and end as every hold does (`holds.rs`).
//!
//! **A revocation that was seen is not adopted.** Between the first snapshot and the first comparison, which may be hours if the fact store
//! is down, commits revoke facts. What they revoked is in the fact store and in no result, like what was never wanted. The difference is
//! that it has been a desired fact of this very store: so it waits as a delete, in the outbox, in the backlog, or refused, or a later
//! snapshot takes it out of the desired facts. [`revoked`] gathers these, and they are removed.
//!
//! **Nor is it judged again.** What waits as a delete was let go by the guard once, or by a person who released it. A comparison that comes
//! before it is delivered (the fact store was away) finds these facts like any others that are too many, and lets them go without
//! counting them; so does one after another snapshot, which carries them over.

use std::path::Path;

use rusqlite::{Transaction, params};

use crate::{
    data::{ExtentBuilder, Row},
    store::{Failure, ViewId, outbox},
    target::Op,
    view::Guard,
};

/// Whether this is the first contact with the facts of `view`, and they are to be adopted.
pub(super) fn first_contact(tx: &Transaction<'_>, view: ViewId, guard: Guard) -> rusqlite::Result<bool> {
    let met = || tx.query_row("SELECT met FROM view WHERE id = ?1", [view.0], |row| row.get::<_, bool>(0));
    Ok(guard.adopts() && !met()?)
}

/// The facts of `view` whose removal waits to be sent, or was refused.
pub(super) fn revoked(tx: &Transaction<'_>, view: ViewId, spool: &Path) -> Result<ExtentBuilder, Failure> {
    let mut revoked = ExtentBuilder::new(spool);
    outbox::each(tx, view, Op::Delete, |row| revoked.push(row))?;
    for table in ["backlog", "parked"] {
        let mut select = tx.prepare(&format!("SELECT row FROM {table} WHERE op = ?1 AND view = ?2"))?;
        let mut rows = select.query(params![Op::Delete, view.0])?;
        while let Some(row) = rows.next()? {
            revoked.push(Row::from_bytes(row.get::<_, Vec<u8>>(0)?)?)?;
        }
    }
    Ok(revoked)
}
