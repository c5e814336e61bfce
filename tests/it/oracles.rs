//! Generated applications, followed by the real process, against oracles that know nothing of views.
//!
//! **Oracle A**, one writer: after every commit, and once that has arrived, the facts are what the queries return in the same session.
//!
//! **Oracle B**, concurrent writers: the change log of a second slot is applied, commit by commit, to a shadow database ([`shadow`]). A
//! recording fact store ([`recorder`]) remembers every state that a batch left behind: each must be the shadow's at some commit, in the
//! order of the commits.
//!
//! **Oracle C**, under the same load: temporary slots export snapshots ([`audit`]). What the queries return in such a snapshot is what
//! they return in the shadow at its position, so the two oracles vouch for each other; and what the fact store holds when `/v1/wait`
//! has answered for that position is at that position or beyond.
//!
//! **Metamorphic relations** ([`metamorphic`]): the same facts, asked for in other ways and written in other transactions.
//!
//! PostgreSQL shows a TRUNCATE to snapshots that are older, so a reader of one sees the state at no commit. Beside such readers (the first
//! snapshot, an audit) nobody truncates here. Where somebody does, refresh views are compared at the end only, and no table has
//! partitions: views of those are then read again.
//!
//! A failure prints its seed (`FACTSYNC_SEED` repeats it) and, shrunk, the application as a script for `psql`.

mod audit;
mod concurrent;
pub(crate) mod followed;
mod metamorphic;
pub(crate) mod recorder;
mod shadow;

use std::time::{Duration, Instant};

use crate::support::{
    generate::{
        Case, OnPanic,
        query::{Class, Query},
        schema::{Column, Layout, Schema, Table, Type},
        transaction::Transaction,
    },
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
    let _shown = OnPanic(case);
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

async fn concurrent_difference(cluster: &Cluster, case: &Case, audits: usize) -> Option<String> {
    let _shown = OnPanic(case);
    let run = concurrent::run(cluster, case, audits).await;
    let (commits, steps) = run.steps();
    eprintln!("{commits} commits arrived in {steps} batches");
    run.difference().map(|difference| format!("{difference}\n{}", run.log))
}

async fn assert_concurrent(test: &str, major: Major, audits: usize) {
    let mut random = Random::new(test);
    let cluster = cluster(major);
    for _ in 0..cases() {
        let case = Case::new(&mut random, &Class::ALL, 4 * transactions());
        if let Some(difference) = concurrent_difference(&cluster, &case, audits).await {
            panic!("{difference}\n{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_state_under_concurrent_writers_is_that_of_a_commit() {
    assert_concurrent("oracle B", Major::V15, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_at_the_positions_of_exported_snapshots_under_load() {
    assert_concurrent("oracle C", Major::V18, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_in_every_variant_of_a_query() {
    let mut random = Random::new("variants");
    let cluster = cluster(Major::V15);
    for _ in 0..cases() {
        metamorphic::queries(&cluster, &mut random, transactions() / 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_however_the_same_statements_are_committed() {
    let mut random = Random::new("split and merged");
    let cluster = cluster(Major::V15);
    for _ in 0..cases() {
        metamorphic::transactions(&cluster, &mut random, transactions()).await;
    }
}

/// The oracle must be able to fail: here factsync is told another query than PostgreSQL is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_wrong_is_found_and_made_small() {
    let mut random = Random::new("planted");
    let cluster = cluster(Major::V15);
    let columns = ["k0", "c0", "c1"].map(|name| Column::new(name, Type::Int)).to_vec();
    let table = Table { name: "t0".into(), layout: Layout::Keyed, columns, keys: 1, big: false, unused: false, parent: None };
    let schema = Schema { tables: vec![table], views: Vec::new() };
    let mut transactions: Vec<Transaction> = (0..5).map(|_| Transaction::new(&mut random, &schema)).collect();
    let insert = "INSERT INTO t0 VALUES (77, 77, 0);";
    transactions.insert(3, Transaction { statements: vec!["TRUNCATE t0;".into(), insert.into()] });
    let query = |sql: &str, told: Option<&str>| Query::plain(sql, told);
    let wrong = query("SELECT c0::text FROM t0", Some("SELECT c0::text FROM t0 WHERE c0 <> 77"));
    let case = Case { schema, queries: vec![query("SELECT c1::text FROM t0", None), wrong], transactions };
    let difference = first_difference(&cluster, &case).await;
    assert_eq!(difference.as_deref(), Some("after transaction 3, q1 lacks [[\"77\"]] and still has []"), "{case}");
    let small = case.shrink(async |case| first_difference(&cluster, case).await.is_some()).await;
    assert_eq!((small.queries.len(), small.transactions.len()), (1, 1), "{small}");
    assert_eq!(small.transactions[0].statements, [insert]);
}
