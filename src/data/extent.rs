//! A whole query result, sorted and without duplicates, in bounded memory.
//!
//! An external merge sort: rows are sorted in memory [`RUN_BYTES`] at a time and spilled as runs, which are merged while
//! they are read. Rows that arrive in order, as those of an index do, make one run however many they are. SQLite was the alternative
//! (`INSERT OR IGNORE` into a temporary table); it writes each row into a B-tree
//! page several times, where a merge sort writes it once, and a comparison never needs the random access a tree offers.
//! It is our own code because the library for it, `extsort` 0.5.0, returns *no rows at all* when their number is a multiple
//! of its segment size plus one, and reads a truncated run as a shorter one: here either would be a mass revocation. So a
//! run knows its rows, and one that ends early is an error.
//!
//! Runs are unlinked temporary files: they vanish with the process, however it ends.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write},
    iter::Peekable,
    path::{Path, PathBuf},
};

use crate::data::Row;

/// Bytes of rows sorted in memory at a time, [`Slot`]s included; about 100,000 of the usual 60-byte rows. Half a dozen results may be
/// collected at a time, and [`MAX_RUNS`] of these still are millions of rows.
const RUN_BYTES: usize = 8 << 20;
/// A finished result larger than this goes to disk even if it is only one run: results wait for each other, hundreds of them in
/// a large configuration, and those of most fact types are smaller.
const KEPT_BYTES: usize = 512 << 10;
/// Runs merged at a time: bounds open files and read buffers (64 × 64 KiB); more are merged into one first.
const MAX_RUNS: usize = 64;
/// The buffer of each file.
const FILE_BUFFER: usize = 64 << 10;

/// Collects rows in any order.
pub struct ExtentBuilder {
    spool: PathBuf,
    run_bytes: usize,
    kept_bytes: usize,
    buffer: Buffer,
    runs: Vec<Run>,
    /// The last run, as long as more rows may continue it.
    open: Option<RunWriter>,
}

impl ExtentBuilder {
    /// An empty result that spills into unlinked files under `spool`.
    pub fn new(spool: &Path) -> Self {
        Self::with_limits(spool, RUN_BYTES, KEPT_BYTES)
    }

    fn with_limits(spool: &Path, run_bytes: usize, kept_bytes: usize) -> Self {
        Self { spool: spool.to_owned(), run_bytes, kept_bytes, buffer: Buffer::default(), runs: Vec::new(), open: None }
    }

    /// Adds one row; duplicates are dropped later.
    pub fn push(&mut self, row: Row) -> io::Result<()> {
        self.buffer.push(row.as_bytes())?;
        if self.buffer.size() < self.run_bytes { Ok(()) } else { self.spill() }
    }

    /// The result: every distinct row once, in order.
    pub fn finish(mut self) -> io::Result<Extent> {
        if self.open.is_none() && self.buffer.size() <= self.kept_bytes {
            self.buffer.sort();
            return Ok(Extent::from_sorted(self.buffer.into_rows().map(Ok)));
        }
        self.spill()?;
        self.buffer = Buffer::default();
        self.close()?;
        Ok(Extent::from_sorted(Merge::new(self.runs)?))
    }

    fn spill(&mut self) -> io::Result<()> {
        self.buffer.sort();
        let continues = |run: &RunWriter| self.buffer.first().is_none_or(|first| *run.last <= *first);
        if !self.open.as_ref().is_some_and(continues) {
            self.close()?;
            self.open = Some(RunWriter::new(&self.spool)?);
        }
        let run = self.open.as_mut().expect("it has just been opened");
        self.buffer.distinct().try_for_each(|row| run.push(row))?;
        self.buffer.clear();
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        let Some(run) = self.open.take() else { return Ok(()) };
        self.runs.push(run.finish()?);
        if self.runs.len() == MAX_RUNS {
            let mut run = RunWriter::new(&self.spool)?;
            for row in Merge::new(std::mem::take(&mut self.runs))? {
                run.push(row?.as_bytes())?;
            }
            self.runs.push(run.finish()?);
        }
        Ok(())
    }
}

/// Rows in memory: their bytes one after the other, so that a row costs no allocation, and a [`Slot`] for each.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

/// Where a row is.
#[derive(Clone, Copy)]
struct Slot {
    /// Its first bytes as numbers, zeros where it is shorter. A smaller prefix means a smaller row, so most comparisons end here
    /// and do not look at bytes that are somewhere else in memory; sixteen of them get past the `user_` that every id starts with.
    prefix: [u64; 2],
    start: u32,
    length: u32,
}

