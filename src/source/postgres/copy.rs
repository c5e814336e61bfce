//! Decodes `COPY … TO STDOUT` in text format, row by row.
//!
//! The format (<https://www.postgresql.org/docs/current/sql-copy.html>, "Text Format"): columns are separated by tabs, rows end in
//! a newline, `\N` is NULL, and a backslash escapes what would be mistaken for those. So an unescaped newline always ends a row,
//! wherever the chunks of the transfer are cut, and a row without a backslash is its cells.
//!
//! Booleans are printed `t` and `f`; a fact says `true` and `false`.

use std::io;

use crate::data::Row;

/// Turns bytes of a COPY into rows.
#[derive(Debug)]
pub struct Decoder {
    booleans: Vec<bool>,
    /// A row whose end has not arrived.
    partial: Vec<u8>,
}

impl Decoder {
    /// For rows with one cell for each of `booleans`, which says whether the column is one.
    pub fn new(booleans: Vec<bool>) -> Self {
        Self { booleans, partial: Vec::new() }
    }

    /// Calls `each` with every row that ends in `bytes`.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Row) -> io::Result<()>) -> io::Result<()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if self.partial.is_empty() {
                each(decode(line, &self.booleans)?)?;
            } else {
                self.partial.extend_from_slice(line);
                each(decode(&self.partial, &self.booleans)?)?;
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

fn decode(line: &[u8], booleans: &[bool]) -> io::Result<Row> {
    let line = std::str::from_utf8(line).map_err(|_| malformed("a row is not valid UTF-8"))?;
    // A row of no columns is an empty line, and so is one empty cell.
    let cells = if booleans.is_empty() { 0 } else { 1 + line.bytes().filter(|&byte| byte == b'\t').count() };
    if cells != booleans.len() {
        return Err(malformed("a row has the wrong number of columns"));
    }
    let texts = line.split('\t').zip(booleans);
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
