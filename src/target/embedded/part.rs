//! A JSON value where a text belongs.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

/// Anything is read, so that the place of what does not fit can be told.
#[derive(Debug, Default)]
pub(super) enum Part {
    #[default]
    Absent,
    Text(String),
    /// In decimal digits.
    Integer(String),
    /// Its kind.
    Other(&'static str),
}

impl Part {
    /// The text, or `None` for a wildcard.
    pub(super) fn text(self, what: &str) -> Result<Option<String>, String> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Integer(_) => Err(format!("the {what} is a JSON number; give it as a string")),
            Self::Other(kind) => Err(format!("the {what} is {kind}; give it as a string")),
        }
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Part;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_unit<E>(self) -> Result<Part, E> {
                Ok(Part::Absent)
            }
            fn visit_str<E>(self, text: &str) -> Result<Part, E> {
                Ok(Part::Text(text.to_owned()))
            }
            fn visit_string<E>(self, text: String) -> Result<Part, E> {
                Ok(Part::Text(text))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Part, E> {
                Ok(Part::Integer(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Part, E> {
                Ok(Part::Integer(number.to_string()))
            }
            /// Also integers past 64 bits, which JSON readers disagree on.
            fn visit_f64<E>(self, _: f64) -> Result<Part, E> {
                Ok(Part::Other("a JSON number that is no 64-bit integer"))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Part, E> {
                Ok(Part::Other("a JSON boolean"))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Part, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Part::Other("a JSON array"))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Part, A::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(Part::Other("a JSON object"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
