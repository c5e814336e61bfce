//! The queries.

use crate::{
    data::Row,
    query::{
        Aggregate, AggregateKind, Clock, Comparison, EqualPair, Expr, Kind, Native, Now, Order, OuterKind, Plan, RemoteExpr, SemiKind,
        SetKind, Srf, scalar,
    },
    view::tests::world::{BAG, PAIRS, PLAIN, TOASTED},
};

fn scan(table: u32) -> Plan {
    Plan::Scan { table }
}

fn int(index: usize) -> Expr {
    Expr::Column { index, kind: Kind::Int }
}

fn text(index: usize) -> Expr {
    Expr::Column { index, kind: Kind::Text }
}

fn constant(text: &str) -> Expr {
    Expr::Const { text: Some(text.into()), kind: Kind::Int }
}

fn native(oid: u32) -> &'static Native {
    &scalar::entries().find(|entry| entry.native.oid == oid).expect("it is on the list").native
}

/// int4lt.
fn less(a: Expr, b: Expr) -> Expr {
    Expr::Call { function: native(66), args: vec![a, b] }
}

fn filter(input: Plan, condition: Expr) -> Plan {
    Plan::Filter { input: Box::new(input), condition }
}

fn map(input: Plan, columns: &[usize]) -> Plan {
    Plan::Map { input: Box::new(input), columns: columns.iter().map(|column| text(*column)).collect() }
}

/// (input, column) on both sides.
type Equal = ((usize, usize), (usize, usize));

fn join(inputs: Vec<Plan>, on: &[Equal], filter: Option<Expr>) -> Plan {
    let on = on.iter().map(|(left, right)| EqualPair { left: *left, right: *right }).collect();
    Plan::Join { inputs, on, filter }
}

fn semi(kind: SemiKind, left: Plan, right: Plan, on: &[(usize, usize)], filter: Option<Expr>) -> Plan {
    Plan::Semi { kind, left: Box::new(left), right: Box::new(right), on: on.to_vec(), filter }
}

fn outer(kind: OuterKind, left: Plan, right: Plan, on: &[(usize, usize)], filter: Option<Expr>) -> Plan {
    Plan::Outer { kind, left: Box::new(left), right: Box::new(right), on: on.to_vec(), filter }
}

fn distinct(input: Plan) -> Plan {
    Plan::Distinct(Box::new(input))
}

fn remote(input: Plan, args: &[usize]) -> Plan {
    let expr = |sql: &str, args: &[usize]| RemoteExpr { sql: sql.into(), args: args.to_vec(), types: vec!["text".into(); args.len()] };
    Plan::Remote { input: Box::new(input), columns: vec![expr("f", args), expr("g", &args[..1])] }
}

fn values(rows: &[&[Option<&str>]]) -> Plan {
    let width = rows.first().map_or(0, |row| row.len());
    Plan::Values { rows: rows.iter().map(|row| Row::from_cells(row.iter().copied())).collect(), width }
}

fn unnest(input: Plan) -> Plan {
    let arrays = [("1", "{x,y,x}"), ("2", "{}"), ("3", "{NULL,x}")];
    let is = |value: &str| Expr::Call { function: native(65), args: vec![int(1), constant(value)] };
    let array = |text: &str| Expr::Const { text: Some(text.into()), kind: Kind::Text };
    let whens = arrays.iter().map(|(value, text)| (is(value), array(text))).collect();
    let argument = Expr::Case { whens, otherwise: Box::new(Expr::Const { text: None, kind: Kind::Text }) };
    Plan::Unnest { input: Box::new(input), function: Srf::Unnest, argument }
}

/// Queries of which nothing at all has to be stored.
pub(super) fn stateless() -> Vec<(&'static str, Plan)> {
    vec![("all of a key", map(scan(PAIRS), &[1, 0])), ("a filter over all of a key", filter(scan(PAIRS), less(int(0), int(1))))]
}

