//! Reads an array of facts while it arrives, and makes rows of those of one fact type.
//!
//! Fast: facts of one type differ in their variables only, so what stands around those is compared as bytes (`Frame`). A text
//! that is framed like that byte for byte is that fact, whoever wrote it; all others, with spaces, escapes or keys in another
//! order, go through serde.
//!
//! Bounded: what is kept is the chunk at hand and the piece of one fact that the chunk before ended in, which may not
//! exceed [`MAX_FACT_BYTES`].
//!
//! Complete: the parser stands where the JSON grammar of an array can be (`State`), and only `State::Done`, after the closing
//! bracket and with nothing but white space since, is an end. So every proper prefix of a listing is an error, wherever it is
//! cut; the property test cuts at every byte.

use std::{borrow::Cow, io};

use serde::Deserialize;

use crate::{
    data::Row,
    fact::{Argument, FactType, MAX_ARGUMENTS},
};

/// The most bytes of one fact. Five arguments of 512 bytes, each byte escaped as `\u00XX`, make 15 KiB; this is four times as
/// much, for names and keys we do not know.
const MAX_FACT_BYTES: usize = 64 << 10;

/// Why a listing cannot be used.
#[derive(Debug)]
pub(super) enum Error {
    /// The one who was given the facts failed.
    Receiver(io::Error),
    /// The text is no listing. Names places, not contents.
    Garbage(String),
}

/// Where in the array the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start: `[`, or `null` for an empty list.
    Start,
    /// After `[`: a fact or `]`.
    Opened,
    /// After a comma: a fact.
    Fact,
    /// After a fact: a comma or `]`.
    Separator,
    /// After `]` or `null`: nothing more.
    Done,
}

/// What one step made of the bytes at hand.
enum Step {
    /// So many bytes were read and stand for no fact.
    Skip(usize, State),
    /// So many bytes were a fact, of the type if there is a row.
    Fact(usize, Option<Row>),
    /// It takes more of them.
    More,
}

/// An array of facts of which a part has arrived.
#[derive(Debug)]
pub(super) struct FactArray<'t> {
    fact_type: &'t FactType,
    frame: Frame,
    state: State,
    /// The part of a fact, or of `null`, that has arrived.
    rest: Vec<u8>,
    /// Facts so far, to name a place.
    facts: u64,
}

impl<'t> FactArray<'t> {
    /// Nothing has arrived.
    pub(super) fn new(fact_type: &'t FactType) -> Self {
        Self { fact_type, frame: Frame::new(fact_type), state: State::Start, rest: Vec::new(), facts: 0 }
    }

