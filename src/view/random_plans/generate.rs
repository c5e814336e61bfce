//! Plans decoded from lists of numbers.

use crate::{
    data::Row,
    query::{
        Aggregate, AggregateKind, Clock, Comparison, EqualPair, Expr, Kind, Native, Now, Order, OuterKind, Plan, RemoteExpr, SemiKind,
        SetKind, Srf, scalar,
    },
    view::random_plans::world::{TABLES, Type, value},
};

/// Numbers that decide; when they are used up the answer is always 0.
pub(super) struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    pub(super) fn new(numbers: &'a [u8]) -> Self {
        Self(numbers.iter())
    }
}

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % count
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 1
    }
}

/// A plan and what its columns hold.
pub(super) type Typed = (Plan, Vec<Type>);

pub(super) fn native(oid: u32) -> &'static Native {
    &scalar::entries().find(|entry| entry.native.oid == oid).expect("on the list").native
}

fn kind(of: Type) -> Kind {
    match of {
        Type::Int => Kind::Int,
        Type::Bool => Kind::Bool,
        Type::Time => Kind::Text,
    }
}

fn column(types: &[Type], index: usize) -> Expr {
    Expr::Column { index, kind: kind(types[index]) }
}

fn constant(of: Type, choice: usize) -> Expr {
    let text = value(of, u8::try_from(choice).expect("small"), 3).map(String::into_boxed_str);
    Expr::Const { text, kind: kind(of) }
}

fn columns_of(types: &[Type], of: Type) -> Vec<usize> {
    (0..types.len()).filter(|index| types[*index] == of).collect()
}

/// `=` and `<` of a type.
fn comparisons(of: Type) -> [&'static Native; 2] {
    match of {
        Type::Int => [native(65), native(66)],
        Type::Bool => [native(60), native(56)],
        Type::Time => [native(1152), native(1154)],
    }
}

fn condition(choices: &mut Choices<'_>, types: &[Type], depth: usize) -> Expr {
    if types.is_empty() {
        return Expr::IsNull(Box::new(constant(Type::Int, choices.below(4))));
    }
    let index = choices.below(types.len());
    let own = column(types, index);
    match choices.below(if depth == 0 { 4 } else { 7 }) {
        0 => Expr::IsNull(Box::new(own)),
        1 => {
            Expr::Call { function: comparisons(types[index])[choices.below(2)], args: vec![own, constant(types[index], choices.below(7))] }
        }
        2 | 3 => {
            let same = columns_of(types, types[index]);
            let other = column(types, same[choices.below(same.len())]);
            Expr::Call { function: comparisons(types[index])[choices.below(2)], args: vec![own, other] }
        }
        4 => Expr::Not(Box::new(condition(choices, types, depth - 1))),
        5 => Expr::And(vec![condition(choices, types, depth - 1), condition(choices, types, depth - 1)]),
        _ => Expr::Or(vec![condition(choices, types, depth - 1), condition(choices, types, depth - 1)]),
    }
}

fn filter(choices: &mut Choices<'_>, types: &[Type]) -> Option<Expr> {
    choices.flip().then(|| condition(choices, types, 1))
}

/// `input` with the columns that are chosen, of the types asked for; constants where there is none.
fn projected(choices: &mut Choices<'_>, (input, types): Typed, wanted: &[Type]) -> Typed {
    let columns = wanted.iter().map(|of| match columns_of(&types, *of)[..] {
        [] => constant(*of, choices.below(4)),
        ref own => column(&types, own[choices.below(own.len())]),
    });
    let columns = columns.collect();
    (Plan::Map { input: Box::new(input), columns }, wanted.to_vec())
}

/// Few columns and few rows, so that the reference evaluator is done before the test is forgotten.
fn small(choices: &mut Choices<'_>, (input, types): Typed) -> Typed {
    let wanted: Vec<Type> =
        (0..1 + choices.below(3)).map(|_| types.get(choices.below(types.len().max(1))).copied().unwrap_or(Type::Int)).collect();
    let (input, types) = projected(choices, (input, types), &wanted);
    (Plan::Distinct(Box::new(input)), types)
}

fn pairs(choices: &mut Choices<'_>, left: &[Type], right: &[Type]) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = (0..left.len()).flat_map(|l| (0..right.len()).map(move |r| (l, r))).collect();
    all.retain(|(l, r)| left[*l] == right[*r]);
    let count = choices.below(3).min(all.len());
    (0..count).map(|_| all[choices.below(all.len())]).collect()
}

