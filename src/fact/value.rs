//! A fact and its typed arguments.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The most arguments a fact can have (Oso's data model: "up to 5 arguments").
pub const MAX_ARGUMENTS: usize = 5;

/// The most bytes an argument's id can have (Oso's development server since 1.18.3; the types page says 384).
pub const MAX_ID_BYTES: usize = 512;

/// One typed argument, `{"type": "User", "id": "1"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Value {
    /// The type's name: `User`, or one of the built-in `String`, `Boolean`, `Integer`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The id; for built-in types the literal's text.
    pub id: String,
}

/// Why an id cannot stand in an argument of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum ValueError {
    /// Oso refuses empty ids.
    #[error("an id is empty")]
    Empty,
    /// Oso refuses `*`, which its CLI reads as a wildcard.
    #[error("an id is \"*\"")]
    Star,
    /// See [`MAX_ID_BYTES`].
    #[error("an id is longer than {MAX_ID_BYTES} bytes")]
    TooLong,
    /// A `Boolean` that is neither `true` nor `false`.
    #[error("a Boolean is neither \"true\" nor \"false\"")]
    NotBoolean,
    /// An `Integer` that is not a 64-bit integer in its shortest form.
    #[error("an Integer is not a 64-bit integer in plain decimal digits")]
    NotInteger,
}

impl Value {
    /// A value, without judging it; see [`Value::check`].
    pub fn new(type_name: impl Into<String>, id: impl Into<String>) -> Self {
        Self { type_name: type_name.into(), id: id.into() }
    }

    /// Whether a fact store takes `id` as an id of `type_name`.
    pub fn check(type_name: &str, id: &str) -> Result<(), ValueError> {
        match id {
            "" => return Err(ValueError::Empty),
            "*" => return Err(ValueError::Star),
            long if long.len() > MAX_ID_BYTES => return Err(ValueError::TooLong),
            _ => {}
        }
        match type_name {
            "Boolean" if !matches!(id, "true" | "false") => Err(ValueError::NotBoolean),
            // One spelling per number: `007` and `7` would be two facts about the same integer.
            "Integer" if !is_integer(id) => Err(ValueError::NotInteger),
            _ => Ok(()),
        }
    }
}

/// Whether `id` is what [`i64`] prints.
fn is_integer(id: &str) -> bool {
    let digits = id.strip_prefix('-').unwrap_or(id);
    let shortest = id == "0" || digits.starts_with(|first| matches!(first, '1'..='9'));
    shortest && id.parse::<i64>().is_ok()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.type_name, self.id)
    }
}

/// A concrete fact; its JSON is the wire format, `{"predicate": "has_role", "args": [{"type": "User", "id": "1"}, …]}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fact {
    /// The fact's name.
    pub predicate: String,
    /// Its arguments, one to [`MAX_ARGUMENTS`].
    pub args: Vec<Value>,
}

/// As the Oso CLI prints facts, `has_role(User:alice, String:admin, Repository:anvils)`.
impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.predicate)?;
        for (index, arg) in self.args.iter().enumerate() {
            write!(f, "{}{arg}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fact_store_refuses_is_known_before_it_is_sent() {
        let long = "é".repeat(257);
        for (type_name, id, want) in [
            ("User", "1", Ok(())),
            ("User", "", Err(ValueError::Empty)),
            ("User", "*", Err(ValueError::Star)),
            ("User", "**", Ok(())),
            ("User", &long[..512], Ok(())),
            ("User", &long, Err(ValueError::TooLong)),
            ("Boolean", "true", Ok(())),
            ("Boolean", "t", Err(ValueError::NotBoolean)),
            ("Integer", "-9223372036854775808", Ok(())),
            ("Integer", "9223372036854775808", Err(ValueError::NotInteger)),
            ("Integer", "007", Err(ValueError::NotInteger)),
            ("Integer", "+7", Err(ValueError::NotInteger)),
            ("Integer", "-0", Err(ValueError::NotInteger)),
            ("Integer", "-07", Err(ValueError::NotInteger)),
            ("Integer", "--7", Err(ValueError::NotInteger)),
            ("Integer", "1_0", Err(ValueError::NotInteger)),
            ("Integer", "-", Err(ValueError::NotInteger)),
            ("Integer", "0", Ok(())),
            ("Integer", "-10", Ok(())),
        ] {
            assert_eq!(Value::check(type_name, id), want, "{type_name}:{id}");
        }
    }
}
