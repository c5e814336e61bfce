//! float4 and float8, from their shortest exact texts: orders only. Arithmetic on floats is not on the list.

use std::cmp::Ordering;

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        list::{Entry, Needs, equal, ordered, strict},
        malformed,
        oids::{FLOAT4, FLOAT8},
        str_of,
    },
};

/// The functions over floats.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("float4", "", [FLOAT4, FLOAT4], Needs::Nothing, order_44, 287, 288),
    &ordered!("float4", "", [FLOAT4, FLOAT4], Needs::Nothing, order_44, 289, 290, 291, 292),
    &equal!("float8", "", [FLOAT8, FLOAT8], Needs::Nothing, order_88, 293, 294),
    &ordered!("float8", "", [FLOAT8, FLOAT8], Needs::Nothing, order_88, 295, 296, 297, 298),
    &equal!("float48", "", [FLOAT4, FLOAT8], Needs::Nothing, order_48, 299, 300),
    &ordered!("float48", "", [FLOAT4, FLOAT8], Needs::Nothing, order_48, 301, 302, 303, 304),
    &equal!("float84", "", [FLOAT8, FLOAT4], Needs::Nothing, order_84, 305, 306),
    &ordered!("float84", "", [FLOAT8, FLOAT4], Needs::Nothing, order_84, 307, 308, 309, 310),
];

fn single(datum: &Datum<'_>) -> Result<f64, EvalError> {
    str_of(datum)?.parse::<f32>().map(f64::from).map_err(|_| malformed())
}

fn double(datum: &Datum<'_>) -> Result<f64, EvalError> {
    str_of(datum)?.parse().map_err(|_| malformed())
}

fn order_44(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(order(single(&args[0])?, single(&args[1])?))
}

fn order_88(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(order(double(&args[0])?, double(&args[1])?))
}

fn order_48(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(order(single(&args[0])?, double(&args[1])?))
}

fn order_84(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(order(double(&args[0])?, single(&args[1])?))
}

/// NaN equals itself and comes last; -0 equals 0.
fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// The text of an equal float that all equal ones share.
pub(super) fn canonical(text: &str) -> &str {
    if text == "-0" { "0" } else { text }
}

/// As `float4out` prints it.
pub(super) fn single_text(value: f32) -> String {
    let bits = u64::from(value.to_bits());
    let edges = Edges::of(bits & 0x7F_FFFF, bits >> 23 & 0xFF, 23, 127);
    let is_same = |text: &str| text.parse() == Ok(value) && !edges.touch(text);
    shortest(&digits(is_same, |more| more.map_or_else(|| format!("{value:e}"), |more| format!("{value:.more$e}"))), 6)
}

/// As `float8out` prints it.
pub(super) fn double_text(value: f64) -> String {
    let bits = value.to_bits();
    let edges = Edges::of(bits & 0xF_FFFF_FFFF_FFFF, bits >> 52 & 0x7FF, 52, 1023);
    let is_same = |text: &str| text.parse() == Ok(value) && !edges.touch(text);
    shortest(&digits(is_same, |more| more.map_or_else(|| format!("{value:e}"), |more| format!("{value:.more$e}"))), 15)
}

/// Digits that tell every float from every other.
const MOST_DIGITS: usize = 17;
/// More digits than any float has: with these its text is exact.
const EXACT_DIGITS: usize = 780;

/// The fewest digits of which `is_same` says that they are nearer to this float than to any other, as Ryu's in PostgreSQL
/// (`src/common/d2s.c`); `print` gives Rust's, or as many behind the point as it is told.
///
/// Rust also takes digits that lie half way to the next float, where these are read as this one. PostgreSQL does not.
fn digits(is_same: impl Fn(&str) -> bool, print: impl Fn(Option<usize>) -> String) -> String {
    let fewest = print(None);
    let Some((mantissa, _)) = fewest.split_once('e') else { return fewest };
    let behind = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let even = even(&fewest, || print(Some(EXACT_DIGITS))).filter(|even| is_same(even));
    let mut all = even.into_iter().chain([fewest.clone()]).chain((behind + 1..MOST_DIGITS).map(|more| print(Some(more))));
    all.find(|text| is_same(text)).unwrap_or(fewest)
}

