//! Comparing and applying against a fact store in memory that fails on demand.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::*;
use crate::{
    data::Row,
    fact::{Fact, ValueError},
    target::{BatchLimits, Offset},
};

/// A set of facts.
#[derive(Default)]
struct Memory {
    facts: Mutex<BTreeSet<Fact>>,
    batches: Mutex<Vec<Batch>>,
    /// How often to fail: a batch is applied all the same, a listing tells a half, and a fact that is gone by the next attempt.
    failures: AtomicU64,
}

impl Memory {
    fn holding(facts: impl IntoIterator<Item = Fact>) -> Self {
        Self { facts: Mutex::new(facts.into_iter().collect()), ..Self::default() }
    }

    fn fails(&self) -> Result<(), TargetError> {
        let less = |left: u64| left.checked_sub(1);
        match self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less) {
            Ok(_) => Err(TargetError::Busy { status: 503, message: "not now".into(), retry_after: None }),
            Err(_) => Ok(()),
        }
    }
}

impl FactStore for Memory {
    fn limits(&self) -> BatchLimits {
        BatchLimits { entries: 7, bytes: 1_000 }
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
        let mut facts = self.facts.lock().expect("not poisoned");
        for change in &batch.changes {
            match change.op {
                Op::Insert => facts.insert(change.fact.clone()),
                Op::Delete => facts.remove(&change.fact),
            };
        }
        let result = self.fails().map(|()| Offset("1".into()));
        if result.is_ok() {
            self.batches.lock().expect("not poisoned").push(batch.clone());
        }
        Box::pin(std::future::ready(result))
    }

