//! What runs once per fact of a whole dataset. `cargo bench` prints items per second.

mod embedded;

use divan::{Bencher, counter::ItemsCount};
use factsync::{
    data::{ExtentBuilder, Row},
    fact::{Fact, FactType},
    source::postgres::Decoder,
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

/// Rows out of a `COPY … TO STDOUT`, in the pieces that a socket gives.
mod copy {
    use super::*;

    const ROWS: u32 = 100_000;
    const CHUNK: usize = 8 << 10;

    fn text() -> Vec<u8> {
        (0..ROWS).flat_map(|n| format!("user_{n}\tmember\t{}\n", n % 1_000).into_bytes()).collect()
    }

    #[divan::bench]
    fn decode(bencher: Bencher<'_, '_>) {
        let text = text();
        bencher.counter(ItemsCount::new(ROWS)).bench(|| {
            let (mut decoder, mut rows) = (Decoder::new(vec![false; 3]), 0);
            for chunk in text.chunks(CHUNK) {
                let count = |_| {
                    rows += 1;
                    Ok(())
                };
                decoder.feed(chunk, count).expect("well-formed rows");
            }
            decoder.finish().expect("whole rows");
            assert_eq!(rows, ROWS);
        });
    }

    /// The reference: the csv crate over the same bytes, into one record that is used again and again.
    #[divan::bench]
    fn reference_csv_crate(bencher: Bencher<'_, '_>) {
        let text = text();
        bencher.counter(ItemsCount::new(ROWS)).bench(|| {
            let mut reader = csv::ReaderBuilder::new().has_headers(false).delimiter(b'\t').quoting(false).from_reader(text.as_slice());
            let (mut record, mut rows) = (csv::StringRecord::new(), 0);
            while reader.read_record(&mut record).expect("well-formed rows") {
                rows += 1;
            }
            assert_eq!(rows, ROWS);
        });
    }
}

/// Sorting more rows than fit a run, and reading them back.
mod extent {
    use super::*;

    const ROWS: u32 = 500_000;

    /// In no order that means anything.
    fn shuffled() -> Vec<Row> {
        let mut rows = rows(ROWS);
        rows.sort_unstable_by_key(|row| {
            row.as_bytes().iter().fold(0_u32, |hash, byte| hash.wrapping_mul(2_654_435_761) ^ u32::from(*byte))
        });
        rows
    }

    fn through_extent(rows: Vec<Row>) -> usize {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut builder = ExtentBuilder::new(folder.path());
        rows.into_iter().try_for_each(|row| builder.push(row)).expect("pushed");
        builder.finish().expect("sorted").inspect(|row| assert!(row.is_ok())).count()
    }

    #[divan::bench(sample_count = 10)]
    fn shuffled_rows(bencher: Bencher<'_, '_>) {
        let rows = shuffled();
        bencher.counter(ItemsCount::new(ROWS)).with_inputs(|| rows.clone()).bench_values(through_extent);
    }

    #[divan::bench(sample_count = 10)]
    fn rows_in_order(bencher: Bencher<'_, '_>) {
        let rows = rows(ROWS);
        bencher.counter(ItemsCount::new(ROWS)).with_inputs(|| rows.clone()).bench_values(through_extent);
    }

    /// The reference: all rows in memory, sorted by the standard library.
    #[divan::bench(sample_count = 10)]
    fn reference_sort_in_memory(bencher: Bencher<'_, '_>) {
        let rows = shuffled();
        bencher.counter(ItemsCount::new(ROWS)).with_inputs(|| rows.clone()).bench_values(|mut rows| {
            rows.sort_unstable();
            rows.dedup();
            rows.len()
        });
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
