//! Constants: the bytes of a CONST as the server prints them in its query tree, against the text it prints for the value.

use factsync::query::scalar;

use super::{random, server, values::boundaries};
use crate::support::postgres::Major;
use proptest::prelude::*;

/// Types of constants, their OIDs, and values their boundaries do not have.
const TYPES: [(&str, u32, &[&str]); 23] = [
    ("boolean", 16, &[]),
    ("\"char\"", 18, &[]),
    ("smallint", 21, &[]),
    ("integer", 23, &[]),
    ("bigint", 20, &[]),
    ("oid", 26, &[]),
    ("real", 700, &["1e7", "123456.7", "3.4028235e38"]),
    ("double precision", 701, &["1.7976931348623157e308", "-123.456", "1e-300"]),
    ("numeric", 1700, &["0.0001", "0.00010000", "12345678", "1234.5678", "-9999.9999", "1e20", "1e-20", "10000", "100000000.00"]),
    ("text", 25, &[]),
    ("character varying", 1043, &[]),
    ("character", 1042, &[]),
    ("name", 19, &[]),
    ("uuid", 2950, &[]),
    ("bytea", 17, &[]),
    ("date", 1082, &[]),
    ("timestamp without time zone", 1114, &[]),
    ("timestamp with time zone", 1184, &[]),
    ("jsonb", 3802, &["{\"a\": [1, 2.5, {\"b\": [true, null, \"x\"]}], \"long\": \"0123456789012345678901234567890123456789\"}"]),
    ("json", 114, &[]),
    (
        "interval",
        1186,
        &[
            "1 day",
            "-1 day",
            "1 year 2 mons -3 days 04:05:06.789",
            "-1 year 1 mon",
            "00:00:00",
            "-00:00:01.5",
            "1 mon -1 day",
            "100:00:00",
            "-1 day 1 hour",
        ],
    ),
    ("text[]", 1009, &[]),
    ("integer[]", 1007, &[]),
];

/// The constants of the statement's query tree, as bytes.
fn constants(tree: &str) -> Vec<Vec<u8>> {
    // The server breaks the text into lines at spaces.
    let tree = tree.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    let parts = tree.split(":constvalue ").skip(1);
    let lists = parts.map(|part| part.split_once('[').and_then(|(_, list)| list.split_once(']')).expect("a list of bytes").0);
    let byte = |word: &str| word.parse::<i16>().expect("a byte").to_le_bytes()[0];
    lists.map(|list| list.split_ascii_whitespace().map(byte).collect()).collect()
}

fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[tokio::test]
async fn constants_are_read_as_the_server_prints_them() {
    for major in [Major::V15, Major::V18] {
        let (cluster, _client) = server(major).await;
        let mut random = random();
        for (of, oid, more) in TYPES {
            let random = (0..40).map(|_| random.value(of));
            let texts: Vec<String> = boundaries(of).into_iter().chain(more.iter().map(|&text| text.to_owned())).chain(random).collect();
            let texts: Vec<String> = texts.into_iter().filter(|text| text.len() < 1000 && !(of == "interval" && text.is_empty())).collect();
            let texts: Vec<String> = if of == "interval" { more.iter().map(|&text| text.to_owned()).collect() } else { texts };
            let name = if of == "character" { "bpchar" } else { of };
            let literals: Vec<String> = texts.iter().map(|text| format!("{}::{name}", literal(text))).collect();
            let query = format!("SELECT {}", literals.join(", "));
            let settings = "SET DateStyle = 'ISO,MDY'; SET TimeZone = 'UTC'; SET extra_float_digits = 3;";
            let rows: Vec<String> = literals.iter().map(|literal| format!("({literal})")).collect();
            let script = format!("{settings} SELECT to_json(array_agg(concat('', v))) FROM (VALUES {}) t(v)", rows.join(", "));
            let truth: Vec<String> = serde_json::from_str(&cluster.psql("postgres", &script)).expect("the server writes JSON");
            let before = cluster.log().len();
            cluster.psql("postgres", &format!("{settings} SET debug_pretty_print = off; SET debug_print_rewritten = on; {query};"));
            let log = cluster.log();
            let tree = log[before..].rsplit("rewritten parse tree:").next().expect("there is a last one");
            let found = constants(tree);
            assert_eq!(found.len(), truth.len(), "{of} on {major:?}");
            for (bytes, truth) in found.iter().zip(&truth) {
                let same = if of.ends_with("[]") {
                    scalar::array_constant(oid, bytes) == scalar::elements(factsync::query::Srf::Unnest, truth).ok()
                } else {
                    scalar::constant(oid, bytes).as_deref() == Some(truth.as_str())
                };
                assert!(same, "{of} on {major:?}: {truth:?} is read as {:?} from {bytes:?}", scalar::constant(oid, bytes));
            }
        }
    }
}

