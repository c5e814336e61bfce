//! GROUP BY: one row for each group, or exactly one row over everything.
//!
//! A chunk touches groups; for each of them the row before and the row after are computed from its totals and values (see
//! [`aggregate`](super::aggregate)), and the output's difference is the one against the other. No other row of the group is read. NULL is a
//! group like any other. A group ends with its last row; without keys there is one group that never ends, whose row over nothing is part
//! of what a load returns.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    data::{Cells, Row},
    query::{Aggregate, AggregateKind, Plan},
    view::{
        Space, State, ViewError,
        aggregate::{Found, Totals, Values, push_result},
        arrangement::Arranged,
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Operator, broken, walk},
    },
};

struct Group {
    keys: Vec<usize>,
    aggregates: Vec<Aggregate>,
    /// A group's totals under its cells.
    totals: Space,
    values: Vec<Values>,
    /// For each aggregate, which of `values` it needs.
    places: Vec<Option<usize>>,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan, keys: &[usize], aggregates: &[Aggregate]) -> Result<Built, String> {
    let input = lowering.node(input)?;
    let totals = lowering.space();
    let mut values: Vec<Values> = Vec::new();
    let mut places = Vec::new();
    for aggregate in aggregates {
        if aggregate.column.is_none() && aggregate.kind != AggregateKind::CountAll {
            return Err(format!("an aggregate without a column: {:?}", aggregate.kind));
        }
        let Some((column, layout)) = aggregate.column.zip(Values::layout(aggregate)?) else {
            places.push(None);
            continue;
        };
        let known = values.iter().position(|values| values.column == column && values.layout == layout);
        let place = known.unwrap_or(values.len());
        if place == values.len() {
            values.push(Values::new(column, layout, keys.len(), lowering.space()));
        }
        places.push(Some(place));
    }
    let group = Group { keys: keys.to_vec(), aggregates: aggregates.to_vec(), totals, values, places };
    Ok(Built { operator: Box::new(group), inputs: vec![input] })
}

/// What a chunk changes, by group.
struct Changes<'a> {
    groups: BTreeMap<Row, Vec<(Cells<'a>, i64)>>,
    /// For each of [`Group::values`].
    values: Vec<Delta>,
}