/// Linear queries and what is kept of tables.
fn simple() -> Vec<(&'static str, Plan)> {
    let some = || Expr::Not(Box::new(Expr::IsNull(Box::new(int(1)))));
    vec![
        ("scan toasted", scan(TOASTED)),
        ("scan plain", scan(PLAIN)),
        ("scan bag", scan(BAG)),
        ("scan pairs", scan(PAIRS)),
        ("projection", map(scan(TOASTED), &[1, 2])),
        ("projection of a bag", map(scan(BAG), &[1])),
        ("filter, rows that fail are not stored", filter(scan(PLAIN), less(int(1), constant("3")))),
        ("filter over toasted", filter(scan(TOASTED), less(int(1), int(2)))),
        ("filter over a bag", map(filter(scan(BAG), some()), &[0])),
        ("constants", values(&[&[Some("1"), None], &[Some("1"), None], &[Some("2"), Some("x")]])),
        ("union all", Plan::UnionAll(vec![map(scan(PLAIN), &[1, 2]), scan(BAG), scan(BAG), values(&[&[Some("1"), None]])])),
        ("union", map(distinct(Plan::UnionAll(vec![map(scan(PLAIN), &[1, 2]), scan(PAIRS)])), &[0])),
        ("unnest", unnest(scan(PLAIN))),
        ("remote", remote(scan(TOASTED), &[1, 2])),
        ("remote over a bag", map(remote(scan(BAG), &[0]), &[2])),
        ("remote twice", map(remote(remote(scan(PLAIN), &[1]), &[3, 1]), &[4, 5, 6])),
    ]
}

fn joins() -> Vec<(&'static str, Plan)> {
    let triangle = &[((0, 1), (1, 1)), ((1, 2), (2, 0)), ((0, 2), (2, 1))];
    vec![
        ("join", join(vec![scan(TOASTED), scan(PLAIN)], &[((0, 1), (1, 1))], None)),
        ("join to a projection", map(join(vec![scan(TOASTED), scan(PLAIN)], &[((0, 1), (1, 1))], None), &[2, 5])),
        ("join by key", join(vec![scan(TOASTED), scan(PLAIN)], &[((0, 1), (1, 0))], None)),
        ("join of three", map(join(vec![scan(TOASTED), scan(PLAIN), scan(BAG)], &[((0, 1), (1, 1)), ((1, 2), (2, 0))], None), &[0, 7])),
        ("triangle", join(vec![scan(TOASTED), scan(PLAIN), scan(PAIRS)], triangle, None)),
        ("self join", join(vec![scan(PLAIN), scan(PLAIN)], &[((0, 1), (1, 1))], Some(less(int(0), int(3))))),
        ("self join of three", map(join(vec![scan(BAG), scan(BAG), scan(BAG)], &[((0, 0), (1, 1)), ((1, 0), (2, 1))], None), &[1, 4])),
        ("join on two columns", join(vec![scan(TOASTED), scan(BAG)], &[((0, 1), (1, 0)), ((0, 2), (1, 1))], None)),
        ("one column equals two", join(vec![scan(TOASTED), scan(PLAIN)], &[((0, 1), (1, 1)), ((0, 1), (1, 2))], None)),
        ("a column of the other side twice", join(vec![scan(BAG), scan(PLAIN)], &[((0, 0), (1, 1)), ((0, 1), (1, 1))], None)),
        ("transitive", join(vec![scan(BAG), scan(PLAIN), scan(PAIRS)], &[((0, 0), (1, 1)), ((1, 1), (2, 0))], None)),
        ("cross join", join(vec![map(scan(BAG), &[0]), scan(PAIRS)], &[], Some(less(int(0), int(1))))),
        ("join with constants", join(vec![scan(BAG), values(&[&[Some("1")], &[Some("2")], &[None]])], &[((0, 1), (1, 0))], None)),
        ("join of distinct", join(vec![distinct(map(scan(BAG), &[0])), scan(PLAIN)], &[((0, 0), (1, 1))], None)),
        ("join of filters", join(vec![filter(scan(PLAIN), less(int(1), constant("3"))), scan(BAG)], &[((0, 2), (1, 0))], None)),
        (
            "join of a join",
            join(vec![map(join(vec![scan(BAG), scan(PAIRS)], &[((0, 0), (1, 0))], None), &[1, 3]), scan(PAIRS)], &[((0, 1), (1, 0))], None),
        ),
    ]
}

