//! The definition of every operator: a whole plan recomputed from whole tables.
//!
//! This is test support, public because integration tests use it as well: the incremental dataflow ([`crate::view`]) must at every moment
//! have the result that [`evaluate`] computes from the tables' rows. It is written to be obviously right and shares nothing with the
//! dataflow but the scalar expressions: nested loops over multisets, no index, no order, nothing remembered. Never used in production.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    data::{Cells, Row, unpack},
    query::{
        Aggregate, AggregateKind, EqualPair, EvalError, Expr, Order, OuterKind, Plan, RemoteExpr, SemiKind, SetKind, ViewPlan, scalar,
    },
};

/// How often each row occurs; no row with 0.
pub type Bag = BTreeMap<Row, i64>;

/// Computes a [`RemoteExpr`] over its arguments.
pub type Computed<'a> = &'a mut dyn FnMut(&RemoteExpr, &[Option<String>]) -> Option<String>;

/// A recursion with more rounds than this has no end: the deepest tree of a test has a few dozen levels.
const MAX_ROUNDS: usize = 10_000;

/// The result of `view` over `tables`, whose rows have the columns of its [`Table`](crate::query::Table)s, at the time `now`, in
/// microseconds since 2000-01-01 UTC. `remote` computes what the source would.
pub fn evaluate(view: &ViewPlan, tables: &BTreeMap<u32, Vec<Row>>, now: i64, remote: Computed<'_>) -> Result<Bag, EvalError> {
    Evaluator { view, tables, now, remote, itself: Vec::new() }.bag(&view.plan)
}

struct Evaluator<'a> {
    view: &'a ViewPlan,
    tables: &'a BTreeMap<u32, Vec<Row>>,
    now: i64,
    remote: Computed<'a>,
    /// What [`Plan::Itself`] is: the sets so far of the recursions around, the innermost last.
    itself: Vec<Bag>,
}

/// The cells of a row, owned.
type Texts = Vec<Option<String>>;

