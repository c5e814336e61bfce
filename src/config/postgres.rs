//! PostgreSQL sources, and local-authorization files, which are PostgreSQL queries too.

use std::path::PathBuf;

use secrecy::SecretString;

use crate::config::{
    SslConfig, SslMode, connection,
    fields::{Field, Fields, Reader},
    file::Databases,
};

/// The longest name PostgreSQL gives a replication slot (`NAMEDATALEN - 1`).
pub(super) const MAX_SLOT_BYTES: usize = 63;

/// An entry of `dbs`.
pub(super) struct Database {
    pub(super) connection_string: SecretString,
    pub(super) ssl: Option<SslConfig>,
}

/// A fact of a sync file: the name of its database and its query.
pub(super) fn fact(reader: &mut Reader<'_>, body: Field, databases: &mut Databases) -> Option<(String, String)> {
    let mut fields = reader.fields(body, &["db", "query"])?;
    let db = databases.of_fact(reader, &mut fields);
    let query = query(reader, &mut fields);
    Some((db?, query?))
}

/// A fact of a local-authorization file: its query.
pub(super) fn local_fact(reader: &mut Reader<'_>, body: Field) -> Option<String> {
    let mut fields = reader.fields(body, &["query"])?;
    query(reader, &mut fields)
}

/// An entry of `dbs`; the variables in it are only looked up if it is `used`.
pub(super) fn database(reader: &mut Reader<'_>, entry: Field, used: bool) -> Option<Database> {
    let mut fields = reader.fields(entry, &["connection_string", "ssl"])?;
    let connection_string = fields.require(reader, "connection_string");
    let ssl = fields.take("ssl");
    if !used {
        return None;
    }
    let connection_string = connection_string.and_then(|field| connection::postgres(reader, &field));
    let ssl = ssl.map(|field| ssl_config(reader, field));
    Some(Database { connection_string: connection_string?, ssl: ssl.flatten() })
}

/// Whether PostgreSQL takes `name` as the name of a replication slot.
pub(super) fn is_slot_name(name: &str) -> bool {
    (1..=MAX_SLOT_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The SQL itself is the database's to judge. Only the semicolon goes, because the query is put into larger statements.
fn query(reader: &mut Reader<'_>, fields: &mut Fields) -> Option<String> {
    let field = fields.require(reader, "query")?;
    let text = reader.literal(&field)?;
    let text = text.trim();
    let text = text.strip_suffix(';').unwrap_or(text).trim_end();
    if text.is_empty() {
        reader.problem(field.node.spot, "\"query\" is empty", "Write the SELECT that returns all facts of this type.");
        return None;
    }
    Some(text.to_owned())
}

fn ssl_config(reader: &mut Reader<'_>, field: Field) -> Option<SslConfig> {
    let mut fields = reader.fields(field, &["ca_file", "use_system_certs", "ssl_mode"])?;
    let ca_file = fields.take("ca_file").and_then(|field| reader.text(&field)).map(PathBuf::from);
    let use_system_certs = fields.take("use_system_certs").and_then(|field| reader.boolean(&field)).unwrap_or(false);
    let mode = fields.take("ssl_mode").and_then(|field| ssl_mode(reader, &field));
    let default = if ca_file.is_some() { SslMode::Require } else { SslMode::Prefer };
    Some(SslConfig { ca_file, use_system_certs, mode: mode.unwrap_or(default) })
}

fn ssl_mode(reader: &mut Reader<'_>, field: &Field) -> Option<SslMode> {
    match reader.text(field)?.as_str() {
        "require" => Some(SslMode::Require),
        "prefer" => Some(SslMode::Prefer),
        _ => {
            let hint = "Write require or prefer; for libpq's other modes put ?sslmode=… into the connection string.";
            reader.problem(field.node.spot, "\"ssl_mode\" is neither require nor prefer", hint);
            None
        }
    }
}
