//! How a query can be followed: document by document, as a whole, or not at all.
//!
//! A pipeline maps documents to rows **document by document** if what it makes of a collection is the sum of what it makes of
//! each document alone. `$match`, `$project`, `$set`, `$unset`, `$unwind`, `$replaceRoot` and `$redact` do, whatever the
//! expressions in them, as long as nothing in the query depends on time or chance. A `$lookup` does too for fixed foreign
//! collections; it is followed if [`affected`](super::lookup::affected) can say which documents a changed foreign one touches.
//! A stage that is not known is refused: what it reads cannot be told, and a collection that is missed is a revocation that is
//! missed.
//!
//! # Which document a row comes from
//!
//! The pipeline's output must tell, and the query's stages may drop or replace `_id`. There are two ways ([`carry`]):
//!
//! - *By a field.* `_id` is copied into [`SOURCE_ID`] and every stage that would lose it is amended to keep it. The stages must
//!   not see the field: no string of the query names it (such a query is refreshed), and none of them looks at a document as a
//!   whole (`$$ROOT`, `$$CURRENT`, `$getField` and its kin, `$jsonSchema`, `$redact`).
//! - *Isolated.* The stages run untouched, inside a `$lookup` of the document by its own `_id`. So nothing can go wrong,
//!   at a tenth of the speed (mongod 6.0: 12,000 documents a second and 200,000); what is not provably safe goes this way.

mod carry;
mod key;
mod origin;
mod scan;
mod shown;

use std::collections::BTreeSet;

use mongodb::bson::{Bson, Document, doc};

use crate::{
    config::{MongoField, MongoQuery, MongoSelect},
    data::Row,
    source::mongo::{
        decode,
        query::{self, projection},
        shape::{carry::Carry, origin::Origin, shown::shown},
    },
};

pub(super) use key::{equals_any, key};

/// The field that holds the `_id` of the document that an output document comes from.
pub(super) const SOURCE_ID: &str = "__factsync_id";

/// Stages whose answer for a collection is the sum of their answers for each document.
const PER_DOCUMENT: [&str; 9] =
    ["$match", "$project", "$addFields", "$set", "$unset", "$unwind", "$replaceRoot", "$replaceWith", "$redact"];
/// Stages that put several documents together, and whose answer changes only when one of the collections they name does.
const MIXING: [&str; 14] = [
    "$group",
    "$sort",
    "$limit",
    "$skip",
    "$facet",
    "$graphLookup",
    "$unionWith",
    "$sortByCount",
    "$bucket",
    "$bucketAuto",
    "$count",
    "$setWindowFields",
    "$densify",
    "$fill",
];
/// Query operators that need a certain plan, so that they cannot be asked about chosen documents.
const PLAN_BOUND: [&str; 5] = ["$geoNear", "$near", "$nearSphere", "$text", "$meta"];

/// How a query can be followed.
#[derive(Debug)]
pub(super) enum Shape {
    /// The rows of each document are known, and which documents a change touches.
    PerDocument(PerDocument),
    /// Run again when one of `collections` changes.
    Refresh {
        /// Why it is not followed document by document.
        reason: String,
        /// Every collection that the query reads.
        collections: BTreeSet<String>,
    },
    /// It cannot be followed, and why, with what to do instead.
    Refused(String),
}

/// A query that is followed document by document.
#[derive(Debug)]
pub(super) struct PerDocument {
    /// The collection whose documents make the rows.
    pub(super) collection: String,
    /// The other documents that rows depend on.
    pub(super) lookups: Vec<Lookup>,
    stages: Vec<Document>,
    carry: Carry,
    fields: Vec<MongoField>,
}

/// A `$lookup` by equality.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup {
    /// The foreign collection.
    pub(super) from: String,
    /// A path of the original document.
    pub(super) local_field: String,
    /// A path of the foreign document.
    pub(super) foreign_field: String,
    /// What earlier stages unwind of `local_field`: itself or paths that lead to it.
    pub(super) unwound: Vec<String>,
}

impl Shape {
    /// Judges a query. An error says which part of it is no Extended JSON.
    pub(super) fn of(query: &MongoQuery) -> Result<Self, String> {
        let stages = stages(query)?;
        if let Some(reason) = scan::refused(&stages) {
            return Ok(Self::Refused(reason));
        }
        if let Some((number, name)) = unknown(&stages) {
            return Ok(Self::Refused(format!(
                "stage {number} is {name}, which factsync does not know, so it cannot tell what the stage reads; \
                 write the query without it"
            )));
        }
        Ok(match per_document(query, &stages) {
            Ok(lookups) => {
                let carry = Carry::of(&stages);
                Self::PerDocument(PerDocument {
                    collection: query.collection.clone(),
                    lookups,
                    stages,
                    carry,
                    fields: query.fields.clone(),
                })
            }
            Err(reason) => Self::Refresh { reason, collections: scan::collections(&query.collection, &stages) },
        })
    }
}

