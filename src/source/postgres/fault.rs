//! What a failure of a driver means: who acts next, and what there is to do.
//!
//! `tokio-postgres` and `pgwire-replication` report the same server errors in two shapes. Both come down to the SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), which [`verdict`] judges; what has no SQLSTATE is a
//! lost connection, a certificate or our own mistake. `PgWireError::is_transient` is not asked: it calls every server error
//! final, also the one that says the server restarts.

use std::error::Error as _;

use pgwire_replication::PgWireError;
use rustls::{CertificateError, Error as TlsError};

use crate::source::{
    Cause, SourceError,
    postgres::{
        address::Address,
        trust::{Chosen, Trust},
    },
};

/// Who acts on a server error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nobody; the same step may succeed later.
    Retry,
    /// A person, who is told this sentence.
    Refused(&'static str),
}

/// What the server says, without DETAIL and CONTEXT, which quote rows.
#[derive(Debug, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
struct ServerSays {
    code: String,
    message: String,
}

/// A failure to open an SQL connection. What is wrong with TLS is found here first: every source connects for SQL before it does for
/// replication.
pub(crate) fn connecting(name: &str, address: &Address, error: tokio_postgres::Error) -> SourceError {
    match tls_hint(address, &error).or_else(|| login_hint(&error).map(str::to_owned)) {
        Some(hint) => SourceError::Refused { name: name.to_owned(), action: "connect", hint, source: error.into() },
        None => sql(name, "connect", error),
    }
}

/// What there is to do about a failed handshake, if TLS is what failed.
fn tls_hint(address: &Address, error: &tokio_postgres::Error) -> Option<String> {
    let host = address.host();
    // It has no kind of its own.
    if error.source().is_some_and(|cause| cause.to_string() == NO_TLS) {
        let unasked = match address.tls.chosen {
            Chosen::Said => "",
            Chosen::ByHost => ", and nothing turns off TLS for another machine",
        };
        return Some(format!(
            "\"{host}\" speaks no TLS{unasked}. Have it use TLS (ssl = on), or write sslmode=disable if everything between is trusted."
        ));
    }
    let advice = match tls_error(error)? {
        TlsError::InvalidCertificate(problem) => certificate_hint(address, problem),
        TlsError::AlertReceived(_) => {
            "The server refuses this client in the TLS handshake. If it wants a certificate, name one and its key, sslcert=FILE and \
             sslkey=FILE, that an authority it trusts has signed."
                .to_owned()
        }
        // The enum is open; the rest are versions and ciphers.
        _ => "The server has to speak TLS 1.2 or 1.3 with an AEAD cipher (AES-GCM or ChaCha20-Poly1305).".to_owned(),
    };
    Some(match address.tls.chosen {
        Chosen::Said => advice,
        Chosen::ByHost => format!(
            "{advice} It is verified because \"{host}\" is another machine and no sslmode says otherwise: sslmode=require encrypts \
             without asking who answers."
        ),
    })
}

fn certificate_hint(address: &Address, problem: &CertificateError) -> String {
    use CertificateError as Certificate;
    let host = address.host();
    match problem {
        Certificate::UnknownIssuer | Certificate::BadSignature => match &address.tls.trust {
            Trust::Authority(roots) | Trust::Name(roots) if roots.ca_file.is_some() => {
                "The server's certificate is by another authority than those in the file that sslrootcert or ca_file names. Name the \
                 right one."
            }
            Trust::Authority(_) | Trust::Name(_) | Trust::Anybody => {
                "No authority that this system trusts has signed the server's certificate. Name the file of its authority with \
                 sslrootcert=FILE or ca_file."
            }
        }
        .to_owned(),
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => format!(
            "The server's certificate does not name \"{host}\". Connect by a name that it has as subjectAltName (its common name does \
             not count), or write sslmode=verify-ca, which checks the authority alone."
        ),
        Certificate::Expired | Certificate::ExpiredContext { .. } => {
            "The server's certificate has expired: renew it, or set this machine's clock.".to_owned()
        }
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
            "The server's certificate is not valid yet: set this machine's clock.".to_owned()
        }
        // The enum is open.
        _ => "The server needs an X.509 certificate of version 3 with a subjectAltName and CA:FALSE, signed with SHA-256 or better by an \
              authority in sslrootcert or ca_file; a self-signed one cannot be verified."
            .to_owned(),
    }
}

/// What there is to do when the two sides cannot agree on who logs in how; to try again would not help.
fn login_hint(error: &tokio_postgres::Error) -> Option<&'static str> {
    match error.to_string().as_str() {
        "invalid configuration" => Some("If the server asks for a password, put one into the connection string."),
        "authentication error" => Some("The server has to log this role in with SCRAM-SHA-256, and channel_binding=require needs TLS."),
        _ => None,
    }
}

/// A failure on an SQL connection.
pub(crate) fn sql(name: &str, action: &'static str, error: tokio_postgres::Error) -> SourceError {
    let name = name.to_owned();
    if let Some(server) = error.as_db_error() {
        let code = server.code().code().to_owned();
        let verdict = verdict(&code);
        let source: Cause = ServerSays { message: message(&code, server.message()), code }.into();
        return match verdict {
            Verdict::Retry => SourceError::Unreachable { name, action, source },
            Verdict::Refused(hint) => SourceError::Refused { name, action, hint: hint.to_owned(), source },
        };
    }
    if tls_error(&error).is_some() {
        return SourceError::Refused { name, action, hint: CERTIFICATE.to_owned(), source: error.into() };
    }
    SourceError::Unreachable { name, action, source: error.into() }
}

