//! Conditions on the time.
//!
//! `now()` may be one side of a comparison of timestamptz, alone or plus a constant interval without months; the other side is free
//! of it. Then the condition changes for a row only when `now()` passes a value that is known from the row. Days are 24 hours,
//! because every session of ours is in UTC.

use crate::query::{catalogue::Catalogue, scalar, tree::Node};

/// `now()`, `transaction_timestamp()`, `statement_timestamp()`.
const NOW: [u32; 3] = [1299, 2647, 2648];
/// Other stable functions of the clock: `age(timestamptz)`, `age(timestamp)`.
const OTHER_CLOCKS: [u32; 2] = [1386, 2059];
/// `SVFOP_CURRENT_TIMESTAMP`; with a precision it is another.
const CURRENT_TIMESTAMP: u32 = 3;
/// The functions of `=`, `<>`, `<`, `<=`, `>=`, `>` of timestamptz.
const COMPARISONS: std::ops::RangeInclusive<u32> = 1152..=1157;
/// `timestamptz + interval` and `timestamptz - interval`.
const PLUS_INTERVAL: u32 = 1189;
const MINUS_INTERVAL: u32 = 1190;
/// A day in UTC, in microseconds.
const DAY: i64 = 86_400_000_000;

/// What to say of any other use of the time.
pub(super) const ELSEWHERE: &str = "it uses the time other than by comparing now(), alone or plus a constant interval of days and hours, \
                                    with a timestamptz in a condition";

/// Whether a function asks for the time.
pub(super) fn is_clock(function: u32) -> bool {
    NOW.contains(&function) || OTHER_CLOCKS.contains(&function)
}

/// Whether a function compares two timestamptz.
pub(super) fn compares(function: u32) -> bool {
    COMPARISONS.contains(&function)
}

/// What is added to `now()`, if that is all that `node` is.
pub(super) fn shift(node: Node<'_, '_>, catalogue: &Catalogue) -> Option<i64> {
    match node.tag() {
        "FUNCEXPR" => NOW.contains(&node.number("funcid")?).then_some(0),
        "SQLVALUEFUNCTION" => (node.number("op")? == CURRENT_TIMESTAMP).then_some(0),
        "OPEXPR" => {
            let function = catalogue.operators.get(&node.number("opno")?)?.function;
            let [time, interval] = node.nodes("args")?[..] else { return None };
            let before = shift(time, catalogue)?;
            let length = constant_interval(interval)?;
            match function {
                PLUS_INTERVAL => before.checked_add(length),
                MINUS_INTERVAL => before.checked_sub(length),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The microseconds of a constant interval without months.
fn constant_interval(node: Node<'_, '_>) -> Option<i64> {
    if node.tag() != "CONST" || node.atom("constisnull") != Some("false") || node.number("consttype") != Some(scalar::oids::INTERVAL) {
        return None;
    }
    let bytes = node.bytes("constvalue")?;
    let micros = i64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    let days = i32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let months = i32::from_le_bytes(bytes.get(12..16)?.try_into().ok()?);
    (months == 0).then(|| i64::from(days).checked_mul(DAY)?.checked_add(micros))?
}
