//! Which queries are followed how, and what is equal to what; no server needed.

use mongodb::bson::{Binary, Decimal128, Regex, Timestamp, oid::ObjectId, spec::BinarySubtype};
use serde_json::{Value, json};

use super::*;

fn query(stages: Value) -> MongoQuery {
    let select = match stages {
        Value::Array(stages) => MongoSelect::Aggregate(stages),
        filter => MongoSelect::Find(filter),
    };
    let fields = vec![MongoField { name: "a".to_owned(), is_array: false }];
    MongoQuery { collection: "main".to_owned(), select, fields }
}

fn shape(stages: Value) -> Shape {
    Shape::of(&query(stages)).expect("Extended JSON")
}

fn join(local: &str, foreign: &str) -> Value {
    json!({"$lookup": {"from": "other", "localField": local, "foreignField": foreign, "as": "found"}})
}

#[test]
fn what_is_followed_by_a_field_and_what_isolated() {
    for (stages, carry) in [
        (json!({}), Carry::Field),
        (json!({"a": {"$gt": 1}, "$or": [{"b": 1}, {"c": {"$exists": false}}]}), Carry::Field),
        (json!([]), Carry::Field),
        (json!([{"$match": {"$expr": {"$gt": ["$a", 1]}}}, {"$set": {"_id": 1}}, {"$unset": "_id"}]), Carry::Field),
        (json!([{"$unwind": {"path": "$a", "preserveNullAndEmptyArrays": true}}, {"$replaceRoot": {"newRoot": "$a"}}]), Carry::Field),
        (json!([{"$project": {"_id": 0}}, {"$replaceWith": "$a"}, {"$addFields": {"b.c": "$$REMOVE"}}]), Carry::Field),
        (json!([{"$set": {"b": "$$ROOT"}}]), Carry::Isolated),
        (json!([{"$replaceRoot": {"newRoot": {"$mergeObjects": [{"b": 1}, "$$CURRENT"]}}}]), Carry::Isolated),
        (json!([{"$redact": {"$cond": ["$a", "$$DESCEND", "$$PRUNE"]}}]), Carry::Isolated),
        (json!([{"$match": {"$jsonSchema": {"additionalProperties": false}}}]), Carry::Isolated),
        (json!([{"$set": {"b": {"$getField": "a"}}}]), Carry::Isolated),
    ] {
        match shape(stages.clone()) {
            Shape::PerDocument(view) => assert_eq!(view.carry, carry, "{stages}"),
            other => panic!("{stages}: {other:?}"),
        }
    }
}

#[test]
fn what_is_refreshed_names_the_reason_and_every_collection() {
    for (stages, part, others) in [
        (json!([{"$group": {"_id": "$a"}}]), "stage 1 is $group, which mixes documents", &[][..]),
        (json!([{"$match": {}}, {"$sort": {"a": 1}}, {"$limit": 1}]), "stage 2 is $sort", &[]),
        (json!([{"$unionWith": "x"}]), "stage 1 is $unionWith", &["x"]),
        (json!([{"$unionWith": {"coll": "x", "pipeline": [{"$lookup": {"from": "y"}}]}}]), "$unionWith", &["x", "y"]),
        (json!([{"$graphLookup": {"from": "x", "startWith": "$a", "as": "r"}}]), "$graphLookup", &["x"]),
        (json!([{"$facet": {"one": [join("a", "b"), {"$unionWith": {"coll": "z"}}]}}]), "$facet", &["other", "z"]),
        (json!([{"$lookup": {"from": "x", "let": {}, "pipeline": [], "as": "r"}}]), "stage 1 is a $lookup without", &["x"]),
        (
            json!([{"$lookup": {"from": "x", "localField": "a", "foreignField": "b", "as": "r",
                                "pipeline": [{"$match": {}}, {"$facet": {"one": [{"$lookup": {"from": "y"}}]}}]}}]),
            "whose own pipeline reads another collection with $lookup",
            &["x", "y"],
        ),
        (json!([{"$set": {"a": 1}}, join("a", "b")]), "stage 2 is a $lookup whose localField \"a\" stage 1, $set, replaces", &["other"]),
        (json!([join("a.0", "b")]), "has a number for a name", &["other"]),
        (json!([join("a", "b.1.c")]), "whose foreignField \"b.1.c\" has a number", &["other"]),
        (json!({"$text": {"$search": "x"}}), "$text cannot be asked", &[]),
        (json!({"$and": [{"place": {"$near": [1, 2]}}]}), "$near cannot", &[]),
        (json!([{"$geoNear": {"near": [1, 2]}}]), "$geoNear cannot", &[]),
        (json!([{"$set": {"b": {"$meta": "textScore"}}}]), "$meta cannot", &[]),
        (json!([{"$set": {"__factsync_id": 1}}]), "names the field __factsync_id", &[]),
        (json!([{"$set": {"b": "$x.__factsync_id"}}]), "names the field __factsync_id", &[]),
    ] {
        match shape(stages.clone()) {
            Shape::Refresh { reason, collections } => {
                assert!(reason.contains(part), "{stages}: {reason}");
                let want: BTreeSet<String> = others.iter().chain(&["main"]).map(|&name| name.to_owned()).collect();
                assert_eq!(collections, want, "{stages}");
            }
            other => panic!("{stages}: {other:?}"),
        }
    }
}