impl Group {
    fn changes<'a>(&self, input: &'a Delta) -> Result<Changes<'a>, ViewError> {
        let mut groups = BTreeMap::<Row, Vec<(Cells<'a>, i64)>>::new();
        let mut entries = vec![Vec::new(); self.values.len()];
        for (row, weight) in input.iter() {
            let cells = Cells::of(row.as_bytes());
            let group = cells.row(&self.keys);
            for (values, entries) in self.values.iter().zip(&mut entries) {
                if let Some(entry) = values.entry(&group, &cells)? {
                    entries.push((entry, weight));
                }
            }
            groups.entry(group).or_default().push((cells, weight));
        }
        Ok(Changes { groups, values: entries.into_iter().map(Delta::consolidate).collect() })
    }

    fn read(&self, group: &Row, state: &dyn State) -> Result<Totals, ViewError> {
        Totals::read(state.get(self.totals, group.as_bytes())?.as_deref(), self.aggregates.len())
    }

    /// Adds the group's share of the chunk to its totals. `before` says how often a value was there before the chunk.
    fn add(
        &self,
        totals: &mut Totals,
        group: &Row,
        rows: &[(Cells<'_>, i64)],
        arranged: &[Arranged],
        before: &dyn Fn(&Values, &Row, i64) -> Result<i64, ViewError>,
    ) -> Result<(), ViewError> {
        for (cells, weight) in rows {
            totals.add(&self.aggregates, cells, *weight)?;
        }
        if totals.rows < 0 {
            return broken("a group loses a row that is not there");
        }
        for ((aggregate, place), total) in self.aggregates.iter().zip(&self.places).zip(&mut totals.of) {
            let (true, Some(place)) = (aggregate.distinct, *place) else { continue };
            for (entry, weight) in arranged[place].under(group.as_bytes()) {
                let was = before(&self.values[place], entry, *weight)?;
                let flip = i64::from(was + weight > 0) - i64::from(was > 0);
                let cells = Cells::of(entry.as_bytes());
                if flip != 0 && !cells.is_null(cells.len() - 1) {
                    total.add(aggregate.kind, &cells, cells.len() - 1, flip)?;
                }
            }
        }
        Ok(())
    }

    /// The group's row; `None` if there is no such group.
    fn row(&self, group: &Row, totals: &Totals, arranged: &[Arranged], state: &dyn State) -> Result<Option<Row>, ViewError> {
        if totals.rows == 0 && !self.keys.is_empty() {
            return Ok(None);
        }
        let mut results = Vec::new();
        for ((aggregate, total), place) in self.aggregates.iter().zip(&totals.of).zip(&self.places) {
            let found = place.map(|place| Found { values: &self.values[place], change: &arranged[place], state });
            push_result(&mut results, aggregate.kind, group, totals.rows, *total, found.as_ref())?;
        }
        Ok(Some(Row::from_encoded([group.as_bytes(), &results])))
    }

    fn arranged(&self, values: &[Delta]) -> Vec<Arranged> {
        self.values.iter().zip(values).map(|(values, entries)| values.arrange(entries)).collect()
    }
}

impl Operator for Group {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let state = context.before;
        let changes = self.changes(inputs[0])?;
        let (none, arranged) = (vec![Arranged::default(); self.values.len()], self.arranged(&changes.values));
        let mut out = Vec::new();
        for (group, rows) in &changes.groups {
            let before = self.read(group, state)?;
            let mut after = before.clone();
            self.add(&mut after, group, rows, &arranged, &|values, entry, _| Ok(values.count(entry, state)?))?;
            let was = self.row(group, &before, &none, state)?;
            let is = self.row(group, &after, &arranged, state)?;
            if was != is {
                out.extend(was.map(|row| (row, -1)));
                out.extend(is.map(|row| (row, 1)));
            }
        }
        Ok(Delta::consolidate(out))
    }

    fn fold(&self, inputs: &[&Delta], _output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        let changes = self.changes(inputs[0])?;
        for (values, entries) in self.values.iter().zip(&changes.values) {
            for (entry, weight) in entries.iter() {
                if state.add(values.space(), entry.as_bytes(), weight)? < 0 {
                    return broken("a group loses a value that is not there");
                }
            }
        }
        let arranged = self.arranged(&changes.values);
        for (group, rows) in &changes.groups {
            let mut totals = self.read(group, state)?;
            // The values are folded already.
            let before = |values: &Values, entry: &Row, weight| Ok(values.count(entry, state)? - weight);
            self.add(&mut totals, group, rows, &arranged, &before)?;
            let bytes = (totals.rows != 0).then(|| totals.bytes());
            state.put(self.totals, group.as_bytes(), bytes.as_deref())?;
        }
        Ok(())
    }

    fn folds(&self, _input: usize) -> Option<Vec<usize>> {
        Some(self.keys.clone())
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let state = context.before;
        let none = vec![Arranged::default(); self.values.len()];
        let mut out = Vec::new();
        let mut groups = 0_u64;
        walk(|each| state.scan(self.totals, &[], each), &mut |group, totals| {
            let group = Row::from_encoded([group]);
            let totals = Totals::read(Some(totals), self.aggregates.len())?;
            out.extend(self.row(&group, &totals, &none, state)?.map(|row| (row, 1)));
            groups += 1;
            if out.len() == BATCH_ROWS {
                emit(Delta::consolidate(std::mem::take(&mut out)))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if groups == 0 {
            let nothing = Row::from_encoded([]);
            out.extend(self.row(&nothing, &self.read(&nothing, state)?, &none, state)?.map(|row| (row, 1)));
        }
        if out.is_empty() { Ok(()) } else { emit(Delta::consolidate(out)) }
    }

    fn spaces(&self) -> Vec<Space> {
        std::iter::once(self.totals).chain(self.values.iter().map(Values::space)).collect()
    }
}
