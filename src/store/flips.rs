//! What a store transaction does to one view's rows, netted.
//!
//! A row of a view's result is in it or not, so its flips alternate, and what is left of them is one flip or none. They are kept by row
//! in memory up to a limit. Beyond it they go to a sorted spool, each with one more cell that says in which of the spills it was and how
//! it flipped; the spool is sorted by row, so what the spills say about a row comes out together.
//!
//! After [`Flip::Clear`] no row is in the result, whatever was before: what is left then are the rows of the result itself.

use std::{
    cmp::Ordering,
    collections::{HashMap, hash_map::Entry},
    io,
    iter::Peekable,
    path::{Path, PathBuf},
    vec,
};

use crate::{
    data::{Cells, Extent, ExtentBuilder, Row},
    target::Op,
    view::Flip,
};

/// Bytes of flips of one view that stay in memory: some 40,000 facts. Most transactions flip fewer, and a dozen views with that many at
/// once still are within the memory a process may take.
pub(super) const KEPT_BYTES: usize = 4 << 20;

/// What a row in memory takes besides its bytes: its entry, the slack of the table and of the allocator.
const ENTRY_BYTES: usize = 64;

/// Flips of one view.
pub(super) struct Flips {
    spool: PathBuf,
    kept_bytes: usize,
    bytes: usize,
    net: HashMap<Row, i64>,
    spilled: Option<ExtentBuilder>,
    spills: u64,
    cleared: bool,
}

impl Flips {
    /// None yet; beyond `kept_bytes` they spill into unlinked files under `spool`.
    pub(super) fn new(spool: &Path, kept_bytes: usize) -> Self {
        Self { spool: spool.to_owned(), kept_bytes, bytes: 0, net: HashMap::new(), spilled: None, spills: 0, cleared: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.net.is_empty() && self.spilled.is_none() && !self.cleared
    }

    /// Whether what is left is to be added to nothing, and not to what was there.
    pub(super) fn is_cleared(&self) -> bool {
        self.cleared
    }

    pub(super) fn push(&mut self, flip: Flip) -> io::Result<()> {
        match flip {
            Flip::Row(op, row) => self.add(op, row),
            Flip::Clear => {
                *self = Self { cleared: true, ..Self::new(&self.spool, self.kept_bytes) };
                Ok(())
            }
        }
    }

    fn add(&mut self, op: Op, row: Row) -> io::Result<()> {
        let weight = match op {
            Op::Insert => 1,
            Op::Delete => -1,
        };
        let size = row.as_bytes().len() + ENTRY_BYTES;
        match self.net.entry(row) {
            Entry::Vacant(entry) => {
                entry.insert(weight);
                self.bytes += size;
            }
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += weight;
                if *entry.get() == 0 {
                    entry.remove();
                    self.bytes -= size;
                }
            }
        }
        if self.bytes <= self.kept_bytes { Ok(()) } else { self.spill() }
    }

    fn spill(&mut self) -> io::Result<()> {
        let spilled = self.spilled.get_or_insert_with(|| ExtentBuilder::new(&self.spool));
        for (row, weight) in self.net.drain() {
            let note = Row::from_texts([format!("{} {weight}", self.spills).as_str()]);
            spilled.push(Row::from_encoded([row.as_bytes(), note.as_bytes()]))?;
        }
        self.bytes = 0;
        self.spills += 1;
        Ok(())
    }

    /// What is left, in row order: for each row a number that is not 0, and no other than 1 and -1 if the flips alternated.
    pub(super) fn finish(mut self) -> io::Result<Net> {
        if self.spilled.is_some() {
            self.spill()?;
        }
        Ok(match self.spilled {
            Some(spilled) => Net::Spilled(spilled.finish()?.peekable()),
            None => {
                let mut net: Vec<(Row, i64)> = self.net.into_iter().collect();
                net.sort_unstable();
                Net::Kept(net.into_iter())
            }
        })
    }
}

/// Netted flips, in row order.
pub(super) enum Net {
    Kept(vec::IntoIter<(Row, i64)>),
    Spilled(Peekable<Extent>),
}

impl Iterator for Net {
    type Item = io::Result<(Row, i64)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Kept(net) => net.next().map(Ok),
            Self::Spilled(notes) => next_sum(notes).transpose(),
        }
    }
}

