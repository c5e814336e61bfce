//! What the TLS options of a connection string and Oso's `ssl` block mean.
//!
//! The options mean what libpq says (<https://www.postgresql.org/docs/current/libpq-ssl.html>): `require` encrypts without
//! asking who answers, unless a root certificate is given, which makes it `verify-ca`. The `ssl` block of the configuration
//! wins over the string; a `ca_file` in it means `verify-full`, unless the string asks for `verify-ca`.
//!
//! Where neither says anything libpq prefers TLS and verifies nothing, so that whoever sits between reads every row and, worse, writes
//! the facts: access is granted to whom they like. So an address on another machine is `verify-full` unless `sslmode` or an `ssl` block
//! says otherwise. This machine's loopback and its sockets stay as libpq has them.

use std::path::PathBuf;

use tokio_postgres::config::SslMode as Offer;

use crate::config::{SslConfig, SslMode};

/// Options that concern libpq's own ways or other clients' pools and mean nothing here.
const IGNORED_OPTIONS: [&str; 13] = [
    "gssencmode",
    "sslcompression",
    "sslsni",
    "client_encoding",
    "fallback_application_name",
    "ssl_min_protocol_version",
    "requirepeer",
    "passfile",
    "connection_limit",
    "pool_timeout",
    "pgbouncer",
    "statement_cache_size",
    "target_session_attrs",
];

/// Which certificates are trusted to vouch for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roots {
    /// A PEM file.
    pub(crate) ca_file: Option<PathBuf>,
    /// Those of the system.
    pub(crate) system: bool,
}

/// How much of the server's certificate is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nothing: encrypted, but anybody may be at the other end.
    Anybody,
    /// That a trusted authority signed it.
    Authority(Roots),
    /// That, and that it names the host.
    Name(Roots),
}

/// Who decided how much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// The string, the block, or libpq's own default.
    Said,
    /// Nobody; but the host is another machine.
    ByHost,
}

/// What is shown to a server that asks who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// A PEM file with the certificate and what leads to its authority.
    pub(crate) certificate: PathBuf,
    /// A PEM file with its private key, not encrypted.
    pub(crate) key: PathBuf,
}

/// Everything about TLS on the connections to one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Whether TLS is used.
    pub(crate) offer: Offer,
    /// What it checks.
    pub(crate) trust: Trust,
    /// Who decided that.
    pub(crate) chosen: Chosen,
    /// What it shows.
    pub(crate) identity: Option<Identity>,
}

/// The TLS options of a connection string.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct TlsOptions {
    mode: Option<String>,
    root: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

impl TlsOptions {
    /// Takes an option if it is one of ours or of no meaning here.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "sslmode" => self.mode = Some(value.to_owned()),
            "ssl" if value == "true" => self.mode = Some("require".to_owned()),
            "sslrootcert" => self.root = Some(value.to_owned()),
            "sslcert" => self.certificate = Some(value.to_owned()).filter(|file| !file.is_empty()),
            "sslkey" => self.key = Some(value.to_owned()).filter(|file| !file.is_empty()),
            "sslpassword" => {
                return Err("encrypted private keys (\"sslpassword\") are not supported. Decrypt the key, \
                            openssl pkey -in client.key -out plain.key, and protect the file by its mode"
                    .into());
            }
            "sslcrl" | "sslcrldir" => {
                return Err(format!("revocation lists (\"{name}\") are not consulted. Remove the option"));
            }
            // Prisma's name for the search path.
            "schema" if value != "public" => {
                return Err("PostgreSQL knows no \"schema\" in a connection string. Write options=-csearch_path%3Dname instead".into());
            }
            _ => return Ok(matches!(name, "schema" | "ssl") || IGNORED_OPTIONS.contains(&name)),
        }
        Ok(true)
    }

    /// What they mean beside the `ssl` block.
    pub(super) fn policy(&self, ssl: Option<&SslConfig>, is_remote: bool) -> Result<Policy, String> {
        let identity = self.identity()?;
        let (offer, trust, chosen) = match ssl {
            Some(ssl) => self.of_block(ssl),
            None => self.of_string(is_remote)?,
        };
        Ok(Policy { offer, trust, chosen, identity })
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        match (&self.certificate, &self.key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Identity { certificate: certificate.into(), key: key.into() })),
            (Some(_), None) => Err("its connection string has sslcert and no sslkey. Name the file of the private key too".into()),
            (None, Some(_)) => Err("its connection string has sslkey and no sslcert. Name the file of the certificate too".into()),
        }
    }

    fn of_block(&self, ssl: &SslConfig) -> (Offer, Trust, Chosen) {
        let offer = match ssl.mode {
            SslMode::Require => Offer::Require,
            SslMode::Prefer => Offer::Prefer,
        };
        let roots = Roots { ca_file: ssl.ca_file.clone(), system: ssl.use_system_certs };
        let trust = match (&roots, self.mode.as_deref()) {
            (Roots { ca_file: None, system: false }, _) => Trust::Anybody,
            (_, Some("verify-ca")) => Trust::Authority(roots),
            _ => Trust::Name(roots),
        };
        (offer, trust, Chosen::Said)
    }

    fn of_string(&self, is_remote: bool) -> Result<(Offer, Trust, Chosen), String> {
        let system = self.root.as_deref().is_none_or(|root| root == "system");
        let roots = Roots { ca_file: self.root.clone().filter(|_| !system).map(PathBuf::from), system };
        let (offer, trust) = match self.mode.as_deref() {
            Some("disable") => (Offer::Disable, Trust::Anybody),
            None | Some("") if is_remote => return Ok((Offer::Require, Trust::Name(roots), Chosen::ByHost)),
            None | Some("" | "allow" | "prefer") => (Offer::Prefer, Trust::Anybody),
            Some("require") if self.root.is_none() => (Offer::Require, Trust::Anybody),
            Some("require" | "verify-ca") => (Offer::Require, Trust::Authority(roots)),
            Some("verify-full") => (Offer::Require, Trust::Name(roots)),
            Some(mode) => {
                return Err(format!("sslmode \"{mode}\" is unknown. Use disable, allow, prefer, require, verify-ca or verify-full"));
            }
        };
        Ok((offer, trust, Chosen::Said))
    }
}
