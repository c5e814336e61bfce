//! A whole query result, sorted and without duplicates, in bounded memory.
//!
//! An external merge sort: rows are sorted in memory [`RUN_BYTES`] at a time and spilled as runs, which are merged while
//! they are read. SQLite was the alternative (`INSERT OR IGNORE` into a temporary table); it writes each row into a B-tree
//! page several times, where a merge sort writes it once, and a comparison never needs the random access a tree offers.
//! It is our own code because the library for it, `extsort` 0.5.0, returns *no rows at all* when their number is a multiple
//! of its segment size plus one, and reads a truncated run as a shorter one: here either would be a mass revocation. So a
//! run knows its rows, and one that ends early is an error.
//!
//! Runs are unlinked temporary files: they vanish with the process, however it ends.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::data::Row;

/// Bytes of rows sorted in memory at a time, [`ROW_OVERHEAD`] included; about 150,000 of the usual 60-byte rows.
const RUN_BYTES: usize = 16 << 20;
/// What a row costs in memory beside its bytes: the fat pointer and the allocator's header and rounding.
const ROW_OVERHEAD: usize = 40;
/// Runs merged at a time: bounds open files and read buffers (64 × 64 KiB); more are merged into one first.
const MAX_RUNS: usize = 64;
/// The buffer of each file.
const FILE_BUFFER: usize = 64 << 10;

/// Collects rows in any order.
pub struct ExtentBuilder {
    spool: PathBuf,
    run_bytes: usize,
    buffer: Vec<Row>,
    buffered: usize,
    runs: Vec<Run>,
}

impl ExtentBuilder {
    /// An empty result that spills into unlinked files under `spool`.
    pub fn new(spool: &Path) -> Self {
        Self::with_run_bytes(spool, RUN_BYTES)
    }

    fn with_run_bytes(spool: &Path, run_bytes: usize) -> Self {
        Self { spool: spool.to_owned(), run_bytes, buffer: Vec::new(), buffered: 0, runs: Vec::new() }
    }

    /// Adds one row; duplicates are dropped later.
    pub fn push(&mut self, row: Row) -> io::Result<()> {
        self.buffered += row.as_bytes().len() + ROW_OVERHEAD;
        self.buffer.push(row);
        if self.buffered < self.run_bytes {
            return Ok(());
        }
        self.spill()
    }

    /// The result: every distinct row once, in order.
    pub fn finish(mut self) -> io::Result<Extent> {
        if !self.runs.is_empty() && !self.buffer.is_empty() {
            self.spill()?;
        }
        self.buffer.sort_unstable();
        let sorted = std::mem::take(&mut self.buffer);
        let rows: Rows = if self.runs.is_empty() { Box::new(sorted.into_iter().map(Ok)) } else { Box::new(Merge::new(self.runs)?) };
        Ok(Extent { rows, last: None })
    }

    fn spill(&mut self) -> io::Result<()> {
        self.buffer.sort_unstable();
        self.buffer.dedup();
        let run = Run::write(&self.spool, self.buffer.drain(..).map(Ok))?;
        self.buffered = 0;
        self.runs.push(run);
        if self.runs.len() == MAX_RUNS {
            let merged = Merge::new(std::mem::take(&mut self.runs))?;
            self.runs.push(Run::write(&self.spool, merged)?);
        }
        Ok(())
    }
}

/// A sorted file of rows, each as its length (4 bytes, little-endian) and its bytes.
struct Run {
    reader: BufReader<File>,
    left: u64,
}