impl Slot {
    fn new(row: &[u8], start: usize) -> io::Result<Self> {
        let mut prefix = [[0; 8]; 2];
        for (number, bytes) in prefix.iter_mut().zip(row.chunks(8)) {
            number[..bytes.len()].copy_from_slice(bytes);
        }
        let small = |number: usize| u32::try_from(number).map_err(|_| io::Error::other("a row is larger than 4 GiB"));
        Ok(Self { prefix: prefix.map(u64::from_be_bytes), start: small(start)?, length: small(row.len())? })
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..][..self.length as usize]
    }
}

impl Buffer {
    fn push(&mut self, row: &[u8]) -> io::Result<()> {
        self.slots.push(Slot::new(row, self.bytes.len())?);
        self.bytes.extend_from_slice(row);
        Ok(())
    }

    fn size(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    fn sort(&mut self) {
        let Self { bytes, slots } = self;
        slots.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| a.of(bytes).cmp(b.of(bytes))));
    }

    /// The smallest row of a sorted buffer.
    fn first(&self) -> Option<&[u8]> {
        self.slots.first().map(|slot| slot.of(&self.bytes))
    }

    /// The rows of a sorted buffer, each once.
    fn distinct(&self) -> impl Iterator<Item = &[u8]> {
        let mut last = None;
        let rows = self.slots.iter().map(|slot| slot.of(&self.bytes));
        rows.filter(move |row| last.replace(*row) != Some(*row))
    }

    fn into_rows(self) -> impl Iterator<Item = Row> {
        let Self { bytes, slots } = self;
        slots.into_iter().map(move |slot| Row::from_own_bytes(slot.of(&bytes).into()))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }
}

/// A sorted file of rows, each as its length (4 bytes, little-endian) and its bytes.
struct Run {
    reader: BufReader<File>,
    left: u64,
}

/// A run that is still written to.
struct RunWriter {
    writer: BufWriter<File>,
    rows: u64,
    last: Vec<u8>,
}

impl RunWriter {
    fn new(spool: &Path) -> io::Result<Self> {
        Ok(Self { writer: BufWriter::with_capacity(FILE_BUFFER, tempfile::tempfile_in(spool)?), rows: 0, last: Vec::new() })
    }

    fn push(&mut self, row: &[u8]) -> io::Result<()> {
        let length = u32::try_from(row.len()).map_err(io::Error::other)?;
        self.writer.write_all(&length.to_le_bytes())?;
        self.writer.write_all(row)?;
        self.rows += 1;
        self.last.clear();
        self.last.extend_from_slice(row);
        Ok(())
    }

    fn finish(self) -> io::Result<Run> {
        let mut file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Run { reader: BufReader::with_capacity(FILE_BUFFER, file), left: self.rows })
    }
}

impl Run {
    /// The next row; `None` only after as many as were written.
    fn next(&mut self) -> io::Result<Option<Row>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut length = [0; 4];
        self.reader.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        // Most rows lie in the buffer as a whole.
        let bytes = match self.reader.buffer().get(..length) {
            Some(bytes) => {
                let bytes = bytes.into();
                self.reader.consume(length);
                bytes
            }
            None => {
                let mut bytes = vec![0; length];
                self.reader.read_exact(&mut bytes)?;
                bytes.into_boxed_slice()
            }
        };
        Ok(Some(Row::from_own_bytes(bytes)))
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
    /// The row before; no bytes, which no row comes before, at the start.
    last: Vec<u8>,
    begun: bool,
}

impl Extent {
    /// Wraps rows that are sorted already, such as those of an index.
    pub fn from_sorted(rows: impl Iterator<Item = io::Result<Row>> + Send + 'static) -> Self {
        Self { rows: Box::new(rows), last: Vec::new(), begun: false }
    }
}

/// Rows of an extent that are asked for in row order.
pub struct Sought(Peekable<Extent>);

impl From<Extent> for Sought {
    fn from(rows: Extent) -> Self {
        Self(rows.peekable())
    }
}

