//! The datum of a constant in a node tree, as the text PostgreSQL prints for it.
//!
//! `outDatum` prints memory: a value passed by value as the 8 bytes of a Datum, anything else as its own bytes, both in the order of the
//! server's processor, which is taken to be little-endian. On another the lengths and sign bytes do not fit, and the constant is refused.
//! The layouts are those of `c.h`, `numeric.c`, `jsonb.h` and `array.h`; they have not changed since 9.4, since `pg_upgrade` keeps them.

use crate::query::scalar::{
    float, interval,
    interval::interval_constant,
    jsonb, numeric,
    oids::{
        BOOL, BPCHAR, BYTEA, CHAR, CSTRING, DATE, FLOAT4, FLOAT8, INT2, INT4, INT8, INTERVAL, JSON, JSONB, NAME, NUMERIC, OID, TEXT,
        TIMESTAMP, TIMESTAMPTZ, UNKNOWN, UUID, VARCHAR,
    },
};

/// Days from 0000-03-01 to 2000-01-01.
const EPOCH_DAY: i64 = 730_425;
const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Header of an array without its dimensions.
const ARRAY_HEADER: usize = 16;
/// PostgreSQL's own limit on dimensions.
const MAX_DIMENSIONS: usize = 6;

/// The canonical text of the datum of a CONST; `None` for a type that is not known here, or bytes that are none of it. An enum's is the
/// OID of its row in `pg_enum`: read it as `oid`.
pub fn constant(type_oid: u32, bytes: &[u8]) -> Option<String> {
    match type_oid {
        BOOL => Some(if by_value(bytes, 1)? == 0 { "f" } else { "t" }.to_owned()),
        CHAR => match u8::try_from(by_value(bytes, 1)? & 0xFF).ok()? {
            0 => Some(String::new()),
            byte => byte.is_ascii().then(|| char::from(byte).to_string()),
        },
        INT2 => Some(by_value(bytes, 2)?.to_string()),
        INT4 => Some(by_value(bytes, 4)?.to_string()),
        INT8 => Some(by_value(bytes, 8)?.to_string()),
        OID => Some((by_value(bytes, 4)? & 0xFFFF_FFFF).to_string()),
        FLOAT4 => Some(float::single_text(f32::from_bits(u32::try_from(by_value(bytes, 4)? & 0xFFFF_FFFF).ok()?))),
        FLOAT8 => Some(float::double_text(f64::from_bits(by_value(bytes, 8)?.cast_unsigned()))),
        DATE => date(by_value(bytes, 4)?),
        TIMESTAMP => timestamp(by_value(bytes, 8)?, ""),
        TIMESTAMPTZ => timestamp(by_value(bytes, 8)?, "+00"),
        INTERVAL => interval_constant(bytes).map(interval::Interval::text),
        UUID => uuid(bytes),
        NAME if bytes.len() == 64 => until_zero(bytes),
        UNKNOWN | CSTRING => until_zero(bytes),
        TEXT | VARCHAR | BPCHAR | JSON => Some(std::str::from_utf8(payload(bytes)?).ok()?.to_owned()),
        BYTEA => Some(format!("\\x{}", hex(payload(bytes)?))),
        NUMERIC => numeric::text_of(payload(bytes)?),
        JSONB => jsonb::text_of(payload(bytes)?),
        _ => None,
    }
}

/// The elements of the datum of an array constant, whatever its dimensions. The datum says their type; `read_as` is asked only whether it
/// is `oid`, as which the elements of an array of enums are read, like those of [`constant`].
pub fn array_constant(read_as: u32, bytes: &[u8]) -> Option<Vec<Option<String>>> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let number = |at: usize| usize::try_from(word(at)?).ok();
    // The header is never short: an array of no dimensions has 12 bytes behind it, and constants are not packed.
    if number(0)? != bytes.len() << 2 {
        return None;
    }
    let (dimensions, offset) = (number(4)?, number(8)?);
    let element_type = if read_as == OID { OID } else { word(12)? };
    if dimensions > MAX_DIMENSIONS {
        return None;
    }
    let counts = (0..dimensions).map(|index| number(ARRAY_HEADER + 4 * index));
    let count = if dimensions == 0 { 0 } else { counts.into_iter().try_fold(1_usize, |all, count| all.checked_mul(count?))? };
    let bitmap = ARRAY_HEADER + 8 * dimensions;
    // More elements than bytes there cannot be: even a NULL has its bit.
    if count > bytes.len() * 8 {
        return None;
    }
    let mut data = bytes.get(if offset == 0 { bitmap.next_multiple_of(8) } else { offset }..).unwrap_or_default();
    let mut elements = Vec::with_capacity(count);
    let whole = data.len();
    for index in 0..count {
        if offset != 0 && bytes.get(bitmap + index / 8)? & (1 << (index % 8)) == 0 {
            elements.push(None);
            continue;
        }
        let (element, rest) = take_element(element_type, data, whole - data.len())?;
        elements.push(Some(element));
        data = rest;
    }
    Some(elements)
}