impl Run {
    fn write(spool: &Path, rows: impl Iterator<Item = io::Result<Row>>) -> io::Result<Self> {
        let mut writer = BufWriter::with_capacity(FILE_BUFFER, tempfile::tempfile_in(spool)?);
        let mut left = 0;
        for row in rows {
            let row = row?;
            let length = u32::try_from(row.as_bytes().len()).map_err(io::Error::other)?;
            writer.write_all(&length.to_le_bytes())?;
            writer.write_all(row.as_bytes())?;
            left += 1;
        }
        let mut file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Self { reader: BufReader::with_capacity(FILE_BUFFER, file), left })
    }

    /// The next row; `None` only after as many as were written.
    fn next(&mut self) -> io::Result<Option<Row>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut length = [0; 4];
        self.reader.read_exact(&mut length)?;
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        self.reader.read_exact(&mut bytes)?;
        Row::from_bytes(bytes).map(Some)
    }
}

/// Merges runs; rows that several runs hold come out several times, one after the other.
struct Merge {
    runs: Vec<Run>,
    heads: BinaryHeap<Reverse<(Row, usize)>>,
}

impl Merge {
    fn new(mut runs: Vec<Run>) -> io::Result<Self> {
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (index, run) in runs.iter_mut().enumerate() {
            heads.extend(run.next()?.map(|row| Reverse((row, index))));
        }
        Ok(Self { runs, heads })
    }
}

impl Iterator for Merge {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut head = self.heads.peek_mut()?;
        let index = head.0.1;
        match self.runs[index].next() {
            Err(error) => Some(Err(error)),
            Ok(Some(row)) => Some(Ok(std::mem::replace(&mut head.0.0, row))),
            Ok(None) => Some(Ok(PeekMut::pop(head).0.0)),
        }
    }
}

type Rows = Box<dyn Iterator<Item = io::Result<Row>> + Send>;

/// A sorted result without duplicates, read once.
pub struct Extent {
    rows: Rows,
    last: Option<Row>,
}

impl Extent {
    /// Wraps rows that are sorted already, such as those of an index.
    pub fn from_sorted(rows: impl Iterator<Item = io::Result<Row>> + Send + 'static) -> Self {
        Self { rows: Box::new(rows), last: None }
    }
}

impl Iterator for Extent {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let row = match self.rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            if self.last.as_ref() == Some(&row) {
                continue;
            }
            assert!(self.last.as_ref() < Some(&row), "an extent's rows must be sorted");
            self.last = Some(row.clone());
            return Some(Ok(row));
        }
    }
}

impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Extent")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_extent_is_the_sorted_set_of_its_rows(texts in prop::collection::vec("[a-d]{0,3}", 0..300), run_rows in 1_usize..9) {
            let spool = tempfile::tempdir().expect("a folder");
            let mut builder = ExtentBuilder::with_run_bytes(spool.path(), run_rows * (ROW_OVERHEAD + 4));
            for text in &texts {
                builder.push(Row::from_texts([text.as_str()])).expect("pushed");
            }
            let got: Vec<Row> = builder.finish().expect("sorted").map(|row| row.expect("read")).collect();
            let want: std::collections::BTreeSet<Row> = texts.iter().map(|t| Row::from_texts([t.as_str()])).collect();
            prop_assert_eq!(got, want.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_run_that_ends_early_is_an_error_and_not_a_shorter_result() {
        let spool = tempfile::tempdir().expect("a folder");
        let rows = ["a", "b", "c"].map(|text| Ok(Row::from_texts([text])));
        let mut run = Run::write(spool.path(), rows.into_iter()).expect("written");
        run.reader.get_ref().set_len(10).expect("cut");
        let read: io::Result<Vec<Row>> = std::iter::from_fn(|| run.next().transpose()).take(3).collect();
        assert_eq!(read.expect_err("a cut run").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn its_files_have_no_name_to_leave_behind() {
        let spool = tempfile::tempdir().expect("a folder");
        let mut builder = ExtentBuilder::with_run_bytes(spool.path(), 1);
        for text in ["c", "b", "a"] {
            builder.push(Row::from_texts([text])).expect("pushed");
        }
        let extent = builder.finish().expect("sorted");
        assert_eq!(std::fs::read_dir(spool.path()).expect("listed").count(), 0);
        assert_eq!(extent.count(), 3);
    }
}
