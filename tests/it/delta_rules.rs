//! The rules of incremental views as a program of few lines, held against PostgreSQL; and its bugs, held against the test.
//!
//! [`operators`] and [`compounds`] are the rules, [`queries`] applies each of them, [`history`] records random transactions of a real
//! PostgreSQL together with what every query returned after each. The record is replayed: the rules must give the same rows at every
//! commit, whether a transaction's changes come netted or one by one. Then the same record must tell every seeded bug from the rules:
//! a random test that finds none of them would prove nothing.
//!
//! One bug, [`Bug::RecursionDeletesAlongNew`], changes nothing that anybody could see: [`SAME_RESULT`] says why.

mod compounds;
mod history;
mod operators;
mod queries;
mod zset;

use crate::support::{
    github::Random,
    postgres::{Cluster, Major},
};
use history::{Commit, Rows, record};
use operators::{Bug, Rules};
use queries::queries;
use zset::Zset;

/// Every seeded bug.
const BUGS: [Bug; 14] = [
    Bug::JoinAllOld,
    Bug::JoinAllNew,
    Bug::JoinHalfApplied,
    Bug::JoinNullEqualsNull,
    Bug::AntiDropsNullKey,
    Bug::AntiReadsOldRight,
    Bug::NotInIgnoresNull,
    Bug::DistinctKeepsWeight,
    Bug::NothingHasNoRow,
    Bug::EmptyGroupStays,
    Bug::RecursionNotRederived,
    Bug::RecursionDeletesAlongNew,
    Bug::FirstChangeWins,
    Bug::ExceptAllIsExcept,
];

/// Bugs without a consequence.
///
/// *Deleting along the new edges*: the deletion starts with every pair that a vanished edge was the last step of, not only with the edge
/// itself, so it need not walk along vanished edges again; all other old edges are new edges, too. Along edges that are only new it
/// deletes pairs in excess, and those are derived again.
const SAME_RESULT: [Bug; 1] = [Bug::RecursionDeletesAlongNew];

/// How the changes of one transaction are fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feeding {
    /// As one net change.
    Netted,
    /// Each on its own: after each of them the tables are in some valid state.
    OneByOne,
}

/// Histories of a test. Every bug but [`SAME_RESULT`] showed in each of 40 histories of 100 transactions.
fn seeds() -> usize {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 20 } else { 2 }
}

/// Transactions of a history.
fn transactions() -> usize {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 600 } else { 120 }
}

async fn histories(test: &str) -> Vec<Vec<Commit>> {
    let mut random = Random::new(test);
    let cluster = Cluster::start(Major::V15);
    let mut histories = Vec::new();
    for _ in 0..seeds() {
        let client = cluster.client(&cluster.database()).await;
        histories.push(record(&client, &mut random.split(), transactions()).await);
    }
    histories
}

/// Replays a history through every query's plan; an error says where and how the plan departs from PostgreSQL.
fn replay(history: &[Commit], bug: Option<Bug>, feeding: Feeding) -> Result<(), String> {
    let rules = Rules { bug };
    let mut views: Vec<_> = queries().map(|query| (query, (query.plan)(rules), Zset::default())).collect();
    let mut rows = Rows::default();
    for (number, commit) in history.iter().enumerate() {
        let pieces = match feeding {
            Feeding::Netted => vec![&commit.changes[..]],
            // A transaction without changes is a commit, too.
            Feeding::OneByOne if commit.changes.is_empty() => vec![&[][..]],
            Feeding::OneByOne => commit.changes.chunks(1).collect(),
        };
        for piece in pieces {
            let net = rows.net(piece, bug);
            for (_, plan, result) in &mut views {
                result.fold(&plan.delta(&net), 1);
                plan.commit();
            }
        }
        for ((query, _, result), wanted) in views.iter().zip(&commit.answers) {
            let got = result.printed();
            if got != *wanted {
                return Err(format!("\"{}\" at commit {number}: PostgreSQL has {wanted:?}, the plan {got:?}", query.name));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn exact_the_rules_give_what_postgresql_returns_after_every_commit() {
    for history in histories("delta rules").await {
        for feeding in [Feeding::Netted, Feeding::OneByOne] {
            let outcome = replay(&history, None, feeding);
            assert_eq!(outcome, Ok(()), "{feeding:?}: {:#?}", history.iter().map(|commit| &commit.changes).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn every_seeded_bug_shows_on_the_same_transactions() {
    let histories = histories("seeded bugs").await;
    for bug in BUGS {
        let found = histories.iter().find_map(|history| replay(history, Some(bug), Feeding::Netted).err());
        match found {
            Some(found) => {
                eprintln!("{bug:?}: {found}");
                assert!(!SAME_RESULT.contains(&bug), "{bug:?} was thought to have no consequence: {found}");
            }
            None => assert!(SAME_RESULT.contains(&bug), "the random transactions do not tell {bug:?} from the rules"),
        }
    }
}