#[test]
fn what_is_refused_says_what_to_do_instead() {
    for (stages, part) in [
        (json!({"$expr": {"$lt": ["$until", "$$NOW"]}}), "$$NOW depends on the time"),
        (json!([{"$set": {"t": {"$year": "$$NOW.x"}}}]), "$$NOW depends"),
        (json!([{"$set": {"t": "$$CLUSTER_TIME"}}]), "$$CLUSTER_TIME depends on the time"),
        (json!([{"$set": {"t": "$$USER_ROLES"}}]), "depends on who asks"),
        (json!([{"$match": {"$sampleRate": 0.5}}]), "$sampleRate depends on chance"),
        (json!([{"$sample": {"size": 1}}]), "$sample depends on chance"),
        (json!([{"$facet": {"one": [{"$set": {"r": {"$rand": {}}}}]}}]), "$rand depends on chance"),
        (json!([{"$indexStats": {}}]), "$indexStats reads the server's state"),
        (json!([{"$unionWith": {"coll": "x", "pipeline": [{"$currentOp": {}}]}}]), "$currentOp reads"),
        (json!({"$where": "true"}), "$where runs JavaScript"),
        (json!([{"$set": {"t": {"$function": {"body": "f", "args": [], "lang": "js"}}}}]), "$function runs"),
        (json!([{"$group": {"_id": 1, "t": {"$accumulator": {}}}}]), "$accumulator runs"),
        (json!([{"$search": {}}]), "$search reads a search index"),
        (json!([{"$futureStage": {}}]), "stage 1 is $futureStage, which factsync does not know"),
        (json!([{"$lookup": {"from": {"db": "d", "coll": "c"}, "as": "r"}}]), "$lookup reads collection \"c\" of database \"d\""),
        (json!([{"$unionWith": {"db": "d", "coll": "c"}}]), "$unionWith reads collection \"c\" of database \"d\""),
    ] {
        match shape(stages.clone()) {
            Shape::Refused(reason) => assert!(reason.contains(part), "{stages}: {reason}"),
            other => panic!("{stages}: {other:?}"),
        }
    }
    assert!(matches!(shape(json!([{"$set": {"b": {"$literal": "$$NOW"}}}])), Shape::PerDocument(_)), "a literal is data");
    assert!(Shape::of(&query(json!([{"$match": {"a": {"$oid": "x"}}}]))).is_err_and(|error| error.starts_with("could not read stage 1")));
}

