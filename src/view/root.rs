//! The end of a dataflow: the plan's rows become facts, each once.
//!
//! A fact is an output row, however often the row occurs. Where the output cannot hold a row twice ([`super::keys`]) nothing is stored
//! and its difference is what flips; otherwise a count for each row says when it begins and ceases to be there.

use std::path::{Path, PathBuf};

use crate::{
    data::Row,
    target::Op,
    view::{
        Flip, Sink, Space, State, ViewError,
        delta::Delta,
        distinct::flip,
        operator::broken,
        sort::{Sorted, Sorter},
    },
};

/// Rows of the output's difference that are collected in memory; more are sorted on disk.
const MEMORY_ROWS: usize = 32 * 1024;

/// The output's difference while it comes in, in parts.
pub(super) struct Output {
    spool: PathBuf,
    rows: Vec<(Row, i64)>,
    sorter: Option<Sorter>,
}

impl Output {
    pub(super) fn new(spool: &Path) -> Self {
        Self { spool: spool.to_owned(), rows: Vec::new(), sorter: None }
    }

    pub(super) fn push(&mut self, part: Delta) -> Result<(), ViewError> {
        self.rows.append(&mut part.into_rows());
        if self.rows.len() > MEMORY_ROWS { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), ViewError> {
        let sorter = self.sorter.get_or_insert_with(|| Sorter::new(&self.spool));
        for (row, weight) in self.rows.drain(..) {
            sorter.push(&row, weight)?;
        }
        Ok(())
    }

    /// Phase two: tells `sink` what flips and counts, where `counts` says that there is a count for each row.
    pub(super) fn fold(mut self, counts: Option<Space>, state: &mut dyn State, sink: Sink<'_>) -> Result<(), ViewError> {
        if self.sorter.is_none() {
            let rows = Delta::consolidate(self.rows).into_rows();
            return rows.into_iter().try_for_each(|(row, weight)| one(row, weight, counts, state, sink));
        }
        self.spill()?;
        let mut sorted: Sorted = self.sorter.expect("rows were spilled").finish()?;
        while let Some((row, weight)) = sorted.next()? {
            one(row, weight, counts, state, sink)?;
        }
        Ok(())
    }
}

fn one(row: Row, weight: i64, counts: Option<Space>, state: &mut dyn State, sink: Sink<'_>) -> Result<(), ViewError> {
    let flips = match (counts, weight) {
        (Some(space), _) => flip(state.add(space, row.as_bytes(), weight)? - weight, weight)?,
        (None, 1 | -1) => Some(weight),
        (None, _) => return broken("a row of the result would be there more than once"),
    };
    match flips {
        Some(1) => sink(Flip::Row(Op::Insert, row))?,
        Some(_) => sink(Flip::Row(Op::Delete, row))?,
        None => {}
    }
    Ok(())
}
