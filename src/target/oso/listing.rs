//! Reads an array of facts while it arrives.
//!
//! Bounded: what is kept is the chunk at hand and the piece of one fact that the chunk before ended in, which may not
//! exceed [`MAX_FACT_BYTES`].
//!
//! Complete: the parser stands where the JSON grammar of an array can be (`State`), and only `State::Done`, after the closing
//! bracket and with nothing but white space since, is an end. So every proper prefix of a listing is an error, wherever it is
//! cut; the property test cuts at every byte.

use std::{borrow::Cow, io};

use serde::Deserialize;

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

/// A fact of the listing, in the bytes it came in: what becomes of it is a row, so a [`Fact`](crate::fact::Fact) of its own
/// would only be made and thrown away.
#[derive(Debug, Deserialize)]
pub(super) struct Listed<'a> {
    #[serde(borrow)]
    pub(super) predicate: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) args: Vec<ListedValue<'a>>,
}

/// An argument of it.
#[derive(Debug, Deserialize)]
pub(super) struct ListedValue<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) type_name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
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
enum Step<'a> {
    /// So many bytes were read and stand for no fact.
    Skip(usize, State),
    /// So many bytes were a fact.
    Fact(usize, Listed<'a>),
    /// It takes more of them.
    More,
}

/// An array of facts of which a part has arrived.
#[derive(Debug)]
pub(super) struct FactArray {
    state: State,
    /// The part of a fact, or of `null`, that has arrived.
    rest: Vec<u8>,
    /// Facts so far, to name a place.
    facts: u64,
}

impl FactArray {
    /// Nothing has arrived.
    pub(super) fn new() -> Self {
        Self { state: State::Start, rest: Vec::new(), facts: 0 }
    }

    /// Takes the next bytes and gives the facts that end in them to `each`.
    pub(super) fn feed(&mut self, chunk: &[u8], mut each: impl FnMut(Listed<'_>) -> io::Result<()>) -> Result<(), Error> {
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
                Step::Fact(length, fact) => {
                    at += length;
                    self.state = State::Separator;
                    self.facts += 1;
                    each(fact).map_err(Error::Receiver)?;
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
    fn step<'a>(&self, bytes: &'a [u8]) -> Result<Step<'a>, String> {
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

    fn fact<'a>(&self, bytes: &'a [u8]) -> Result<Step<'a>, String> {
        let number = self.facts + 1;
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Listed<'a>>();
        match values.next() {
            Some(Ok(fact)) => Ok(Step::Fact(values.byte_offset(), fact)),
            Some(Err(error)) if error.is_eof() && bytes.len() <= MAX_FACT_BYTES => Ok(Step::More),
            Some(Err(error)) if error.is_eof() => Err(format!("fact {number} of the list is longer than {MAX_FACT_BYTES} bytes")),
            // Its text would quote what it met.
            Some(Err(_)) | None => Err(format!("entry {number} of the list is no fact")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Fact, Value};
    use proptest::prelude::*;

    /// Feeds `text` in pieces that end at `cuts`.
    fn read(text: &[u8], cuts: &[usize]) -> Result<Vec<Fact>, String> {
        let (mut array, mut facts) = (FactArray::new(), Vec::new());
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).chain([text.len()]).collect();
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let keep = |listed: Listed<'_>| {
                let args = listed.args.into_iter().map(|value| Value::new(value.type_name, value.id));
                facts.push(Fact { predicate: listed.predicate.into_owned(), args: args.collect() });
                Ok(())
            };
            match array.feed(&text[start..end], keep) {
                Ok(()) => start = end,
                Err(Error::Garbage(problem)) => return Err(problem),
                Err(Error::Receiver(error)) => panic!("the test's receiver does not fail: {error}"),
            }
        }
        array.finish().map(|()| facts)
    }

    fn facts() -> impl Strategy<Value = Vec<Fact>> {
        let value = ("[A-Z]{0,3}", "[]{},:\\[\"\\\\\u{0}é\u{1f980} ]{0,6}").prop_map(|(t, id)| Value::new(t, id));
        let fact = ("[a-z\"]{0,4}", prop::collection::vec(value, 0..3)).prop_map(|(predicate, args)| Fact { predicate, args });
        prop::collection::vec(fact, 0..6)
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
            prop_assert_eq!(read(text.as_bytes(), &cuts).expect("a listing"), facts);
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
        assert_eq!(read(b" null ", &[3]), Ok(vec![]));
        assert_eq!(read(br#"[{"predicate":"f","new":{"a":[1]},"args":[]}]"#, &[]).map(|facts| facts.len()), Ok(1));
    }

    #[test]
    fn a_fact_that_does_not_end_is_not_collected_for_ever() {
        let mut array = FactArray::new();
        array.feed(br#"[{"predicate":""#, |_| Ok(())).expect("it may still end");
        let piece = [b'a'; 4096];
        let fed = (0..).take_while(|_| array.feed(&piece, |_| Ok(())).is_ok()).count();
        assert!(fed * piece.len() <= MAX_FACT_BYTES, "{fed} pieces were kept");
    }

    #[test]
    fn a_receiver_that_fails_stops_it() {
        let fact = r#"{"predicate":"f","args":[]}"#;
        let mut calls = 0;
        let result = FactArray::new().feed(format!("[{fact},{fact}]").as_bytes(), |_| {
            calls += 1;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(matches!(result, Err(Error::Receiver(error)) if error.kind() == io::ErrorKind::StorageFull));
        assert_eq!(calls, 1);
    }
}