/// What becomes of `result`, if that is given, when only the rows of `net` are left of it: a row without a change comes out of neither.
pub(super) fn against(net: Net, result: Option<Extent>) -> impl Iterator<Item = io::Result<(Row, i64)>> {
    let (cleared, mut net, mut result) = (result.is_some(), net.peekable(), result.into_iter().flatten().peekable());
    std::iter::from_fn(move || {
        if !cleared {
            return net.next();
        }
        loop {
            let order = match (net.peek(), result.peek()) {
                (Some(Ok((new, _))), Some(Ok(old))) => new.cmp(old),
                // Whoever is taken first is the one that is there, or the one with the error.
                (Some(Err(_)), _) | (_, None) => Ordering::Less,
                (None | Some(Ok(_)), Some(_)) => Ordering::Greater,
            };
            let (new, old) = (order.is_le().then(|| net.next()).flatten(), order.is_ge().then(|| result.next()).flatten());
            return match (new, old) {
                (Some(Ok((_, 1))), Some(Ok(_))) => continue,
                (Some(Ok((row, weight))), Some(Ok(_))) => Some(Ok((row, weight - 1))),
                (Some(new), _) => Some(new),
                (None, Some(old)) => Some(old.map(|row| (row, -1))),
                (None, None) => None,
            };
        }
    })
}

/// The next row whose notes do not cancel, and their sum.
fn next_sum(notes: &mut Peekable<Extent>) -> io::Result<Option<(Row, i64)>> {
    while let Some(note) = notes.next().transpose()? {
        let (row, mut sum) = read(&note)?;
        let same = |next: &io::Result<Row>| match next {
            Ok(next) => split(next.as_bytes()).0 == row.as_bytes(),
            Err(_) => true,
        };
        while let Some(next) = notes.next_if(same) {
            sum += read(&next?)?.1;
        }
        if sum != 0 {
            return Ok(Some((row, sum)));
        }
    }
    Ok(None)
}

/// A spilled row's own bytes and its note.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let last = Cells::of(bytes).iter().last().map_or(0, <[u8]>::len);
    bytes.split_at(bytes.len() - last)
}

fn read(spilled: &Row) -> io::Result<(Row, i64)> {
    let (row, note) = split(spilled.as_bytes());
    let weight = Cells::of(note).text(0).and_then(|note| note.split_once(' ')?.1.parse().ok());
    let weight = weight.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a spilled flip has no weight"))?;
    Ok((Row::from_encoded([row]), weight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn net_what_is_left_is_the_sum_in_memory_and_spilled(
            flips in prop::collection::vec(("[a-c\u{0}]{0,2}", any::<bool>()), 0..60),
            kept_bytes in prop::sample::select(vec![0, 150, 1 << 20]),
        ) {
            let spool = tempfile::tempdir().expect("a folder");
            let mut netted = Flips::new(spool.path(), kept_bytes);
            let mut model = BTreeMap::<Row, i64>::new();
            for (text, insert) in &flips {
                let row = Row::from_texts([text.as_str(), "z"]);
                *model.entry(row.clone()).or_default() += if *insert { 1 } else { -1 };
                netted.push(Flip::Row(if *insert { Op::Insert } else { Op::Delete }, row)).expect("pushed");
            }
            model.retain(|_, sum| *sum != 0);
            let got: Vec<(Row, i64)> = netted.finish().expect("sorted").map(|row| row.expect("read")).collect();
            prop_assert_eq!(got, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_was_before_a_clearing_is_forgotten() {
        let spool = tempfile::tempdir().expect("a folder");
        for kept_bytes in [0, 1 << 20] {
            let mut flips = Flips::new(spool.path(), kept_bytes);
            let insert = |text: &str| Flip::Row(Op::Insert, Row::from_texts([text]));
            for flip in [insert("a"), Flip::Clear, insert("b")] {
                flips.push(flip).expect("pushed");
            }
            assert!(flips.is_cleared());
            let left: Vec<(Row, i64)> = flips.finish().expect("sorted").map(|row| row.expect("read")).collect();
            assert_eq!(left, [(Row::from_texts(["b"]), 1)]);
        }
    }
}
