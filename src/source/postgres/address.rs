//! Where the server is and how to trust it, from a libpq connection string and Oso's `ssl` block.
//!
//! `tokio-postgres` reads libpq's URIs and `keyword=value` strings, but refuses the values `allow`, `verify-ca` and
//! `verify-full` of `sslmode` and knows no `sslrootcert`. So the TLS options are taken out first and the rest goes through its
//! parser; [`trust`](super::trust) says what they mean. Errors are written here, never chained from a parser, because a parser
//! may quote the password.

use std::{borrow::Cow, net::IpAddr, time::Duration};

use percent_encoding::percent_decode_str;
use tokio_postgres::config::{ChannelBinding, Config, Host, SslMode as Offer};

use crate::{
    config::{ExposeSecret, SecretString, SslConfig},
    source::postgres::trust::{Policy, TlsOptions},
};

/// How long a server may take to answer a connection attempt, unless `connect_timeout` says otherwise. libpq waits forever;
/// a host behind a dropping firewall then hangs for minutes, and ten seconds are a hundred times a slow handshake.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After how much silence the kernel probes a connection, and how long unanswered data may stay in flight: a reader whose
/// server has vanished notices within this.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What the server's log and `pg_stat_activity` show, unless the string has a name of its own.
const APPLICATION_NAME: &str = "factsync";

/// Where the server is, as whom and how to connect.
#[derive(Clone)]
pub(crate) struct Address {
    /// For `tokio-postgres`; exactly one host, a user and a database.
    pub(crate) sql: Config,
    /// What a TLS connection checks and shows.
    pub(crate) tls: Policy,
}

impl Address {
    /// Reads a connection string; the error is a sentence without secrets.
    pub(crate) fn parse(text: &SecretString, ssl: Option<&SslConfig>) -> Result<Self, String> {
        let (rest, tls) = split(text.expose_secret())?;
        let mut sql: Config = rest.parse().map_err(|_| unreadable())?;
        complete(&mut sql)?;
        let tls = tls.policy(ssl, is_remote(&sql))?;
        sql.ssl_mode(if is_socket(&sql) { Offer::Disable } else { tls.offer });
        Ok(Self { sql, tls })
    }

    /// Why changes cannot be followed at this address, if they cannot: `pgwire-replication` knows no channel binding. To go without it
    /// would give up what was asked for, silently.
    pub(crate) fn unfollowable(&self) -> Option<String> {
        (self.sql.get_channel_binding() == ChannelBinding::Require).then(|| {
            "its connection string has channel_binding=require, which the connection that follows changes cannot keep: its driver has \
             SCRAM-SHA-256 only. Write channel_binding=prefer and sslmode=verify-full, by which nobody else can answer in its place"
                .to_owned()
        })
    }

    /// Whether it is on another machine, as far as the string tells.
    pub(crate) fn is_remote(&self) -> bool {
        is_remote(&self.sql)
    }

    /// The host as a name, an IP address or a socket directory.
    pub(crate) fn host(&self) -> String {
        match (self.sql.get_hostaddrs().first(), self.sql.get_hosts().first()) {
            (_, Some(Host::Tcp(host))) => host.clone(),
            (_, Some(Host::Unix(path))) => path.display().to_string(),
            (Some(address), None) => address.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Where to connect: `hostaddr`, which spares looking up the host's name, or the host.
    pub(crate) fn reached_at(&self) -> String {
        self.sql.get_hostaddrs().first().map_or_else(|| self.host(), ToString::to_string)
    }

    /// The port.
    pub(crate) fn port(&self) -> u16 {
        self.sql.get_ports().first().copied().unwrap_or(5432)
    }

    /// The role.
    pub(crate) fn user(&self) -> &str {
        self.sql.get_user().unwrap_or_default()
    }

    /// The database.
    pub(crate) fn database(&self) -> &str {
        self.sql.get_dbname().unwrap_or_default()
    }
}

/// Host, port and database: never the password, never the user's other options.
impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({}:{}/{})", self.host(), self.port(), self.database())
    }
}

