//! Random plans over random tables under random changes: the dataflow must at every moment have the result of [`naive::evaluate`].
//!
//! Everything is decoded from lists of small numbers: every list means something, shorter lists and smaller numbers mean simpler plans
//! and changes, and so a failure shrinks to a small one. Domains are tiny, so that NULLs, duplicates and matches are the rule.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use proptest::prelude::*;

use crate::{
    data::{ChangeBatch, Extent, ImageWriter, Lsn, Row},
    query::{
        Aggregate, AggregateKind, Clock, Comparison, EqualPair, EvalError, Expr, Identity, Kind, Native, Now, Order, OuterKind, Plan,
        RemoteExpr, SemiKind, SetKind, Srf, Table, ViewPlan,
        naive::{self, Bag},
        scalar,
    },
    target::Op,
    view::{Dataflow, Flip, MemoryState, Remote, ViewError},
};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Int,
    Bool,
    Time,
}

/// With a key in front.
const LEFT: u32 = 1;
/// With a key in front.
const RIGHT: u32 = 2;
/// A bag.
const BAG: u32 = 3;

const TABLES: [(u32, &[Type]); 3] =
    [(LEFT, &[Type::Int, Type::Int, Type::Int]), (RIGHT, &[Type::Int, Type::Int, Type::Time]), (BAG, &[Type::Int, Type::Time])];

const TIMES: [Option<&str>; 7] = [
    None,
    Some("2000-01-01 00:00:00.000002+00"),
    Some("2000-01-01 00:00:00.000003+00"),
    Some("2000-01-01 00:00:00.000005+00"),
    Some("1999-12-31 23:59:59.999999+00"),
    Some("infinity"),
    Some("-infinity"),
];

fn value(of: Type, choice: u8) -> Option<String> {
    match of {
        Type::Int => choice.checked_rem(4).filter(|value| *value < 3).map(|value| value.to_string()),
        Type::Bool => [Some("t"), Some("f"), None][usize::from(choice % 3)].map(str::to_owned),
        Type::Time => TIMES[usize::from(choice) % TIMES.len()].map(str::to_owned),
    }
}

/// Numbers that decide; when they are used up the answer is always 0.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % count
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 1
    }
}

/// A plan and what its columns hold.
type Typed = (Plan, Vec<Type>);

fn native(oid: u32) -> &'static Native {
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
    let text = value(of, u8::try_from(choice).expect("small")).map(String::into_boxed_str);
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

