//! Leaves out columns that nothing uses, from the top down, and gives scans the columns of their tables.
//!
//! What keeps rows (joins, groups, sets) gets exactly the columns it needs; what only passes rows on may pass some more.

use std::collections::{BTreeMap, BTreeSet};

use super::{keys::width, relation::passing};
use crate::query::{Aggregate, Clock, EqualPair, Expr, Order, Plan, RemoteExpr, SemiKind, Table, catalogue::Catalogue};

/// Columns of a plan, by their places in it.
type Columns = BTreeSet<usize>;

/// The attributes of each table that a plan uses.
pub(super) fn used(plan: &Plan, catalogue: &Catalogue) -> BTreeMap<u32, BTreeSet<i16>> {
    let mut pruner = Pruner { catalogue, tables: None, used: BTreeMap::new() };
    let all = (0..width(plan, catalogue)).collect();
    pruner.exactly(plan.clone(), &all);
    pruner.used
}

/// The plan with only the columns it uses, its scans having those of `tables`.
pub(super) fn to_tables(plan: Plan, catalogue: &Catalogue, tables: &BTreeMap<u32, Table>) -> Plan {
    let all = (0..width(&plan, catalogue)).collect();
    Pruner { catalogue, tables: Some(tables), used: BTreeMap::new() }.exactly(plan, &all)
}

struct Pruner<'a> {
    catalogue: &'a Catalogue,
    /// The columns of the scans; the tables' own if there is nothing yet.
    tables: Option<&'a BTreeMap<u32, Table>>,
    used: BTreeMap<u32, BTreeSet<i16>>,
}

