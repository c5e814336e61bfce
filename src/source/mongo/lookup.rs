//! Which documents a changed foreign document touches through a `$lookup`.
//!
//! `$lookup` joins by equality, so a document can only find a foreign one whose value it has: a document's rows can differ
//! between two times only if it changed itself or has a value that a changed foreign document had at the one time or has at
//! the other. [`affected`] asks for all that do; it may name more documents than the join finds and must not name fewer. The
//! cases in which the join finds more than a plain comparison would:
//!
//! - An array stands for itself and for its elements, on both sides. All of them are collected from the foreign document,
//!   however deep; `$in` compares with both on the local side.
//! - Missing, null, an empty array and a path that leads nowhere are all null to a `$lookup`. A foreign null asks for all four.
//!   An earlier `$unwind` of a document around the local field makes a document of each element, and each that has nothing
//!   there is null too; no index tells them, so a foreign null then has the main collection read.
//! - A regular expression is only equal to itself; `equals_any` sees to that.
//! - An earlier `$unwind` brings out what is inside an array in an array, which no index knows and no filter compares. Where the
//!   unwound path is the local field itself, every document with such an array is named. Where it only leads there,
//!   [`refuse_arrays_in_arrays`] finds such documents when they are read, and the view must be refreshed.
//!
//! The comparison is by the main collection's collation, which `$lookup` takes too.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use mongodb::{
    bson::{Bson, Document, Timestamp, doc},
    error::{Error, ErrorKind},
};

use crate::source::mongo::{
    client::Server,
    read::{Documents, ReadError, commands},
    shape::{Lookup, PerDocument, equals_any, key},
};

/// `NamespaceNotFound`: the collection does not exist.
const NAMESPACE_NOT_FOUND: i32 = 26;

/// The documents that changed foreign documents touch, as they are found.
///
/// However many they are, at most one answer of the server (16 MiB) is in memory, and the values of [`commands`]' number of
/// changed documents. A document may come more than once.
pub(super) struct Affected<'a> {
    server: &'a Server,
    view: &'a PerDocument,
    lookup: &'a Lookup,
    times: [Timestamp; 2],
    /// Slices of changed ids whose values have not been read.
    changed: Vec<&'a [Bson]>,
    /// Filters that have not been asked.
    filters: Vec<Document>,
    found: Option<Documents>,
}

/// Which documents of the view's collection may find one of the `changed` foreign documents (by `_id`) at the time `before` or
/// `after`. Read them with [`Affected::next`].
pub(super) fn affected<'a>(
    server: &'a Server,
    view: &'a PerDocument,
    lookup: &'a Lookup,
    changed: &'a [Bson],
    before: Timestamp,
    after: Timestamp,
) -> Affected<'a> {
    Affected { server, view, lookup, times: [before, after], changed: commands(changed).collect(), filters: Vec::new(), found: None }
}

impl Affected<'_> {
    /// The `_id`s of some more of them; `None` when that was all.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Bson>>, ReadError> {
        loop {
            if let Some(found) = &mut self.found {
                if let Some(documents) = found.next().await? {
                    return Ok(Some(documents.into_iter().filter_map(|mut document| document.remove("_id")).collect()));
                }
                self.found = None;
            }
            if let Some(filter) = self.filters.pop() {
                let after = self.times[1];
                self.found = Some(self.server.find_at(&self.view.collection, filter, doc! { "_id": 1 }, after).await?);
            } else if let Some(changed) = self.changed.pop() {
                self.filters = self.filters_for(changed).await?;
            } else {
                return Ok(None);
            }
        }
    }

    async fn filters_for(&mut self, changed: &[Bson]) -> Result<Vec<Document>, ReadError> {
        let values: Vec<Bson> = self.values(changed).await?.into_values().collect();
        let local = &self.lookup.local_field;
        let mut filters: Vec<Document> = commands(&values).map(|values| equals_any(local, values)).collect();
        if values.contains(&Bson::Null) {
            filters.push(doc! { local: { "$in": [[]] } });
            filters.push(doc! { local: { "$exists": false } });
            let ways = self.lookup.unwound.iter().filter_map(|path| Some((path, local.strip_prefix(path)?.strip_prefix('.')?)));
            let elements: Vec<Document> = ways.flat_map(|(path, rest)| null_elements(path, rest)).collect();
            if !elements.is_empty() {
                filters.push(doc! { "$or": elements });
            }
        }
        if !values.is_empty() && self.lookup.unwound.contains(local) {
            filters.push(array_in_array(local));
        }
        Ok(filters)
    }

    /// What a local value may be compared with to find one of these foreign documents, once each.
    async fn values(&mut self, changed: &[Bson]) -> Result<BTreeMap<String, Bson>, ReadError> {
        let foreign = &self.lookup.foreign_field;
        let mut values = BTreeMap::new();
        if foreign == "_id" {
            // It never changes and is no array.
            values.extend(changed.iter().map(|id| (key(id), id.clone())));
            return Ok(values);
        }
        for at in self.times {
            let projection = doc! { foreign: 1 };
            let mut documents = self.server.find_at(&self.lookup.from, equals_any("_id", changed), projection, at).await?;
            while let Some(documents) = documents.next().await? {
                documents.into_iter().for_each(|document| collect(&Bson::Document(document), Some(foreign), &mut values));
            }
        }
        Ok(values)
    }
}

