//! The fact types of the tests: a view of every class, over the collections that the random operations write.

use mongodb::bson::Document;
use serde_json::{Value, json};

/// A fact type whose arguments are all variables, and its query.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) signature: &'static str,
    pub(super) collection: &'static str,
    pub(super) select: Select,
    /// Paths; the one that ends in `[]` is unwound.
    pub(super) fields: &'static [&'static str],
    pub(super) mode: Mode,
}

/// A query, in Extended JSON.
#[derive(Debug, Clone)]
pub(super) enum Select {
    Find(Value),
    Aggregate(Value),
}

/// How factsync has to keep it up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A changed document costs that document.
    Incremental,
    /// A change costs the whole query.
    Refresh,
}

impl View {
    pub(super) fn predicate(&self) -> &'static str {
        self.signature.split_once('(').expect("a signature").0
    }

    /// What the configuration says of it.
    pub(super) fn config(&self) -> Value {
        let field = |field: &&str| match field.strip_suffix("[]") {
            Some(name) => json!({ "name": name, "is_array": true }),
            None => json!(field),
        };
        let query = match &self.select {
            Select::Find(filter) => json!({ "find": filter }),
            Select::Aggregate(stages) => json!({ "aggregate": stages }),
        };
        let fields: Vec<Value> = self.fields.iter().map(field).collect();
        json!({ "db": "app", "collection": self.collection, "query": query, "fields": fields })
    }

    /// The query as stages for a driver.
    pub(super) fn stages(&self) -> Vec<Document> {
        let stages = match &self.select {
            Select::Find(filter) => json!([{ "$match": filter }]),
            Select::Aggregate(stages) => stages.clone(),
        };
        serde_json::from_value(stages).expect("Extended JSON")
    }
}

fn incremental(signature: &'static str, collection: &'static str, select: Select, fields: &'static [&'static str]) -> View {
    View { signature, collection, select, fields, mode: Mode::Incremental }
}

fn refresh(signature: &'static str, collection: &'static str, select: Select, fields: &'static [&'static str]) -> View {
    View { signature, collection, select, fields, mode: Mode::Refresh }
}

fn find(filter: Value) -> Select {
    Select::Find(filter)
}

fn aggregate(stages: Value) -> Select {
    Select::Aggregate(stages)
}

/// All of them.
pub(super) fn all() -> Vec<View> {
    let mut views = filters();
    views.extend(pipelines());
    views.extend(lookups());
    views.extend(refreshed());
    views
}

/// Each document by itself, without a pipeline.
fn filters() -> Vec<View> {
    vec![
        incremental("has_role(User:_, Role:_)", "users", find(json!({ "active": { "$ne": false } })), &["_id", "role"]),
        incremental("is_member(User:_, Team:_)", "users", find(json!({})), &["_id", "team[]"]),
        incremental("is_tagged(Tag:_, User:_)", "users", find(json!({ "n": { "$not": { "$gt": 1 } } })), &["deep.y.z[]", "_id"]),
        incremental("has_level(Level:_)", "users", find(json!({ "role": { "$in": ["admin", "*", 1] } })), &["n"]),
        incremental("hinto_owner(Repo:_, User:_, Level:_)", "repos", find(json!({ "owner": { "$exists": true } })), &["_id", "owner", "n"]),
        incremental("has_folder(Repo:_, Folder:_)", "team.eu", find(json!({ "$or": [{ "n": 1 }, { "active": true }] })), &["_id", "owner"]),
    ]
}

