//! EXCEPT and INTERSECT: how often a row is in the output depends on how often it is on either side, and on no other row.
//!
//! Both sides are arranged by all their columns, NULLs included: such an arrangement is a count of each row, and NULLs equal each other.

use crate::{
    data::Row,
    query::{Plan, SetKind},
    view::{
        State, ViewError,
        arrangement::{Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Operator, broken},
    },
};

struct Set {
    kind: SetKind,
    left: Arrangement,
    right: Arrangement,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, kind: SetKind, left: &Plan, right: &Plan) -> Result<Built, String> {
    let inputs = [lowering.node(left)?, lowering.node(right)?];
    let [left, right] = inputs.map(|input| {
        let all: Vec<usize> = (0..lowering.width(input)).collect();
        lowering.arrange(input, &all, Nulls::Keep)
    });
    Ok(Built { operator: Box::new(Set { kind, left, right }), inputs: inputs.to_vec() })
}

/// How often a row is in the output that is `left` times on the left side and `right` times on the right.
fn times(kind: SetKind, left: i64, right: i64) -> i64 {
    match kind {
        SetKind::Except => i64::from(left > 0 && right == 0),
        SetKind::ExceptAll => (left - right).max(0),
        SetKind::Intersect => i64::from(left > 0 && right > 0),
        SetKind::IntersectAll => left.min(right),
    }
}

/// How often `row` is in the input that is arranged by all columns; the entry's key is the row.
fn count(arrangement: &Arrangement, row: &Row, state: &dyn State) -> Result<i64, ViewError> {
    Ok(state.get(arrangement.space(), row.as_bytes())?.map_or(0, |value| state.weight(&value)))
}

impl Operator for Set {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut out = Vec::new();
        for (row, [more_left, more_right]) in side_by_side(inputs[0], inputs[1]) {
            let (left, right) = (count(&self.left, row, context.before)?, count(&self.right, row, context.before)?);
            if left + more_left < 0 || right + more_right < 0 {
                return broken("a side of a set operation loses a row that is not there");
            }
            let change = times(self.kind, left + more_left, right + more_right) - times(self.kind, left, right);
            if change != 0 {
                out.push((row.clone(), change));
            }
        }
        Ok(Delta::from_consolidated(out))
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let state = context.before;
        self.left.scan(state, &mut |batch| {
            let mut out = Vec::with_capacity(BATCH_ROWS);
            for (row, left) in batch.into_rows() {
                let times = times(self.kind, left, count(&self.right, &row, state)?);
                if times != 0 {
                    out.push((row, times));
                }
            }
            if out.is_empty() { Ok(()) } else { emit(Delta::from_consolidated(out)) }
        })
    }
}

/// The rows of both differences in row order, each once, with what the left and the right side gain of it.
fn side_by_side<'a>(left: &'a Delta, right: &'a Delta) -> impl Iterator<Item = (&'a Row, [i64; 2])> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || {
        let row = match (left.peek(), right.peek()) {
            (Some((l, _)), Some((r, _))) => *l.min(r),
            (Some((row, _)), None) | (None, Some((row, _))) => *row,
            (None, None) => return None,
        };
        let more_left = left.next_if(|(l, _)| *l == row).map_or(0, |(_, weight)| weight);
        let more_right = right.next_if(|(r, _)| *r == row).map_or(0, |(_, weight)| weight);
        Some((row, [more_left, more_right]))
    })
}
