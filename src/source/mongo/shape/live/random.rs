//! Random documents over tiny domains, and random pipelines.

use serde_json::{Value, json};

use super::*;
use crate::source::mongo::shape::tests::classes;

/// Ids that a collection's documents have.
const IDS: u64 = 24;

/// Paths in a document of `main`, the likely ones more than once.
const PATHS: [&str; 8] = ["a", "a", "b", "c", "a.b", "_id", "b.b", "a.b.c"];
/// What a join shows beside the ids that it found.
const JOINED_FIELDS: [&str; 3] = ["c", "found.m", "_id"];

/// A source of random choices.
pub(super) struct Random(u64);

impl Random {
    /// From `FACTSYNC_SEED`, else from the clock; the seed is printed, and a failing test shows it.
    pub(super) fn new() -> Self {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        let seed = std::env::var("FACTSYNC_SEED").ok().map_or_else(clock, |text| text.parse().expect("FACTSYNC_SEED is a number"));
        eprintln!("FACTSYNC_SEED={seed}");
        Self(seed)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    pub(super) fn one<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// At most `count` of these.
    pub(super) fn some<T>(&mut self, mut choices: Vec<T>, count: usize) -> Vec<T> {
        while choices.len() > count {
            let out = self.below(choices.len() as u64) as usize;
            choices.swap_remove(out);
        }
        choices
    }

    /// Documents of a collection, with different ids.
    pub(super) fn documents(&mut self, collection: &str) -> Vec<Document> {
        let documents: BTreeMap<String, Document> = (0..=self.below(20))
            .map(|_| self.document(collection))
            .map(|document| (key(document.get("_id").expect("an id")), document))
            .collect();
        documents.into_values().collect()
    }

    /// One document, whose id another one may have.
    pub(super) fn document(&mut self, collection: &str) -> Document {
        let mut document = doc! { "_id": self.id() };
        let fields: &[&str] = if collection == "main" { &["a", "b", "c", SOURCE_ID] } else { &["k", "m"] };
        for &field in fields {
            if field != SOURCE_ID && self.below(5) > 0 || self.below(20) == 0 {
                document.insert(field, self.value(3));
            }
        }
        document
    }

    fn id(&mut self) -> Bson {
        let ids: [Bson; 8] = [
            1.into(),
            2.into(),
            "a".into(),
            "b".into(),
            doc! { "b": 1 }.into(),
            doc! { "b": { "a": "x" } }.into(),
            doc! { "$ref": "main", "$id": 1 }.into(),
            Bson::Null,
        ];
        match self.below(IDS) {
            number if number < 8 => ids[number as usize].clone(),
            number => match classes().swap_remove(number as usize).0 {
                Bson::RegularExpression(_) | Bson::Array(_) => 7.into(),
                value => value,
            },
        }
    }

    /// A value that another field, an id or a literal may equal.
    fn value(&mut self, depth: u32) -> Bson {
        let deeper = depth.saturating_sub(1);
        match self.below(if depth == 0 { 7 } else { 14 }) {
            0 | 1 => 1.into(),
            2 => 2.0.into(),
            3 => "a".into(),
            4 => Bson::Null,
            5 => self.one(&[Bson::Int64(1), "b".into(), true.into()]).clone(),
            6 => pattern(),
            7 | 8 => doc! { "b": self.value(deeper) }.into(),
            9 => doc! { "b": self.value(deeper), "c": self.value(deeper) }.into(),
            10 => doc! {}.into(),
            _ => (0..self.below(4)).map(|_| self.value(deeper)).collect::<Vec<_>>().into(),
        }
    }

    /// Half of them are about what a `$lookup` finds, the others about everything.
    pub(super) fn query(&mut self) -> MongoQuery {
        if self.below(2) == 0 {
            return self.join();
        }
        let stages = (0..=self.below(4)).map(|_| self.stage()).collect();
        let names = ["_id", "a", "b", "c", "x", "a.b", "found._id", "found.m", "found"];
        let mut fields: Vec<MongoField> = Vec::new();
        for _ in 0..=self.below(3) {
            let is_array = self.below(2) == 0 && !fields.iter().any(|field| field.is_array);
            let name = (*self.one(&names)).to_owned();
            if !fields.iter().any(|field| field.name == name) {
                fields.push(MongoField { name, is_array });
            }
        }
        MongoQuery { collection: "main".to_owned(), select: MongoSelect::Aggregate(stages), fields }
    }

    fn join(&mut self) -> MongoQuery {
        let local = self.path();
        let prefix = local.split('.').next().expect("a path has a name");
        let mut stages = Vec::new();
        for _ in 0..self.below(3) {
            let (path, keep) = (*self.one(&[local, prefix]), self.below(2) == 0);
            stages.push(json!({ "$unwind": { "path": format!("${path}"), "preserveNullAndEmptyArrays": keep } }));
        }
        let mut lookup = self.lookup();
        lookup["localField"] = json!(local);
        stages.push(json!({ "$lookup": lookup }));
        if self.below(2) == 0 {
            stages.push(json!({ "$match": { "found": { "$ne": [] } } }));
        }
        let field = |name: &str, is_array| MongoField { name: name.to_owned(), is_array };
        let fields = vec![field(self.one::<&str>(&JOINED_FIELDS), false), field("found._id", true)];
        MongoQuery { collection: "main".to_owned(), select: MongoSelect::Aggregate(stages), fields }
    }

    fn stage(&mut self) -> Value {
        match self.below(12) {
            0 | 1 => json!({ "$match": self.condition() }),
            2 => json!({ "$project": self.projection() }),
            3 => {
                let name = *self.one(&["$set", "$addFields"]);
                json!({ name: self.assignment() })
            }
            4 => json!({ "$unset": self.one(&[json!("a"), json!("_id"), json!(["b", "a.b"]), json!("found")]) }),
            5 | 6 => json!({ "$unwind": self.unwind() }),
            7 => self.root(),
            8 => json!({ "$redact": self.redaction() }),
            _ => json!({ "$lookup": self.lookup() }),
        }
    }

    fn path(&mut self) -> &'static str {
        self.one::<&str>(&PATHS)
    }

