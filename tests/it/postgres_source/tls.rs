//! How connections are secured: encryption, whom we trust, whom the server does, and how both log in.
//!
//! `0.0.0.0` stands for another machine: it is no loopback address, and Linux connects it to this one.

use super::{administration::problems, *};
use crate::support::certificates::{Certificates, P256};

/// A password that has to be escaped in every way there is, and how it is written in a URI.
const PASSWORD: &str = "p@ss:/?#[]%&= wörd'\"";
const ENCODED: &str = "p%40ss%3A%2F%3F%23%5B%5D%25%26%3D%20w%C3%B6rd%27%22";
/// How `sync` logs in where nothing else is said.
const BY_PASSWORD: &str = "hostssl all,replication sync all scram-sha-256";
const SAN: &str = "subjectAltName=DNS:localhost,IP:0.0.0.0";

/// A server that lets `sync` in by `login` only, and then only with TLS.
struct Secured {
    cluster: Cluster,
    database: String,
    certificates: Certificates,
}

impl Secured {
    /// Its certificate has the extensions `san`, and ends that many `days` from now.
    fn start(login: &str, san: &str, days: i32) -> Self {
        let (cluster, database) = cluster(Major::V15);
        let certificates = Certificates::authority("test-authority");
        certificates.sign_for("server", "/CN=localhost", P256, san, days);
        let data = cluster.data_dir();
        for file in ["server.key", "server.crt", "ca.crt"] {
            hand_over(&certificates.file(file), &data, file);
        }
        let hba = std::fs::read_to_string(data.join("pg_hba.conf")).expect("a file");
        std::fs::write(data.join("pg_hba.conf"), format!("{login}\nhost all,replication sync all reject\n{hba}")).expect("written");
        let settings = "ALTER SYSTEM SET ssl = on; ALTER SYSTEM SET ssl_ca_file = 'ca.crt'; ALTER SYSTEM SET listen_addresses = '0.0.0.0'";
        for setting in settings.split("; ") {
            cluster.psql("postgres", setting);
        }
        let role = format!("CREATE ROLE sync SUPERUSER LOGIN PASSWORD '{}'", PASSWORD.replace('\'', "''"));
        cluster.psql("postgres", &role);
        cluster.stop();
        cluster.start_again();
        Self { cluster, database, certificates }
    }

    fn url(&self, host: &str, options: &str) -> String {
        format!("postgresql://sync:{ENCODED}@{host}:{}/{}?{options}", self.cluster.port(), self.database)
    }

    fn file(&self, name: &str) -> String {
        self.certificates.file(name)
    }

    fn config(&self, host: &str, options: &str) -> PostgresConfig {
        config(&self.url(host, options), &VIEWS)
    }

    /// Follows until nothing is missing, and gives what the server says of each of our connections, `tls|client_dn`.
    async fn follow(&self, config: &PostgresConfig) -> BTreeSet<String> {
        let mut followed = Followed::start(config, None);
        followed.catch_up(&self.cluster, &self.database).await;
        agrees(&followed, &self.cluster, &self.database);
        let sessions = "SELECT ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'sync'";
        let replicates = "SELECT count(*) FROM pg_stat_replication WHERE usename = 'sync'";
        assert_eq!(self.cluster.psql(&self.database, replicates), "1");
        let found = self.cluster.psql(&self.database, sessions).lines().map(str::to_owned).collect();
        followed.stop().await;
        found
    }

    /// Why it cannot be followed: nobody tries again, and somebody is told `wanted`.
    async fn refused(&self, host: &str, options: &str, wanted: &[&str]) {
        let (error, _) = Followed::start(&self.config(host, options), None).error().await;
        assert_eq!(error.disposition(), Disposition::Operator, "{host} {options}: {error}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("p@ss") && !shown.contains("p%40ss"), "{shown}");
        let hint = if let SourceError::Refused { hint, .. } = &error { hint.clone() } else { String::new() };
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let told = format!("{error}: {cause}. {hint}");
        for part in wanted {
            assert!(told.contains(part), "{host} {options}: \"{part}\" is not in: {told}");
        }
    }
}

/// Gives the server a file of its own.
fn hand_over(from: &str, data: &std::path::Path, name: &str) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let owner = std::fs::metadata(data).expect("a directory");
    let to = data.join(name);
    std::fs::copy(from, &to).expect("copied");
    chown(&to, Some(owner.uid()), Some(owner.gid())).expect("owned by the server");
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).expect("private");
}

