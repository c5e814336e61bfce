//! Which columns of a plan's rows no two rows share, NULL equalling NULL.

use std::collections::BTreeSet;

use crate::query::{EqualPair, Expr, Plan, catalogue::Catalogue};

/// Joins of many inputs with many keys each have very many; some suffice.
const MOST_KEYS: usize = 16;

/// A set of columns no two rows share.
type Key = BTreeSet<usize>;

/// Keys of a plan whose scans have all columns of their tables.
pub(super) fn keys(plan: &Plan, catalogue: &Catalogue) -> Vec<Key> {
    let mut found = match plan {
        Plan::Scan { table } => table_keys(*table, catalogue),
        Plan::Values { rows, .. } if rows.len() <= 1 => vec![Key::new()],
        Plan::Filter { input, .. } | Plan::Clock { input, .. } | Plan::Remote { input, .. } => keys(input, catalogue),
        Plan::Semi { left, .. } | Plan::NotIn { left, .. } => keys(left, catalogue),
        Plan::Map { input, columns } => keys(input, catalogue).into_iter().filter_map(|key| passed(&key, columns)).collect(),
        Plan::Join { inputs, on, .. } => of_join(inputs, on, catalogue),
        Plan::Outer { kind: crate::query::OuterKind::Left, left, right, on, .. } => {
            let width = width(left, catalogue);
            let (left, right) = (keys(left, catalogue), keys(right, catalogue));
            let matched: Key = on.iter().map(|(_, column)| *column).collect();
            if right.iter().any(|key| key.is_subset(&matched)) { left } else { product(&left, &right, width) }
        }
        Plan::Distinct(input) => {
            let mut found = keys(input, catalogue);
            found.push((0..width(input, catalogue)).collect());
            found
        }
        Plan::Set { kind: crate::query::SetKind::Except | crate::query::SetKind::Intersect, left, .. } => {
            vec![(0..width(left, catalogue)).collect()]
        }
        Plan::Group { keys, .. } => vec![(0..keys.len()).collect()],
        Plan::Top { input, partition, limit, .. } => {
            let mut found = keys(input, catalogue);
            if *limit == 1 {
                found.push(partition.iter().copied().collect());
            }
            found
        }
        Plan::Recursive { width, .. } => vec![(0..*width).collect()],
        // In a full join an unmatched row of either side may look like one of the other.
        Plan::Outer { .. }
        | Plan::Values { .. }
        | Plan::Set { .. }
        | Plan::UnionAll(_)
        | Plan::Unnest { .. }
        | Plan::Unpack { .. }
        | Plan::Itself { .. } => Vec::new(),
    };
    found.truncate(MOST_KEYS);
    found
}

fn table_keys(table: u32, catalogue: &Catalogue) -> Vec<Key> {
    let Some(table) = catalogue.tables.get(&table) else { return Vec::new() };
    let place = |number: &i16| table.columns.keys().position(|known| known == number);
    table.unique.iter().filter_map(|key| key.iter().map(place).collect()).collect()
}

/// Where a key's columns are in a map's output, if all are.
fn passed(key: &Key, columns: &[Expr]) -> Option<Key> {
    let place = |wanted: &usize| columns.iter().position(|column| matches!(column, Expr::Column { index, .. } if index == wanted));
    key.iter().map(place).collect()
}

/// A row of a join is told apart by one row of each input; an input whose key the others' columns determine adds nothing.
fn of_join(inputs: &[Plan], on: &[EqualPair], catalogue: &Catalogue) -> Vec<Key> {
    let mut found = vec![Key::new()];
    let mut from = 0;
    for (place, input) in inputs.iter().enumerate() {
        let own = keys(input, catalogue);
        let matched: Key = on
            .iter()
            .flat_map(|pair| [(pair.left, pair.right), (pair.right, pair.left)])
            .filter(|((input, _), (other, _))| *input == place && *other < place)
            .map(|((_, column), _)| column)
            .collect();
        if !own.iter().any(|key| key.is_subset(&matched)) {
            found = product(&found, &own, from);
        }
        found.truncate(MOST_KEYS);
        from += width(input, catalogue);
    }
    found
}

fn product(left: &[Key], right: &[Key], by: usize) -> Vec<Key> {
    let both = |one: &Key, other: &Key| one.iter().copied().chain(other.iter().map(|column| column + by)).collect();
    left.iter().flat_map(|one| right.iter().map(move |other| both(one, other))).collect()
}

/// The number of columns of a plan whose scans have all columns of their tables.
pub(super) fn width(plan: &Plan, catalogue: &Catalogue) -> usize {
    match plan {
        Plan::Scan { table } => catalogue.tables.get(table).map_or(0, |table| table.columns.len()),
        Plan::Values { width, .. } | Plan::Recursive { width, .. } | Plan::Itself { width } => *width,
        Plan::Filter { input, .. } | Plan::Top { input, .. } | Plan::Clock { input, .. } | Plan::Distinct(input) => width(input, catalogue),
        Plan::Map { columns, .. } => columns.len(),
        Plan::Remote { input, columns } => width(input, catalogue) + columns.len(),
        Plan::Unnest { input, .. } => width(input, catalogue) + 1,
        Plan::Unpack { width, .. } => *width,
        Plan::Join { inputs, .. } => inputs.iter().map(|input| width(input, catalogue)).sum(),
        Plan::Outer { left, right, .. } => width(left, catalogue) + width(right, catalogue),
        Plan::Semi { kind, left, .. } => width(left, catalogue) + usize::from(*kind == crate::query::SemiKind::Mark),
        Plan::NotIn { left, .. } | Plan::Set { left, .. } => width(left, catalogue),
        Plan::UnionAll(inputs) => inputs.first().map_or(0, |input| width(input, catalogue)),
        Plan::Group { keys, aggregates, .. } => keys.len() + aggregates.len(),
    }
}
