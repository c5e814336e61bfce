//! A row taken apart: its cells as they are encoded, to be copied, compared and read without building texts.

use std::borrow::Cow;

use crate::data::Row;

/// The encoding of NULL.
const NULL: &[u8] = &[0];

/// Encoded cells, left to right; of one row, or of several side by side. Equal bytes mean equal cells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cells<'a>(Vec<&'a [u8]>);

impl<'a> Cells<'a> {
    /// The cells of a row's bytes, which this process has written.
    pub fn of(bytes: &'a [u8]) -> Self {
        let mut cells = Self::default();
        cells.extend(bytes);
        cells
    }

    /// Appends the cells of another row's bytes.
    pub fn extend(&mut self, bytes: &'a [u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (cell, after) = rest.split_at(cell_length(rest));
            self.0.push(cell);
            rest = after;
        }
    }

    /// Appends one encoded cell.
    pub fn push(&mut self, encoded: &'a [u8]) {
        self.0.push(encoded);
    }

    /// Appends `count` NULLs.
    pub fn push_nulls(&mut self, count: usize) {
        self.0.extend(std::iter::repeat_n(NULL, count));
    }

    /// Drops all but the first `count`.
    pub fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The cell as encoded.
    pub fn encoded(&self, index: usize) -> &'a [u8] {
        self.0[index]
    }

    /// Whether it is NULL.
    pub fn is_null(&self, index: usize) -> bool {
        self.0[index] == NULL
    }

    /// Its text; `None` is NULL. Copied only if it holds a zero byte, which no text of PostgreSQL does.
    pub fn text(&self, index: usize) -> Option<Cow<'a, str>> {
        text_of(self.0[index])
    }

    /// All of them, encoded.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().copied()
    }

    /// The row of the cells at `columns`, in that order.
    pub fn row(&self, columns: &[usize]) -> Row {
        Row::from_encoded(columns.iter().map(|&column| self.0[column]))
    }
}

/// The text of one encoded cell.
fn text_of(encoded: &[u8]) -> Option<Cow<'_, str>> {
    if encoded == NULL {
        return None;
    }
    let inside = &encoded[1..encoded.len() - 2];
    let utf8 = "a row's texts are UTF-8";
    if !inside.contains(&0) {
        return Some(Cow::Borrowed(std::str::from_utf8(inside).expect(utf8)));
    }
    // A zero byte is followed by one that says it belongs to the text.
    let mut bytes = Vec::with_capacity(inside.len());
    let mut rest = inside.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(byte);
        if byte == 0 {
            rest.next();
        }
    }
    Some(Cow::Owned(String::from_utf8(bytes).expect(utf8)))
}

/// Appends to `ends` where each cell of a row's bytes ends.
pub fn cell_ends(bytes: &[u8], ends: &mut Vec<usize>) {
    let mut at = 0;
    while at < bytes.len() {
        at += cell_length(&bytes[at..]);
        ends.push(at);
    }
}

/// The bytes of the first cell of `bytes`.
fn cell_length(bytes: &[u8]) -> usize {
    if bytes[0] == NULL[0] {
        return 1;
    }
    let mut at = 1;
    loop {
        at += bytes[at..].iter().position(|&byte| byte == 0).expect("every text of a row ends") + 2;
        if bytes[at - 1] == 1 {
            return at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cells_are_those_of_the_row(cells in prop::collection::vec(prop::option::of("[\u{0}\u{1}a\u{ff}]{0,4}"), 0..5)) {
            let row = Row::from_cells(cells.iter().map(Option::as_deref));
            let taken = Cells::of(row.as_bytes());
            prop_assert_eq!(taken.len(), cells.len());
            for (index, cell) in cells.iter().enumerate() {
                prop_assert_eq!(taken.text(index).map(Cow::into_owned), cell.clone());
                prop_assert_eq!(taken.is_null(index), cell.is_none());
            }
            let all: Vec<usize> = (0..cells.len()).collect();
            prop_assert_eq!(taken.row(&all), row);
        }
    }
}
