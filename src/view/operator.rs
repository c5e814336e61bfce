//! What every operator of a dataflow is.
//!
//! # How a chunk goes through
//!
//! Phase one: in topological order, [`Operator::delta`] computes what each node's output gains and loses from what its inputs gain and
//! lose, reading the state as it was before the chunk. Phase two: every [`Arrangement`](super::arrangement::Arrangement) that the
//! lowering has registered is brought up to date with the delta of the node it holds (by the dataflow, not by the operators that share it),
//! and [`Operator::fold`] brings an operator's own spaces up to date.
//!
//! # How a stateful operator gets its spaces
//!
//! From the [`Lowering`](super::lower::Lowering) that constructs it. `lowering.arrange(node, key, nulls)` is the usual way: the rows of an
//! input node by some of its columns, shared with every other operator that asks for the same, loaded in bulk, folded and verified by the
//! dataflow; the operator only looks up. `lowering.space()` is a space of the operator's own, which it folds itself. A count of each row
//! is an arrangement whose key is every column.
//!
//! # How it is loaded
//!
//! Nodes are loaded in topological order. [`Load::Linear`] operators pass batches on. For [`Load::Scanned`] ones, when the registered
//! arrangements of all inputs are complete: first `fold` is called with the complete inputs it asks for by [`Operator::folds`], in batches
//! sorted as asked and with an empty output; then [`Operator::scan`] streams the complete output, which feeds what is above; then, if asked
//! for by [`Operator::folds_output`], `fold` is called with that output in sorted batches and empty inputs. So `fold` must be additive:
//! folding rows in any split and order of batches gives the same state.

use std::{io, ops::ControlFlow};

use crate::{
    data::Row,
    view::{Remote, State, ViewError, delta::Delta},
};

/// What phase one reads besides its inputs.
pub(super) struct Context<'a> {
    /// The state before the chunk.
    pub(super) before: &'a dyn State,
    /// `now()` before, in microseconds since 2000-01-01 UTC.
    pub(super) from: i64,
    /// `now()` after; the same as `from` while a chunk of changes is applied.
    pub(super) to: i64,
    /// The source, for expressions.
    pub(super) remote: &'a mut dyn Remote,
}

/// Takes a part of an output. The parts of one output may have rows in common, whose weights then add up.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Delta) -> Result<(), ViewError>;

/// How an operator takes part in loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Its output's difference depends on its input's difference alone: complete inputs pass through [`Operator::delta`] in batches.
    Linear,
    /// As linear, but it has spaces of its own: each batch passes through [`Operator::delta`] and then [`Operator::fold`].
    Streamed,
    /// Its complete output is streamed from its state by [`Operator::scan`].
    Scanned,
}

/// Rows in a batch while loading and scanning: a few hundred KiB.
pub(super) const BATCH_ROWS: usize = 4096;

/// One node's operator. Holds no rows.
pub(super) trait Operator {
    /// Phase one: what the output gains and loses. `inputs` has the delta of each of the node's inputs; when time passes
    /// ([`Context::from`] < [`Context::to`]) they may be empty or not, like in a chunk.
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError>;

    /// As [`Operator::delta`], in parts, each of which may be taken as a difference of its own, one after the other.
    fn stream(&self, inputs: &[&Delta], context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let delta = self.delta(inputs, context)?;
        if delta.is_empty() { Ok(()) } else { emit(delta) }
    }

    /// Phase two: brings the operator's own spaces up to date with what the inputs and the output gain and lose.
    fn fold(&self, inputs: &[&Delta], output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        let _ = (inputs, output, state);
        Ok(())
    }

    /// How it is loaded.
    fn load(&self) -> Load {
        Load::Scanned
    }

    /// Whether `fold` wants the rows of an input, and by which columns they are best sorted when there are many.
    fn folds(&self, input: usize) -> Option<Vec<usize>> {
        let _ = input;
        None
    }

    /// Whether `fold` wants the output, and by which columns it is best sorted.
    fn folds_output(&self) -> Option<Vec<usize>> {
        None
    }

    /// Streams the complete output as of [`Context::to`] from arrangements and own spaces, of which those that hold the output are not
    /// written yet while loading. Only asked of [`Load::Scanned`] operators.
    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let _ = (context, emit);
        Ok(())
    }

    /// The first moment after `now` at which the output changes by itself; `None` if never.
    fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        let _ = (now, state);
        Ok(None)
    }

    /// Whether the output depends on the time.
    fn has_clock(&self) -> bool {
        false
    }

    /// Whether it keeps or drops each row as it is, by the row alone.
    fn is_filter(&self) -> bool {
        false
    }

    /// The operator's own spaces, for [`Dataflow::verify`](super::Dataflow::verify).
    fn spaces(&self) -> Vec<super::Space> {
        Vec::new()
    }
}

/// The state contradicts the change log or itself.
pub(super) fn broken<T>(what: impl Into<String>) -> Result<T, ViewError> {
    Err(ViewError::Broken(what.into()))
}

/// Takes an entry's key and value, or says what is wrong.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, ViewError>;

/// Walks entries with a callback that may fail in more ways than I/O does.
pub(super) fn walk(scan: impl FnOnce(super::Each<'_>) -> io::Result<()>, each: Visit<'_>) -> Result<(), ViewError> {
    let mut failed = None;
    scan(&mut |key, value| {
        Ok(each(key, value).unwrap_or_else(|error| {
            failed = Some(error);
            ControlFlow::Break(())
        }))
    })?;
    failed.map_or(Ok(()), Err)
}

/// Collects an output and hands it over in parts.
pub(super) struct Parts<'a> {
    rows: Vec<(Row, i64)>,
    emit: Emit<'a>,
}

impl<'a> Parts<'a> {
    /// Nothing yet.
    pub(super) fn new(emit: Emit<'a>) -> Self {
        Self { rows: Vec::new(), emit }
    }

    /// One more row.
    pub(super) fn push(&mut self, row: Row, weight: i64) -> Result<(), ViewError> {
        self.rows.push((row, weight));
        if self.rows.len() < BATCH_ROWS { Ok(()) } else { self.finish() }
    }

    /// Hands over what is left.
    pub(super) fn finish(&mut self) -> Result<(), ViewError> {
        let delta = Delta::consolidate(std::mem::take(&mut self.rows));
        if delta.is_empty() { Ok(()) } else { (self.emit)(delta) }
    }
}

/// An output that is produced in parts, as a whole.
pub(super) fn whole(produce: impl FnOnce(Emit<'_>) -> Result<(), ViewError>) -> Result<Delta, ViewError> {
    let mut rows = Vec::new();
    let mut parts = 0;
    produce(&mut |part| {
        parts += 1;
        rows.append(&mut part.into_rows());
        Ok(())
    })?;
    Ok(if parts > 1 { Delta::consolidate(rows) } else { Delta::from_consolidated(rows) })
}
