//! Which columns tell a plan's rows apart.

use std::collections::BTreeSet;

use crate::query::{EqualPair, Expr, OuterKind, Plan, SemiKind, SetKind, Table};

type Columns = BTreeSet<usize>;
type Tables = std::collections::BTreeMap<u32, Table>;

/// Whether no two rows of `plan`, equal ones included, agree in `columns`; NULLs agree with each other. `false` may also mean "not known".
///
/// With all of its columns: whether the plan's output is a set, so that nobody needs to count.
pub(super) fn unique(plan: &Plan, columns: &Columns, tables: &Tables) -> bool {
    let all = || columns.len() == plan.width(tables);
    match plan {
        Plan::Scan { table } => tables.get(table).is_some_and(|table| identifies(table, columns)),
        Plan::Values { rows, .. } => {
            let kept: Vec<usize> = columns.iter().copied().collect();
            let distinct: BTreeSet<_> = rows.iter().map(|row| crate::data::Cells::of(row.as_bytes()).row(&kept)).collect();
            distinct.len() == rows.len()
        }
        Plan::Filter { input, .. } | Plan::Clock { input, .. } => unique(input, columns, tables),
        Plan::Map { input, columns: exprs } => {
            let plain =
                columns.iter().filter_map(|column| if let Expr::Column { index, .. } = &exprs[*column] { Some(*index) } else { None });
            unique(input, &plain.collect(), tables)
        }
        Plan::Remote { input, .. } => unique(input, &below(columns, input.width(tables)), tables),
        Plan::Unnest { .. } | Plan::Unpack { .. } | Plan::UnionAll(_) => false,
        Plan::Join { inputs, on, .. } => joined(inputs, on, columns, tables),
        Plan::Outer { kind: OuterKind::Full, .. } => false,
        Plan::Outer { kind: OuterKind::Left, left, right, on, .. } => {
            let width = left.width(tables);
            // A left row has one row without a match or its matches, never both.
            let mut others: Columns = columns.iter().filter_map(|column| column.checked_sub(width)).collect();
            others.extend(on.iter().map(|pair| pair.1));
            unique(left, &below(columns, width), tables) && unique(right, &others, tables)
        }
        Plan::Semi { kind: SemiKind::Mark, left, .. } => unique(left, &below(columns, left.width(tables)), tables),
        Plan::Semi { left, .. } | Plan::NotIn { left, .. } => unique(left, columns, tables),
        Plan::Distinct(input) => all() || unique(input, columns, tables),
        Plan::Set { kind, left, right } => match kind {
            SetKind::Except => all() || unique(left, columns, tables),
            SetKind::ExceptAll => unique(left, columns, tables),
            SetKind::Intersect => all() || unique(left, columns, tables) || unique(right, columns, tables),
            SetKind::IntersectAll => unique(left, columns, tables) || unique(right, columns, tables),
        },
        Plan::Group { keys, .. } => (0..keys.len()).all(|key| columns.contains(&key)),
        Plan::Top { input, partition, limit, .. } => {
            *limit <= 1 && partition.iter().all(|column| columns.contains(column)) || unique(input, columns, tables)
        }
        Plan::Recursive { .. } | Plan::Itself { .. } => all(),
    }
}

/// Whether `columns`, places in the rows of `table`, hold its identity.
fn identifies(table: &Table, columns: &Columns) -> bool {
    table.identity.key().is_some() && identity(table).iter().all(|place| columns.contains(place))
}

/// Where the identity of a table's rows is in them; no place for a bag's.
pub(super) fn identity(table: &Table) -> Vec<usize> {
    let Some(attributes) = table.identity.key() else { return Vec::new() };
    table.columns.iter().enumerate().filter(|(_, column)| attributes.contains(column)).map(|(place, _)| place).collect()
}

fn below(columns: &Columns, width: usize) -> Columns {
    columns.range(..width).copied().collect()
}

/// What is known spreads over equalities; an input of which enough is known has at most one row, all of which is then known.
fn joined(inputs: &[Plan], on: &[EqualPair], columns: &Columns, tables: &Tables) -> bool {
    let widths: Vec<usize> = inputs.iter().map(|input| input.width(tables)).collect();
    let place = |(input, column): (usize, usize)| widths[..input].iter().sum::<usize>() + column;
    let mut known = columns.clone();
    let mut open: Vec<usize> = (0..inputs.len()).collect();
    loop {
        let before = (known.len(), open.len());
        for pair in on {
            let pair = [place(pair.left), place(pair.right)];
            if pair.iter().any(|column| known.contains(column)) {
                known.extend(pair);
            }
        }
        open.retain(|&input| {
            let start = place((input, 0));
            let own = known.range(start..start + widths[input]).map(|column| column - start).collect();
            let single = unique(&inputs[input], &own, tables);
            if single {
                known.extend(start..start + widths[input]);
            }
            !single
        });
        if open.is_empty() || before == (known.len(), open.len()) {
            return open.is_empty();
        }
    }
}
