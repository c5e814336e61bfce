//! Random plans over random tables under random changes: the dataflow must at every moment have the result of
//! [`naive::evaluate`](crate::query::naive::evaluate), and what it stores must be what a load would store.
//!
//! Everything is decoded from lists of small numbers: every list means something, shorter lists and smaller numbers mean simpler plans
//! and changes, and so a failure shrinks to a small one. Domains are tiny, so that NULLs, duplicates and matches are the rule.

mod counted;
mod generate;
mod world;

use proptest::prelude::*;

use crate::{
    data::{ChangeBatch, Row},
    query::{Aggregate, AggregateKind, Clock, Comparison, EqualPair, Expr, Kind, Now, Order, Plan, SetKind},
    view::random_plans::{
        generate::{Choices, clock, native, plan},
        world::{BAG, LEFT, RIGHT, Step, TABLES, World, cases, chunks, run, step},
    },
};

fn plans() -> impl Strategy<Value = Plan> {
    prop::collection::vec(any::<u8>(), 0..60).prop_map(|choices| plan(&mut Choices::new(&choices), 3).0)
}

/// One operator, or two, over tables of few different rows.
fn operators() -> impl Strategy<Value = Plan> {
    (1..20_u8, prop::collection::vec(any::<u8>(), 20)).prop_map(|(kind, choices)| {
        let choices = [vec![kind], choices].concat();
        plan(&mut Choices::new(&choices), 1).0
    })
}

/// Rows of which each side has several.
fn sets() -> impl Strategy<Value = Plan> {
    prop::sample::select(vec![SetKind::Except, SetKind::ExceptAll, SetKind::Intersect, SetKind::IntersectAll]).prop_map(|kind| {
        let both = |table| Box::new(Plan::UnionAll(vec![pick(scan(table), &[1]), pick(scan(BAG), &[0])]));
        Plan::Set { kind, left: both(LEFT), right: Box::new(pick(scan(RIGHT), &[1])) }
    })
}

/// One condition on the time over another, so that rows come and go in the upper one because time passes in the lower one.
fn clocks() -> impl Strategy<Value = Plan> {
    prop::collection::vec(any::<u8>(), 20).prop_map(|choices| {
        let mut choices = Choices::new(&choices);
        let (table, types) = TABLES[1];
        let lower = clock(&mut choices, (scan(table), types.to_vec()));
        clock(&mut choices, lower).0
    })
}

/// Changes between which time passes.
fn passing() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let loaded = prop::collection::vec(step().prop_map(|step| Step { kind: 20, table: 1, ..step }), 0..10);
    let change = step().prop_map(|step| Step { kind: if step.kind > 20 { 39 } else { step.kind.max(1) }, table: 1, ..step });
    let streamed = prop::collection::vec(prop::collection::vec(change, 1..4), 1..8);
    (loaded, streamed).prop_map(|(first, rest)| std::iter::once(first).chain(rest).collect())
}

fn int(index: usize) -> Expr {
    Expr::Column { index, kind: Kind::Int }
}

fn pick(input: Plan, columns: &[usize]) -> Plan {
    Plan::Map { input: Box::new(input), columns: columns.iter().map(|column| int(*column)).collect() }
}

fn scan(table: u32) -> Plan {
    Plan::Scan { table }
}

/// Inputs joined where the first column of each pair equals the second.
fn join(inputs: Vec<Plan>, on: &[[(usize, usize); 2]]) -> Plan {
    let on = on.iter().map(|[left, right]| EqualPair { left: *left, right: *right }).collect();
    Plan::Join { inputs, on, filter: None }
}

fn recursive(base: Plan, step: Plan, width: usize) -> Plan {
    Plan::Recursive { base: Box::new(base), step: Box::new(step), width }
}

fn itself(width: usize) -> Plan {
    Plan::Itself { width }
}

/// Edges from the second column to the third.
fn edges() -> Plan {
    pick(scan(LEFT), &[1, 2])
}

/// The transitive closure of edges.
fn closure() -> Plan {
    recursive(edges(), pick(join(vec![itself(2), scan(LEFT)], &[[(0, 1), (1, 1)]]), &[0, 4]), 2)
}

