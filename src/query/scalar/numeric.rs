//! numeric, from its text: exact, however many digits it has.
//!
//! PostgreSQL prints `NaN`, `Infinity`, `-Infinity`, or digits with at most one point, at least one digit before it, no superfluous
//! leading zeros and no negative zero; only zeros at the end of the fraction are arbitrary.

use std::cmp::Ordering;

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        fails,
        integer::{fit, int},
        list::{Entry, Needs, equal, ordered, strict},
        oids::{INT2, INT4, INT8, NUMERIC},
        str_of,
    },
};

/// A cast from an integer: the same digits.
macro_rules! from_int {
    ($oid:literal, $from:ident) => {
        strict($oid, "numeric", &[$from], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(int(&args[0])?.to_string().into())))
    };
}

/// A cast to an integer.
macro_rules! to_int {
    ($oid:literal, $name:literal, $to:ident) => {
        strict($oid, $name, &[NUMERIC], Needs::Nothing, Kind::Int, |args| rounded(str_of(&args[0])?, $to))
    };
}

/// The functions over numeric.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("numeric_", "", [NUMERIC, NUMERIC], Needs::Nothing, order, 1718, 1719),
    &ordered!("numeric_", "", [NUMERIC, NUMERIC], Needs::Nothing, order, 1722, 1723, 1720, 1721),
    &[from_int!(1782, INT2), from_int!(1740, INT4), from_int!(1781, INT8)],
    &[to_int!(1783, "int2", INT2), to_int!(1744, "int4", INT4), to_int!(1779, "int8", INT8)],
    &[strict(5043, "trim_scale", &[NUMERIC], Needs::Nothing, Kind::Text, |args| {
        Ok(Datum::Text(canonical(str_of(&args[0])?).to_owned().into()))
    })],
];

fn order(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(compare(str_of(&args[0])?, str_of(&args[1])?))
}

/// Where a text stands among all: class, sign, digits before the point, digits after it.
fn parts(text: &str) -> (i8, bool, &str, &str) {
    match text {
        "-Infinity" => return (-1, false, "", ""),
        "Infinity" => return (1, false, "", ""),
        "NaN" => return (2, false, "", ""),
        _ => {}
    }
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    (0, negative, whole.trim_start_matches('0'), fraction.trim_end_matches('0'))
}

/// As `numeric_cmp` does: NaN equals itself and comes last.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    let magnitude = |x: (i8, bool, &str, &str), y: (i8, bool, &str, &str)| {
        x.2.len().cmp(&y.2.len()).then_with(|| x.2.cmp(y.2)).then_with(|| x.3.cmp(y.3))
    };
    a.0.cmp(&b.0).then_with(|| match (a.1, b.1) {
        (false, false) => magnitude(a, b),
        (true, true) => magnitude(b, a),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    })
}

/// The text without the zeros that mean nothing; what is no number stays as it is.
pub(super) fn canonical(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// The nearest integer, halves away from zero.
fn rounded(text: &str, type_oid: u32) -> Result<Datum<'static>, EvalError> {
    let (class, negative, whole, fraction) = parts(text);
    if class != 0 {
        return Err(fails(if text == "NaN" { "cannot convert NaN to an integer" } else { "cannot convert infinity to an integer" }));
    }
    let magnitude = if whole.is_empty() { Some(0) } else { whole.parse::<i128>().ok() };
    let up = fraction.as_bytes().first().is_some_and(|&digit| digit >= b'5');
    let value = magnitude.map(|value| value + i128::from(up)).map(|value| if negative { -value } else { value });
    fit(value.and_then(|value| i64::try_from(value).ok()), type_oid)
}

/// The text of a numeric's bytes behind the header of the varlena (`numeric.c`): digits in base 10,000, `weight` of them and one more
/// before the point, `scale` decimal digits behind it.
pub(super) fn text_of(bytes: &[u8]) -> Option<String> {
    let half = |index: usize| Some(u16::from_le_bytes(*bytes.get(2 * index..)?.first_chunk()?));
    let header = half(0)?;
    let (negative, scale, weight, first) = match header & 0xC000 {
        0xC000 => {
            return match header {
                0xC000 => Some("NaN".to_owned()),
                0xD000 => Some("Infinity".to_owned()),
                0xF000 => Some("-Infinity".to_owned()),
                _ => None,
            };
        }
        0x8000 => {
            let weight = i32::from(header & 0x3F) - if header & 0x40 == 0 { 0 } else { 0x40 };
            (header & 0x2000 != 0, usize::from((header & 0x1F80) >> 7), weight, 1)
        }
        sign => (sign == 0x4000, usize::from(header & 0x3FFF), i32::from(half(1)?.cast_signed()), 2),
    };
    let digit = |place: i32| usize::try_from(weight - place).ok().and_then(|index| half(first + index)).unwrap_or(0);
    let whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", digit(place))).collect();
    let whole = whole.trim_start_matches('0');
    let groups = i32::try_from(scale.div_ceil(4)).ok()?;
    let mut fraction: String = (1..=groups).map(|place| format!("{:04}", digit(-place))).collect();
    fraction.truncate(scale);
    let sign = if negative { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}
