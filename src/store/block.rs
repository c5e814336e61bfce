//! A run of outbox entries as one value, so that a large commit costs the store one insert and one delete for each thousand of them.
//!
//! A block is its rows one after another, each after its length in four bytes, little-endian: a row says where each of its cells ends
//! but not where it ends itself. A row's bytes are read by [`Row::from_bytes`](crate::data::Row::from_bytes), which takes nothing else.

use crate::store::ViewId;

/// How large a block becomes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries: u64,
    pub(super) bytes: usize,
}

/// A thousand entries are the largest batch a fact store takes: more in one block would be read again for each batch. Of large rows it
/// is 64 KiB, 16 pages, because the start of a block is all that a batch may want of it. A larger row is a block of its own.
pub(super) const LIMITS: Limits = Limits { entries: 1_000, bytes: 64 << 10 };

/// A row's length in front of it.
const LENGTH_BYTES: usize = size_of::<u32>();

/// A block on its way to the disk.
pub(super) struct Block {
    pub(super) view: ViewId,
    pub(super) count: u64,
    pub(super) bytes: Vec<u8>,
}

impl Block {
    pub(super) fn new(view: ViewId) -> Self {
        Self { view, count: 0, bytes: Vec::new() }
    }

    /// Whether `row` still fits.
    pub(super) fn takes(&self, row: &[u8], limits: Limits) -> bool {
        self.count < limits.entries && self.bytes.len() + LENGTH_BYTES + row.len() <= limits.bytes
    }

    pub(super) fn push(&mut self, row: &[u8]) {
        let length = u32::try_from(row.len()).expect("SQLite takes a billion bytes at most, and a row of a fact is one value there");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(row);
        self.count += 1;
    }
}

/// The rows of a block; `None` if they are not exactly `count`.
pub(super) fn rows(bytes: &[u8], count: u64) -> Option<Vec<&[u8]>> {
    let mut rest = bytes;
    let mut rows = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let (row, tail) = tail.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rows.push(row);
        rest = tail;
    }
    (rest.is_empty() && rows.len() as u64 == count).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_block_reads_back_its_rows_and_a_torn_one_does_not(
            stored in prop::collection::vec(prop::collection::vec(0_u8..3, 0..6), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut block = Block::new(ViewId(1));
            stored.iter().for_each(|row| block.push(row));
            let read = rows(&block.bytes, block.count).expect("whole");
            prop_assert_eq!(&read, &stored.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(rows(&block.bytes, block.count + 1), None);
            if !block.bytes.is_empty() {
                prop_assert_eq!(rows(&block.bytes[..cut.index(block.bytes.len())], block.count), None);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, count in 0_u64..4) {
            if let Some(rows) = rows(&bytes, count) {
                prop_assert_eq!(rows.iter().map(|row| row.len() + LENGTH_BYTES).sum::<usize>(), bytes.len());
            }
        }
    }
}
