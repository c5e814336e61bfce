//! From a document to rows; see [`crate::source::mongo`] for the rules.

use mongodb::bson::{Binary, Bson, DateTime, Document, spec::BinarySubtype};

use crate::{config::MongoField, data::Row};

/// The milliseconds of the years 0 to 9999, which is what RFC 3339 can write. The driver clamps later times to the last of
/// them, so two would look alike.
const RFC3339_MILLIS: std::ops::RangeInclusive<i64> = -62_167_219_200_000..=253_402_300_799_999;

/// What a path leads to.
enum Found<'a> {
    Nothing,
    Value(&'a Bson),
    /// The path crosses an array; what each document in it has there, without those that have nothing.
    Each(Vec<Found<'a>>),
}

/// The rows `document` makes: one, or one for each element of the array among `fields`.
pub(super) fn rows(document: &Document, fields: &[MongoField]) -> Vec<Row> {
    let array = fields.iter().position(|field| field.is_array);
    let mut cells: Vec<Option<String>> =
        fields.iter().map(|field| if field.is_array { None } else { cell(find(document, &field.name)) }).collect();
    let row = |cells: &[Option<String>]| Row::from_cells(cells.iter().map(Option::as_deref));
    let Some(array) = array else { return vec![row(&cells)] };
    let mut unwound = |element| {
        cells[array] = element;
        row(&cells)
    };
    elements(find(document, &fields[array].name)).into_iter().map(&mut unwound).collect()
}

fn find<'a>(document: &'a Document, path: &str) -> Found<'a> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    match (document.get(name), rest) {
        (None, _) => Found::Nothing,
        (Some(value), None) => Found::Value(value),
        (Some(value), Some(rest)) => descend(value, rest),
    }
}

fn descend<'a>(value: &'a Bson, path: &str) -> Found<'a> {
    match value {
        Bson::Document(document) => find(document, path),
        Bson::Array(items) => {
            let found = items.iter().map(|item| descend(item, path));
            Found::Each(found.filter(|found| !matches!(found, Found::Nothing)).collect())
        }
        _ => Found::Nothing,
    }
}

fn cell(found: Found<'_>) -> Option<String> {
    match found {
        Found::Value(value) => text(value),
        Found::Nothing | Found::Each(_) => None,
    }
}

fn elements(found: Found<'_>) -> Vec<Option<String>> {
    match found {
        Found::Nothing | Found::Value(Bson::Null | Bson::Undefined) => Vec::new(),
        Found::Value(Bson::Array(items)) => items.iter().map(text).collect(),
        Found::Value(value) => vec![text(value)],
        Found::Each(items) => items.into_iter().map(cell).collect(),
    }
}

/// A value as an id; `None` if it cannot be one.
fn text(value: &Bson) -> Option<String> {
    match value {
        Bson::String(text) | Bson::Symbol(text) => Some(text.clone()),
        Bson::ObjectId(id) => Some(id.to_hex()),
        Bson::Int32(number) => Some(number.to_string()),
        Bson::Int64(number) => Some(number.to_string()),
        // `Display` prints the fewest digits that read back as the same, never an exponent.
        Bson::Double(number) => number.is_finite().then(|| plain(&number.to_string())).flatten(),
        Bson::Decimal128(number) => plain(&number.to_string()),
        Bson::Boolean(value) => Some(value.to_string()),
        Bson::DateTime(time) => rfc3339(*time),
        Bson::Binary(binary) => uuid(binary),
        Bson::Null
        | Bson::Undefined
        | Bson::Document(_)
        | Bson::Array(_)
        | Bson::Timestamp(_)
        | Bson::RegularExpression(_)
        | Bson::JavaScriptCode(_)
        | Bson::JavaScriptCodeWithScope(_)
        | Bson::MinKey
        | Bson::MaxKey
        | Bson::DbPointer(_) => None,
    }
}