impl Evaluator<'_> {
    fn bag(&mut self, plan: &Plan) -> Result<Bag, EvalError> {
        match plan {
            Plan::Scan { table } => Ok(sum(self.tables.get(table).into_iter().flatten().map(|row| (row.clone(), 1)))),
            Plan::Values { rows, .. } => Ok(sum(rows.iter().map(|row| (row.clone(), 1)))),
            Plan::Filter { input, condition } => self.filter(input, condition),
            Plan::Clock { input, clock } => self.filter(input, &clock.condition),
            Plan::Map { input, columns } => self.map(input, columns),
            Plan::Remote { input, columns } => self.remote(input, columns),
            Plan::Unnest { input, function, argument } => {
                let mut out = Vec::new();
                for (row, weight) in self.bag(input)? {
                    let Some(argument) = self.value(argument, &row)? else { continue };
                    for element in scalar::elements(*function, &argument)? {
                        out.push((row_of(&[row.cells(), vec![element]].concat()), weight));
                    }
                }
                Ok(sum(out))
            }
            Plan::Unpack { input, column, width } => {
                let mut out = Vec::new();
                for (row, weight) in self.bag(input)? {
                    let packed = row.cells()[*column].clone().unwrap_or_default();
                    out.extend(unpack(&packed, *width).into_iter().flatten().map(|row| (row, weight)));
                }
                Ok(sum(out))
            }
            Plan::Join { inputs, on, filter } => self.join(inputs, on, filter.as_ref()),
            Plan::Outer { kind, left, right, on, filter } => self.outer(*kind, [left, right], on, filter.as_ref()),
            Plan::Semi { kind, left, right, on, filter } => self.semi(*kind, [left, right], on, filter.as_ref()),
            Plan::NotIn { left, right, on, operand } => self.not_in([left, right], on, *operand),
            Plan::UnionAll(inputs) => {
                let bags = inputs.iter().map(|input| self.bag(input)).collect::<Result<Vec<Bag>, _>>()?;
                Ok(sum(bags.into_iter().flatten()))
            }
            Plan::Distinct(input) => Ok(once(self.bag(input)?)),
            Plan::Set { kind, left, right } => Ok(set(*kind, &self.bag(left)?, &self.bag(right)?)),
            Plan::Group { input, keys, aggregates } => group(&self.bag(input)?, keys, aggregates),
            Plan::Top { input, partition, order, limit } => Ok(top(&self.bag(input)?, partition, order, *limit)),
            Plan::Recursive { base, step, .. } => self.recursive(base, step),
            Plan::Itself { .. } => self.itself.last().cloned().ok_or(EvalError("a recursive reference outside of its query".into())),
        }
    }

    fn value(&self, expr: &Expr, row: &Row) -> Result<Option<String>, EvalError> {
        Ok(expr.eval(&Cells::of(row.as_bytes()), self.now)?.text().map(Into::into))
    }

    /// Whether `condition` is TRUE, rather than FALSE or NULL.
    fn holds(&self, condition: &Expr, row: &Row) -> Result<bool, EvalError> {
        condition.holds(&Cells::of(row.as_bytes()), self.now)
    }

    fn filter(&mut self, input: &Plan, condition: &Expr) -> Result<Bag, EvalError> {
        let mut out = Bag::new();
        for (row, weight) in self.bag(input)? {
            if self.holds(condition, &row)? {
                out.insert(row, weight);
            }
        }
        Ok(out)
    }

    fn map(&mut self, input: &Plan, columns: &[Expr]) -> Result<Bag, EvalError> {
        let mut out = Vec::new();
        for (row, weight) in self.bag(input)? {
            let cells = columns.iter().map(|column| self.value(column, &row)).collect::<Result<Texts, _>>()?;
            out.push((row_of(&cells), weight));
        }
        Ok(sum(out))
    }

    fn remote(&mut self, input: &Plan, columns: &[RemoteExpr]) -> Result<Bag, EvalError> {
        let mut out = Vec::new();
        for (row, weight) in self.bag(input)? {
            let input = row.cells();
            let mut cells = input.clone();
            for column in columns {
                let args: Texts = column.args.iter().map(|&arg| input[arg].clone()).collect();
                cells.push((self.remote)(column, &args));
            }
            out.push((row_of(&cells), weight));
        }
        Ok(sum(out))
    }

    /// Every combination of rows, then the equalities, then the condition.
    fn join(&mut self, inputs: &[Plan], on: &[EqualPair], filter: Option<&Expr>) -> Result<Bag, EvalError> {
        let mut combinations: Vec<(Vec<Texts>, i64)> = vec![(Vec::new(), 1)];
        for input in inputs {
            let bag = self.bag(input)?;
            let mut longer = Vec::new();
            for (rows, weight) in &combinations {
                for (row, times) in &bag {
                    let mut rows = rows.clone();
                    rows.push(row.cells());
                    longer.push((rows, weight * times));
                }
            }
            combinations = longer;
        }
        let mut out = Vec::new();
        for (rows, weight) in combinations {
            let row = row_of(&rows.concat());
            let equal = on.iter().all(|pair| equal(&rows[pair.left.0][pair.left.1], &rows[pair.right.0][pair.right.1]));
            if equal && filter.map_or(Ok(true), |filter| self.holds(filter, &row))? {
                out.push((row, weight));
            }
        }
        Ok(sum(out))
    }

    /// Whether the row `left` matches the row `right`.
    fn matches(&self, left: &Row, right: &Row, on: &[(usize, usize)], filter: Option<&Expr>) -> Result<bool, EvalError> {
        let (left, right) = (left.cells(), right.cells());
        if !on.iter().all(|&(l, r)| equal(&left[l], &right[r])) {
            return Ok(false);
        }
        filter.map_or(Ok(true), |filter| self.holds(filter, &row_of(&[left, right].concat())))
    }

    fn outer(&mut self, kind: OuterKind, sides: [&Plan; 2], on: &[(usize, usize)], filter: Option<&Expr>) -> Result<Bag, EvalError> {
        let [left, right] = [self.bag(sides[0])?, self.bag(sides[1])?];
        let mut out = Vec::new();
        let (mut left_matched, mut right_matched) = (BTreeSet::new(), BTreeSet::new());
        for (l, l_weight) in &left {
            for (r, r_weight) in &right {
                if self.matches(l, r, on, filter)? {
                    left_matched.insert(l);
                    right_matched.insert(r);
                    out.push((row_of(&[l.cells(), r.cells()].concat()), l_weight * r_weight));
                }
            }
        }
        let nulls = |plan: &Plan| vec![None; width(plan, self.view)];
        for (l, weight) in left.iter().filter(|(l, _)| !left_matched.contains(l)) {
            out.push((row_of(&[l.cells(), nulls(sides[1])].concat()), *weight));
        }
        if kind == OuterKind::Full {
            for (r, weight) in right.iter().filter(|(r, _)| !right_matched.contains(r)) {
                out.push((row_of(&[nulls(sides[0]), r.cells()].concat()), *weight));
            }
        }
        Ok(sum(out))
    }

    fn semi(&mut self, kind: SemiKind, sides: [&Plan; 2], on: &[(usize, usize)], filter: Option<&Expr>) -> Result<Bag, EvalError> {
        let [left, right] = [self.bag(sides[0])?, self.bag(sides[1])?];
        let mut out = Vec::new();
        for (l, weight) in left {
            let mut found = false;
            for r in right.keys() {
                found |= self.matches(&l, r, on, filter)?;
            }
            match kind {
                SemiKind::Semi if found => out.push((l, weight)),
                SemiKind::Anti if !found => out.push((l, weight)),
                SemiKind::Semi | SemiKind::Anti => {}
                SemiKind::Mark => {
                    let mut cells = l.cells();
                    cells.push(Some(if found { "t" } else { "f" }.to_owned()));
                    out.push((row_of(&cells), weight));
                }
            }
        }
        Ok(sum(out))
    }

    /// `x NOT IN (S)` is TRUE if S is empty, whatever x is; else if neither x nor anything of S is NULL and x is not in S.
    fn not_in(&mut self, sides: [&Plan; 2], on: &[(usize, usize)], operand: (usize, usize)) -> Result<Bag, EvalError> {
        let [left, right] = [self.bag(sides[0])?, self.bag(sides[1])?];
        let mut out = Bag::new();
        for (l, weight) in left {
            let mut is_true = true;
            for r in right.keys() {
                if self.matches(&l, r, on, None)? {
                    let (x, y) = (&l.cells()[operand.0], &r.cells()[operand.1]);
                    is_true &= x.is_some() && y.is_some() && x != y;
                }
            }
            if is_true {
                out.insert(l, weight);
            }
        }
        Ok(out)
    }

    /// Rounds of `set = base ∪ step(set)`, from the empty set, until nothing is new.
    fn recursive(&mut self, base: &Plan, step: &Plan) -> Result<Bag, EvalError> {
        let mut set = Bag::new();
        for _ in 0..MAX_ROUNDS {
            let base = self.bag(base)?;
            self.itself.push(set.clone());
            let stepped = self.bag(step);
            self.itself.pop();
            let larger = once(sum(base.into_iter().chain(stepped?)));
            if larger == set {
                return Ok(set);
            }
            set = larger;
        }
        Err(EvalError("the recursion does not end".into()))
    }
}

