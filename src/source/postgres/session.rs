//! Connections: SQL sessions and replication sessions, all with the same settings.
//!
//! A fact is the text of a row, so every setting that shapes text is pinned on every connection, whatever the role, the
//! database or the user's own options say. `search_path` is the exception: queries use unqualified names, so it is the user's
//! and part of the fingerprint. Timeouts that could end a long snapshot are off.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use pgwire_replication::{ReplicationClient, ReplicationConfig, TlsConfig};
use tokio::{sync::mpsc, task::JoinHandle, time};
use tokio_postgres::{AsyncMessage, Client, config::SslMode, error::DbError};

use crate::{
    config::PostgresConfig,
    source::{
        SourceError,
        postgres::{address::Address, fault, tls::Tls, trust::Trust},
    },
};

/// Settings that shape text, for `SET` and for the startup packet.
const TEXT_SETTINGS: [(&str, &str); 7] = [
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("lc_monetary", "C"),
];
/// Timeouts that may not end our sessions; which of them exist depends on the server's version.
const TIMEOUTS: [&str; 5] =
    ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout"];
/// The first version with `transaction_timeout`.
const HAS_TRANSACTION_TIMEOUT: u32 = 170_000;
/// Beyond the TCP connection, how long TLS and authentication may take together; SCRAM and LDAP take tens of milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Replication events waiting to be handled; the server waits when they are full. They are counted and not weighed, and a row may have
/// megabytes: so no more than make the switch between two tasks cheap for each of them.
const EVENT_BUFFER: usize = 64;
/// How often the server hears what is durable, and that we are alive.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Notices kept until they are read. Preparing one query makes two or three; what does not fit is dropped, and a query without its
/// tree is refused.
const MOST_NOTICES: usize = 64;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reading; a write is refused by the server.
    Read,
    /// Reading, and collecting what the server reports while it analyses queries.
    Analyze,
    /// Heartbeats and publications.
    Write,
}

/// A source's server and everything needed to connect to it.
#[derive(Clone)]
pub(crate) struct Server {
    /// The source's name, for errors.
    pub(crate) name: Arc<str>,
    address: Arc<Address>,
    tls: Tls,
}

/// An SQL connection; cut off when dropped, which the server's log shows if a transaction is open. See [`Session::close`].
pub(crate) struct Session {
    /// Where statements go.
    pub(crate) client: Client,
    notices: mpsc::Receiver<DbError>,
    driver: Driver,
}

