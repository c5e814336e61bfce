//! What the fact store must hold: the server's own answer to each view's query, as texts.
//!
//! The server does all of the work that can be given to it, the paths through documents and the unwinding of the array
//! included (`$project` with an expression, `$unwind`), so that only the text of a single value is computed here, and that
//! from the rules in `source/mongo/mod.rs`, written a second time and simply.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use mongodb::{
    Database,
    bson::{Binary, Bson, Document, Timestamp, doc, spec::BinarySubtype},
};

use super::views::View;

/// The ids of each fact type's facts.
pub(super) type Facts = BTreeMap<&'static str, BTreeSet<Vec<String>>>;

/// Years that a text can name, in milliseconds since 1970.
const YEARS: std::ops::Range<i64> = -62_167_219_200_000..253_402_300_800_000;

/// What `views` return in `database`, now or at a cluster time.
pub(super) async fn facts(database: &Database, views: &[View], at: Option<Timestamp>) -> Facts {
    let mut facts = Facts::new();
    for view in views {
        facts.insert(view.predicate(), answer(database, view, at).await);
    }
    facts
}

async fn answer(database: &Database, view: &View, at: Option<Timestamp>) -> BTreeSet<Vec<String>> {
    let mut stages = view.stages();
    let names: Vec<String> = (0..view.fields.len()).map(|number| format!("f{number}")).collect();
    let mut project = doc! { "_id": 0 };
    for (name, field) in names.iter().zip(view.fields) {
        project.insert(name, format!("${}", field.trim_end_matches("[]")));
    }
    stages.push(doc! { "$project": project });
    if let Some(array) = view.fields.iter().position(|field| field.ends_with("[]")) {
        stages.push(doc! { "$unwind": format!("${}", names[array]) });
    }
    let mut command = doc! { "aggregate": view.collection, "pipeline": stages, "cursor": { "batchSize": 10_000 }, "allowDiskUse": true };
    if let Some(at) = at {
        command.insert("readConcern", doc! { "level": "snapshot", "atClusterTime": at });
    }
    let cursor = database.run_cursor_command(command).await.unwrap_or_else(|error| panic!("{}: {error}", view.signature));
    let documents: Vec<Document> = cursor.try_collect().await.unwrap_or_else(|error| panic!("{}: {error}", view.signature));
    let ids = |document: &Document| names.iter().map(|name| document.get(name).and_then(text).filter(|id| is_id(id))).collect();
    documents.iter().filter_map(ids).collect()
}

/// Whether a fact store takes it.
fn is_id(text: &str) -> bool {
    !matches!(text, "" | "*") && text.len() <= factsync::fact::MAX_ID_BYTES
}

fn text(value: &Bson) -> Option<String> {
    match value {
        Bson::String(text) | Bson::Symbol(text) => Some(text.clone()),
        Bson::ObjectId(id) => Some(hexadecimal(&id.bytes())),
        Bson::Int32(number) => Some(format!("{number}")),
        Bson::Int64(number) => Some(format!("{number}")),
        Bson::Double(number) => number.is_finite().then(|| written_out(&format!("{number:e}"))),
        Bson::Decimal128(number) => Some(number.to_string()).filter(|text| !text.contains(['N', 'I'])).map(|text| written_out(&text)),
        Bson::Boolean(true) => Some("true".to_owned()),
        Bson::Boolean(false) => Some("false".to_owned()),
        Bson::DateTime(time) => Some(time.timestamp_millis()).filter(|time| YEARS.contains(time)).map(date),
        Bson::Binary(Binary { subtype: BinarySubtype::Uuid | BinarySubtype::UuidOld, bytes }) if bytes.len() == 16 => {
            let text = hexadecimal(bytes);
            Some(format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]))
        }
        _ => None,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `-1.50e3` as `-1500`.
fn written_out(number: &str) -> String {
    let number = number.to_lowercase();
    let (mantissa, exponent) = number.split_once('e').unwrap_or((&number, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let mut exponent: i32 = exponent.parse().expect("an exponent");
    let mut digits: Vec<char> = mantissa.chars().filter(|digit| *digit != '.').collect();
    exponent -= mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32);
    // Now the number is `digits` times ten to the power of `exponent`.
    while exponent > 0 {
        digits.push('0');
        exponent -= 1;
    }
    while (digits.len() as i32) <= -exponent {
        digits.insert(0, '0');
    }
    let fraction = digits.split_off(digits.len() - exponent.unsigned_abs() as usize);
    let whole: String = digits.into_iter().collect();
    let fraction: String = fraction.into_iter().collect();
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    match (whole, fraction) {
        ("", "") => "0".to_owned(),
        (_, "") => format!("{sign}{whole}"),
        ("", _) => format!("{sign}0.{fraction}"),
        _ => format!("{sign}{whole}.{fraction}"),
    }
}

/// Counts years and months down from 1970 or up to it.
fn date(milliseconds: i64) -> String {
    let (mut days, within) = (milliseconds.div_euclid(86_400_000), milliseconds.rem_euclid(86_400_000));
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = |year: i64| if leap(year) { 366 } else { 365 };
    let mut year = 1970;
    while days < 0 {
        year -= 1;
        days += length(year);
    }
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let mut month = 0;
    for length in [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        month += 1;
        if days < length {
            break;
        }
        days -= length;
    }
    let (seconds, millis) = (within / 1000, within % 1000);
    let time = format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}", days + 1, seconds / 3600, seconds / 60 % 60, seconds % 60);
    if millis == 0 { format!("{time}Z") } else { format!("{time}.{millis:03}Z") }
}

#[test]
fn the_oracle_writes_values_as_documented() {
    for (number, want) in [
        ("1e0", "1"),
        ("-1.50E+3", "-1500"),
        ("1.5e-7", "0.00000015"),
        ("-0", "0"),
        ("2.50", "2.5"),
        ("0E+9", "0"),
        ("12.3", "12.3"),
        ("-0.10", "-0.1"),
    ] {
        assert_eq!(written_out(number), want, "{number}");
    }
    for (millis, want) in [
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (951_782_400_000, "2000-02-29T00:00:00Z"),
        (1_767_323_045_120, "2026-01-02T03:04:05.120Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (-62_167_219_200_000, "0000-01-01T00:00:00Z"),
    ] {
        assert_eq!(date(millis), want);
    }
}
