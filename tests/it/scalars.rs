//! Every function that is computed natively, against PostgreSQL 15 and 18.
//!
//! The server is the truth: it prints the values of each type, and for every call its result or that it failed. The values at a type's
//! edges are crossed, random ones added; their seed is printed, `FACTSYNC_SEED` repeats it, `FACTSYNC_LONG=1` tries far more.

mod constants;
mod values;

use std::hash::{BuildHasher, RandomState};

use factsync::{
    data::{Cells, Row},
    query::{
        Comparison, Expr, Kind, Native, Srf,
        scalar::{self, Collation, Entry, Needs},
    },
};
use proptest::prelude::*;
use tokio_postgres::Client;

use crate::support::postgres::{Cluster, Major};
pub(crate) use values::Random;
use values::{CASTABLE, boundaries};

/// Pairs and triples of boundary values that are tried at most; the rest is left to chance.
const MOST_CROSSED: usize = 800;

const SETTINGS: &str = "SET DateStyle = 'ISO,MDY'; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3;
    SET bytea_output = hex; SET client_min_messages = error;
    CREATE TYPE label AS ENUM ('a', 'b', 'B c', 'é');";

/// Types whose values `||` takes, as SQL spells them, and their OIDs.
const PRINTED: [(&str, u32); 19] = [
    ("boolean", 16),
    ("bytea", 17),
    ("name", 19),
    ("bigint", 20),
    ("smallint", 21),
    ("integer", 23),
    ("text", 25),
    ("oid", 26),
    ("json", 114),
    ("real", 700),
    ("double precision", 701),
    ("character varying", 1043),
    ("date", 1082),
    ("timestamp without time zone", 1114),
    ("timestamp with time zone", 1184),
    ("numeric", 1700),
    ("uuid", 2950),
    ("jsonb", 3802),
    ("label", 3500),
];

/// How many random argument lists are tried for one function.
fn random_calls() -> usize {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 100_000 } else { 200 }
}

