//! Patterns: facts with wildcards, as the fact store's API selects and deletes them.

use serde::{Deserialize, Serialize};

use crate::fact::{Fact, Value};

/// One argument of a pattern. On the wire a missing key and `null` mean the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct PatternValue {
    /// The type, or `None` for any.
    #[serde(rename = "type", default)]
    pub type_name: Option<String>,
    /// The id, or `None` for any id of the type.
    #[serde(default)]
    pub id: Option<String>,
}

impl PatternValue {
    fn matches(&self, value: &Value) -> bool {
        self.type_name.as_ref().is_none_or(|t| *t == value.type_name) && self.id.as_ref().is_none_or(|id| *id == value.id)
    }
}

/// A fact with wildcards; also how a fact type is printed, its variables being ids that are `null`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pattern {
    /// The fact's name.
    pub predicate: String,
    /// Its arguments; the number counts.
    pub args: Vec<PatternValue>,
}

impl Pattern {
    /// Whether `fact` is selected: same predicate, same number of arguments, every argument fits.
    pub fn matches(&self, fact: &Fact) -> bool {
        self.predicate == fact.predicate
            && self.args.len() == fact.args.len()
            && self.args.iter().zip(&fact.args).all(|(pattern, value)| pattern.matches(value))
    }
}
