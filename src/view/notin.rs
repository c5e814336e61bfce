//! `x NOT IN (SELECT …)`, the condition with the three values.
//!
//! For a left row, S is what the subquery returns for its correlation cells. The condition is TRUE if S is empty, whatever x is; else if
//! x is not NULL, no element of S is, and x is none of them. So S decides in one of three ways, its [`Regime`], and only when a chunk
//! changes the regime must every left row with these correlation cells be judged again; else only those whose operand is a value that
//! entered or left S.
//!
//! Entries: of a left row its correlation cells, its operand and itself; of a right row its correlation cells and its operand, so that
//! the entries under the correlation cells are S, NULL first. A right row with a NULL among the correlation cells is in no S and has
//! no entry; so a left row with one finds an empty S, which is what SQL says of it.
//!
//! With `vis(l)` whether the condition is TRUE for l, ° before and ' after the chunk, the output's difference is
//! Σ ΔL·vis' + Σ L°·(vis' − vis°).

use std::{collections::BTreeSet, ops::ControlFlow};

use crate::{
    data::{Cells, Row},
    query::Plan,
    view::{
        Space, State, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Operator},
    },
};

struct NotIn {
    /// Correlation: left column, right column.
    on: Vec<(usize, usize)>,
    /// The compared columns.
    operand: (usize, usize),
    /// Correlation cells, operand, row.
    left: Arrangement,
    /// Correlation cells, operand.
    right: Arrangement,
}

/// What a set of values says before one looks for the operand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Regime {
    /// It is empty: TRUE for every operand, also NULL.
    Empty,
    /// It holds a NULL: TRUE for none.
    HasNull,
    /// It decides by the operand.
    Values,
}

pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    left: &Plan,
    right: &Plan,
    on: &[(usize, usize)],
    operand: (usize, usize),
) -> Result<Built, String> {
    let inputs = vec![lowering.node(left)?, lowering.node(right)?];
    let width = on.len() + 1 + lowering.width(inputs[0]);
    let left = Arrangement::new(lowering.space(), width, &[], Nulls::Keep);
    let right_key: Vec<usize> = (0..on.len()).collect();
    let right = Arrangement::new(lowering.space(), on.len() + 1, &right_key, Nulls::Skip);
    Ok(Built { operator: Box::new(NotIn { on: on.to_vec(), operand, left, right }), inputs })
}

impl NotIn {
    fn left_entries(&self, delta: &Delta) -> Delta {
        delta.iter().map(|(row, weight)| (self.left_entry(row), weight)).collect()
    }

    fn left_entry(&self, row: &Row) -> Row {
        let cells = Cells::of(row.as_bytes());
        let key = self.on.iter().map(|&(column, _)| column).chain([self.operand.0]);
        Row::from_encoded(key.map(|column| cells.encoded(column)).chain([row.as_bytes()]))
    }

    fn right_entries(&self, delta: &Delta) -> Delta {
        let key: Vec<usize> = self.on.iter().map(|&(_, column)| column).chain([self.operand.1]).collect();
        delta.iter().map(|(row, weight)| (Cells::of(row.as_bytes()).row(&key), weight)).collect()
    }

    /// The correlation cells of an entry of either side.
    fn correlation(&self, entry: &Row) -> Row {
        Row::from_encoded(Cells::of(entry.as_bytes()).iter().take(self.on.len()))
    }

    /// The correlation cells and the operand of an entry.
    fn searched(&self, entry: &Row) -> Row {
        Row::from_encoded(Cells::of(entry.as_bytes()).iter().take(self.on.len() + 1))
    }

    /// The row of a left entry.
    fn row(&self, entry: &[u8]) -> Row {
        Row::from_encoded(Cells::of(entry).iter().skip(self.on.len() + 1))
    }

    /// NULLs sort first, so the first entry tells.
    fn regime(&self, correlation: &Row, change: &Arranged, state: &dyn State) -> Result<Regime, ViewError> {
        let mut regime = Regime::Empty;
        self.right.entries_after(state, change, correlation.as_bytes(), &mut |entry, _| {
            regime = if Cells::of(entry).is_null(self.on.len()) { Regime::HasNull } else { Regime::Values };
            Ok(ControlFlow::Break(()))
        })?;
        Ok(regime)
    }