/// The task that moves a connection's bytes; ends with its session, also in the middle of a result.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// Reads the connection string and the certificates; talks to nobody.
    pub(crate) fn new(name: &str, config: &PostgresConfig) -> Result<Self, SourceError> {
        Self::from_parts(name, Address::parse(&config.connection_string, config.ssl.as_ref()))
    }

    /// The same from an address alone.
    pub(crate) fn from_parts(name: &str, address: Result<Address, String>) -> Result<Self, SourceError> {
        let unsupported = |problem| SourceError::Unsupported { name: name.to_owned(), problem };
        let address = address.map_err(unsupported)?;
        let tls = Tls::load(&address).map_err(unsupported)?;
        Ok(Self { name: name.into(), address: Arc::new(address), tls })
    }

    /// The role we connect as.
    pub(crate) fn user(&self) -> &str {
        self.address.user()
    }

    /// The database we connect to.
    pub(crate) fn database(&self) -> &str {
        self.address.database()
    }

    /// Where it is and how it is trusted.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Opens an SQL session.
    pub(crate) async fn connect(&self, purpose: Purpose) -> Result<Session, SourceError> {
        let action = "connect";
        let patience = self.address.sql.get_connect_timeout().copied().unwrap_or_default() + HANDSHAKE_TIMEOUT;
        let connecting = self.address.sql.connect(self.tls.connector());
        let (client, mut connection) = time::timeout(patience, connecting)
            .await
            .map_err(|_| fault::timeout(&self.name, action))?
            .map_err(|error| fault::connecting(&self.name, &self.address, error))?;
        let (sender, notices) = mpsc::channel(MOST_NOTICES);
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let (AsyncMessage::Notice(notice), Purpose::Analyze) = (message, purpose) {
                    // Full, or nobody listens while the session is closing.
                    let _ = sender.try_send(notice);
                }
            }
        });
        let session = Session { client, notices, driver: Driver(driver) };
        session.client.batch_execute(&settings(purpose)).await.map_err(|error| fault::sql(&self.name, "set up a session", error))?;
        Ok(session)
    }

    /// Opens a replication session that waits before START_REPLICATION from `start`; `slot` must be a plain name.
    pub(crate) async fn replicate(&self, slot: &str, version: u32, start: u64) -> Result<ReplicationClient, SourceError> {
        assert!(is_plain_name(slot), "a slot's name goes into replication commands unquoted");
        let password = String::from_utf8_lossy(self.address.sql.get_password().unwrap_or_default()).into_owned();
        if let Some(problem) = self.address.unfollowable() {
            return Err(SourceError::Unsupported { name: self.name.to_string(), problem });
        }
        let (host, user, database) = (self.address.reached_at(), self.address.user(), self.address.database());
        let tls = if self.lacks_tls().await? { TlsConfig::disabled() } else { self.tls.replication() };
        let config = ReplicationConfig::new(host, user, password, database, slot, slot)
            .with_port(self.address.port())
            .with_tls(tls)
            .with_start_lsn(pgwire_replication::Lsn::from_u64(start))
            .with_status_interval(STATUS_INTERVAL)
            .with_buffer_size(EVENT_BUFFER)
            .with_options(self.options(version))
            .with_application_name(self.address.sql.get_application_name().unwrap_or("factsync"));
        ReplicationClient::connect_gated(config).await.map_err(|error| fault::replication(&self.name, "connect for replication", error))
    }

    /// Whether TLS is only preferred and the server has none. `pgwire-replication` cannot prefer and verify at once, so the
    /// other driver finds out.
    async fn lacks_tls(&self) -> Result<bool, SourceError> {
        if self.address.sql.get_ssl_mode() != SslMode::Prefer || self.address.tls.trust == Trust::Anybody {
            return Ok(false);
        }
        let session = self.connect(Purpose::Read).await?;
        let encrypted = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";
        let row = session.client.query_one(encrypted, &[]).await.map_err(|error| fault::sql(&self.name, "ask for TLS", error))?;
        Ok(!row.get::<_, bool>(0))
    }

    fn options(&self, version: u32) -> String {
        let timeouts = TIMEOUTS.iter().filter(|&&name| name != "transaction_timeout" || version >= HAS_TRANSACTION_TIMEOUT);
        let ours = TEXT_SETTINGS.into_iter().chain(timeouts.map(|&name| (name, "0")));
        let ours: Vec<String> = ours.map(|(name, value)| format!("-c {name}={value}")).collect();
        // The last one wins, so ours follow the user's.
        format!("{} {}", self.address.sql.get_options().unwrap_or_default(), ours.join(" ")).trim_start().to_owned()
    }
}

impl Session {
    /// Says goodbye, and waits until that is sent.
    pub(crate) async fn close(self) {
        let Self { client, mut driver, .. } = self;
        drop(client);
        // It ends well when its last client is gone; if the link is broken, there is nobody to say goodbye to.
        let _ = time::timeout(HANDSHAKE_TIMEOUT, &mut driver.0).await;
    }

    /// The next notice the server sent since the last call, if there is one.
    pub(crate) fn next_notice(&mut self) -> Option<DbError> {
        self.notices.try_recv().ok()
    }
}

/// Whether `name` needs no quotes anywhere: the configuration check promises it, and this is where it matters.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.len() < 64 && name.bytes().all(plain)
}

fn settings(purpose: Purpose) -> String {
    let mut statements = String::new();
    for (name, value) in TEXT_SETTINGS {
        statements.push_str(&format!("SET {name} = '{value}'; "));
    }
    let timeouts = TIMEOUTS.map(|name| format!("'{name}'")).join(", ");
    statements.push_str(&format!("SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN ({timeouts}); "));
    statements.push_str(match purpose {
        // A policy would hide rows, and what is hidden would be revoked: with this setting the query fails instead.
        Purpose::Read => "SET default_transaction_read_only = on; SET row_security = off",
        Purpose::Analyze => "SET default_transaction_read_only = on",
        // A heartbeat must be flushed to be seen, and must not wait for standbys.
        Purpose::Write => "SET synchronous_commit = local",
    });
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_need_no_quotes_are_plain() {
        assert!(is_plain_name("factsync_2"));
        for name in ["", "Factsync", "a b", "a;b", "a\"b", "é", &"a".repeat(64)] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