fn judged() -> Vec<(&'static str, Plan)> {
    let theta = || Some(less(int(0), int(3)));
    let kinds = [("semi", SemiKind::Semi), ("anti", SemiKind::Anti), ("mark", SemiKind::Mark)];
    let mut plans = Vec::new();
    for (name, kind) in kinds {
        plans.push((name, semi(kind, scan(PLAIN), scan(TOASTED), &[(1, 1)], None)));
        plans.push((name, semi(kind, scan(BAG), scan(BAG), &[(0, 1)], None)));
        plans.push((name, semi(kind, scan(PLAIN), scan(PLAIN), &[(1, 1)], theta())));
        plans.push((name, semi(kind, scan(PLAIN), scan(BAG), &[], None)));
        plans.push((name, semi(kind, scan(PLAIN), scan(BAG), &[(1, 0), (1, 1)], None)));
        plans.push((name, semi(kind, scan(BAG), scan(PLAIN), &[(0, 1), (1, 1)], None)));
        plans.push((name, semi(kind, scan(BAG), scan(PAIRS), &[(1, 1), (0, 0)], None)));
        plans.push((name, map(semi(kind, scan(BAG), semi(kind, scan(PAIRS), scan(PLAIN), &[(0, 1)], None), &[(0, 1)], None), &[0])));
    }
    plans
}

fn outers() -> Vec<(&'static str, Plan)> {
    let theta = || Some(less(int(0), int(3)));
    vec![
        ("left", outer(OuterKind::Left, scan(TOASTED), scan(PLAIN), &[(1, 1)], None)),
        ("left with a condition", outer(OuterKind::Left, scan(TOASTED), scan(PLAIN), &[(1, 1)], theta())),
        ("left self", outer(OuterKind::Left, scan(PLAIN), scan(PLAIN), &[(1, 0)], None)),
        ("left of bags", map(outer(OuterKind::Left, scan(BAG), scan(BAG), &[(0, 1)], None), &[1, 2])),
        (
            "left of left",
            map(
                outer(OuterKind::Left, outer(OuterKind::Left, scan(TOASTED), scan(PLAIN), &[(1, 1)], None), scan(BAG), &[(5, 0)], None),
                &[0, 3, 7],
            ),
        ),
        (
            "left is null",
            map(filter(outer(OuterKind::Left, scan(TOASTED), scan(PLAIN), &[(1, 1)], None), Expr::IsNull(Box::new(int(3)))), &[1]),
        ),
        ("full", outer(OuterKind::Full, scan(TOASTED), scan(PLAIN), &[(1, 1)], None)),
        ("full with a condition", outer(OuterKind::Full, scan(PLAIN), scan(BAG), &[(1, 0)], Some(less(int(0), int(4))))),
    ]
}

fn grouped() -> Vec<(&'static str, Plan)> {
    let aggregate = |kind, column: Option<usize>, distinct| {
        let order = column.map(|column| Order { column, comparison: Comparison::Int, descending: false, nulls_first: false });
        Aggregate { kind, column, distinct, order }
    };
    let all = || {
        vec![
            aggregate(AggregateKind::CountAll, None, false),
            aggregate(AggregateKind::Count, Some(1), true),
            aggregate(AggregateKind::Sum, Some(1), false),
            aggregate(AggregateKind::Min, Some(1), false),
            aggregate(AggregateKind::Max, Some(1), false),
        ]
    };
    let group = |input, keys: &[usize]| Plan::Group { input: Box::new(input), keys: keys.to_vec(), aggregates: all() };
    let set = |kind, left, right| Plan::Set { kind, left: Box::new(left), right: Box::new(right) };
    let order = |column| Order { column, comparison: Comparison::Int, descending: true, nulls_first: true };
    let top = |input, limit| Plan::Top { input: Box::new(input), partition: vec![1], order: vec![order(2), order(0)], limit };
    let not_in = |left, right, on: &[(usize, usize)], operand| Plan::NotIn {
        left: Box::new(left),
        right: Box::new(right),
        on: on.to_vec(),
        operand,
    };
    let tree = || {
        let itself = Plan::Itself { width: 2 };
        let step = map(join(vec![itself, scan(BAG)], &[((0, 1), (1, 0))], None), &[0, 3]);
        Plan::Recursive { base: Box::new(map(scan(PLAIN), &[1, 2])), step: Box::new(step), width: 2 }
    };
    vec![
        ("group", group(scan(BAG), &[0])),
        ("group over nothing", group(scan(BAG), &[])),
        ("group of a join", group(map(join(vec![scan(BAG), scan(PLAIN)], &[((0, 0), (1, 1))], None), &[1, 4]), &[0])),
        ("having", map(filter(group(scan(BAG), &[0]), less(constant("1"), int(1))), &[0])),
        ("except", set(SetKind::Except, scan(BAG), scan(PAIRS))),
        ("except all", set(SetKind::ExceptAll, scan(BAG), map(scan(PLAIN), &[1, 2]))),
        ("intersect", set(SetKind::Intersect, scan(BAG), map(scan(PLAIN), &[1, 2]))),
        ("intersect all", map(set(SetKind::IntersectAll, scan(BAG), map(scan(PLAIN), &[1, 2])), &[1])),
        ("first of each", top(scan(PLAIN), 1)),
        ("first two of each", map(top(scan(TOASTED), 2), &[1, 2])),
        ("not in", not_in(scan(PLAIN), scan(BAG), &[], (1, 0))),
        ("not in, correlated", not_in(scan(PLAIN), scan(BAG), &[(2, 1)], (1, 0))),
        ("tree", tree()),
        ("in a tree", semi(SemiKind::Anti, scan(PAIRS), tree(), &[(0, 0), (1, 1)], None)),
        ("a tree and its base", join(vec![tree(), scan(PLAIN)], &[((0, 1), (1, 1))], None)),
    ]
}

