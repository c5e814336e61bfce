//! Reading requests: JSON bodies and query strings, as the SDKs of all ages write them.
//!
//! A problem is told by its place (`entry 3: argument 2: …`): entries count from 1 through a whole body, over all its
//! changesets. Nulls and missing keys mean the same. An id may be a JSON integer, which counts as its decimal text: Node's SDK passes
//! `{type: "User", id: 123}` on as it is, Python's makes a text of it, and both mean one user. No other JSON value can be an id.

use serde::Deserialize;

use crate::{
    fact::{Fact, MAX_ARGUMENTS, PatternValue, Value},
    target::{
        Op,
        embedded::{
            apply::{Change, Policy},
            part::Part,
            select::{Arity, Selection},
            store::{check_arity, check_insert},
        },
    },
};

/// One entry of a body, not judged yet.
#[derive(Debug)]
pub(super) struct Entry {
    op: Op,
    fact: WireFact,
}

/// How a body is read.
pub(super) type Parse = fn(&[u8]) -> Result<Vec<Entry>, String>;

#[derive(Debug, Deserialize)]
struct WireFact {
    #[serde(default)]
    predicate: Part,
    args: Vec<WireValue>,
}

#[derive(Debug, Deserialize)]
struct WireValue {
    #[serde(rename = "type", default)]
    type_name: Part,
    #[serde(default)]
    id: Part,
}

/// `[{"inserts": […]}, {"deletes": […]}, …]`.
pub(super) fn batch(body: &[u8]) -> Result<Vec<Entry>, String> {
    #[derive(Deserialize)]
    struct Changeset {
        inserts: Option<Vec<WireFact>>,
        deletes: Option<Vec<WireFact>>,
    }
    let mut all = Vec::new();
    for (index, changeset) in json::<Vec<Changeset>>(body)?.into_iter().enumerate() {
        match (changeset.inserts, changeset.deletes) {
            (Some(facts), None) => all.extend(entries(Op::Insert, facts)),
            (None, Some(facts)) => all.extend(entries(Op::Delete, facts)),
            (Some(_), Some(_)) => {
                return Err(format!("changeset {} has both \"inserts\" and \"deletes\"; give them an order by using two", index + 1));
            }
            (None, None) => return Err(format!("changeset {} has neither \"inserts\" nor \"deletes\"", index + 1)),
        }
    }
    Ok(all)
}

/// `{"delete": […], "tell": […]}`; deletes go first.
pub(super) fn bulk(body: &[u8]) -> Result<Vec<Entry>, String> {
    #[derive(Deserialize)]
    struct Bulk {
        delete: Vec<WireFact>,
        tell: Vec<WireFact>,
    }
    let Bulk { delete, tell } = json(body)?;
    Ok(entries(Op::Delete, delete).chain(entries(Op::Insert, tell)).collect())
}

/// `[fact, …]`, to be inserted.
pub(super) fn bulk_load(body: &[u8]) -> Result<Vec<Entry>, String> {
    Ok(entries(Op::Insert, json(body)?).collect())
}

/// `[pattern, …]`, to be deleted.
pub(super) fn bulk_delete(body: &[u8]) -> Result<Vec<Entry>, String> {
    Ok(entries(Op::Delete, json(body)?).collect())
}

/// One fact, to be inserted.
pub(super) fn insert(body: &[u8]) -> Result<Vec<Entry>, String> {
    Ok(vec![Entry { op: Op::Insert, fact: json(body)? }])
}

/// One pattern, to be deleted.
pub(super) fn delete(body: &[u8]) -> Result<Vec<Entry>, String> {
    Ok(vec![Entry { op: Op::Delete, fact: json(body)? }])
}

/// `{"filename": …, "src": …}`.
pub(super) fn policy(body: &[u8]) -> Result<Policy, String> {
    #[derive(Deserialize)]
    struct WirePolicy {
        filename: Option<String>,
        src: String,
    }
    let WirePolicy { filename, src } = json(body)?;
    Ok(Policy { filename, src })
}