impl Pruner<'_> {
    /// `plan` with the columns `need`, in order.
    fn exactly(&mut self, plan: Plan, need: &Columns) -> Plan {
        let (plan, kept) = self.plan(plan, need);
        if kept.iter().eq(need.iter()) {
            return plan;
        }
        let columns = passing(need.iter().map(|column| place(&kept, *column)));
        map(plan, columns)
    }

    /// `plan` with at least the columns `need`; the columns it has now, by their former places, in ascending order.
    fn plan(&mut self, plan: Plan, need: &Columns) -> (Plan, Vec<usize>) {
        match plan {
            Plan::Scan { table } => self.scan(table, need),
            Plan::Filter { input, mut condition } => {
                let (input, kept) = self.plan(*input, &with(need, [&condition]));
                move_to(&mut condition, &kept);
                (Plan::Filter { input: Box::new(input), condition }, kept)
            }
            Plan::Clock { input, mut clock } => {
                let below = with(need, clock.terms.iter().map(|(term, _)| term).chain([&clock.condition]));
                let (input, kept) = self.plan(*input, &below);
                move_to(&mut clock.condition, &kept);
                clock.terms.iter_mut().for_each(|(term, _)| move_to(term, &kept));
                let Clock { condition, terms } = clock;
                (Plan::Clock { input: Box::new(input), clock: Clock { condition, terms } }, kept)
            }
            Plan::Map { input, columns } => self.map(*input, columns, need),
            Plan::Remote { input, columns } => self.remote(*input, columns, need),
            Plan::Unnest { input, function, mut argument } => {
                let last = width(&input, self.catalogue);
                let below = with(&need.iter().copied().filter(|column| *column < last).collect(), [&argument]);
                let (input, mut kept) = self.plan(*input, &below);
                move_to(&mut argument, &kept);
                kept.push(last);
                (Plan::Unnest { input: Box::new(input), function, argument }, kept)
            }
            // No SQL is bound to it: nothing of it can be left out.
            Plan::Unpack { width, .. } => (plan, (0..width).collect()),
            Plan::Join { inputs, on, filter } => self.join(inputs, on, filter, need),
            Plan::Outer { kind, left, right, on, filter } => {
                let (left, right, on, filter, kept) = self.sides(*left, *right, on, filter, need, true);
                (Plan::Outer { kind, left, right, on, filter }, kept)
            }
            Plan::Semi { kind, left, right, on, filter } => {
                let mark = (kind == SemiKind::Mark).then(|| width(&left, self.catalogue));
                let need: Columns = need.iter().copied().filter(|column| Some(*column) != mark).collect();
                let (left, right, on, filter, mut kept) = self.sides(*left, *right, on, filter, &need, false);
                kept.extend(mark);
                (Plan::Semi { kind, left, right, on, filter }, kept)
            }
            Plan::NotIn { left, right, mut on, operand } => {
                on.push(operand);
                let (left, right, mut on, _, kept) = self.sides(*left, *right, on, None, need, false);
                let operand = on.pop().unwrap_or(operand);
                (Plan::NotIn { left, right, on, operand }, kept)
            }
            Plan::UnionAll(inputs) => {
                (Plan::UnionAll(inputs.into_iter().map(|input| self.exactly(input, need)).collect()), need.iter().copied().collect())
            }
            Plan::Group { input, keys, aggregates } => self.group(*input, keys, aggregates, need),
            Plan::Top { input, partition, order, limit } => self.top(*input, partition, order, limit, need),
            whole @ (Plan::Values { .. } | Plan::Distinct(_) | Plan::Set { .. } | Plan::Recursive { .. } | Plan::Itself { .. }) => {
                self.whole(whole)
            }
        }
    }

    /// What has no column to spare.
    fn whole(&mut self, plan: Plan) -> (Plan, Vec<usize>) {
        let all: Columns = (0..width(&plan, self.catalogue)).collect();
        let mut boxed = |input: Box<Plan>| Box::new(self.exactly(*input, &all));
        let plan = match plan {
            Plan::Distinct(input) => Plan::Distinct(boxed(input)),
            Plan::Set { kind, left, right } => Plan::Set { kind, left: boxed(left), right: boxed(right) },
            Plan::Recursive { base, step, width } => Plan::Recursive { base: boxed(base), step: boxed(step), width },
            other => other,
        };
        (plan, all.into_iter().collect())
    }

    fn scan(&mut self, table: u32, need: &Columns) -> (Plan, Vec<usize>) {
        let Some(found) = self.catalogue.tables.get(&table) else { return (Plan::Scan { table }, need.iter().copied().collect()) };
        let numbers: Vec<i16> = found.columns.keys().copied().collect();
        self.used.entry(table).or_default().extend(need.iter().filter_map(|column| numbers.get(*column)));
        let kept = match self.tables.and_then(|tables| tables.get(&table)) {
            Some(table) => table.columns.iter().filter_map(|number| numbers.iter().position(|known| known == number)).collect(),
            None => (0..numbers.len()).collect(),
        };
        (Plan::Scan { table }, kept)
    }

    fn map(&mut self, input: Plan, columns: Vec<Expr>, need: &Columns) -> (Plan, Vec<usize>) {
        let mut columns: Vec<Expr> = need.iter().map(|column| columns[*column].clone()).collect();
        let (input, kept) = self.plan(input, &with(&Columns::new(), &columns));
        columns.iter_mut().for_each(|column| move_to(column, &kept));
        let plan = if is_identity(&columns, kept.len()) { input } else { map(input, columns) };
        (plan, need.iter().copied().collect())
    }

    fn remote(&mut self, input: Plan, columns: Vec<RemoteExpr>, need: &Columns) -> (Plan, Vec<usize>) {
        let from = width(&input, self.catalogue);
        let wanted: Vec<usize> = need.iter().copied().filter(|column| *column >= from).collect();
        let mut below: Columns = need.iter().copied().filter(|column| *column < from).collect();
        let mut columns: Vec<RemoteExpr> = wanted.iter().map(|column| columns[column - from].clone()).collect();
        below.extend(columns.iter().flat_map(|column| column.args.iter().copied()));
        let (input, mut kept) = self.plan(input, &below);
        columns.iter_mut().flat_map(|column| column.args.iter_mut()).for_each(|arg| *arg = place(&kept, *arg));
        kept.extend(wanted);
        let plan = if columns.is_empty() { input } else { Plan::Remote { input: Box::new(input), columns } };
        (plan, kept)
    }

    fn join(&mut self, inputs: Vec<Plan>, on: Vec<EqualPair>, mut filter: Option<Expr>, need: &Columns) -> (Plan, Vec<usize>) {
        let need = with(need, &filter);
        let (mut from, mut kept, mut plans, mut places) = (0, Vec::new(), Vec::new(), Vec::new());
        for (index, input) in inputs.into_iter().enumerate() {
            let width = width(&input, self.catalogue);
            let mut own: Columns = need.range(from..from + width).map(|column| column - from).collect();
            let keys = on.iter().flat_map(|pair| [pair.left, pair.right]);
            own.extend(keys.filter(|(input, _)| *input == index).map(|(_, column)| column));
            plans.push(self.exactly(input, &own));
            kept.extend(own.iter().map(|column| column + from));
            places.push(own.into_iter().collect::<Vec<usize>>());
            from += width;
        }
        let moved = |(input, column): (usize, usize)| (input, place(&places[input], column));
        let on = on.into_iter().map(|pair| EqualPair { left: moved(pair.left), right: moved(pair.right) }).collect();
        if let Some(filter) = &mut filter {
            move_to(filter, &kept);
        }
        (Plan::Join { inputs: plans, on, filter }, kept)
    }

    /// Two sides, tied by pairs of columns and a condition over both; `both`: the output has both.
    #[allow(clippy::type_complexity, reason = "the parts of three operators, taken apart and put together in one place")]
    fn sides(
        &mut self,
        left: Plan,
        right: Plan,
        on: Vec<(usize, usize)>,
        mut filter: Option<Expr>,
        need: &Columns,
        both: bool,
    ) -> (Box<Plan>, Box<Plan>, Vec<(usize, usize)>, Option<Expr>, Vec<usize>) {
        let from = width(&left, self.catalogue);
        let all = with(need, &filter);
        let mut of_left: Columns = all.range(..from).copied().collect();
        let mut of_right: Columns = all.range(from..).map(|column| column - from).collect();
        of_left.extend(on.iter().map(|(left, _)| *left));
        of_right.extend(on.iter().map(|(_, right)| *right));
        let left = Box::new(self.exactly(left, &of_left));
        let right = Box::new(self.exactly(right, &of_right));
        let (left_kept, right_kept): (Vec<usize>, Vec<usize>) = (of_left.into_iter().collect(), of_right.into_iter().collect());
        let on = on.into_iter().map(|(left, right)| (place(&left_kept, left), place(&right_kept, right))).collect();
        let mut kept = left_kept;
        let ours = kept.len();
        kept.extend(right_kept.iter().map(|column| column + from));
        if let Some(filter) = &mut filter {
            move_to(filter, &kept);
        }
        if !both {
            kept.truncate(ours);
        }
        (left, right, on, filter, kept)
    }

    fn group(&mut self, input: Plan, keys: Vec<usize>, aggregates: Vec<Aggregate>, need: &Columns) -> (Plan, Vec<usize>) {
        let count = keys.len();
        let mut kept: Vec<usize> = (0..count).collect();
        kept.extend(need.iter().filter(|column| **column >= count));
        let mut aggregates: Vec<Aggregate> = kept[count..].iter().map(|column| aggregates[column - count].clone()).collect();
        let below: Columns = keys.iter().copied().chain(aggregates.iter().filter_map(|aggregate| aggregate.column)).collect();
        let input = self.exactly(input, &below);
        let places: Vec<usize> = below.into_iter().collect();
        for aggregate in &mut aggregates {
            aggregate.column = aggregate.column.map(|column| place(&places, column));
            if let (Some(order), Some(column)) = (&mut aggregate.order, aggregate.column) {
                order.column = column;
            }
        }
        let keys = keys.into_iter().map(|key| place(&places, key)).collect();
        (Plan::Group { input: Box::new(input), keys, aggregates }, kept)
    }

    fn top(&mut self, input: Plan, partition: Vec<usize>, order: Vec<Order>, limit: u64, need: &Columns) -> (Plan, Vec<usize>) {
        let mut below = need.clone();
        below.extend(partition.iter().copied().chain(order.iter().map(|order| order.column)));
        let input = self.exactly(input, &below);
        let kept: Vec<usize> = below.into_iter().collect();
        let partition = partition.into_iter().map(|column| place(&kept, column)).collect();
        let order = order.into_iter().map(|order| Order { column: place(&kept, order.column), ..order }).collect();
        (Plan::Top { input: Box::new(input), partition, order, limit }, kept)
    }
}