/// All descendants of each folder, itself included.
fn folders() -> Plan {
    recursive(pick(scan(RIGHT), &[0, 0]), pick(join(vec![itself(2), scan(RIGHT)], &[[(0, 1), (1, 1)]]), &[0, 2]), 2)
}

/// Recursions over graphs with cycles, diamonds, self loops, parallel edges and rows that are in the base and derivable.
fn recursions() -> impl Strategy<Value = Plan> {
    let start = Plan::Values { rows: vec![Row::from_texts(["0"])], width: 1 };
    // What can be reached from 0, over the set as the second input, with parallel edges and edges back.
    let both_ways = Plan::UnionAll(vec![edges(), edges(), pick(scan(RIGHT), &[1, 0])]);
    let reached = recursive(start, pick(join(vec![both_ways.clone(), itself(1)], &[[(0, 0), (1, 0)]]), &[1]), 1);
    // Two edges at once, the set between them.
    let middle = join(vec![scan(LEFT), itself(2), scan(LEFT)], &[[(0, 2), (1, 0)], [(1, 1), (2, 1)]]);
    let grown = recursive(pick(scan(RIGHT), &[0, 1]), pick(middle, &[1, 7]), 2);
    // The set alone: every pair also the other way round.
    let turned = recursive(edges(), pick(itself(2), &[1, 0]), 2);
    // Only the part of the set with a first column below 4 goes on, and NULLs come up.
    let below = Expr::Call { function: native(66), args: vec![int(0), Expr::Const { text: Some("4".into()), kind: Kind::Int }] };
    let some = Plan::Filter { input: Box::new(pick(itself(2), &[1, 0])), condition: below };
    let filtered = recursive(both_ways, pick(join(vec![some, scan(LEFT)], &[[(0, 0), (1, 2)]]), &[1, 3]), 2);
    prop::sample::select(vec![closure(), folders(), reached, grown, turned, filtered])
}

/// Many small changes of the two tables with edges.
fn graph_changes() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let edge = |least: u8| step().prop_map(move |step| Step { table: step.table % 2, kind: step.kind.max(least), ..step });
    let loaded = prop::collection::vec(edge(20), 0..10);
    let streamed = prop::collection::vec(prop::collection::vec(edge(1), 1..4), 1..12);
    (loaded, streamed).prop_map(|(first, rest)| std::iter::once(first).chain(rest).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_dataflow_has_the_result_of_the_definition(plan in plans(), chunks in chunks()) {
        run(plan, 3, &chunks)?;
    }

    #[test]
    fn an_operator_has_the_result_of_its_definition(plan in operators(), chunks in chunks()) {
        run(plan, 2, &chunks)?;
    }

    #[test]
    fn set_operations_count_both_sides(plan in sets(), chunks in chunks()) {
        run(plan, 1, &chunks)?;
    }

    #[test]
    fn rows_come_and_go_as_time_passes(plan in clocks(), chunks in passing()) {
        run(plan, 2, &chunks)?;
    }

    #[test]
    fn a_recursion_has_the_smallest_set_after_every_change(plan in recursions(), chunks in graph_changes()) {
        run(plan, 5, &chunks)?;
    }
}

/// A table of this many rows under the operator; what one change reads must not depend on it.
const MANY: usize = 3000;

/// Entries read for one change: a handful for each space that it touches.
const FEW: u64 = 60;

fn text(number: usize) -> Option<String> {
    Some(number.to_string())
}

/// Loads `plan` over tables with many rows, changes one row of each, and says how many entries each change reads at most.
fn cost(plan: Plan) -> u64 {
    let mut world = World::new(plan, 3);
    let time = |number: usize| Some(format!("2000-01-01 00:00:{:02}.{:06}+00", number % 60, number));
    let rows = 0..MANY;
    world.tables.insert(LEFT, rows.clone().map(|row| vec![text(row), text(0), text(row % 7)]).collect());
    world.tables.insert(RIGHT, rows.clone().map(|row| vec![text(row), (row > 0).then(|| (row / 4).to_string()), time(row)]).collect());
    world.tables.insert(BAG, rows.map(|row| vec![text(row % 50), time(row)]).collect());
    world.load().expect("rows that can be loaded");
    let mut most = 0;
    let last = MANY.to_string();
    for table in [LEFT, RIGHT] {
        let values = match table {
            LEFT => vec![Some("0"), Some("3")],
            _ => vec![Some("700"), Some("2000-01-01 00:00:59+00")],
        };
        for comes in [true, false] {
            world.state.read();
            let mut batch = ChangeBatch::default();
            let cells = [vec![Some(last.as_str())], values.clone()].concat();
            if comes {
                batch.insert(table, |image| cells.iter().for_each(|cell| image.text(cell.expect("not NULL"))));
            } else {
                batch.delete(table, |image| {
                    image.text(&last);
                    image.absent();
                    image.absent();
                });
            }
            world.apply(&batch).expect("a change that can be applied");
            most = most.max(world.state.read());
        }
    }
    most
}