/// A plan of at most this depth.
pub(super) fn plan(choices: &mut Choices<'_>, depth: usize) -> Typed {
    let kind = if depth == 0 { 0 } else { choices.below(20) };
    let below = |choices: &mut Choices<'_>| plan(choices, depth - 1);
    match kind {
        0 => scan(choices),
        1 => {
            let (input, types) = below(choices);
            (Plan::Filter { input: Box::new(input), condition: condition(choices, &types, 2) }, types)
        }
        2 => {
            let input = below(choices);
            let wanted: Vec<Type> = (0..1 + choices.below(3)).map(|_| [Type::Int, Type::Time][choices.below(2)]).collect();
            projected(choices, input, &wanted)
        }
        3 | 4 => {
            let (left, right) = (below(choices), below(choices));
            let joined = join(choices, left, right);
            small(choices, joined)
        }
        5..=10 => {
            let (left, right) = (below(choices), below(choices));
            two_sides(choices, kind, left, right)
        }
        11 => {
            let (input, types) = below(choices);
            (Plan::Distinct(Box::new(input)), types)
        }
        12 | 13 => {
            let input = below(choices);
            group(choices, input)
        }
        14 => {
            let (input, types) = below(choices);
            let column = choices.below(types.len());
            let partition = (0..types.len()).filter(|other| *other != column && choices.flip()).collect();
            let order = vec![order(choices, &types, column)];
            (Plan::Top { input: Box::new(input), partition, order, limit: choices.below(3) as u64 }, types)
        }
        15 | 16 => recursive(choices, depth),
        17 | 18 => {
            let input = below(choices);
            clock(choices, input)
        }
        _ => {
            let (input, mut types) = below(choices);
            let argument = choices.below(types.len());
            types.push(Type::Int);
            if choices.flip() {
                let remote = RemoteExpr { sql: "$1".into(), args: vec![argument], types: vec!["integer".into()] };
                return (Plan::Remote { input: Box::new(input), columns: vec![remote] }, types);
            }
            let array = ["{}", "{1}", "{0,NULL,0}"][choices.below(3)];
            let argument = Expr::Case {
                whens: vec![(Expr::IsNull(Box::new(column(&types, argument))), Expr::Const { text: None, kind: Kind::Text })],
                otherwise: Box::new(Expr::Const { text: Some(array.into()), kind: Kind::Text }),
            };
            (Plan::Unnest { input: Box::new(input), function: Srf::Unnest, argument }, types)
        }
    }
}

/// Operators with a left and a right side that are not inner joins.
fn two_sides(choices: &mut Choices<'_>, kind: usize, left: Typed, right: Typed) -> Typed {
    match kind {
        5 => {
            let ((left, left_types), (right, right_types)) = (left, right);
            let on = pairs(choices, &left_types, &right_types);
            let types = [left_types, right_types].concat();
            let filter = filter(choices, &types);
            let kind = [OuterKind::Left, OuterKind::Full][choices.below(2)];
            let outer = Plan::Outer { kind, left: Box::new(left), right: Box::new(right), on, filter };
            small(choices, (outer, types))
        }
        6 => {
            let ((left, mut types), (right, right_types)) = (left, right);
            let on = pairs(choices, &types, &right_types);
            let filter = filter(choices, &[types.clone(), right_types].concat());
            let kind = [SemiKind::Semi, SemiKind::Anti, SemiKind::Mark][choices.below(3)];
            types.extend((kind == SemiKind::Mark).then_some(Type::Bool));
            (Plan::Semi { kind, left: Box::new(left), right: Box::new(right), on, filter }, types)
        }
        7 | 8 => {
            let (left, left_types) = left;
            let (right, right_types) = projected(choices, right, &[left_types[0], left_types[left_types.len() - 1]]);
            let on = pairs(choices, &left_types, &right_types);
            let operand = [(0, 0), (left_types.len() - 1, 1)][choices.below(2)];
            (Plan::NotIn { left: Box::new(left), right: Box::new(right), on, operand }, left_types)
        }
        _ => {
            let left = if choices.flip() { projected(choices, left, &[Type::Int]) } else { left };
            let (right, types) = projected(choices, right, &left.1);
            if choices.flip() {
                return (Plan::UnionAll(vec![left.0, right]), types);
            }
            let kind = [SetKind::Except, SetKind::ExceptAll, SetKind::Intersect, SetKind::IntersectAll][choices.below(4)];
            (Plan::Set { kind, left: Box::new(left.0), right: Box::new(right) }, types)
        }
    }
}

fn scan(choices: &mut Choices<'_>) -> Typed {
    match choices.below(8) {
        7 => {
            let rows = [vec![Some("1"), None], vec![Some("1"), None], vec![Some("0"), Some("2")]];
            let rows = rows[..choices.below(4)].iter().map(|cells| Row::from_cells(cells.iter().copied())).collect();
            (Plan::Values { rows, width: 2 }, vec![Type::Int; 2])
        }
        table => {
            let (table, types) = TABLES[table % 3];
            (Plan::Scan { table }, types.to_vec())
        }
    }
}

