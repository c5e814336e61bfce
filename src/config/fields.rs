//! Reading values out of the tree: a [`Reader`] for each file, which notes every problem and goes on.
//!
//! What cannot be read is `None`, and the problem has been noted. A key whose value is empty (`ssl:`) counts as absent, as it does for
//! an optional field in serde.

use std::{collections::HashMap, path::Path};

use crate::config::{
    Environment, Place, Problem,
    expand::{ExpandError, TextKind, expand},
    place::Spot,
    raw::{Node, Value},
};

/// Reads one file.
pub(super) struct Reader<'a> {
    file: &'a Path,
    environment: Environment<'a>,
    pub(super) problems: Vec<Problem>,
}

/// A key of a mapping and its value.
pub(super) struct Field {
    pub(super) key: String,
    pub(super) spot: Spot,
    pub(super) node: Node,
    /// The key has been there before, which is a problem that has been noted.
    pub(super) repeated: bool,
}

/// The fields of a mapping whose keys are known.
pub(super) struct Fields {
    /// What the mapping describes, `the entry "app_db"`.
    what: String,
    /// Where it is described: the place of its own key.
    spot: Spot,
    fields: Vec<Field>,
    /// Keys that are there in another spelling, which has been noted; to miss them as well would be said twice.
    meant: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Path, environment: Environment<'a>) -> Self {
        Self { file, environment, problems: Vec::new() }
    }

    pub(super) fn place(&self, spot: Spot) -> Place {
        spot.in_file(self.file)
    }

    pub(super) fn problem(&mut self, spot: Spot, message: impl Into<String>, hint: impl Into<String>) {
        self.problems.push(Problem::new(self.place(spot), message, hint));
    }

    /// The fields of a mapping of which only `known` keys make sense.
    pub(super) fn fields(&mut self, field: Field, known: &[&str]) -> Option<Fields> {
        let what = format!("\"{}\"", field.key);
        let spot = field.spot;
        let fields = self.entries(field)?;
        Some(self.known_fields(what, spot, fields, known))
    }

    /// As [`Reader::fields`], for fields that have been read.
    pub(super) fn known_fields(&mut self, what: String, spot: Spot, fields: Vec<Field>, known: &[&str]) -> Fields {
        let (fields, unknown): (Vec<_>, Vec<_>) = fields.into_iter().partition(|field| known.contains(&field.key.as_str()));
        let mut meant = Vec::new();
        for field in unknown {
            let near = nearest(&field.key, known.iter().copied());
            let suggestion = near.map_or(String::new(), |key| format!("; did you mean \"{key}\"?"));
            let message = format!("unknown key \"{}\"{suggestion}", field.key);
            self.problem(field.spot, message, format!("Known in {what}: {}.", known.join(", ")));
            meant.extend(near.map(str::to_owned));
        }
        Fields { what, spot, fields, meant }
    }

    /// The fields of a mapping with any keys, in the order of the file; repeated ones are noted.
    pub(super) fn entries(&mut self, field: Field) -> Option<Vec<Field>> {
        let Value::Map(entries) = field.node.value else {
            self.wrong_kind(&field, "a mapping", "Write one \"key: value\" per line, indented below it.");
            return None;
        };
        let mut fields: Vec<Field> = Vec::with_capacity(entries.len());
        let mut first = HashMap::new();
        for (key, node) in entries {
            let Value::Text(name) = key.value else {
                self.problem(key.spot, format!("a key must be text, found {}", key.value.kind()), "Put it in quotes.");
                continue;
            };
            let before = first.get(&name).copied();
            match before {
                Some(spot) => {
                    let hint = format!("It is first at {}; keep one of them.", self.place(spot));
                    self.problem(key.spot, format!("duplicate key \"{name}\""), hint);
                }
                None => _ = first.insert(name.clone(), key.spot),
            }
            fields.push(Field { key: name, spot: key.spot, node, repeated: before.is_some() });
        }
        Some(fields)
    }

    /// The items of a list, called `key[0]` and so on.
    pub(super) fn list(&mut self, field: Field) -> Option<Vec<Field>> {
        let Value::List(items) = field.node.value else {
            self.wrong_kind(&field, "a list", "Write it as [a, b], or one \"- item\" per line.");
            return None;
        };
        let item = |(index, node): (usize, Node)| Field { key: format!("{}[{index}]", field.key), spot: node.spot, node, repeated: false };
        Some(items.into_iter().enumerate().map(item).collect())
    }

    /// A text, taken as it is.
    pub(super) fn literal(&mut self, field: &Field) -> Option<String> {
        match &field.node.value {
            Value::Text(text) if text.trim().is_empty() => {
                self.problem(field.node.spot, format!("\"{}\" is empty", field.key), "Fill it in.");
                None
            }
            Value::Text(text) => Some(text.clone()),
            Value::Boolean(_) | Value::Number(_) => {
                self.wrong_kind(field, "text", "Put it in quotes.");
                None
            }
            Value::Null | Value::List(_) | Value::Map(_) | Value::Tagged => {
                self.wrong_kind(field, "text", "Write it on one line, or as a block after \"|-\".");
                None
            }
        }
    }

    /// A text with the environment's variables in it; see [`expand`](super::expand).
    pub(super) fn text(&mut self, field: &Field) -> Option<String> {
        self.expanded(field, TextKind::Plain)
    }

    /// A connection string, which no message may show.
    pub(super) fn connection_string(&mut self, field: &Field) -> Option<String> {
        self.expanded(field, TextKind::Connection)
    }

    fn expanded(&mut self, field: &Field, kind: TextKind) -> Option<String> {
        let text = self.literal(field)?;
        let errors = match expand(text.trim(), kind, self.environment) {
            Ok(expanded) if expanded.trim().is_empty() => {
                self.problem(field.node.spot, format!("\"{}\" is empty once its variables are put in", field.key), "Set the variables.");
                return None;
            }
            // A variable filled from a file often ends in a line break.
            Ok(expanded) => return Some(expanded.trim().to_owned()),
            Err(errors) => errors,
        };
        for error in errors {
            let (message, hint) = match error {
                ExpandError::Unset(name) => {
                    (format!("the environment variable \"{name}\" is not set"), format!("Set {name} and start again."))
                }
                ExpandError::Empty(name) => {
                    (format!("the environment variable \"{name}\" is empty"), format!("Give {name} a value and start again."))
                }
                ExpandError::Malformed(name) => (
                    format!("could not read a variable after \"${{{name}\""),
                    "Write ${NAME}, with letters, digits and \"_\"; a literal \"${\" can only come from a variable's value.".into(),
                ),
            };
            self.problem(field.node.spot, message, hint);
        }
        None
    }

    pub(super) fn boolean(&mut self, field: &Field) -> Option<bool> {
        match field.node.value {
            Value::Boolean(value) => Some(value),
            _ => {
                self.wrong_kind(field, "true or false", "Write true or false, without quotes.");
                None
            }
        }
    }

    /// A whole number up to `most`.
    pub(super) fn integer(&mut self, field: &Field, most: u64) -> Option<u64> {
        let Value::Number(number) = &field.node.value else {
            self.wrong_kind(field, "a number", "Write a whole number, without quotes or unit.");
            return None;
        };
        let value = number.as_u64().filter(|value| *value <= most);
        if value.is_none() {
            let range = if most == u64::MAX { "0 or more".to_owned() } else { format!("from 0 to {most}") };
            self.problem(field.node.spot, format!("\"{}\" must be a whole number, {range}", field.key), "Change the number.");
        }
        value
    }

    pub(super) fn wrong_kind(&mut self, field: &Field, expected: &str, hint: &str) {
        let message = format!("\"{}\" must be {expected}, found {}", field.key, field.node.value.kind());
        self.problem(field.node.spot, message, hint);
    }
}

