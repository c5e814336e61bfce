//! A file as it is written: a tree of YAML values, each with its place.
//!
//! serde_yaml says what a value *is*, so a file means here what it means to every other reader built on it; saphyr-parser says
//! *where* it is, which serde_yaml does not tell. Both read the same text, and the two trees are laid over each other. Where they
//! should ever disagree about the shape, a value has the place of the nearest enclosing one: a place may then be coarse, a value
//! is never wrong.
//!
//! There are no serde structs for the file's sections: serde stops at the first thing it does not like, and the report shall hold
//! all of them. For the same reason a mapping keeps its repeated keys.

use std::{cell::Cell, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor},
};
use serde_yaml::Number;

use crate::config::{place::Spot, spots::Spots};

/// The most bytes that the values of a file take. An alias is a copy of what it names, so a file of a megabyte could become a terabyte;
/// serde_yaml limits the number of aliases, not the size of what they copy. This is four times the largest file.
const MAX_VALUE_BYTES: usize = 64 << 20;

/// A YAML value and where it begins.
///
/// No `Debug`: a file may hold a password as a literal.
pub(super) struct Node {
    pub(super) spot: Spot,
    pub(super) value: Value,
}

/// What a YAML value is.
pub(super) enum Value {
    Null,
    Boolean(bool),
    Number(Number),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, repeated keys included.
    Map(Vec<(Node, Node)>),
    /// A value with a tag of its own, `!name …`: nothing in our files has one.
    Tagged,
}

/// A text that is not one YAML document.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) spot: Spot,
    pub(super) message: String,
}

impl Node {
    /// Reads one YAML document.
    pub(super) fn parse(text: &str) -> Result<Self, SyntaxError> {
        // Windows editors write a byte order mark, which is no part of the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if let Some((at, c)) = text.char_indices().find(|(_, c)| !is_printable(*c)) {
            // serde_yaml refuses it too, but does not say in which line.
            let message = format!("could not read the file as YAML: the character U+{:04X} is not allowed", u32::from(c));
            return Err(SyntaxError { spot: Spot::of_byte(text, at), message });
        }
        let mut documents = serde_yaml::Deserializer::from_str(text);
        let Some(first) = documents.next() else {
            return Ok(Self { spot: Spot::START, value: Value::Null });
        };
        let room = Room(Cell::new(MAX_VALUE_BYTES));
        let mut node = (&room).deserialize(first).map_err(|error| SyntaxError::new(text, &error))?;
        // Only now: what serde_yaml has read is bounded in depth.
        let (spots, second_document) = Spots::read(text);
        if documents.next().is_some() {
            let spot = second_document.unwrap_or(Spot::START);
            return Err(SyntaxError { spot, message: "the file holds more than one YAML document".into() });
        }
        node.lay_over(spots.as_deref(), Spot::START);
        Ok(node)
    }

    /// Takes the places from `spots`, and `outer` where there are none.
    fn lay_over(&mut self, spots: Option<&Spots>, outer: Spot) {
        self.spot = spots.map_or(outer, |spots| spots.spot);
        match &mut self.value {
            Value::Null | Value::Boolean(_) | Value::Number(_) | Value::Text(_) | Value::Tagged => {}
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    item.lay_over(spots.and_then(|spots| spots.child(index)), self.spot);
                }
            }
            Value::Map(entries) => {
                for (index, (key, value)) in entries.iter_mut().enumerate() {
                    key.lay_over(spots.and_then(|spots| spots.child(2 * index)), self.spot);
                    value.lay_over(spots.and_then(|spots| spots.child(2 * index + 1)), key.spot);
                    if matches!(value.value, Value::Null) {
                        // A value that is not there has no place; its key has one.
                        value.spot = key.spot;
                    }
                }
            }
        }
    }
}

impl Value {
    /// What it is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged => "a value with a tag (\"!\")",
        }
    }
}

impl SyntaxError {
    fn new(text: &str, error: &serde_yaml::Error) -> Self {
        let spot = error.location().map_or(Spot::START, |location| Spot::of_byte(text, location.index()));
        // serde_yaml repeats the place inside its message; ours stands before it.
        let message = error.to_string();
        let message = match error.location() {
            Some(at) => message.replacen(&format!(" at line {} column {}", at.line(), at.column()), "", 1),
            None => message,
        };
        Self { spot, message: format!("could not read the file as YAML: {message}") }
    }
}

