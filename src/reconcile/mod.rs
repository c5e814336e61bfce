//! Comparing what the queries want with what the fact store holds, and making the one the other.
//!
//! ```text
//! wanted rows ──────Extent──┐
//!                           ├─ diff ──> removes ─┐
//! FactStore::list ──Extent──┘      └──> adds ────┴─> Packer ──> FactStore::apply      removes of all fact types first
//! ```
//!
//! Both sides are sorted on disk once they are large ([`Extent`]), the difference is one merge, and what has to change is set
//! aside on disk again ([`Spool`]) until all fact types are compared. So memory depends neither on the facts nor on the drift.
//!
//! Each side is judged only if it is whole: a listing that breaks off, a spool that lost rows and a query that fails are
//! errors of their fact type and never a shorter side, which would revoke, or grant, everything that is missing in it.
//!
//! A comparison is of two moments, one of the source and one of the fact store: what changes between them shows up as drift, and is
//! gone from the next comparison.

mod audit;
mod digest;
mod proof;
mod report;
mod spool;

use std::{collections::BTreeMap, io, path::Path};

use uuid::Uuid;

use crate::{
    data::{Extent, ExtentBuilder},
    error::{Disposition, causes},
    fact::{FactType, SkipReason},
    target::{
        Batch, FactChange, FactStore, Op, TargetError,
        batch::{PackError, Packer},
        retry::{Attempts, Pause, apply_with_retry},
    },
    view::diff,
};

pub use audit::{Scale, Weighed, Witnessed, witness};
pub use digest::{FactDigest, FactSet, hex};
pub use proof::{Audit, Drift, FailedAudit, SourceAudit, TypeAudit, Verdict};
pub use report::{Detail, MAX_LISTED_CHANGES, Report};
pub use spool::Spool;
use spool::SpoolWriter;

/// How many facts pass between two calls of an observer of listings: often enough for a progress bar.
const OBSERVED_EVERY: u64 = 4_096;

/// Called with how many facts have passed so far.
pub type Observer<'a> = &'a (dyn Fn(u64) + Sync);

/// Why facts could not be compared or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The fact store failed, after the attempts it was given.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A fact that cannot be sent.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Wanted or stored rows could not be read back, or differences not be set aside.
    #[error("could not compare the facts of type \"{fact_type}\"")]
    Rows {
        /// The signature.
        fact_type: String,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Who acts next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Target(error) => error.disposition(),
            Self::Pack(_) | Self::Rows { .. } => Disposition::Operator,
        }
    }
}

/// How a fact type's facts in the fact store differ from those its query wants.
#[derive(Debug)]
pub struct Comparison {
    /// The fact type.
    pub fact_type: FactType,
    /// Rows of facts that are wanted and not stored, in row order.
    pub adds: Spool,
    /// Rows of facts that are stored and not wanted, in row order.
    pub removes: Spool,
    /// Facts wanted.
    pub wanted: u64,
    /// Facts stored.
    pub stored: u64,
    /// Distinct rows of the query that make no fact.
    pub skipped: BTreeMap<SkipReason, u64>,
}

impl Comparison {
    /// How many facts have to change.
    pub fn changes(&self) -> u64 {
        self.adds.len() + self.removes.len()
    }
}

/// What became of the comparison of one fact type.
#[derive(Debug)]
pub enum Outcome {
    /// It was compared.
    Compared(Comparison),
    /// It could not be; the other fact types are not affected.
    Failed {
        /// The fact type.
        fact_type: FactType,
        /// Why, for a person.
        error: String,
    },
}

impl Outcome {
    /// A failure, told with all its causes.
    pub fn failed(fact_type: &FactType, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed { fact_type: fact_type.clone(), error: causes(error) }
    }

    /// How many facts have to change, as far as it is known.
    pub fn changes(&self) -> u64 {
        match self {
            Self::Compared(comparison) => comparison.changes(),
            Self::Failed { .. } => 0,
        }
    }
}

/// Compares the rows `wanted` with the rows `stored` of what the fact store holds ([`list`]).
pub async fn compare(fact_type: &FactType, wanted: Extent, stored: Extent, spool: &Path) -> Result<Comparison, Error> {
    let (of, folder) = (fact_type.clone(), spool.to_owned());
    blocking(fact_type, move || merge(of, wanted, stored, &folder)).await
}

