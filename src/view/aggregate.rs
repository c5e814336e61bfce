//! What is kept of a group, and the aggregates' values computed from it.
//!
//! Counts, sums and truth values are running [`Totals`]: a change adds its own share and looks at no other row. `min`, `max`, `DISTINCT`
//! and the row of a scalar subquery need the group's [`Values`]: an entry for each, found by the group's cells and sorted, so that the
//! first one is the answer; `max` sorts the other way round.
//!
//! Sums are exact: 128 bits hold any number of bigints that fits on a disk. PostgreSQL's sum of int2 and int4 is a bigint, which the
//! same rows cannot exceed either; that of int8 is a numeric, whose text is the same.

use std::io;

use crate::{
    data::{Cells, Row},
    query::{Aggregate, AggregateKind, Comparison, EvalError},
    view::{
        Space, State, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        operator::broken,
        sorted::push_sorted,
    },
};

/// How a group's values of one column are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// By their cells: bytewise, NULL first.
    Cells,
    /// By a sort cell before them, without NULLs.
    Sorted(Comparison, Descending),
}

/// Whether the largest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descending {
    /// It does.
    Yes,
    /// The smallest does.
    No,
}

/// The values of one column, group by group. An entry is a row of its own: the group's cells, perhaps a sort cell, the value.
#[derive(Debug)]
pub(super) struct Values {
    pub(super) column: usize,
    pub(super) layout: Layout,
    entries: Arrangement,
}

impl Values {
    /// How an aggregate needs its column's values kept; `None` if its total will do.
    pub(super) fn layout(aggregate: &Aggregate) -> Result<Option<Layout>, String> {
        let sorted = |descending| {
            let order = aggregate.order.ok_or("min or max of a type whose order is not known")?;
            Ok(match (order.comparison, descending) {
                // A cell sorts like its bytes.
                (Comparison::Bool | Comparison::Bytes, Descending::No) => Some(Layout::Cells),
                (comparison, descending) => Some(Layout::Sorted(comparison, descending)),
            })
        };
        match aggregate.kind {
            AggregateKind::Min => sorted(Descending::No),
            AggregateKind::Max => sorted(Descending::Yes),
            AggregateKind::Single => Ok(Some(Layout::Cells)),
            AggregateKind::Count | AggregateKind::Sum => Ok(aggregate.distinct.then_some(Layout::Cells)),
            AggregateKind::CountAll | AggregateKind::BoolAnd | AggregateKind::BoolOr => Ok(None),
        }
    }

    pub(super) fn new(column: usize, layout: Layout, keys: usize, space: Space) -> Self {
        let width = match layout {
            Layout::Cells => keys + 1,
            Layout::Sorted(..) => keys + 2,
        };
        Self { column, layout, entries: Arrangement::new(space, width, &[], Nulls::Keep) }
    }

    pub(super) fn space(&self) -> Space {
        self.entries.space()
    }

    /// The entry of a row's value in a group; `None` if it has none.
    pub(super) fn entry(&self, group: &Row, cells: &Cells<'_>) -> Result<Option<Row>, EvalError> {
        let value = cells.encoded(self.column);
        match self.layout {
            Layout::Cells => Ok(Some(Row::from_encoded([group.as_bytes(), value]))),
            Layout::Sorted(comparison, descending) => {
                let Some(text) = cells.text(self.column) else { return Ok(None) };
                let mut sort = Vec::new();
                push_sorted(&mut sort, comparison, descending == Descending::Yes, &text)?;
                Ok(Some(Row::from_encoded([group.as_bytes(), &sort, value])))
            }
        }
    }

    pub(super) fn arrange(&self, entries: &Delta) -> Arranged {
        self.entries.arrange(entries)
    }

    /// How often a value is there.
    pub(super) fn count(&self, entry: &Row, state: &dyn State) -> io::Result<i64> {
        Ok(state.get(self.space(), entry.as_bytes())?.map_or(0, |value| state.weight(&value)))
    }

    /// The first value of a group after the chunk whose difference is `change`, in its encoded form.
    fn first(&self, group: &Row, nulls: Nulls, change: &Arranged, state: &dyn State) -> Result<Option<Vec<u8>>, ViewError> {
        let mut prefix = group.as_bytes().to_vec();
        if nulls == Nulls::Skip {
            // What every cell but NULL begins with.
            prefix.push(1);
        }
        let mut first = None;
        self.entries.entries_after(state, change, &prefix, &mut |entry, _| {
            let cells = Cells::of(entry);
            first = Some(cells.encoded(cells.len() - 1).to_vec());
            Ok(std::ops::ControlFlow::Break(()))
        })?;
        Ok(first)
    }
}

