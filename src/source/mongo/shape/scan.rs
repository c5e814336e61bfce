//! What a query names, wherever it stands: operators, variables, collections.
//!
//! A query is searched as a value, without telling expressions from plain data, so a document that is compared with
//! `{$rand: 1}` is taken for an expression. What is wrapped in `$literal` is data and is left alone. Only a needless refusal can
//! come of that, and it names its cause.

use std::collections::BTreeSet;

use mongodb::bson::{Bson, Document};

use crate::source::mongo::shape::shown::shown;

/// Operators that draw lots.
const CHANCE: [&str; 4] = ["$rand", "$sampleRate", "$sample", "$createObjectId"];
/// Operators that read the server's state, which no change stream reports.
const SERVER_STATE: [&str; 14] = [
    "$indexStats",
    "$collStats",
    "$currentOp",
    "$listSessions",
    "$listLocalSessions",
    "$listCatalog",
    "$listClusterCatalog",
    "$listSampledQueries",
    "$listSearchIndexes",
    "$planCacheStats",
    "$queryStats",
    "$querySettings",
    "$shardedDataDistribution",
    "$changeStream",
];
/// Operators of the search indexes, which follow their collection some time later.
const SEARCH: [&str; 3] = ["$search", "$searchMeta", "$vectorSearch"];
/// Operators that run JavaScript. `Math.random()` and `new Date()` are among what it may call, and MongoDB deprecates it.
const JAVASCRIPT: [&str; 4] = ["$where", "$function", "$accumulator", "$mapReduce"];
/// Variables that change with time, and `$$USER_ROLES`, which changes with the server's users.
const VARIABLES: [&str; 3] = ["NOW", "CLUSTER_TIME", "USER_ROLES"];
/// Stages that read a collection, and where they say which.
const READING: [(&str, &str); 3] = [("$lookup", "from"), ("$graphLookup", "from"), ("$unionWith", "coll")];

/// Something in a query that has a name.
enum Name<'a> {
    /// A field or an operator, and what it is given.
    Key(&'a str, &'a Bson),
    /// A text value: a path, a variable or data.
    Text(&'a str),
}

/// What a stage says it reads.
struct Foreign<'a> {
    database: Option<&'a str>,
    collection: Option<&'a str>,
}

/// Why the query cannot be followed at all, and what to do instead.
pub(super) fn refused(stages: &[Document]) -> Option<String> {
    search(stages, |name| match name {
        Name::Key(key, given) => refused_operator(key, given).or_else(|| other_database(key, given)),
        Name::Text(text) => refused_variable(text),
    })
}

/// Whether `key` is somewhere in the query.
pub(super) fn has_key(stages: &[Document], key: &str) -> bool {
    search(stages, |name| matches!(name, Name::Key(found, _) if found == key).then_some(())).is_some()
}

/// Whether `text` is a whole text somewhere in the query.
pub(super) fn has_text(stages: &[Document], text: &str) -> bool {
    search(stages, |name| matches!(name, Name::Text(found) if found == text).then_some(())).is_some()
}

/// Whether `part` is part of a key or a text of the query.
pub(super) fn mentions(stages: &[Document], part: &str) -> bool {
    search(stages, |name| match name {
        Name::Key(found, _) | Name::Text(found) => found.contains(part).then_some(()),
    })
    .is_some()
}

/// Every collection that the query reads, `main` among them.
pub(super) fn collections(main: &str, stages: &[Document]) -> BTreeSet<String> {
    let mut collections = BTreeSet::from([main.to_owned()]);
    search::<()>(stages, |name| {
        if let Name::Key(key, given) = name
            && let Some(Foreign { collection: Some(collection), .. }) = foreign(key, given)
        {
            collections.insert(collection.to_owned());
        }
        None
    });
    collections
}

/// The first stage in a `$lookup`'s own pipeline that reads a collection.
pub(super) fn reading_stage(pipeline: &Bson) -> Option<&'static str> {
    found(pipeline, &mut |name| match name {
        Name::Key(key, _) => READING.into_iter().find(|(stage, _)| *stage == key).map(|(stage, _)| stage),
        Name::Text(_) => None,
    })
}

fn refused_operator(key: &str, given: &Bson) -> Option<String> {
    let why = match key {
        _ if CHANCE.contains(&key) => "depends on chance, so no two answers need be the same; write the query without it",
        _ if SERVER_STATE.contains(&key) => "reads the server's state, of which no change is reported; use \"reconcile\" for it",
        // `$text` has a `$search` too, which is a text.
        _ if SEARCH.contains(&key) && given.as_document().is_some() => {
            "reads a search index, which lags behind its collection; filter with $match instead"
        }
        _ if JAVASCRIPT.contains(&key) => {
            "runs JavaScript, which may depend on time and chance; write it with aggregation operators, in $expr if it is a condition"
        }
        _ => return None,
    };
    Some(format!("{key} {why}"))
}

fn refused_variable(text: &str) -> Option<String> {
    let name = text.strip_prefix("$$")?.split('.').next()?;
    let variable = VARIABLES.into_iter().find(|variable| *variable == name)?;
    Some(match variable {
        "USER_ROLES" => "$$USER_ROLES depends on who asks; write the query without it".to_owned(),
        variable => format!(
            "$${variable} depends on the time, which passes without a change in the database; \
             let the application write what follows from the time into the document"
        ),
    })
}

/// `from: {db, coll}`: another database has a change stream of its own.
fn other_database(key: &str, given: &Bson) -> Option<String> {
    let foreign = foreign(key, given)?;
    let database = shown(foreign.database?);
    let collection = shown(foreign.collection.unwrap_or("?"));
    Some(format!("{key} reads collection {collection} of database {database}; a query can only read the database of its connection string"))
}

/// Which collection `key` reads, if it reads one.
fn foreign<'a>(key: &str, given: &'a Bson) -> Option<Foreign<'a>> {
    let (_, place) = READING.into_iter().find(|(stage, _)| *stage == key)?;
    let named = |document: &'a Document| Foreign { database: document.get_str("db").ok(), collection: document.get_str("coll").ok() };
    let given = match given {
        Bson::String(collection) => return Some(Foreign { database: None, collection: Some(collection) }),
        given => given.as_document()?,
    };
    Some(match given.get(place) {
        Some(Bson::Document(other)) => named(other),
        Some(Bson::String(collection)) => Foreign { collection: Some(collection), ..named(given) },
        _ => named(given),
    })
}

fn search<T>(stages: &[Document], mut want: impl FnMut(Name<'_>) -> Option<T>) -> Option<T> {
    stages.iter().find_map(|stage| found_in(stage, &mut want))
}

fn found<T>(value: &Bson, want: &mut dyn FnMut(Name<'_>) -> Option<T>) -> Option<T> {
    match value {
        Bson::Document(document) => found_in(document, want),
        Bson::Array(items) => items.iter().find_map(|item| found(item, want)),
        Bson::String(text) => want(Name::Text(text)),
        _ => None,
    }
}

fn found_in<T>(document: &Document, want: &mut dyn FnMut(Name<'_>) -> Option<T>) -> Option<T> {
    document.iter().find_map(|(key, value)| {
        let inner = |want: &mut dyn FnMut(Name<'_>) -> Option<T>| if key == "$literal" { None } else { found(value, want) };
        want(Name::Key(key, value)).or_else(|| inner(want))
    })
}
