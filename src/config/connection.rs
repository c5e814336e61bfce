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
    let address = rest.split_once('?').map_or(rest, |(address, _)| address);
    let database = address.rsplit_once('@').map_or(address, |(_, hosts)| hosts).split_once('/').map_or("", |(_, database)| database);
    database.is_empty().then(|| {
        let hint =
            "Put the database after the host, mongodb://HOST:PORT/DATABASE; if the user is not defined there, add ?authSource=admin.";
        Fault("names no database".into(), hint.into())
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
    fn mongo_uris_name_a_database() {
        for (text, want) in [
            ("mongodb://u:p@a:1,b:2/app?replicaSet=rs0", None),
            ("mongodb+srv://u:p@cluster.example/app", None),
            ("mongodb://h:27017", Some("names no database")),
            ("mongodb://h/", Some("names no database")),
            ("mongodb://h/?replicaSet=a/b", Some("names no database")),
            ("postgresql://h/db", Some("is no MongoDB connection URI")),
        ] {
            assert_eq!(message(mongo_fault(text)).as_deref(), want, "{text}");
        }
    }
}