fn only(session: &str) -> BTreeSet<String> {
    BTreeSet::from([session.to_owned()])
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_means_what_libpq_says_on_both_kinds_of_connection() {
    let server = Secured::start(BY_PASSWORD, "subjectAltName=DNS:localhost", 2);
    let ca = server.file("ca.crt");
    for (host, options) in [
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}")),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ca}")),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", String::new()),
    ] {
        assert_eq!(server.follow(&server.config(host, &options)).await, only("t|"), "{host} {options}");
    }
    let mut with_block = server.config("localhost", "sslmode=disable");
    with_block.ssl = Some(SslConfig { ca_file: Some(ca.clone().into()), use_system_certs: true, mode: SslMode::Prefer });
    assert_eq!(server.follow(&with_block).await, only("t|"));

    let named = ["does not name \"127.0.0.1\"", "subjectAltName", "sslmode=verify-ca"];
    server.refused("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={ca}"), &named).await;
    server
        .refused("localhost", "sslmode=verify-full&sslrootcert=system", &["No authority that this system trusts", "sslrootcert=FILE"])
        .await;
    let missing = ["\"/nonexistent\" cannot be read"];
    server.refused("localhost", "sslmode=verify-full&sslrootcert=/nonexistent", &missing).await;
    let stranger = Certificates::authority("other-authority");
    let options = format!("sslmode=verify-ca&sslrootcert={}", stranger.file("ca.crt"));
    server.refused("localhost", &options, &["another authority than those in the file"]).await;
    server.refused("localhost", "sslmode=disable", &["pg_hba.conf", "with TLS"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_machine_is_verified_unless_the_configuration_says_otherwise() {
    let server = Secured::start(BY_PASSWORD, SAN, 2);
    let ca = server.file("ca.crt");
    server.refused("0.0.0.0", "", &["sslrootcert=FILE or ca_file", "is another machine", "sslmode=require"]).await;
    assert_eq!(server.follow(&server.config("0.0.0.0", &format!("sslrootcert={ca}"))).await, only("t|"));
    // Each way to say otherwise.
    assert_eq!(server.follow(&server.config("0.0.0.0", "sslmode=require")).await, only("t|"));
    let mut with_block = server.config("0.0.0.0", "");
    with_block.ssl = Some(SslConfig { ca_file: None, use_system_certs: false, mode: SslMode::Prefer });
    assert_eq!(server.follow(&with_block).await, only("t|"));
    let findings = preflight("app_db", &server.config("0.0.0.0", "sslmode=require")).await;
    let warned = |findings: &[Finding]| findings.iter().any(|finding| finding.text.contains("without verifying its certificate"));
    assert!(warned(&findings), "{findings:?}");
    let findings = preflight("app_db", &server.config("0.0.0.0", &format!("sslrootcert={ca}"))).await;
    assert!(!warned(&findings), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_on_another_machine_is_not_spoken_to_unless_told() {
    let cluster = Cluster::start_with(Major::V15, &[("listen_addresses", "0.0.0.0")]);
    let database = cluster.database();
    cluster.psql(&database, SCHEMA);
    let url = |options: &str| cluster.url(&database).replace("127.0.0.1", "0.0.0.0") + options;
    let (error, _) = Followed::start(&config(&url(""), &VIEWS), None).error().await;
    let SourceError::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.contains("\"0.0.0.0\" speaks no TLS") && hint.contains("sslmode=disable"), "{hint}");
    let plain = config(&url("?sslmode=disable"), &VIEWS);
    let mut followed = Followed::start(&plain, None);
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    followed.stop().await;
    let findings = preflight("app_db", &plain).await;
    assert!(findings.iter().any(|finding| finding.text.contains("spoken to in clear")), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_told_as_such() {
    let server = Secured::start(BY_PASSWORD, SAN, -1);
    let ca = server.file("ca.crt");
    let expired = ["The server's certificate has expired: renew it"];
    for mode in ["verify-full", "verify-ca"] {
        server.refused("localhost", &format!("sslmode={mode}&sslrootcert={ca}"), &expired).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_logs_in_on_both_kinds_of_connection() {
    let server = Secured::start("hostssl all,replication sync all cert", SAN, 2);
    server.certificates.sign("client", "/CN=sync", P256, "");
    server.certificates.sign("other", "/CN=somebody", P256, "");
    let ca = server.file("ca.crt");
    let with = |name: &str| {
        format!("sslrootcert={ca}&sslcert={}&sslkey={}", server.file(&format!("{name}.crt")), server.file(&format!("{name}.key")))
    };
    for mode in ["&sslmode=require", "&sslmode=verify-full", ""] {
        let config = server.config("0.0.0.0", &(with("client") + mode));
        assert_eq!(server.follow(&config).await, only("t|/CN=sync"), "{mode}");
    }
    server
        .refused("localhost", &format!("sslmode=verify-full&sslrootcert={ca}"), &["valid client certificate", "sslcert and sslkey"])
        .await;
    server.refused("localhost", &with("other"), &["pg_hba.conf"]).await;
    let stranger = Certificates::authority("other-authority");
    stranger.sign("client", "/CN=sync", P256, "");
    let theirs = format!("sslmode=require&sslcert={}&sslkey={}", stranger.file("client.crt"), stranger.file("client.key"));
    server.refused("localhost", &theirs, &["refuses this client", "sslcert=FILE"]).await;
    let mixed = format!("sslmode=require&sslcert={}&sslkey={}", server.file("client.crt"), server.file("other.key"));
    server.refused("localhost", &mixed, &["is not that of the certificate"]).await;
    let swapped = format!("sslmode=require&sslcert={}&sslkey={}", server.file("client.key"), server.file("client.crt"));
    server.refused("localhost", &swapped, &["holds no certificate"]).await;
}

/// What one of our connections asks of SCRAM and the other cannot do is refused, and what both can do is done.
#[tokio::test(flavor = "multi_thread")]
async fn channel_binding_is_kept_or_refused_by_name() {
    let server = Secured::start(BY_PASSWORD, SAN, 2);
    for binding in ["prefer", "disable"] {
        let config = server.config("localhost", &format!("sslmode=require&channel_binding={binding}"));
        assert_eq!(server.follow(&config).await, only("t|"));
    }
    let required = "sslmode=require&channel_binding=require";
    server.refused("localhost", required, &["channel_binding=require", "sslmode=verify-full"]).await;
    let found = problems(&preflight("app_db", &server.config("localhost", required)).await);
    assert!(found.iter().any(|problem| problem.contains("channel_binding=require")), "{found:?}");
    // One read of everything follows nothing: it is bound, or it is not done.
    let read = |config: PostgresConfig| async move { snapshot("app_db", &config, &std::env::temp_dir(), &|_, _| ()).await };
    read(server.config("localhost", required)).await.expect("bound to the channel");
    let error = read(server.config("localhost", "sslmode=disable&channel_binding=require")).await.expect_err("there is no channel");
    assert_eq!(error.disposition(), Disposition::Operator, "{error}");
    // A server that asks for no password is bound to nothing.
    let trusting = server.url("localhost", required).replace(&format!("sync:{ENCODED}@"), "postgres@");
    let error = read(config(&trusting, &VIEWS)).await.expect_err("nothing was proven");
    let SourceError::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.contains("channel_binding=require"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_password_is_not_tried_for_ever() {
    let server = Secured::start(BY_PASSWORD, SAN, 2);
    let without = server.url("localhost", "sslmode=require").replace(&format!(":{ENCODED}"), "");
    let (error, _) = Followed::start(&config(&without, &VIEWS), None).error().await;
    let SourceError::Refused { hint, .. } = &error else { panic!("{error}") };
    assert!(hint.contains("put one into the connection string"), "{hint}");
}
