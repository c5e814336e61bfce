//! int2, int4, int8 and oid: orders, arithmetic, widths, and the input syntax.

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        boolean::BLANKS,
        fails,
        list::{Entry, Needs, equal, ordered, strict},
        malformed,
        oids::{INT2, INT4, INT8, OID},
    },
};

/// The first server whose integers may be written `0x1F`, `0o17`, `0b101` and `1_000`.
const HAS_OTHER_BASES: u32 = 160_000;

/// One arithmetic operator of one pair of widths; the result has the wider one.
macro_rules! arithmetic {
    ($name:literal, [$a:ident, $b:ident], $wide:ident, $plus:literal, $minus:literal, $times:literal, $divide:literal) => {
        [
            strict($plus, concat!($name, "pl"), &[$a, $b], Needs::Nothing, Kind::Int, |args| {
                fit(int(&args[0])?.checked_add(int(&args[1])?), $wide)
            }),
            strict($minus, concat!($name, "mi"), &[$a, $b], Needs::Nothing, Kind::Int, |args| {
                fit(int(&args[0])?.checked_sub(int(&args[1])?), $wide)
            }),
            strict($times, concat!($name, "mul"), &[$a, $b], Needs::Nothing, Kind::Int, |args| {
                fit(int(&args[0])?.checked_mul(int(&args[1])?), $wide)
            }),
            strict($divide, concat!($name, "div"), &[$a, $b], Needs::Nothing, Kind::Int, |args| {
                fit(int(&args[0])?.checked_div(divisor(&args[1])?), $wide)
            }),
        ]
    };
}

/// The operators of one width alone.
macro_rules! alone {
    ($name:literal, $width:ident, $modulo:literal, $minus:literal, $plus:literal, $abs:literal, $abs_too:literal, $modulo_too:literal) => {
        [
            strict($modulo, concat!($name, "mod"), &[$width, $width], Needs::Nothing, Kind::Int, modulo),
            strict($modulo_too, "mod", &[$width, $width], Needs::Nothing, Kind::Int, modulo),
            strict($minus, concat!($name, "um"), &[$width], Needs::Nothing, Kind::Int, |args| fit(int(&args[0])?.checked_neg(), $width)),
            strict($plus, concat!($name, "up"), &[$width], Needs::Nothing, Kind::Int, |args| Ok(Datum::Int(int(&args[0])?))),
            strict($abs, concat!($name, "abs"), &[$width], Needs::Nothing, Kind::Int, |args| fit(int(&args[0])?.checked_abs(), $width)),
            strict($abs_too, "abs", &[$width], Needs::Nothing, Kind::Int, |args| fit(int(&args[0])?.checked_abs(), $width)),
        ]
    };
}

/// A cast between widths.
macro_rules! width {
    ($oid:literal, $name:literal, $from:ident, $to:ident) => {
        strict($oid, $name, &[$from], Needs::Nothing, Kind::Int, |args| fit(Some(int(&args[0])?), $to))
    };
}

/// The functions over integers.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("int2", "", [INT2, INT2], Needs::Nothing, order, 63, 145),
    &ordered!("int2", "", [INT2, INT2], Needs::Nothing, order, 64, 148, 146, 151),
    &equal!("int4", "", [INT4, INT4], Needs::Nothing, order, 65, 144),
    &ordered!("int4", "", [INT4, INT4], Needs::Nothing, order, 66, 149, 147, 150),
    &equal!("int8", "", [INT8, INT8], Needs::Nothing, order, 467, 468),
    &ordered!("int8", "", [INT8, INT8], Needs::Nothing, order, 469, 471, 470, 472),
    &equal!("int24", "", [INT2, INT4], Needs::Nothing, order, 158, 164),
    &ordered!("int24", "", [INT2, INT4], Needs::Nothing, order, 160, 166, 162, 168),
    &equal!("int42", "", [INT4, INT2], Needs::Nothing, order, 159, 165),
    &ordered!("int42", "", [INT4, INT2], Needs::Nothing, order, 161, 167, 163, 169),
    &equal!("int28", "", [INT2, INT8], Needs::Nothing, order, 1850, 1851),
    &ordered!("int28", "", [INT2, INT8], Needs::Nothing, order, 1852, 1854, 1853, 1855),
    &equal!("int82", "", [INT8, INT2], Needs::Nothing, order, 1856, 1857),
    &ordered!("int82", "", [INT8, INT2], Needs::Nothing, order, 1858, 1860, 1859, 1861),
    &equal!("int48", "", [INT4, INT8], Needs::Nothing, order, 852, 853),
    &ordered!("int48", "", [INT4, INT8], Needs::Nothing, order, 854, 856, 855, 857),
    &equal!("int84", "", [INT8, INT4], Needs::Nothing, order, 474, 475),
    &ordered!("int84", "", [INT8, INT4], Needs::Nothing, order, 476, 478, 477, 479),
    &equal!("oid", "", [OID, OID], Needs::Nothing, order, 184, 185),
    &ordered!("oid", "", [OID, OID], Needs::Nothing, order, 716, 717, 1638, 1639),
    &arithmetic!("int2", [INT2, INT2], INT2, 176, 180, 152, 153),
    &arithmetic!("int4", [INT4, INT4], INT4, 177, 181, 141, 154),
    &arithmetic!("int8", [INT8, INT8], INT8, 463, 464, 465, 466),
    &arithmetic!("int24", [INT2, INT4], INT4, 178, 182, 170, 172),
    &arithmetic!("int42", [INT4, INT2], INT4, 179, 183, 171, 173),
    &arithmetic!("int28", [INT2, INT8], INT8, 841, 942, 943, 948),
    &arithmetic!("int82", [INT8, INT2], INT8, 837, 838, 839, 840),
    &arithmetic!("int48", [INT4, INT8], INT8, 1278, 1279, 1280, 1281),
    &arithmetic!("int84", [INT8, INT4], INT8, 1274, 1275, 1276, 1277),
    &alone!("int2", INT2, 155, 213, 1911, 1253, 1398, 940),
    &alone!("int4", INT4, 156, 212, 1912, 1251, 1397, 941),
    &alone!("int8", INT8, 945, 462, 1910, 1230, 1396, 947),
    &[
        width!(313, "int4", INT2, INT4),
        width!(754, "int8", INT2, INT8),
        width!(481, "int8", INT4, INT8),
        width!(314, "int2", INT4, INT2),
        width!(714, "int2", INT8, INT2),
        width!(480, "int4", INT8, INT4),
        width!(1287, "oid", INT8, OID),
        width!(1288, "int8", OID, INT8),
    ],
];