impl PerDocument {
    /// A pipeline on [`Self::collection`] whose output documents hold the query's fields and, under [`SOURCE_ID`], the `_id` of
    /// the document they come from: of the documents with these `ids`, or of all.
    pub(super) fn pipeline(&self, ids: Option<&[Bson]>) -> Vec<Document> {
        let chosen = ids.map(|ids| doc! { "$match": equals_any("_id", ids) });
        let mut projection = projection(&self.fields);
        let filters = self.stages.iter().take_while(|stage| stage.contains_key("$match")).count();
        let (filters, rest) = self.stages.split_at(filters);
        let mut pipeline: Vec<Document> = chosen.into_iter().chain(filters.iter().cloned()).collect();
        match self.carry {
            Carry::Field => {
                projection.insert(SOURCE_ID, 1);
                pipeline.push(doc! { "$set": { SOURCE_ID: "$_id" } });
                pipeline.extend(rest.iter().map(carry::keeping_the_id));
                pipeline.push(doc! { "$project": projection });
            }
            Carry::Isolated => {
                let inner = rest.iter().cloned().chain([doc! { "$project": projection }]).collect();
                pipeline.extend(carry::isolated(&self.collection, inner));
            }
        }
        pipeline
    }

    /// Every collection that the query reads.
    pub(super) fn collections(&self) -> BTreeSet<String> {
        scan::collections(&self.collection, &self.stages)
    }

    /// The rows of an output document.
    pub(super) fn rows(&self, output: &Document) -> Vec<Row> {
        decode::rows(output, &self.fields)
    }
}

fn stages(query: &MongoQuery) -> Result<Vec<Document>, String> {
    match &query.select {
        MongoSelect::Find(filter) => Ok(vec![doc! { "$match": query::document("find", filter)? }]),
        MongoSelect::Aggregate(stages) => {
            let stage = |(index, stage)| query::document(&format!("stage {} of aggregate", index + 1), stage);
            stages.iter().enumerate().map(stage).collect()
        }
    }
}

/// A stage's operator and what it is given. A stage has one operator, which reading the configuration has made sure of.
fn parts(stage: &Document) -> (&str, &Bson) {
    stage.iter().next().map_or(("", &Bson::Null), |(name, given)| (name.as_str(), given))
}

/// The first stage that is not known, and its number.
fn unknown(stages: &[Document]) -> Option<(usize, &str)> {
    let known = |name: &str| PER_DOCUMENT.contains(&name) || MIXING.contains(&name) || ["$lookup", "$geoNear"].contains(&name);
    let mut names = stages.iter().enumerate().map(|(index, stage)| (index + 1, parts(stage).0));
    names.find(|(_, name)| !known(name))
}

/// The lookups of a query that can be followed document by document, or why it cannot.
fn per_document(query: &MongoQuery, stages: &[Document]) -> Result<Vec<Lookup>, String> {
    if let Some(operator) = PLAN_BOUND.into_iter().find(|operator| scan::has_key(stages, operator)) {
        return Err(format!("{operator} cannot be asked about chosen documents"));
    }
    if scan::mentions(stages, SOURCE_ID) || query.fields.iter().any(|field| field.name.contains(SOURCE_ID)) {
        return Err(format!("the query names the field {SOURCE_ID}, which factsync needs for itself"));
    }
    let mut lookups = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let (name, given) = parts(stage);
        if name == "$lookup" {
            let problem = |problem: String| format!("stage {} is a $lookup {problem}", index + 1);
            lookups.push(lookup(given, &stages[..index]).map_err(problem)?);
        } else if MIXING.contains(&name) {
            return Err(format!("stage {} is {name}, which mixes documents", index + 1));
        }
    }
    Ok(lookups)
}

/// What a `$lookup` needs so that it can be followed, or what it has instead.
fn lookup(given: &Bson, earlier: &[Document]) -> Result<Lookup, String> {
    let text = |name: &str| given.as_document().and_then(|given| given.get_str(name).ok());
    let (Some(from), Some(local_field), Some(foreign_field)) = (text("from"), text("localField"), text("foreignField")) else {
        return Err("without from, localField and foreignField".to_owned());
    };
    if let Some(inner) = given.as_document().and_then(|given| given.get("pipeline"))
        && let Some(stage) = scan::reading_stage(inner)
    {
        return Err(format!("whose own pipeline reads another collection with {stage}"));
    }
    for (path, role) in [(local_field, "localField"), (foreign_field, "foreignField")] {
        if path.split('.').any(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(format!("whose {role} {} has a number for a name, which may count elements", shown(path)));
        }
    }
    match origin::of(earlier, local_field) {
        Origin::Document { unwound } => {
            Ok(Lookup { from: from.to_owned(), local_field: local_field.to_owned(), foreign_field: foreign_field.to_owned(), unwound })
        }
        Origin::Computed { stage, name } => Err(format!("whose localField {} stage {stage}, {name}, replaces", shown(local_field))),
    }
}

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
