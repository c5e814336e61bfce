//! Adoption: what the fact store holds at the first contact with a fact type, and no query wants, is taken over as held.
//!
//! Somebody else wrote these facts, and only a person can say whether they are mistakes or belong to something the queries leave out. So
//! adopted holds are firmer than those of the guard, which judges each result anew: they stay, however few they are, until
//!
//! - `--allow-removals` lets go of them,
//! - the query brings the fact back, or
//! - a comparison finds that the fact store no longer has it, because whoever wrote it has removed it.
//!
//! **A revocation that was seen is not adopted.** Between the first snapshot and the first comparison, which may be hours if the fact store
//! is down, commits revoke facts. What they revoked is in the fact store and in no result, like what was never wanted. The difference is
//! that it has been a desired fact of this very store: so it waits as a delete, in the outbox, in the backlog, or refused, or a later
//! snapshot takes it out of the desired facts. [`revoked`] gathers these, and they are removed.

use std::{cmp::Ordering, io, iter::Peekable, path::Path};

use rusqlite::{Transaction, params};

use crate::{
    data::{Extent, ExtentBuilder, Row},
    store::{
        Failure, ViewId,
        facts::{Members, Set},
        outbox,
    },
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

/// Revocations that were seen, asked for in row order.
pub(super) struct Seen(Peekable<Extent>);

impl Seen {
    pub(super) fn new(revoked: ExtentBuilder) -> io::Result<Self> {
        Ok(Self(revoked.finish()?.peekable()))
    }

    /// Whether `row` is among them; no row before it can be asked for any more.
    pub(super) fn has(&mut self, row: &Row) -> io::Result<bool> {
        while let Some(next) = self.0.peek() {
            match next.as_ref().map_or(Ordering::Less, |next| next.cmp(row)) {
                // An error, too, is taken out and ends it.
                Ordering::Less => drop(self.0.next().transpose()?),
                Ordering::Equal => return Ok(true),
                Ordering::Greater => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// The adopted holds of a view, while a new result is compared with what is stored.
pub(super) struct Adopted<'t> {
    tx: &'t Transaction<'t>,
    view: ViewId,
    members: Members<'t>,
    kept: ExtentBuilder,
    count: u64,
    /// Whether nobody has let go of them.
    firm: bool,
}

impl<'t> Adopted<'t> {
    pub(super) fn of(tx: &'t Transaction<'_>, view: ViewId, guard: Guard, spool: &Path) -> Self {
        let members = Set::Adopted.of(tx, view);
        Self { tx, view, members, kept: ExtentBuilder::new(spool), count: 0, firm: guard != Guard::Off }
    }

    /// Whether `row`, which the new result lacks, stays because it was adopted.
    pub(super) fn keeps(&mut self, row: &Row) -> Result<bool, Failure> {
        if !self.firm || !self.members.contains(row)? {
            return Ok(false);
        }
        self.kept.push(row.clone())?;
        self.count += 1;
        Ok(true)
    }

    /// Ends all holds but those that were kept, and tells how many these are.
    pub(super) fn finish(mut self) -> Result<u64, Failure> {
        Set::Held.clear(self.tx, self.view)?;
        for row in self.kept.finish()? {
            self.members.insert(&row?)?;
        }
        Ok(self.count)
    }
}