/// [YAML's `c-printable`](https://yaml.org/spec/1.2.2/#51-character-set).
fn is_printable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
}

/// How many bytes the values still to come may take.
struct Room(Cell<usize>);

impl Room {
    fn take<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let Some(left) = self.0.get().checked_sub(bytes) else {
            return Err(E::custom(format!("its values, aliases written out, take more than {} MiB", MAX_VALUE_BYTES >> 20)));
        };
        self.0.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &Room {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.take(size_of::<Node>())?;
        let value = deserializer.deserialize_any(ValueVisitor(self))?;
        Ok(Node { spot: Spot::START, value })
    }
}

struct ValueVisitor<'r>(&'r Room);

impl<'de> Visitor<'de> for ValueVisitor<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Value, E> {
        Err(E::custom("a number has more than 64 bits"))
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Value, E> {
        Err(E::custom("a number has more than 64 bits"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.0.take(value.len())?;
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.0)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry_seed(self.0, self.0)? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (_tag, contents) = tagged.variant::<String>()?;
        contents.newtype_variant_seed(self.0)?;
        Ok(Value::Tagged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(line: usize, column: usize) -> Spot {
        Spot { line, column }
    }

    fn entries(node: &Node) -> &[(Node, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("{} is no mapping", other.kind()),
        }
    }

    #[test]
    fn every_key_and_value_has_its_place() {
        let node =
            Node::parse("\u{feff}# ä comment\r\nfacts:\r\n  f(Üser:_, a): {db: \"ü\", fields: [a,  b]}\r\nempty:\r\n").expect("YAML");
        let top = entries(&node);
        assert_eq!((top[0].0.spot, top[1].0.spot, top[1].1.spot), (spot(2, 1), spot(4, 1), spot(4, 1)));
        let fact = &entries(&top[0].1)[0];
        assert_eq!((fact.0.spot, fact.1.spot), (spot(3, 3), spot(3, 17)));
        let body = entries(&fact.1);
        assert_eq!((body[0].1.spot, body[1].0.spot), (spot(3, 22), spot(3, 27)));
        let Value::List(items) = &body[1].1.value else { panic!("a list") };
        assert_eq!((items[0].spot, items[1].spot), (spot(3, 36), spot(3, 40)));
    }

    #[test]
    fn an_alias_has_its_own_place_and_what_is_in_it_the_place_of_the_anchor() {
        let node = Node::parse("a: &x\n  k: v\nb: *x\n").expect("YAML");
        let top = entries(&node);
        assert_eq!(top[1].1.spot, spot(3, 4));
        assert_eq!(entries(&top[1].1)[0].1.spot, spot(2, 6));
    }

    #[test]
    fn what_is_no_yaml_is_refused_at_its_place() {
        for (text, at, want) in [
            ("a: 1\nb: [1, 2\nc: 3\n", spot(3, 2), "',' or ']'"),
            ("a: 1\n\tb: 2\n", spot(2, 1), "found a tab"),
            ("a: 1\n---\nb: 2\n", spot(2, 1), "more than one YAML document"),
            ("a: *nowhere\n", spot(1, 4), "unknown anchor"),
            ("a: 1\nb: 123456789012345678901234567890\n", spot(2, 4), "64 bits"),
            ("a: 1\nb: \u{1}\n", spot(2, 4), "U+0001"),
        ] {
            let error = Node::parse(text).err().expect(text);
            assert!(error.message.contains(want), "{text:?}: {}", error.message);
            assert_eq!(error.spot, at, "{text:?}: {}", error.message);
        }
    }

    #[test]
    fn aliases_cannot_blow_a_small_file_up() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", vec![before; 9].join(", "));
        }
        let error = Node::parse(&text).err().expect("nine to the twelfth");
        assert!(error.message.contains("repetition limit"), "{}", error.message);
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
    }

    /// Few aliases, each a copy of a large value.
    #[test]
    fn aliases_of_something_large_cannot_either() {
        let list = format!("a: &a [{}]\nb: [{}]\n", vec!["x"; 20_000].join(","), vec!["*a"; 20_000].join(","));
        let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 1000].join(","));
        for bomb in [list, text] {
            let error = Node::parse(&bomb).err().expect("gigabytes");
            assert!(error.message.contains("aliases written out, take more than 64 MiB"), "{}", error.message);
        }
        let few = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 10), vec!["*a"; 1000].join(","));
        assert!(Node::parse(&few).is_ok());
    }
}