/// Floats of all sizes, above all powers of two, whose neighbours are not equally far, and whole numbers, whose text may be half way to the
/// next float.
#[tokio::test]
async fn floats_are_printed_as_the_server_prints_them() {
    let mut random = random();
    let singles = (0..=0xFF_u32).map(|exponent| exponent << 23).flat_map(|bits| [bits.saturating_sub(1), bits, bits + 1]);
    let mut singles: Vec<f32> = singles.map(f32::from_bits).collect();
    let doubles = (0..=0x7FF_u64).map(|exponent| exponent << 52).flat_map(|bits| [bits.saturating_sub(1), bits, bits + 1]);
    let mut doubles: Vec<f64> = doubles.map(f64::from_bits).collect();
    for _ in 0..5_000 {
        let bits = random.below(usize::MAX) as u64;
        singles.extend([f32::from_bits(bits as u32), ((bits >> 30) % (1 << (25 + bits % 9))) as f32]);
        doubles.extend([f64::from_bits(bits), (bits >> (bits % 9)) as f64, (bits >> 10) as f64 / 4.0]);
    }
    let singles = singles.iter().filter(|value| value.is_finite()).map(|value| (format!("{value:.120e}"), u64::from(value.to_bits())));
    let doubles = doubles.iter().filter(|value| value.is_finite()).map(|value| (format!("{value:.800e}"), value.to_bits()));
    for major in [Major::V15, Major::V18] {
        let (cluster, _client) = server(major).await;
        for (of, oid, floats) in [("float4", 700, singles.clone().collect::<Vec<_>>()), ("float8", 701, doubles.clone().collect())] {
            for floats in floats.chunks(1_000) {
                let rows: Vec<String> = floats.iter().map(|(text, _)| format!("('{text}'::{of})")).collect();
                let script =
                    format!("SET extra_float_digits = 3; SELECT to_json(array_agg(v::text)) FROM (VALUES {}) t(v)", rows.join(", "));
                let truth: Vec<String> = serde_json::from_str(&cluster.psql("postgres", &script)).expect("the server writes JSON");
                assert_eq!(truth.len(), floats.len());
                for ((_, bits), truth) in floats.iter().zip(truth) {
                    let printed = scalar::constant(oid, &bits.to_le_bytes());
                    assert_eq!(printed.as_deref(), Some(truth.as_str()), "{of} {bits:#x} on {major:?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        small in prop::collection::vec(0..4_u8, 16..60),
        index in 0..TYPES.len(),
    ) {
        let whole = |bytes: &[u8]| {
            let length = u32::try_from(bytes.len() + 4).expect("it is short") << 2;
            [&length.to_le_bytes(), bytes].concat()
        };
        for bytes in [&bytes, &small, &whole(&bytes), &whole(&small)] {
            let _ = scalar::constant(TYPES[index].1, bytes);
            let _ = scalar::array_constant(TYPES[index].1, bytes);
            let _ = scalar::interval_constant(bytes);
        }
    }
}
