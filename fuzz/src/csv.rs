//! CSV files: the same content whatever the pieces it arrives in, and nothing that has another reading.
//!
//! The input's first byte chooses the sizes of the pieces. The oracle is a reader of RFC 4180 written for this purpose: what it cannot
//! read is refused, what it can is accepted with the same cells.

use std::io::{self, Read};

use factsync::source::csv::fuzzing::{Content, records};

/// The limit of a record, which this oracle has too.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Hands bytes out in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    seed: u32,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A linear congruential generator; most pieces are of a few bytes.
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = 1 + (self.seed >> 24) as usize % if self.seed & 0x70_0000 == 0 { 64 } else { 5 };
        let (piece, rest) = self.rest.split_at(size.min(self.rest.len()).min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(piece);
        self.rest = rest;
        Ok(piece.len())
    }
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first() else { return };
    let whole = records(bytes);
    let pieces = records(Pieces { rest: bytes, seed: u32::from(seed) });
    match (&whole, &pieces) {
        (Ok(whole), Ok(pieces)) => assert_eq!(whole, pieces, "the pieces make a difference"),
        // Which error is told may depend on what was read at once; that one is told does not.
        (Err(_), Err(_)) => {}
        _ => panic!("the pieces make a difference: {whole:?} and {pieces:?}"),
    }
    match (rfc_4180(bytes), whole) {
        (Some(want), Ok(Content { records, .. })) => assert_eq!(records, want),
        (None, Err(_)) => {}
        (want, got) => panic!("the oracle says {want:?}, we say {got:?}"),
    }
}

/// The records, if there is one reading of `bytes` and no other. Empty lines are none.
fn rfc_4180(bytes: &[u8]) -> Option<Vec<Vec<String>>> {
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = Vec::new();
    while !rest.is_empty() {
        let began = rest.len();
        let mut record = Vec::new();
        let empty = rest.starts_with(['\n', '\r']);
        loop {
            let (cell, after) = cell(rest)?;
            record.push(cell);
            let mut after = after.chars();
            match after.next() {
                Some(',') => rest = after.as_str(),
                None | Some('\n' | '\r') => {
                    rest = after.as_str();
                    break;
                }
                Some(_) => return None,
            }
        }
        if began - rest.len() > MAX_RECORD_BYTES {
            return None;
        }
        if !empty {
            records.push(record);
        }
    }
    Some(records)
}

/// The cell at the front of `text` and what follows it.
fn cell(text: &str) -> Option<(String, &str)> {
    let Some(mut quoted) = text.strip_prefix('"') else {
        let end = text.find([',', '\n', '\r']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut cell = String::new();
    loop {
        let end = quoted.find('"')?;
        cell.push_str(&quoted[..end]);
        quoted = &quoted[end + 1..];
        match quoted.strip_prefix('"') {
            Some(after) => {
                cell.push('"');
                quoted = after;
            }
            None => return Some((cell, quoted)),
        }
    }
}
