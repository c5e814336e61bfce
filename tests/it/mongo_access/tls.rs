//! TLS: whom the client trusts, and whom the server does.

use mongodb::bson::doc;

use super::{Config, refused};
use crate::support::{
    certificates::{Certificates, P256},
    mongod::Mongod,
    secured_mongod::Secured,
};

/// A server that cannot be used is told after this.
const QUICK: &str = "serverSelectionTimeoutMS=1500";

async fn server(database: &str) -> (std::sync::Arc<Secured>, String) {
    let secured = Secured::shared().await;
    let users = secured.root().await.database(database).collection("users");
    users.insert_one(doc! { "_id": "ann", "role": "admin" }).await.expect("inserted");
    let login = secured.user(database, "reader", doc! {}).await;
    (secured, login)
}

#[tokio::test]
async fn an_authority_in_a_file_is_trusted_and_no_other() {
    let (secured, login) = server("tls_authority").await;
    let own = secured.uri(&login, "tls_authority", QUICK);
    let ca = secured.certificates().file("ca.crt");
    assert_eq!(Config::new().reconciled(&own), ["ann admin"]);
    Config::new().check(&own).expect_code(0);

    let other = Certificates::authority("other-authority");
    refused(&own.replace(&ca, &other.file("ca.crt")), &["UnknownIssuer", "another authority than those in tlsCAFile"]);
    refused(&own.replace(&format!("tlsCAFile={ca}&"), ""), &["UnknownIssuer", "with tlsCAFile=FILE", "not those of the operating system"]);
    let by_address = own.replace("localhost", "127.0.0.1") + "&directConnection=true";
    refused(&by_address, &["subjectAltName", "127.0.0.1"]);
}

#[tokio::test]
async fn plain_to_tls_and_tls_to_plain_are_told_apart() {
    let (secured, login) = server("tls_plain").await;
    let plain = format!("mongodb://{login}@localhost:{}/tls_plain?{QUICK}", secured.port());
    refused(&plain, &["could not connect", "add tls=true to the connection string"]);
    let mongod = Mongod::shared().await;
    refused(&(mongod.uri("app") + "?tls=true&" + QUICK), &["could not connect", "set tls=false"]);
}

#[tokio::test]
async fn taking_every_certificate_works_and_is_warned_of() {
    let (secured, login) = server("tls_anybody").await;
    let address = format!("mongodb://{login}@127.0.0.1:{}/tls_anybody?directConnection=true&{QUICK}", secured.port());
    for option in ["tls=true&tlsAllowInvalidCertificates=true", "tlsInsecure=true"] {
        let uri = format!("{address}&{option}");
        assert_eq!(Config::new().reconciled(&uri), ["ann admin"]);
        let told = Config::new().check(&uri).expect_code(0).stdout;
        assert!(told.contains("warning: the connection string takes every certificate"), "{told}");
    }
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let (secured, login) = server("tls_files").await;
    let certificates = Certificates::authority("files");
    std::fs::write(certificates.file("empty.pem"), "nothing\n").expect("written");
    let own = secured.uri(&login, "tls_files", QUICK);
    let with_ca = |file: &str| own.replace(&secured.certificates().file("ca.crt"), file);
    refused(&with_ca("/nonexistent/ca.pem"), &["tlsCAFile \"/nonexistent/ca.pem\" cannot be read: No such file"]);
    refused(&with_ca(&certificates.file("empty.pem")), &["holds no certificate", "PEM file of certificates"]);
    refused(&with_ca(&certificates.file("ca.key")), &["holds no certificate"]);
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_says_so() {
    let certificates = Certificates::authority("mutual");
    certificates.sign("server", "/CN=server", P256, "subjectAltName=DNS:localhost");
    certificates.sign("client", "/O=apps/CN=client", P256, "");
    let (pem, ca) = (certificates.file("server.pem"), certificates.file("ca.crt"));
    let mongod = Mongod::launch(&["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", &pem, "--tlsCAFile", &ca]).await;
    let uri = format!("mongodb://localhost:{}/app?tls=true&tlsCAFile={ca}&{QUICK}", mongod.port());
    refused(&uri, &["tlsCertificateKeyFile"]);
    // Past TLS the next thing is wrong: this one is no replica set.
    refused(&format!("{uri}&tlsCertificateKeyFile={}", certificates.file("client.pem")), &["run rs.initiate() once"]);
}