#[test]
fn a_local_field_is_followed_to_the_original_document() {
    let unwound = |earlier: Value, local: &str| {
        let mut stages = earlier.as_array().expect("stages").clone();
        stages.push(join(local, "b"));
        match shape(Value::Array(stages)) {
            Shape::PerDocument(view) => Some(view.lookups.into_iter().next_back().expect("a lookup").unwound),
            Shape::Refresh { .. } => None,
            Shape::Refused(reason) => panic!("{reason}"),
        }
    };
    for (earlier, local, want) in [
        (json!([]), "a", Some(&[][..])),
        (json!([{"$match": {"a": 1}}, {"$set": {"b": 1, "ab": 2}}, {"$unset": ["b", "c.d"]}]), "a", Some(&[])),
        (json!([{"$unwind": "$a"}]), "a", Some(&["a"])),
        (json!([{"$unwind": "$a"}, {"$unwind": {"path": "$a.b"}}]), "a.b", Some(&["a", "a.b"])),
        (json!([{"$unwind": "$b"}]), "a", Some(&[])),
        (json!([{"$unwind": "$a.b"}]), "a", None),
        (json!([{"$unwind": {"path": "$b", "includeArrayIndex": "a"}}]), "a", None),
        (json!([{"$set": {"a": {"c": 1}}}]), "a.b", Some(&[])),
        (json!([{"$set": {"a": {"b": 1}}}]), "a.b", None),
        (json!([{"$set": {"a.b": 1}}]), "a", None),
        (json!([{"$set": {"a": {"$add": [1, 2]}}}]), "a.b", None),
        (json!([{"$unset": "a.b"}]), "a", None),
        (json!([{"$unset": ["c", "a"]}]), "a.b", None),
        (json!([{"$project": {"a": 1}}]), "a.b", Some(&[])),
        (json!([{"$project": {"a": 1}}]), "_id", Some(&[])),
        (json!([{"$project": {"_id": 0, "a": true}}]), "_id", None),
        (json!([{"$project": {"_id": "$a", "a": true}}]), "_id", None),
        (json!([{"$project": {"a.b": 1}}]), "a", None),
        (json!([{"$project": {"a": {"b": 1}}}]), "a.b", Some(&[])),
        (json!([{"$project": {"b": 1}}]), "a", None),
        (json!([{"$project": {"a": "$b"}}]), "a", None),
        (json!([{"$project": {"_id": 0}}]), "a", Some(&[])),
        (json!([{"$project": {"b": 0}}]), "a", Some(&[])),
        (json!([{"$project": {"a.b": 0}}]), "a", None),
        (json!([{"$replaceRoot": {"newRoot": "$a"}}]), "a", None),
        (json!([{"$redact": "$$KEEP"}]), "a", None),
        (json!([join("b", "c")]), "a", Some(&[])),
        (json!([join("b", "c")]), "found.a", None),
    ] {
        let want = want.map(|paths| paths.iter().map(|&path| path.to_owned()).collect::<Vec<_>>());
        assert_eq!(unwound(earlier.clone(), local), want, "{earlier} {local}");
    }
}

/// A value, and which class of equal values it is in.
pub(super) fn classes() -> Vec<(Bson, u32)> {
    let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"));
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let regex = |pattern: &str, options: &str| {
        let (pattern, options) = (pattern.try_into().expect("a pattern"), options.try_into().expect("options"));
        Bson::RegularExpression(Regex { pattern, options })
    };
    let id: ObjectId = "65f0a1b2c3d4e5f601020304".parse().expect("an id");
    vec![
        (1.into(), 0),
        (1_i64.into(), 0),
        (1.0.into(), 0),
        (decimal("1.00"), 0),
        (true.into(), 1),
        ("1".into(), 2),
        (Bson::Symbol("1".into()), 2),
        (0.into(), 3),
        ((-0.0).into(), 3),
        (decimal("-0E+3"), 3),
        (0.1.into(), 4),
        (decimal("0.1"), 5),
        (decimal("0.1000000000000000055511151231257827"), 6),
        (0.5.into(), 7),
        (decimal("0.50"), 7),
        (f64::NAN.into(), 8),
        (decimal("NaN"), 8),
        (f64::INFINITY.into(), 9),
        (decimal("Infinity"), 9),
        (f64::NEG_INFINITY.into(), 10),
        (9_007_199_254_740_993_i64.into(), 11),
        (9_007_199_254_740_992.0.into(), 12),
        (Bson::Null, 13),
        (doc! {}.into(), 14),
        (doc! {"a": 1, "b": 2}.into(), 15),
        (doc! {"a": 1.0, "b": 2_i64}.into(), 15),
        (doc! {"b": 2, "a": 1}.into(), 16),
        (doc! {"a": [1, 2]}.into(), 17),
        (doc! {"a": [decimal("1.0"), 2.0]}.into(), 17),
        (doc! {"a": [[1], 2]}.into(), 18),
        (doc! {"a": regex("x", "")}.into(), 19),
        (doc! {"a": regex("x", "i")}.into(), 20),
        (doc! {"a": "1s"}.into(), 21),
        (id.into(), 22),
        (id.to_hex().into(), 23),
        (Bson::DateTime(mongodb::bson::DateTime::from_millis(1)), 24),
        (Bson::Timestamp(Timestamp { time: 0, increment: 1 }), 25),
        (binary(BinarySubtype::Uuid, &[1; 16]), 26),
        (binary(BinarySubtype::UuidOld, &[1; 16]), 27),
        (binary(BinarySubtype::Generic, &[]), 28),
        (Bson::MinKey, 29),
        (Bson::MaxKey, 30),
        (1e23.into(), 31),
        (decimal("1E+23"), 32),
        (5e-324.into(), 33),
        (Bson::JavaScriptCode("1".into()), 34),
    ]
}

#[test]
fn equal_ids_have_equal_keys_and_others_do_not() {
    let classes = classes();
    for (one, class) in &classes {
        for (other, other_class) in &classes {
            assert_eq!(key(one) == key(other), class == other_class, "{one:?} {other:?}");
        }
    }
}
