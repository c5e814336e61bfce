//! text, varchar and bpchar. Lengths and places count characters, which are those of UTF-8.

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        boolean,
        bytes::order,
        fails,
        integer::int,
        like,
        list::{Entry, Needs, equal, lenient, ordered, strict},
        malformed,
        oids::{ANY, ANYNONARRAY, BPCHAR, INT4, NAME, TEXT},
        str_of,
    },
};

/// The least int4.
const LEAST: i64 = i32::MIN as i64;

/// A function of one text with a text as its result.
macro_rules! maps {
    ($oid:literal, $name:literal, $type:ident, $needs:expr, $map:expr) => {
        strict($oid, $name, &[$type], $needs, Kind::Text, |args| {
            let map: fn(&str) -> String = $map;
            Ok(Datum::Text(map(str_of(&args[0])?).into()))
        })
    };
}

/// `btrim`, `ltrim` and `rtrim` of the characters in the second argument.
macro_rules! trims {
    ($oid:literal, $name:literal, $trim:ident) => {
        strict($oid, $name, &[TEXT, TEXT], Needs::Nothing, Kind::Text, |args| {
            let set = str_of(&args[1])?;
            Ok(Datum::Text(str_of(&args[0])?.$trim(|char| set.contains(char)).to_owned().into()))
        })
    };
}

/// A number counted in one text.
macro_rules! counts {
    ($oid:literal, $name:literal, $type:ident, $count:expr) => {
        strict($oid, $name, &[$type], Needs::Nothing, Kind::Int, |args| {
            let count: fn(&str) -> usize = $count;
            number(count(str_of(&args[0])?))
        })
    };
}

/// `LIKE` and `NOT LIKE` of one type.
macro_rules! likes {
    ($oid:literal, $name:literal, $not:literal, $not_name:literal, $type:ident) => {
        [
            strict($oid, $name, &[$type, TEXT], Needs::Deterministic, Kind::Bool, |args| {
                Ok(Datum::Bool(like::matches(str_of(&args[0])?, str_of(&args[1])?)?))
            }),
            strict($not, $not_name, &[$type, TEXT], Needs::Deterministic, Kind::Bool, |args| {
                Ok(Datum::Bool(!like::matches(str_of(&args[0])?, str_of(&args[1])?)?))
            }),
        ]
    };
}

/// The functions over strings.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("text", "", [TEXT, TEXT], Needs::Deterministic, order, 67, 157),
    &ordered!("text_", "", [TEXT, TEXT], Needs::C, order, 740, 741, 742, 743),
    &equal!("bpchar", "", [BPCHAR, BPCHAR], Needs::Deterministic, padded_order, 1048, 1053),
    &ordered!("bpchar", "", [BPCHAR, BPCHAR], Needs::C, padded_order, 1049, 1050, 1051, 1052),
    &[
        strict(1258, "textcat", &[TEXT, TEXT], Needs::Nothing, Kind::Text, concatenate),
        strict(2003, "textanycat", &[TEXT, ANYNONARRAY], Needs::Nothing, Kind::Text, concatenate),
        strict(2004, "anytextcat", &[ANYNONARRAY, TEXT], Needs::Nothing, Kind::Text, concatenate),
        lenient(3058, "concat", &[ANY], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(join("", args).into()))),
        lenient(3059, "concat_ws", &[TEXT, ANY], Needs::Nothing, Kind::Text, |args| {
            Ok(args[0].text().map_or(Datum::Null, |separator| Datum::Text(join(&separator, &args[1..]).into())))
        }),
    ],
    &[
        maps!(401, "text", BPCHAR, Needs::Nothing, |text| text.trim_end_matches(' ').to_owned()),
        maps!(406, "text", NAME, Needs::Nothing, str::to_owned),
        maps!(1401, "varchar", NAME, Needs::Nothing, str::to_owned),
        // Under "C" a byte beyond ASCII has no case.
        maps!(870, "lower", TEXT, Needs::C, str::to_ascii_lowercase),
        maps!(871, "upper", TEXT, Needs::C, str::to_ascii_uppercase),
        maps!(885, "btrim", TEXT, Needs::Nothing, |text| text.trim_matches(' ').to_owned()),
        maps!(881, "ltrim", TEXT, Needs::Nothing, |text| text.trim_start_matches(' ').to_owned()),
        maps!(882, "rtrim", TEXT, Needs::Nothing, |text| text.trim_end_matches(' ').to_owned()),
        maps!(3062, "reverse", TEXT, Needs::Nothing, |text| text.chars().rev().collect()),
        trims!(884, "btrim", trim_matches),
        trims!(875, "ltrim", trim_start_matches),
        trims!(876, "rtrim", trim_end_matches),
    ],
    &[
        counts!(1317, "length", TEXT, |text| text.chars().count()),
        counts!(1257, "textlen", TEXT, |text| text.chars().count()),
        counts!(1381, "char_length", TEXT, |text| text.chars().count()),
        counts!(1369, "character_length", TEXT, |text| text.chars().count()),
        counts!(1318, "length", BPCHAR, |text| text.trim_end_matches(' ').chars().count()),
        counts!(1372, "char_length", BPCHAR, |text| text.trim_end_matches(' ').chars().count()),
        counts!(1367, "character_length", BPCHAR, |text| text.trim_end_matches(' ').chars().count()),
        counts!(1374, "octet_length", TEXT, str::len),
    ],
    &[
        strict(3060, "left", &[TEXT, INT4], Needs::Nothing, Kind::Text, |args| {
            let (text, at) = cut(args)?;
            Ok(Datum::Text(text[..at].to_owned().into()))
        }),
        strict(3061, "right", &[TEXT, INT4], Needs::Nothing, Kind::Text, |args| {
            let (text, count) = (str_of(&args[0])?, int(&args[1])?);
            let skipped = match count {
                // PostgreSQL negates it, which leaves it as it is, and skips that many: none.
                LEAST => 0,
                ..0 => -count,
                0.. => char_count(text) - count,
            };
            Ok(Datum::Text(text[byte_of(text, skipped)..].to_owned().into()))
        }),
        strict(883, "substr", &[TEXT, INT4], Needs::Nothing, Kind::Text, substring),
        strict(937, "substring", &[TEXT, INT4], Needs::Nothing, Kind::Text, substring),
        strict(877, "substr", &[TEXT, INT4, INT4], Needs::Nothing, Kind::Text, substring),
        strict(936, "substring", &[TEXT, INT4, INT4], Needs::Nothing, Kind::Text, substring),
        strict(2087, "replace", &[TEXT, TEXT, TEXT], Needs::Deterministic, Kind::Text, |args| {
            let [text, from, to] = [str_of(&args[0])?, str_of(&args[1])?, str_of(&args[2])?];
            Ok(Datum::Text(if from.is_empty() { text.to_owned() } else { text.replace(from, to) }.into()))
        }),
        strict(2088, "split_part", &[TEXT, TEXT, INT4], Needs::Deterministic, Kind::Text, |args| {
            let field = split_part(str_of(&args[0])?, str_of(&args[1])?, int(&args[2])?)?;
            Ok(Datum::Text(field.to_owned().into()))
        }),
        strict(3696, "starts_with", &[TEXT, TEXT], Needs::Deterministic, Kind::Bool, |args| {
            Ok(Datum::Bool(str_of(&args[0])?.starts_with(str_of(&args[1])?)))
        }),
        strict(868, "strpos", &[TEXT, TEXT], Needs::Deterministic, Kind::Int, position),
        strict(849, "position", &[TEXT, TEXT], Needs::Deterministic, Kind::Int, position),
    ],
    &likes!(850, "textlike", 851, "textnlike", TEXT),
    &likes!(1569, "like", 1570, "notlike", TEXT),
    &likes!(1631, "bpcharlike", 1632, "bpcharnlike", BPCHAR),
    &likes!(858, "namelike", 859, "namenlike", NAME),
];

