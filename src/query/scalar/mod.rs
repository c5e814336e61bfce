//! The functions, types and orders of PostgreSQL that are computed here, with exactly its meaning.
//!
//! The list is closed and by OID: what is not on it is computed by the source, and what cannot be exact is not on it. Values are
//! the texts PostgreSQL prints (see [`crate::query`]), in UTF-8: a database in another encoding orders and counts other bytes, so
//! its views cannot be planned with these functions. Every entry is compared with PostgreSQL 15 and 18 by `tests/it/scalars.rs`.

mod array;
mod boolean;
mod bytes;
mod cast;
mod constant;
mod float;
mod integer;
mod interval;
mod json;
mod jsonb;
mod like;
mod list;
mod numeric;
mod text;
mod time;

use std::cmp::Ordering;

pub use cast::{bool_to_text, cast};
pub use constant::{array_constant, constant};
pub use interval::{Interval, interval_constant};
pub use list::{Entry, Needs, canonical, entries, native, reviewed_stable};
pub(crate) use time::instant;
pub use time::time;

use crate::query::{Comparison, Datum, EvalError, Kind, Srf};

/// What is known of the collation a function runs under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collation {
    /// The function has none.
    None,
    /// Bytes in order and ASCII letters only: "C" and "POSIX", or a default of a database whose `LC_COLLATE` *and* `LC_CTYPE` are one of
    /// them. (`C.UTF-8` is not: it changes the case of all letters.)
    C,
    /// Equal means equal bytes; order and letters are its own.
    Deterministic,
    /// Different bytes may be equal.
    Other,
}

/// Type OIDs of `pg_type`.
pub(crate) mod oids {
    pub(crate) const BOOL: u32 = 16;
    pub(crate) const BYTEA: u32 = 17;
    pub(crate) const CHAR: u32 = 18;
    pub(crate) const NAME: u32 = 19;
    pub(crate) const INT8: u32 = 20;
    pub(crate) const INT2: u32 = 21;
    pub(crate) const INT4: u32 = 23;
    pub(crate) const TEXT: u32 = 25;
    pub(crate) const OID: u32 = 26;
    pub(crate) const JSON: u32 = 114;
    pub(crate) const FLOAT4: u32 = 700;
    pub(crate) const FLOAT8: u32 = 701;
    pub(crate) const UNKNOWN: u32 = 705;
    pub(crate) const BPCHAR: u32 = 1042;
    pub(crate) const VARCHAR: u32 = 1043;
    pub(crate) const DATE: u32 = 1082;
    pub(crate) const TIMESTAMP: u32 = 1114;
    pub(crate) const TIMESTAMPTZ: u32 = 1184;
    pub(crate) const INTERVAL: u32 = 1186;
    pub(crate) const NUMERIC: u32 = 1700;
    pub(crate) const CSTRING: u32 = 2275;
    pub(crate) const ANY: u32 = 2276;
    pub(crate) const ANYNONARRAY: u32 = 2776;
    pub(crate) const UUID: u32 = 2950;
    pub(crate) const ANYENUM: u32 = 3500;
    pub(crate) const JSONB: u32 = 3802;
}

/// How a cell of the type is read. A domain is what it is over, which the caller looks up.
pub fn kind(type_oid: u32) -> Kind {
    match type_oid {
        oids::BOOL => Kind::Bool,
        oids::INT2 | oids::INT4 | oids::INT8 | oids::OID => Kind::Int,
        _ => Kind::Text,
    }
}

/// How values of the type are ordered under its default operator class; `None` if not in a way known here.
pub fn comparison(type_oid: u32, collation: Collation) -> Option<Comparison> {
    match type_oid {
        oids::BOOL => Some(Comparison::Bool),
        oids::INT2 | oids::INT4 | oids::INT8 | oids::OID => Some(Comparison::Int),
        oids::UUID | oids::BYTEA => Some(Comparison::Bytes),
        oids::TEXT | oids::VARCHAR | oids::NAME if collation == Collation::C => Some(Comparison::Bytes),
        oids::DATE | oids::TIMESTAMP | oids::TIMESTAMPTZ => Some(Comparison::Time),
        oids::NUMERIC => Some(Comparison::Numeric),
        _ => None,
    }
}

/// Compares two texts of one type. A text that is none of the type comes last, by its bytes.
pub fn compare(comparison: Comparison, a: &str, b: &str) -> Ordering {
    match comparison {
        Comparison::Int => by_value(a, b, |text| text.parse::<i64>().ok()),
        Comparison::Bool | Comparison::Bytes => a.cmp(b),
        Comparison::Time => by_value(a, b, instant),
        Comparison::Numeric => numeric::compare(a, b),
    }
}

fn by_value<T: Ord>(a: &str, b: &str, read: impl Fn(&str) -> Option<T>) -> Ordering {
    match (read(a), read(b)) {
        (Some(x), Some(y)) => x.cmp(&y),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// The elements that a set-returning function makes of its argument's text.
pub fn elements(function: Srf, text: &str) -> Result<Vec<Option<String>>, EvalError> {
    match function {
        Srf::Unnest => array::elements(text),
        Srf::JsonbArrayElementsText => json::elements(text, json::Form::Canonical),
        Srf::JsonArrayElementsText => json::elements(text, json::Form::AsWritten),
    }
}

/// An error of PostgreSQL, in its words.
fn fails(message: &'static str) -> EvalError {
    EvalError(message.into())
}

/// A text that is none of its type: the plan or the row is not what the source said it is.
fn malformed() -> EvalError {
    fails("a value is not of the type the plan gives it")
}

/// The text of an argument.
fn str_of<'d>(datum: &'d Datum<'_>) -> Result<&'d str, EvalError> {
    match datum {
        Datum::Text(text) => Ok(text),
        Datum::Null | Datum::Bool(_) | Datum::Int(_) => Err(malformed()),
    }
}
