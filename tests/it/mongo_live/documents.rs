//! Random documents over tiny domains, so that ids collide, references meet and every type stands where ids are expected.

use mongodb::bson::{Binary, Bson, DateTime, Decimal128, Document, Regex, doc, oid::ObjectId, spec::BinarySubtype};

use crate::support::github::Random;

/// Bytes of an `_id` that is no id of a fact, and makes the event's key and the resume token long.
const LONG_ID: usize = 900;

pub(super) fn choose<T: Clone>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize].clone()
}

pub(super) fn one_in(random: &mut Random, count: u64) -> bool {
    random.below(count) == 0
}

fn decimal(text: &str) -> Bson {
    Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"))
}

fn uuid(subtype: BinarySubtype) -> Bson {
    Bson::Binary(Binary { subtype, bytes: (0..16).collect() })
}

/// An `_id`, and so what a reference may hold. Some are equal and of different types.
pub(super) fn id(random: &mut Random) -> Bson {
    match random.below(24) {
        0..=3 => Bson::Int32(random.below(4) as i32),
        4 => Bson::Int64(random.below(4) as i64),
        5 => Bson::Double(random.below(4) as f64),
        6 => choose(random, &[decimal("1.00"), decimal("2E+0"), decimal("2.50"), decimal("-0E+3")]),
        7 => choose(random, &[Bson::Double(2.5), Bson::Double(-0.0), Bson::Double(f64::INFINITY)]),
        8..=13 => choose(random, &["a", "b", "c", "1", "*", "", "é\u{0}"]).into(),
        14 | 15 => ObjectId::from_bytes([random.below(3) as u8; 12]).into(),
        16 => choose(random, &[uuid(BinarySubtype::Uuid), uuid(BinarySubtype::UuidOld), uuid(BinarySubtype::Generic)]),
        17 => DateTime::from_millis(choose(random, &[0, -1, 1_767_323_045_120, i64::MAX])).into(),
        18 => Bson::Boolean(one_in(random, 2)),
        19 => choose(random, &[doc! { "k": 1 }, doc! { "k": 1.0 }, doc! { "k": 2, "l": "x" }, doc! {}]).into(),
        20 => choose(random, &[Bson::Null, Bson::MinKey, Bson::MaxKey]),
        21 => "x".repeat(LONG_ID).into(),
        _ => choose(random, &["d", "e", "f"]).into(),
    }
}

/// What a reference to another document may be: an id, several, none, or something that is no id.
pub(super) fn reference(random: &mut Random) -> Bson {
    match random.below(24) {
        0..=7 => Bson::Int32(random.below(4) as i32),
        8..=15 => id(random),
        16 => Bson::Null,
        17..=20 => list(random, id),
        21 => Bson::Array(vec![list(random, id), id(random)]),
        _ if one_in(random, 2) => regex(),
        _ => doc! { "id": id(random) }.into(),
    }
}

/// As a pattern it fits most texts. Not those of a large transaction: to a `$graphLookup` a regular expression is a pattern, and two
/// thousand documents each of which is under two thousand others are four million facts, and nothing new.
fn regex() -> Bson {
    Bson::RegularExpression(Regex { pattern: "^[a-z](x|$)".try_into().expect("a pattern"), options: "".try_into().expect("options") })
}

fn list(random: &mut Random, mut element: impl FnMut(&mut Random) -> Bson) -> Bson {
    let length = random.below(4);
    Bson::Array((0..length).map(|_| element(random)).collect())
}

fn number(random: &mut Random) -> Bson {
    match random.below(10) {
        0..=2 => Bson::Int32(random.below(4) as i32 - 1),
        3 => Bson::Int64(1),
        4 => choose(random, &[Bson::Double(1.0), Bson::Double(0.1), Bson::Double(1e21), Bson::Double(-0.0), Bson::Double(f64::NAN)]),
        5 => choose(random, &[decimal("1.0"), decimal("1E+3"), decimal("-0"), decimal("Infinity")]),
        6 => Bson::Null,
        7 => list(random, |random| Bson::Int32(random.below(3) as i32)),
        8 => "1".into(),
        _ => Bson::Int64(i64::MAX),
    }
}

/// A value of the field `name`.
pub(super) fn value(random: &mut Random, name: &str) -> Bson {
    match name {
        "role" => match random.below(10) {
            0..=6 => choose(random, &["admin", "member", "guest", "*"]).into(),
            7 => Bson::Null,
            8 => Bson::Int32(1),
            _ => id(random),
        },
        "active" | "hidden" => choose(random, &[Bson::Boolean(true), Bson::Boolean(false), Bson::Null, Bson::Int32(1)]),
        "n" => number(random),
        "team" if one_in(random, 4) => reference(random),
        "team" => list(random, id),
        "deep" => deep(random),
        _ => reference(random),
    }
}

fn deep(random: &mut Random) -> Bson {
    let part = |random: &mut Random| match random.below(6) {
        0 => id(random),
        1 => doc! { "other": 1 }.into(),
        2 => doc! { "z": list(random, id) }.into(),
        _ => doc! { "z": id(random) }.into(),
    };
    match random.below(8) {
        0 => id(random),
        1 => doc! { "x": id(random) }.into(),
        2 => Bson::Array(vec![doc! { "x": id(random) }.into(), doc! { "y": { "z": id(random) } }.into()]),
        3 => doc! { "x": { "hidden": one_in(random, 2) }, "hidden": one_in(random, 2) }.into(),
        _ => doc! { "x": id(random), "y": list(random, part) }.into(),
    }
}

/// The fields that documents may have, whatever their collection.
pub(super) const FIELDS: [&str; 7] = ["role", "active", "hidden", "n", "team", "deep", "owner"];

/// The fields of a document, two of three.
pub(super) fn fields(random: &mut Random) -> Document {
    let mut fields = Document::new();
    for name in FIELDS {
        if !one_in(random, 3) {
            fields.insert(name, value(random, name));
        }
    }
    fields
}

pub(super) fn document(random: &mut Random) -> Document {
    let mut document = doc! { "_id": id(random) };
    document.extend(fields(random));
    document
}