/// How many columns `plan` has; an outer join fills as many with NULL, also where the other side has no row to count them in.
fn width(plan: &Plan, view: &ViewPlan) -> usize {
    match plan {
        Plan::Scan { table } => view.tables.get(table).map_or(0, |table| table.columns.len()),
        Plan::Values { width, .. } | Plan::Recursive { width, .. } | Plan::Itself { width } => *width,
        Plan::Map { columns, .. } => columns.len(),
        Plan::Remote { input, columns } => width(input, view) + columns.len(),
        Plan::Unnest { input, .. } => width(input, view) + 1,
        Plan::Unpack { width, .. } => *width,
        Plan::Join { inputs, .. } => inputs.iter().map(|input| width(input, view)).sum(),
        Plan::Outer { left, right, .. } => width(left, view) + width(right, view),
        Plan::Semi { kind, left, .. } => width(left, view) + usize::from(*kind == SemiKind::Mark),
        Plan::UnionAll(inputs) => inputs.first().map_or(0, |input| width(input, view)),
        Plan::Group { keys, aggregates, .. } => keys.len() + aggregates.len(),
        Plan::Filter { input, .. } | Plan::Clock { input, .. } | Plan::Distinct(input) | Plan::Top { input, .. } => width(input, view),
        Plan::NotIn { left, .. } | Plan::Set { left, .. } => width(left, view),
    }
}

/// Adds up the weights of equal rows.
fn sum(rows: impl IntoIterator<Item = (Row, i64)>) -> Bag {
    let mut bag = Bag::new();
    for (row, weight) in rows {
        *bag.entry(row).or_default() += weight;
    }
    bag.retain(|_, weight| *weight != 0);
    bag
}

/// Every row once.
fn once(bag: Bag) -> Bag {
    bag.into_keys().map(|row| (row, 1)).collect()
}

fn row_of(cells: &[Option<String>]) -> Row {
    Row::from_cells(cells.iter().map(Option::as_deref))
}

/// SQL's `=` is TRUE.
fn equal(a: &Option<String>, b: &Option<String>) -> bool {
    a.is_some() && a == b
}

fn set(kind: SetKind, left: &Bag, right: &Bag) -> Bag {
    let count = |bag: &Bag, row| bag.get(row).copied().unwrap_or(0);
    sum(left.keys().map(|row| {
        let (l, r) = (count(left, row), count(right, row));
        let times = match kind {
            SetKind::Except => i64::from(r == 0),
            SetKind::ExceptAll => (l - r).max(0),
            SetKind::Intersect => i64::from(r > 0),
            SetKind::IntersectAll => l.min(r),
        };
        (row.clone(), times)
    }))
}

/// The rows of each group, as often as they occur.
fn partitions(bag: &Bag, keys: &[usize]) -> BTreeMap<Texts, Vec<Texts>> {
    let mut groups = BTreeMap::<Texts, Vec<Texts>>::new();
    for (row, &times) in bag {
        let cells = row.cells();
        let key = keys.iter().map(|&key| cells[key].clone()).collect();
        groups.entry(key).or_default().extend((0..times).map(|_| cells.clone()));
    }
    groups
}

