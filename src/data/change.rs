//! Row changes of a source's transactions, packed into few allocations.
//!
//! A batch is what one step of the stream hands over: the changes of any number of whole transactions, and perhaps the
//! beginning of one that is too large for a batch. Marks say where each transaction ends.

use crate::data::{Lsn, ResumeToken};

/// Starts a NULL cell, as in [`Row`](crate::data::Row).
const NULL: u8 = 0;
/// Starts a text cell, as in [`Row`](crate::data::Row).
const TEXT: u8 = 1;
/// A cell the change log does not tell: an unchanged value stored out of line, or a column outside of the replica identity.
const ABSENT: u8 = 2;
/// A value that is longer than its source delivers; see [`ImageWriter::too_long`].
const TOO_LONG: u8 = 3;

/// A row as the change log tells it: the cells of the table's kept columns, some of them absent.
///
/// The bytes of an image without absent cells are those of the [`Row`](crate::data::Row) with the same cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a>(&'a [u8]);

impl<'a> Image<'a> {
    /// The bytes; those of a row if [`Image::is_whole`].
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Each cell with its tag and its end, exactly as the row of these cells has it; absent cells and those that are too long are one byte.
    pub fn encoded(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = match rest.first()? {
                &TEXT => 1 + text_length(&rest[1..]),
                _ => 1,
            };
            let (cell, after) = rest.split_at(length);
            rest = after;
            Some(cell)
        })
    }

    /// Whether no cell is absent.
    pub fn is_whole(self) -> bool {
        self.encoded().all(|cell| cell[0] != ABSENT && cell[0] != TOO_LONG)
    }

    /// Whether an encoded cell is an absent one.
    pub fn is_absent(encoded: &[u8]) -> bool {
        encoded == [ABSENT]
    }

    /// Whether an encoded cell stands for a value that was too long to be delivered.
    pub fn is_too_long(encoded: &[u8]) -> bool {
        encoded == [TOO_LONG]
    }
}

/// Up to and with the two bytes that end a text.
fn text_length(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let zero = bytes[at..].iter().position(|&byte| byte == 0).expect("a batch is written by us, and every text ends");
        at += zero + 2;
        if bytes[at - 1] == 1 {
            return at;
        }
    }
}

/// One row change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// A new row.
    Insert {
        /// It.
        new: Image<'a>,
    },
    /// A changed row.
    Update {
        /// The old identity, if it changed, or the whole old row under `REPLICA IDENTITY FULL`.
        old: Option<Image<'a>>,
        /// The new row; values that are stored out of line and did not change are absent.
        new: Image<'a>,
    },
    /// A row that is gone.
    Delete {
        /// Its identity, or the whole row.
        old: Image<'a>,
    },
    /// All rows are gone.
    Truncate,
}

/// Where a transaction ends in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Where its commit record starts: it belongs to every position beyond this one.
    pub start: Lsn,
    /// Where its commit record ends: the position after it.
    pub end: Lsn,
    /// How many changes of the batch are its own or of transactions before it.
    pub changes: usize,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Insert,
    Update,
    UpdateWithOld,
    Delete,
    Truncate,
}

/// A change's place: `old` is `start..middle`, `new` is `middle..end`.
#[derive(Debug, Clone, Copy)]
struct Entry {
    table: u32,
    op: Op,
    start: usize,
    middle: usize,
    end: usize,
}

/// Changes in the order in which the source made them.
#[derive(Debug, Default)]
pub struct ChangeBatch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    commits: Vec<Commit>,
    open: Option<Lsn>,
    token: ResumeToken,
}

