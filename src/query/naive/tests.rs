//! The definition itself is checked by hand, on what SQL is known to trip people up with; PostgreSQL's own answers are compared with it
//! by the tests that have a server.

use super::*;
use crate::query::{Comparison, Identity, Kind, Table};

type Rows<'a> = &'a [(&'a [Option<&'a str>], i64)];

const TABLE: u32 = 1;
const OTHER: u32 = 2;

fn bag(rows: Rows<'_>) -> Bag {
    rows.iter().map(|(cells, weight)| (Row::from_cells(cells.iter().copied()), *weight)).collect()
}

/// The result of `plan`, where both tables have two columns.
fn result(plan: Plan, table: &[[Option<&str>; 2]], other: &[[Option<&str>; 2]]) -> Result<Bag, EvalError> {
    let description = Table { title: "t".into(), columns: vec![1, 2], identity: Identity::Full, toast: false };
    let view = ViewPlan { plan, tables: [(TABLE, description.clone()), (OTHER, description)].into() };
    let rows = |rows: &[[Option<&str>; 2]]| rows.iter().map(|cells| Row::from_cells(cells.iter().copied())).collect();
    evaluate(&view, &[(TABLE, rows(table)), (OTHER, rows(other))].into(), 0, &mut |_, _| None)
}

fn scan(table: u32) -> Box<Plan> {
    Box::new(Plan::Scan { table })
}

fn group(keys: Vec<usize>, aggregates: &[(AggregateKind, bool)]) -> Plan {
    let order = Some(Order { column: 1, comparison: Comparison::Int, descending: false, nulls_first: false });
    let aggregate = |&(kind, distinct)| Aggregate { kind, column: Some(1), distinct, order };
    Plan::Group { input: scan(TABLE), keys, aggregates: aggregates.iter().map(aggregate).collect() }
}

#[test]
fn null_joins_nothing_and_stays_in_an_outer_join() {
    let rows = [[None, Some("1")], [Some("a"), Some("2")]];
    let on = vec![EqualPair { left: (0, 0), right: (1, 0) }];
    let join = Plan::Join { inputs: vec![*scan(TABLE), *scan(TABLE)], on, filter: None };
    assert_eq!(result(join, &rows, &[]), Ok(bag(&[(&[Some("a"), Some("2"), Some("a"), Some("2")], 1)])));
    let outer = |kind| Plan::Outer { kind, left: scan(TABLE), right: scan(OTHER), on: vec![(0, 0)], filter: None };
    let empty = result(outer(OuterKind::Left), &rows, &[]);
    assert_eq!(empty, Ok(bag(&[(&[None, Some("1"), None, None], 1), (&[Some("a"), Some("2"), None, None], 1)])));
    let full = result(outer(OuterKind::Full), &[[None, Some("1")]], &[[None, Some("3")]]);
    assert_eq!(full, Ok(bag(&[(&[None, Some("1"), None, None], 1), (&[None, None, None, Some("3")], 1)])));
}

#[test]
fn not_in_is_true_of_an_empty_set_and_unknown_with_a_null() {
    let plan = || Plan::NotIn { left: scan(TABLE), right: scan(OTHER), on: vec![], operand: (0, 0) };
    let (null, a, b) = ([None, Some("1")], [Some("a"), Some("1")], [Some("b"), Some("1")]);
    assert_eq!(result(plan(), &[null, a], &[]), Ok(bag(&[(&null, 1), (&a, 1)])));
    assert_eq!(result(plan(), &[null, a, b], &[b]), Ok(bag(&[(&a, 1)])));
    assert_eq!(result(plan(), &[null, a, b], &[b, null]), Ok(bag(&[])));
}