    /// Whether the condition is TRUE for the left rows with these correlation cells and this operand.
    fn visible(&self, regime: Regime, searched: &Row, change: &Arranged, state: &dyn State) -> Result<bool, ViewError> {
        match regime {
            Regime::Empty => Ok(true),
            Regime::HasNull => Ok(false),
            Regime::Values if Cells::of(searched.as_bytes()).is_null(self.on.len()) => Ok(false),
            Regime::Values => {
                let mut found = false;
                self.right.entries_after(state, change, searched.as_bytes(), &mut |_, _| {
                    found = true;
                    Ok(ControlFlow::Break(()))
                })?;
                Ok(!found)
            }
        }
    }
}

/// What differs in one chunk.
struct Changes {
    left: Arranged,
    right: Arranged,
}

impl NotIn {
    /// Adds what changes for the left rows with these correlation cells.
    fn partition(&self, correlation: &Row, changes: &Changes, context: &Context<'_>, out: &mut Vec<(Row, i64)>) -> Result<(), ViewError> {
        let (state, none) = (context.before, &Arranged::default());
        let before = self.regime(correlation, none, state)?;
        let after = self.regime(correlation, &changes.right, state)?;
        for (entry, weight) in changes.left.under(correlation.as_bytes()) {
            if self.visible(after, &self.searched(entry), &changes.right, state)? {
                out.push((self.row(entry.as_bytes()), *weight));
            }
        }
        let touched: Vec<Row> = if before == after {
            // Without a decision by operand nothing that was there changes.
            let touched = changes.right.under(correlation.as_bytes()).iter().map(|(entry, _)| entry.clone());
            if after == Regime::Values { touched.collect() } else { Vec::new() }
        } else {
            vec![correlation.clone()]
        };
        for prefix in touched {
            // Rows with the same operand are judged alike, and stand together.
            let mut judged: Option<(Row, i64)> = None;
            self.left.entries(state, prefix.as_bytes(), &mut |entry, weight| {
                let searched = Row::from_encoded(Cells::of(entry).iter().take(self.on.len() + 1));
                if judged.as_ref().is_none_or(|(known, _)| *known != searched) {
                    let was = self.visible(before, &searched, none, state)?;
                    let is = self.visible(after, &searched, &changes.right, state)?;
                    judged = Some((searched, i64::from(is) - i64::from(was)));
                }
                let change = judged.as_ref().map_or(0, |(_, change)| *change);
                if change != 0 {
                    out.push((self.row(entry), change * weight));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(())
    }
}

impl Operator for NotIn {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let changes =
            Changes { left: self.left.arrange(&self.left_entries(inputs[0])), right: self.right.arrange(&self.right_entries(inputs[1])) };
        let entries = changes.left.entries().iter().chain(changes.right.entries());
        let correlations: BTreeSet<Row> = entries.map(|(entry, _)| self.correlation(entry)).collect();
        let mut out = Vec::new();
        for correlation in correlations {
            self.partition(&correlation, &changes, context, &mut out)?;
        }
        Ok(Delta::consolidate(out))
    }

    fn fold(&self, inputs: &[&Delta], _output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        self.left.fold(&self.left_entries(inputs[0]), state)?;
        self.right.fold(&self.right_entries(inputs[1]), state)
    }

    fn folds(&self, input: usize) -> Option<Vec<usize>> {
        let side = |&(left, right): &(usize, usize)| if input == 0 { left } else { right };
        Some(self.on.iter().chain([&self.operand]).map(side).collect())
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let (state, none) = (context.before, &Arranged::default());
        let mut regime: Option<(Row, Regime)> = None;
        self.left.scan(state, &mut |batch| {
            let mut out = Vec::with_capacity(BATCH_ROWS);
            for (entry, weight) in batch.iter() {
                let correlation = self.correlation(entry);
                let known = regime.as_ref().filter(|(known, _)| *known == correlation).map(|(_, regime)| *regime);
                let here = known.map_or_else(|| self.regime(&correlation, none, state), Ok)?;
                regime = Some((correlation, here));
                if self.visible(here, &self.searched(entry), none, state)? {
                    out.push((self.row(entry.as_bytes()), weight));
                }
            }
            if out.is_empty() { Ok(()) } else { emit(Delta::consolidate(out)) }
        })
    }

    fn spaces(&self) -> Vec<Space> {
        vec![self.left.space(), self.right.space()]
    }
}