/// `-1.50E+3` to `-1500`: the digits with the exponent carried out and without zeros that say nothing. `None` for `NaN` and
/// infinities.
pub(super) fn plain(number: &str) -> Option<String> {
    let (sign, number) = number.strip_prefix('-').map_or(("", number), |number| ("-", number));
    let (mantissa, exponent) =
        number.split_once('E').map_or((number, Some(0)), |(mantissa, exponent)| (mantissa, exponent.parse::<i32>().ok()));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if !(whole.bytes().chain(fraction.bytes())).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{whole}{fraction}");
    // Where the point stands, counted from the first digit; Decimal128's exponent ends at 6144, so the zeros are bounded.
    let point = i32::try_from(whole.len()).ok()? + exponent?;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    let padded = format!("{}{digits}{}", zeros(-point), zeros(point - i32::try_from(digits.len()).ok()?));
    let (whole, fraction) = padded.split_at(usize::try_from(point).unwrap_or(0));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(match (whole, fraction) {
        ("0", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    })
}

fn rfc3339(time: DateTime) -> Option<String> {
    let time = Some(time.timestamp_millis()).filter(|time| RFC3339_MILLIS.contains(time))?;
    let milliseconds = time.rem_euclid(1000);
    let second = DateTime::from_millis(time - milliseconds).try_to_rfc3339_string().ok()?;
    let second = second.strip_suffix('Z')?;
    Some(if milliseconds == 0 { format!("{second}Z") } else { format!("{second}.{milliseconds:03}Z") })
}

fn uuid(binary: &Binary) -> Option<String> {
    match binary.subtype {
        BinarySubtype::Uuid | BinarySubtype::UuidOld => {
            uuid::Uuid::from_slice(&binary.bytes).ok().map(|uuid| uuid.hyphenated().to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Decimal128, Regex, Timestamp, doc};
    use proptest::prelude::*;

    fn cells(document: &Document, fields: &[(&str, bool)]) -> Vec<Vec<Option<String>>> {
        let fields: Vec<MongoField> = fields.iter().map(|&(name, is_array)| MongoField { name: name.to_owned(), is_array }).collect();
        rows(document, &fields).iter().map(Row::cells).collect()
    }

    #[test]
    fn equal_numbers_have_equal_texts() {
        let decimal = |text: &str| Bson::Decimal128(text.parse::<Decimal128>().expect("a decimal"));
        for (value, want) in [
            (Bson::Int32(-3), Some("-3")),
            (Bson::Int64(i64::MIN), Some("-9223372036854775808")),
            (Bson::Double(3.0), Some("3")),
            (Bson::Double(-0.0), Some("0")),
            (Bson::Double(0.1), Some("0.1")),
            (Bson::Double(-1.5e-7), Some("-0.00000015")),
            (Bson::Double(1e21), Some("1000000000000000000000")),
            (Bson::Double(f64::NAN), None),
            (Bson::Double(f64::NEG_INFINITY), None),
            (decimal("3.00"), Some("3")),
            (decimal("-0"), Some("0")),
            (decimal("0E+9"), Some("0")),
            (decimal("1.5E+3"), Some("1500")),
            (decimal("-1.20E-9"), Some("-0.0000000012")),
            (decimal("123456789012345678901234567890.1234"), Some("123456789012345678901234567890.1234")),
            (decimal("NaN"), None),
            (decimal("-Infinity"), None),
        ] {
            assert_eq!(text(&value).as_deref(), want, "{value}");
        }
    }

    #[test]
    fn dates_and_uuids_have_one_form_and_the_rest_none() {
        let at = |millis| Bson::DateTime(DateTime::from_millis(millis));
        let bytes = (0..16).collect::<Vec<u8>>();
        let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
        for (value, want) in [
            (at(0), Some("1970-01-01T00:00:00Z")),
            (at(-1), Some("1969-12-31T23:59:59.999Z")),
            (at(1_767_323_045_120), Some("2026-01-02T03:04:05.120Z")),
            (at(253_402_300_799_999), Some("9999-12-31T23:59:59.999Z")),
            (at(253_402_300_800_000), None),
            (at(-62_167_219_200_000), Some("0000-01-01T00:00:00Z")),
            (at(-62_167_219_200_001), None),
            (at(i64::MAX), None),
            (at(i64::MIN), None),
            (Bson::Boolean(true), Some("true")),
            (Bson::String(String::new()), Some("")),
            (binary(BinarySubtype::Uuid, &bytes), Some("00010203-0405-0607-0809-0a0b0c0d0e0f")),
            (binary(BinarySubtype::UuidOld, &bytes), Some("00010203-0405-0607-0809-0a0b0c0d0e0f")),
            (binary(BinarySubtype::Uuid, &bytes[1..]), None),
            (binary(BinarySubtype::Generic, &bytes), None),
            (Bson::Timestamp(Timestamp { time: 1, increment: 1 }), None),
            (
                Bson::RegularExpression(Regex { pattern: "a".try_into().expect("a pattern"), options: "".try_into().expect("options") }),
                None,
            ),
            (Bson::Document(doc! {}), None),
            (Bson::Array(vec![Bson::Int32(1)]), None),
            (Bson::Null, None),
        ] {
            assert_eq!(text(&value).as_deref(), want, "{value}");
        }
    }

    #[test]
    fn an_array_is_unwound_as_by_unwind() {
        let unwound = |document: Document| {
            cells(&document, &[("_id", false), ("tags", true)]).into_iter().map(|row| row[1].clone()).collect::<Vec<_>>()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(unwound(doc! {"_id": 1}), []);
        assert_eq!(unwound(doc! {"_id": 1, "tags": null}), []);
        assert_eq!(unwound(doc! {"_id": 1, "tags": []}), []);
        assert_eq!(unwound(doc! {"_id": 1, "tags": "a"}), [some("a")]);
        assert_eq!(unwound(doc! {"_id": 1, "tags": ["a", 2, null, ["b"]]}), [some("a"), some("2"), None, None]);
        assert_eq!(cells(&doc! {"_id": 1, "tags": ["a"]}, &[("tags", true), ("_id", false)]), [[some("a"), some("1")]]);
    }

    #[test]
    fn a_path_goes_through_documents_and_collects_from_arrays() {
        let document = doc! {"a": {"b": {"c": "x"}}, "m": [{"user": 1}, {"other": 2}, 3, {"user": null}, {"user": [4]}]};
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            cells(&document, &[("a.b.c", false), ("a.b", false), ("a.x.c", false), ("m.user", false)]),
            [[some("x"), None, None, None]]
        );
        assert_eq!(cells(&document, &[("m.user", true)]), [[some("1")], [None], [None]]);
    }

    proptest! {
        #[test]
        fn a_double_reads_back(number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
            let text = text(&Bson::Double(number)).expect("a number");
            prop_assert_eq!(text.parse::<f64>(), Ok(number));
        }

        #[test]
        fn a_decimal_keeps_its_value(coefficient in -10_i64.pow(17)..10_i64.pow(17), exponent in -30_i32..30) {
            let printed = format!("{coefficient}E{exponent}").parse::<Decimal128>().expect("a decimal").to_string();
            let text = plain(&printed).expect("a number");
            prop_assert!(!text.contains('E') && (!text.contains('.') || !text.ends_with('0')), "{}", text);
            prop_assert_eq!(text.parse::<f64>().expect("a number"), printed.parse::<f64>().expect("a number"), "{} {}", printed, text);
        }
    }
}
