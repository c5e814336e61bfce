//! Values as bytes that sort as their type does, so that the first entry of a space is the smallest value, or the largest.
//!
//! A sort cell is a cell of a [`Row`] by its form: it begins and ends like one, and zero bytes inside are escaped. So
//! it may stand among other cells in a space's key, and two keys compare as their cells do, one after the other. Inside is a byte string
//! that no other value's byte string is a prefix of; the bytewise complement of such strings sorts the other way round.
//!
//! | comparison | inside |
//! |---|---|
//! | integer, time | sign and number of digits in one byte, then the digits; complemented if negative |
//! | boolean, bytes | the text, as a cell |
//! | numeric | class (−∞, negative, 0, positive, ∞, NaN), exponent, digits, end; complemented from the exponent on if negative |
//!
//! Values that compare as equal have the same bytes, be their texts different: 1.0 and 1.00.

use crate::{
    data::Row,
    query::{Comparison, EvalError, Order, scalar},
};

/// Ends the digits of a numeric: smaller than each of them.
const END: u8 = 1;
/// What a sort cell of a nullable term begins with.
const NULL_FIRST: u8 = 1;
const VALUE: u8 = 2;
const NULL_LAST: u8 = 3;

/// Appends the sort cell of a term of ORDER BY.
pub(super) fn push_term(bytes: &mut Vec<u8>, order: &Order, text: Option<&str>) -> Result<(), EvalError> {
    let mut inside = Vec::new();
    match text {
        None => inside.push(if order.nulls_first { NULL_FIRST } else { NULL_LAST }),
        Some(text) => {
            inside.push(VALUE);
            push_value(&mut inside, order.comparison, order.descending, text)?;
        }
    }
    push_cell(bytes, &inside);
    Ok(())
}

/// Appends the sort cell of a value that is not NULL.
pub(super) fn push_sorted(bytes: &mut Vec<u8>, comparison: Comparison, descending: bool, text: &str) -> Result<(), EvalError> {
    let mut inside = Vec::new();
    push_value(&mut inside, comparison, descending, text)?;
    push_cell(bytes, &inside);
    Ok(())
}

/// Appends the sort cell of a moment.
pub(super) fn push_moment(bytes: &mut Vec<u8>, moment: i64) {
    let mut inside = Vec::new();
    push_integer(&mut inside, i128::from(moment));
    push_cell(bytes, &inside);
}

/// The moment of a sort cell.
pub(super) fn read_moment(cell: &[u8]) -> Option<i64> {
    // The digits of an integer, and its first byte, are never zero, complemented or not.
    let inside = cell.get(1..cell.len().checked_sub(2)?)?;
    let (&first, digits) = inside.split_first()?;
    if first >= 0x80 {
        return std::str::from_utf8(digits).ok()?.parse().ok();
    }
    let mut text = b"-".to_vec();
    text.extend(digits.iter().map(|byte| !byte));
    String::from_utf8(text).ok()?.parse().ok()
}

/// A cell with these bytes inside.
fn push_cell(bytes: &mut Vec<u8>, inside: &[u8]) {
    bytes.push(1);
    for (index, piece) in inside.split(|&byte| byte == 0).enumerate() {
        if index > 0 {
            bytes.extend([0, 0xFF]);
        }
        bytes.extend(piece);
    }
    bytes.extend([0, 1]);
}

fn push_value(bytes: &mut Vec<u8>, comparison: Comparison, descending: bool, text: &str) -> Result<(), EvalError> {
    let malformed = || EvalError("a value cannot be ordered: it is not of the type that the query says".into());
    let start = bytes.len();
    match comparison {
        Comparison::Int => push_integer(bytes, text.parse().map_err(|_| malformed())?),
        Comparison::Time => push_integer(bytes, scalar::instant(text).ok_or_else(malformed)?),
        Comparison::Bool | Comparison::Bytes => bytes.extend(Row::from_texts([text]).as_bytes()),
        Comparison::Numeric => push_numeric(bytes, text).ok_or_else(malformed)?,
    }
    if descending {
        complement(&mut bytes[start..]);
    }
    Ok(())
}

fn push_integer(bytes: &mut Vec<u8>, value: i128) {
    let digits = value.unsigned_abs().to_string();
    let length = u8::try_from(digits.len()).expect("at most 39 digits");
    let start = bytes.len();
    bytes.push(0x80 + length);
    bytes.extend(digits.as_bytes());
    if value < 0 {
        complement(&mut bytes[start..]);
    }
}