    fn list<'a>(
        &'a self,
        fact_type: &'a FactType,
        each: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        let rows: Vec<Row> = self.facts.lock().expect("not poisoned").iter().filter_map(|fact| fact_type.row(fact)).collect();
        let failure = self.fails();
        let told = match failure {
            Ok(()) => rows,
            Err(_) => rows[..rows.len() / 2].iter().cloned().chain([Row::from_texts(["gone"])]).collect(),
        };
        let told = told.into_iter().try_for_each(each).map_err(TargetError::Receiver);
        Box::pin(std::future::ready(told.and(failure)))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn fact_type(text: &str) -> FactType {
    text.parse().expect(text)
}

fn extent(folder: &Path, rows: impl IntoIterator<Item = Row>) -> Extent {
    let mut builder = ExtentBuilder::new(folder);
    for row in rows {
        builder.push(row).expect("pushed");
    }
    builder.finish().expect("sorted")
}

fn row(id: u32) -> Row {
    Row::from_texts([id.to_string().as_str()])
}

fn facts(of: &FactType, ids: &BTreeSet<u32>) -> BTreeSet<Fact> {
    ids.iter().map(|id| of.stored_fact(&row(*id))).collect()
}

async fn compared(of: &FactType, wanted: Vec<Row>, store: &Memory, folder: &Path) -> Comparison {
    let stored = sendable(list(of, store, folder, Attempts::default(), &|_| ())).await.expect("listed");
    sendable(compare(of, extent(folder, wanted), stored, folder)).await.expect("compared")
}

/// A future that a task can run.
fn sendable<T: Future + Send>(future: T) -> T {
    future
}

/// Two fact types and facts of neither.
async fn reconciled(wanted: [BTreeSet<u32>; 2], stored: [BTreeSet<u32>; 2], failures: u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let types = [fact_type("f(User:_, member)"), fact_type("g(User:_)")];
    let others = facts(&fact_type("f(User:_, admin)"), &(0..5).collect());
    let stored: BTreeSet<Fact> = types.iter().zip(&stored).flat_map(|(of, ids)| facts(of, ids)).collect();
    let store = Memory::holding(stored.union(&others).cloned());
    store.failures.store(failures, Ordering::SeqCst);

    let mut outcomes = Vec::new();
    for (of, ids) in types.iter().zip(&wanted) {
        let rows = ids.iter().map(|id| row(*id)).collect();
        outcomes.push(Outcome::Compared(compared(of, rows, &store, folder.path()).await));
    }
    let wanted: BTreeSet<Fact> = types.iter().zip(&wanted).flat_map(|(of, ids)| facts(of, ids)).collect();
    let drift = wanted.symmetric_difference(&stored).count() as u64;
    assert_eq!(outcomes.iter().map(Outcome::changes).sum::<u64>(), drift);

    store.failures.store(failures, Ordering::SeqCst);
    let seen = AtomicU64::new(0);
    let observer = |written| seen.store(written, Ordering::SeqCst);
    let written = sendable(apply(&store, &mut outcomes, Attempts::default(), &observer)).await.expect("applied");
    assert_eq!(written, drift);
    assert_eq!(seen.load(Ordering::SeqCst), drift);
    assert_eq!(*store.facts.lock().expect("not poisoned"), wanted.union(&others).cloned().collect());
    let batches = store.batches.into_inner().expect("not poisoned");
    let ops: Vec<Op> = batches.iter().flat_map(|batch| &batch.changes).map(|change| change.op).collect();
    assert!(ops.is_sorted(), "a grant went before a revocation");
    assert!(batches.iter().all(|batch| batch.changes.len() <= 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_fact_store_becomes_what_is_wanted_and_nothing_else_changes(
        wanted: [[bool; 24]; 2], stored: [[bool; 24]; 2], failures in 0..3_u64,
    ) {
        let ids = |side: [[bool; 24]; 2]| side.map(|bits| (0..24).filter(|id| bits[*id as usize]).collect());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        runtime.block_on(reconciled(ids(wanted), ids(stored), failures));
    }
}

#[tokio::test]
async fn rows_that_make_no_fact_are_counted_by_reason_and_what_they_made_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = fact_type("f(User:_, Integer:_)");
    let store = Memory::holding([of.stored_fact(&Row::from_texts(["1", "007"])), of.stored_fact(&Row::from_texts(["*", "1"]))]);
    let wanted = vec![
        Row::from_cells([Some("1"), None]),
        Row::from_cells([None, Some("1")]),
        Row::from_texts(["1", "007"]),
        Row::from_texts(["2", "7"]),
        Row::from_texts(["2", "7"]),
    ];
    let comparison = compared(&of, wanted, &store, folder.path()).await;
    let want = [(SkipReason::Null, 2), (SkipReason::Value(ValueError::NotInteger), 1)];
    assert_eq!(comparison.skipped, BTreeMap::from(want));
    assert_eq!((comparison.wanted, comparison.stored), (1, 2));
    assert_eq!((comparison.adds.len(), comparison.removes.len()), (1, 2));
    apply(&store, &mut [Outcome::Compared(comparison)], Attempts::default(), &|_| ()).await.expect("applied");
    assert_eq!(*store.facts.lock().expect("not poisoned"), BTreeSet::from([of.stored_fact(&Row::from_texts(["2", "7"]))]));
}

#[tokio::test]
async fn a_side_that_cannot_be_read_to_its_end_is_an_error_of_its_fact_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = fact_type("f(User:_)");
    let whole = || extent(folder.path(), (0..9).map(row));
    let cut = || Extent::from_sorted([Ok(row(1)), Err(io::Error::other("a cut run"))].into_iter());
    for (wanted, stored) in [(cut(), whole()), (whole(), cut())] {
        let error = compare(&of, wanted, stored, folder.path()).await.expect_err("half a side");
        assert!(matches!(&error, Error::Rows { fact_type, .. } if fact_type == "f(User:_)"), "{error}");
        assert_eq!(error.disposition(), Disposition::Operator);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fact_store_that_stays_away_is_given_up_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = fact_type("f(User:_)");
    let store = Memory::holding([]);
    store.failures.store(u64::MAX, Ordering::SeqCst);
    let error = list(&of, &store, folder.path(), Attempts::default(), &|_| ()).await;
    let outcome = Outcome::failed(&of, &error.expect_err("it never answers"));
    assert!(matches!(&outcome, Outcome::Failed { error, .. } if error == "the fact store answered 503: not now"), "{outcome:?}");
    assert_eq!(outcome.changes(), 0);
}
