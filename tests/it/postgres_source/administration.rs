//! `check`, `setup` and `reset`.

use super::*;

pub(super) fn problems(findings: &[Finding]) -> Vec<String> {
    let problems = findings.iter().filter(|finding| finding.severity == Severity::Problem);
    problems.map(|finding| format!("{} {}", finding.text, finding.remedy.as_deref().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn setup_prints_what_preflight_misses_and_reset_removes_what_was_made() {
    let (cluster, database) = cluster(Major::V15);
    let admin = config(&cluster.url(&database), &VIEWS);
    let sync = config(&cluster.url(&database).replace("postgres@", "sync@"), &VIEWS);
    let script = setup_sql("app_db", &admin, Some("sync")).await.expect("a script");
    assert!(script.contains("CREATE ROLE \"sync\" WITH LOGIN REPLICATION;"), "{script}");
    assert!(script.contains("GRANT SELECT (\"id\", \"name\") ON \"public\".\"org\" TO \"sync\";"), "{script}");

    cluster.psql(&database, "CREATE ROLE sync LOGIN");
    let found = problems(&preflight("app_db", &sync).await);
    for wanted in ["no REPLICATION attribute", "no SELECT on public.org (id, name)", "publication \"factsync\" does not exist"] {
        assert!(found.iter().any(|problem| problem.contains(wanted)), "{wanted}: {found:?}");
    }
    let (error, _) = Followed::start(&sync, None).error().await;
    let SourceError::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.contains("CREATE PUBLICATION \"factsync\" FOR TABLE ONLY \"public\".\"org\" (\"id\", \"name\")"), "{hint}");

    let script = setup_sql("app_db", &admin, Some("sync")).await.expect("a script");
    apply_setup("app_db", &admin, &script).await.expect("applied");
    assert_eq!(problems(&preflight("app_db", &sync).await), Vec::<String>::new());
    let mut followed = Followed::start(&sync, None);
    cluster.psql(&database, "DELETE FROM member");
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    assert!(plan_reset("app_db", &admin).await.expect("a plan").slot_is_active);
    followed.stop().await;
    let dropped = apply_reset("app_db", &admin).await.expect("dropped");
    assert_eq!((dropped.slot.as_deref(), dropped.publication.as_deref()), (Some("factsync"), Some("factsync")));
    assert_eq!(cluster.psql(&database, "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)"), "0|0");
    assert_eq!(plan_reset("app_db", &admin).await.expect("a plan"), Default::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_finds_every_problem_at_once() {
    let cluster = Cluster::start_with(Major::V15, &[("wal_level", "replica"), ("max_wal_senders", "1"), ("max_replication_slots", "1")]);
    let database = cluster.database();
    cluster.psql(&database, SCHEMA);
    let one = signature(1);
    let views = [(one.as_str(), "SELECT id FROM org"), (one.as_str(), "SELECT id FROM loose"), (one.as_str(), "SELECT id, name FROM org")];
    let findings = preflight("app_db", &config(&cluster.url(&database), &views)).await;
    let found = problems(&findings);
    for wanted in ["wal_level is \"replica\" Run ALTER SYSTEM", "has no primary key", "2 columns and the fact type has 1 variable"] {
        assert!(found.iter().any(|problem| problem.contains(wanted)), "{wanted}: {found:?}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(findings.iter().filter(|finding| finding.severity == Severity::Warning).count(), 2, "slots and senders");
    // A reconcile needs none of this.
    let read = snapshot("app_db", &config(&cluster.url(&database), &views), &std::env::temp_dir(), &|_, _| ()).await.expect("read");
    assert!(read.views[0].is_ok() && read.views[1].is_ok() && read.views[2].is_err());
    cluster.stop();
    let found = problems(&preflight("app_db", &config(&cluster.url(&database), &views)).await);
    assert!(found.len() == 1 && found[0].contains("could not connect"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_judges_queries_it_does_not_follow() {
    let (cluster, database) = cluster(Major::V15);
    let one = signature(1);
    let views = views(&[(&one, "SELECT now()::text"), (&one, "SELECT 1, 2"), (&one, "SELECT nothing")]);
    let findings = judge(&SecretString::from(cluster.url(&database)), &views).await;
    let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Fine, Severity::Problem, Severity::Problem]);
}

/// Views over views, one that reads by the rights of who asks, one in another schema.
const SHOWN: &str = "
    CREATE SCHEMA face; CREATE VIEW face.\"Outer\" AS SELECT id, name, name || '!' AS loud FROM org_repo WHERE id > 0;
    CREATE VIEW invoked WITH (security_invoker) AS SELECT r.id, m.user_id FROM org_repo r JOIN member m ON m.org_id <= r.id";
const QUERIES: [&str; 4] = [
    "SELECT id, name FROM face.\"Outer\"",
    "SELECT id, user_id FROM invoked WHERE user_id > 100",
    "SELECT 'all', count(*) FROM face.\"Outer\"",
    // Not incremental.
    "SELECT id, rank() OVER (ORDER BY id) FROM face.\"Outer\"",
];

async fn views_are_granted_to_who_reads_them(major: Major) {
    let (cluster, database) = cluster(major);
    cluster.psql(&database, SHOWN);
    let two = signature(2);
    let each = async |query: &str, role: &str| {
        let views = [(two.as_str(), query)];
        let admin = config(&cluster.url(&database), &views);
        let limited = config(&cluster.url(&database).replace("postgres@", &format!("{role}@")), &views);
        // Without the schema it is not even told what the view is.
        cluster.psql(&database, &format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA face TO {role}"));
        let missing = problems(&preflight("app_db", &limited).await);
        let script = setup_sql("app_db", &admin, Some(role)).await.expect("a script");
        apply_setup("app_db", &admin, &script).await.expect("applied");
        assert_eq!(problems(&preflight("app_db", &limited).await), Vec::<String>::new(), "{script}");
        let mut followed = Followed::start(&limited, None);
        cluster.psql(&database, "INSERT INTO repo SELECT max(id) + 1, 1, 'new', true FROM repo; DELETE FROM member WHERE user_id = 100");
        followed.catch_up(&cluster, &database).await;
        assert!(followed.failed.is_empty(), "{:?}", followed.failed);
        same(&followed.views[&0], &oracle(&cluster, &database, query), query);
        followed.stop().await;
        apply_reset("app_db", &admin).await.expect("dropped");
        (missing.join("; "), script)
    };
    let (missing, script) = each(QUERIES[0], "first").await;
    assert!(missing.contains("no SELECT on face.Outer (id, name)"), "{missing}");
    assert!(script.contains("GRANT USAGE ON SCHEMA \"face\" TO \"first\";"), "{script}");
    assert!(script.contains("GRANT SELECT (\"id\", \"name\") ON \"face\".\"Outer\" TO \"first\";"), "{script}");
    let may = |role: &str, of: &str| cluster.psql(&database, &format!("SELECT has_any_column_privilege('{role}', '{of}', 'SELECT')"));
    assert_eq!(may("first", "org_repo"), "f", "the owner of the view around it reads it");
    assert_eq!(cluster.psql(&database, "SELECT has_column_privilege('first', 'face.\"Outer\"', 'loud', 'SELECT')"), "f");
    each(QUERIES[1], "second").await;
    assert_eq!((may("second", "invoked"), may("second", "org_repo")), ("t".to_owned(), "t".to_owned()));
    each(QUERIES[2], "third").await;
    each(QUERIES[3], "fourth").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_granted_to_who_reads_them_on_15() {
    views_are_granted_to_who_reads_them(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_granted_to_who_reads_them_on_18() {
    views_are_granted_to_who_reads_them(Major::V18).await;
}