/// The first element of `data`, which starts `at` bytes behind an aligned place, and what follows it.
fn take_element(type_oid: u32, data: &[u8], at: usize) -> Option<(String, &[u8])> {
    let (length, align) = match type_oid {
        BOOL | CHAR => (Some(1), 1),
        INT2 => (Some(2), 2),
        INT4 | OID | DATE | FLOAT4 => (Some(4), 4),
        INT8 | FLOAT8 | TIMESTAMP | TIMESTAMPTZ => (Some(8), 8),
        INTERVAL => (Some(16), 8),
        UUID => (Some(16), 1),
        NAME => (Some(64), 1),
        _ => (None, 4),
    };
    // A short header is not aligned, and it is the only thing there that is not zero where padding would be.
    let align = if length.is_none() && data.first()? & 1 == 1 { 1 } else { align };
    let data = data.get(at.next_multiple_of(align) - at..)?;
    let length = match length {
        Some(length) => length,
        None => whole_length(data)?,
    };
    let (element, rest) = data.split_at_checked(length)?;
    let mut datum = [0; 8];
    if length <= 8 && !matches!(type_oid, TEXT | VARCHAR | BPCHAR | JSON | BYTEA | NUMERIC | JSONB) {
        datum[..length].copy_from_slice(element);
        return Some((constant(type_oid, &datum)?, rest));
    }
    Some((constant(type_oid, element)?, rest))
}

/// The number in the first `width` bytes of a Datum, whose other bytes are zero or repeat its sign.
fn by_value(bytes: &[u8], width: u32) -> Option<i64> {
    let datum = i64::from_le_bytes(bytes.try_into().ok()?);
    let shift = 64 - 8 * width;
    let signed = (datum << shift) >> shift;
    let unsigned = (datum.cast_unsigned() << shift >> shift).cast_signed();
    (datum == signed || datum == unsigned).then_some(signed)
}

/// The length of the varlena that `data` starts with, header included; `None` if it is compressed or elsewhere.
fn whole_length(data: &[u8]) -> Option<usize> {
    let first = *data.first()?;
    match first {
        1 => None,
        _ if first & 1 == 1 => Some(usize::from(first >> 1)),
        _ if first & 3 == 0 => usize::try_from(u32::from_le_bytes(*data.first_chunk()?) >> 2).ok(),
        _ => None,
    }
}

/// What is behind the header of a varlena that is all of `bytes`.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    if whole_length(bytes)? != bytes.len() {
        return None;
    }
    bytes.get(if bytes[0] & 1 == 1 { 1 } else { 4 }..)
}

fn until_zero(bytes: &[u8]) -> Option<String> {
    let length = bytes.iter().position(|&byte| byte == 0)?;
    Some(std::str::from_utf8(&bytes[..length]).ok()?.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let digits = (bytes.len() == 16).then(|| hex(bytes))?;
    Some([&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-"))
}

/// A date from its days since 2000-01-01.
fn date(days: i64) -> Option<String> {
    match i32::try_from(days).ok()? {
        i32::MAX => Some("infinity".to_owned()),
        i32::MIN => Some("-infinity".to_owned()),
        _ => {
            let (date, era) = calendar(days);
            Some(date + era)
        }
    }
}

/// A timestamp from its microseconds since 2000-01-01; `zone` stands behind the time.
fn timestamp(micros: i64, zone: &str) -> Option<String> {
    match micros {
        i64::MAX => Some("infinity".to_owned()),
        i64::MIN => Some("-infinity".to_owned()),
        _ => {
            let (date, era) = calendar(micros.div_euclid(MICROS_PER_DAY));
            let clock = interval::clock(micros.rem_euclid(MICROS_PER_DAY).cast_unsigned());
            Some(format!("{date} {clock}{zone}{era}"))
        }
    }
}

/// The date of a day, and what stands behind everything else before Christ.
fn calendar(days_since_2000: i64) -> (String, &'static str) {
    let days = days_since_2000 + EPOCH_DAY;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    if year > 0 { (format!("{year:04}-{month:02}-{day:02}"), "") } else { (format!("{:04}-{month:02}-{day:02}", 1 - year), " BC") }
}
