//! The bytes of a file on their way to the parser: hashed, and held to the rules on which the parser is lenient.
//!
//! The `csv` crate "will always find *a* parse" (its words): a quote that never closes swallows the rest of the file, and
//! text after a closing quote is glued to the cell. Either would turn a half-written file into a shorter one. So the bytes
//! pass this gate, which follows the same four states as the parser's automaton (`csv_core::Reader`) and refuses what RFC
//! 4180 has no reading for. Where both accept, they agree.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The most bytes of one record. Ids end at 512 bytes, so this leaves room for a thousand columns nobody asked for; without it a
/// stray quote in a large file would be collected as one cell before its end shows it to be wrong.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// The byte order mark in UTF-8, which the parser skips at the start, and only there.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// The same in UTF-16, which spreadsheets write as "Unicode text".
const UTF_16_MARKS: [&[u8]; 2] = [b"\xFF\xFE", b"\xFE\xFF"];

/// Where the gate stands within a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a cell's first byte.
    CellStart,
    /// Inside a cell that did not start with a quote.
    Plain,
    /// Inside quotes.
    Quoted,
    /// After a quote inside quotes: the end of the cell, or the first half of an escaped quote.
    QuoteInQuotes,
}

/// Why bytes are no CSV; travels to the parser's caller inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the file ends inside the quotes that line {line} opens")]
    Unclosed { line: u64 },
    #[error("line {line} has text between a closing quote and the next comma")]
    TextAfterQuote { line: u64 },
    #[error("the record that starts on line {line} is longer than {MAX_RECORD_BYTES} bytes")]
    LongRecord { line: u64 },
    #[error("it is UTF-16; save it as UTF-8")]
    Utf16,
    /// No text has one; UTF-16 has, and so has a file whose end was on its way to the disk when the power went.
    #[error("line {line} has a NUL byte")]
    Nul { line: u64 },
}

/// The beginning of a content, known by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) bytes: u64,
    pub(super) digest: String,
}

/// Hashes and judges what is read through it.
pub(super) struct Gate<R> {
    inner: R,
    digest: Sha256,
    place: Place,
    started: bool,
    line: u64,
    /// The line of the last opening quote.
    quote_line: u64,
    record_line: u64,
    record_bytes: usize,
    /// Bytes read.
    bytes: u64,
    /// A content that this one may begin with, and the digest of as many bytes once they were read.
    expected: Option<Prefix>,
    beginning: Option<String>,
}

impl<R: Read> Gate<R> {
    /// A gate before `inner`, which looks whether that begins with `expected`.
    pub(super) fn new(inner: R, expected: Option<Prefix>) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
            place: Place::CellStart,
            started: false,
            line: 1,
            quote_line: 1,
            record_line: 1,
            record_bytes: 0,
            bytes: 0,
            expected,
            beginning: None,
        }
    }

    /// Everything that was read, as the beginning of something longer.
    pub(super) fn prefix(&self) -> Prefix {
        Prefix { bytes: self.bytes, digest: hexadecimal(&self.digest) }
    }

    /// Whether what was read begins with what was expected.
    pub(super) fn extends(&self) -> bool {
        self.expected.as_ref().is_some_and(|expected| self.beginning.as_ref() == Some(&expected.digest))
    }

    fn hash(&mut self, bytes: &[u8]) {
        let until = self.expected.as_ref().and_then(|expected| expected.bytes.checked_sub(self.bytes)).unwrap_or(u64::MAX);
        let (before, after) = bytes.split_at(usize::try_from(until).map_or(bytes.len(), |until| until.min(bytes.len())));
        self.digest.update(before);
        if before.len() as u64 == until {
            self.beginning.get_or_insert_with(|| hexadecimal(&self.digest));
        }
        self.digest.update(after);
        self.bytes += bytes.len() as u64;
    }

    fn judge(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        if !self.started {
            self.started = true;
            if UTF_16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
                return Err(Malformed::Utf16);
            }
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        for &byte in bytes {
            self.step(byte)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.line += u64::from(byte == b'\n');
        self.record_bytes += 1;
        if byte == 0 {
            return Err(Malformed::Nul { line: self.line });
        }
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::QuoteInQuotes,
            (Place::Quoted, _) | (Place::QuoteInQuotes, b'"') => Place::Quoted,
            (_, b',') => Place::CellStart,
            (_, b'\n' | b'\r') => {
                (self.record_line, self.record_bytes) = (self.line, 0);
                Place::CellStart
            }
            (Place::QuoteInQuotes, _) => return Err(Malformed::TextAfterQuote { line: self.line }),
            (Place::CellStart, b'"') => {
                self.quote_line = self.line;
                Place::Quoted
            }
            (Place::CellStart | Place::Plain, _) => Place::Plain,
        };
        if self.record_bytes > MAX_RECORD_BYTES {
            return Err(Malformed::LongRecord { line: self.record_line });
        }
        Ok(())
    }

    fn end(&self) -> Result<(), Malformed> {
        match self.place {
            Place::Quoted => Err(Malformed::Unclosed { line: self.quote_line }),
            Place::CellStart | Place::Plain | Place::QuoteInQuotes => Ok(()),
        }
    }
}

impl<R: Read> Read for Gate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.inner.read(buffer)?;
        // The first piece has the whole mark, if there is one, and something after it: here and in the parser a part of the mark would be
        // text, and to the parser a piece that is nothing but the mark is the end of the file.
        while !self.started && (1..=BYTE_ORDER_MARK.len()).contains(&count) && count < buffer.len() {
            match self.inner.read(&mut buffer[count..])? {
                0 => break,
                more => count += more,
            }
        }
        self.hash(&buffer[..count]);
        let judged = if count == 0 { self.end() } else { self.judge(&buffer[..count]) };
        judged.map(|()| count).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
    }
}