    /// Takes the next bytes and gives the rows of the facts that end in them to `each`, those of other types left out.
    pub(super) fn feed(&mut self, chunk: &[u8], mut each: impl FnMut(Row) -> io::Result<()>) -> Result<(), Error> {
        self.rest.extend_from_slice(chunk);
        let bytes = std::mem::take(&mut self.rest);
        let mut at = 0;
        while let Some(skipped) = bytes[at..].iter().position(|b| !b.is_ascii_whitespace()) {
            at += skipped;
            match self.step(&bytes[at..]).map_err(Error::Garbage)? {
                Step::Skip(length, state) => {
                    at += length;
                    self.state = state;
                }
                Step::Fact(length, row) => {
                    at += length;
                    self.state = State::Separator;
                    self.facts += 1;
                    row.map_or(Ok(()), &mut each).map_err(Error::Receiver)?;
                }
                Step::More => {
                    self.rest = bytes;
                    self.rest.drain(..at);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether that was all of it; if not, why not.
    pub(super) fn finish(self) -> Result<(), String> {
        if self.state == State::Done {
            return Ok(());
        }
        Err(format!("the list of facts breaks off after fact {}", self.facts))
    }

    /// Looks at `bytes`, which do not start with white space.
    fn step(&self, bytes: &[u8]) -> Result<Step, String> {
        match (self.state, bytes[0]) {
            (State::Start, b'[') => Ok(Step::Skip(1, State::Opened)),
            (State::Start, b'n') if bytes.starts_with(b"null") => Ok(Step::Skip(4, State::Done)),
            (State::Start, b'n') if b"null".starts_with(bytes) => Ok(Step::More),
            (State::Opened | State::Separator, b']') => Ok(Step::Skip(1, State::Done)),
            (State::Separator, b',') => Ok(Step::Skip(1, State::Fact)),
            (State::Opened | State::Fact, b'{') => self.fact(bytes),
            (State::Start, _) => Err("a listing was answered with something other than an array of facts".to_owned()),
            (State::Done, _) => Err(format!("something follows the list of {} facts", self.facts)),
            (State::Opened | State::Fact | State::Separator, _) => Err(format!("the list of facts is broken after fact {}", self.facts)),
        }
    }

    fn fact(&self, bytes: &[u8]) -> Result<Step, String> {
        if let Some((length, row)) = self.frame.row(bytes) {
            return Ok(Step::Fact(length, Some(row)));
        }
        let number = self.facts + 1;
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Listed<'_>>();
        match values.next() {
            Some(Ok(fact)) => Ok(Step::Fact(values.byte_offset(), fact.row(self.fact_type))),
            Some(Err(error)) if error.is_eof() && bytes.len() <= MAX_FACT_BYTES => Ok(Step::More),
            Some(Err(error)) if error.is_eof() => Err(format!("fact {number} of the list is longer than {MAX_FACT_BYTES} bytes")),
            // Its text would quote what it met.
            Some(Err(_)) | None => Err(format!("entry {number} of the list is no fact")),
        }
    }
}

/// A fact in the bytes it came in: what becomes of it is a row, so it need not own anything.
#[derive(Debug, Deserialize)]
struct Listed<'a> {
    #[serde(borrow)]
    predicate: Cow<'a, str>,
    #[serde(borrow)]
    args: Vec<ListedValue<'a>>,
}

#[derive(Debug, Deserialize)]
struct ListedValue<'a> {
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Listed<'_> {
    fn row(&self, fact_type: &FactType) -> Option<Row> {
        fact_type.row_of(&self.predicate, self.args.iter().map(|value| (&*value.type_name, &*value.id)))
    }
}

/// The compact JSON of every fact of one type: what stands before, between and after the ids of its variables.
#[derive(Debug)]
struct Frame {
    before: Vec<String>,
    after: String,
}

impl Frame {
    fn new(fact_type: &FactType) -> Self {
        let json = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        let (mut before, mut piece) = (Vec::new(), format!("{{\"predicate\":{},\"args\":[", json(&fact_type.predicate)));
        for (index, arg) in fact_type.args.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            piece += &format!("{comma}{{\"type\":{},\"id\":", json(arg.type_name()));
            match arg {
                Argument::Constant(value) => piece += &json(&value.id),
                Argument::Variable { .. } => {
                    piece.push('"');
                    before.push(std::mem::replace(&mut piece, "\"".to_owned()));
                }
            }
            piece.push('}');
        }
        piece += "]}";
        Self { before, after: piece }
    }

    /// The row of the fact at the start of `bytes`, and how long that fact is; `None` if it is framed in another way, or not
    /// all there.
    fn row(&self, bytes: &[u8]) -> Option<(usize, Row)> {
        let (mut ids, mut rest) = ([""; MAX_ARGUMENTS], bytes);
        for (id, before) in ids.iter_mut().zip(&self.before) {
            rest = rest.strip_prefix(before.as_bytes())?;
            // Up to the quote, an escape, or what no string may hold.
            let end = rest.iter().position(|&byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
            *id = std::str::from_utf8(&rest[..end]).ok()?;
            rest = &rest[end..];
        }
        rest = rest.strip_prefix(self.after.as_bytes())?;
        Some((bytes.len() - rest.len(), Row::from_texts(ids[..self.before.len()].iter().copied())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Fact, Value};
    use proptest::prelude::*;

    /// Some of [`facts`] are of this type.
    fn fact_type() -> FactType {
        let variable = |name: &str| Argument::Variable { type_name: name.to_owned() };
        FactType { predicate: "f\"".to_owned(), args: vec![variable("A"), Argument::Constant(Value::new("B", "é\\")), variable("C")] }
    }

    /// Feeds `text` in pieces that end at `cuts`; all facts' number and the rows of [`fact_type`].
    fn read(text: &[u8], cuts: &[usize]) -> Result<(u64, Vec<Row>), String> {
        let of = fact_type();
        let (mut array, mut rows) = (FactArray::new(&of), Vec::new());
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).chain([text.len()]).collect();
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let keep = |row| {
                rows.push(row);
                Ok(())
            };
            match array.feed(&text[start..end], keep) {
                Ok(()) => start = end,
                Err(Error::Garbage(problem)) => return Err(problem),
                Err(Error::Receiver(error)) => panic!("the test's receiver does not fail: {error}"),
            }
        }
        let facts = array.facts;
        array.finish().map(|()| (facts, rows))
    }

    fn facts() -> impl Strategy<Value = Vec<Fact>> {
        let id = || "[]{},:\\[\"\\\\\u{0}é\u{1f980} ]{0,6}";
        let value = ("[A-Z]{0,3}", id()).prop_map(|(t, id)| Value::new(t, id));
        let foreign = ("[a-z\"]{0,4}", prop::collection::vec(value, 0..3)).prop_map(|(predicate, args)| Fact { predicate, args });
        let ours = (id(), id()).prop_map(|(a, c)| fact_type().stored_fact(&Row::from_texts([a.as_str(), &c])));
        let nearly = ("[AB]", "[éé]\\\\?", "[a-c]").prop_map(|(t, constant, id)| Fact {
            predicate: "f\"".to_owned(),
            args: vec![Value::new(t, id.clone()), Value::new("B", constant), Value::new("C", id)],
        });
        prop::collection::vec(prop_oneof![ours, nearly, foreign], 0..6)
    }

    fn rows(facts: &[Fact]) -> (u64, Vec<Row>) {
        (facts.len() as u64, facts.iter().filter_map(|fact| fact_type().row(fact)).collect())
    }

    /// Python's way to write JSON: only ASCII, and a space after each separator.
    fn ascii(text: &str) -> String {
        let escape = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect::<String>();
        text.chars().map(|c| if c.is_ascii() { c.to_string() } else { escape(c) }).collect()
    }

    proptest! {
        #[test]
        fn the_pieces_it_arrives_in_do_not_matter(
            facts in facts(), pretty: bool, escaped: bool, cuts in prop::collection::vec(any::<usize>(), 0..8),
        ) {
            let text = if pretty { serde_json::to_string_pretty(&facts) } else { serde_json::to_string(&facts) }.expect("JSON");
            let text = if escaped { ascii(&text) } else { text };
            prop_assert_eq!(read(text.as_bytes(), &cuts).expect("a listing"), rows(&facts));
        }

        #[test]
        fn a_list_that_is_cut_anywhere_is_an_error(facts in facts(), escaped: bool) {
            let text = serde_json::to_string(&facts).expect("JSON");
            let text = if escaped { ascii(&text) } else { text };
            for end in 0..text.len() {
                let problem = read(&text.as_bytes()[..end], &[end / 2]).expect_err("a cut list");
                prop_assert!(problem.contains("breaks off"), "{}", problem);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>, cut: usize) {
            let whole = read(&bytes, &[]).ok();
            prop_assert_eq!(read(&bytes, &[cut]).ok(), whole);
        }
    }

    #[test]
    fn what_is_no_listing_is_refused_without_quoting_it() {
        let fact = r#"{"predicate":"f","args":[{"type":"User","id":"secret"}]}"#;
        for (text, want) in [
            ("", "breaks off after fact 0"),
            ("<html>secret</html>", "other than an array"),
            (r#"{"message":"secret"}"#, "other than an array"),
            ("nul", "breaks off"),
            ("nuts", "other than an array"),
            ("null[]", "follows the list of 0"),
            (&format!("[{fact}] {fact}"), "follows the list of 1"),
            (&format!("[{fact}]]"), "follows the list of 1"),
            (&format!("[{fact}{fact}]"), "broken after fact 1"),
            (&format!("[{fact},]"), "broken after fact 1"),
            (&format!("[,{fact}]"), "broken after fact 0"),
            (&format!("[{fact},null]"), "broken after fact 1"),
            (&format!("[{fact},\"secret\"]"), "broken after fact 1"),
            (&format!("[{fact},[{fact}]]"), "broken after fact 1"),
            (r#"[{"predicate":"f"}]"#, "entry 1 of the list is no fact"),
            (r#"[{"predicate":"f","args":[{"type":"User","id":null}]}]"#, "entry 1 of the list is no fact"),
            (r#"[{"predicate":"secret","args":[{"type":"User","id":5}]}]"#, "entry 1 of the list is no fact"),
        ] {
            let problem = read(text.as_bytes(), &[]).expect_err(text);
            assert!(problem.contains(want) && !problem.contains("secret"), "{text}: {problem}");
        }
        assert_eq!(read(b" null ", &[3]), Ok((0, vec![])));
        assert_eq!(read(br#"[{"predicate":"f","new":{"a":[1]},"args":[]}]"#, &[]).map(|(facts, _)| facts), Ok(1));
    }

    #[test]
    fn the_usual_form_takes_the_short_way_and_only_that() {
        let of = fact_type();
        let frame = Frame::new(&of);
        let row = Row::from_texts(["1", "é"]);
        let text = serde_json::to_string(&of.stored_fact(&row)).expect("JSON");
        assert_eq!(frame.row(format!("{text},").as_bytes()), Some((text.len(), row)));
        for (from, to) in [("\"1\"", "\"\\u0031\""), ("\"1\"", "\"\n\""), ("\"C\"", "\"D\""), ("]}", "]"), (",\"args\"", ", \"args\"")] {
            assert_ne!(text.replace(from, to), text);
            assert_eq!(frame.row(text.replace(from, to).as_bytes()), None, "{to}");
        }
    }

    #[test]
    fn a_fact_that_does_not_end_is_not_collected_for_ever() {
        let of = fact_type();
        let mut array = FactArray::new(&of);
        array.feed(br#"[{"predicate":""#, |_| Ok(())).expect("it may still end");
        let piece = [b'a'; 4096];
        let fed = (0..).take_while(|_| array.feed(&piece, |_| Ok(())).is_ok()).count();
        assert!(fed * piece.len() <= MAX_FACT_BYTES, "{fed} pieces were kept");
    }

    #[test]
    fn a_receiver_that_fails_stops_it() {
        let fact = serde_json::to_string(&fact_type().stored_fact(&Row::from_texts(["1", "2"]))).expect("JSON");
        let (of, mut calls) = (fact_type(), 0);
        let result = FactArray::new(&of).feed(format!("[{fact},{fact}]").as_bytes(), |_| {
            calls += 1;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(matches!(result, Err(Error::Receiver(error)) if error.kind() == io::ErrorKind::StorageFull));
        assert_eq!(calls, 1);
    }
}
