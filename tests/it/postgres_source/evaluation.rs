//! Expressions that the source computes.

use std::sync::Arc;

use factsync::{query::RemoteExpr, source::Evaluate};

use super::*;

fn expression(sql: &str, types: &[&str]) -> RemoteExpr {
    RemoteExpr { sql: sql.to_owned(), args: (0..types.len()).collect(), types: types.iter().map(|&name| name.to_owned()).collect() }
}

fn evaluator(cluster: &Cluster, database: &str) -> Arc<dyn Evaluate> {
    let follower = Follower::new("app_db", &config(&cluster.url(database), &VIEWS), std::env::temp_dir());
    follower.evaluator().expect("PostgreSQL evaluates")
}

fn values(rows: &[&[Option<&str>]]) -> Vec<Vec<Option<String>>> {
    rows.iter().map(|row| row.iter().map(|cell| cell.map(str::to_owned)).collect()).collect()
}

async fn computes(major: Major) {
    let (cluster, database) = cluster(major);
    let evaluator = evaluator(&cluster, &database);
    for (sql, types, rows, want) in [
        (
            "$1 + $2",
            &["integer", "bigint"][..],
            &[&[Some("1"), Some("2")][..], &[None, Some("2")], &[Some("-7"), Some("7")]][..],
            &[Some("3"), None, Some("0")][..],
        ),
        // The type's output, which is not what a cast to text gives.
        ("$1", &["boolean"], &[&[Some("t")], &[Some("f")], &[None]], &[Some("t"), Some("f"), None]),
        ("$1", &["inet"], &[&[Some("10.0.0.1")]], &[Some("10.0.0.1")]),
        ("$1", &["character(4)"], &[&[Some("a   ")], &[Some("    ")]], &[Some("a   "), Some("    ")]),
        ("upper($1)", &["text"], &[&[Some("NULL")], &[Some("")], &[Some("é\"\\',{}")]], &[Some("NULL"), Some(""), Some("É\"\\',{}")]),
        ("$1 -> 'a' ->> 0", &["jsonb"], &[&[Some("{\"a\": [\"x, y\"]}")], &[Some("{}")]], &[Some("x, y"), None]),
        ("$1[2]", &["text[]"], &[&[Some("{a,\"b c\",NULL}")], &[Some("{{1,2},{3,4}}")]], &[Some("b c"), None]),
        ("$1 || ARRAY[ARRAY[9, 9]]", &["integer[]"], &[&[Some("{{1,2},{3,4}}")]], &[Some("{{1,2},{3,4},{9,9}}")]),
        ("$1 + interval '1 month'", &["timestamp with time zone"], &[&[Some("2020-01-31 00:00:00+00")]], &[Some("2020-02-29 00:00:00+00")]),
        ("'$1' || public.shout($1)", &["text"], &[&[Some("a")]], &[Some("$1A")]),
        ("7", &[], &[&[], &[]], &[Some("7"), Some("7")]),
        ("ROW($1, $2)", &["text", "integer"], &[&[Some("a b"), None]], &[Some("(\"a b\",)")]),
    ] {
        let got = evaluator.evaluate(&expression(sql, types), values(rows)).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(got, want.iter().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>(), "{sql}");
    }
}

#[tokio::test]
async fn expressions_are_computed_as_in_the_query() {
    computes(Major::V15).await;
}

#[tokio::test]
async fn expressions_are_computed_as_in_the_query_on_18() {
    computes(Major::V18).await;
}

#[tokio::test]
async fn many_rows_keep_their_order() {
    let (cluster, database) = cluster(Major::V15);
    let rows: Vec<Vec<Option<String>>> = (0..30_000).map(|n| vec![Some(n.to_string()), Some("x".repeat(100))]).collect();
    let got = evaluator(&cluster, &database).evaluate(&expression("$1 + length($2)", &["integer", "text"]), rows).await.expect("computed");
    assert!(got.iter().enumerate().all(|(n, got)| got.as_deref() == Some(&*(n + 100).to_string())));
    assert_eq!(got.len(), 30_000);
}

#[tokio::test]
async fn a_failing_expression_is_told_from_a_lost_connection() {
    let (cluster, database) = cluster(Major::V15);
    let evaluator = evaluator(&cluster, &database);
    let divide = expression("10 / $1", &["integer"]);
    let compute = async |value: &str| evaluator.evaluate(&divide, values(&[&[Some(value)]])).await;
    let error = compute("0").await.expect_err("a division by zero");
    assert!(matches!(error, SourceError::Expression { .. }) && error.to_string().contains("division by zero"), "{error}");
    let error = compute("secret").await.expect_err("no number");
    assert!(matches!(error, SourceError::Expression { .. }) && !error.to_string().contains("secret"), "{error}");
    // The session goes on after an error, and a new one takes its place when it is lost.
    assert_eq!(compute("2").await.expect("computed"), [Some("5".to_owned())]);
    cluster.psql(
        &database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
    );
    assert_eq!(compute("5").await.expect("computed"), [Some("2".to_owned())]);
    cluster.stop();
    let error = compute("5").await.expect_err("no server");
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    cluster.start_again();
    assert_eq!(compute("10").await.expect("computed"), [Some("1".to_owned())]);
}
