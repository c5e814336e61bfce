//! Equality as MongoDB has it: a text for each `_id`, and the filter that finds documents by values.

use mongodb::bson::{Bson, Document, doc};

use crate::source::mongo::decode::plain;

/// A double's last binary digit is the 1074th behind the point, and so is its last decimal one.
const DOUBLE_DIGITS: usize = 1074;

/// What a document's key is: equal ids have equal texts and different ones different texts.
///
/// MongoDB compares numbers by value, whatever their type (a Double exactly, so the Double 0.1 is no Decimal128 0.1), Symbol as
/// String, and documents field by field in order, names included.
pub(in crate::source::mongo) fn key(id: &Bson) -> String {
    match id {
        Bson::String(text) | Bson::Symbol(text) => format!("s{text}"),
        Bson::ObjectId(id) => format!("o{}", id.to_hex()),
        Bson::Int32(number) => format!("n{number}"),
        Bson::Int64(number) => format!("n{number}"),
        Bson::Double(number) => format!("n{}", double(*number)),
        Bson::Decimal128(number) => format!("n{}", decimal(&number.to_string())),
        Bson::Boolean(value) => format!("b{value}"),
        Bson::DateTime(time) => format!("d{}", time.timestamp_millis()),
        Bson::Timestamp(time) => format!("t{}:{}", time.time, time.increment),
        Bson::Binary(binary) => format!("x{}:{}", u8::from(binary.subtype), hex(&binary.bytes)),
        Bson::Document(document) => {
            let fields = document.iter().map(|(name, value)| counted(name) + &counted(&key(value)));
            format!("{{{}", fields.collect::<String>())
        }
        Bson::Array(items) => format!("[{}", items.iter().map(|item| counted(&key(item))).collect::<String>()),
        Bson::RegularExpression(regex) => format!("r{}{}", counted(regex.pattern.as_str()), regex.options.as_str()),
        Bson::JavaScriptCode(code) => format!("j{code}"),
        Bson::JavaScriptCodeWithScope(code) => format!("w{}{}", counted(&code.code), key(&Bson::Document(code.scope.clone()))),
        // Two DbPointers to the same document print the same; the type is older than any server we can talk to.
        Bson::DbPointer(pointer) => format!("p{pointer:?}"),
        Bson::Null => "z".to_owned(),
        Bson::Undefined => "u".to_owned(),
        Bson::MinKey => "-".to_owned(),
        Bson::MaxKey => "+".to_owned(),
    }
}

/// A filter for the documents in which `path` has one of `values`. `$in` takes a regular expression for a pattern and refuses a
/// document that looks like an operator (as a DBRef does); `$eq` takes everything by its value.
pub(in crate::source::mongo) fn equals_any(path: &str, values: &[Bson]) -> Document {
    let (odd, plain): (Vec<&Bson>, Vec<&Bson>) = values.iter().partition(|value| is_read_as_an_operator(value));
    let plain: Vec<Bson> = plain.into_iter().cloned().collect();
    let plain = doc! { path: { "$in": plain } };
    if odd.is_empty() {
        return plain;
    }
    let odd = odd.into_iter().map(|value| doc! { path: { "$eq": value.clone() } });
    let either: Vec<Document> = std::iter::once(plain).chain(odd).collect();
    doc! { "$or": either }
}

fn is_read_as_an_operator(value: &Bson) -> bool {
    match value {
        Bson::RegularExpression(_) => true,
        Bson::Document(document) => document.keys().next().is_some_and(|name| name.starts_with('$')),
        _ => false,
    }
}

fn double(number: f64) -> String {
    match () {
        () if number.is_nan() => "nan".to_owned(),
        () if number.is_infinite() => infinity(number < 0.0),
        () if number.fract() == 0.0 => plain(&format!("{number:.0}")).expect("a whole number is digits"),
        () => plain(&format!("{number:.DOUBLE_DIGITS$}")).expect("a finite number is digits and a point"),
    }
}

fn decimal(number: &str) -> String {
    plain(number).unwrap_or_else(|| if number.contains("NaN") { "nan".to_owned() } else { infinity(number.starts_with('-')) })
}

fn infinity(negative: bool) -> String {
    if negative { "-inf".to_owned() } else { "inf".to_owned() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text and before it its length, so that where it ends does not depend on what is in it.
fn counted(text: &str) -> String {
    format!("{}:{text}", text.len())
}