#[test]
fn set_operations_count() {
    let (null, a) = ([None, None], [Some("a"), None]);
    let left = [null, a, a, a];
    let right = [null, null, a, a];
    let of = |kind| result(Plan::Set { kind, left: scan(TABLE), right: scan(OTHER) }, &left, &right);
    assert_eq!(of(SetKind::Except), Ok(bag(&[])));
    assert_eq!(of(SetKind::ExceptAll), Ok(bag(&[(&a, 1)])));
    assert_eq!(of(SetKind::Intersect), Ok(bag(&[(&null, 1), (&a, 1)])));
    assert_eq!(of(SetKind::IntersectAll), Ok(bag(&[(&null, 1), (&a, 2)])));
}

#[test]
fn aggregates_skip_nulls_and_are_null_over_nothing() {
    use AggregateKind::{Count, CountAll, Max, Min, Single, Sum};
    let all = [(CountAll, false), (Count, false), (Count, true), (Sum, false), (Sum, true), (Min, false), (Max, false)];
    let nothing: Rows<'_> = &[(&[Some("0"), Some("0"), Some("0"), None, None, None, None], 1)];
    assert_eq!(result(group(vec![], &all), &[], &[]), Ok(bag(nothing)), "without keys there is one row");
    assert_eq!(result(group(vec![0], &all), &[], &[]), Ok(bag(&[])), "with keys there is none");
    let rows = [[None, Some("10")], [None, Some("9")], [None, Some("9")], [None, None]];
    let some: Rows<'_> = &[(&[None, Some("4"), Some("3"), Some("2"), Some("28"), Some("19"), Some("9"), Some("10")], 1)];
    assert_eq!(result(group(vec![0], &all), &rows, &[]), Ok(bag(some)), "NULL is a group");
    let most = i64::MAX.to_string();
    let large = [[None, Some(&*most)], [None, Some(&*most)]];
    assert_eq!(result(group(vec![], &[(Sum, false)]), &large, &[]), Ok(bag(&[(&[Some("18446744073709551614")], 1)])));
    assert_eq!(result(group(vec![], &[(Single, false)]), &rows[3..], &[]), Ok(bag(&[(&[None], 1)])));
    assert!(result(group(vec![], &[(Single, false)]), &rows[2..], &[]).is_err(), "two rows, one of them NULL");
}

#[test]
fn a_recursion_ends_on_a_cycle_and_needs_its_base() {
    let pair = |left, right| [Some(left), Some(right)];
    let column = |index| Expr::Column { index, kind: Kind::Text };
    let on = vec![EqualPair { left: (0, 1), right: (1, 0) }];
    let join = Plan::Join { inputs: vec![Plan::Itself { width: 2 }, *scan(OTHER)], on, filter: None };
    let step = Box::new(Plan::Map { input: Box::new(join), columns: vec![column(0), column(3)] });
    let plan = Plan::Recursive { base: scan(TABLE), step, width: 2 };
    let cycle = [pair("1", "2"), pair("2", "1")];
    let (x1, x2): (Rows<'_>, Rows<'_>) = (&[(&[Some("x"), Some("1")], 1)], &[(&[Some("x"), Some("2")], 1)]);
    assert_eq!(result(plan.clone(), &[pair("x", "1")], &cycle), Ok(bag(&[x1, x2].concat())));
    assert_eq!(result(plan, &[], &cycle), Ok(bag(&[])), "a cycle does not hold itself up");
}

#[test]
fn the_first_rows_of_a_partition_are_those_of_row_number() {
    let order = vec![Order { column: 1, comparison: Comparison::Int, descending: true, nulls_first: true }];
    let rows = [[None, Some("9")], [None, Some("10")], [None, None], [Some("a"), Some("1")]];
    let plan = |limit| Plan::Top { input: scan(TABLE), partition: vec![0], order: order.clone(), limit };
    assert_eq!(result(plan(1), &rows, &[]), Ok(bag(&[(&[None, None], 1), (&[Some("a"), Some("1")], 1)])));
    assert_eq!(result(plan(2), &rows[..2], &[]), Ok(bag(&[(&[None, Some("9")], 1), (&[None, Some("10")], 1)])));
    assert_eq!(result(plan(0), &rows, &[]), Ok(bag(&[])));
}