fn group(bag: &Bag, keys: &[usize], aggregates: &[Aggregate]) -> Result<Bag, EvalError> {
    let mut groups = partitions(bag, keys);
    if keys.is_empty() {
        groups.entry(Vec::new()).or_default();
    }
    let mut out = Bag::new();
    for (mut cells, rows) in groups {
        for one in aggregates {
            cells.push(aggregate(one, &rows)?);
        }
        out.insert(row_of(&cells), 1);
    }
    Ok(out)
}

fn aggregate(aggregate: &Aggregate, rows: &[Texts]) -> Result<Option<String>, EvalError> {
    let column = |missing: &'static str| aggregate.column.ok_or(EvalError(missing.into()));
    match aggregate.kind {
        AggregateKind::CountAll => return Ok(Some(rows.len().to_string())),
        AggregateKind::Single => {
            let column = column("a scalar subquery without a column")?;
            return match rows {
                [] => Ok(None),
                [row] => Ok(row[column].clone()),
                _ => Err(EvalError("more than one row returned by a subquery used as an expression".into())),
            };
        }
        AggregateKind::Count
        | AggregateKind::Sum
        | AggregateKind::Min
        | AggregateKind::Max
        | AggregateKind::BoolAnd
        | AggregateKind::BoolOr => {}
    }
    let column = column("an aggregate without a column")?;
    let mut values: Vec<String> = rows.iter().filter_map(|row| row[column].clone()).collect();
    if aggregate.distinct {
        values = values.into_iter().collect::<BTreeSet<String>>().into_iter().collect();
    }
    if aggregate.kind == AggregateKind::Count {
        return Ok(Some(values.len().to_string()));
    }
    if values.is_empty() {
        return Ok(None);
    }
    let truth = |all: bool| Some(if all { "t" } else { "f" }.to_owned());
    match aggregate.kind {
        AggregateKind::Sum => sum_of(&values).map(Some),
        AggregateKind::BoolAnd => Ok(truth(values.iter().all(|value| value == "t"))),
        AggregateKind::BoolOr => Ok(truth(values.iter().any(|value| value == "t"))),
        AggregateKind::Min | AggregateKind::Max => extreme(aggregate, values).map(Some),
        AggregateKind::CountAll | AggregateKind::Count | AggregateKind::Single => unreachable!("returned above"),
    }
}

fn sum_of(values: &[String]) -> Result<String, EvalError> {
    let mut sum = 0_i128;
    for value in values {
        sum += value.parse::<i128>().map_err(|_| EvalError("sum of a value that is not an integer".into()))?;
    }
    Ok(sum.to_string())
}

/// The smallest or largest value. Of two that compare as equal, such as numeric 1.0 and 1.00, the text that is smaller bytewise.
fn extreme(aggregate: &Aggregate, mut values: Vec<String>) -> Result<String, EvalError> {
    let order = aggregate.order.ok_or(EvalError("min or max of a type without an order".into()))?;
    values.sort();
    let mut best = values[0].clone();
    for value in &values[1..] {
        let wanted = if aggregate.kind == AggregateKind::Min { Ordering::Less } else { Ordering::Greater };
        if scalar::compare(order.comparison, value, &best) == wanted {
            best.clone_from(value);
        }
    }
    Ok(best)
}

/// How ORDER BY puts two rows; rows that it does not tell apart stand in byte order.
fn ordered(order: &[Order], a: &Texts, b: &Texts) -> Ordering {
    for term in order {
        let nulls = if term.nulls_first { Ordering::Less } else { Ordering::Greater };
        let one = match (&a[term.column], &b[term.column]) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => nulls,
            (Some(_), None) => nulls.reverse(),
            (Some(a), Some(b)) => {
                let ascending = scalar::compare(term.comparison, a, b);
                if term.descending { ascending.reverse() } else { ascending }
            }
        };
        if one != Ordering::Equal {
            return one;
        }
    }
    row_of(a).cmp(&row_of(b))
}

/// The rows of a partition that fewer than `limit` rows precede, found by counting those.
fn top(bag: &Bag, partition: &[usize], order: &[Order], limit: u64) -> Bag {
    let mut out = Vec::new();
    for rows in partitions(bag, partition).into_values() {
        for (place, row) in rows.iter().enumerate() {
            let mut before = 0;
            for (other_place, other) in rows.iter().enumerate() {
                before += u64::from(ordered(order, other, row).then(other_place.cmp(&place)) == Ordering::Less);
            }
            if before < limit {
                out.push((row_of(row), 1));
            }
        }
    }
    sum(out)
}

#[cfg(test)]
mod tests;