pub(crate) fn random() -> Random {
    let seed = std::env::var("FACTSYNC_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("scalars"));
    eprintln!("FACTSYNC_SEED={seed}");
    Random(seed)
}

/// A server with a session of pinned settings.
async fn server(major: Major) -> (Cluster, Client) {
    let cluster = Cluster::start(major);
    let client = cluster.client(&cluster.database()).await;
    client.batch_execute(SETTINGS).await.expect("the settings exist");
    (cluster, client)
}

/// The values as the server prints them.
async fn printed(client: &Client, of: &str, values: &[String]) -> Vec<String> {
    let sql = format!("SELECT pg_catalog.concat('', v::{of}) FROM pg_catalog.unnest($1::text[]) v");
    let rows = client.query(&sql, &[&values]).await.unwrap_or_else(|error| panic!("{of}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// What a call gives: a text, NULL, or an error.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Value(String),
    Null,
    Error,
}

/// Asks the server for the value of `expression` over `$1`, `$2`, … of these types, for each list of arguments.
async fn asked(client: &Client, expression: &str, types: &[String], calls: &[Vec<Option<String>>]) -> Vec<Outcome> {
    let parameters: Vec<String> = (1..=types.len()).map(|number| format!("a{number} text")).collect();
    let expression = (1..=types.len())
        .rev()
        .fold(expression.to_owned(), |sql, number| sql.replace(&format!("${number}"), &format!("(a{number}::{})", types[number - 1])));
    let body = format!(
        "BEGIN RETURN CASE WHEN ({expression}) IS NULL THEN NULL ELSE pg_catalog.concat('=', {expression}) END;
         EXCEPTION WHEN others THEN RETURN SQLSTATE; END"
    );
    let create =
        format!("CREATE OR REPLACE FUNCTION pg_temp.call({}) RETURNS text LANGUAGE plpgsql AS $$ {body} $$", parameters.join(", "));
    client
        .batch_execute(&format!("DROP FUNCTION IF EXISTS pg_temp.call; {create}"))
        .await
        .unwrap_or_else(|error| panic!("{create}: {error:?}"));
    let columns: Vec<Vec<Option<String>>> = (0..types.len()).map(|index| calls.iter().map(|call| call[index].clone()).collect()).collect();
    let names: Vec<String> = (1..=types.len()).map(|number| format!("c{number}")).collect();
    let arrays: Vec<String> = (1..=types.len()).map(|number| format!("${number}::text[]")).collect();
    let (names, arrays) = (names.join(", "), arrays.join(", "));
    let sql = format!("SELECT pg_temp.call({names}) FROM ROWS FROM (unnest({arrays})) WITH ORDINALITY AS u({names}, ord) ORDER BY ord");
    let parameters: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = columns.iter().map(|column| column as _).collect();
    let rows = client.query(&sql, &parameters).await.unwrap_or_else(|error| panic!("{expression}: {error:?}"));
    let outcome = |text: Option<String>| match text {
        None => Outcome::Null,
        Some(text) => text.strip_prefix('=').map_or(Outcome::Error, |value| Outcome::Value(value.to_owned())),
    };
    rows.iter().map(|row| outcome(row.get(0))).collect()
}

/// The same here.
fn computed(function: &'static Native, kinds: &[Kind], call: &[Option<String>]) -> Outcome {
    let args = kinds.iter().enumerate().map(|(index, &kind)| Expr::Column { index, kind }).collect();
    let row = Row::from_cells(call.iter().map(Option::as_deref));
    let expr = Expr::Call { function, args };
    match expr.eval(&Cells::of(row.as_bytes()), 0) {
        Err(_) => Outcome::Error,
        Ok(value) => value.text().map_or(Outcome::Null, |text| Outcome::Value(text.into_owned())),
    }
}

/// Lists of arguments: NULLs, boundary values crossed, and random ones.
async fn calls(client: &Client, types: &[String], random: &mut Random) -> Vec<Vec<Option<String>>> {
    let count = random_calls();
    let mut pools = Vec::new();
    let mut edges = Vec::new();
    for of in types {
        let values = printed(client, of, &boundaries(of)).await;
        edges.push(values.clone());
        let some: Vec<String> = (0..count).map(|_| random.value(of)).collect();
        pools.push(printed(client, of, &some).await.into_iter().chain(values).collect::<Vec<_>>());
    }
    let mut calls = Vec::new();
    let total = edges.iter().map(Vec::len).product::<usize>();
    for number in 0..total.min(MOST_CROSSED) {
        // All of them, or as many at random.
        let mut number = if total <= MOST_CROSSED { number } else { random.below(total) };
        calls.push(
            edges
                .iter()
                .map(|values| {
                    let value = values[number % values.len()].clone();
                    number /= values.len();
                    Some(value)
                })
                .collect::<Vec<_>>(),
        );
    }
    for _ in 0..count {
        calls.push(pools.iter().map(|values| (random.below(20) > 0).then(|| values[random.below(values.len())].clone())).collect());
    }
    calls.push(vec![None; types.len()]);
    calls
}

/// Compares and says where they differ.
async fn differ(
    client: &Client,
    name: &str,
    function: &'static Native,
    expression: &str,
    types: &[(String, u32)],
    random: &mut Random,
) -> Vec<String> {
    let names: Vec<String> = types.iter().map(|(name, _)| name.clone()).collect();
    let kinds: Vec<Kind> = types.iter().map(|(_, oid)| scalar::kind(*oid)).collect();
    let calls = calls(client, &names, random).await;
    let truth = asked(client, expression, &names, &calls).await;
    assert_eq!(truth.len(), calls.len());
    let pairs = calls.iter().zip(truth).map(|(call, truth)| (call, truth, computed(function, &kinds, call)));
    let wrong = pairs.filter(|(_, truth, found)| truth != found);
    wrong.take(3).map(|(call, truth, found)| cut(&format!("{name} {call:?}: PostgreSQL {truth:?}, here {found:?}"))).collect()
}

fn cut(text: &str) -> String {
    text.chars().take(400).collect()
}

/// The declared type's name, or the types that stand for a polymorphic one.
fn concrete(entry: &Entry, declared: &[String]) -> Vec<Vec<(String, u32)>> {
    let fixed = |index: usize| (declared[index].clone(), entry.args[index]);
    let all = |index: usize| PRINTED.iter().map(move |&(name, oid)| (index, (name.to_owned(), oid)));
    match entry.native.oid {
        2003 | 2004 => {
            let place = usize::from(entry.native.oid == 2003);
            all(place).map(|(index, of)| if index == 0 { vec![of, fixed(1)] } else { vec![fixed(0), of] }).collect()
        }
        3058 => {
            all(0).map(|(_, of)| vec![of, ("boolean".into(), 16), ("text[]".into(), 1009)]).chain([vec![("text".into(), 25)]]).collect()
        }
        3059 => all(0).map(|(_, of)| vec![("text".into(), 25), of, ("integer".into(), 23), ("text".into(), 25)]).collect(),
        3508 | 3509 => vec![vec![("label".into(), 3500), ("label".into(), 3500)]],
        _ => vec![(0..entry.args.len()).map(fixed).collect()],
    }
}

/// `name(a, b)`, text arguments under "C" if the function needs it.
fn expression(entry: &Entry, types: &[(String, u32)]) -> String {
    let argument = |(index, (_, oid)): (usize, &(String, u32))| {
        let collatable = matches!(oid, 19 | 25 | 1042 | 1043);
        let collate = if entry.needs == Needs::C && collatable { " COLLATE \"C\"" } else { "" };
        format!("(${}{collate})", index + 1)
    };
    let args: Vec<String> = types.iter().enumerate().map(argument).collect();
    // A quoted name is a function's also if it is a type's or a keyword.
    format!("pg_catalog.\"{}\"({})", entry.native.name, args.join(", "))
}

async fn every_function_agrees(major: Major) {
    let (_cluster, client) = server(major).await;
    let mut random = random();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in scalar::entries() {
        let sql = "SELECT proname::text, proisstrict,
                   array(SELECT format_type(t, -1) FROM unnest(proargtypes) WITH ORDINALITY u(t, o) ORDER BY o),
                   array(SELECT t FROM unnest(proargtypes) WITH ORDINALITY u(t, o) ORDER BY o) FROM pg_proc WHERE oid = $1";
        let row = client.query_one(sql, &[&entry.native.oid]).await.unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        let (name, strict, declared, oids): (String, bool, Vec<String>, Vec<u32>) = (row.get(0), row.get(1), row.get(2), row.get(3));
        assert_eq!((name.as_str(), strict), (entry.native.name, entry.native.strict), "{}", entry.native.oid);
        assert_eq!(oids, entry.args, "{name} {}", entry.native.oid);
        for types in concrete(entry, &declared) {
            let oids: Vec<u32> = types.iter().map(|(_, oid)| *oid).collect();
            let collation = if entry.needs == Needs::C { Collation::C } else { Collation::Deterministic };
            let native = scalar::native(entry.native.oid, &oids, collation).unwrap_or_else(|| panic!("{name} of {types:?}"));
            wrong.extend(differ(&client, &name, native, &expression(entry, &types), &types, &mut random).await);
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {count} functions differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn every_function_agrees_with_postgresql_15() {
    every_function_agrees(Major::V15).await;
}

#[tokio::test]
async fn every_function_agrees_with_postgresql_18() {
    every_function_agrees(Major::V18).await;
}

#[test]
fn a_function_is_native_only_for_its_types_and_collations() {
    let texts = [25, 25];
    assert!(scalar::native(67, &texts, Collation::Deterministic).is_some());
    assert!(scalar::native(67, &texts, Collation::Other).is_none(), "= under a nondeterministic collation");
    assert!(scalar::native(740, &texts, Collation::C).is_some());
    assert!(scalar::native(740, &texts, Collation::Deterministic).is_none(), "< under a locale's collation");
    assert!(scalar::native(870, &texts[..1], Collation::Deterministic).is_none(), "lower of letters beyond ASCII");
    assert!(scalar::native(65, &[23, 20], Collation::None).is_none() && scalar::native(65, &[23], Collation::None).is_none());
    assert!(scalar::native(2003, &[25, 1042], Collation::Deterministic).is_none(), "bpchar loses its blanks");
    assert!(scalar::native(2003, &[25, 99_999], Collation::Deterministic).is_none(), "a type of the user's");
    assert!(scalar::native(1299, &[], Collation::None).is_none(), "now()");
}

/// Casts by input and output functions, of every version.
#[tokio::test]
async fn casts_through_text_agree() {
    for (major, version) in [(Major::V15, 150_018), (Major::V18, 180_006)] {
        let (_cluster, client) = server(major).await;
        let mut random = random();
        let mut texts: Vec<String> = CASTABLE.iter().map(|&text| text.to_owned()).collect();
        texts.extend((0..random_calls()).map(|_| {
            (0..random.below(6)).map(|_| random.pick(&["0", "1", "7", "_", "x", "b", "o", "-", "+", " ", "f", "8"])).collect::<String>()
        }));
        let calls: Vec<_> = texts.into_iter().map(|text| vec![Some(text)]).chain([vec![None]]).collect();
        for (of, oid) in
            [("smallint", 21), ("integer", 23), ("bigint", 20), ("boolean", 16), ("uuid", 2950), ("text", 25), ("varchar", 1043)]
        {
            let cast = scalar::cast(25, oid, version).expect("it is native");
            let truth = asked(&client, &format!("$1::{of}"), &["text".to_owned()], &calls).await;
            for (call, truth) in calls.iter().zip(truth) {
                let found = computed(cast, &[Kind::Text], call);
                assert_eq!(found, truth, "{call:?} as {of} on {major:?}");
            }
        }
        for (of, oid) in PRINTED.into_iter().filter(|(of, _)| *of != "boolean") {
            let types = [(of.to_owned(), oid)];
            let wrong = differ(&client, of, scalar::cast(oid, 25, version).expect("it is native"), "$1::text", &types, &mut random).await;
            assert!(wrong.is_empty(), "{wrong:?}");
        }
        let types = [("boolean".to_owned(), 16)];
        assert!(differ(&client, "bool", scalar::bool_to_text(), "$1::text", &types, &mut random).await.is_empty());
    }
}

/// What makes a key of a value is equal exactly if the values are.
#[tokio::test]
async fn canonical_forms_are_equal_if_the_values_are() {
    for major in [Major::V15, Major::V18] {
        let (_cluster, client) = server(major).await;
        let mut random = random();
        for (of, oid) in [("numeric", 1700), ("real", 700), ("double precision", 701), ("character(5)", 1042)] {
            let key = scalar::canonical(oid).expect("it has one");
            let types = [of.to_owned(), of.to_owned()];
            let calls: Vec<_> =
                calls(&client, &types, &mut random).await.into_iter().filter(|call| call.iter().all(Option::is_some)).collect();
            let truth = asked(&client, "$1 = $2", &types, &calls).await;
            for (call, truth) in calls.iter().zip(truth) {
                let [a, b] = [&call[..1], &call[1..]].map(|cell| computed(key, &[Kind::Text], cell));
                assert_eq!(truth, Outcome::Value(if a == b { "t" } else { "f" }.to_owned()), "{call:?} as {of}: {a:?} {b:?}");
            }
        }
    }
}

#[tokio::test]
async fn orders_and_times_agree() {
    for major in [Major::V15, Major::V18] {
        let (_cluster, client) = server(major).await;
        let mut random = random();
        let types = PRINTED.iter().filter_map(|&(of, oid)| Some((of, scalar::comparison(oid, Collation::C)?)));
        let types: Vec<(&str, Comparison)> = types.collect();
        assert_eq!(types.len(), 14, "{types:?}");
        for (of, comparison) in types {
            let collate = if matches!(of, "text" | "name" | "character varying") { " COLLATE \"C\"" } else { "" };
            let names = [of.to_owned(), of.to_owned()];
            let calls: Vec<_> =
                calls(&client, &names, &mut random).await.into_iter().filter(|call| call.iter().all(Option::is_some)).collect();
            let truth = asked(
                &client,
                &format!("CASE WHEN $1 < $2{collate} THEN 'Less' WHEN $1 > $2{collate} THEN 'Greater' ELSE 'Equal' END"),
                &names,
                &calls,
            )
            .await;
            for (call, truth) in calls.iter().zip(truth) {
                let [Some(a), Some(b)] = &call[..] else { panic!("NULLs were left out") };
                assert_eq!(Outcome::Value(format!("{:?}", scalar::compare(comparison, a, b))), truth, "{a:?} {b:?} as {of}");
            }
        }
        let types = ["timestamp with time zone".to_owned()];
        let calls: Vec<_> = calls(&client, &types, &mut random).await.into_iter().filter(|call| call[0].is_some()).collect();
        let micros = "CASE WHEN isfinite($1) THEN ((($1 AT TIME ZONE 'UTC')::date - DATE '2000-01-01')::numeric * 86400000000
                          + extract(hour FROM $1) * 3600000000 + extract(minute FROM $1) * 60000000
                          + extract(microseconds FROM $1))::numeric(30, 0)
                      WHEN $1 > now() THEN 9223372036854775807 ELSE -9223372036854775808 END";
        let truth = asked(&client, micros, &types, &calls).await;
        for (call, truth) in calls.iter().zip(truth) {
            let found = scalar::time(call[0].as_deref().expect("NULLs were left out"));
            assert_eq!(Outcome::Value(found.map_or("none".to_owned(), |micros| micros.to_string())), truth, "{call:?}");
        }
    }
}

/// Elements, one by one: the server writes them as JSON, which the test reads with a parser of its own.
#[tokio::test]
async fn elements_agree() {
    for major in [Major::V15, Major::V18] {
        let (_cluster, client) = server(major).await;
        let mut random = random();
        for (function, name, of) in [
            (Srf::Unnest, "unnest", "text[]"),
            (Srf::Unnest, "unnest", "integer[]"),
            (Srf::JsonbArrayElementsText, "jsonb_array_elements_text", "jsonb"),
            (Srf::JsonArrayElementsText, "json_array_elements_text", "json"),
        ] {
            let types = [of.to_owned()];
            let calls: Vec<_> = calls(&client, &types, &mut random).await.into_iter().filter(|call| call[0].is_some()).collect();
            let sql =
                format!("SELECT coalesce(to_json(array_agg(e::text ORDER BY o)), '[]') FROM pg_catalog.{name}($1) WITH ORDINALITY u(e, o)");
            let truth = asked(&client, &format!("({sql})"), &types, &calls).await;
            for (call, truth) in calls.iter().zip(truth) {
                let text = call[0].as_deref().expect("NULLs were left out");
                let truth: Option<Vec<Option<String>>> = match truth {
                    Outcome::Value(json) => Some(serde_json::from_str(&json).expect("the server writes JSON")),
                    Outcome::Error => None,
                    Outcome::Null => panic!("there is always an array"),
                };
                assert_eq!(scalar::elements(function, text).ok(), truth, "{name} of {text:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_value_is_found_in_an_array() {
    for major in [Major::V15, Major::V18] {
        let (_cluster, client) = server(major).await;
        let mut random = random();
        for (of, oid, array, equal, not_equal) in [("integer", 23, "integer[]", 65, 144), ("text", 25, "text[]", 67, 157)] {
            let names = [of.to_owned(), array.to_owned()];
            let calls = calls(&client, &names, &mut random).await;
            for (all, operator, function) in [(false, "= ANY", equal), (true, "<> ALL", not_equal)] {
                let truth = asked(&client, &format!("$1 {operator} ($2)"), &names, &calls).await;
                let expr = Expr::AnyElement {
                    function: scalar::native(function, &[oid, oid], Collation::C).expect("it is native"),
                    operand: Box::new(Expr::Column { index: 0, kind: scalar::kind(oid) }),
                    array: Box::new(Expr::Column { index: 1, kind: Kind::Text }),
                    element: scalar::kind(oid),
                    all,
                };
                for (call, truth) in calls.iter().zip(truth) {
                    let row = Row::from_cells(call.iter().map(Option::as_deref));
                    let value = expr.eval(&Cells::of(row.as_bytes()), 0).expect("equality does not fail");
                    let found = value.text().map_or(Outcome::Null, |text| Outcome::Value(text.into_owned()));
                    assert_eq!(found, truth, "{call:?} {operator}");
                }
            }
        }
    }
}

proptest! {
    /// Texts that are of no type, or of another: an error or a value, but no panic.
    #[test]
    fn no_text_panics(texts in prop::collection::vec(r#"[-+0-9a-z{}\[\]",:\\ .%_éNI\u{0}]{0,12}"#, 3), index in 0..1000_usize) {
        let entries: Vec<&Entry> = scalar::entries().collect();
        let entry = entries[index % entries.len()];
        let call: Vec<Option<String>> = texts.iter().cycle().take(entry.args.len()).cloned().map(Some).collect();
        for kind in [Kind::Text, Kind::Int, Kind::Bool] {
            computed(&entry.native, &vec![kind; call.len()], &call);
        }
        let text = texts[0].as_str();
        for function in [Srf::Unnest, Srf::JsonbArrayElementsText, Srf::JsonArrayElementsText] {
            let _ = scalar::elements(function, text);
        }
        let _ = scalar::time(text);
        for comparison in [Comparison::Int, Comparison::Bool, Comparison::Bytes, Comparison::Time, Comparison::Numeric] {
            let forth = scalar::compare(comparison, text, &texts[1]);
            prop_assert_eq!(forth, scalar::compare(comparison, &texts[1], text).reverse());
        }
    }
}