fn unreadable() -> String {
    "its connection string cannot be read. Write postgresql://user:password@host:5432/database, with %40 for an @ in the password".into()
}

fn is_socket(sql: &Config) -> bool {
    matches!(sql.get_hosts().first(), Some(Host::Unix(_)))
}

/// Whether the string names another machine. Names are not looked up: who can lie about a name is whom TLS is there against. So every
/// name but `localhost` is another machine's, that of a container beside us too.
fn is_remote(sql: &Config) -> bool {
    if let Some(address) = sql.get_hostaddrs().first() {
        return !address.is_loopback();
    }
    match sql.get_hosts().first() {
        Some(Host::Tcp(host)) => {
            !host.eq_ignore_ascii_case("localhost") && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Some(Host::Unix(_)) | None => false,
    }
}

/// Fills in what libpq would take from its surroundings, and refuses what only one of our two drivers could do.
fn complete(sql: &mut Config) -> Result<(), String> {
    if sql.get_hosts().len() > 1 || sql.get_hostaddrs().len() > 1 {
        return Err("its connection string names several hosts. Changes are followed on one server: name the primary".into());
    }
    if sql.get_hosts().is_empty() && sql.get_hostaddrs().is_empty() {
        sql.host("localhost");
    }
    let Some(user) = sql.get_user().filter(|user| !user.is_empty()).map(str::to_owned) else {
        return Err("its connection string names no user".into());
    };
    if sql.get_dbname().is_none_or(str::is_empty) {
        sql.dbname(user);
    }
    if sql.get_application_name().is_none() {
        sql.application_name(APPLICATION_NAME);
    }
    if sql.get_connect_timeout().is_none() {
        sql.connect_timeout(CONNECT_TIMEOUT);
    }
    if sql.get_tcp_user_timeout().is_none() {
        sql.tcp_user_timeout(KEEPALIVE);
        sql.keepalives_idle(KEEPALIVE);
    }
    Ok(())
}

/// Takes the TLS options out of `text`.
fn split(text: &str) -> Result<(String, TlsOptions), String> {
    let text = text.trim();
    let mut tls = TlsOptions::default();
    let rest = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        split_uri(text, &mut tls)?
    } else {
        split_keywords(text, &mut tls)?
    };
    Ok((rest, tls))
}

fn split_uri(text: &str, tls: &mut TlsOptions) -> Result<String, String> {
    // A password may hold a bare question mark; the options start at the first one after it.
    let after_credentials = text.find('@').unwrap_or(0);
    let Some(mark) = text[after_credentials..].find('?').map(|at| at + after_credentials) else { return Ok(text.to_owned()) };
    let mut kept = Vec::new();
    for option in text[mark + 1..].split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').ok_or_else(unreadable)?;
        if !tls.take(&decode(name)?, &decode(value)?)? {
            kept.push(option);
        }
    }
    Ok(format!("{}{}{}", &text[..mark], if kept.is_empty() { "" } else { "?" }, kept.join("&")))
}

fn decode(text: &str) -> Result<Cow<'_, str>, String> {
    percent_decode_str(text).decode_utf8().map_err(|_| unreadable())
}

fn split_keywords(text: &str, tls: &mut TlsOptions) -> Result<String, String> {
    let mut kept = String::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(unreadable)?;
        let (value, after) = keyword_value(after.trim_start())?;
        let name = name.trim_end();
        if !tls.take(name, &value)? {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            kept.push_str(&format!("{name}='{quoted}' "));
        }
        rest = after.trim_start();
    }
    Ok(kept)
}

