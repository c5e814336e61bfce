//! Every type of the server as a fact's argument: the text is the one that `psql` shows, from the snapshot and from the change log.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::SimpleQueryMessage;

use crate::support::{app::App, factsync::Process, postgres::Major};

/// Types that the test creates.
const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'happy', 'it''s \\ odd'); CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN score AS numeric(6, 2) CHECK (value > 0); CREATE DOMAIN flag AS bool; CREATE DOMAIN label AS char(6);
CREATE DOMAIN flags AS flag[]; CREATE TYPE spots AS RANGE (subtype = float8, multirange_type_name = spots_multi);
CREATE TABLE typed (id int PRIMARY KEY)";

/// Each with values that are easy to spell wrongly.
const VALUES: [(&str, &[&str]); 92] = [
    ("bit(3)", &["101", "000"]),
    ("bool", &["t", "f"]),
    ("bpchar", &["a  ", "b"]),
    ("char(4)", &["a", "ab c"]),
    ("bytea", &["\\x00ff", "", "\\x5c5c0a"]),
    ("\"char\"", &["a", "", " "]),
    ("cid", &["0", "4294967295"]),
    ("cidr", &["10.0.0.0/8", "::/0", "192.168.1.1"]),
    ("circle", &["<(0,0),1>", "<(1e300,-0),Infinity>"]),
    ("date", &["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31", "2026-02-28"]),
    ("float4", &["NaN", "-0", "Infinity", "1e-45", "3.4028235e38", "0.1", "1e15", "16777216"]),
    ("float8", &["NaN", "-0", "-Infinity", "5e-324", "1.7976931348623157e308", "0.1", "1e15", "1e16"]),
    ("inet", &["10.0.0.1", "10.0.0.1/8", "::1", "fe80::1/64"]),
    ("int2", &["-32768", "32767"]),
    ("int4", &["-2147483648", "0"]),
    ("int8", &["-9223372036854775808", "9223372036854775807"]),
    ("interval", &["0", "1 year -2 mons 3 days -04:05:06.789", "-178000000 years", "1 day -1 sec", "00:00:00.000001"]),
    ("json", &["{\"a\" : 1, \"a\":2}", "  [1, 2.50]", "null", "\"\\u00e9\""]),
    ("jsonb", &["{\"b\":1,\"a\":2,\"a\":3}", "1.50", "\"é\\n\"", "null", "[]"]),
    ("jsonpath", &["$.a[*] ? (@.b > 1)", "strict $"]),
    ("line", &["{1,2,3}", "{1,-1,0}"]),
    ("lseg", &["[(0,0),(1,1)]"]),
    ("box", &["(1,1),(0,0)"]),
    ("path", &["[(0,0),(1,1)]", "((0,0),(1,1))"]),
    ("point", &["(1.5,-0)", "(NaN,Infinity)"]),
    ("polygon", &["((0,0),(1,1),(2,0))"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05"]),
    ("money", &["1234567.89", "-0.01", "-92233720368547758.08"]),
    ("name", &["abc", "a b"]),
    ("numeric", &["1.500", "0.00", "-0", "NaN", "Infinity", "-Infinity", "1e-20", "1e30", "00012.3400"]),
    ("numeric(10,3)", &["1.5", "-0.0004"]),
    ("oid", &["0", "4294967295"]),
    ("pg_lsn", &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"]),
    ("pg_snapshot", &["10:20:10,14,15"]),
    ("txid_snapshot", &["10:20:10,14,15"]),
    ("refcursor", &["c", ""]),
    ("text", &["", "a", "é", "\t\n\\\r", "\\N", "\\.", "'\"", "日本", "a\u{1}b", "𝄞", "e\u{301}", "\u{feff}", " ", "null"]),
    ("varchar", &["", "x "]),
    ("varchar(5)", &["abcde"]),
    ("tid", &["(0,1)", "(4294967295,65535)"]),
    ("time", &["24:00", "00:00:00.000001"]),
    ("timetz", &["12:00+05:30", "24:00-15:59"]),
    ("timestamp", &["infinity", "-infinity", "4713-01-01 BC", "294276-12-31 23:59:59.999999", "2026-01-01 00:00:00.1"]),
    ("timestamptz", &["infinity", "-infinity", "0001-01-01 00:00 BC", "294276-12-31 23:59:59.999999Z", "2026-03-29 02:30 Europe/Berlin"]),
    ("tsquery", &["a & !b <-> c"]),
    ("tsvector", &["a:1A b:2 'it''s'", ""]),
    ("uuid", &["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ("varbit", &["", "10101"]),
    ("xid", &["3", "4294967295"]),
    ("xid8", &["18446744073709551615"]),
    ("xml", &["<a>é</a>", "x&amp;y"]),
    ("int2vector", &["1 2", ""]),
    ("oidvector", &["1 2"]),
    ("daterange", &["[2026-01-01,infinity)", "empty", "(,)", "[-infinity,2026-01-01 BC]"]),
    ("int4range", &["[1,5]", "empty", "(,)"]),
    ("int8range", &["[1,5)"]),
    ("numrange", &["[1.50,2.0]"]),
    ("tsrange", &["[2026-01-01,)"]),
    ("tstzrange", &["(,2026-01-01 00:00Z]"]),
    ("datemultirange", &["{[2026-01-01,2026-01-03],[2027-01-01,)}", "{}"]),
    ("int4multirange", &["{[1,2],[3,4]}"]),
    ("int8multirange", &["{[1,3)}"]),
    ("nummultirange", &["{[1.0,2]}"]),
    ("tsmultirange", &["{[2026-01-01,)}"]),
    ("tstzmultirange", &["{(,2026-01-01 00:00Z]}"]),
    ("text[]", &["{}", "{a,NULL,\"NULL\",\"a b\",\"\\\"\",\"\\\\\",\"\"}", "[2:3]={x,y}", "{{a,b},{c,d}}"]),
    ("int4[]", &["{1,NULL,3}"]),
    ("bool[]", &["{t,f,NULL}"]),
    ("float8[]", &["{-0,NaN}"]),
    ("timestamptz[]", &["{infinity,2026-01-01 00:00Z}"]),
    ("numeric[]", &["{1.50}"]),
    ("bytea[]", &["{\"\\\\x00\"}"]),
    ("json[]", &["{\"{\\\"a\\\": 1}\"}"]),
    ("mood[]", &["{sad,happy}"]),
    ("pair[]", &["{\"(1,x)\"}"]),
    ("mood", &["sad", "happy", "it's \\ odd"]),
    ("pair", &["(1,x)", "(,\"\")", "(1,\"a,\"\"b\"\"\\\\\")"]),
    ("score", &["5"]),
    ("flag", &["t", "f"]),
    ("label", &["x  "]),
    ("flags", &["{t,f}"]),
    ("spots", &["[1.5,2.5]"]),
    ("spots_multi", &["{[1.5,2.5]}"]),
    // Nobody can insert one, so there is none to spell.
    ("gtsvector", &[]),
    ("pg_brin_bloom_summary", &[]),
    ("pg_brin_minmax_multi_summary", &[]),
    ("pg_dependencies", &[]),
    ("pg_mcv_list", &[]),
    ("pg_ndistinct", &[]),
    ("pg_node_tree", &[]),
    ("varchar[]", &["{\"a b\"}"]),
];

/// Types whose text is a name in a catalogue: refused, because it changes without a change of a row.
const REFUSED: [&str; 13] = [
    "aclitem",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
    "regclass[]",
];

/// Built-in types that are neither pseudo-types nor arrays, nor rows of a catalogue.
const BUILT_IN: &str = "SELECT format_type(oid, NULL) FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
    AND typtype IN ('b', 'r', 'm', 'd', 'e') AND typcategory <> 'A'";

/// Column `number`, and the fact type of the same name.
fn column(number: usize) -> String {
    format!("c{number}")
}

/// What `psql` shows of every value that can be an id, but booleans as words, by column and row.
async fn shown(app: &App) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let one = |(number, (name, _)): (usize, &(&str, &[&str]))| {
        let column = column(number);
        let boolean = format!("CASE WHEN {column} THEN 'true' ELSE 'false' END");
        let text = if ["bool", "flag"].contains(name) { boolean } else { format!("format('%s', {column})") };
        format!("SELECT '{column}', id, {text} FROM typed WHERE {column} IS NOT NULL")
    };
    let sql: Vec<String> = VALUES.iter().enumerate().map(one).collect();
    let mut all: BTreeMap<String, BTreeSet<(String, String)>> = (0..VALUES.len()).map(|number| (column(number), BTreeSet::new())).collect();
    for message in app.client.simple_query(&sql.join(" UNION ALL ")).await.expect("the oracle answers") {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let text = |index| row.get(index).expect("no NULL").to_owned();
        let cell: String = text(2);
        if !cell.is_empty() {
            all.get_mut(&text(0)).expect("a column").insert((text(1), cell));
        }
    }
    all
}

async fn assert_shown(app: &App, process: &Process, context: &str) {
    for (column, wanted) in shown(app).await {
        let facts = process.facts(&column).await;
        let id = |fact: &serde_json::Value, place: usize| fact["args"][place]["id"].as_str().expect("an id").to_owned();
        let held: BTreeSet<(String, String)> = facts.iter().map(|fact| (id(fact, 0), id(fact, 1))).collect();
        let number: usize = column[1..].parse().expect("a number");
        assert_eq!(held, wanted, "{context}: {} holds the left, psql shows the right", VALUES[number].0);
    }
}

/// Every built-in type is in one of the two lists above.
async fn assert_complete(app: &App) {
    let known: Vec<String> =
        VALUES.iter().map(|(name, _)| *name).chain(REFUSED).map(|name| format!("'{}'::regtype", name.replace('\'', ""))).collect();
    let missing = format!("SELECT string_agg(name, ' ') FROM ({BUILT_IN}) AS t (name) WHERE name::regtype NOT IN ({})", known.join(", "));
    assert_eq!(app.ask(&missing).await, "", "types that this test does not know");
}

async fn every_type(major: Major) {
    let mut schema = SCHEMA.to_owned();
    for (number, (name, values)) in VALUES.iter().enumerate() {
        schema.push_str(&format!("; ALTER TABLE typed ADD COLUMN {} {name}", column(number)));
        // The server that the tests install was built without XML.
        let values: &[&str] = if (*name, major) == ("xml", Major::V18) { &[] } else { values };
        for (row, value) in values.iter().enumerate() {
            let (id, value) = (number * 100 + row, value.replace('\'', "''"));
            schema.push_str(&format!("; INSERT INTO typed (id, {}) VALUES ({id}, '{value}')", column(number)));
        }
    }
    for (number, name) in REFUSED.iter().enumerate() {
        schema.push_str(&format!("; ALTER TABLE typed ADD COLUMN r{number} {name}"));
    }
    let valued = (0..VALUES.len()).map(column);
    let columns: Vec<String> = valued.chain((0..REFUSED.len()).map(|number| format!("r{number}"))).collect();
    let fact =
        |column: &String| (format!("{column}(Row:_, String:_)"), format!("SELECT id, {column} FROM typed WHERE {column} IS NOT NULL"));
    let facts: Vec<(String, String)> = columns.iter().map(fact).collect();
    let facts: Vec<(&str, &str)> = facts.iter().map(|(signature, query)| (signature.as_str(), query.as_str())).collect();
    let app = App::start_on(major, &schema, &facts, "").await;
    assert_complete(&app).await;
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    let status = process.status().await;
    for (signature, _) in &facts {
        let (mode, why) = super::mode(&status, signature);
        match signature.starts_with('r') {
            true => assert!(mode == "refused" && why.contains("renamed"), "{signature}: {mode}, {why}"),
            // A composite value IS NOT NULL if none of its fields is NULL, which is left to the server.
            false if why.contains("whole row is NULL") => assert_eq!(mode, "refresh"),
            false => assert_eq!((mode.as_str(), why.as_str()), ("incremental", " "), "{signature}"),
        }
    }
    assert_shown(&app, &process, "snapshot").await;
    for sql in [
        "CREATE TABLE saved AS SELECT * FROM typed; DELETE FROM typed WHERE id % 2 = 0",
        "TRUNCATE typed",
        "INSERT INTO typed SELECT * FROM saved",
        "UPDATE typed SET id = id + 100000",
    ] {
        app.commit(&process, sql).await;
        assert_shown(&app, &process, sql).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_type_of_15() {
    every_type(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_every_type_of_18() {
    every_type(Major::V18).await;
}
