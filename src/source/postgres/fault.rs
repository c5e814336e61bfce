//! What a failure of a driver means: who acts next, and what there is to do.
//!
//! `tokio-postgres` and `pgwire-replication` report the same server errors in two shapes. Both come down to the SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>), which [`verdict`] judges; what has no SQLSTATE is a
//! lost connection, a certificate or our own mistake. `PgWireError::is_transient` is not asked: it calls every server error
//! final, also the one that says the server restarts.

use std::error::Error as _;

use pgwire_replication::PgWireError;

use crate::source::{Cause, SourceError};

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
    if is_certificate(&error) {
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

/// What to do about a policy that would hide rows.
const HIDDEN: &str = ". What a policy hides would be revoked: run ALTER ROLE ... BYPASSRLS for the role that factsync connects as";
const AUTHENTICATION: &str = "Check the user and password, and that pg_hba.conf lets this role in from here.";
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

fn is_certificate(error: &tokio_postgres::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        let io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is::<rustls::Error>() || io.is_some_and(|io| io.is::<rustls::Error>()) {
            return true;
        }
        cause = inner.source();
    }
    false
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