    fn condition(&mut self) -> Value {
        let path = self.path();
        let literal = self.one(&[json!(1), json!("a"), json!(null), json!([]), json!({"b": 1}), json!([1])]).clone();
        let dollar = format!("${path}");
        match self.below(7) {
            0 => json!({ path: literal }),
            1 => json!({ path: { "$ne": literal } }),
            2 => json!({ path: { "$exists": self.below(2) == 0 } }),
            3 => json!({ "$expr": { "$ne": [dollar, { "$literal": literal }] } }),
            4 => json!({ "found": { "$ne": [] } }),
            5 => json!({ "found": [] }),
            _ => json!({ "$jsonSchema": { "maxProperties": 3 } }),
        }
    }

    fn projection(&mut self) -> Value {
        self.one(&[
            json!({ "a": 1 }),
            json!({ "a": 1, "b": true, "found": 1 }),
            json!({ "_id": 0, "a": 1, "c": 1 }),
            json!({ "_id": "$a", "b": 1, "found": 1 }),
            json!({ "b": 0 }),
            json!({ "_id": 0 }),
            json!({ "_id": false, "c": 0 }),
            json!({ "a.b": 1, "found.m": 1 }),
            json!({ "a": { "b": "$c" }, "x": "$_id" }),
            json!({ "a": { "b": 0 } }),
            json!({ "_id": { "b": "$b" } }),
            json!({ "x": { "$size": { "$objectToArray": "$$ROOT" } } }),
        ])
        .clone()
    }

    fn assignment(&mut self) -> Value {
        self.one(&[
            json!({ "x": "$a" }),
            json!({ "_id": "$b" }),
            json!({ "a.b": 1 }),
            json!({ "a": { "$ifNull": ["$a", "$c"] } }),
            json!({ "x": { "$size": { "$objectToArray": "$$ROOT" } } }),
            json!({ "x": { "$size": { "$objectToArray": "$$CURRENT" } }, "b": "$$REMOVE" }),
            json!({ "a": "$$ROOT" }),
            json!({ "x": { "$getField": "a" } }),
            json!({ "x": { "$size": { "$ifNull": [{ "$cond": [{ "$isArray": "$found" }, "$found", null] }, []] } } }),
        ])
        .clone()
    }

    fn unwind(&mut self) -> Value {
        let path = *self.one(&["$a", "$a", "$b", "$found", "$found", "$a.b", "$found.m"]);
        match self.below(4) {
            0 | 1 => json!(path),
            2 => json!({ "path": path, "preserveNullAndEmptyArrays": true }),
            _ => json!({ "path": path, "includeArrayIndex": "x" }),
        }
    }

    fn root(&mut self) -> Value {
        let a_or_empty = json!({ "$cond": [{ "$eq": [{ "$type": "$a" }, "object"] }, "$a", {}] });
        self.one(&[
            json!({ "$replaceRoot": { "newRoot": { "a": "$b", "b": "$c", "x": "$_id" } } }),
            json!({ "$replaceRoot": { "newRoot": { "$mergeObjects": [{ "_id": "$_id", "c": "$c" }, a_or_empty] } } }),
            json!({ "$replaceWith": { "$mergeObjects": [{ "x": 1 }, "$$ROOT"] } }),
            json!({ "$replaceWith": a_or_empty }),
            json!({ "$replaceWith": "$a" }),
        ])
        .clone()
    }

    fn redaction(&mut self) -> Value {
        self.one(&[
            json!("$$DESCEND"),
            json!({ "$cond": [{ "$eq": ["$b", 1] }, "$$PRUNE", "$$DESCEND"] }),
            json!({ "$cond": [{ "$eq": ["$c", 1] }, "$$PRUNE", "$$KEEP"] }),
        ])
        .clone()
    }

    fn lookup(&mut self) -> Value {
        let foreign = *self.one(&["k", "k", "_id", "k.b", "m"]);
        let from = *self.one(&["other", "other", "other", "main"]);
        let foreign = if from == "main" { *self.one(&["a", "_id", "a.b"]) } else { foreign };
        let mut lookup = json!({ "from": from, "localField": self.path(), "foreignField": foreign, "as": "found" });
        match self.below(5) {
            0 => lookup["pipeline"] = json!([{ "$match": { "m": { "$ne": 1 } } }]),
            1 => lookup["pipeline"] = json!([{ "$group": { "_id": "$m" } }]),
            2 => {
                lookup["let"] = json!({ "c": "$c" });
                lookup["pipeline"] = json!([{ "$match": { "$expr": { "$ne": ["$m", "$$c"] } } }]);
            }
            _ => {}
        }
        lookup
    }
}

/// A text that `"a"` matches as a pattern.
fn pattern() -> Bson {
    let (pattern, options) = ("^a".try_into().expect("a pattern"), "".try_into().expect("options"));
    Bson::RegularExpression(mongodb::bson::Regex { pattern, options })
}
