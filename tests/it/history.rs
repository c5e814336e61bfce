//! What a fact store goes through, checked against what the source went through.
//!
//! A [`recorder`] stands in for the fact store. It starts with wrong facts, behaves badly in every way a network and a server can, and
//! remembers each batch it applied. The [`source`] is a real PostgreSQL under random transactions, a second one says what the queries
//! return after each of them. The [`checker`] is a pure function of the two; what it must refuse is in [`broken`].
//!
//! `FACTSYNC_SEED` repeats the transactions and the faults of a run, though not its timing; `FACTSYNC_LONG` makes it longer.

mod broken;
mod checker;
mod facts;
mod followed;
mod recorder;
mod source;
mod wire;

use std::time::Duration;

use checker::Split;
use followed::{Followed, Setup};
use recorder::Manners;

/// What a batch may hold on all plans but the free one.
const BATCH: usize = 1_000;

/// How many transactions a test commits where one is asked for.
fn times() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 10 } else { 1 }
}

/// A well-behaved fact store and large transactions.
fn setup(name: &'static str) -> Setup {
    Setup { name, plan: "unlimited", bulk: 3_000, manners: Manners::default(), split: Split::Above(BATCH), delay: None, audits: "6h" }
}

/// Every fault that an answer may tell of or fail to.
const BAD: Manners = Manners { busy: 8, broken: 10, cut: 12, silent: 0, slow: Duration::ZERO, repeated: 15, refuses: false, most: 0 };

/// Commits `count` transactions, now and then waiting for them or watching.
async fn work(followed: &mut Followed, count: u64) {
    for _ in 0..count {
        followed.commit().await;
        match followed.random.below(8) {
            0 => followed.reach().await,
            1 => followed.watch().await,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_state_is_that_of_a_commit_or_a_part_of_a_large_one() {
    let mut followed = Followed::start(setup("live history"), 20).await;
    followed.live();
    work(&mut followed, 150 * times()).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.parts > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_state_is_one_under_every_fault() {
    let manners = Manners { slow: Duration::from_millis(20), ..BAD };
    let mut followed = Followed::start(Setup { manners, audits: "1s", ..setup("faulty history") }, 20).await;
    followed.live();
    for _ in 0..3 * times() {
        work(&mut followed, 25).await;
        followed.recorder.down().await;
        work_alone(&mut followed, 5).await;
        followed.recorder.up().await;
    }
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.repetitions > 5, "{seen:?}");
}

/// Commits `count` transactions without waiting for any.
async fn work_alone(followed: &mut Followed, count: u64) {
    for _ in 0..count {
        followed.commit().await;
    }
}