fn plan(choices: &mut Choices<'_>, depth: usize) -> Typed {
    let kind = if depth == 0 { 0 } else { choices.below(20) };
    let mut below = |choices: &mut Choices<'_>| plan(choices, depth - 1);
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
        5 => {
            let ((left, left_types), (right, right_types)) = (below(choices), below(choices));
            let on = pairs(choices, &left_types, &right_types);
            let types = [left_types, right_types].concat();
            let filter = filter(choices, &types);
            let kind = [OuterKind::Left, OuterKind::Full][choices.below(2)];
            let outer = Plan::Outer { kind, left: Box::new(left), right: Box::new(right), on, filter };
            small(choices, (outer, types))
        }
        6 => {
            let ((left, mut types), (right, right_types)) = (below(choices), below(choices));
            let on = pairs(choices, &types, &right_types);
            let filter = filter(choices, &[types.clone(), right_types].concat());
            let kind = [SemiKind::Semi, SemiKind::Anti, SemiKind::Mark][choices.below(3)];
            types.extend((kind == SemiKind::Mark).then_some(Type::Bool));
            (Plan::Semi { kind, left: Box::new(left), right: Box::new(right), on, filter }, types)
        }
        7 | 8 => {
            let ((left, left_types), (right, right_types)) = (below(choices), below(choices));
            let (right, right_types) = projected(choices, (right, right_types), &[left_types[0], left_types[left_types.len() - 1]]);
            let on = pairs(choices, &left_types, &right_types);
            let operand = [(0, 0), (left_types.len() - 1, 1)][choices.below(2)];
            (Plan::NotIn { left: Box::new(left), right: Box::new(right), on, operand }, left_types)
        }
        9 | 10 => {
            let left = below(choices);
            let right = below(choices);
            let (right, types) = projected(choices, right, &left.1);
            if choices.flip() {
                return (Plan::UnionAll(vec![left.0, right]), types);
            }
            let kind = [SetKind::Except, SetKind::ExceptAll, SetKind::Intersect, SetKind::IntersectAll][choices.below(4)];
            (Plan::Set { kind, left: Box::new(left.0), right: Box::new(right) }, types)
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

fn clock(choices: &mut Choices<'_>, (input, types): Typed) -> Typed {
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

/// One change of a table, or time that passes.
#[derive(Debug, Clone)]
struct Step {
    kind: u8,
    table: u8,
    place: u8,
    values: [u8; 3],
}

fn step() -> impl Strategy<Value = Step> {
    (0..16_u8, 0..3_u8, 0..5_u8, prop::array::uniform3(0..8_u8)).prop_map(|(kind, table, place, values)| Step {
        kind,
        table,
        place,
        values,
    })
}

/// What the source computes: 0 for NULL, NULL for 0, else the value's number of bytes.
fn computed(args: &[Option<String>]) -> Option<String> {
    match args[0].as_deref() {
        None => Some("0".into()),
        Some("0") => None,
        Some(text) => Some((text.len() % 3).to_string()),
    }
}

struct Source;

impl Remote for Source {
    fn evaluate(&mut self, _: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        Ok(rows.iter().map(|row| computed(row)).collect())
    }
}

fn row(cells: &[Option<String>]) -> Row {
    Row::from_cells(cells.iter().map(Option::as_deref))
}

fn write<'a>(cells: &'a [Option<String>]) -> impl FnOnce(&mut ImageWriter<'_>) + use<'a> {
    move |image| {
        for cell in cells {
            match cell {
                None => image.null(),
                Some(text) => image.text(text),
            }
        }
    }
}

/// What the change log tells of an old row: all of a bag's, the key of others.
fn tell<'a>(keyed: bool, cells: &'a [Option<String>]) -> impl FnOnce(&mut ImageWriter<'_>) + use<'a> {
    move |image| {
        if keyed {
            write(&cells[..1])(image);
            cells[1..].iter().for_each(|_| image.absent());
        } else {
            write(cells)(image);
        }
    }
}

type Cells = Vec<Option<String>>;

/// Tables, a dataflow over them, and what it has said so far.
struct World {
    view: ViewPlan,
    dataflow: Dataflow,
    state: MemoryState,
    tables: BTreeMap<u32, Vec<Cells>>,
    now: i64,
    said: BTreeSet<Row>,
    spool: PathBuf,
}

impl World {
    fn extents(&self) -> BTreeMap<u32, Extent> {
        let extent = |(table, rows): (&u32, &Vec<Cells>)| {
            let numbered = rows.iter().enumerate().map(|(number, cells)| {
                let number = (*table == BAG).then(|| Some(number.to_string()));
                row(&cells.iter().cloned().chain(number).collect::<Cells>())
            });
            let sorted: BTreeSet<Row> = numbered.collect();
            (*table, Extent::from_sorted(sorted.into_iter().map(Ok)))
        };
        self.tables.iter().filter(|(table, _)| self.view.tables.contains_key(table)).map(extent).collect()
    }

    fn naive(&self) -> Result<Bag, EvalError> {
        let tables = self.tables.iter().map(|(table, rows)| (*table, rows.iter().map(|cells| row(cells)).collect())).collect();
        naive::evaluate(&self.view, &tables, self.now, &mut |_, args| computed(args))
    }

    fn load(&mut self) -> Result<(), ViewError> {
        let extents = self.extents();
        let result = self.dataflow.load(extents, self.now, &self.spool, &mut self.state, &mut Source)?;
        self.said = result.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Plays one change on the tables and writes it as the change log would.
    fn play(&mut self, step: &Step, batch: &mut ChangeBatch) {
        let (table, types) = TABLES[usize::from(step.table)];
        let mut cells: Cells = types.iter().zip(step.values).map(|(of, choice)| value(*of, choice)).collect();
        let rows = self.tables.get_mut(&table).expect("every table is there");
        let place = (!rows.is_empty()).then(|| usize::from(step.place) % rows.len().max(1));
        let keyed = table != BAG;
        let vacant = |rows: &[Cells], key: &Option<String>| !keyed || rows.iter().all(|row| row[0] != *key);
        if keyed {
            cells[0] = Some(step.place.to_string());
        }
        match (step.kind, place) {
            (0, _) => {
                rows.clear();
                batch.truncate(table);
            }
            (1..=4, Some(place)) => {
                let old = rows.remove(place);
                batch.delete(table, tell(keyed, &old));
            }
            (5..=8, Some(place)) => {
                let old = rows[place].clone();
                if keyed && step.kind < 7 {
                    cells[0].clone_from(&old[0]);
                }
                if old[0] != cells[0] && !vacant(rows, &cells[0]) {
                    return;
                }
                rows[place].clone_from(&cells);
                let changed = !keyed || old[0] != cells[0];
                batch.update(table, changed.then(|| tell(keyed, &old)), write(&cells));
            }
            _ if vacant(rows, &cells[0]) => {
                batch.insert(table, write(&cells));
                rows.push(cells);
            }
            _ => {}
        }
    }

    /// Applies what the dataflow says; every flip must be a real one.
    fn take(said: &mut BTreeSet<Row>, flip: Flip) {
        match flip {
            Flip::Row(Op::Insert, row) => assert!(said.insert(row.clone()), "{:?} is inserted and was there", row.cells()),
            Flip::Row(Op::Delete, row) => assert!(said.remove(&row), "{:?} is deleted and was not there", row.cells()),
            Flip::Clear => said.clear(),
        }
    }

    fn apply(&mut self, batch: &ChangeBatch) -> Result<(), ViewError> {
        let columns = TABLES.iter().map(|(table, types)| (*table, (0..types.len()).collect())).collect();
        let Self { dataflow, state, said, spool, now, .. } = self;
        let mut changes = batch.changes(0..batch.len());
        dataflow.apply(&mut changes, &columns, *now, spool, state, &mut Source, &mut |flip| {
            Self::take(said, flip);
            Ok(())
        })
    }

    fn advance(&mut self, to: i64) -> Result<(), ViewError> {
        let Self { dataflow, state, said, spool, now, .. } = self;
        dataflow.advance(*now, to, spool, state, &mut Source, &mut |flip| {
            Self::take(said, flip);
            Ok(())
        })?;
        self.now = to;
        Ok(())
    }

    /// Compares with the reference evaluator, and what is stored with what a load would store.
    fn check(&self, wanted: Bag) {
        let texts = |rows: &BTreeSet<Row>| rows.iter().map(Row::cells).collect::<Vec<_>>();
        let wanted = wanted.into_keys().collect();
        assert_eq!(texts(&self.said), texts(&wanted), "the dataflow says left, the reference evaluator right");
        let verified = self.dataflow.verify(self.now, &self.spool, &self.state, &mut Source).expect("what is stored is right");
        if let Some(verified) = verified {
            let verified = verified.collect::<Result<_, _>>().expect("in memory");
            assert_eq!(texts(&verified), texts(&wanted), "what is stored says left, the reference evaluator right");
        }
    }

    /// Until the next moment that the dataflow names nothing changes.
    fn check_due(&self) {
        let due = self.dataflow.next_due(self.now, &self.state).expect("in memory");
        assert!(due.is_none_or(|due| due > self.now));
        let mut later = Self { view: self.view.clone(), dataflow: Dataflow::new(&self.view).expect("as before"), ..self.blank() };
        later.tables.clone_from(&self.tables);
        later.now = due.map_or(100, |due| due - 1);
        if let (Ok(now), Ok(then)) = (self.naive(), later.naive()) {
            assert!(now.keys().eq(then.keys()), "the result changes between {} and {:?}", self.now, due);
        }
    }

    fn blank(&self) -> Self {
        Self {
            view: self.view.clone(),
            dataflow: Dataflow::new(&self.view).expect("as before"),
            state: MemoryState::default(),
            tables: BTreeMap::new(),
            now: self.now,
            said: BTreeSet::new(),
            spool: self.spool.clone(),
        }
    }
}

/// The tables that a plan reads.
fn read(plan: &Plan, tables: &mut BTreeSet<u32>) {
    match plan {
        Plan::Scan { table } => {
            tables.insert(*table);
        }
        Plan::Values { .. } | Plan::Itself { .. } => {}
        Plan::Filter { input, .. }
        | Plan::Map { input, .. }
        | Plan::Remote { input, .. }
        | Plan::Unnest { input, .. }
        | Plan::Top { input, .. }
        | Plan::Clock { input, .. }
        | Plan::Group { input, .. }
        | Plan::Distinct(input) => read(input, tables),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().for_each(|input| read(input, tables)),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => {
            read(left, tables);
            read(right, tables);
        }
        Plan::Recursive { base, step, .. } => {
            read(base, tables);
            read(step, tables);
        }
    }
}

fn view(plan: Plan) -> ViewPlan {
    let mut used = BTreeSet::new();
    read(&plan, &mut used);
    let table = |(table, types): &(u32, &[Type])| {
        let identity = if *table == BAG { Identity::Full } else { Identity::Key(vec![1]) };
        let columns = (1..=i16::try_from(types.len()).expect("few columns")).collect();
        (*table, Table { title: format!("public.t{table}"), columns, identity, toast: false })
    };
    let tables = TABLES.iter().map(table).filter(|(table, _)| used.contains(table)).collect();
    ViewPlan { plan, tables }
}

/// Streams `chunks` through the dataflow of `plan`, the first ones by loading them, and compares after each.
fn run(plan: Plan, chunks: &[Vec<Step>]) -> Result<(), TestCaseError> {
    let view = view(plan);
    let dataflow = match Dataflow::new(&view) {
        Ok(dataflow) => dataflow,
        Err(reason) => return Err(TestCaseError::fail(format!("no dataflow: {reason}"))),
    };
    let mut world = World {
        view,
        dataflow,
        state: MemoryState::default(),
        tables: TABLES.iter().map(|(table, _)| (*table, Vec::new())).collect(),
        now: 0,
        said: BTreeSet::new(),
        spool: std::env::temp_dir(),
    };
    let (first, rest) = chunks.split_first().expect("at least one chunk");
    first.iter().for_each(|step| world.play(step, &mut ChangeBatch::default()));
    let Ok(wanted) = world.naive() else { return Ok(()) };
    world.load().map_err(|error| TestCaseError::fail(format!("load: {error}")))?;
    world.check(wanted);
    for chunk in rest {
        world.check_due();
        let mut batch = ChangeBatch::default();
        let mut to = world.now;
        for step in chunk {
            if step.kind == 15 {
                to += i64::from(step.place);
            } else {
                world.play(step, &mut batch);
            }
        }
        batch.commit(Lsn(1), Lsn(2));
        // Rows are judged at one moment: first time passes, then the changes come.
        let before = world.now;
        if to > before {
            // The query may fail on the tables of the moment in between.
            world.advance(to).map_err(|error| TestCaseError::fail(format!("advance: {error}")))?;
        }
        let Ok(wanted) = world.naive() else { return Ok(()) };
        world.apply(&batch).map_err(|error| TestCaseError::fail(format!("apply: {error}")))?;
        world.check(wanted);
    }
    Ok(())
}

fn plans() -> impl Strategy<Value = Plan> {
    prop::collection::vec(any::<u8>(), 0..60).prop_map(|choices| plan(&mut Choices(choices.iter()), 3).0)
}

fn chunks() -> impl Strategy<Value = Vec<Vec<Step>>> {
    prop::collection::vec(prop::collection::vec(step(), 0..7), 2..8)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_dataflow_has_the_result_of_the_definition(plan in plans(), chunks in chunks()) {
        run(plan, &chunks)?;
    }
}
