//! What a query reads, which queries are refused, and one snapshot of all of them.

use super::*;

/// Tables with their columns, separated by spaces; `*` is all of them.
type Tables<'a> = &'a [(&'a str, &'a str)];

async fn analysis_is_right(major: Major) {
    let (cluster, database) = cluster(major);
    // Queries with the columns they use and, where keys add to them, the columns published.
    let cases: [(&str, usize, Tables, Tables); 14] = [
        ("SELECT id, name FROM org", 2, &[("org", "id name")], &[("org", "id name")]),
        ("SELECT name FROM org", 1, &[("org", "name")], &[("org", "id name")]),
        (
            "SELECT r.title FROM repo r JOIN org o ON o.id = r.org_id WHERE o.name > 'a'",
            1,
            &[("org", "id name"), ("repo", "org_id title")],
            &[],
        ),
        ("SELECT id FROM org_repo", 1, &[("org", "id name"), ("repo", "id org_id")], &[]),
        (
            "WITH a AS (SELECT org_id FROM member WHERE role = 'x') SELECT org_id FROM a",
            1,
            &[("member", "org_id role")],
            &[("member", "org_id role user_id")],
        ),
        (
            "SELECT id FROM org o WHERE EXISTS (SELECT 1 FROM member m WHERE m.org_id = o.id LIMIT 1)",
            1,
            &[("member", "org_id"), ("org", "id")],
            &[],
        ),
        (
            "SELECT (SELECT max(user_id) FROM member) FROM org",
            1,
            &[("member", "user_id"), ("org", "")],
            &[("member", "org_id user_id"), ("org", "id")],
        ),
        (
            "SELECT id FROM org UNION SELECT user_id FROM member WHERE role IN (SELECT title FROM repo)",
            1,
            &[("member", "role user_id"), ("org", "id"), ("repo", "title")],
            &[],
        ),
        ("SELECT o FROM org o", 1, &[("org", "id name secret")], &[]),
        ("SELECT name FROM part", 1, &[("part", "name")], &[("part", "id kind name")]),
        ("SELECT name FROM animal", 1, &[("animal", "name")], &[("animal", "id name"), ("dog", "id name")]),
        ("SELECT name FROM whole", 1, &[("whole", "name")], &[("whole", "*")]),
        ("SELECT shout(name) || id FROM org ORDER BY id LIMIT 1", 1, &[("org", "id name")], &[]),
        ("SELECT 'a' -- a comment", 1, &[], &[]),
    ];
    for (query, columns, used, published) in cases {
        let signature = signature(columns);
        let explanation = explain("app_db", &config(&cluster.url(&database), &[(&signature, query)])).await.expect("analysed");
        let view = &explanation.views[0].as_ref().expect(query).view;
        let mut got: Vec<_> = view.tables.values().map(|table| (table.name.as_str(), words(&table.columns))).collect();
        got.sort();
        let want =
            |tables: &[(&'static str, &str)]| tables.iter().map(|(table, columns)| (*table, (*columns).to_owned())).collect::<Vec<_>>();
        assert_eq!(got, want(used), "{query}");
        if !published.is_empty() {
            let mut got: Vec<_> = explanation
                .publication
                .iter()
                .map(|table| (table.name.as_str(), table.columns.as_ref().map_or("*".to_owned(), words)))
                .collect();
            got.sort();
            assert_eq!(got, want(published), "{query}");
        }
    }
}

fn words(words: &BTreeSet<String>) -> String {
    words.iter().cloned().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_tells_its_tables_and_columns() {
    analysis_is_right(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_tells_its_tables_and_columns_on_18() {
    analysis_is_right(Major::V18).await;
}

async fn refusals_are_right(major: Major) {
    let (cluster, database) = cluster(major);
    cluster.psql(
        &database,
        "CREATE ROLE limited LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO limited; ALTER TABLE member ENABLE ROW LEVEL SECURITY;",
    );
    let cases = [
        ("SELECT nothing FROM org", "does not exist"),
        ("SELECT id FROM", "syntax error"),
        ("SELECT id FROM org; SELECT 1", "multiple commands"),
        ("SELECT id, name FROM org", "2 columns and the fact type has 1 variable"),
        ("INSERT INTO org VALUES (3) RETURNING id", "not a SELECT"),
        ("WITH gone AS (DELETE FROM org RETURNING id) SELECT id FROM gone", "not a SELECT"),
        ("SELECT id FROM org WHERE id = $1", "parameter"),
        ("SELECT random() FROM org", "pg_catalog.random is volatile"),
        ("SELECT nextval('counter') FROM org", "volatile"),
        ("SELECT id FROM org WHERE clock_timestamp() > now()", "volatile"),
        ("SELECT lookup(id) FROM org", "public.lookup is STABLE"),
        ("SELECT pg_get_userbyid(id::oid) FROM org", "depends on more than the tables"),
        ("SELECT current_user FROM org", "who reads"),
        ("SELECT id FROM org TABLESAMPLE system (10)", "TABLESAMPLE"),
        ("SELECT id FROM org FOR UPDATE", "FOR UPDATE"),
        ("SELECT id FROM org LIMIT 1", "without ORDER BY"),
        ("SELECT id FROM (SELECT id FROM org OFFSET 1) x", "without ORDER BY"),
        ("SELECT DISTINCT ON (name) id FROM org", "without ORDER BY"),
        ("SELECT ctid FROM org", "system column"),
        ("SELECT id FROM org WHERE xmin = '5'", "system column"),
        ("SELECT id FROM fleeting", "an unlogged table"),
        ("SELECT id FROM frozen", "a materialized view"),
        ("SELECT relname FROM pg_class", "a system catalogue"),
        ("SELECT last_value FROM counter", "a sequence"),
        ("SELECT id FROM loose", "ALTER TABLE \"public\".\"loose\" REPLICA IDENTITY FULL"),
    ];
    let one = signature(1);
    let views: Vec<_> = cases.iter().map(|(query, _)| (one.as_str(), *query)).collect();
    let explanation = explain("app_db", &config(&cluster.url(&database), &views)).await.expect("analysed");
    for ((query, reason), view) in cases.iter().zip(&explanation.views) {
        let problem = view.as_ref().expect_err(query);
        assert!(problem.contains(reason), "{query}: {problem}");
    }
    let limited = cluster.url(&database).replace("postgres@", "limited@");
    let explanation = explain("app_db", &config(&limited, &[(&one, "SELECT user_id FROM member")])).await.expect("analysed");
    let problem = explanation.views[0].as_ref().expect_err("row-level security");
    assert!(problem.contains("BYPASSRLS"), "{problem}");
    let explanation =
        explain("app_db", &config(&cluster.url(&database), &[(&one, "SELECT user_id FROM member WHERE now() > 'epoch'")])).await;
    let view = explanation.expect("analysed").views.remove(0).expect("allowed");
    assert!(view.view.clock && view.mode == "incremental", "{}", view.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_followed_is_refused_with_its_reason() {
    refusals_are_right(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_followed_is_refused_with_its_reason_on_18() {
    refusals_are_right(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_what_psql_reads_and_one_broken_view_hides_no_other() {
    let (cluster, database) = cluster(Major::V15);
    let queries = [
        "SELECT id, name FROM org",
        "SELECT id, public FROM repo",
        "SELECT id, 1 / (id - 10) FROM repo",
        "SELECT id, secret FROM org -- with a comment",
        "SELECT n, n::text || E'\\n\\\\N' FROM generate_series(1, 20000) n",
        "SELECT id, nothing FROM org",
    ];
    let two = signature(2);
    let views: Vec<_> = queries.iter().map(|query| (two.as_str(), *query)).collect();
    let config = config(&cluster.url(&database), &views);
    let spool = tempfile::tempdir().expect("a folder");
    let counted = std::sync::Mutex::new(BTreeMap::new());
    let observer = |view: usize, rows: u64| {
        counted.lock().expect("no panic").insert(view, rows);
    };
    let snapshot = snapshot("app_db", &config, spool.path(), &observer).await.expect("read");
    assert!(snapshot.position.is_none());
    for ((number, query), view) in queries.iter().enumerate().zip(snapshot.views) {
        match view {
            Ok(extent) => same(&rows(extent), &oracle(&cluster, &database, query), query),
            Err(error) => {
                assert!(number == 2 || number == 5, "{error}");
                let wanted = if number == 2 { "division by zero" } else { "does not exist" };
                assert!(matches!(error, SourceError::View { .. }) && error.to_string().contains(wanted), "{error}");
            }
        }
    }
    assert_eq!(counted.lock().expect("no panic").get(&4), Some(&20_000));
}