/// The changes that `entries` mean; the first that cannot be is the error.
pub(super) fn changes(entries: Vec<Entry>) -> Result<Vec<Change>, String> {
    let checked = entries.into_iter().enumerate().map(|(index, entry)| {
        let change = match entry.op {
            Op::Insert => entry.fact.concrete().map(Change::Insert),
            Op::Delete => entry.fact.selected(),
        };
        change.map_err(|problem| format!("entry {}: {problem}", index + 1))
    });
    checked.collect()
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the body cannot be read: {error}"))
}

fn entries(op: Op, facts: Vec<WireFact>) -> impl Iterator<Item = Entry> {
    facts.into_iter().map(move |fact| Entry { op, fact })
}

impl WireFact {
    fn concrete(self) -> Result<Fact, String> {
        let predicate = self.predicate.text("predicate")?.ok_or("the predicate is missing")?;
        let args = self.args.into_iter().enumerate().map(|(index, arg)| {
            let pattern = arg.pattern().map_err(|problem| format!("argument {}: {problem}", index + 1))?;
            match pattern {
                PatternValue { type_name: Some(type_name), id: Some(id) } => Ok(Value { type_name, id }),
                PatternValue { .. } => Err(format!("argument {}: a fact to insert needs a type and an id, not a wildcard", index + 1)),
            }
        });
        let fact = Fact { predicate, args: args.collect::<Result<_, String>>()? };
        check_insert(&fact)?;
        Ok(fact)
    }

    /// What to delete. What no stored fact can have is no error, as it is none to delete what is not there; only `*` and empty
    /// ids are, because whoever sends them means a wildcard, and must not believe that something was revoked.
    fn selected(self) -> Result<Change, String> {
        let predicate = self.predicate.text("predicate")?.ok_or("the predicate is missing")?;
        check_arity(self.args.len())?;
        let mut args = Vec::with_capacity(self.args.len());
        for (index, arg) in self.args.into_iter().enumerate() {
            let pattern = arg.pattern().map_err(|problem| format!("argument {}: {problem}", index + 1))?;
            if matches!(pattern.id.as_deref(), Some("" | "*")) {
                return Err(format!("argument {}: an id is empty or \"*\"; a wildcard is null", index + 1));
            }
            args.push(pattern);
        }
        if args.iter().any(|arg| arg.type_name.is_none() || arg.id.is_none()) {
            return Ok(Change::DeleteMatching(Selection { predicate: Some(predicate), args, arity: Arity::Exact }));
        }
        let value = |arg: PatternValue| Some(Value { type_name: arg.type_name?, id: arg.id? });
        Ok(Change::Delete(Fact { predicate, args: args.into_iter().filter_map(value).collect() }))
    }
}

impl WireValue {
    fn pattern(self) -> Result<PatternValue, String> {
        let id = match self.id {
            Part::Integer(digits) => Some(digits),
            other => other.text("id")?,
        };
        Ok(PatternValue { type_name: self.type_name.text("type")?, id })
    }
}

/// What a query string selects: `predicate=…&args.0.type=…&args.0.id=…`, in any order, wildcards left out.
pub(super) fn selection(query: &str) -> Result<Selection, String> {
    let mut selection = Selection { predicate: None, args: Vec::new(), arity: Arity::AtLeast };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name == "predicate" {
            selection.predicate = Some(value.into_owned());
        } else if let Some(place) = name.strip_prefix("args.") {
            let (position, part) = place.split_once('.').unwrap_or((place, ""));
            let position: usize = position.parse().map_err(|_| unknown(&name))?;
            // Any position past the last makes a pattern that nothing matches; the exact one does not matter.
            let position = position.min(MAX_ARGUMENTS);
            if selection.args.len() <= position {
                selection.args.resize(position + 1, PatternValue::default());
            }
            match part {
                "type" => selection.args[position].type_name = Some(value.into_owned()),
                "id" => selection.args[position].id = Some(value.into_owned()),
                _ => return Err(unknown(&name)),
            }
        }
    }
    Ok(selection)
}

fn unknown(name: &str) -> String {
    format!("the query parameter \"{name}\" is not understood; arguments are args.N.type and args.N.id, N from 0")
}
