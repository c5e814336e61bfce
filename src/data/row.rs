//! One result row as bytes that sort and compare like the row.

use std::{borrow::Cow, cell::Cell, fmt, io};

/// Starts a NULL cell; smaller than [`TEXT`], so NULLs sort first.
const NULL: u8 = 0;
/// Starts a text cell.
const TEXT: u8 = 1;
/// Follows a zero byte that belongs to the text.
const ESCAPED: u8 = 0xFF;
/// Follows the zero byte that ends the text. Smaller than [`ESCAPED`], so a prefix sorts before what it starts.
const END: u8 = 1;

/// A larger row leaves no memory behind for the next one; five ids of 512 bytes fit ten times.
const MAX_SCRATCH: usize = 32 << 10;

thread_local! {
    /// Where a row is put together, so that it is allocated once and in its final size.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// One row of a query's result, every cell as text, in one order-preserving byte string.
///
/// Cell by cell: `00` is NULL; `01` starts a text, in which a zero byte is written `00 FF` and which ends in `00 01`. So
/// byte order is row order with texts compared bytewise (the order of collation "C"), equal bytes mean equal rows, and
/// rows of different widths cannot collide.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row(Box<[u8]>);

/// A cell for [`Row::from_parts`].
#[derive(Debug, Clone)]
pub enum Part<'a> {
    /// As it is encoded in another row.
    Encoded(&'a [u8]),
    /// A value; `None` is SQL NULL.
    Value(Option<Cow<'a, str>>),
}

impl Row {
    /// Encodes `cells`; `None` is SQL NULL.
    pub fn from_cells<'a>(cells: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut bytes = SCRATCH.take();
        bytes.clear();
        for cell in cells {
            push_cell(&mut bytes, cell);
        }
        let row = Self(bytes.as_slice().into());
        if bytes.capacity() <= MAX_SCRATCH {
            SCRATCH.set(bytes);
        }
        row
    }

    /// Encodes cells none of which is NULL.
    pub fn from_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::from_cells(texts.into_iter().map(Some))
    }

    /// Puts a row together from cells as they are encoded in others.
    pub fn from_encoded<'a>(cells: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut bytes = SCRATCH.take();
        bytes.clear();
        cells.into_iter().for_each(|cell| bytes.extend_from_slice(cell));
        let row = Self(bytes.as_slice().into());
        if bytes.capacity() <= MAX_SCRATCH {
            SCRATCH.set(bytes);
        }
        row
    }

    /// Puts a row together from encoded cells and new ones.
    pub fn from_parts<'a>(parts: impl IntoIterator<Item = Part<'a>>) -> Self {
        let mut bytes = SCRATCH.take();
        bytes.clear();
        for part in parts {
            match part {
                Part::Encoded(cell) => bytes.extend_from_slice(cell),
                Part::Value(text) => push_cell(&mut bytes, text.as_deref()),
            }
        }
        let row = Self(bytes.as_slice().into());
        if bytes.capacity() <= MAX_SCRATCH {
            SCRATCH.set(bytes);
        }
        row
    }

    /// Takes bytes that [`Row::as_bytes`] gave out earlier; an error if they are anything else.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> io::Result<Self> {
        let row = Self(bytes.into());
        let mut rest = &row.0[..];
        while let Some(cell) = next_cell(&mut rest) {
            cell?;
        }
        Ok(row)
    }

    /// Takes bytes that this process has written itself, without looking at them.
    pub(super) fn from_own_bytes(bytes: Box<[u8]>) -> Self {
        Self(bytes)
    }

    /// The encoded form, for storing.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The cells, left to right; `None` is SQL NULL. A text is copied only if it holds a zero byte.
    pub fn texts(&self) -> impl Iterator<Item = Option<Cow<'_, str>>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || next_cell(&mut rest)).map(|cell| cell.expect("a row holds only what from_cells or from_bytes accepted"))
    }

    /// [`Row::texts`], owned.
    pub fn cells(&self) -> Vec<Option<String>> {
        self.texts().map(|text| text.map(Cow::into_owned)).collect()
    }
}

/// Never the content: rows hold the customer's data and `Debug` ends up in logs.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({} bytes)", self.0.len())
    }
}

/// Appends one cell in its encoded form.
pub(crate) fn push_cell(bytes: &mut Vec<u8>, cell: Option<&str>) {
    let Some(text) = cell else {
        bytes.push(NULL);
        return;
    };
    bytes.push(TEXT);
    let mut rest = text.as_bytes();
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        bytes.extend_from_slice(&rest[..zero]);
        bytes.extend_from_slice(&[0, ESCAPED]);
        rest = &rest[zero + 1..];
    }
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(&[0, END]);
}

/// Takes the first cell off `rest`, which it leaves empty after an error.
fn next_cell<'a>(rest: &mut &'a [u8]) -> Option<io::Result<Option<Cow<'a, str>>>> {
    let (&tag, tail) = rest.split_first()?;
    let taken = match tag {
        NULL => Some((None, tail)),
        TEXT => take_text(tail).map(|(text, tail)| (Some(text), tail)),
        _ => None,
    };
    *rest = taken.as_ref().map_or(&[], |(_, tail)| tail);
    Some(taken.map(|(cell, _)| cell).ok_or_else(malformed))
}

/// The text at the start of `bytes` and what follows it; `None` if there is none.
fn take_text(bytes: &[u8]) -> Option<(Cow<'_, str>, &[u8])> {
    let (first, mut rest) = take_piece(bytes)?;
    let mut text = match first {
        Piece::End(text) => return Some((Cow::Borrowed(std::str::from_utf8(text).ok()?), rest)),
        Piece::Zero(piece) => piece.to_vec(),
    };
    loop {
        text.push(0);
        let (piece, tail) = take_piece(rest)?;
        rest = tail;
        match piece {
            Piece::Zero(piece) => text.extend_from_slice(piece),
            Piece::End(piece) => {
                text.extend_from_slice(piece);
                return Some((Cow::Owned(String::from_utf8(text).ok()?), rest));
            }
        }
    }
}

/// What stands before a zero byte.
enum Piece<'a> {
    /// Of the text.
    Zero(&'a [u8]),
    /// That ends it.
    End(&'a [u8]),
}

fn take_piece(bytes: &[u8]) -> Option<(Piece<'_>, &[u8])> {
    let zero = bytes.iter().position(|&b| b == 0)?;
    let (piece, rest) = (&bytes[..zero], bytes.get(zero + 2..)?);
    match bytes[zero + 1] {
        ESCAPED => Some((Piece::Zero(piece), rest)),
        END => Some((Piece::End(piece), rest)),
        _ => None,
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed row bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cells() -> impl Strategy<Value = Vec<Option<String>>> {
        prop::collection::vec(prop::option::of("[\u{0}\u{1}a\u{ff}é]{0,4}"), 0..4)
    }

    fn row(cells: &[Option<String>]) -> Row {
        Row::from_cells(cells.iter().map(Option::as_deref))
    }

    proptest! {
        #[test]
        fn a_row_reads_back_its_cells(cells in cells()) {
            prop_assert_eq!(row(&cells).cells(), cells.clone());
            prop_assert!(Row::from_bytes(row(&cells).as_bytes()).is_ok());
        }

        #[test]
        fn byte_order_is_row_order(a in cells(), b in cells()) {
            prop_assert_eq!(row(&a).cmp(&row(&b)), a.cmp(&b));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(row) = Row::from_bytes(bytes.clone()) {
                let cells = row.cells();
                prop_assert_eq!(Row::from_cells(cells.iter().map(Option::as_deref)), row);
            }
        }
    }
}