/// The running totals of a group: its rows, and a count and a sum for each aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) rows: i64,
    pub(super) of: Vec<Total>,
}

/// Of one aggregate: how many values it counts, and their sum, where TRUE is 1 and FALSE is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Total {
    count: i64,
    sum: i128,
}

impl Totals {
    pub(super) fn read(bytes: Option<&[u8]>, aggregates: usize) -> Result<Self, ViewError> {
        let Some(bytes) = bytes else { return Ok(Self { rows: 0, of: vec![Total::default(); aggregates] }) };
        let Some((rows, rest)) = bytes.split_first_chunk() else { return broken("a group's totals are cut off") };
        let mut of = Vec::with_capacity(aggregates);
        let mut rest = rest;
        while let Some((count, after)) = rest.split_first_chunk() {
            let Some((sum, after)) = after.split_first_chunk() else { return broken("a group's totals are cut off") };
            of.push(Total { count: i64::from_be_bytes(*count), sum: i128::from_be_bytes(*sum) });
            rest = after;
        }
        if of.len() != aggregates {
            return broken("a group has other totals than aggregates");
        }
        Ok(Self { rows: i64::from_be_bytes(*rows), of })
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.rows.to_be_bytes().to_vec();
        for total in &self.of {
            bytes.extend(total.count.to_be_bytes());
            bytes.extend(total.sum.to_be_bytes());
        }
        bytes
    }

    /// Adds the share of `weight` rows with these cells, without those of aggregates over distinct values.
    pub(super) fn add(&mut self, aggregates: &[Aggregate], cells: &Cells<'_>, weight: i64) -> Result<(), ViewError> {
        self.rows += weight;
        for (aggregate, total) in aggregates.iter().zip(&mut self.of) {
            if let Some(column) = aggregate.column
                && !(aggregate.distinct && Values::layout(aggregate).is_ok_and(|layout| layout.is_some()))
                && !cells.is_null(column)
            {
                total.add(aggregate.kind, cells, column, weight)?;
            }
        }
        Ok(())
    }
}

impl Total {
    /// Adds the share of a value that is not NULL, `weight` times.
    pub(super) fn add(&mut self, kind: AggregateKind, cells: &Cells<'_>, column: usize, weight: i64) -> Result<(), ViewError> {
        let text = cells.text(column);
        let text = text.as_deref().unwrap_or_default();
        let value = match kind {
            AggregateKind::Count => 0,
            AggregateKind::Sum => text.parse().map_err(|_| EvalError("sum of a value that is not an integer".into()))?,
            AggregateKind::BoolAnd | AggregateKind::BoolOr => i128::from(text == "t"),
            AggregateKind::CountAll | AggregateKind::Min | AggregateKind::Max | AggregateKind::Single => return Ok(()),
        };
        self.count += weight;
        self.sum += value * i128::from(weight);
        Ok(())
    }
}

/// Where an aggregate finds the values of a group after a chunk.
pub(super) struct Found<'a> {
    pub(super) values: &'a Values,
    pub(super) change: &'a Arranged,
    pub(super) state: &'a dyn State,
}

/// Appends the aggregate's cell for a group.
pub(super) fn push_result(
    bytes: &mut Vec<u8>,
    kind: AggregateKind,
    group: &Row,
    rows: i64,
    total: Total,
    found: Option<&Found<'_>>,
) -> Result<(), ViewError> {
    let first = |nulls| {
        let Some(found) = found else { return broken("an aggregate has no values") };
        found.values.first(group, nulls, found.change, found.state)
    };
    let text = match kind {
        AggregateKind::CountAll => Some(rows.to_string()),
        AggregateKind::Count => Some(total.count.to_string()),
        AggregateKind::Sum => (total.count > 0).then(|| total.sum.to_string()),
        AggregateKind::BoolAnd => (total.count > 0).then(|| truth(total.sum == i128::from(total.count))),
        AggregateKind::BoolOr => (total.count > 0).then(|| truth(total.sum > 0)),
        AggregateKind::Min | AggregateKind::Max => {
            push_encoded(bytes, first(Nulls::Skip)?);
            return Ok(());
        }
        AggregateKind::Single => {
            if rows > 1 {
                return Err(EvalError("more than one row returned by a subquery used as an expression".into()).into());
            }
            push_encoded(bytes, first(Nulls::Keep)?);
            return Ok(());
        }
    };
    bytes.extend(Row::from_cells([text.as_deref()]).as_bytes());
    Ok(())
}

/// No value is NULL.
fn push_encoded(bytes: &mut Vec<u8>, cell: Option<Vec<u8>>) {
    bytes.extend(cell.as_deref().unwrap_or(&[0]));
}

fn truth(value: bool) -> String {
    if value { "t" } else { "f" }.to_owned()
}
