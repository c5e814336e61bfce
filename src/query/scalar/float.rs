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
    shortest(&even(format!("{value:e}"), || format!("{value:.EXACT_DIGITS$e}")), 6)
}

/// As `float8out` prints it.
pub(super) fn double_text(value: f64) -> String {
    shortest(&even(format!("{value:e}"), || format!("{value:.EXACT_DIGITS$e}")), 15)
}

/// More digits than any float has: with these its text is exact.
const EXACT_DIGITS: usize = 780;

/// Rust's shortest digits, as Ryu's, which PostgreSQL uses: of two that are equally near to the number Rust takes the upper ones and Ryu
/// those that are even.
fn even(scientific: String, exact: impl FnOnce() -> String) -> String {
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let (Some(rest), Some(last @ (b'1' | b'3' | b'5' | b'7' | b'9'))) = (mantissa.get(..mantissa.len() - 1), mantissa.bytes().last())
    else {
        return scientific;
    };
    let lower = format!("{rest}{}", char::from(last - 1));
    let exact = exact();
    let tail = exact.split_once('e').and_then(|(digits, _)| digits.strip_prefix(lower.as_str())).map(|tail| tail.trim_start_matches('.'));
    if tail.is_some_and(|tail| tail.trim_end_matches('0') == "5") { format!("{lower}e{exponent}") } else { scientific }
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
}
