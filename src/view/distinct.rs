//! Every row once: a count for each row of the input, a difference where a count leaves 0 or comes back to it.
//!
//! NULLs equal each other here, as bytes do.

use crate::{
    query::Plan,
    view::{
        ViewError,
        arrangement::{Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering},
        operator::{Context, Emit, Operator, broken},
    },
};

/// DISTINCT.
pub(super) struct Distinct {
    counts: Arrangement,
}

/// Lowers DISTINCT over what may hold a row more than once.
pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan) -> Result<Built, String> {
    let input = lowering.node(input)?;
    let every: Vec<usize> = (0..lowering.width(input)).collect();
    let counts = lowering.arrange(input, &every, Nulls::Keep);
    Ok(Built { operator: Box::new(Distinct { counts }), inputs: vec![input] })
}

impl Operator for Distinct {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut rows = Vec::new();
        for (row, weight) in inputs[0].iter() {
            let before = self.counts.weight(context.before, row)?;
            if let Some(flip) = flip(before, weight)? {
                rows.push((row.clone(), flip));
            }
        }
        Ok(Delta::from_consolidated(rows))
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        self.counts.scan(context.before, &mut |batch| {
            emit(Delta::from_consolidated(batch.into_rows().into_iter().map(|(row, _)| (row, 1)).collect()))
        })
    }
}

/// What becomes of a row's membership when its count, `before`, changes by `weight`.
pub(super) fn flip(before: i64, weight: i64) -> Result<Option<i64>, ViewError> {
    let after = before + weight;
    if before < 0 || after < 0 {
        return broken("a row was removed more often than it was there");
    }
    Ok(match (before > 0, after > 0) {
        (false, true) => Some(1),
        (true, false) => Some(-1),
        (true, true) | (false, false) => None,
    })
}
