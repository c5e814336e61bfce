//! Generated applications, followed by the real process, against oracles that know nothing of views.
//!
//! **Oracle A**, one writer: after every commit, and once that has arrived, the facts are what the queries return in the same session.
//!
//! A failure prints its seed (`FACTSYNC_SEED` repeats it) and, shrunk, the application as a script for `psql`.

mod followed;

use std::time::{Duration, Instant};

use crate::support::{
    generate::{Case, query::Class},
    github::Random,
    postgres::{Cluster, Major},
};
use followed::Followed;

/// How long a failure is made smaller. A run of a case takes a second or a few.
const SHRINKING: Duration = Duration::from_secs(180);

/// Applications of one test.
fn cases() -> usize {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 30 } else { 2 }
}

/// Transactions of one application.
fn transactions() -> usize {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 200 } else { 30 }
}

/// A cluster for many small queries: none of them is worth compiling.
fn cluster(major: Major) -> Cluster {
    Cluster::start_with(major, &[("jit", "off"), ("deadlock_timeout", "100ms")])
}

/// Runs `case` with one writer; where and how the facts first differ.
async fn first_difference(cluster: &Cluster, case: &Case) -> Option<String> {
    let followed = Followed::start(cluster, case, &[]).await;
    let mut difference = followed.difference().await.map(|difference| format!("at first, {difference}"));
    for (number, transaction) in case.transactions.iter().enumerate() {
        if difference.is_some() {
            break;
        }
        followed.run(transaction).await;
        difference = followed.difference().await.map(|difference| format!("after transaction {number}, {difference}"));
    }
    followed.stop().await;
    difference
}

/// Panics if `case` shows a difference, with the smallest case found that shows one.
async fn assert_follows(cluster: &Cluster, case: Case) {
    let Some(difference) = first_difference(cluster, &case).await else { return };
    eprintln!("{difference}; making it smaller");
    let start = Instant::now();
    let small = case.shrink(async |case| start.elapsed() < SHRINKING && first_difference(cluster, case).await.is_some()).await;
    let again = first_difference(cluster, &small).await;
    panic!("{difference}. Shrunk: {}\n{small}", again.as_deref().unwrap_or("the difference does not show every time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_after_every_commit_of_generated_applications() {
    let mut random = Random::new("oracle A");
    let cluster = cluster(Major::V15);
    for _ in 0..cases() {
        let case = Case::new(&mut random, &Class::ALL, transactions());
        assert_follows(&cluster, case).await;
    }
}