/// Every operator, alone and composed.
pub(super) fn plans() -> Vec<(&'static str, Plan)> {
    [stateless(), simple(), joins(), judged(), outers(), grouped()].into_iter().flatten().collect()
}

/// Conditions on the time: values become seconds of the first minute of 2000.
pub(super) fn clocked() -> Vec<(&'static str, Plan)> {
    let times = [("1", "2000-01-01 00:00:01+00"), ("2", "2000-01-01 00:00:06+00"), ("3", "2000-01-01 00:00:20+00")];
    let time = |column: usize| {
        let is = |value: &str| Expr::Call { function: native(65), args: vec![int(column), constant(value)] };
        let at = |text: &str| Expr::Const { text: Some(text.into()), kind: Kind::Text };
        let whens = times.iter().map(|(value, text)| (is(value), at(text))).collect();
        Expr::Case { whens, otherwise: Box::new(Expr::Const { text: None, kind: Kind::Text }) }
    };
    let timed = |table: u32| Plan::Map { input: Box::new(scan(table)), columns: vec![text(0), time(1)] };
    // timestamptz_gt
    let later = |column: usize| Expr::Call { function: native(1157), args: vec![text(column), Expr::Now(Now { shift: 0 })] };
    let live = |input: Plan, column: usize| Plan::Clock {
        input: Box::new(input),
        clock: Clock { condition: later(column), terms: vec![(text(column), 0)] },
    };
    vec![
        ("live", live(timed(PLAIN), 1)),
        ("live projection", map(live(timed(BAG), 1), &[0])),
        ("live join", live(join(vec![live(timed(PLAIN), 1), timed(BAG)], &[((0, 1), (1, 1))], None), 3)),
        ("no live one", semi(SemiKind::Anti, scan(PAIRS), live(timed(BAG), 1), &[(0, 0)], None)),
    ]
}

/// One join in every order of its inputs, with its columns put back.
pub(super) fn permuted() -> Vec<Plan> {
    let tables = [TOASTED, PLAIN, BAG];
    let widths = [3, 3, 2];
    let on = [((0, 1), (1, 1)), ((1, 2), (2, 0)), ((0, 2), (2, 1))];
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let plan = |order: &[usize; 3]| {
        let place = |input: usize| order.iter().position(|other| *other == input).expect("an order has every input");
        let start = |input: usize| order[..place(input)].iter().map(|other| widths[*other]).sum::<usize>();
        let on: Vec<_> = on.iter().map(|(left, right)| ((place(left.0), left.1), (place(right.0), right.1))).collect();
        let columns: Vec<usize> = (0..3).flat_map(|input| (start(input)..start(input) + widths[input]).collect::<Vec<_>>()).collect();
        map(join(order.iter().map(|input| scan(tables[*input])).collect(), &on, None), &columns)
    };
    orders.iter().map(plan).collect()
}
