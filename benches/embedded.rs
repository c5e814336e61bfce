//! The embedded fact store: a durable batch, a read by pattern, a whole listing.

use std::{sync::LazyLock, time::Duration};

use divan::{Bencher, counter::ItemsCount};
use factsync::{
    fact::{Fact, FactType, Value},
    target::{Batch, FactChange, FactStore, Op, embedded::EmbeddedStore},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Facts that are there before anything is measured.
const STORED: u32 = 100_000;

const BATCH: u32 = 1_000;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime starts"));

/// A store of [`STORED`] facts; the folder lives as long as it.
struct Filled {
    store: EmbeddedStore,
    _folder: TempDir,
}

impl Filled {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = EmbeddedStore::open(&folder.path().join("facts.db")).expect("a new file opens");
        let entries = u32::try_from(store.limits().entries).expect("a batch is small");
        for start in (0..STORED).step_by(entries as usize) {
            apply(&store, &batch(start..STORED.min(start + entries), Op::Insert));
        }
        Self { store, _folder: folder }
    }
}

/// Organizations hold a hundred users each, and ids are spread so that neighbours in time are none in the index.
fn fact(n: u32) -> Fact {
    let spread = n.wrapping_mul(2_654_435_761);
    let args = vec![
        Value::new("User", format!("{spread:08x}")),
        Value::new("String", "member"),
        Value::new("Organization", (n / 100).to_string()),
    ];
    Fact { predicate: "has_role".into(), args }
}

fn batch(range: std::ops::Range<u32>, op: Op) -> Batch {
    Batch { request_id: Uuid::nil(), changes: range.map(|n| FactChange { op, fact: fact(n) }).collect() }
}

fn apply(store: &EmbeddedStore, batch: &Batch) {
    RUNTIME.block_on(store.apply(batch)).expect("the batch is applied");
}

fn count(store: &EmbeddedStore, fact_type: &str) -> u32 {
    let fact_type: FactType = fact_type.parse().expect("a signature");
    let mut rows = 0;
    let mut each = |_| {
        rows += 1;
        Ok(())
    };
    RUNTIME.block_on(store.list(&fact_type, &mut each)).expect("it lists");
    rows
}

/// Ends with an fsync, so it says as much about the disk as about the store.
#[divan::bench(max_time = Duration::from_secs(10))]
fn insert_a_batch_durably(bencher: Bencher<'_, '_>) {
    let filled = Filled::new();
    let mut next = STORED;
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| {
            next += BATCH;
            batch(next - BATCH..next, Op::Insert)
        })
        .bench_local_refs(|batch| apply(&filled.store, batch));
}

/// What delivery does after a lost answer: everything is there already.
#[divan::bench]
fn repeat_a_batch(bencher: Bencher<'_, '_>) {
    let (filled, again) = (Filled::new(), batch(0..BATCH, Op::Insert));
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| apply(&filled.store, &again));
}

/// A hundred facts by their last argument, through an index of their own.
#[divan::bench]
fn get_by_pattern(bencher: Bencher<'_, '_>) {
    let filled = Filled::new();
    bencher
        .counter(ItemsCount::new(100_u32))
        .bench_local(|| assert_eq!(count(&filled.store, "has_role(User:_, String:_, Organization:500)"), 100));
}

#[divan::bench(sample_count = 20)]
fn list_everything(bencher: Bencher<'_, '_>) {
    let filled = Filled::new();
    bencher
        .counter(ItemsCount::new(STORED))
        .bench_local(|| assert_eq!(count(&filled.store, "has_role(User:_, String:_, Organization:_)"), STORED));
}
