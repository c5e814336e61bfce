//! The list itself: which OID is which function, under what conditions.

use crate::query::{
    Datum, EvalError, Kind, Native,
    scalar::{
        Collation, boolean, bytes, cast, float, integer, json, numeric,
        oids::{
            ANY, ANYENUM, ANYNONARRAY, BOOL, BPCHAR, BYTEA, DATE, FLOAT4, FLOAT8, INT2, INT4, INT8, JSON, JSONB, NAME, NUMERIC, OID, TEXT,
            TIMESTAMP, TIMESTAMPTZ, UUID, VARCHAR,
        },
        str_of, text, time,
    },
};

/// A function of PostgreSQL that is computed here, and when.
#[derive(Debug)]
pub struct Entry {
    /// The function.
    pub native: Native,
    /// The types of its arguments as `pg_proc` declares them.
    pub args: &'static [u32],
    /// What its collation must be.
    pub needs: Needs,
}

/// What a function's collation must be for it to be computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// It does not matter.
    Nothing,
    /// Equal means equal bytes.
    Deterministic,
    /// Order and letters of "C".
    C,
}

/// Types whose values `||` with a text prints as they stand in a cell. bpchar, inet, xml and "char" have casts of their own, and so may
/// any type of the user's; see [`native`] for enums.
const PRINTED: [u32; 18] =
    [BOOL, BYTEA, NAME, INT2, INT4, INT8, TEXT, VARCHAR, OID, JSON, JSONB, FLOAT4, FLOAT8, DATE, TIMESTAMP, TIMESTAMPTZ, NUMERIC, UUID];

/// Stable only because the output function of some type is: they depend on their arguments and on the settings every session of ours pins.
/// `textanycat`, `anytextcat`, `concat`, `concat_ws`, `format` (both), `enum_out`, `enum_in` (labels are watched apart),
/// `array_out`, `date_out`, `timestamp_out`,
/// `timestamptz_out`, `array_to_string` (both).
const STABLE_BY_TYPE: [u32; 14] = [2003, 2004, 3058, 3059, 3539, 3540, 3507, 3506, 751, 1085, 1313, 1151, 395, 384];

type Eval = for<'a> fn(&[Datum<'a>]) -> Result<Datum<'a>, EvalError>;

/// A strict function.
pub(super) const fn strict(oid: u32, name: &'static str, args: &'static [u32], needs: Needs, result: Kind, eval: Eval) -> Entry {
    Entry { native: Native { oid, name, strict: true, result, eval }, args, needs }
}

/// A function that is called with NULLs.
pub(super) const fn lenient(oid: u32, name: &'static str, args: &'static [u32], needs: Needs, result: Kind, eval: Eval) -> Entry {
    Entry { native: Native { oid, name, strict: false, result, eval }, args, needs }
}

/// One comparison: a function that is true if the order of its arguments is.
macro_rules! comparison {
    ($oid:literal, $name:expr, $types:expr, $needs:expr, $order:path, $is:ident) => {
        strict($oid, $name, &$types, $needs, Kind::Bool, |args| Ok(Datum::Bool($order(args)?.$is())))
    };
}
pub(super) use comparison;

/// `=` and `<>` by an order: the function's name before and after `eq`, its types, what it needs, the order, the OIDs.
macro_rules! equal {
    ($before:literal, $after:literal, $types:expr, $needs:expr, $order:path, $eq:literal, $ne:literal) => {
        [
            $crate::query::scalar::list::comparison!($eq, concat!($before, "eq", $after), $types, $needs, $order, is_eq),
            $crate::query::scalar::list::comparison!($ne, concat!($before, "ne", $after), $types, $needs, $order, is_ne),
        ]
    };
}
pub(super) use equal;

