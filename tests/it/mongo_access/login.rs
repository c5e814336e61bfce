//! Users: passwords in both forms of SCRAM, and X.509 certificates.

use mongodb::bson::doc;

use super::{Config, refused};
use crate::support::{
    certificates::{Certificates, P256},
    secured_mongod::Secured,
};

/// As the server prints a subject: the last part first.
fn subject(name: &str) -> String {
    format!("CN={name},O=apps")
}

/// A certificate by the server's authority and, if it `may` read, a user for it; its file.
async fn client(secured: &Secured, database: &str, name: &str, key: &str, may: bool) -> String {
    secured.certificates().sign(name, &format!("/O=apps/CN={name}"), key, "");
    if may {
        let roles = vec![doc! { "role": "read", "db": database }];
        let create = doc! { "createUser": subject(name), "roles": roles };
        secured.root().await.database("$external").run_command(create).await.expect("a user");
    }
    secured.certificates().file(&format!("{name}.pem"))
}

async fn seed(secured: &Secured, database: &str) {
    let users = secured.root().await.database(database).collection("users");
    users.insert_one(doc! { "_id": "ann", "role": "admin" }).await.expect("inserted");
}

#[tokio::test]
async fn both_kinds_of_scram_work_and_each_mistake_is_named() {
    const DATABASE: &str = "scram";
    let secured = Secured::shared().await;
    seed(&secured, DATABASE).await;
    let new = secured.user(DATABASE, "new", doc! { "mechanisms": ["SCRAM-SHA-256"] }).await;
    let old = secured.user(DATABASE, "old", doc! { "mechanisms": ["SCRAM-SHA-1"] }).await;
    let odd = "p@ss:/?#[]%&= wörd'\" pass-word";
    secured.user(DATABASE, "odd", doc! { "pwd": odd }).await;
    let elsewhere = doc! { "roles": [{ "role": "read", "db": DATABASE }] };
    let central = secured.user("admin", "central", elsewhere).await;
    let encoded = "odd:p%40ss%3A%2F%3F%23%5B%5D%25%26%3D%20w%C3%B6rd%27%22%20pass-word";
    for (login, options) in [
        (new.as_str(), ""),
        (&new, "authMechanism=SCRAM-SHA-256"),
        (&old, ""),
        (&old, "authMechanism=SCRAM-SHA-1"),
        (encoded, ""),
        (&central, "authSource=admin"),
    ] {
        assert_eq!(Config::new().reconciled(&secured.uri(login, DATABASE, options)), ["ann admin"], "{options}");
    }

    let check_it = "Check the user, the password and authSource";
    for (login, options, wanted) in [
        ("new:wrong-pass-word", "", check_it),
        ("nobody:pass-word", "", check_it),
        (central.as_str(), "", check_it),
        (&new, "authSource=admin", check_it),
        (&old, "authMechanism=SCRAM-SHA-256", "and remove authMechanism"),
        ("", "", "Put a user into the connection string"),
    ] {
        refused(&secured.uri(login, DATABASE, options), &[wanted]);
    }
}

#[tokio::test]
async fn a_user_without_a_role_on_the_database_is_told_which() {
    let secured = Secured::shared().await;
    let login = secured.user("admin", "roleless", doc! { "roles": [] }).await;
    refused(&secured.uri(&login, "roleless", "authSource=admin"), &["factsync setup CONFIG", "not authorized on roleless"]);
}

#[tokio::test]
async fn certificates_are_users_with_every_key_that_rustls_takes() {
    const DATABASE: &str = "x509";
    const OPTIONS: &str = "authMechanism=MONGODB-X509&serverSelectionTimeoutMS=1500&tlsCertificateKeyFile=";
    let secured = Secured::shared().await;
    seed(&secured, DATABASE).await;
    let uri = |file: &str| secured.uri("", DATABASE, &format!("{OPTIONS}{file}"));
    let rsa = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
    let p384 = "-algorithm EC -pkeyopt ec_paramgen_curve:P-384";
    for (name, key) in [("p256", P256), ("p384", p384), ("rsa", rsa)] {
        let file = client(&secured, DATABASE, name, key, true).await;
        assert_eq!(Config::new().reconciled(&uri(&file)), ["ann admin"], "{name}");
    }
    // The same keys in the forms of older tools, and the key before the certificate.
    let certificates = secured.certificates();
    for (of, convert) in [("p256", "ec -in p256.key"), ("rsa", "rsa -traditional -in rsa.key")] {
        certificates.openssl(&format!("{convert} -out {of}-old.key"));
        certificates.join(&[&format!("{of}-old.key"), &format!("{of}.crt")], &format!("{of}-old.pem"));
        assert_eq!(Config::new().reconciled(&uri(&certificates.file(&format!("{of}-old.pem")))), ["ann admin"], "{of}");
    }

    let stranger = client(&secured, DATABASE, "stranger", P256, false).await;
    refused(&uri(&stranger), &["Create a user in \"$external\"", "openssl x509 -noout -subject -nameopt RFC2253"]);
    let foreign = Certificates::authority("foreign");
    foreign.sign("client", "/O=apps/CN=p256", P256, "");
    refused(&uri(&foreign.file("client.pem")), &["tlsCertificateKeyFile"]);
}

#[tokio::test]
async fn key_files_that_do_not_do_are_named() {
    let secured = Secured::shared().await;
    let keys = Certificates::authority("keys");
    keys.sign("one", "/O=apps/CN=one", P256, "");
    keys.sign("other", "/O=apps/CN=other", P256, "");
    keys.sign("curve", "/O=apps/CN=curve", "-algorithm EC -pkeyopt ec_paramgen_curve:P-521", "");
    keys.sign("rsa", "/O=apps/CN=rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048", "");
    keys.openssl("pkey -in one.key -aes256 -passout pass:hidden -out locked.key");
    keys.openssl("rsa -traditional -in rsa.key -aes256 -passout pass:hidden -out locked-old.key");
    keys.join(&["one.crt", "locked.key"], "locked.pem");
    keys.join(&["rsa.crt", "locked-old.key"], "locked-old.pem");
    keys.join(&["one.crt", "other.key"], "mixed.pem");
    std::fs::write(keys.file("garbage.pem"), "-----BEGIN PRIVATE KEY-----\npass-word!\n-----END PRIVATE KEY-----\n").expect("written");
    keys.join(&["one.crt", "garbage.pem"], "broken.pem");
    for (file, wanted) in [
        ("one.crt", "holds no private key"),
        ("one.key", "holds no certificate"),
        ("locked.pem", "encrypted with a password"),
        ("locked-old.pem", "encrypted with a password"),
        ("curve.pem", "P-256 or P-384"),
        ("mixed.pem", "the private key that belongs to it"),
        ("broken.pem", "it is no PEM file"),
        ("nothing.pem", "No such file"),
    ] {
        let options = format!("authMechanism=MONGODB-X509&tlsCertificateKeyFile={}", keys.file(file));
        refused(&secured.uri("", "key_files", &options), &[wanted]);
    }
}