/// A failure on a replication connection.
pub(crate) fn replication(name: &str, action: &'static str, error: PgWireError) -> SourceError {
    let name = name.to_owned();
    let hint = match &error {
        PgWireError::Server(text) => match verdict(sqlstate(text)) {
            Verdict::Retry => None,
            Verdict::Refused(hint) => Some(hint),
        },
        PgWireError::Auth(_) => Some(AUTHENTICATION),
        PgWireError::Tls(_) => Some(CERTIFICATE),
        // The enum is open; what is neither a refusal nor a certificate is tried again.
        _ => None,
    };
    match hint {
        Some(hint) => SourceError::Refused { name, action, hint: hint.to_owned(), source: error.into() },
        None => SourceError::Unreachable { name, action, source: error.into() },
    }
}

/// The server did not answer in time.
pub(crate) fn timeout(name: &str, action: &'static str) -> SourceError {
    SourceError::Unreachable { name: name.to_owned(), action, source: "the server did not answer in time".into() }
}

/// Whether the query is at fault rather than the connection or the server: the view fails, the others go on.
pub(crate) fn of_query(error: &tokio_postgres::Error) -> Option<String> {
    let server = error.as_db_error()?;
    let code = server.code();
    match verdict(code.code()) {
        Verdict::Retry => None,
        Verdict::Refused(_) => {
            let remedy = if server.message().contains("row-level security") { HIDDEN } else { "" };
            Some(format!("{} (SQLSTATE {}){remedy}", message(code.code(), server.message()), code.code()))
        }
    }
}

/// The SQLSTATE inside the text of a `PgWireError::Server`, or nothing.
pub(crate) fn sqlstate(text: &str) -> &str {
    let code = text.rsplit_once("(SQLSTATE ").map_or("", |(_, rest)| rest);
    code.get(..5).unwrap_or_default()
}

/// What `tokio-postgres` says of a server that refuses TLS when it must be used.
const NO_TLS: &str = "server does not support TLS";
const AUTHENTICATION: &str = "Check the user and password, that pg_hba.conf lets this role in from here and with TLS (or without), and, if \
                              it asks for a client certificate, sslcert and sslkey.";
/// What to do about a policy that would hide rows.
const HIDDEN: &str = ". What a policy hides would be revoked: run ALTER ROLE ... BYPASSRLS for the role that factsync connects as";
const CERTIFICATE: &str = "Check the certificate authority (ca_file, sslrootcert), that the certificate names this host, and the TLS mode.";

fn verdict(code: &str) -> Verdict {
    match code {
        // Shut down, starting up, crashed, idle too long, cancelled; the object is in use or locked; lost a race; out of connections.
        "55P03" | "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "55006" | "40001" | "40P01" | "25P03" | "25P04" | "53300" => {
            Verdict::Retry
        }
        "53400" => Verdict::Refused("Raise max_replication_slots and max_wal_senders, or drop slots nobody uses."),
        "42501" => Verdict::Refused("Have an administrator run what `factsync setup CONFIG` prints."),
        "3D000" => Verdict::Refused("Check the database's name."),
        "55000" => Verdict::Refused("Check that wal_level is logical and that this server is the primary."),
        "42704" => Verdict::Refused("Have an administrator run what `factsync setup CONFIG` prints."),
        "58P01" => Verdict::Refused("The server misses a file of its own; see its log."),
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, resources, operator intervention, system and internal errors.
            "08" | "53" | "57" | "58" | "XX" => Verdict::Retry,
            "28" => Verdict::Refused(AUTHENTICATION),
            _ => Verdict::Refused("The server's message says why."),
        },
    }
}

/// The message; of a data error (class 22) without what it quotes, which is a cell's value.
fn message(code: &str, message: &str) -> String {
    if !code.starts_with("22") {
        return message.to_owned();
    }
    let parts = message.split('"').enumerate().map(|(index, part)| if index % 2 == 1 { "…" } else { part });
    parts.collect::<Vec<_>>().join("\"")
}

/// What TLS has against the connection, if that is the cause.
fn tls_error(error: &tokio_postgres::Error) -> Option<&TlsError> {
    let mut cause = error.source();
    while let Some(inner) = cause {
        let io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let found = inner.downcast_ref().or_else(|| io.and_then(|io| io.downcast_ref()));
        if found.is_some() {
            return found;
        }
        cause = inner.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Disposition;

    #[test]
    fn a_server_that_restarts_is_tried_again_and_a_missing_privilege_is_not() {
        let of = |text: &str| replication("db", "connect", PgWireError::Server(text.to_owned())).disposition();
        assert_eq!(of("terminating connection due to administrator command (SQLSTATE 57P01)"), Disposition::Retry);
        assert_eq!(of("replication slot \"x\" is active for PID 1 (SQLSTATE 55006)"), Disposition::Retry);
        assert_eq!(of("permission denied (SQLSTATE 42501)"), Disposition::Operator);
        assert_eq!(of("password authentication failed (SQLSTATE 28P01)"), Disposition::Operator);
        assert_eq!(of("what is this"), Disposition::Operator);
    }

    #[test]
    fn a_data_error_does_not_quote_the_cell() {
        let text = message("22P02", "invalid input syntax for type integer: \"secret\"");
        assert_eq!(text, "invalid input syntax for type integer: \"…\"");
        assert_eq!(message("42P01", "relation \"repo\" does not exist"), "relation \"repo\" does not exist");
    }

    #[test]
    fn the_sqlstate_is_found_at_the_end_only() {
        assert_eq!(sqlstate("a (SQLSTATE 1) b (SQLSTATE 57P01)"), "57P01");
        assert_eq!(sqlstate("a (SQLSTATE é"), "");
        assert_eq!(sqlstate(""), "");
    }
}
