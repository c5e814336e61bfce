//! Connection strings: what can be told without connecting.
//!
//! They hold passwords, so no message shows one, nor any part of one, not even where it stands in the file as a literal.

use secrecy::SecretString;

use crate::config::{
    expand::sole_variable,
    fields::{Field, Reader},
    raw::Value,
};

/// `sslmode` as libpq knows it.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Who a MongoDB user proves to be, and how; what else the driver knows takes libraries of its own (Kerberos, AWS, OIDC).
const MONGO_MECHANISMS: [&str; 4] = ["SCRAM-SHA-256", "SCRAM-SHA-1", MONGO_X509, "PLAIN"];
const MONGO_X509: &str = "MONGODB-X509";
/// Options that other drivers have: in lower case, as written, and what to do without them.
const MONGO_OPTIONS_WITHOUT: [(&str, &str, &str); 4] = [
    (
        "tlscertificatekeyfilepassword",
        "tlsCertificateKeyFilePassword",
        "Decrypt the private key, openssl pkey -in client.key -out plain.key, and protect the file by its mode.",
    ),
    ("tlsallowinvalidhostnames", "tlsAllowInvalidHostnames", "Connect by a name that the server's certificate has as subjectAltName."),
    ("tlscrlfile", "tlsCRLFile", "Remove it: revocation lists are not consulted."),
    ("compressors", "compressors", "Remove it: the connection is not compressed."),
];

/// What is wrong with a connection string, and what to do.
struct Fault(String, String);

/// A `postgresql://` or `postgres://` URI, or libpq's `host=… dbname=…`.
pub(super) fn postgres(reader: &mut Reader<'_>, field: &Field) -> Option<SecretString> {
    checked(reader, field, postgres_fault)
}

/// A `mongodb://` or `mongodb+srv://` URI that names a database.
pub(super) fn mongo(reader: &mut Reader<'_>, field: &Field) -> Option<SecretString> {
    checked(reader, field, mongo_fault)
}

fn checked(reader: &mut Reader<'_>, field: &Field, fault: fn(&str) -> Option<Fault>) -> Option<SecretString> {
    let text = reader.connection_string(field)?;
    let Some(Fault(message, hint)) = fault(&text) else { return Some(text.into()) };
    let subject = match &field.node.value {
        Value::Text(written) => sole_variable(written.trim()).map(|name| format!("the value of \"${name}\"")),
        _ => None,
    };
    let subject = subject.unwrap_or_else(|| format!("\"{}\"", field.key));
    reader.problem(field.node.spot, format!("{subject} {message}"), hint);
    None
}

fn postgres_fault(text: &str) -> Option<Fault> {
    let ssl_mode = match text.split_once("://") {
        Some(("postgres" | "postgresql", rest)) => rest.split_once('?').and_then(|(_, query)| setting(query.split('&'))),
        Some(("mysql", _)) => {
            return Some(Fault("is a MySQL URI".into(), "MySQL is not supported: factsync reads postgres, mongodb and csv.".into()));
        }
        None if text.contains('=') => setting(text.split_whitespace()),
        _ => {
            let hint = "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or $NAME for an environment variable that holds it.";
            return Some(Fault("is no PostgreSQL connection URI".into(), hint.into()));
        }
    };
    let known = ssl_mode.is_none_or(|mode| SSL_MODES.contains(&mode));
    (!known).then(|| Fault("has an unknown sslmode".into(), format!("Use one of {}.", SSL_MODES.join(", "))))
}

/// The value of `sslmode` among `name=value` settings; the last one counts, as it does for libpq.
fn setting<'t>(settings: impl Iterator<Item = &'t str>) -> Option<&'t str> {
    let values = settings.filter_map(|setting| setting.split_once('='));
    values.filter(|(name, _)| *name == "sslmode").map(|(_, value)| value.trim_matches('\'')).last()
}

