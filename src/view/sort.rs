//! Signed rows in any number, sorted and summed up on disk.

use std::{io, path::Path};

use crate::{
    data::{Extent, ExtentBuilder, Row, cell_ends},
    view::{
        ViewError,
        delta::Delta,
        operator::{BATCH_ROWS, broken},
    },
};

/// Collects rows with weights.
pub(super) struct Sorter {
    builder: ExtentBuilder,
    /// How many there are: an extent drops duplicates, so each row gets its number.
    rows: u64,
}

impl Sorter {
    pub(super) fn new(spool: &Path) -> Self {
        Self { builder: ExtentBuilder::new(spool), rows: 0 }
    }

    /// Adds `weight` to what the row has; all rows must have the same number of cells.
    pub(super) fn push(&mut self, row: &Row, weight: i64) -> io::Result<()> {
        self.rows += 1;
        let tail = Row::from_texts([self.rows.to_string().as_str(), weight.to_string().as_str()]);
        self.builder.push(Row::from_encoded([row.as_bytes(), tail.as_bytes()]))
    }

    pub(super) fn finish(self) -> io::Result<Sorted> {
        Ok(Sorted { extent: self.builder.finish()?, next: None })
    }
}

/// The rows in order, each once, with the sums of their weights; those that cancel are left out.
pub(super) struct Sorted {
    extent: Extent,
    /// The row that has already been read.
    next: Option<(Row, i64)>,
}

impl Sorted {
    fn read(&mut self) -> Result<Option<(Row, i64)>, ViewError> {
        let Some(row) = self.extent.next().transpose()? else { return Ok(None) };
        let mut ends = Vec::new();
        cell_ends(row.as_bytes(), &mut ends);
        let [.., end, _, _] = [0].iter().chain(&ends).copied().collect::<Vec<_>>()[..] else {
            return broken("a sorted row has lost its weight");
        };
        let tail = crate::data::Cells::of(&row.as_bytes()[end..]);
        let Some(weight) = tail.text(1).and_then(|weight| weight.parse().ok()) else {
            return broken("a sorted row has lost its weight");
        };
        Ok(Some((Row::from_encoded([&row.as_bytes()[..end]]), weight)))
    }

    /// The next row.
    pub(super) fn next(&mut self) -> Result<Option<(Row, i64)>, ViewError> {
        loop {
            let first = match self.next.take() {
                Some(first) => first,
                None => match self.read()? {
                    Some(first) => first,
                    None => return Ok(None),
                },
            };
            let (row, mut sum) = first;
            loop {
                match self.read()? {
                    Some((next, weight)) if next == row => sum += weight,
                    other => {
                        self.next = other;
                        break;
                    }
                }
            }
            if sum != 0 {
                return Ok(Some((row, sum)));
            }
            if self.next.is_none() {
                return Ok(None);
            }
        }
    }

    /// The next rows, a batch of them.
    pub(super) fn batch(&mut self) -> Result<Option<Delta>, ViewError> {
        let mut rows = Vec::new();
        while let Some(row) = self.next()? {
            rows.push(row);
            if rows.len() == BATCH_ROWS {
                break;
            }
        }
        Ok((!rows.is_empty()).then(|| Delta::from_consolidated(rows)))
    }
}