/// The digest of what was hashed so far, in lower case, as `sha256sum` prints it.
fn hexadecimal(digest: &Sha256) -> String {
    digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<Vec<String>>, Malformed> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(Gate::new(text.as_bytes(), None));
        let record = |record: Result<csv::StringRecord, csv::Error>| match record {
            Ok(record) => Ok(record.iter().map(str::to_owned).collect()),
            Err(error) => match error.into_kind() {
                csv::ErrorKind::Io(error) => Err(error.downcast::<Malformed>().expect("the gate's own error")),
                other => panic!("not from the gate: {other:?}"),
            },
        };
        reader.records().map(record).collect()
    }

    #[test]
    fn what_rfc_4180_allows_passes() {
        for (text, want) in [
            ("a,b\r\n1,2\r\n", vec![vec!["a", "b"], vec!["1", "2"]]),
            ("a,b\n1,2", vec![vec!["a", "b"], vec!["1", "2"]]),
            ("\"x\ny\",\"p\"\"q\"\n", vec![vec!["x\ny", "p\"q"]]),
            ("\"\",\"\"", vec![vec!["", ""]]),
            ("\"\"\"\"", vec![vec!["\""]]),
            ("\u{feff}\"a\",b\n", vec![vec!["a", "b"]]),
            ("5\" pipe, \"x\"\n", vec![vec!["5\" pipe", " \"x\""]]),
        ] {
            assert_eq!(read(text), Ok(want.into_iter().map(|r| r.into_iter().map(str::to_owned).collect()).collect()), "{text:?}");
        }
    }

    #[test]
    fn what_has_no_reading_is_refused_with_its_line() {
        let long = format!("a\nb\n{}", "x".repeat(MAX_RECORD_BYTES + 1));
        for (text, want) in [
            ("a,b\n1,\"2", Malformed::Unclosed { line: 2 }),
            ("a,b\n1,\"2\n3,4\n", Malformed::Unclosed { line: 2 }),
            ("a\n\"x\"\"", Malformed::Unclosed { line: 2 }),
            ("a\n\"", Malformed::Unclosed { line: 2 }),
            ("a,b\n\"1\"x,2\n", Malformed::TextAfterQuote { line: 2 }),
            ("a,b\n1,\"open\n2,\"y\"\n", Malformed::TextAfterQuote { line: 3 }),
            (&long, Malformed::LongRecord { line: 3 }),
            ("a\nb\n\0\0\0", Malformed::Nul { line: 3 }),
        ] {
            assert_eq!(read(text), Err(want), "{:?}", &text[..text.len().min(40)]);
        }
    }

    /// Hands out a byte at a time, as a file may do that comes from far away.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(1);
            self.0.read(&mut buffer[..count])
        }
    }

    #[test]
    fn a_mark_in_pieces_is_a_mark() {
        for text in [&b"\xEF\xBB\xBF\"a\",b\n"[..], b"\xEF\xBB\xBF", b"\xEF\xBB", b"\xFF\xFEa\0", b"a"] {
            let cells = |bytes: &mut dyn Read| {
                let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(Gate::new(bytes, None));
                let records: Result<Vec<csv::ByteRecord>, csv::Error> = reader.byte_records().collect();
                records.map_err(|error| error.to_string())
            };
            assert_eq!(cells(&mut Slowly(text)), cells(&mut &*text), "{text:?}");
        }
    }

    #[test]
    fn the_digest_is_of_every_byte() {
        let mut gate = Gate::new(&b"\xEF\xBB\xBFa\n"[..], None);
        io::copy(&mut gate, &mut io::sink()).expect("read");
        // printf '\357\273\277a\n' | sha256sum
        assert_eq!(gate.prefix().digest, "be4fccb045869c7ad387b9081a44cfd495b37efc020da4b44542de0d980c747f");
    }

    proptest! {
        /// However the bytes arrive: only what begins with the other content extends it.
        #[test]
        fn a_content_extends_what_it_begins_with(whole in "[ab\n]{0,12}", other in "[ab\n]{0,6}", cut in 0_usize..12, step in 1_usize..5) {
            let beginning = if cut % 2 == 0 { whole[..cut.min(whole.len())].to_owned() } else { other };
            let mut first = Gate::new(beginning.as_bytes(), None);
            io::copy(&mut first, &mut io::sink()).expect("read");
            let mut gate = Gate::new(whole.as_bytes(), Some(first.prefix()));
            let mut buffer = vec![0; step];
            while gate.read(&mut buffer).expect("read") > 0 {}
            prop_assert_eq!(gate.extends(), whole.starts_with(&beginning), "{:?} {:?}", whole, beginning);
        }

        /// What a writer quotes comes back, and of what it wrote no beginning that ends inside quotes passes.
        #[test]
        fn a_written_file_passes_and_none_of_its_cut_quotes(
            rows in prop::collection::vec(prop::collection::vec("[a\",\r\n]{0,4}", 2), 1..6),
        ) {
            let mut writer = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Always).from_writer(Vec::new());
            for row in &rows {
                writer.write_record(row).expect("written");
            }
            let text = String::from_utf8(writer.into_inner().expect("flushed")).expect("utf-8");
            prop_assert_eq!(read(&text), Ok(rows));
            for end in 0..text.len() {
                // Outside quotes every cell here starts and ends with one, so an odd number of quotes is an open cell.
                let cut = &text[..end];
                prop_assert_eq!(read(cut).is_err(), cut.matches('"').count() % 2 == 1, "{:?}", cut);
            }
        }
    }
}