impl Sought {
    /// Whether `row` is among them; no row before it can be asked for any more.
    pub fn has(&mut self, row: &Row) -> io::Result<bool> {
        while let Some(next) = self.0.peek() {
            match next.as_ref().map_or(Ordering::Less, |next| next.cmp(row)) {
                // An error, too, is taken out and ends it.
                Ordering::Less => drop(self.0.next().transpose()?),
                Ordering::Equal => return Ok(true),
                Ordering::Greater => return Ok(false),
            }
        }
        Ok(false)
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
            match self.last.as_slice().cmp(row.as_bytes()) {
                Ordering::Equal if self.begun => continue,
                Ordering::Less | Ordering::Equal => {}
                Ordering::Greater => panic!("an extent's rows must be sorted"),
            }
            self.begun = true;
            self.last.clear();
            self.last.extend_from_slice(row.as_bytes());
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

    /// Small limits: runs of `rows` rows, and a result that is in memory only if `kept`.
    fn builder(spool: &Path, rows: usize, kept: bool) -> ExtentBuilder {
        ExtentBuilder::with_limits(spool, rows * (size_of::<Slot>() + 4), if kept { RUN_BYTES } else { 0 })
    }

    /// Rows that differ early, late, after more than a prefix, or only in length.
    fn cells() -> impl Strategy<Value = Vec<Vec<Option<String>>>> {
        let text = "(organization_000)?[\u{0}\u{1}a-c]{0,4}";
        prop::collection::vec(prop::collection::vec(prop::option::of(text), 0..3), 0..300)
    }

    proptest! {
        #[test]
        fn an_extent_is_the_sorted_set_of_its_rows(cells in cells(), run_rows in 1_usize..9, kept: bool) {
            let spool = tempfile::tempdir().expect("a folder");
            let rows: Vec<Row> = cells.iter().map(|cells| Row::from_cells(cells.iter().map(Option::as_deref))).collect();
            let mut builder = builder(spool.path(), run_rows, kept);
            for row in &rows {
                builder.push(row.clone()).expect("pushed");
            }
            let got: Vec<Row> = builder.finish().expect("sorted").map(|row| row.expect("read")).collect();
            let want: std::collections::BTreeSet<Row> = rows.into_iter().collect();
            prop_assert_eq!(got, want.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_run_that_ends_early_is_an_error_and_not_a_shorter_result() {
        let spool = tempfile::tempdir().expect("a folder");
        let mut writer = RunWriter::new(spool.path()).expect("created");
        for text in ["a", "b", "c"] {
            writer.push(Row::from_texts([text]).as_bytes()).expect("written");
        }
        let mut run = writer.finish().expect("flushed");
        run.reader.get_ref().set_len(10).expect("cut");
        let read: io::Result<Vec<Row>> = std::iter::from_fn(|| run.next().transpose()).take(3).collect();
        assert_eq!(read.expect_err("a cut run").kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn its_files_have_no_name_to_leave_behind_and_a_small_result_has_no_file() {
        let spool = tempfile::tempdir().expect("a folder");
        let mut large = builder(spool.path(), 1, false);
        let mut small = ExtentBuilder::new(Path::new("/nonexistent/folder"));
        for text in ["c", "b", "a"] {
            large.push(Row::from_texts([text])).expect("pushed");
            small.push(Row::from_texts([text])).expect("pushed");
        }
        let extent = large.finish().expect("sorted");
        assert_eq!(std::fs::read_dir(spool.path()).expect("listed").count(), 0);
        assert_eq!(extent.count(), 3);
        assert_eq!(small.finish().expect("sorted").count(), 3);
    }

    #[test]
    fn a_result_that_waits_for_others_is_on_disk_unless_it_is_small() {
        let missing = Path::new("/nonexistent/folder");
        let mut builder = ExtentBuilder::new(missing);
        for n in 0..KEPT_BYTES / size_of::<Slot>() {
            builder.push(Row::from_texts([n.to_string().as_str()])).expect("not yet a run");
        }
        assert!(builder.finish().is_err(), "it stayed in memory");
    }

    #[test]
    fn rows_in_order_make_one_run() {
        let spool = tempfile::tempdir().expect("a folder");
        for (order, runs) in [(["a", "b", "b", "c"], 1), (["a", "c", "b", "c"], 2), (["d", "c", "b", "a"], 4)] {
            let mut builder = builder(spool.path(), 1, false);
            for text in order {
                builder.push(Row::from_texts([text])).expect("pushed");
            }
            assert_eq!(builder.runs.len() + usize::from(builder.open.is_some()), runs, "{order:?}");
            let got: Vec<Row> = builder.finish().expect("sorted").map(|row| row.expect("read")).collect();
            let want: std::collections::BTreeSet<Row> = order.into_iter().map(|text| Row::from_texts([text])).collect();
            assert_eq!(got, want.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    #[should_panic(expected = "must be sorted")]
    fn rows_out_of_order_are_a_bug_and_not_a_result() {
        let rows = ["b", "a"].map(|text| Ok(Row::from_texts([text])));
        Extent::from_sorted(rows.into_iter()).for_each(drop);
    }
}
