//! Casts through text: what `CoerceViaIO` does, an output function followed by an input function.
//!
//! A cell *is* what the output function printed, so a cast to a string type copies it, whatever the other type.

use crate::query::{
    Datum, EvalError, Kind, Native,
    scalar::{
        Collation, boolean, bytes, integer,
        list::{Entry, Needs, native, strict},
        malformed,
        oids::{BOOL, BPCHAR, INT2, INT4, INT8, OID, TEXT, UUID, VARCHAR},
    },
};

/// Output functions, for whoever calls them by name.
pub(super) static ENTRIES: &[&[Entry]] = &[&[
    strict(1243, "boolout", &[BOOL], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into()))),
    strict(39, "int2out", &[INT2], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into()))),
    strict(43, "int4out", &[INT4], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into()))),
    strict(461, "int8out", &[INT8], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into()))),
    strict(1799, "oidout", &[OID], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into()))),
]];

/// The server versions on either side of the one whose integers may be written in other bases.
const DECIMAL_ONLY: u32 = 150_000;
const OTHER_BASES: u32 = 160_000;

/// A cast that is no function of `pg_proc`.
const fn io(name: &'static str, result: Kind, eval: for<'a> fn(&[Datum<'a>]) -> Result<Datum<'a>, EvalError>) -> Native {
    Native { oid: 0, name, strict: true, result, eval }
}

static TO_TEXT: Native = io("as text", Kind::Text, |args| Ok(Datum::Text(printed(&args[0])?.into())));
static TO_BOOL: Native = io("as boolean", Kind::Bool, |args| Ok(Datum::Bool(boolean::read(&printed(&args[0])?)?)));
static TO_UUID: Native = io("as uuid", Kind::Text, |args| Ok(Datum::Text(bytes::read_uuid(&printed(&args[0])?)?.into())));
static TO_INT2: Native = io("as smallint", Kind::Int, |args| integer::read(&printed(&args[0])?, INT2, OTHER_BASES));
static TO_INT4: Native = io("as integer", Kind::Int, |args| integer::read(&printed(&args[0])?, INT4, OTHER_BASES));
static TO_INT8: Native = io("as bigint", Kind::Int, |args| integer::read(&printed(&args[0])?, INT8, OTHER_BASES));
static TO_INT2_DECIMAL: Native = io("as decimal smallint", Kind::Int, |args| integer::read(&printed(&args[0])?, INT2, DECIMAL_ONLY));
static TO_INT4_DECIMAL: Native = io("as decimal integer", Kind::Int, |args| integer::read(&printed(&args[0])?, INT4, DECIMAL_ONLY));
static TO_INT8_DECIMAL: Native = io("as decimal bigint", Kind::Int, |args| integer::read(&printed(&args[0])?, INT8, DECIMAL_ONLY));

fn printed(datum: &Datum<'_>) -> Result<String, EvalError> {
    Ok(datum.text().ok_or_else(malformed)?.into_owned())
}

/// The cast by input and output functions between two types, without a modifier, on a server of that `server_version_num`: since 16,
/// `'0x10'::int` is a number.
pub fn cast(_from_type: u32, to_type: u32, server_version: u32) -> Option<&'static Native> {
    let modern = server_version >= OTHER_BASES;
    match to_type {
        TEXT | VARCHAR | BPCHAR => Some(&TO_TEXT),
        BOOL => Some(&TO_BOOL),
        UUID => Some(&TO_UUID),
        INT2 => Some(if modern { &TO_INT2 } else { &TO_INT2_DECIMAL }),
        INT4 => Some(if modern { &TO_INT4 } else { &TO_INT4_DECIMAL }),
        INT8 => Some(if modern { &TO_INT8 } else { &TO_INT8_DECIMAL }),
        _ => None,
    }
}

/// `boolean::text`: a fact says `true`, a cell says `t`.
pub fn bool_to_text() -> &'static Native {
    native(2971, &[BOOL], Collation::None).expect("it is on the list")
}
