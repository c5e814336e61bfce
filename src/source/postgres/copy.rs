//! Decodes `COPY … TO STDOUT` in text format, row by row.
//!
//! The format (<https://www.postgresql.org/docs/current/sql-copy.html>, "Text Format"): columns are separated by tabs, rows end in
//! a newline, `\N` is NULL, and a backslash escapes what would be mistaken for those. So an unescaped newline always ends a row,
//! wherever the chunks of the transfer are cut, and a row without a backslash is its cells.
//!
//! Booleans are printed `t` and `f`; a fact says `true` and `false`.
//!
//! # Long values
//!
//! PostgreSQL's values reach a gigabyte. One that is longer than [`MOST_CELL`] becomes its beginning ([`CUT_CELL`]), and is counted: the
//! result of a query may hold it, because it makes no fact either way; rows of a table may not, because what is computed from them would be
//! wrong. [`bounded`] has the server cut where it can, so that such a value does not come over the wire at all.

use std::{fmt::Write, io};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::types::Type;

use crate::{data::Row, fact::MAX_ID_BYTES};

/// The longest text of a value that is worked with here. On its way into a view's state it is in memory about eight times, and on the disk
/// six: a view that needs longer ones is cheaper to run again at the source.
pub(crate) const MOST_CELL: usize = 8 << 20;
/// What is left of a longer one: still too much for a fact.
const CUT_CELL: usize = 2 * MAX_ID_BYTES;

/// An expression for `value`, a column of this type, that is longer than [`MOST_CELL`] exactly if `value` is, but never much longer.
/// `octet_length` only looks at the header of a value that is stored out of line. The other types have no such function.
pub(crate) fn bounded(value: &str, type_oid: u32) -> String {
    let cut = match Type::from_oid(type_oid) {
        Some(Type::TEXT | Type::VARCHAR) => "pg_catalog.left",
        Some(Type::BYTEA) => "pg_catalog.substr",
        Some(_) | None => return value.to_owned(),
    };
    let (from, most) = if cut.ends_with("substr") { ("1, ", MOST_CELL) } else { ("", MOST_CELL + 1) };
    format!("CASE WHEN pg_catalog.octet_length({value}) > {MOST_CELL} THEN {cut}({value}, {from}{most}) ELSE {value} END")
}

/// `sql` with [`bounded`] columns; `types` are theirs.
pub(crate) fn bounded_query(sql: &str, types: &[u32]) -> String {
    let mut names = String::new();
    let mut cells = Vec::with_capacity(types.len());
    for (number, oid) in types.iter().enumerate() {
        let name = escape_identifier(&format!("c{number}"));
        cells.push(bounded(&name, *oid));
        let _ = write!(names, "{}{name}", if number == 0 { "" } else { ", " });
    }
    if cells.iter().all(|cell| !cell.starts_with("CASE")) {
        return sql.to_owned();
    }
    format!("SELECT {} FROM (\n{sql}\n) AS result ({names})", cells.join(", "))
}

/// Turns bytes of a COPY into rows.
#[derive(Debug)]
pub struct Decoder {
    booleans: Vec<bool>,
    cut: u64,
    /// A row whose end has not arrived.
    partial: Vec<u8>,
}

impl Decoder {
    /// For rows with one cell for each of `booleans`, which says whether the column is one.
    pub fn new(booleans: Vec<bool>) -> Self {
        Self { booleans, cut: 0, partial: Vec::new() }
    }

    /// How many values were too long so far.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Calls `each` with every row that ends in `bytes`.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Row) -> io::Result<()>) -> io::Result<()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.partial.is_empty() {
                each(decode(line, &self.booleans, &mut self.cut)?)?;
            } else {
                self.partial.extend_from_slice(line);
                each(decode(&self.partial, &self.booleans, &mut self.cut)?)?;
                self.partial.clear();
            }
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Ends the transfer; a row cut in half is an error.
    pub fn finish(self) -> io::Result<()> {
        if self.partial.is_empty() { Ok(()) } else { Err(malformed("the last row is cut")) }
    }
}

fn malformed(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

fn decode(line: &[u8], booleans: &[bool], cut: &mut u64) -> io::Result<Row> {
    let line = std::str::from_utf8(line).map_err(|_| malformed("a row is not valid UTF-8"))?;
    // A row of no columns is an empty line, and so is one empty cell.
    let cells = if booleans.is_empty() { 0 } else { 1 + line.bytes().filter(|&byte| byte == b'\t').count() };
    if cells != booleans.len() {
        return Err(malformed("a row has the wrong number of columns"));
    }
    let mut shorter = |text| if str::len(text) > MOST_CELL { beginning(text, cut) } else { text };
    let texts = line.split('\t').map(&mut shorter).zip(booleans);
    if !line.contains('\\') {
        return Ok(Row::from_cells(texts.map(|(text, boolean)| Some(spell(text, *boolean)))));
    }
    let texts = texts.map(|(text, boolean)| match text {
        "\\N" => Ok(None),
        _ => unescape(text).map(|text| Some(spell(&text, *boolean).to_owned())),
    });
    let texts = texts.collect::<io::Result<Vec<_>>>()?;
    Ok(Row::from_cells(texts.iter().map(Option::as_deref)))
}

/// What is kept of a text that is too long: no half of a character, no half of an escape.
fn beginning<'a>(text: &'a str, cut: &mut u64) -> &'a str {
    *cut += 1;
    let end = (0..=CUT_CELL).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    let kept = &text[..end];
    let backslashes = kept.len() - kept.trim_end_matches('\\').len();
    &kept[..kept.len() - backslashes % 2]
}

