//! Other ways to ask for the same facts, and other ways to write the same rows.

use super::{
    assert_follows,
    followed::{Answers, Followed, Outcome},
};
use crate::support::{
    generate::{
        Case, OnPanic,
        query::{Class, Query},
        schema::Schema,
        transaction::Transaction,
        variant::Variant,
    },
    github::Random,
    postgres::Cluster,
};

/// Classes whose queries are plain SELECTs, which have variants.
const PLAIN: [Class; 5] = [Class::Filter, Class::Join, Class::Exists, Class::In, Class::Scalar];

/// Follows each query of a generated application beside all its variants, and compares their facts with each other.
pub(super) async fn queries(cluster: &Cluster, random: &mut Random, transactions: usize) {
    let mut case = Case::new(random, &PLAIN, transactions);
    let mut same = Vec::new();
    for number in 0..PLAIN.len() {
        let variants: Vec<Query> = Variant::ALL.iter().filter_map(|variant| variant.of(&case.queries[number])).collect();
        for variant in variants {
            same.push((number, case.queries.len()));
            case.queries.push(variant);
        }
    }
    let shown = OnPanic(&case);
    let followed = Followed::start(cluster, &case, &[]).await;
    for transaction in &case.transactions {
        followed.run(transaction).await;
        let facts = followed.facts().await;
        for (query, variant) in &same {
            assert!(facts[*query] == facts[*variant], "q{query} and q{variant} ask the same and get other facts");
        }
    }
    followed.stop().await;
    drop(shown);
    // And none of them is wrong in the same way as the others.
    case.transactions.truncate(transactions / 3);
    assert_follows(cluster, case).await;
}

/// Writes the same rows to three databases: as generated; with two transactions as one, into tables with a column that nobody reads; and
/// with every statement for itself.
pub(super) async fn transactions(cluster: &Cluster, random: &mut Random, transactions: usize) {
    let case = Case::new(random, &Class::ALL, transactions);
    let _shown = OnPanic(&case);
    let plain = Followed::start(cluster, &case, &[]).await;
    let wider = Case { schema: widened(&case.schema), ..case.clone() };
    let (merged, split) = (Followed::start(cluster, &wider, &[]).await, Followed::start(cluster, &case, &[]).await);
    for pair in case.transactions.chunks(2) {
        let mut committed = Vec::new();
        for transaction in pair {
            // What rolled back here would take its neighbour with it there.
            if plain.run(transaction).await == Outcome::Committed {
                committed.push(transaction.clone());
            }
        }
        must_commit(&merged, &Transaction::merged(&committed)).await;
        for transaction in committed.iter().flat_map(Transaction::split) {
            must_commit(&split, &transaction).await;
        }
        let facts = plain.facts().await;
        assert_same(&facts, &merged.facts().await, "merged", &committed);
        assert_same(&facts, &split.facts().await, "split", &committed);
    }
    for followed in [plain, merged, split] {
        followed.stop().await;
    }
}

async fn must_commit(followed: &Followed, transaction: &Transaction) {
    let outcome = followed.run(transaction).await;
    assert_eq!(outcome, Outcome::Committed, "{}", transaction.sql());
}

fn assert_same(facts: &Answers, other: &Answers, how: &str, transactions: &[Transaction]) {
    let last: Vec<String> = transactions.iter().map(Transaction::sql).collect();
    let differing: Vec<usize> = (0..facts.len()).filter(|query| facts[*query] != other[*query]).collect();
    assert!(differing.is_empty(), "{how}, the facts of queries {differing:?} are others after\n{}", last.join("\n"));
}

/// With a column at the end of each table that no query reads and no statement writes.
fn widened(schema: &Schema) -> Schema {
    let mut wider = schema.clone();
    wider.tables.iter_mut().for_each(|table| table.unused = true);
    wider
}
