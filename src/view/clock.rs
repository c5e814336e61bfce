//! Conditions on `now()`: rows come and go because time passes.
//!
//! A row is in the output at `now` if the condition is TRUE then. `now()` stands in it only beside a comparison of timestamptz with a
//! *term* t that is free of it, shifted by a constant s. Whatever the comparison is, its value is the same for all `now` with `now + s <
//! t`, for all with `now + s > t`, and at the one microsecond in between where they are equal. So with m = t − s a row's condition is
//! constant between two moments unless m or m + 1 of one of its terms lies in between: at m a `>` becomes FALSE, at m + 1 a `>=` does,
//! and an `=` is TRUE from m until m + 1. No other moment needs to be looked at, and at those the condition is evaluated, not guessed.
//!
//! So each row has one entry for each m, by time, whatever `now` is. When time passes from f to t, the condition can differ only for rows
//! with m or m + 1 in (f, t], that is with m in [f, t]; those are judged once at f and once at t, so many moments passed at once cost no
//! more than one, and what became TRUE and FALSE again is not seen. The next moment after `now` is m or m + 1 of the first entry with m ≥
//! `now`. A term that is NULL, infinite or, shifted, out of range has no moment: its comparison never changes.
//!
//! Entries do not depend on the time at which they are made; so they are what a load would make, at whatever time it runs. An entry whose
//! moment has passed goes when its row does.

use std::{collections::BTreeSet, ops::ControlFlow};

use crate::{
    data::{Cells, Row},
    query::{Clock as Condition, Plan, scalar},
    view::{
        Space, State, ViewError,
        arrangement::{Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Load, Operator, broken, walk},
        sorted::{push_moment, read_moment},
    },
};

struct Clock {
    condition: Condition,
    /// A moment's sort cell, and the row.
    due: Arrangement,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan, condition: &Condition) -> Result<Built, String> {
    let input = lowering.node(input)?;
    let due = Arrangement::new(lowering.space(), 1 + lowering.width(input), &[], Nulls::Keep);
    Ok(Built { operator: Box::new(Clock { condition: condition.clone(), due }), inputs: vec![input] })
}

impl Clock {
    fn visible(&self, row: &Row, now: i64) -> Result<bool, ViewError> {
        Ok(self.condition.condition.holds(&Cells::of(row.as_bytes()), now)?)
    }

    /// The moments m of a row, each once.
    fn moments(&self, row: &Row) -> Result<BTreeSet<i64>, ViewError> {
        let mut moments = BTreeSet::new();
        for (term, shift) in &self.condition.terms {
            let value = term.eval(&Cells::of(row.as_bytes()), 0)?;
            let Some(text) = value.text() else { continue };
            let Some(time) = scalar::time(&text) else { return broken("a term of a condition on the time is no timestamp") };
            let finite = time != i64::MIN && time != i64::MAX;
            moments.extend(time.checked_sub(*shift).filter(|_| finite));
        }
        Ok(moments)
    }

    fn entries(&self, input: &Delta) -> Result<Delta, ViewError> {
        let mut entries = Vec::new();
        for (row, weight) in input.iter() {
            for moment in self.moments(row)? {
                entries.push((Row::from_encoded([&key(moment)[..], row.as_bytes()]), weight));
            }
        }
        Ok(Delta::consolidate(entries))
    }

    /// Emits what the passing of time changes for the rows that were there before.
    fn pass(&self, context: &Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let (from, to) = (context.from, context.to);
        if to <= from {
            return Ok(());
        }
        let end = to.checked_add(1).map(key);
        let mut out = Vec::new();
        walk(|each| context.before.range(self.due.space(), &key(from), end.as_deref(), each), &mut |entry, weight| {
            let (moment, row) = take_apart(entry)?;
            // A row with several moments in between is judged at the first.
            if self.moments(&row)?.range(from..).next() == Some(&moment) {
                let change = i64::from(self.visible(&row, to)?) - i64::from(self.visible(&row, from)?);
                if change != 0 {
                    out.push((row, change * context.before.weight(weight)));
                }
            }
            if out.len() == BATCH_ROWS {
                emit(Delta::consolidate(std::mem::take(&mut out)))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if out.is_empty() { Ok(()) } else { emit(Delta::consolidate(out)) }
    }
}

fn key(moment: i64) -> Vec<u8> {
    let mut key = Vec::new();
    push_moment(&mut key, moment);
    key
}

/// An entry's moment and row.
fn take_apart(entry: &[u8]) -> Result<(i64, Row), ViewError> {
    let cells = Cells::of(entry);
    let Some(moment) = read_moment(cells.encoded(0)) else { return broken("an entry of a condition on the time has no moment") };
    Ok((moment, Row::from_encoded(cells.iter().skip(1))))
}

impl Operator for Clock {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut parts = Vec::new();
        self.stream(inputs, context, &mut |delta| {
            parts.extend(delta.into_rows());
            Ok(())
        })?;
        Ok(Delta::consolidate(parts))
    }

    fn stream(&self, inputs: &[&Delta], context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        // Time passes for what was there before; what comes or goes in the chunk is judged at its end.
        self.pass(context, emit)?;
        let now = context.to.max(context.from);
        let mut out = Vec::new();
        for (row, weight) in inputs[0].iter() {
            if self.visible(row, now)? {
                out.push((row.clone(), weight));
            }
        }
        if out.is_empty() { Ok(()) } else { emit(Delta::from_consolidated(out)) }
    }

    fn fold(&self, inputs: &[&Delta], _output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        self.due.fold(&self.entries(inputs[0])?, state)
    }

    fn load(&self) -> Load {
        Load::Streamed
    }

    fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        let mut due = None;
        walk(|each| state.range(self.due.space(), &key(now), None, each), &mut |entry, _| {
            let (moment, _) = take_apart(entry)?;
            due = if moment == now { now.checked_add(1) } else { Some(moment) };
            Ok(ControlFlow::Break(()))
        })?;
        Ok(due)
    }

    fn has_clock(&self) -> bool {
        true
    }

    fn spaces(&self) -> Vec<Space> {
        vec![self.due.space()]
    }
}