/// bpchar ignores trailing blanks.
fn padded_order(args: &[Datum<'_>]) -> Result<std::cmp::Ordering, EvalError> {
    let [a, b] = [str_of(&args[0])?, str_of(&args[1])?].map(|text| text.trim_end_matches(' ').as_bytes());
    Ok(a.cmp(b))
}

/// `||`: the operand that is no text is cast to one, a boolean to `true` or `false`.
fn concatenate<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    let mut joined = String::new();
    for arg in args {
        match arg {
            Datum::Bool(value) => joined.push_str(boolean::word(*value)),
            other => joined.push_str(&other.text().ok_or_else(malformed)?),
        }
    }
    Ok(Datum::Text(joined.into()))
}

/// `concat` and `concat_ws`: values as they are printed, NULLs left out.
fn join(separator: &str, args: &[Datum<'_>]) -> String {
    let mut joined = String::new();
    for (index, text) in args.iter().filter_map(Datum::text).enumerate() {
        joined.push_str(if index == 0 { "" } else { separator });
        joined.push_str(&text);
    }
    joined
}

fn number(count: usize) -> Result<Datum<'static>, EvalError> {
    i64::try_from(count).map(Datum::Int).map_err(|_| malformed())
}

fn char_count(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

/// Where the first `count` characters end, in bytes.
fn byte_of(text: &str, count: i64) -> usize {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
}

/// The text and where its first n characters end, or all but its last -n.
fn cut<'d>(args: &'d [Datum<'_>]) -> Result<(&'d str, usize), EvalError> {
    let (text, count) = (str_of(&args[0])?, int(&args[1])?);
    let count = if count < 0 { char_count(text).saturating_add(count) } else { count };
    Ok((text, byte_of(text, count)))
}

/// From a place, which may be before the start, and for a length counted from that place.
fn substring<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    let (text, start) = (str_of(&args[0])?, int(&args[1])?);
    let end = match args.get(2).map(int).transpose()? {
        Some(length) if length < 0 => return Err(fails("negative substring length not allowed")),
        Some(length) => start.saturating_add(length),
        None => i64::MAX,
    };
    let from = byte_of(text, start.max(1) - 1);
    let to = byte_of(text, end.max(1) - 1).max(from);
    Ok(Datum::Text(text[from..to].to_owned().into()))
}

/// The n-th field, or the n-th from the end; nothing if there is none.
fn split_part<'t>(text: &'t str, delimiter: &str, field: i64) -> Result<&'t str, EvalError> {
    if field == 0 {
        return Err(fails("field position must not be zero"));
    }
    if delimiter.is_empty() {
        return Ok(if matches!(field, 1 | -1) { text } else { "" });
    }
    // Fields are counted from the left also for the last ones: delimiters that overlap are found in that order.
    let fields = text.split(delimiter);
    let index = if field > 0 { field - 1 } else { i64::try_from(fields.clone().count()).unwrap_or(i64::MAX) + field };
    Ok(usize::try_from(index).ok().and_then(|index| fields.clone().nth(index)).unwrap_or(""))
}

/// The place of the first character of a match, from 1.
fn position<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    let (text, wanted) = (str_of(&args[0])?, str_of(&args[1])?);
    number(text.find(wanted).map_or(0, |at| text[..at].chars().count() + 1))
}
