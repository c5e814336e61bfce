//! Names that need quotes, and as many columns as a table can have.

use crate::support::app::App;

/// The longest name but one character, which makes it 63 bytes.
const LONG: &str = "llllllllllllllllllllllllllllllllllllllllllllllllllllllllllllll";

/// A table, its key and its value, spelled as SQL.
const NAMES: [(&str, &str, &str); 15] = [
    ("\"a.b\"", "id", "\"x.y\""),
    ("\"q\"\"uo'te\"", "id", "\"co\"\"l\""),
    ("U&\"new\\000aline\"", "id", "U&\"t\\0009ab\""),
    ("\"select\"", "\"from\"", "\"where\""),
    ("\"日本語テーブル\"", "\"キー\"", "\"値\""),
    ("\"Ünïcode 𝄞\"", "\"É\"", "\"é\""),
    ("\"CamelCase\"", "\"Id\"", "\"Role\""),
    ("\"back\\slash\"", "id", "\"v\\1\""),
    ("\"$dollar$\"", "id", "\"$1\""),
    ("\"sp ace\"", "id", "\" lead\""),
    ("\"percent%s{}\"", "id", "\"%I\""),
    ("\"comment--/*\"", "id", "\";\""),
    ("\"Odd.Schema\".\"a.b\"", "id", "v"),
    ("\"pg\"\"x\".\"tab\"", "id", "v"),
    ("\"\"\"\"\"\"", "\"\"\"\"", "\"'\""),
];

#[tokio::test(flavor = "multi_thread")]
async fn exact_whatever_tables_and_columns_are_called() {
    let (longest, key, value) = (format!("\"{LONG}A\""), format!("\"{LONG}B\""), format!("\"{LONG}C\""));
    let names: Vec<(&str, &str, &str)> = NAMES.into_iter().chain([(&*longest, &*key, &*value)]).collect();
    let mut schema = String::from("CREATE SCHEMA \"Odd.Schema\"; CREATE SCHEMA \"pg\"\"x\"");
    for (table, id, value) in &names {
        schema.push_str(&format!(
            "; CREATE TABLE {table} ({id} int PRIMARY KEY, {value} text); INSERT INTO {table} VALUES (1, 'one'), (2, 'two')"
        ));
    }
    let facts: Vec<(String, String)> = names
        .iter()
        .enumerate()
        .map(|(number, (table, id, value))| {
            (format!("f{number}(A:_, B:_)"), format!("SELECT {id}, {value} FROM {table} WHERE {value} <> ''"))
        })
        .collect();
    let facts: Vec<(&str, &str)> = facts.iter().map(|(signature, query)| (signature.as_str(), query.as_str())).collect();
    let app = App::start(&schema, &facts, "").await;
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    for (signature, _) in &facts {
        assert_eq!(super::mode(&process.status().await, signature).0, "incremental", "{signature}");
    }
    app.assert_equal(&process, "read").await;
    for change in ["UPDATE {t} SET {v} = 'x' || {v}", "UPDATE {t} SET {k} = {k} + 10", "DELETE FROM {t} WHERE {k} = 11", "TRUNCATE {t}"] {
        for (table, id, value) in &names {
            app.sql(&change.replace("{t}", table).replace("{k}", id).replace("{v}", value)).await;
        }
        app.settle(&process).await;
        app.assert_equal(&process, change).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_the_first_and_the_last_of_1600_columns() {
    let between: Vec<String> = (1..1599).map(|number| format!("c{number} int")).collect();
    let schema =
        format!("CREATE TABLE wide (id int PRIMARY KEY, {}, last text); INSERT INTO wide (id, last) VALUES (1, 'a')", between.join(", "));
    let facts = [
        ("last(A:_, B:_)", "SELECT id, last FROM wide WHERE last IS NOT NULL"),
        ("near(A:_, B:_)", "SELECT id, c1598 FROM wide WHERE c1598 IS NOT NULL"),
    ];
    let app = App::start(&schema, &facts, "").await;
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    assert_eq!(app.ask("SELECT count(*) FROM pg_attribute WHERE attrelid = 'wide'::regclass AND attnum > 0").await, "1600");
    for sql in [
        "INSERT INTO wide (id, last, c1598) SELECT i, 'x' || i, i FROM generate_series(2, 300) AS i",
        "UPDATE wide SET c1598 = 0, c7 = 1 WHERE id % 2 = 0",
        "UPDATE wide SET id = id + 1000, last = NULL WHERE id < 10",
        "DELETE FROM wide WHERE id % 3 = 0",
    ] {
        app.commit(&process, sql).await;
        app.assert_equal(&process, sql).await;
    }
}
