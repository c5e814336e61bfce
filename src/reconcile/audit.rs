//! Comparing three sets of facts: what the source's queries answer, what is desired, and what the fact store holds.
//!
//! ```text
//! FactStore::list ──Extent──┐
//! desired facts ────────────┼─ Scale ──> missing, stale; desired − held ──Spool──┐
//! held, on their way ───────┘                                                    ├─ diff ──> wrong
//! the source's answer ──────Extent───────────────────────────────────────────────┘
//! ```
//!
//! Everything is sorted and merged, what has to be set aside is on disk: memory depends neither on the facts nor on the drift.
//!
//! Facts that are on their way are not judged, and taken for what is desired, in the digest of what is stored, too. Facts that are held,
//! for a person to look at, are desired and no result of a query, so they are counted apart and are in no digest.

use std::{cmp::Ordering, io, iter::Peekable, path::Path};

use crate::{
    data::{Extent, ExtentBuilder, Row, Sought},
    fact::FactType,
    reconcile::{
        digest::{FactDigest, FactSet},
        spool::{Spool, SpoolWriter},
    },
    view::diff,
};

/// Compares the desired facts of one type, which are told one by one in row order, with what was listed.
pub struct Scale<'t> {
    listed: Peekable<Extent>,
    held: Sought,
    on_their_way: Sought,
    desired: FactDigest<'t>,
    stored: FactDigest<'t>,
    wanted: SpoolWriter,
    missing: ExtentBuilder,
    stale: ExtentBuilder,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    listed: u64,
    held: u64,
    skipped: u64,
}

/// The outcome.
#[derive(Debug)]
pub struct Weighed {
    /// What is desired, without what is held.
    pub desired: FactSet,
    /// What is stored, without what is held; what is on its way as it is desired.
    pub stored: FactSet,
    /// Facts that the fact store listed.
    pub listed: u64,
    /// Facts that stay until a person has looked at them.
    pub held: u64,
    /// Facts that differ and were on their way.
    pub on_their_way: u64,
    /// Desired and not stored, in row order.
    pub missing: Extent,
    /// Stored and not desired, in row order.
    pub stale: Extent,
    /// What is desired, without what is held.
    pub wanted: Spool,
}

impl<'t> Scale<'t> {
    /// Nothing is desired yet.
    pub fn new(fact_type: &'t FactType, listed: Extent, held: Extent, on_their_way: Extent, folder: &Path) -> Self {
        Self {
            listed: listed.peekable(),
            held: held.into(),
            on_their_way: on_their_way.into(),
            desired: FactDigest::new(fact_type),
            stored: FactDigest::new(fact_type),
            wanted: SpoolWriter::new(folder),
            missing: ExtentBuilder::new(folder),
            stale: ExtentBuilder::new(folder),
            counts: Counts::default(),
        }
    }

    /// The next fact that is desired.
    pub fn desire(&mut self, row: Row) -> io::Result<()> {
        let found = self.pass(Some(&row))?;
        let held = self.held.has(&row)?;
        self.counts.held += u64::from(held);
        if !held {
            self.desired.add(&row);
            self.wanted.push(&row)?;
        }
        let passes = if found { true } else { self.on_their_way.has(&row)? };
        if passes && !held {
            self.stored.add(&row);
        }
        self.counts.skipped += u64::from(passes && !found);
        if !passes {
            self.missing.push(row)?;
        }
        Ok(())
    }

    /// Goes on in the listing up to `row`, or to its end; whether `row` is there.
    fn pass(&mut self, row: Option<&Row>) -> io::Result<bool> {
        while let Some(next) = self.listed.peek() {
            let order = match (next, row) {
                (Ok(next), Some(row)) => next.cmp(row),
                // An error, too, is taken out and ends it.
                (Ok(_) | Err(_), _) => Ordering::Less,
            };
            if order == Ordering::Greater {
                return Ok(false);
            }
            let Some(next) = self.listed.next().transpose()? else { return Ok(false) };
            self.counts.listed += 1;
            if order == Ordering::Equal {
                return Ok(true);
            }
            if self.on_their_way.has(&next)? {
                self.counts.skipped += 1;
            } else {
                self.stored.add(&next);
                self.stale.push(next)?;
            }
        }
        Ok(false)
    }

    /// That was all that is desired.
    pub fn finish(mut self) -> io::Result<Weighed> {
        self.pass(None)?;
        let Self { desired, stored, wanted, missing, stale, counts, .. } = self;
        Ok(Weighed {
            desired: desired.finish(),
            stored: stored.finish(),
            listed: counts.listed,
            held: counts.held,
            on_their_way: counts.skipped,
            missing: missing.finish()?,
            stale: stale.finish()?,
            wanted: wanted.finish()?,
        })
    }
}

/// What the source says of a fact type, and in how many facts what is desired is something else.
#[derive(Debug)]
pub struct Witnessed {
    /// Distinct rows of the query.
    pub rows: u64,
    /// The facts that they make.
    pub facts: FactSet,
    /// Facts that are desired and not the source's, or the other way round.
    pub wrong: u64,
}

/// Compares the source's `answer` with what is `wanted` of it.
pub fn witness(fact_type: &FactType, answer: Extent, wanted: &mut Spool) -> io::Result<Witnessed> {
    let (mut rows, mut digest) = (0, FactDigest::new(fact_type));
    let answer = answer.filter(|row| {
        let Ok(row) = row else { return true };
        rows += 1;
        let admitted = fact_type.admits(row).is_ok();
        if admitted {
            digest.add(row);
        }
        admitted
    });
    let mut wrong = 0;
    for change in diff(answer, wanted.rows()?) {
        change?;
        wrong += 1;
    }
    Ok(Witnessed { rows, facts: digest.finish(), wrong })
}