impl ChangeBatch {
    /// Changes so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing in it, not even the end of a transaction.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.commits.is_empty()
    }

    /// Bytes of memory its content takes.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * size_of::<Entry>() + self.commits.len() * size_of::<Commit>()
    }

    /// Where the commit record of the transaction starts that its last changes belong to, if that one does not end in it.
    ///
    /// The beginning of a transaction is applied before its end is here, so whether a view has it already must be known from the start.
    pub fn open(&self) -> Option<Lsn> {
        self.open
    }

    /// The transactions that end in it, in commit order.
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// What resumes the change stream behind the last transaction that ends in it, where the log is one.
    pub fn token(&self) -> &ResumeToken {
        &self.token
    }

    /// Says what [`ChangeBatch::token`] is.
    pub fn resumes_with(&mut self, token: ResumeToken) {
        self.token = token;
    }

    /// The changes `range`, each with its table's OID.
    pub fn changes(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = (u32, Change<'_>)> {
        self.entries[range].iter().map(|entry| (entry.table, self.change(entry)))
    }

    fn change(&self, entry: &Entry) -> Change<'_> {
        let old = Image(&self.bytes[entry.start..entry.middle]);
        let new = Image(&self.bytes[entry.middle..entry.end]);
        match entry.op {
            Op::Insert => Change::Insert { new },
            Op::Update => Change::Update { old: None, new },
            Op::UpdateWithOld => Change::Update { old: Some(old), new },
            Op::Delete => Change::Delete { old },
            Op::Truncate => Change::Truncate,
        }
    }

    /// Begins a transaction, or goes on in a new batch with one that did not end in the batch before: `start` is where its commit record
    /// starts.
    pub fn begin(&mut self, start: Lsn) {
        self.open = Some(start);
    }

    /// Adds an insert; `write` writes the new image's cells.
    pub fn insert(&mut self, table: u32, write: impl FnOnce(&mut ImageWriter<'_>)) {
        let start = self.bytes.len();
        self.write(write);
        self.end(table, Op::Insert, start, start);
    }

    /// Adds an update; `old` writes the old image's cells, if the change log has one.
    pub fn update<O: FnOnce(&mut ImageWriter<'_>)>(&mut self, table: u32, old: Option<O>, new: impl FnOnce(&mut ImageWriter<'_>)) {
        let start = self.bytes.len();
        let op = if old.is_some() { Op::UpdateWithOld } else { Op::Update };
        if let Some(old) = old {
            self.write(old);
        }
        let middle = self.bytes.len();
        self.write(new);
        self.end(table, op, start, middle);
    }

    /// Adds a delete.
    pub fn delete(&mut self, table: u32, old: impl FnOnce(&mut ImageWriter<'_>)) {
        let start = self.bytes.len();
        self.write(old);
        let middle = self.bytes.len();
        self.end(table, Op::Delete, start, middle);
    }

    /// Adds the emptying of a table.
    pub fn truncate(&mut self, table: u32) {
        let start = self.bytes.len();
        self.end(table, Op::Truncate, start, start);
    }

    /// Ends the transaction whose changes were added last.
    pub fn commit(&mut self, start: Lsn, end: Lsn) {
        self.open = None;
        self.commits.push(Commit { start, end, changes: self.entries.len() });
    }

    /// Where the record of the first commit starts that anything in it belongs to; `None` of an empty batch.
    pub fn first(&self) -> Option<Lsn> {
        self.commits.first().map(|commit| commit.start).or(self.open)
    }

    /// Takes out everything that belongs to commits whose records start at `point` or behind it.
    ///
    /// What is left ends at a commit if anything was taken. It has no token: what resumes there is told by its place alone, until the next
    /// position, which has one, is stored.
    pub fn split_off(&mut self, point: Lsn) -> Option<Self> {
        // Commits come in the order of their records, and one that is open comes behind all of them.
        let kept = self.commits.partition_point(|commit| commit.start < point);
        if kept == self.commits.len() && self.open.is_none_or(|start| start < point) {
            return None;
        }
        let changes = kept.checked_sub(1).map_or(0, |last| self.commits[last].changes);
        let from = self.entries.get(changes).map_or(self.bytes.len(), |entry| entry.start);
        let bytes = self.bytes.split_off(from);
        let moved = |entry: Entry| Entry { start: entry.start - from, middle: entry.middle - from, end: entry.end - from, ..entry };
        let entries = self.entries.split_off(changes).into_iter().map(moved).collect();
        let commits = self.commits.split_off(kept);
        let commits = commits.into_iter().map(|commit| Commit { changes: commit.changes - changes, ..commit }).collect();
        Some(Self { bytes, entries, commits, open: self.open.take(), token: std::mem::take(&mut self.token) })
    }

    fn write(&mut self, write: impl FnOnce(&mut ImageWriter<'_>)) {
        write(&mut ImageWriter { bytes: &mut self.bytes });
    }

    fn end(&mut self, table: u32, op: Op, start: usize, middle: usize) {
        self.entries.push(Entry { table, op, start, middle, end: self.bytes.len() });
    }
}

/// Writes the cells of one image, left to right.
#[derive(Debug)]
pub struct ImageWriter<'a> {
    bytes: &'a mut Vec<u8>,
}

