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
mod repeated;
mod source;
mod wire;

use std::time::Duration;

use checker::{Lane, Split};
use followed::{Followed, Setup};
use recorder::Manners;
use source::{BULK, MANY};

/// What a batch may hold on all plans but the free one.
const BATCH: usize = 1_000;

/// What a batch may hold on the free plan.
const FREE_BATCH: usize = 20;

/// Every fault that an answer may tell of or fail to.
const BAD: Manners = Manners { busy: 8, broken: 10, cut: 12, slow: Duration::from_millis(20), repeated: 15, ..GOOD };

/// None, but a list of facts is old when it arrives.
const GOOD: Manners = Manners {
    busy: 0,
    broken: 0,
    cut: 0,
    silent: 0,
    slow: Duration::ZERO,
    slow_lists: Duration::from_millis(200),
    repeated: 0,
    refuses: false,
    most: 0,
};

/// How many times as much a test does.
fn times() -> u64 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 10 } else { 1 }
}

/// A well-behaved fact store and large transactions.
fn setup(name: &'static str) -> Setup {
    Setup {
        name,
        plan: "unlimited",
        rows: &[BULK],
        bulk: 3_000,
        missing: 30,
        manners: GOOD,
        split: Split::Above(BATCH),
        delay: None,
        audits: "6h",
    }
}

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

/// Commits `count` transactions without waiting for any.
async fn work_alone(followed: &mut Followed, count: u64) {
    for _ in 0..count {
        followed.commit().await;
    }
}

/// Goes on until the fact store has applied so many batches: a busy machine puts many commits into few.
async fn work_until(followed: &mut Followed, batches: usize) {
    for _ in 0..10 * batches {
        if followed.recorder.batches() >= batches {
            return;
        }
        followed.commit().await;
        followed.reach().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_state_is_that_of_a_commit_or_a_part_of_a_large_one() {
    let mut followed = Followed::start(setup("live history"), 20).await;
    followed.live();
    work(&mut followed, 150 * times()).await;
    work_until(&mut followed, 30).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.parts > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_state_is_one_under_every_fault() {
    let mut followed = Followed::start(Setup { manners: BAD, audits: "1s", ..setup("faulty history") }, 20).await;
    followed.live();
    for _ in 0..3 * times() {
        work(&mut followed, 25).await;
        // Refused connections, for as long as these take.
        followed.recorder.down().await;
        work_alone(&mut followed, 5).await;
        followed.recorder.up().await;
    }
    work_until(&mut followed, 60).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.repetitions > 5, "{seen:?}");
}

/// Halving gives up the wholeness of commits, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn exact_what_is_not_refused_goes_on_in_order() {
    let manners = Manners { refuses: true, most: 200, ..BAD };
    let setup = Setup { manners, bulk: 400, split: Split::Anywhere, ..setup("history of refusals") };
    let mut followed = Followed::start(setup, 10).await;
    followed.live();
    work(&mut followed, 50 * times()).await;
    work_until(&mut followed, 60).await;
    // Chance may have taken away whatever was refused before.
    let refused = "BEGIN; INSERT INTO account VALUES (900, 'somebody', false); INSERT INTO organization VALUES (900, 'some', NULL);
        INSERT INTO repository VALUES (900, 900, 'some', false); INSERT INTO repository_member VALUES (900, 900, 'maintainer')";
    assert!(followed.commit_sql(refused).await);
    followed.reach().await;
    let parked = followed.status("/outbox/parked").await;
    assert!(parked.as_u64().is_some_and(|parked| parked > 0), "{parked}");
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.parts > 0, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_on_the_free_plan() {
    let free = Setup { plan: "free", rows: &[], bulk: 0, split: Split::Above(FREE_BATCH), ..setup("history of the free plan") };
    let mut followed = Followed::start(Setup { manners: Manners { repeated: 15, ..GOOD }, ..free }, 10).await;
    followed.live();
    work(&mut followed, 15 * times()).await;
    work_until(&mut followed, 20).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 3, "{seen:?}");
}

/// Two batches: the one that is on its way when the revocation is committed, and one that was picked before the revocation was read.
#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_is_never_delayed_behind_a_backfill() {
    let delay = Some(2 * BATCH);
    let backfill = Setup { plan: "growth", rows: &[BULK, MANY], bulk: 0, missing: 95, delay, ..setup("history of a backfill") };
    let mut followed = Followed::prepare(backfill).await;
    followed.run();
    followed.first_batch().await;
    for _ in 0..60 * times() {
        work_alone(&mut followed, 3).await;
        followed.next_batch().await;
    }
    let seen = followed.finish().await;
    assert!(seen.revocations > 10, "{seen:?}");
}