/// The value at the start of `text`, quoted or up to a space, and what follows it.
fn keyword_value(text: &str) -> Result<(String, &str), String> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => value.push(chars.next().ok_or_else(unreadable)?.1),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            _ if !quoted && char.is_whitespace() => return Ok((value, &text[at..])),
            _ => value.push(char),
        }
    }
    if quoted { Err(unreadable()) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::SslMode,
        source::postgres::trust::{Chosen, Roots, Trust},
    };
    use proptest::prelude::*;

    fn address(text: &str) -> Result<Address, String> {
        Address::parse(&SecretString::from(text.to_owned()), None)
    }

    #[test]
    fn both_forms_give_the_same_address() {
        for text in [
            "postgresql://app:p%40ss%3F%20w@db.example:6543/users?sslmode=verify-full&sslrootcert=%2Ftmp%2Fmy%20ca.pem",
            r"host=db.example port=6543 user=app password='p@ss? w' dbname=users sslmode=verify-full sslrootcert='/tmp/my ca.pem'",
        ] {
            let address = address(text).expect(text);
            assert_eq!((address.host().as_str(), address.port()), ("db.example", 6543));
            assert_eq!((address.user(), address.database()), ("app", "users"));
            assert_eq!(address.sql.get_password(), Some("p@ss? w".as_bytes()));
            assert_eq!(address.tls.trust, Trust::Name(Roots { ca_file: Some("/tmp/my ca.pem".into()), system: false }));
        }
    }

    #[test]
    fn every_sslmode_of_libpq_is_read() {
        let of = |options: &str| {
            let address = address(&format!("postgresql://u@h/d?{options}")).expect(options);
            (address.sql.get_ssl_mode(), address.tls.trust)
        };
        let system = Roots { ca_file: None, system: true };
        let file = Roots { ca_file: Some("ca".into()), system: false };
        assert_eq!(of("sslmode=disable"), (Offer::Disable, Trust::Anybody));
        assert_eq!(of("sslmode=allow"), (Offer::Prefer, Trust::Anybody));
        assert_eq!(of("sslmode=prefer&application_name=x"), (Offer::Prefer, Trust::Anybody));
        assert_eq!(of("sslmode=require&schema=public&pgbouncer=true"), (Offer::Require, Trust::Anybody));
        assert_eq!(of("sslmode=require&sslrootcert=ca"), (Offer::Require, Trust::Authority(file.clone())));
        assert_eq!(of("sslmode=verify-ca&sslrootcert=ca"), (Offer::Require, Trust::Authority(file)));
        assert_eq!(of("sslmode=verify-full&sslrootcert=system"), (Offer::Require, Trust::Name(system)));
    }

    #[test]
    fn the_ssl_block_wins_over_the_string() {
        let text = SecretString::from("postgresql://u@h/d?sslmode=disable".to_owned());
        let ssl = SslConfig { ca_file: Some("ca".into()), use_system_certs: false, mode: SslMode::Require };
        let address = Address::parse(&text, Some(&ssl)).expect("an address");
        assert_eq!(address.sql.get_ssl_mode(), Offer::Require);
        assert_eq!(address.tls.trust, Trust::Name(Roots { ca_file: Some("ca".into()), system: false }));
    }

    #[test]
    fn without_a_word_about_tls_another_machine_is_verified_and_this_one_is_not() {
        let system = Roots { ca_file: None, system: true };
        let file = Roots { ca_file: Some("ca".into()), system: false };
        for (text, want) in [
            ("postgresql://u@db/d", (Offer::Require, Trust::Name(system.clone()), Chosen::ByHost)),
            ("postgresql://u@db/d?sslmode=", (Offer::Require, Trust::Name(system.clone()), Chosen::ByHost)),
            ("postgresql://u@db/d?sslrootcert=ca", (Offer::Require, Trust::Name(file), Chosen::ByHost)),
            ("host=10.0.0.1 user=u", (Offer::Require, Trust::Name(system.clone()), Chosen::ByHost)),
            ("host=localhost hostaddr=10.0.0.1 user=u", (Offer::Require, Trust::Name(system.clone()), Chosen::ByHost)),
            ("postgresql://u@localhost.evil.example/d", (Offer::Require, Trust::Name(system), Chosen::ByHost)),
            ("host=db hostaddr=127.0.0.1 user=u", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("postgresql://u@LocalHost/d", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("postgresql://u@127.1.2.3/d", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("postgresql://u@[::1]/d", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("user=u", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("postgresql://u@db/d?sslmode=prefer", (Offer::Prefer, Trust::Anybody, Chosen::Said)),
            ("postgresql://u@db/d?sslmode=disable", (Offer::Disable, Trust::Anybody, Chosen::Said)),
        ] {
            let address = address(text).expect(text);
            assert_eq!((address.sql.get_ssl_mode(), address.tls.trust, address.tls.chosen), want, "{text}");
        }
        // Oso documents what its block means when it says nothing: `prefer`.
        let text = SecretString::from("postgresql://u@db/d".to_owned());
        let ssl = SslConfig { ca_file: None, use_system_certs: false, mode: SslMode::Prefer };
        let address = Address::parse(&text, Some(&ssl)).expect("an address");
        assert_eq!((address.sql.get_ssl_mode(), address.tls.chosen), (Offer::Prefer, Chosen::Said));
    }

    #[test]
    fn a_client_certificate_is_a_pair_of_files_and_its_key_is_not_encrypted() {
        let shown = address("postgresql://u@h/d?sslcert=c.pem&sslkey=k.pem").expect("an address").tls.identity.expect("a pair");
        assert_eq!((shown.certificate, shown.key), ("c.pem".into(), "k.pem".into()));
        assert!(address("postgresql://u@h/d?sslcert=&sslkey=").expect("an address").tls.identity.is_none());
        for (options, wanted) in [
            ("sslcert=c.pem", "sslkey"),
            ("sslkey=k.pem", "sslcert"),
            ("sslcert=c.pem&sslkey=k.pem&sslpassword=hunter2", "openssl pkey"),
            ("sslcrl=list.pem", "sslcrl"),
        ] {
            let error = address(&format!("postgresql://u@h/d?{options}")).expect_err(options);
            assert!(error.contains(wanted) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn channel_binding_is_not_dropped_in_silence() {
        let of = |value: &str| address(&format!("postgresql://u@h/d?channel_binding={value}")).expect(value);
        assert_eq!(of("disable").sql.get_channel_binding(), ChannelBinding::Disable);
        assert!(of("prefer").unfollowable().is_none() && of("disable").unfollowable().is_none());
        assert!(of("require").unfollowable().is_some_and(|why| why.contains("channel_binding=require")));
    }

    #[test]
    fn a_unix_socket_needs_no_tls() {
        let address = address("postgresql://u@%2Fvar%2Frun%2Fpostgresql/d?sslmode=verify-full").expect("an address");
        assert_eq!(address.host(), "/var/run/postgresql");
        assert_eq!(address.sql.get_ssl_mode(), Offer::Disable);
    }

    #[test]
    fn no_error_and_no_debug_shows_the_password() {
        for text in [
            "postgresql://u:hunter2@h:port/d",
            "postgresql://u:hunter2@h/d?sslmode=hunter2x&sslmode=nope",
            "postgresql://u:hunter2@h/d?unknown_option=1",
            "postgresql://u:hunter2@h,i/d",
            "postgresql://:hunter2@h/d",
            "host=h password='hunter2",
            "user=u password=hunter2 nonsense",
            "hunter2",
            "postgresql://u:hunter2@h/d?sslcert=c",
            "postgresql://u:p@h/d?sslcert=c&sslkey=k&sslpassword=hunter2",
        ] {
            let error = address(text).expect_err(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(format!("{:?}", address("postgresql://u:hunter2@h/d").expect("an address")), "Address(h:5432/d)");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r"(postgresql://)?[a-z@:/?=&%' \\é]{0,40}") {
            let _ = address(&text);
        }
    }
}