/// `<`, `<=`, `>` and `>=` by an order.
macro_rules! ordered {
    ($before:literal, $after:literal, $types:expr, $needs:expr, $order:path, $lt:literal, $le:literal, $gt:literal, $ge:literal) => {
        [
            $crate::query::scalar::list::comparison!($lt, concat!($before, "lt", $after), $types, $needs, $order, is_lt),
            $crate::query::scalar::list::comparison!($le, concat!($before, "le", $after), $types, $needs, $order, is_le),
            $crate::query::scalar::list::comparison!($gt, concat!($before, "gt", $after), $types, $needs, $order, is_gt),
            $crate::query::scalar::list::comparison!($ge, concat!($before, "ge", $after), $types, $needs, $order, is_ge),
        ]
    };
}
pub(super) use ordered;

/// Every function, for the test that compares them with PostgreSQL.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    let modules =
        [boolean::ENTRIES, bytes::ENTRIES, cast::ENTRIES, float::ENTRIES, integer::ENTRIES, json::ENTRIES, numeric::ENTRIES, text::ENTRIES];
    modules.into_iter().chain([time::ENTRIES]).flat_map(|groups| groups.iter().flat_map(|group| group.iter()))
}

/// The function `oid` for arguments of these types (domains as their bases) under this collation; `None` if it cannot be computed here.
///
/// For `||` with an enum, whose text may come from a cast that the user made, pass `anyenum` (3500) as its type if there is none.
/// A call with `VARIADIC` before its last argument is another function: do not ask for it.
pub fn native(oid: u32, arg_types: &[u32], collation: Collation) -> Option<&'static Native> {
    let entry = entries().find(|entry| entry.native.oid == oid)?;
    let satisfied = match entry.needs {
        Needs::Nothing => true,
        Needs::Deterministic => matches!(collation, Collation::C | Collation::Deterministic),
        Needs::C => collation == Collation::C,
    };
    (satisfied && takes(entry, arg_types)).then_some(&entry.native)
}

/// Whether the entry's function is the one for arguments of these types.
fn takes(entry: &Entry, arg_types: &[u32]) -> bool {
    let variadic = entry.args.last() == Some(&ANY);
    let enough = if variadic { arg_types.len() >= entry.args.len() } else { arg_types.len() == entry.args.len() };
    enough
        && arg_types.iter().enumerate().all(|(index, &actual)| match entry.args.get(index).copied().unwrap_or(ANY) {
            // An output function makes the text of a cell, whatever the type.
            ANY => true,
            ANYENUM => actual == arg_types[0],
            ANYNONARRAY => PRINTED.contains(&actual) || actual == ANYENUM,
            declared => actual == declared,
        })
}

/// Whether a function is declared STABLE and yet depends on its arguments alone, under the settings that every session of ours pins.
pub fn reviewed_stable(oid: u32) -> bool {
    STABLE_BY_TYPE.contains(&oid) || entries().any(|entry| entry.native.oid == oid)
}

static NUMERIC_KEY: Native = Native {
    oid: 0,
    name: "canonical numeric",
    strict: true,
    result: Kind::Text,
    eval: |args| Ok(Datum::Text(numeric::canonical(str_of(&args[0])?).to_owned().into())),
};

static FLOAT_KEY: Native = Native {
    oid: 0,
    name: "canonical float",
    strict: true,
    result: Kind::Text,
    eval: |args| Ok(Datum::Text(float::canonical(str_of(&args[0])?).to_owned().into())),
};

static BPCHAR_KEY: Native = Native {
    oid: 0,
    name: "canonical character",
    strict: true,
    result: Kind::Text,
    eval: |args| Ok(Datum::Text(str_of(&args[0])?.trim_end_matches(' ').to_owned().into())),
};

/// What makes a key of a value whose text is not: equal results mean SQL equality (for bpchar under a deterministic collation).
pub fn canonical(type_oid: u32) -> Option<&'static Native> {
    match type_oid {
        NUMERIC => Some(&NUMERIC_KEY),
        FLOAT4 | FLOAT8 => Some(&FLOAT_KEY),
        BPCHAR => Some(&BPCHAR_KEY),
        _ => None,
    }
}