impl Field {
    /// The whole file.
    pub(super) fn root(node: Node) -> Self {
        Self { key: "the file".into(), spot: node.spot, node, repeated: false }
    }

    /// The text as the file has it, for messages: a variable's value could be a secret.
    pub(super) fn as_written(&self) -> &str {
        match &self.node.value {
            Value::Text(text) => text,
            Value::Null | Value::Boolean(_) | Value::Number(_) | Value::List(_) | Value::Map(_) | Value::Tagged => self.node.value.kind(),
        }
    }

    fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }
}

impl Fields {
    /// The first field of this name, if it has a value.
    pub(super) fn take(&mut self, key: &str) -> Option<Field> {
        let index = self.fields.iter().position(|field| field.key == key)?;
        Some(self.fields.remove(index)).filter(|field| !field.is_null())
    }

    /// A field that must be there.
    pub(super) fn require(&mut self, reader: &mut Reader<'_>, key: &str) -> Option<Field> {
        let before = self.fields.iter().find(|field| field.key == key).map(|field| field.spot);
        let field = self.take(key);
        match (&field, before) {
            (Some(_), _) => {}
            (None, Some(spot)) => reader.problem(spot, format!("\"{key}\" has no value"), "Fill it in."),
            (None, None) if self.meant.iter().any(|meant| meant == key) => {}
            (None, None) => {
                reader.problem(self.spot, format!("missing key \"{key}\" in {}", self.what), format!("Add \"{key}: …\" to it."))
            }
        }
        field
    }
}

/// Characters of a name that is still compared with others for a slip: the time and the memory of a comparison are the product of both
/// lengths, and a person sees no likeness in more than this.
const NEAREST_CHARS: usize = 128;

/// The candidate that `text` is most plausibly a slip of: a third of its letters may be wrong.
pub(super) fn nearest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let is_short = |text: &str| text.chars().nth(NEAREST_CHARS).is_none();
    if !is_short(text) {
        return None;
    }
    let text = text.to_lowercase();
    candidates
        .filter(|candidate| is_short(candidate))
        .map(|candidate| (strsim::damerau_levenshtein(&text, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count().max(text.chars().count()))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plausible_slip_is_suggested() {
        let known = ["version", "source", "facts", "dbs", "sync"];
        for (text, want) in [
            ("fact", Some("facts")),
            ("Facts", Some("facts")),
            ("verison", Some("version")),
            ("db", Some("dbs")),
            ("databases", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, known.into_iter()), want, "{text}");
        }
    }

    /// A comparison of these would take terabytes.
    #[test]
    fn a_name_of_a_megabyte_is_no_slip() {
        let (long, other) = ("a".repeat(1 << 20), "b".to_owned() + &"a".repeat(1 << 20));
        assert_eq!(nearest(&long, [other.as_str(), "facts"].into_iter()), None);
        assert_eq!(nearest("fact", [other.as_str(), "facts"].into_iter()), Some("facts"));
    }
}