fn spell(text: &str, boolean: bool) -> &str {
    match text {
        "t" if boolean => "true",
        "f" if boolean => "false",
        _ => text,
    }
}

fn unescape(text: &str) -> io::Result<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            plain.push(char);
            continue;
        }
        plain.push(match chars.next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some(other) => other,
            None => return Err(malformed("a row ends in a backslash")),
        });
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(booleans: &[bool], chunks: &[&[u8]]) -> io::Result<Vec<Vec<Option<String>>>> {
        let mut decoder = Decoder::new(booleans.to_vec());
        let mut rows = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk, |row| {
                rows.push(row.cells());
                Ok(())
            })?;
        }
        decoder.finish().map(|()| rows)
    }

    /// What the server does with a cell (`CopyAttributeOutText` of `commands/copyto.c`).
    fn escape(cell: Option<&str>) -> String {
        let Some(text) = cell else { return "\\N".to_owned() };
        let escaped = text.chars().map(|char| match char {
            '\u{8}' => "\\b".to_owned(),
            '\u{c}' => "\\f".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            '\u{b}' => "\\v".to_owned(),
            '\\' => "\\\\".to_owned(),
            char => char.to_string(),
        });
        escaped.collect()
    }

    proptest! {
        #[test]
        fn a_cell_survives_its_escape_wherever_the_transfer_is_cut(
            cells in prop::collection::vec(prop::collection::vec(prop::option::of("[a\\\\\t\n\r\u{8}Né]{0,5}"), 2), 1..5),
            cut: prop::sample::Index,
        ) {
            let lines = cells.iter().map(|row| row.iter().map(|cell| escape(cell.as_deref())).collect::<Vec<_>>().join("\t") + "\n");
            let text: Vec<u8> = lines.collect::<String>().into_bytes();
            let (left, right) = text.split_at(cut.index(text.len()));
            prop_assert_eq!(rows(&[false, false], &[left, right]).expect("decoded"), cells);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = rows(&[false], &[&bytes]);
        }
    }

    #[test]
    fn a_value_is_cut_only_if_it_is_too_long_and_never_inside_a_character() {
        for (piece, kept) in [("x", CUT_CELL), ("é", CUT_CELL), ("\\\\", CUT_CELL / 2), ("x\\n", CUT_CELL / 3 * 2 + 1)] {
            let long = piece.repeat(MOST_CELL / piece.len() + 1);
            let mut decoder = Decoder::new(vec![false, false]);
            let mut lengths = Vec::new();
            let fits = "y".repeat(MOST_CELL);
            for line in [format!("{fits}\ta\n"), format!("{long}\tb\n")] {
                let each = |row: Row| {
                    lengths.push(row.texts().map(|text| text.map_or(0, |text| text.len())).collect::<Vec<_>>());
                    Ok(())
                };
                decoder.feed(line.as_bytes(), each).expect("decoded");
            }
            assert_eq!((lengths, decoder.cut()), (vec![vec![MOST_CELL, 1], vec![kept, 1]], 1), "{piece}");
        }
    }

    #[test]
    fn only_what_can_be_cut_at_the_server_is_asked_for_differently() {
        assert_eq!(bounded_query("SELECT 1", &[23]), "SELECT 1");
        let sql = bounded_query("SELECT a, 1 -- two", &[25, 23]);
        assert!(sql.ends_with(", \"c1\" FROM (\nSELECT a, 1 -- two\n) AS result (\"c0\", \"c1\")"), "{sql}");
    }

    #[test]
    fn booleans_are_spelled_out_and_only_booleans() {
        let got = rows(&[true, false], &[b"t\tt\nf\tf\n\\N\tx\n"]).expect("decoded");
        let cell = |text: &str| Some(text.to_owned());
        assert_eq!(got, [[cell("true"), cell("t")], [cell("false"), cell("f")], [None, cell("x")]]);
    }

    #[test]
    fn a_cut_or_misshapen_transfer_is_an_error() {
        assert!(rows(&[false], &[b"a\nb"]).is_err());
        assert!(rows(&[false], &[b"a\tb\n"]).is_err());
        assert!(rows(&[false, false], &[b"a\n"]).is_err());
        assert!(rows(&[false], &[b"\xff\n"]).is_err());
        assert_eq!(rows(&[], &[b"\n\n"]).expect("decoded").len(), 2);
        assert_eq!(rows(&[false], &[b"\n"]).expect("decoded"), [[Some(String::new())]]);
    }
}
