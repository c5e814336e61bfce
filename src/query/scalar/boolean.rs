//! Booleans: orders, and reading and writing their words.

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        fails,
        integer::int,
        list::{Entry, Needs, equal, ordered, strict},
        malformed,
        oids::{BOOL, INT4},
    },
};

/// What C's `isspace` takes for a blank in the texts that input functions read.
pub(super) const BLANKS: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// The functions over booleans.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("bool", "", [BOOL, BOOL], Needs::Nothing, order, 60, 84),
    &ordered!("bool", "", [BOOL, BOOL], Needs::Nothing, order, 56, 1691, 57, 1692),
    &[
        strict(2557, "bool", &[INT4], Needs::Nothing, Kind::Bool, |args| Ok(Datum::Bool(int(&args[0])? != 0))),
        strict(2558, "int4", &[BOOL], Needs::Nothing, Kind::Int, |args| Ok(Datum::Int(i64::from(bool_of(&args[0])?)))),
        strict(2971, "text", &[BOOL], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(word(bool_of(&args[0])?).into()))),
    ],
];

fn order(args: &[Datum<'_>]) -> Result<std::cmp::Ordering, EvalError> {
    Ok(bool_of(&args[0])?.cmp(&bool_of(&args[1])?))
}

/// The truth value of an argument.
pub(super) fn bool_of(datum: &Datum<'_>) -> Result<bool, EvalError> {
    match datum {
        Datum::Bool(_) | Datum::Text(_) => Ok(datum.bool()),
        Datum::Null | Datum::Int(_) => Err(malformed()),
    }
}

/// `boolean::text`, which is not how a boolean is printed.
pub(super) fn word(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// `boolin`: any unique prefix of true, false, yes, no, on and off, in any case, and 1 and 0.
pub(super) fn read(text: &str) -> Result<bool, EvalError> {
    let word = text.trim_matches(BLANKS).to_ascii_lowercase();
    let starts = |whole: &str, least: usize| word.len() >= least && whole.starts_with(word.as_str());
    if starts("true", 1) || starts("yes", 1) || word == "on" || word == "1" {
        return Ok(true);
    }
    if starts("false", 1) || starts("no", 1) || starts("off", 2) || word == "0" {
        return Ok(false);
    }
    Err(fails("invalid input syntax for type boolean"))
}
