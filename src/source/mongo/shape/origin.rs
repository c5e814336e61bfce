//! Whether a path in the middle of a pipeline still leads to what it leads to in the original document.

use mongodb::bson::{Bson, Document};

use crate::source::mongo::shape::parts;

/// Where the values at a path come from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the same path of the document, of which these prefixes (or the path itself) are unwound.
    Document { unwound: Vec<String> },
    /// From a stage, by its number and name.
    Computed { stage: usize, name: String },
}

/// What one stage does to a path.
enum Effect {
    Keeps,
    Unwinds(String),
    Replaces,
}

/// What a projection does.
pub(super) enum Projection {
    /// It keeps only what it names.
    Including,
    /// It drops what it names.
    Excluding,
}

/// Where the values at `path` behind these stages come from.
pub(super) fn of(stages: &[Document], path: &str) -> Origin {
    let mut unwound = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let (name, given) = parts(stage);
        match effect(name, given, path) {
            Effect::Keeps => {}
            Effect::Unwinds(prefix) => unwound.push(prefix),
            Effect::Replaces => return Origin::Computed { stage: index + 1, name: name.to_owned() },
        }
    }
    Origin::Document { unwound }
}

/// What a `$project` does: `_id` may be dropped by either kind, so the other fields decide.
pub(super) fn projection(given: &Document) -> Projection {
    let leaves = leaves(given);
    let decisive = leaves.iter().find(|(path, _)| path != "_id").or(leaves.first());
    if decisive.is_some_and(|(_, value)| drops(value)) { Projection::Excluding } else { Projection::Including }
}

/// Whether one path leads to the other or beyond.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    leads_to(one, other) || leads_to(other, one)
}

fn effect(name: &str, given: &Bson, path: &str) -> Effect {
    let unless = |replaces: bool| if replaces { Effect::Replaces } else { Effect::Keeps };
    match (name, given) {
        ("$match", _) => Effect::Keeps,
        ("$set" | "$addFields", Bson::Document(given)) => unless(leaves(given).iter().any(|(set, _)| overlap(set, path))),
        ("$unset", Bson::String(unset)) => unless(overlap(unset, path)),
        ("$unset", Bson::Array(paths)) => unless(paths.iter().any(|unset| unset.as_str().is_none_or(|unset| overlap(unset, path)))),
        ("$project", Bson::Document(given)) => unless(!keeps(given, path)),
        ("$unwind", Bson::String(unwound)) => unwinds(unwound, None, path),
        ("$unwind", Bson::Document(given)) => match (given.get_str("path"), given.get_str("includeArrayIndex")) {
            (Ok(unwound), index) => unwinds(unwound, index.ok(), path),
            (Err(_), _) => Effect::Replaces,
        },
        ("$lookup", Bson::Document(given)) => unless(given.get_str("as").map_or(true, |filled| overlap(filled, path))),
        // A new root, what `$redact` leaves, and what the server will not accept anyway.
        _ => Effect::Replaces,
    }
}

fn unwinds(unwound: &str, index: Option<&str>, path: &str) -> Effect {
    let unwound = unwound.strip_prefix('$').unwrap_or(unwound);
    match () {
        () if index.is_some_and(|index| overlap(index, path)) => Effect::Replaces,
        () if leads_to(unwound, path) => Effect::Unwinds(unwound.to_owned()),
        // The path stands for a document in which an array has become an element.
        () if leads_to(path, unwound) => Effect::Replaces,
        () => Effect::Keeps,
    }
}

/// Whether a `$project` leaves everything at `path` as it is.
fn keeps(given: &Document, path: &str) -> bool {
    let leaves = leaves(given);
    match projection(given) {
        Projection::Excluding => !leaves.iter().any(|(dropped, value)| drops(value) && overlap(dropped, path)),
        Projection::Including => {
            let whole_id = leads_to("_id", path) && !leaves.iter().any(|(named, _)| overlap(named, "_id"));
            whole_id || leaves.iter().any(|(kept, value)| includes(value) && leads_to(kept, path))
        }
    }
}

fn drops(value: &Bson) -> bool {
    is_zero(value) == Some(true)
}

fn includes(value: &Bson) -> bool {
    is_zero(value) == Some(false)
}

/// Whether a number or boolean stands for false; other values are expressions.
fn is_zero(value: &Bson) -> Option<bool> {
    match value {
        Bson::Boolean(value) => Some(!value),
        Bson::Int32(number) => Some(*number == 0),
        Bson::Int64(number) => Some(*number == 0),
        Bson::Double(number) => Some(*number == 0.0),
        Bson::Decimal128(number) => Some(number.to_string().bytes().take_while(|byte| *byte != b'E').all(|byte| b"-0.".contains(&byte))),
        _ => None,
    }
}

/// Whether `prefix` is `path` or one of the documents around it.
pub(super) fn leads_to(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// What a `$set` or `$project` says about each path; `{a: {b: 1}}` is `a.b`.
fn leaves(given: &Document) -> Vec<(String, &Bson)> {
    let mut leaves = Vec::new();
    for (name, value) in given {
        match value {
            Bson::Document(inner) if inner.keys().next().is_some_and(|key| !key.starts_with('$')) => {
                leaves.extend(self::leaves(inner).into_iter().map(|(path, value)| (format!("{name}.{path}"), value)));
            }
            value => leaves.push((name.clone(), value)),
        }
    }
    leaves
}