impl ImageWriter<'_> {
    /// SQL NULL.
    pub fn null(&mut self) {
        self.bytes.push(NULL);
    }

    /// A value's text. It must be UTF-8, which the caller has checked.
    pub fn text(&mut self, text: &str) {
        self.bytes.push(TEXT);
        for (index, piece) in text.as_bytes().split(|&byte| byte == 0).enumerate() {
            if index > 0 {
                self.bytes.extend([0, 0xFF]);
            }
            self.bytes.extend(piece);
        }
        self.bytes.extend([0, 1]);
    }

    /// A value that is not told.
    pub fn absent(&mut self) {
        self.bytes.push(ABSENT);
    }

    /// A value that is told but so long that it would cost more than it is worth: who needs it cannot follow this change.
    pub fn too_long(&mut self) {
        self.bytes.push(TOO_LONG);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Row;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_whole_image_is_a_row(cells in prop::collection::vec(prop::option::of("[\u{0}\u{1}a\u{ff}]{0,4}"), 0..4)) {
            let mut batch = ChangeBatch::default();
            batch.insert(7, |image| cells.iter().for_each(|cell| match cell {
                None => image.null(),
                Some(text) => image.text(text),
            }));
            batch.commit(Lsn(1), Lsn(2));
            let row = Row::from_cells(cells.iter().map(Option::as_deref));
            let changes: Vec<_> = batch.changes(0..1).collect();
            let [(7, Change::Insert { new })] = changes[..] else { panic!("{changes:?}") };
            prop_assert!(new.is_whole());
            prop_assert_eq!(new.as_bytes(), row.as_bytes());
            prop_assert_eq!(new.encoded().count(), cells.len());
            prop_assert_eq!(new.encoded().flatten().copied().collect::<Vec<u8>>(), row.as_bytes());
        }
    }

    #[test]
    fn a_batch_is_split_between_two_commits() {
        let text = |image: &mut ImageWriter<'_>, text: &str| image.text(text);
        let told = |batch: &ChangeBatch| {
            let rows = batch.changes(0..batch.len()).filter_map(|(_, change)| match change {
                Change::Insert { new } => Some(new.as_bytes().to_vec()),
                Change::Update { .. } | Change::Delete { .. } | Change::Truncate => None,
            });
            (rows.collect::<Vec<_>>(), batch.commits().to_vec(), batch.open())
        };
        // Commits at 10, 20 and 30 of one, two and no changes, and one at 40 that goes on.
        for (point, commits, rows) in [(5, 0, 0), (10, 0, 0), (11, 1, 1), (20, 1, 1), (21, 2, 3), (31, 3, 3), (40, 3, 3), (41, 4, 4)] {
            let mut batch = ChangeBatch::default();
            for (start, names) in [(10, &["a"][..]), (20, &["b", "c"]), (30, &[])] {
                batch.begin(Lsn(start));
                names.iter().for_each(|name| batch.insert(1, |image| text(image, name)));
                batch.commit(Lsn(start), Lsn(start + 1));
            }
            batch.begin(Lsn(40));
            batch.insert(1, |image| text(image, "d"));
            let (all, all_commits, _) = told(&batch);
            let rest = batch.split_off(Lsn(point));
            let (before, before_commits, open) = told(&batch);
            assert_eq!(rest.is_none(), commits == 4, "{point}");
            assert_eq!((before_commits.len() + usize::from(open.is_some()), before.len()), (commits, rows), "{point}");
            let Some(rest) = rest else { continue };
            let (after, after_commits, open) = told(&rest);
            assert_eq!([before, after].concat(), all, "{point}");
            assert_eq!(open, Some(Lsn(40)));
            assert_eq!(
                before_commits.iter().chain(&after_commits).map(|commit| commit.start).collect::<Vec<_>>(),
                all_commits.iter().map(|commit| commit.start).collect::<Vec<_>>()
            );
            assert_eq!(after_commits.first().map(|commit| commit.changes), [1, 2, 0].get(commits).copied());
            assert!(rest.first().is_some_and(|first| first >= Lsn(point)));
        }
    }

    #[test]
    fn an_update_has_its_images_apart() {
        let mut batch = ChangeBatch::default();
        batch.update(
            1,
            Some(|old: &mut ImageWriter<'_>| {
                old.text("k");
                old.absent();
            }),
            |new| {
                new.text("l");
                new.too_long();
            },
        );
        batch.update(1, None::<fn(&mut ImageWriter<'_>)>, |new| new.null());
        batch.truncate(2);
        let changes: Vec<_> = batch.changes(0..3).map(|(_, change)| change).collect();
        let Change::Update { old: Some(old), new } = changes[0] else { panic!("{changes:?}") };
        assert!(!new.is_whole());
        let cells: Vec<_> = old.encoded().collect();
        assert_eq!(cells, [&b"\x01k\x00\x01"[..], &[ABSENT]]);
        assert!(Image::is_absent(cells[1]) && !Image::is_absent(cells[0]));
        let cells: Vec<_> = new.encoded().collect();
        assert!(Image::is_too_long(cells[1]) && !Image::is_absent(cells[1]) && !Image::is_too_long(cells[0]));
        assert!(matches!(changes[1], Change::Update { old: None, .. }));
        assert_eq!(changes[2], Change::Truncate);
    }
}