/// The rows of everything `store` holds of `fact_type`. Each attempt starts from nothing: a failed one has seen nobody knows what.
///
/// `observer` hears how many facts were listed; after a failed attempt it starts from zero again.
pub async fn list(
    fact_type: &FactType,
    store: &dyn FactStore,
    spool: &Path,
    attempts: Attempts,
    observer: Observer<'_>,
) -> Result<Extent, Error> {
    let mut pause = Pause::new(Uuid::new_v4(), attempts);
    loop {
        let (mut rows, mut count) = (ExtentBuilder::new(spool), 0_u64);
        let mut keep = |row| {
            count += 1;
            if count.is_multiple_of(OBSERVED_EVERY) {
                observer(count);
            }
            rows.push(row)
        };
        match store.list(fact_type, &mut keep).await {
            Ok(()) => {
                observer(count);
                return blocking(fact_type, || rows.finish()).await;
            }
            Err(error) => pause.after(error).await?,
        }
    }
}

/// Whole datasets are sorted and read here: too long for a thread that others wait for.
async fn blocking<T: Send + 'static>(of: &FactType, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    done.map_err(|source| Error::Rows { fact_type: of.to_string(), source })
}

fn merge(fact_type: FactType, wanted: Extent, stored: Extent, folder: &Path) -> io::Result<Comparison> {
    let (mut adds, mut removes) = (SpoolWriter::new(folder), SpoolWriter::new(folder));
    let (mut wanted_count, mut stored_count, mut skipped) = (0, 0, BTreeMap::new());
    let wanted = wanted.filter(|row| {
        let Ok(row) = row else { return true };
        match fact_type.admits(row) {
            Ok(()) => wanted_count += 1,
            Err(reason) => {
                *skipped.entry(reason).or_default() += 1;
                return false;
            }
        }
        true
    });
    let stored = stored.inspect(|_| stored_count += 1);
    for change in diff(wanted, stored) {
        match change? {
            (Op::Insert, row) => adds.push(&row)?,
            (Op::Delete, row) => removes.push(&row)?,
        }
    }
    let (adds, removes) = (adds.finish()?, removes.finish()?);
    Ok(Comparison { fact_type, adds, removes, wanted: wanted_count, stored: stored_count, skipped })
}

/// Makes the fact store what the queries want: the removes of all fact types first, so that no grant waits in front of a
/// revocation, then the adds. Returns how many facts were written.
///
/// `observer` hears that number after each batch. What was written before an error stays written, and the next comparison
/// starts from there.
pub async fn apply(store: &dyn FactStore, outcomes: &mut [Outcome], attempts: Attempts, observer: Observer<'_>) -> Result<u64, Error> {
    let mut writer = Writer { store, attempts, observer, written: 0 };
    let mut packer = Packer::new(store.limits());
    for op in [Op::Delete, Op::Insert] {
        for outcome in &mut *outcomes {
            let Outcome::Compared(Comparison { fact_type, adds, removes, .. }) = outcome else { continue };
            let spool = match op {
                Op::Delete => removes,
                Op::Insert => adds,
            };
            let unreadable = |source| Error::Rows { fact_type: fact_type.to_string(), source };
            for row in spool.rows().map_err(unreadable)? {
                let fact = fact_type.stored_fact(&row.map_err(unreadable)?);
                if let Some(full) = packer.push(FactChange { op, fact })? {
                    writer.write(&full).await?;
                }
            }
        }
    }
    if let Some(last) = packer.cut() {
        writer.write(&last).await?;
    }
    Ok(writer.written)
}

/// Sends batches, one after the other: the quota, not the round trip, is what limits them.
struct Writer<'a> {
    store: &'a dyn FactStore,
    attempts: Attempts,
    observer: Observer<'a>,
    written: u64,
}

impl Writer<'_> {
    async fn write(&mut self, batch: &Batch) -> Result<(), Error> {
        apply_with_retry(self.store, batch, self.attempts).await?;
        self.written += batch.changes.len() as u64;
        (self.observer)(self.written);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