/// Of two texts that are equally near to the number the one that is even, which Ryu takes, while Rust takes the upper one; `None` if there
/// are no two.
fn even(scientific: &str, exact: impl FnOnce() -> String) -> Option<String> {
    let (mantissa, exponent) = scientific.split_once('e')?;
    let last = mantissa.bytes().last().filter(|last| matches!(last, b'1' | b'3' | b'5' | b'7' | b'9'))?;
    let lower = format!("{}{}", mantissa.get(..mantissa.len() - 1)?, char::from(last - 1));
    let exact = exact();
    let tail = exact.split_once('e')?.0.strip_prefix(lower.as_str())?.trim_start_matches('.');
    (tail.trim_end_matches('0') == "5").then(|| format!("{lower}e{exponent}"))
}

/// Half way to the next floats on both sides: odd numbers times powers of two.
struct Edges([(u64, i32); 2]);

impl Edges {
    /// Of a finite float with these fields.
    fn of(fraction: u64, exponent: u64, bits: u32, bias: i32) -> Self {
        let mantissa = if exponent == 0 { fraction } else { fraction | 1 << bits };
        let power = i32::try_from(exponent.max(1)).unwrap_or_default() - bias - i32::try_from(bits).unwrap_or_default();
        // Below a power of two they are twice as close.
        let below =
            if fraction == 0 && exponent > 1 { (4 * mantissa - 1, power - 2) } else { ((2 * mantissa).saturating_sub(1), power - 1) };
        Self([below, (2 * mantissa + 1, power - 1)])
    }

    /// Whether a text such as `1.25e-7` is one of them.
    fn touch(&self, scientific: &str) -> bool {
        let Some((mantissa, exponent)) = scientific.trim_start_matches('-').split_once('e') else { return false };
        let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        let (Ok(digits), Ok(exponent), Ok(decimals)) =
            (mantissa.replace('.', "").parse::<u64>(), exponent.parse::<i32>(), i32::try_from(decimals))
        else {
            return false;
        };
        self.0.iter().any(|edge| is_edge(digits, exponent - decimals, *edge))
    }
}

/// Whether `digits * 10^tens` is `odd * 2^twos`.
fn is_edge(digits: u64, tens: i32, (odd, twos): (u64, i32)) -> bool {
    if digits == 0 || tens + i32::try_from(digits.trailing_zeros()).unwrap_or_default() != twos {
        return false;
    }
    // With more fives than that one of the sides is larger than any float's digits.
    let Some(fives) = 5_u128.checked_pow(tens.unsigned_abs()).filter(|_| tens.abs() <= 27) else { return false };
    let digits = u128::from(digits >> digits.trailing_zeros());
    if tens < 0 { digits == u128::from(odd) * fives } else { digits * fives == u128::from(odd) }
}

/// Rewrites Rust's shortest digits, `1.25e-7`, as PostgreSQL writes them: without an exponent between -4 and `most`.
fn shortest(scientific: &str, most: i32) -> String {
    match scientific {
        "inf" => return "Infinity".to_owned(),
        "-inf" => return "-Infinity".to_owned(),
        _ => {}
    }
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific.to_owned() };
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..most).contains(&exponent) {
        let way = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{way}{:02}", exponent.abs());
    }
    let digits = mantissa.replace('.', "");
    let point = usize::try_from(exponent).unwrap_or(0) + 1;
    if exponent < 0 {
        return format!("{sign}0.{}{digits}", "0".repeat(usize::try_from(-exponent - 1).unwrap_or(0)));
    }
    if digits.len() <= point { format!("{sign}{digits:0<point$}") } else { format!("{sign}{}.{}", &digits[..point], &digits[point..]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL prints them: `SELECT (-1824764441348362.25)::float8, 1824764441348362.75::float8, 1048576.25::float4`.
    #[test]
    fn of_two_texts_that_are_equally_near_the_even_one_is_taken() {
        assert_eq!(double_text(-(1_824_764_441_348_362.0 + 0.25)), "-1.8247644413483622e+15");
        assert_eq!(double_text(1_824_764_441_348_362.0 + 0.75), "1.8247644413483628e+15");
        assert_eq!(double_text(0.5), "0.5");
        assert_eq!(double_text(5e-324), "5e-324");
        assert_eq!(double_text(f64::NAN), "NaN");
        assert_eq!(single_text(1_048_576.0 + 0.25), "1.0485762e+06");
    }

    /// As PostgreSQL prints them: `SELECT 61317128::float4, 9007199254740996::float8`.
    #[test]
    fn a_text_half_way_to_the_next_float_is_not_taken() {
        assert_eq!(single_text(61_317_128.0), "6.1317128e+07");
        assert_eq!(single_text(-61_317_128.0), "-6.1317128e+07");
        assert_eq!(single_text(61_317_124.0), "6.1317124e+07");
    }
}
