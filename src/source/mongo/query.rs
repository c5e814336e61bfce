//! A configured query as the driver takes it.

use mongodb::{
    bson::{Document, Timestamp, doc},
    error::Error,
};
use serde_json::Value;

use crate::{
    config::{MongoField, MongoQuery, MongoSelect},
    source::mongo::{
        client::Server,
        read::{Documents, ReadError},
    },
};

/// A query whose Extended JSON has been read.
pub(super) struct Query<'a> {
    pub(super) fields: &'a [MongoField],
    collection: &'a str,
    select: Select,
    projection: Document,
}

enum Select {
    Find(Document),
    Aggregate(Vec<Document>),
}

impl<'a> Query<'a> {
    /// Reads the Extended JSON; the error says which part is none.
    pub(super) fn new(query: &'a MongoQuery) -> Result<Self, String> {
        let select = match &query.select {
            MongoSelect::Find(filter) => Select::Find(document("find", filter)?),
            MongoSelect::Aggregate(stages) => {
                let stage = |(index, stage)| document(&format!("stage {} of aggregate", index + 1), stage);
                Select::Aggregate(stages.iter().enumerate().map(stage).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { fields: &query.fields, collection: &query.collection, select, projection: projection(&query.fields) })
    }

    /// Starts reading, at a time.
    pub(super) async fn open(&self, server: &Server, at: Timestamp) -> Result<Documents, ReadError> {
        server.read_at(self.command(), at).await
    }

    /// Lets the server judge the query without reading a document, so an error is about the query and quotes nothing else.
    pub(super) async fn explain(&self, server: &Server) -> Result<(), Error> {
        let mut command = self.command();
        if let Select::Aggregate(_) = self.select {
            command.insert("cursor", doc! {});
        }
        server.run(doc! { "explain": command, "verbosity": "queryPlanner" }).await.map(drop)
    }

    fn command(&self) -> Document {
        match &self.select {
            Select::Find(filter) => doc! { "find": self.collection, "filter": filter.clone(), "projection": self.projection.clone() },
            Select::Aggregate(_) => doc! { "aggregate": self.collection, "pipeline": self.pipeline(), "allowDiskUse": true },
        }
    }

    fn pipeline(&self) -> Vec<Document> {
        match &self.select {
            Select::Find(_) => Vec::new(),
            Select::Aggregate(stages) => stages.iter().cloned().chain([doc! { "$project": self.projection.clone() }]).collect(),
        }
    }
}

/// Reads one object in MongoDB Extended JSON, version 2 (`$oid`, `$date`, `$numberDecimal` and so on).
pub(super) fn document(part: &str, json: &Value) -> Result<Document, String> {
    serde_json::from_value(json.clone()).map_err(|error| format!("could not read {part} as Extended JSON: {error}"))
}

/// The needed fields only. MongoDB refuses a path together with what lies below it, so the shorter one stands for both.
pub(super) fn projection(fields: &[MongoField]) -> Document {
    let below = |path: &str, other: &str| path.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'));
    let mut projection = Document::new();
    for MongoField { name, .. } in fields {
        if !fields.iter().any(|other| below(name, &other.name)) {
            projection.insert(name, 1);
        }
    }
    if !fields.iter().any(|field| field.name == "_id" || below(&field.name, "_id")) {
        projection.insert("_id", 0);
    }
    projection
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Bson, DateTime, oid::ObjectId};
    use serde_json::json;

    #[test]
    fn extended_json_becomes_the_types_it_names() {
        let hex = "65f0a1b2c3d4e5f601020304";
        let read = document(
            "find",
            &json!({
                "_id": {"$oid": hex},
                "at": {"$gt": {"$date": "2026-01-02T03:04:05Z"}},
                "n": {"$numberLong": "7"},
                "m": 7,
                "d": {"$numberDecimal": "1.5"},
            }),
        )
        .expect("read");
        assert_eq!(read.get_object_id("_id").expect("an id"), hex.parse::<ObjectId>().expect("hexadecimal"));
        let at = read.get_document("at").expect("a document").get_datetime("$gt").expect("a date");
        assert_eq!(*at, DateTime::parse_rfc3339_str("2026-01-02T03:04:05Z").expect("a date"));
        assert_eq!((read.get("n"), read.get("m")), (Some(&Bson::Int64(7)), Some(&Bson::Int32(7))));
        assert!(matches!(read.get("d"), Some(Bson::Decimal128(_))), "{:?}", read.get("d"));
    }

    #[test]
    fn what_is_no_extended_json_is_named() {
        let error = document("stage 2 of aggregate", &json!({"_id": {"$oid": "xyz"}})).expect_err("no id");
        assert!(error.starts_with("could not read stage 2 of aggregate as Extended JSON: "), "{error}");
        document("find", &json!([])).expect_err("no object");
    }

    #[test]
    fn a_projection_names_each_field_once_and_no_id_unasked() {
        let project = |names: &[&str]| {
            let fields: Vec<MongoField> = names.iter().map(|&name| MongoField { name: name.to_owned(), is_array: false }).collect();
            projection(&fields)
        };
        assert_eq!(project(&["_id", "a"]), doc! {"_id": 1, "a": 1});
        assert_eq!(project(&["a.b", "a", "ab", "a"]), doc! {"a": 1, "ab": 1, "_id": 0});
        assert_eq!(project(&["_id.user"]), doc! {"_id.user": 1});
    }
}