/// Without a quota four batches of a backlog are on their way together, so that one more is the most that arrives before a revocation.
#[tokio::test(flavor = "multi_thread")]
async fn exact_in_a_backfill_under_every_fault() {
    let manners = Manners { slow: Duration::from_millis(60), ..BAD };
    let delay = Some(5 * BATCH);
    let backfill = Setup { rows: &[BULK, MANY], bulk: 0, missing: 95, manners, delay, ..setup("faulty history of a backfill") };
    let mut followed = Followed::prepare(backfill).await;
    followed.run();
    followed.first_batch().await;
    for _ in 0..30 * times() {
        work_alone(&mut followed, 2).await;
        followed.next_batch().await;
    }
    followed.reach().await;
    followed.live();
    work(&mut followed, 20).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 3, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_across_kills_at_any_moment() {
    let mut followed = Followed::prepare(Setup { manners: BAD, ..setup("history of kills") }).await;
    for round in 0..60 * times() {
        // A busy machine is killed before it has sent much.
        if round >= 6 * times() && followed.recorder.batches() >= 40 {
            break;
        }
        // It hangs until it is killed if it meets with one of the batches that are never answered.
        followed.recorder.set(Manners { silent: 10, ..BAD });
        followed.run();
        let transactions = followed.random.below(25);
        work_alone(&mut followed, transactions).await;
        followed.kill();
        if round % 2 == 1 {
            followed.recorder.set(BAD);
            followed.run();
            followed.reach().await;
            followed.live();
            let transactions = followed.random.below(25);
            work(&mut followed, transactions).await;
            followed.kill();
        }
    }
    followed.recorder.set(BAD);
    followed.run();
    let seen = followed.finish().await;
    assert!(seen.whole > 10 && seen.repetitions > 3, "{seen:?}");
}

/// A long queue is delivered as a whole or folded; either way nothing shows that was false before the outage and after it.
#[tokio::test(flavor = "multi_thread")]
async fn exact_after_an_outage() {
    let mut followed = Followed::start(Setup { plan: "growth", ..setup("history of an outage") }, 5).await;
    followed.live();
    work(&mut followed, 5).await;
    followed.reach().await;
    followed.recorder.down().await;
    let transactions = 100;
    work_alone(&mut followed, transactions).await;
    followed.recorder.lane(Lane::Folded);
    followed.recorder.up().await;
    followed.reach().await;
    assert!(followed.log().contains("catching up"), "the queue was never long");
    followed.live();
    work(&mut followed, 5).await;
    let seen = followed.finish().await;
    assert!(seen.whole > 3, "{seen:?}");
}

/// Catching up under faults and kills, while commits go on: nobody can tell any more which commits a state is of, but of each fact what may
/// be said, and at rest everything. The free plan's queue is soon a long one, so that every fact in it has turned several times.
#[tokio::test(flavor = "multi_thread")]
async fn exact_while_catching_up_under_faults_and_kills() {
    let free = Setup { plan: "free", rows: &[], bulk: 0, missing: 0, ..setup("history of catching up") };
    let mut followed = Followed::start(free, 5).await;
    let mut caught_up = false;
    for _ in 0..times() {
        // What is on its way when the outage begins has arrived or not, and nobody knows.
        followed.recorder.set(Manners { cut: 100, busy: 0, broken: 0, ..BAD });
        work_alone(&mut followed, 5).await;
        followed.next_fault().await;
        followed.recorder.down().await;
        work_alone(&mut followed, 60).await;
        if followed.random.below(2) == 0 {
            caught_up |= followed.log().contains("catching up");
            followed.kill();
            followed.run();
        }
        work_alone(&mut followed, 60).await;
        followed.recorder.set(BAD);
        followed.recorder.up().await;
        work_alone(&mut followed, 5).await;
        followed.next_batch().await;
        followed.watch().await;
        work_alone(&mut followed, 5).await;
        caught_up |= followed.log().contains("catching up");
        if followed.random.below(2) == 0 {
            followed.kill();
            followed.run();
        }
        followed.recorder.set(GOOD);
        followed.reach().await;
        caught_up |= followed.log().contains("catching up");
    }
    let seen = followed.finish().await;
    assert!(caught_up, "the queue was never long");
    assert!(seen.batches > 5, "{seen:?}");
}