/// Where a former column is among those kept; every caller has asked for it to be kept.
fn place(kept: &[usize], column: usize) -> usize {
    kept.binary_search(&column).expect("a column that an expression uses was kept")
}

fn move_to(expr: &mut Expr, kept: &[usize]) {
    remap(expr, &|column| place(kept, column));
}

/// `need` and the columns of `exprs`.
fn with<'e>(need: &Columns, exprs: impl IntoIterator<Item = &'e Expr>) -> Columns {
    let mut columns = need.clone();
    for expr in exprs {
        let mut expr = expr.clone();
        let found = std::cell::RefCell::new(&mut columns);
        remap(&mut expr, &|column| {
            found.borrow_mut().insert(column);
            column
        });
    }
    columns
}

/// A map over a plan; over another map that only picks columns, one of both.
fn map(input: Plan, mut columns: Vec<Expr>) -> Plan {
    match input {
        Plan::Map { input, columns: below } if below.iter().all(is_plain) || columns.iter().all(is_column) => {
            columns.iter_mut().for_each(|column| substitute(column, &below));
            Plan::Map { input, columns }
        }
        other => Plan::Map { input: Box::new(other), columns },
    }
}

fn is_column(expr: &Expr) -> bool {
    matches!(expr, Expr::Column { .. })
}