/// Each document by itself, through stages.
fn pipelines() -> Vec<View> {
    let level = json!([{ "$match": { "n": { "$exists": true } } },
        { "$project": { "who": "$_id", "n": { "$ifNull": ["$n", "none"] }, "_id": 0 } }]);
    let label = json!([{ "$set": { "label": { "$cond": [{ "$eq": ["$active", true] }, "on", "off"] } } }, { "$unset": ["n", "team"] }]);
    let place = json!([{ "$unwind": { "path": "$team", "preserveNullAndEmptyArrays": true, "includeArrayIndex": "place" } }]);
    let inner = json!([{ "$match": { "$expr": { "$eq": [{ "$type": "$deep" }, "object"] } } },
        { "$replaceRoot": { "newRoot": { "$mergeObjects": ["$deep", { "source": "$_id" }] } } }]);
    let redacted = json!([{ "$redact": { "$cond": [{ "$eq": ["$hidden", true] }, "$$PRUNE", "$$DESCEND"] } }]);
    let renamed = json!([{ "$addFields": { "_id": { "$concat": ["role-",
        { "$cond": [{ "$eq": [{ "$type": "$role" }, "string"] }, "$role", "?"] }] } } }]);
    let pairs = json!([{ "$unwind": "$team" }, { "$unwind": "$deep.y" }, { "$match": { "team": { "$ne": "a" } } }]);
    vec![
        incremental("at_level(User:_, Level:_)", "users", aggregate(level), &["who", "n"]),
        incremental("is_labelled(User:_, Label:_, Role:_)", "users", aggregate(label), &["_id", "label", "role"]),
        incremental("is_placed(User:_, Team:_, Place:_)", "users", aggregate(place), &["_id", "team", "place"]),
        incremental("has_inner(User:_, Value:_)", "users", aggregate(inner), &["source", "x"]),
        incremental("is_shown(Repo:_, Value:_)", "repos", aggregate(redacted), &["_id", "deep.x"]),
        incremental("is_named(Name:_)", "repos", aggregate(renamed), &["_id"]),
        incremental("is_paired(User:_, Team:_, Value:_)", "users", aggregate(pairs), &["_id", "team", "deep.y.z"]),
    ]
}

/// Documents joined with others.
fn lookups() -> Vec<View> {
    let owner = json!([{ "$lookup": { "from": "users", "localField": "owner", "foreignField": "_id", "as": "owners" } },
        { "$unwind": "$owners" }, { "$match": { "owners.active": { "$ne": false } } }]);
    let owned = json!([{ "$lookup": { "from": "repos", "localField": "_id", "foreignField": "owner", "as": "owned" } }]);
    let boss = json!([{ "$lookup": { "from": "users", "localField": "owner", "foreignField": "_id", "as": "boss" } },
        { "$unwind": "$boss" }]);
    let slow = json!([{ "$lookup": { "from": "team.eu", "localField": "team", "foreignField": "owner", "as": "teams" } }]);
    vec![
        incremental("has_grant(Repo:_, Role:_)", "repos", aggregate(owner), &["_id", "owners.role"]),
        incremental("owns(User:_, Repo:_)", "users", aggregate(owned), &["_id", "owned._id[]"]),
        incremental("has_boss(User:_, User:_)", "users", aggregate(boss), &["_id", "boss._id"]),
        refresh("has_team(Repo:_, Team:_)", "repos", aggregate(slow), &["_id", "teams._id[]"]),
    ]
}

/// Several documents at once.
fn refreshed() -> Vec<View> {
    let counted = json!([{ "$group": { "_id": "$role", "count": { "$sum": 1 } } }]);
    let above = json!([{ "$graphLookup": { "from": "folders", "startWith": "$owner", "connectFromField": "owner",
        "connectToField": "_id", "as": "above" } }, { "$unwind": "$above" }]);
    let both =
        json!([{ "$project": { "role": 1 } }, { "$unionWith": { "coll": "team.eu", "pipeline": [{ "$match": { "active": true } }] } }]);
    vec![
        refresh("is_counted(Role:_, Count:_)", "users", aggregate(counted), &["_id", "count"]),
        refresh("is_under(Folder:_, Folder:_)", "folders", aggregate(above), &["_id", "above._id"]),
        refresh("is_either(Any:_, Role:_)", "repos", aggregate(both), &["_id", "role"]),
    ]
}
