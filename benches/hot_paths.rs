//! What runs once per fact of a whole dataset. `cargo bench` prints items per second.

mod embedded;

use divan::{Bencher, counter::ItemsCount};
use factsync::{
    data::Row,
    fact::{Fact, FactType},
    target::{BatchLimits, FactChange, Op, batch::Packer},
    view::diff,
};

fn main() {
    divan::main();
}

/// Facts and rows are of this type.
fn has_role() -> FactType {
    "has_role(User:_, String:_, Organization:_)".parse().expect("a signature")
}

/// `count` distinct rows, in order.
fn rows(count: u32) -> Vec<Row> {
    let row = |n: u32| Row::from_texts([format!("{n:08}").as_str(), "member", format!("{}", n % 1_000).as_str()]);
    (0..count).map(row).collect()
}

fn facts(count: u32) -> Vec<Fact> {
    rows(count).iter().map(|row| has_role().stored_fact(row)).collect()
}

/// Signatures: each listed fact is matched against one, and each row of a query becomes a fact of one.
mod fact_types {
    use super::*;

    const FACTS: u32 = 10_000;

    #[divan::bench]
    fn match_facts(bencher: Bencher<'_, '_>) {
        let (fact_type, facts) = (has_role(), facts(FACTS));
        bencher.counter(ItemsCount::new(FACTS)).bench(|| facts.iter().filter_map(|fact| fact_type.row(fact)).count());
    }

    #[divan::bench]
    fn reject_facts_of_another_constant(bencher: Bencher<'_, '_>) {
        let fact_type: FactType = "has_role(User:_, admin, Organization:_)".parse().expect("a signature");
        let facts = facts(FACTS);
        bencher.counter(ItemsCount::new(FACTS)).bench(|| facts.iter().filter_map(|fact| fact_type.row(fact)).count());
    }

    #[divan::bench]
    fn make_facts(bencher: Bencher<'_, '_>) {
        let (fact_type, rows) = (has_role(), rows(FACTS));
        bencher.counter(ItemsCount::new(FACTS)).bench(|| rows.iter().filter(|row| fact_type.fact(row).is_ok()).count());
    }
}

/// The difference of two sorted sides in memory.
mod difference {
    use super::*;

    const ROWS: u32 = 1_000_000;

    fn changes(wanted: Vec<Row>, stored: Vec<Row>) -> usize {
        diff(wanted.into_iter().map(Ok), stored.into_iter().map(Ok)).count()
    }

    #[divan::bench(sample_count = 10)]
    fn no_drift(bencher: Bencher<'_, '_>) {
        let rows = rows(ROWS);
        bencher
            .counter(ItemsCount::new(ROWS))
            .with_inputs(|| (rows.clone(), rows.clone()))
            .bench_values(|(wanted, stored)| changes(wanted, stored));
    }

    #[divan::bench(sample_count = 10)]
    fn every_other_row_is_missing(bencher: Bencher<'_, '_>) {
        let wanted = rows(ROWS);
        let stored: Vec<Row> = wanted.iter().step_by(2).cloned().collect();
        bencher
            .counter(ItemsCount::new(ROWS))
            .with_inputs(|| (wanted.clone(), stored.clone()))
            .bench_values(|(wanted, stored)| changes(wanted, stored));
    }
}

/// Packing changes into Oso Cloud's batches.
mod batches {
    use super::*;

    const CHANGES: u32 = 10_000;

    #[divan::bench]
    fn pack(bencher: Bencher<'_, '_>) {
        let changes: Vec<FactChange> = facts(CHANGES).into_iter().map(|fact| FactChange { op: Op::Insert, fact }).collect();
        bencher.counter(ItemsCount::new(CHANGES)).with_inputs(|| changes.clone()).bench_values(|changes| {
            let mut packer = Packer::new(BatchLimits { entries: 1_000, bytes: 960 << 10 });
            changes.into_iter().filter_map(|change| packer.push(change).expect("a small fact")).count()
        });
    }
}