fn push_numeric(bytes: &mut Vec<u8>, text: &str) -> Option<()> {
    const NEGATIVE: u8 = 2;
    const ZERO: u8 = 3;
    const POSITIVE: u8 = 4;
    match text {
        "-Infinity" => bytes.push(1),
        "Infinity" => bytes.push(5),
        "NaN" => bytes.push(6),
        _ => {
            let (class, unsigned) = text.strip_prefix('-').map_or((POSITIVE, text), |unsigned| (NEGATIVE, unsigned));
            let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
            let all = [whole, fraction].concat();
            if whole.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let digits = all.trim_start_matches('0');
            if digits.is_empty() {
                bytes.push(ZERO);
                return Some(());
            }
            // The value is 0.digits times ten to this power.
            let exponent = i32::try_from(whole.len()).ok()? - i32::try_from(all.len() - digits.len()).ok()?;
            bytes.push(class);
            let start = bytes.len();
            bytes.extend((exponent ^ i32::MIN).to_be_bytes());
            bytes.extend(digits.trim_end_matches('0').as_bytes());
            bytes.push(END);
            if class == NEGATIVE {
                complement(&mut bytes[start..]);
            }
        }
    }
    Some(())
}

fn complement(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Cells;
    use proptest::prelude::*;
    use std::cmp::Ordering;

    /// Values of a comparison, the extreme ones among them.
    fn values() -> impl Strategy<Value = (Comparison, String, String)> {
        let integer = prop_oneof![-12..12_i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)].prop_map(|value| value.to_string());
        let numeric = prop_oneof![
            "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,4})?",
            "-?0\\.0{0,5}[0-9]{1,2}",
            prop::sample::select(vec!["NaN", "Infinity", "-Infinity", "10", "1.0", "1.00", "0", "0.00", "100000000000000000000"])
                .prop_map(str::to_owned),
        ]
        // There is no negative zero.
        .prop_map(|text| if text.chars().any(|c| c.is_ascii_digit() && c != '0') { text } else { text.replace("-0", "0") });
        let time = prop::sample::select(vec![
            "infinity",
            "-infinity",
            "2000-01-01",
            "1999-12-31",
            "0001-12-31 BC",
            "0002-01-01 BC",
            "10000-01-01",
            "294277-01-01",
            "5874897-12-31",
        ]);
        let bytes = "[\u{0}\u{1}a\u{7f}é]{0,4}";
        prop_oneof![
            (integer.clone(), integer).prop_map(|(a, b)| (Comparison::Int, a, b)),
            (numeric.clone(), numeric).prop_map(|(a, b)| (Comparison::Numeric, a, b)),
            (time.clone(), time).prop_map(|(a, b)| (Comparison::Time, a.to_owned(), b.to_owned())),
            (bytes, bytes).prop_map(|(a, b)| (Comparison::Bytes, a, b)),
            ("[ft]", "[ft]").prop_map(|(a, b)| (Comparison::Bool, a, b)),
        ]
    }

    fn sorted(comparison: Comparison, descending: bool, text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_sorted(&mut bytes, comparison, descending, text).expect("a value of the type");
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn sort_cells_compare_as_their_values_do((comparison, a, b) in values(), after in "[\u{0}\u{1}a]{0,2}") {
            let wanted = scalar::compare(comparison, &a, &b);
            for (descending, wanted) in [(false, wanted), (true, wanted.reverse())] {
                let (x, y) = (sorted(comparison, descending, &a), sorted(comparison, descending, &b));
                prop_assert_eq!(x.cmp(&y), wanted, "{:?} {} against {}", comparison, a, b);
                // What follows a cell decides only between equal ones, and the cell is told apart from it.
                let followed = [&x[..], Row::from_texts([&*after]).as_bytes()].concat();
                if wanted != Ordering::Equal {
                    prop_assert_eq!(followed.cmp(&y), wanted);
                }
                let cells = Cells::of(&followed);
                prop_assert_eq!(cells.len(), 2);
                prop_assert_eq!(cells.encoded(0), &x[..]);
            }
        }

        #[test]
        fn nulls_stand_where_the_term_says((comparison, a, _) in values(), descending: bool, nulls_first: bool) {
            let order = Order { column: 0, comparison, descending, nulls_first };
            let (mut null, mut value) = (Vec::new(), Vec::new());
            push_term(&mut null, &order, None).expect("NULL");
            push_term(&mut value, &order, Some(&a)).expect("a value of the type");
            prop_assert_eq!(null < value, nulls_first);
        }

        #[test]
        fn a_moment_reads_back(a in prop_oneof![-3..3_i64, any::<i64>()], b: i64) {
            let cell = |moment| {
                let mut bytes = Vec::new();
                push_moment(&mut bytes, moment);
                bytes
            };
            prop_assert_eq!(read_moment(&cell(a)), Some(a));
            prop_assert_eq!(cell(a).cmp(&cell(b)), a.cmp(&b));
        }
    }

    #[test]
    fn what_is_not_of_the_type_is_an_error() {
        for (comparison, text) in
            [(Comparison::Int, "1.5"), (Comparison::Numeric, "1e5"), (Comparison::Numeric, "-"), (Comparison::Time, "x")]
        {
            assert!(push_sorted(&mut Vec::new(), comparison, false, text).is_err(), "{text}");
        }
    }
}
