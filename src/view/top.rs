//! The first rows of each partition: DISTINCT ON, `row_number() <= limit`.
//!
//! Every row of the input has an entry: its partition, its place in the order as sort cells, and itself. So a partition's first rows are
//! the first entries under its cells, and a change reads no more of a touched partition than those and what the chunk removes among them.
//! Rows that the order does not tell apart are equal (it is total), or stand in byte order.

use std::{collections::BTreeMap, ops::ControlFlow};

use crate::{
    data::{Cells, Row},
    query::{EvalError, Order, Plan},
    view::{
        Space, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Operator, walk},
        sorted::push_term,
    },
};

struct Top {
    partition: Vec<usize>,
    order: Vec<Order>,
    limit: u64,
    /// The entries, which are rows of their own: partition, sort cells, the row.
    entries: Arrangement,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan, partition: &[usize], order: &[Order], limit: u64) -> Result<Built, String> {
    let input = lowering.node(input)?;
    let width = partition.len() + order.len() + lowering.width(input);
    let entries = Arrangement::new(lowering.space(), width, &[], Nulls::Keep);
    let operator = Top { partition: partition.to_vec(), order: order.to_vec(), limit, entries };
    Ok(Built { operator: Box::new(operator), inputs: vec![input] })
}

impl Top {
    fn entry(&self, row: &Row) -> Result<Row, EvalError> {
        let cells = Cells::of(row.as_bytes());
        let mut terms = Vec::new();
        for term in &self.order {
            push_term(&mut terms, term, cells.text(term.column).as_deref())?;
        }
        let partition = self.partition.iter().map(|&column| cells.encoded(column));
        Ok(Row::from_encoded(partition.chain([&terms[..], row.as_bytes()])))
    }

    fn entry_delta(&self, input: &Delta) -> Result<Delta, EvalError> {
        let rows = input.iter().map(|(row, weight)| Ok((self.entry(row)?, weight)));
        Ok(Delta::consolidate(rows.collect::<Result<_, EvalError>>()?))
    }

    /// Adds `sign` times the first rows of the partition to `out`, after the chunk whose difference is `change`.
    fn first(
        &self,
        partition: &[u8],
        change: &Arranged,
        context: &Context<'_>,
        sign: i64,
        out: &mut Vec<(Row, i64)>,
    ) -> Result<(), ViewError> {
        let mut left = self.limit;
        if left == 0 {
            return Ok(());
        }
        self.entries.entries_after(context.before, change, partition, &mut |entry, weight| {
            left -= self.take(entry, weight, left, sign, out);
            Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }

    /// Adds an entry's row as often as it occurs, but at most `left` times; returns how often.
    fn take(&self, entry: &[u8], weight: i64, left: u64, sign: i64, out: &mut Vec<(Row, i64)>) -> u64 {
        let cells = Cells::of(entry);
        let row = Row::from_encoded(cells.iter().skip(self.partition.len() + self.order.len()));
        let times = u64::try_from(weight).unwrap_or(0).min(left);
        out.push((row, sign * i64::try_from(times).expect("no more than the weight")));
        times
    }

    fn partition(&self, entry: &[u8]) -> Row {
        Row::from_encoded(Cells::of(entry).iter().take(self.partition.len()))
    }

    fn space(&self) -> Space {
        self.entries.space()
    }
}

impl Operator for Top {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let change = self.entries.arrange(&self.entry_delta(inputs[0])?);
        let partitions: BTreeMap<Row, ()> = change.entries().iter().map(|(entry, _)| (self.partition(entry.as_bytes()), ())).collect();
        let mut out = Vec::new();
        for partition in partitions.keys() {
            self.first(partition.as_bytes(), &Arranged::default(), context, -1, &mut out)?;
            self.first(partition.as_bytes(), &change, context, 1, &mut out)?;
        }
        Ok(Delta::consolidate(out))
    }

    fn fold(&self, inputs: &[&Delta], _output: &Delta, state: &mut dyn crate::view::State) -> Result<(), ViewError> {
        self.entries.fold(&self.entry_delta(inputs[0])?, state)
    }

    fn folds(&self, _input: usize) -> Option<Vec<usize>> {
        Some(self.partition.clone())
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let state = context.before;
        let (mut partition, mut left) = (None, 0);
        let mut out = Vec::new();
        walk(|each| state.scan(self.space(), &[], each), &mut |entry, weight| {
            let here = self.partition(entry);
            if partition.as_ref() != Some(&here) {
                (partition, left) = (Some(here), self.limit);
            }
            if left > 0 {
                left -= self.take(entry, state.weight(weight), left, 1, &mut out);
            }
            if out.len() == BATCH_ROWS {
                emit(Delta::consolidate(std::mem::take(&mut out)))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if out.is_empty() { Ok(()) } else { emit(Delta::consolidate(out)) }
    }

    fn spaces(&self) -> Vec<Space> {
        vec![self.space()]
    }
}