#[test]
fn a_change_costs_the_same_however_large_its_group_is() {
    let by = |kind, distinct, comparison| Aggregate {
        kind,
        column: (kind != AggregateKind::CountAll).then_some(2),
        distinct,
        order: Some(Order { column: 2, comparison, descending: false, nulls_first: false }),
    };
    for aggregate in [
        by(AggregateKind::CountAll, false, Comparison::Int),
        by(AggregateKind::Sum, false, Comparison::Int),
        by(AggregateKind::Count, true, Comparison::Int),
        by(AggregateKind::Min, false, Comparison::Int),
        by(AggregateKind::Max, false, Comparison::Numeric),
        by(AggregateKind::Max, false, Comparison::Bytes),
    ] {
        let plan = Plan::Group { input: Box::new(scan(LEFT)), keys: vec![1], aggregates: vec![aggregate.clone()] };
        let read = cost(plan);
        assert!(read <= FEW, "{read} entries are read for {aggregate:?}");
    }
    let order = vec![Order { column: 0, comparison: Comparison::Int, descending: true, nulls_first: false }];
    let read = cost(Plan::Top { input: Box::new(scan(LEFT)), partition: vec![1], order, limit: 2 });
    assert!(read <= FEW, "{read} entries are read for the first rows of a partition");
}

#[test]
fn a_change_costs_the_same_however_large_the_sides_are() {
    let sides = || (Box::new(pick(scan(LEFT), &[0, 1])), Box::new(pick(scan(RIGHT), &[0, 0])));
    let (left, right) = sides();
    let read = cost(Plan::Set { kind: SetKind::ExceptAll, left, right });
    assert!(read <= FEW, "{read} entries are read for EXCEPT ALL");
    let (left, right) = sides();
    let read = cost(Plan::NotIn { left, right, on: vec![], operand: (0, 0) });
    assert!(read <= FEW, "{read} entries are read for NOT IN");
}

#[test]
fn a_change_costs_the_same_however_large_the_set_is() {
    let read = cost(folders());
    assert!(read <= 4 * FEW, "{read} entries are read for a folder with all above it");
}

#[test]
fn time_costs_what_it_changes() {
    let time = Expr::Column { index: 2, kind: Kind::Text };
    let condition = Expr::Call { function: native(1157), args: vec![time.clone(), Expr::Now(Now { shift: 0 })] };
    let clock = Clock { condition, terms: vec![(time, 0)] };
    let mut world = World::new(Plan::Clock { input: Box::new(scan(RIGHT)), clock }, 3);
    let rows = 0..MANY;
    let at = |row: usize| Some(format!("2000-01-01 00:00:00.{row:06}+00"));
    world.tables.insert(RIGHT, rows.map(|row| vec![text(row), None, at(row)]).collect());
    world.load().expect("rows that can be loaded");
    assert_eq!(world.said.len(), MANY - 1, "the first row ends at the moment of the load");
    for (to, left) in [(1, MANY - 2), (2, MANY - 3), (12, MANY - 13)] {
        world.state.read();
        let passed = to - world.now;
        world.advance(to).expect("time can pass");
        assert_eq!(world.said.len(), left);
        let read = world.state.read();
        assert!(read <= FEW * passed.unsigned_abs(), "{read} entries are read while {passed} rows end");
    }
    // A clock that is set back says nothing, and changes nothing.
    world.advance(12).expect("time can stand still");
    world.advance(5).expect("time can be set back");
    assert_eq!(world.said.len(), MANY - 13);
}
