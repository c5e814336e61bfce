//! `check`, `setup` and `reset`, and how connections are secured.

use super::*;

fn problems(findings: &[Finding]) -> Vec<String> {
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

/// A server that takes only TLS and a password, with a certificate for `localhost` by an authority of its own; gives the authority's file.
fn with_tls(cluster: &Cluster) -> PathBuf {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let data = cluster.data_dir();
    let openssl = |arguments: &str| {
        let status = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&data)
            .stderr(std::process::Stdio::null())
            .status();
        assert!(status.expect("openssl is installed").success(), "{arguments}");
    };
    openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-authority");
    openssl("req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    std::fs::write(data.join("san.cnf"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").expect("written");
    openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile san.cnf");
    let owner = std::fs::metadata(&data).expect("a directory");
    for file in ["server.key", "server.crt"] {
        chown(data.join(file), Some(owner.uid()), Some(owner.gid())).expect("owned by the server");
    }
    std::fs::set_permissions(data.join("server.key"), std::fs::Permissions::from_mode(0o600)).expect("private");
    let hba = std::fs::read_to_string(data.join("pg_hba.conf")).expect("a file");
    std::fs::write(
        data.join("pg_hba.conf"),
        format!("hostssl all,replication sync all scram-sha-256\nhost all,replication sync all reject\n{hba}"),
    )
    .expect("written");
    cluster.psql("postgres", "ALTER SYSTEM SET ssl = on; ALTER SYSTEM SET listen_addresses = 'localhost'");
    cluster.stop();
    cluster.start_again();
    let authority = std::env::temp_dir().join(format!("factsync-test-ca-{}.crt", cluster.port()));
    std::fs::copy(data.join("ca.crt"), &authority).expect("copied");
    authority
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_means_what_libpq_says_on_both_kinds_of_connection() {
    let (cluster, database) = cluster(Major::V15);
    let authority = with_tls(&cluster);
    let password = "p@ss:/?#[]%&= wörd'\"";
    cluster.psql(&database, &format!("CREATE ROLE sync SUPERUSER LOGIN PASSWORD '{}'", password.replace('\'', "''")));
    let encoded = "p%40ss%3A%2F%3F%23%5B%5D%25%26%3D%20w%C3%B6rd%27%22";
    let url = |host: &str, options: &str| format!("postgresql://sync:{encoded}@{host}:{}/{database}?{options}", cluster.port());
    let ca = authority.display();
    for (host, options) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ca}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", String::new()),
    ] {
        let mut followed = Followed::start(&config(&url(host, &options), &VIEWS), None);
        followed.catch_up(&cluster, &database).await;
        agrees(&followed, &cluster, &database);
        followed.stop().await;
    }
    let mut with_block = config(&url("localhost", "sslmode=disable"), &VIEWS);
    with_block.ssl = Some(SslConfig { ca_file: Some(authority.clone()), use_system_certs: true, mode: SslMode::Prefer });
    let mut followed = Followed::start(&with_block, None);
    followed.catch_up(&cluster, &database).await;
    followed.stop().await;

    for (host, options) in [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}")),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned()),
        ("localhost", "sslmode=disable".to_owned()),
        ("localhost", "sslmode=verify-full&sslrootcert=/nonexistent".to_owned()),
    ] {
        let (error, _) = Followed::start(&config(&url(host, &options), &VIEWS), None).error().await;
        assert_eq!(error.disposition(), Disposition::Operator, "{host} {options}: {error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40ss"), "{shown}");
    }
    std::fs::remove_file(authority).expect("removed");
}