fn mongo_fault(text: &str) -> Option<Fault> {
    let Some(("mongodb" | "mongodb+srv", rest)) = text.split_once("://") else {
        let hint = "Write mongodb://USER:PASSWORD@HOST:PORT/DATABASE, or $NAME for an environment variable that holds it.";
        return Some(Fault("is no MongoDB connection URI".into(), hint.into()));
    };
    let (address, options) = rest.split_once('?').unwrap_or((rest, ""));
    let database = address.rsplit_once('@').map_or(address, |(_, hosts)| hosts).split_once('/').map_or("", |(_, database)| database);
    if database.is_empty() {
        let hint =
            "Put the database after the host, mongodb://HOST:PORT/DATABASE; if the user is not defined there, add ?authSource=admin.";
        return Some(Fault("names no database".into(), hint.into()));
    }
    mongo_option_fault(options)
}

/// What the driver does not have. Its own message would quote the string, so it is told here.
fn mongo_option_fault(options: &str) -> Option<Fault> {
    let options: Vec<(String, &str)> =
        options.split('&').filter_map(|option| option.split_once('=')).map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
    let value = |name: &str| options.iter().find(|(option, _)| option == name).map(|(_, value)| *value);
    if let Some((_, name, hint)) = MONGO_OPTIONS_WITHOUT.iter().find(|(option, ..)| value(option).is_some()) {
        return Some(Fault(format!("has the option {name}, which is not supported"), (*hint).into()));
    }
    let mechanism = value("authmechanism")?;
    if !MONGO_MECHANISMS.contains(&mechanism) {
        return Some(Fault("has an authMechanism that is not supported".into(), format!("Use one of {}.", MONGO_MECHANISMS.join(", "))));
    }
    let is_complete = mechanism != MONGO_X509 || value("tlscertificatekeyfile").is_some();
    (!is_complete).then(|| {
        let hint = "Add tlsCertificateKeyFile=FILE, a PEM file with the certificate and its private key.";
        Fault(format!("has authMechanism={MONGO_X509} and no certificate"), hint.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(fault: Option<Fault>) -> Option<String> {
        fault.map(|Fault(message, _)| message)
    }

    #[test]
    fn postgres_strings_are_uris_or_libpq_settings_with_a_known_sslmode() {
        for (text, want) in [
            ("postgresql://u:p@h:5432/db", None),
            ("postgres://h/db?sslmode=verify-full&application_name=x", None),
            ("postgresql:///db?host=/var/run/postgresql", None),
            ("host=h dbname=db sslmode='require'", None),
            ("postgresql://h/db?sslmode=verify_full", Some("has an unknown sslmode")),
            ("postgresql://h/db?sslmode=require&sslmode=on", Some("has an unknown sslmode")),
            ("host=h sslmode=", Some("has an unknown sslmode")),
            ("mysql://u:p@h/db", Some("is a MySQL URI")),
            ("http://h/?a=b", Some("is no PostgreSQL connection URI")),
            ("$DATABASE-URL", Some("is no PostgreSQL connection URI")),
        ] {
            assert_eq!(message(postgres_fault(text)).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn mongo_uris_name_a_database_and_only_what_the_driver_has() {
        for (text, want) in [
            ("mongodb://u:p@a:1,b:2/app?replicaSet=rs0", None),
            ("mongodb+srv://u:p@cluster.example/app", None),
            ("mongodb://h:27017", Some("names no database")),
            ("mongodb://h/", Some("names no database")),
            ("mongodb://h/?replicaSet=a/b", Some("names no database")),
            ("postgresql://h/db", Some("is no MongoDB connection URI")),
            ("mongodb://h/app?tls=true&tlsCAFile=/etc/ca.pem&authMechanism=SCRAM-SHA-256", None),
            (
                "mongodb://h/app?tlsCertificateKeyFilePassword=hunter2",
                Some("has the option tlsCertificateKeyFilePassword, which is not supported"),
            ),
            (
                "mongodb://h/app?tls=true&TLSAllowInvalidHostnames=true",
                Some("has the option tlsAllowInvalidHostnames, which is not supported"),
            ),
            ("mongodb://h/app?authMechanism=GSSAPI", Some("has an authMechanism that is not supported")),
            ("mongodb://h/app?tls=true&authMechanism=MONGODB-X509", Some("has authMechanism=MONGODB-X509 and no certificate")),
            ("mongodb://h/app?authMechanism=MONGODB-X509&tlsCertificateKeyFile=/c.pem", None),
        ] {
            assert_eq!(message(mongo_fault(text)).as_deref(), want, "{text}");
        }
    }
}
