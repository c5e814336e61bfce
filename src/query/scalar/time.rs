//! date, timestamp and timestamptz, from their ISO texts under `TimeZone=UTC`: orders and the casts that only cut the text.
//!
//! The texts are `YYYY-MM-DD`, then for timestamps ` HH:MM:SS` and up to six digits of a second, then for timestamptz `+00`, and then
//! ` BC` where it applies; years have four digits or more. Dates reach beyond timestamps, so they compare in 128 bits, as PostgreSQL
//! compares a date that is no timestamp by knowing that it is later.

use std::cmp::Ordering;

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        list::{Entry, Needs, equal, ordered, strict},
        malformed,
        oids::{DATE, TIMESTAMP, TIMESTAMPTZ},
    },
};

const MICROS_PER_SECOND: i128 = 1_000_000;
const SECONDS_PER_DAY: i128 = 86_400;
/// 2000-01-01 as a day of the calendar that starts at 0000-03-01.
const EPOCH_DAY: i128 = 730_425;

/// The functions over dates and times. Those that compare a timestamptz with another type are STABLE, for the sake of the time zone.
pub(super) static ENTRIES: &[&[Entry]] = &[
    &equal!("date_", "", [DATE, DATE], Needs::Nothing, order, 1086, 1091),
    &ordered!("date_", "", [DATE, DATE], Needs::Nothing, order, 1087, 1088, 1089, 1090),
    &equal!("timestamp_", "", [TIMESTAMP, TIMESTAMP], Needs::Nothing, order, 2052, 2053),
    &ordered!("timestamp_", "", [TIMESTAMP, TIMESTAMP], Needs::Nothing, order, 2054, 2055, 2057, 2056),
    &equal!("timestamptz_", "", [TIMESTAMPTZ, TIMESTAMPTZ], Needs::Nothing, order, 1152, 1153),
    &ordered!("timestamptz_", "", [TIMESTAMPTZ, TIMESTAMPTZ], Needs::Nothing, order, 1154, 1155, 1157, 1156),
    &equal!("date_", "_timestamp", [DATE, TIMESTAMP], Needs::Nothing, order, 2340, 2343),
    &ordered!("date_", "_timestamp", [DATE, TIMESTAMP], Needs::Nothing, order, 2338, 2339, 2341, 2342),
    &equal!("timestamp_", "_date", [TIMESTAMP, DATE], Needs::Nothing, order, 2366, 2369),
    &ordered!("timestamp_", "_date", [TIMESTAMP, DATE], Needs::Nothing, order, 2364, 2365, 2367, 2368),
    &equal!("date_", "_timestamptz", [DATE, TIMESTAMPTZ], Needs::Nothing, order, 2353, 2356),
    &ordered!("date_", "_timestamptz", [DATE, TIMESTAMPTZ], Needs::Nothing, order, 2351, 2352, 2354, 2355),
    &equal!("timestamptz_", "_date", [TIMESTAMPTZ, DATE], Needs::Nothing, order, 2379, 2382),
    &ordered!("timestamptz_", "_date", [TIMESTAMPTZ, DATE], Needs::Nothing, order, 2377, 2378, 2380, 2381),
    &equal!("timestamp_", "_timestamptz", [TIMESTAMP, TIMESTAMPTZ], Needs::Nothing, order, 2522, 2525),
    &ordered!("timestamp_", "_timestamptz", [TIMESTAMP, TIMESTAMPTZ], Needs::Nothing, order, 2520, 2521, 2523, 2524),
    &equal!("timestamptz_", "_timestamp", [TIMESTAMPTZ, TIMESTAMP], Needs::Nothing, order, 2529, 2532),
    &ordered!("timestamptz_", "_timestamp", [TIMESTAMPTZ, TIMESTAMP], Needs::Nothing, order, 2527, 2528, 2530, 2531),
];

fn order(args: &[Datum<'_>]) -> Result<Ordering, EvalError> {
    Ok(moment(&args[0])?.cmp(&moment(&args[1])?))
}

/// An argument as microseconds; a number is already that, see [`Expr::Now`](crate::query::Expr::Now).
fn moment(datum: &Datum<'_>) -> Result<i128, EvalError> {
    match datum {
        Datum::Int(micros) => Ok(i128::from(*micros)),
        Datum::Text(text) => instant(text).ok_or_else(malformed),
        Datum::Null | Datum::Bool(_) => Err(malformed()),
    }
}

/// A timestamptz as microseconds since 2000-01-01 00:00 UTC; `infinity` is `i64::MAX` and `-infinity` is `i64::MIN`, as in PostgreSQL.
/// `None` for what is none, and for a date beyond all timestamps.
pub fn time(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        _ => instant(text)?.try_into().ok(),
    }
}

/// Microseconds since 2000-01-01 00:00 UTC.
pub(crate) fn instant(text: &str) -> Option<i128> {
    match text {
        "infinity" => return Some(i128::MAX),
        "-infinity" => return Some(i128::MIN),
        _ => {}
    }
    let (text, before_christ) = text.strip_suffix(" BC").map_or((text, false), |text| (text, true));
    let (date, clock) = text.split_once(' ').map_or((text, None), |(date, clock)| (date, Some(clock)));
    let mut fields = date.splitn(3, '-');
    let (year, month, day) = (number(fields.next()?, 4..=7)?, number(fields.next()?, 2..=2)?, number(fields.next()?, 2..=2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // There is no year 0: 1 BC comes before 1 AD.
    let year = if before_christ { 1 - year } else { year };
    let micros = clock.map_or(Some(0), micros_of_day)?;
    Some(days(year, month, day) * SECONDS_PER_DAY * MICROS_PER_SECOND + micros)
}

/// Days since 2000-01-01 in the Gregorian calendar, extended without end both ways.
fn days(year: i128, month: i128, day: i128) -> i128 {
    // Years from March, so that the leap day is a year's last.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - EPOCH_DAY
}

fn micros_of_day(clock: &str) -> Option<i128> {
    let clock = clock.strip_suffix("+00").unwrap_or(clock);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut fields = clock.splitn(3, ':');
    let mut field = || number(fields.next()?, 2..=2);
    let (hours, minutes, seconds) = (field()?, field()?, field()?);
    let scale = 10_i128.pow(6_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?);
    let micros = number(fraction, 1..=6)? * scale;
    Some(((hours * 60 + minutes) * 60 + seconds) * MICROS_PER_SECOND + micros)
}

/// A number of that many digits and nothing else.
fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<i128> {
    (digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form_that_is_printed() {
        let day = 86_400_000_000;
        for (text, micros) in [
            ("2000-01-01 00:00:00+00", 0),
            ("2000-01-01 00:00:00.000001+00", 1),
            ("2000-01-01 00:00:00.1+00", 100_000),
            ("1999-12-31 23:59:59.5", -500_000),
            ("2000-03-01", 60 * day),
            ("1970-01-01 00:00:00+00", -946_684_800_000_000),
            ("0001-01-01 00:00:00+00 BC", -730_485 * day),
            ("10000-01-01 00:00:00+00", 2_921_940 * day),
            ("infinity", i64::MAX),
            ("-infinity", i64::MIN),
        ] {
            assert_eq!(time(text), Some(micros), "{text}");
        }
        for text in ["", "2000", "2000-13-01", "2000-01-01 00:00", "2000-01-01 00:00:00.1234567", "5874897-12-31", "x-01-01", "+200-01-01"]
        {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
