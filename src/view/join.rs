//! Inner join of any number of inputs.
//!
//! The difference is a sum with one term for each input, the term's *driver*: the driver's difference, joined with the inputs before it as
//! they are after the chunk and with those after it as they were before. Summed up, the terms telescope to new minus old. Each term
//! looks up the other inputs in an order of its own, in which equalities bind as much as possible of each next input. Equality is
//! transitive here, as texts are equal or not, so columns fall into classes, and what one member of a class is the others are.
//!
//! Only a row whose every joined cell is not NULL joins, so lookups with a NULL are not made.

mod plan;
mod run;

pub(super) use plan::lower;

use crate::{
    query::Expr,
    view::{
        ViewError,
        arrangement::Arrangement,
        delta::Delta,
        operator::{Context, Emit, Operator, whole},
    },
};

/// Rows of an input that no equality binds to the others: a side of a cross join. Each row of the others is joined with each of these.
const MAX_CROSS_ROWS: usize = 10_000;

/// A join.
pub(super) struct Join {
    /// Columns of each input.
    widths: Vec<usize>,
    /// One for each input, in order.
    terms: Vec<Term>,
    /// For each input, columns of it that equal each other.
    same: Vec<Vec<(usize, usize)>>,
    /// Where the first input's rows are.
    first: Arrangement,
    filter: Option<Expr>,
}

/// How one input's difference is joined with the others.
struct Term {
    driver: usize,
    steps: Vec<Step>,
}

/// One more input.
struct Step {
    input: usize,
    arrangement: Arrangement,
    /// For each column of the arrangement's key the input and the column it equals.
    operands: Vec<(usize, usize)>,
}

impl Operator for Join {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        whole(|emit| self.stream(inputs, context, emit))
    }

    fn stream(&self, inputs: &[&Delta], context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        self.terms.iter().filter(|term| !inputs[term.driver].is_empty()).try_for_each(|term| self.run(term, inputs, context, emit))
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let before = context.before;
        self.first.scan(before, &mut |batch| {
            let mut inputs = vec![Delta::EMPTY; self.widths.len()];
            inputs[0] = &batch;
            self.stream(&inputs, context, emit)
        })
    }
}
