//! What the store asks of a view's dataflow; another one can stand in for it in tests.

use std::{collections::BTreeMap, path::Path};

use crate::{
    data,
    data::Extent,
    view::{Dataflow, Remote, Sink, State, ViewError},
};

/// Keeps a view up to date; see [`Dataflow`], method by method.
pub trait Maintain {
    /// See [`Dataflow::apply`].
    #[expect(clippy::too_many_arguments, reason = "as for the dataflow's own")]
    fn apply<'c>(
        &mut self,
        changes: &mut dyn Iterator<Item = (u32, data::Change<'c>)>,
        columns: &BTreeMap<u32, Vec<usize>>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError>;

    /// See [`Dataflow::advance`].
    fn advance(
        &mut self,
        from: i64,
        to: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError>;

    /// See [`Dataflow::next_due`].
    fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError>;

    /// See [`Dataflow::has_clock`].
    fn has_clock(&self) -> bool;

    /// See [`Dataflow::chunk_changes`].
    fn chunk_changes(&self) -> usize;

    /// See [`Dataflow::load`].
    fn load(
        &mut self,
        tables: BTreeMap<u32, Extent>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
    ) -> Result<Extent, ViewError>;

    /// See [`Dataflow::verify`].
    fn verify(&self, now: i64, spool: &Path, state: &dyn State, remote: &mut dyn Remote) -> Result<Option<Extent>, ViewError>;
}

impl Maintain for Dataflow {
    fn apply<'c>(
        &mut self,
        changes: &mut dyn Iterator<Item = (u32, data::Change<'c>)>,
        columns: &BTreeMap<u32, Vec<usize>>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        Self::apply(self, changes, columns, now, spool, state, remote, sink)
    }

    fn advance(
        &mut self,
        from: i64,
        to: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        Self::advance(self, from, to, spool, state, remote, sink)
    }

    fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        Self::next_due(self, now, state)
    }

    fn has_clock(&self) -> bool {
        Self::has_clock(self)
    }

    fn chunk_changes(&self) -> usize {
        Self::chunk_changes(self)
    }

    fn load(
        &mut self,
        tables: BTreeMap<u32, Extent>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
    ) -> Result<Extent, ViewError> {
        Self::load(self, tables, now, spool, state, remote)
    }

    fn verify(&self, now: i64, spool: &Path, state: &dyn State, remote: &mut dyn Remote) -> Result<Option<Extent>, ViewError> {
        Self::verify(self, now, spool, state, remote)
    }
}