fn join(choices: &mut Choices<'_>, (left, left_types): Typed, (right, right_types): Typed) -> Typed {
    let mut on: Vec<EqualPair> = pairs(choices, &left_types, &right_types)
        .into_iter()
        .map(|(left, right)| EqualPair { left: (0, left), right: (1, right) })
        .collect();
    let mut inputs = vec![left, right];
    let mut types = [left_types, right_types.clone()].concat();
    if choices.below(4) == 3 {
        let (third, third_types) = scan(choices);
        on.extend(
            pairs(choices, &right_types, &third_types).into_iter().map(|(left, right)| EqualPair { left: (1, left), right: (2, right) }),
        );
        inputs.push(third);
        types.extend(third_types);
    }
    let filter = filter(choices, &types);
    (Plan::Join { inputs, on, filter }, types)
}

fn order(choices: &mut Choices<'_>, types: &[Type], column: usize) -> Order {
    let comparison = match types[column] {
        Type::Int => [Comparison::Int, Comparison::Numeric, Comparison::Bytes][choices.below(3)],
        Type::Bool => Comparison::Bool,
        Type::Time => Comparison::Time,
    };
    Order { column, comparison, descending: choices.flip(), nulls_first: choices.flip() }
}

fn group(choices: &mut Choices<'_>, (input, types): Typed) -> Typed {
    let keys: Vec<usize> = (0..types.len()).filter(|_| choices.flip()).collect();
    let mut out: Vec<Type> = keys.iter().map(|key| types[*key]).collect();
    let mut aggregates = Vec::new();
    for _ in 0..=choices.below(3) {
        let column = choices.below(types.len());
        let any = [AggregateKind::CountAll, AggregateKind::Count, AggregateKind::Min, AggregateKind::Max];
        let kind = match (choices.below(6), types[column]) {
            (4, Type::Int) => AggregateKind::Sum,
            (4 | 5, Type::Bool) => [AggregateKind::BoolAnd, AggregateKind::BoolOr][choices.below(2)],
            (5, _) if choices.flip() => AggregateKind::Single,
            (other, _) => any[other % 4],
        };
        let order = matches!(kind, AggregateKind::Min | AggregateKind::Max).then(|| order(choices, &types, column));
        let distinct = choices.flip() && !matches!(kind, AggregateKind::CountAll | AggregateKind::Single);
        out.push(if matches!(kind, AggregateKind::CountAll | AggregateKind::Count) { Type::Int } else { types[column] });
        aggregates.push(Aggregate { kind, column: (kind != AggregateKind::CountAll).then_some(column), distinct, order });
    }
    (Plan::Group { input: Box::new(input), keys, aggregates }, out)
}

/// `input` with a condition on the time, if it has a time.
pub(super) fn clock(choices: &mut Choices<'_>, (input, types): Typed) -> Typed {
    let times = columns_of(&types, Type::Time);
    if times.is_empty() {
        return (input, types);
    }
    let mut terms = Vec::new();
    let mut compared = |choices: &mut Choices<'_>| {
        let shift = [0, 1, -2][choices.below(3)];
        let column = column(&types, times[choices.below(times.len())]);
        terms.push((column.clone(), shift));
        // <, <=, >, >=, =, <> of timestamptz.
        let function = native([1154, 1155, 1157, 1156, 1152, 1153][choices.below(6)]);
        let now = Expr::Now(Now { shift });
        Expr::Call { function, args: if choices.flip() { vec![now, column] } else { vec![column, now] } }
    };
    let first = compared(choices);
    let condition = match choices.below(5) {
        0 | 1 => first,
        2 => Expr::And(vec![first, compared(choices)]),
        3 => Expr::Or(vec![first, compared(choices)]),
        _ => Expr::Not(Box::new(first)),
    };
    (Plan::Clock { input: Box::new(input), clock: Clock { condition, terms } }, types)
}

/// Pairs of integers; the step is the pairs joined with others, or the pairs alone.
fn recursive(choices: &mut Choices<'_>, depth: usize) -> Typed {
    let two = [Type::Int, Type::Int];
    let base = plan(choices, depth - 1);
    let (base, _) = projected(choices, base, &two);
    let mut itself = (Plan::Itself { width: 2 }, two.to_vec());
    if choices.below(4) == 3 {
        itself = projected(choices, itself, &two);
    }
    if choices.below(4) == 3 {
        itself.0 = Plan::Filter { input: Box::new(itself.0), condition: condition(choices, &two, 1) };
    }
    let step = if choices.below(4) == 3 {
        itself
    } else {
        let other = plan(choices, depth - 1);
        let (left, right) = if choices.flip() { (other, itself) } else { (itself, other) };
        join(choices, left, right)
    };
    let (step, _) = projected(choices, step, &two);
    (Plan::Recursive { base: Box::new(base), step: Box::new(step), width: 2 }, two.to_vec())
}