fn is_plain(expr: &Expr) -> bool {
    matches!(expr, Expr::Column { .. } | Expr::Const { .. })
}

fn is_identity(columns: &[Expr], width: usize) -> bool {
    columns.len() == width
        && columns.iter().enumerate().all(|(place, column)| matches!(column, Expr::Column { index, .. } if *index == place))
}

fn substitute(expr: &mut Expr, below: &[Expr]) {
    if let Expr::Column { index, kind } = expr {
        let (index, wanted) = (*index, *kind);
        *expr = below[index].clone();
        // The same cell, read as the upper expression wants it.
        if let Expr::Column { kind, .. } | Expr::Const { kind, .. } = expr {
            *kind = wanted;
        }
        return;
    }
    for part in parts(expr) {
        substitute(part, below);
    }
}

/// Gives every column of an expression the index that `place` says.
pub(super) fn remap(expr: &mut Expr, place: &dyn Fn(usize) -> usize) {
    if let Expr::Column { index, .. } = expr {
        *index = place(*index);
        return;
    }
    for part in parts(expr) {
        remap(part, place);
    }
}

/// The expressions that an expression is made of.
fn parts(expr: &mut Expr) -> Vec<&mut Expr> {
    match expr {
        Expr::Column { .. } | Expr::Const { .. } | Expr::Now(_) => Vec::new(),
        Expr::Call { args, .. } | Expr::And(args) | Expr::Or(args) | Expr::Coalesce(args) => args.iter_mut().collect(),
        Expr::Not(arg) | Expr::IsNull(arg) | Expr::IsBool(arg, _) => vec![arg],
        Expr::Distinct { args, .. } | Expr::NullIf { args, .. } => args.iter_mut().collect(),
        Expr::Case { whens, otherwise } => {
            whens.iter_mut().flat_map(|(condition, result)| [condition, result]).chain([&mut **otherwise]).collect()
        }
        Expr::AnyElement { operand, array, .. } => vec![&mut **operand, &mut **array],
        Expr::AnyOf { operand, items, .. } => items.iter_mut().chain([&mut **operand]).collect(),
    }
}