/// Adds everything that `path` leads to; null for each way that leads nowhere.
fn collect(value: &Bson, path: Option<&str>, values: &mut BTreeMap<String, Bson>) {
    let (name, rest) = path.map_or((None, None), |path| match path.split_once('.') {
        Some((name, rest)) => (Some(name), Some(rest)),
        None => (Some(path), None),
    });
    match (value, name) {
        (Bson::Array(items), _) => {
            items.iter().for_each(|item| collect(item, path, values));
            if items.is_empty() {
                insert(&Bson::Null, values);
            }
            if name.is_none() {
                insert(value, values);
            }
        }
        (Bson::Document(document), Some(name)) => collect(document.get(name).unwrap_or(&Bson::Null), rest, values),
        (_, Some(_)) | (Bson::Undefined, None) => insert(&Bson::Null, values),
        (value, None) => insert(value, values),
    }
}

fn insert(value: &Bson, values: &mut BTreeMap<String, Bson>) {
    values.entry(key(value)).or_insert_with(|| value.clone());
}

/// Makes sure that no document (of those with `ids`, or of all) has an array in an array on the way to a lookup's local field
/// that an `$unwind` would bring out. Asks nothing for a view that does not unwind such a path.
pub(super) async fn refuse_arrays_in_arrays(
    server: &Server,
    view: &PerDocument,
    ids: Option<&[Bson]>,
    at: Timestamp,
) -> Result<(), ReadError> {
    let ways = view.lookups.iter().flat_map(|lookup| lookup.unwound.iter().filter(|path| **path != lookup.local_field));
    let ways: Vec<&String> = ways.collect();
    for path in ways {
        let chosen = ids.map(|ids| doc! { "$match": equals_any("_id", ids) });
        let nested = [doc! { "$match": array_in_array(path) }, doc! { "$limit": 1 }, doc! { "$project": { "_id": 1 } }];
        let pipeline = chosen.into_iter().chain(nested).collect();
        let mut documents = match ids {
            Some(_) => server.aggregate_ids_at(&view.collection, pipeline, at).await?,
            None => server.aggregate_at(&view.collection, pipeline, at).await?,
        };
        while let Some(documents) = documents.next().await? {
            if !documents.is_empty() {
                return Err(ReadError::ArrayInArray { path: path.clone() });
            }
        }
    }
    Ok(())
}

/// The documents with an array at `path` in which some element has nothing at `rest`, by itself.
fn null_elements(path: &str, rest: &str) -> [Document; 3] {
    [doc! { "$not": { "$type": "object" } }, doc! { rest: { "$in": [null, []] } }, doc! { rest: { "$exists": false } }]
        .map(|element| doc! { path: { "$elemMatch": element } })
}

fn array_in_array(path: &str) -> Document {
    doc! { path: { "$elemMatch": { "$type": "array" } } }
}

/// Whether [`affected`] can use an index: one of the view's collection that starts with the local field and has every
/// document under the collection's own collation. A collection that does not exist has none.
pub(super) async fn indexed(server: &Server, view: &PerDocument, lookup: &Lookup) -> Result<bool, Error> {
    if lookup.local_field == "_id" {
        return Ok(true);
    }
    let listed = server.database.run_cursor_command(doc! { "listIndexes": &view.collection }).await;
    let indexes: Vec<Document> = match listed {
        Ok(indexes) => indexes.try_collect().await?,
        Err(error) => match &*error.kind {
            ErrorKind::Command(command) if command.code == NAMESPACE_NOT_FOUND => return Ok(false),
            _ => return Err(error),
        },
    };
    let first_is = |index: &Document, field: &str| {
        let first = index.get_document("key").ok().and_then(|keys| keys.iter().next());
        first.is_some_and(|(name, order)| name == field && matches!(order, Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_)))
    };
    let own_collation = indexes.iter().find(|index| first_is(index, "_id")).and_then(|index| index.get("collation"));
    let whole = |index: &Document| !["partialFilterExpression", "sparse", "hidden"].iter().any(|option| index.contains_key(option));
    Ok(indexes.iter().any(|index| first_is(index, &lookup.local_field) && whole(index) && index.get("collation") == own_collation))
}
