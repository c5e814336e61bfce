//! Types whose texts are equal and ordered like their values: uuid, bytea (in hex), name, "char", enums (equality only).

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        fails,
        list::{Entry, Needs, equal, ordered, strict},
        oids::{ANYENUM, BYTEA, CHAR, NAME, TEXT, UUID},
        str_of,
    },
};

/// The functions over these types.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("uuid_", "", [UUID, UUID], Needs::Nothing, order, 2956, 2959),
    &ordered!("uuid_", "", [UUID, UUID], Needs::Nothing, order, 2954, 2955, 2958, 2957),
    &equal!("bytea", "", [BYTEA, BYTEA], Needs::Nothing, order, 1948, 1953),
    &ordered!("bytea", "", [BYTEA, BYTEA], Needs::Nothing, order, 1949, 1950, 1951, 1952),
    &equal!("name", "", [NAME, NAME], Needs::Deterministic, order, 62, 659),
    &ordered!("name", "", [NAME, NAME], Needs::C, order, 655, 656, 657, 658),
    &equal!("name", "text", [NAME, TEXT], Needs::Deterministic, order, 240, 245),
    &ordered!("name", "text", [NAME, TEXT], Needs::C, order, 241, 242, 244, 243),
    &equal!("text", "name", [TEXT, NAME], Needs::Deterministic, order, 247, 252),
    &ordered!("text", "name", [TEXT, NAME], Needs::C, order, 248, 249, 251, 250),
    // Its order is that of the byte, which is not that of `\200` and what it prints for other bytes beyond ASCII.
    &equal!("char", "", [CHAR, CHAR], Needs::Nothing, order, 61, 70),
    // Labels are unique within an enum. Their order is the declaration's, which the texts do not tell.
    &equal!("enum_", "", [ANYENUM, ANYENUM], Needs::Nothing, order, 3508, 3509),
    &[
        strict(720, "octet_length", &[BYTEA], Needs::Nothing, Kind::Int, bytea_length),
        strict(2010, "length", &[BYTEA], Needs::Nothing, Kind::Int, bytea_length),
    ],
];

/// Hexadecimal digits are ordered like their values, and a prefix comes first in both.
pub(super) fn order(args: &[Datum<'_>]) -> Result<std::cmp::Ordering, EvalError> {
    Ok(str_of(&args[0])?.as_bytes().cmp(str_of(&args[1])?.as_bytes()))
}

fn bytea_length<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    let digits = str_of(&args[0])?.len().saturating_sub("\\x".len());
    Ok(Datum::Int(i64::try_from(digits / 2).unwrap_or(i64::MAX)))
}

/// `uuid_in`: 32 digits of any case, a hyphen allowed after every fourth, all in braces or not.
pub(super) fn read_uuid(text: &str) -> Result<String, EvalError> {
    let wrong = || fails("invalid input syntax for type uuid");
    let inner = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').ok_or_else(wrong)?,
        None => text,
    };
    let mut uuid = String::with_capacity(36);
    let (mut digits, mut hyphen) = (0, false);
    for char in inner.chars() {
        if char == '-' && !hyphen && digits > 0 && digits % 4 == 0 && digits < 32 {
            hyphen = true;
            continue;
        }
        if !char.is_ascii_hexdigit() || digits == 32 {
            return Err(wrong());
        }
        if matches!(digits, 8 | 12 | 16 | 20) {
            uuid.push('-');
        }
        uuid.push(char.to_ascii_lowercase());
        digits += 1;
        hyphen = false;
    }
    if digits == 32 { Ok(uuid) } else { Err(wrong()) }
}
