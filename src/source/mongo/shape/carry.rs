//! How the `_id` of a document gets to the end of the pipeline; [`shape`](super) says why there are two ways.

use mongodb::bson::{Bson, Document, doc};

use crate::source::mongo::shape::{
    SOURCE_ID,
    origin::{self, Projection},
    parts, scan,
};

/// Texts that stand for a document as a whole, the field we add among its fields.
const WHOLE_DOCUMENT: [&str; 2] = ["$$ROOT", "$$CURRENT"];
/// Operators that look at a document's fields in general, or at one whose name is computed. (`$objectToArray` and `$mergeObjects`
/// do so too, and get hold of the whole document only by [`WHOLE_DOCUMENT`].)
const ANY_FIELD: [&str; 5] = ["$redact", "$getField", "$setField", "$unsetField", "$jsonSchema"];
/// Where the isolated pipeline's answer stands.
const OUTPUT: &str = "output";

/// How the pipeline's output says which document it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carry {
    /// By the field [`SOURCE_ID`] in each stage's documents.
    Field,
    /// By the document around it: the pipeline runs on one document at a time, in a `$lookup`.
    Isolated,
}

impl Carry {
    /// The faster one that is safe.
    pub(super) fn of(stages: &[Document]) -> Self {
        let seen = WHOLE_DOCUMENT.iter().any(|text| scan::has_text(stages, text)) || ANY_FIELD.iter().any(|key| scan::has_key(stages, key));
        if seen { Self::Isolated } else { Self::Field }
    }
}

/// The same stage, and the field goes through it.
pub(super) fn keeping_the_id(stage: &Document) -> Document {
    match parts(stage) {
        ("$project", Bson::Document(given)) => {
            let mut given = given.clone();
            match origin::projection(&given) {
                Projection::Including => drop(given.insert(SOURCE_ID, 1)),
                Projection::Excluding => {}
            }
            doc! { "$project": given }
        }
        ("$replaceRoot", Bson::Document(given)) => match given.get("newRoot") {
            Some(root) => doc! { "$replaceRoot": { "newRoot": with_the_id(root) } },
            None => stage.clone(),
        },
        ("$replaceWith", root) => doc! { "$replaceWith": with_the_id(root) },
        _ => stage.clone(),
    }
}

/// The pipeline on one document at a time, each found again by its `_id`.
pub(super) fn isolated(collection: &str, pipeline: Vec<Document>) -> [Document; 4] {
    let output = format!("${OUTPUT}");
    let itself = doc! { "from": collection, "localField": "_id", "foreignField": "_id", "pipeline": pipeline, "as": OUTPUT };
    [
        doc! { "$project": { "_id": 1 } },
        doc! { "$lookup": itself },
        doc! { "$unwind": &output },
        doc! { "$replaceWith": { "$mergeObjects": [&output, { SOURCE_ID: "$_id" }] } },
    ]
}

/// A new root and the field. What is no document stays as it is, so that the server fails as it does without us.
fn with_the_id(root: &Bson) -> Document {
    let is_document = doc! { "$eq": [{ "$type": "$$root" }, "object"] };
    let both = doc! { "$mergeObjects": ["$$root", { SOURCE_ID: format!("${SOURCE_ID}") }] };
    doc! { "$let": { "vars": { "root": root.clone() }, "in": { "$cond": [is_document, both, "$$root"] } } }
}