fn order(args: &[Datum<'_>]) -> Result<std::cmp::Ordering, EvalError> {
    Ok(int(&args[0])?.cmp(&int(&args[1])?))
}

/// The number of an argument.
pub(super) fn int(datum: &Datum<'_>) -> Result<i64, EvalError> {
    match datum {
        Datum::Int(value) => Ok(*value),
        Datum::Text(text) => text.parse().map_err(|_| malformed()),
        Datum::Null | Datum::Bool(_) => Err(malformed()),
    }
}

/// `value` if the type can hold it; `None` is one that not even an `i64` holds.
pub(super) fn fit(value: Option<i64>, type_oid: u32) -> Result<Datum<'static>, EvalError> {
    let (fits, error): (fn(i64) -> bool, _) = match type_oid {
        INT2 => (|value| i16::try_from(value).is_ok(), "smallint out of range"),
        INT4 => (|value| i32::try_from(value).is_ok(), "integer out of range"),
        OID => (|value| u32::try_from(value).is_ok(), "OID out of range"),
        _ => (|_| true, "bigint out of range"),
    };
    value.filter(|value| fits(*value)).map(Datum::Int).ok_or(fails(error))
}

fn divisor(datum: &Datum<'_>) -> Result<i64, EvalError> {
    match int(datum)? {
        0 => Err(fails("division by zero")),
        other => Ok(other),
    }
}

/// The sign is the dividend's; the least integer modulo -1 is 0, although the quotient does not exist.
fn modulo<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    Ok(Datum::Int(int(&args[0])?.wrapping_rem(divisor(&args[1])?)))
}

/// `int2in`, `int4in` and `int8in` of a server of that version: blanks around, a sign, digits.
pub(super) fn read(text: &str, type_oid: u32, server_version: u32) -> Result<Datum<'static>, EvalError> {
    let syntax = || fails("invalid input syntax for an integer");
    let trimmed = text.trim_matches(BLANKS);
    let (negative, digits) = match trimmed.as_bytes().first() {
        Some(b'-') => (true, &trimmed[1..]),
        Some(b'+') => (false, &trimmed[1..]),
        _ => (false, trimmed),
    };
    let modern = server_version >= HAS_OTHER_BASES;
    let base = |prefix: char| digits.strip_prefix('0').and_then(|rest| rest.strip_prefix([prefix, prefix.to_ascii_uppercase()]));
    let (radix, digits) = match modern.then(|| [(16, base('x')), (8, base('o')), (2, base('b'))]) {
        Some([(radix, Some(digits)), ..] | [_, (radix, Some(digits)), _] | [.., (radix, Some(digits))]) => (radix, digits),
        Some([(_, None), (_, None), (_, None)]) | None => (10, digits),
    };
    let value = magnitude(digits, radix, modern).ok_or_else(syntax)?;
    let signed = value.and_then(|value| if negative { 0_i64.checked_sub_unsigned(value) } else { i64::try_from(value).ok() });
    fit(signed, type_oid)
}

/// The digits' value, `Some(None)` if it is beyond a `u64`; `None` is a syntax error.
fn magnitude(digits: &str, radix: u32, underscores: bool) -> Option<Option<u64>> {
    let mut value = Some(0_u64);
    // An underscore stands before a digit, and in decimal numbers only between two.
    let mut before = if radix == 10 { '_' } else { '0' };
    for char in digits.chars() {
        if char == '_' {
            if !underscores || before == '_' {
                return None;
            }
        } else {
            let digit = char.to_digit(radix)?;
            value = value.and_then(|value| value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit)));
        }
        before = char;
    }
    (!digits.is_empty() && before != '_').then_some(value)
}
