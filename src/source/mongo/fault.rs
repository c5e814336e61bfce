//! What a failure of the driver means: who acts next, and what there is to do.
//!
//! A server that cannot be used shows in the driver as a server selection that timed out, whose message holds everything the driver
//! knows as text. The errors themselves come with the heartbeats, so [`Heartbeats`] keeps the last one of each server, and the
//! judgement here is over types: a certificate that is not trusted waits for a person, a refused connection does not.
//!
//! The driver's own text of an error ends with the server's whole answer, and the server quotes the command that it refuses and the
//! resume token that it does not find, which may hold `_id`s. [`said`] leaves out all of that.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use mongodb::{
    error::{CommandError, Error, ErrorKind, RESUMABLE_CHANGE_STREAM_ERROR, RETRYABLE_ERROR, RETRYABLE_WRITE_ERROR},
    event::{EventHandler, sdam::SdamEvent},
};
use rustls::{CertificateError, Error as TlsError};

use crate::source::{
    Cause, SourceError,
    mongo::access::{Login, Trust},
};

/// Codes of errors that pass (`src/mongo/base/error_codes.yml` in the server's repository): what the driver specifications count as
/// resumable or as a retryable read; cursors, sessions and operations that somebody killed, which a new one replaces; and
/// `SnapshotUnavailable` (246), which a collection that was created or dropped a moment ago causes.
const PASSING_CODES: [i32; 29] = [
    6, 7, 43, 63, 89, 91, 112, 133, 134, 150, 175, 189, 202, 206, 228, 234, 237, 246, 262, 317, 9001, 10107, 11600, 11601, 11602, 13388,
    13435, 13436, 20407,
];
/// Labels that say the same in the server's or the driver's own words.
const PASSING_LABELS: [&str; 4] = [RESUMABLE_CHANGE_STREAM_ERROR, RETRYABLE_WRITE_ERROR, RETRYABLE_ERROR, "NetworkError"];
/// The oplog no longer holds the position (136, 286), the stream cannot go on from it (280), or it is none, or none of this version
/// of the server (260, 40615, 40647, 40649, 50811).
const LOST_CODES: [i32; 8] = [136, 260, 280, 286, 40615, 40647, 40649, 50811];
const UNAUTHORIZED: i32 = 13;

/// Who acts on what happened to a connection.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// A person, who is told this sentence.
    Refused(&'static str),
    /// Nobody, if it is what it seems; this is what else it may be.
    Passes(Option<&'static str>),
}

/// What the driver says, for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Said(String);

/// The last failure of each server of the replica set that has not answered since; as many as the set has members.
#[derive(Clone, Default)]
pub(super) struct Heartbeats(Arc<Mutex<BTreeMap<String, Error>>>);

impl Heartbeats {
    /// What the driver is to call.
    pub(super) fn handler(&self) -> EventHandler<SdamEvent> {
        let failures = self.0.clone();
        EventHandler::callback(move |event| {
            let Ok(mut failures) = failures.lock() else { return };
            match event {
                SdamEvent::ServerHeartbeatFailed(event) => drop(failures.insert(event.server_address.to_string(), event.failure)),
                SdamEvent::ServerHeartbeatSucceeded(event) => drop(failures.remove(&event.server_address.to_string())),
                SdamEvent::ServerClosed(event) => drop(failures.remove(&event.address.to_string())),
                // The enum is open; nothing else tells of one server.
                _ => {}
            }
        })
    }

    fn failures(&self) -> BTreeMap<String, Error> {
        self.0.lock().map(|failures| failures.clone()).unwrap_or_default()
    }
}

/// What is known of a connection besides the error it gave.
#[derive(Clone)]
pub(super) struct Judge {
    pub(super) name: String,
    pub(super) login: Login,
    pub(super) trust: Trust,
    pub(super) heartbeats: Heartbeats,
}

impl Judge {
    /// For what is said without a connection.
    pub(super) fn offline(name: &str) -> Self {
        Self { name: name.to_owned(), login: Login::Nobody, trust: Trust::NoTls, heartbeats: Heartbeats::default() }
    }

    /// Classifies what the driver says.
    pub(super) fn failed(&self, action: &'static str, error: Error) -> SourceError {
        match &*error.kind {
            ErrorKind::ServerSelection { message, .. } => self.no_server(action, message),
            ErrorKind::Io(io) => self.lost(action, verdict(io, self.trust), said(&error)),
            _ if passes(&error) => self.lost(action, Verdict::Passes(None), said(&error)),
            ErrorKind::Authentication { .. } => self.refused(action, self.unknown_user(), said(&error)),
            ErrorKind::Command(CommandError { code: UNAUTHORIZED, .. }) => self.refused(action, self.missing_role(), said(&error)),
            ErrorKind::InvalidTlsConfig { .. } => {
                let hint = "tlsCertificateKeyFile takes a certificate and the private key that belongs to it.";
                self.refused(action, hint, said(&error))
            }
            _ => self.refused(action, "See the cause.", said(&error)),
        }
    }

    /// Says who acts and what there is to do.
    pub(super) fn refused(&self, action: &'static str, hint: impl Into<String>, problem: impl Into<Cause>) -> SourceError {
        SourceError::Refused { name: self.name.clone(), action, hint: hint.into(), source: problem.into() }
    }

    fn lost(&self, action: &'static str, verdict: Verdict, problem: String) -> SourceError {
        match verdict {
            Verdict::Refused(hint) => self.refused(action, hint, Said(problem)),
            Verdict::Passes(advice) => {
                let problem = advice.map_or(problem.clone(), |advice| format!("{problem}; {advice}"));
                SourceError::Unreachable { name: self.name.clone(), action, source: Said(problem).into() }
            }
        }
    }

    /// No server could be used within the time: because of what the heartbeats met, if they met anything.
    fn no_server(&self, action: &'static str, message: &str) -> SourceError {
        let failures = self.heartbeats.failures();
        if failures.is_empty() {
            return self.lost(action, Verdict::Passes(no_match(message)), message.to_owned());
        }
        let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {}", said(error))).collect();
        let verdicts = failures.values().map(|error| match &*error.kind {
            ErrorKind::Io(io) => verdict(io, self.trust),
            _ => Verdict::Passes(None),
        });
        let worst = verdicts.max_by_key(|verdict| match verdict {
            Verdict::Refused(_) => 2,
            Verdict::Passes(Some(_)) => 1,
            Verdict::Passes(None) => 0,
        });
        self.lost(action, worst.unwrap_or(Verdict::Passes(None)), format!("no server can be used: {}", told.join("; ")))
    }

    fn unknown_user(&self) -> &'static str {
        match self.login {
            Login::Nobody | Login::Password => {
                "Check the user, the password and authSource, the database that the user is defined in, in the connection string."
            }
            Login::NamedMechanism => {
                "Check the user, the password and authSource, the database that the user is defined in, in the connection string, and \
                 remove authMechanism: the driver takes the one that the user has."
            }
            Login::Certificate => {
                "Create a user in \"$external\" whose name is the certificate's subject, as \
                 `openssl x509 -noout -subject -nameopt RFC2253 -in FILE` prints it, issued by an authority that the server trusts."
            }
        }
    }

    fn missing_role(&self) -> &'static str {
        match self.login {
            Login::Nobody => "Put a user into the connection string, mongodb://USER:PASSWORD@HOST/DATABASE?authSource=admin.",
            Login::Password | Login::NamedMechanism | Login::Certificate => {
                "Give the user the role that `factsync setup CONFIG` prints, or \"read\" on the database."
            }
        }
    }
}

/// What the driver says, without the server's whole answer and without the documents that the server quotes.
pub(super) fn said(error: &Error) -> String {
    match &*error.kind {
        ErrorKind::Command(CommandError { code, code_name, message, .. }) => {
            let message = message.split('{').next().unwrap_or_default().trim_end();
            format!("{message} (error {code}, {code_name})")
        }
        kind => kind.to_string(),
    }
}

/// Whether the user lacks a privilege.
pub(super) fn is_unauthorized(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(CommandError { code: UNAUTHORIZED, .. }))
}

/// Whether the same command, repeated later, may succeed; never after [`position_lost`].
pub(super) fn passes(error: &Error) -> bool {
    let of_kind = match &*error.kind {
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::Shutdown => true,
        ErrorKind::Command(error) => PASSING_CODES.contains(&error.code),
        _ => false,
    };
    !position_lost(error) && (of_kind || PASSING_LABELS.iter().any(|label| error.contains_label(label)))
}

/// Whether a change stream cannot go on from where it was, now or later: only a new snapshot helps.
pub(super) fn position_lost(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(error) if LOST_CODES.contains(&error.code))
}

/// What may be the matter when every server answers and none is taken.
fn no_match(message: &str) -> Option<&'static str> {
    let fits_no_role = message.contains("None of the available servers suitable") && !message.contains("ReadPreference(Primary)");
    if fits_no_role {
        return Some("no member has the role that readPreference in the connection string asks for");
    }
    // The driver has struck all of them off, because their set has another name, and lists none.
    let struck_off = message.contains("Topology: {") && !message.contains("Servers: [");
    struck_off.then_some("replicaSet in the connection string may not be the set's name")
}

fn verdict(error: &io::Error, trust: Trust) -> Verdict {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        return tls_verdict(error, trust);
    }
    match (error.kind(), trust) {
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, Trust::NoTls) => {
            Verdict::Passes(Some("if the server speaks TLS only, add tls=true to the connection string"))
        }
        (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe, _) => Verdict::Passes(Some(
            "if the server speaks no TLS, set tls=false; if it wants a certificate of its clients, set tlsCertificateKeyFile",
        )),
        // What else the system reports is not about TLS.
        _ => Verdict::Passes(None),
    }
}

fn tls_verdict(error: &TlsError, trust: Trust) -> Verdict {
    use CertificateError as Certificate;
    Verdict::Refused(match error {
        TlsError::InvalidCertificate(Certificate::UnknownIssuer) => match trust {
            Trust::NoTls | Trust::PublicAuthorities | Trust::Anybody => {
                "Name the file of the server's certificate authority with tlsCAFile=FILE. Without it only the public authorities \
                 of Mozilla's list are trusted, and not those of the operating system."
            }
            Trust::File => "The server's certificate is by another authority than those in tlsCAFile. Name the right file.",
        },
        TlsError::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "Connect by a name that the certificate has as subjectAltName (its common name does not count), and have the members \
             of the replica set configured by such names, which rs.conf() shows."
        }
        TlsError::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "The server's certificate has expired: renew it, or set this machine's clock."
        }
        TlsError::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            "The server's certificate is not valid yet: set this machine's clock."
        }
        TlsError::InvalidCertificate(_) => {
            "The server needs an X.509 certificate of version 3 with a subjectAltName and CA:FALSE, signed with SHA-256 or better by an \
             authority in tlsCAFile; a self-signed one does not do."
        }
        TlsError::AlertReceived(_) => {
            "The server refuses this client in the TLS handshake. If it wants a certificate, name a file that holds one and its key \
             with tlsCertificateKeyFile=FILE."
        }
        TlsError::InvalidMessage(_) => "The server speaks no TLS at this port. Remove tls=true, or name the right port.",
        TlsError::PeerIncompatible(_) | TlsError::PeerMisbehaved(_) => {
            "The server has to speak TLS 1.2 or 1.3 with an AEAD cipher (AES-GCM or ChaCha20-Poly1305)."
        }
        // The enum is open; the rest are our own mistakes and the peer's.
        _ => return Verdict::Passes(None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Disposition;
    use mongodb::bson::{Document, doc};

    fn command(code: i32, message: &str) -> Error {
        let answer: Document = doc! { "code": code, "codeName": "Name", "errmsg": message };
        let error: CommandError = mongodb::bson::deserialize_from_document(answer).expect("a command error");
        ErrorKind::Command(error).into()
    }

    fn judge(login: Login, trust: Trust) -> Judge {
        Judge { name: "app".to_owned(), login, trust, heartbeats: Heartbeats::default() }
    }

    fn tls(error: TlsError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn what_somebody_killed_passes_and_a_lost_position_does_not() {
        for code in [43, 175, 206, 228, 234, 237, 246, 11601, 189, 10107, 91] {
            assert!(passes(&command(code, "")), "{code}");
            assert!(!position_lost(&command(code, "")), "{code}");
        }
        for code in [136, 260, 280, 286, 40615, 40649, 50811] {
            assert!(position_lost(&command(code, "")), "{code}");
            assert!(!passes(&command(code, "")), "{code}");
        }
        for code in [2, 13, 15, 18, 26, 239, 241] {
            assert!(!passes(&command(code, "")) && !position_lost(&command(code, "")), "{code}");
        }
        assert!(passes(&io::Error::from(io::ErrorKind::ConnectionReset).into()));
    }

    #[test]
    fn no_code_is_in_both_lists() {
        assert!(PASSING_CODES.iter().all(|code| !LOST_CODES.contains(code)));
        assert!(PASSING_CODES.is_sorted(), "for whoever looks one up");
    }

    #[test]
    fn a_refusal_does_not_quote_the_command() {
        let error = command(13, "not authorized on app to execute command { find: \"users\", filter: { _id: \"ann\" } }");
        assert_eq!(said(&error), "not authorized on app to execute command (error 13, Name)");
        let error = command(280, "cannot resume stream; the resume token was not found. {_data: \"8265\"}");
        assert_eq!(said(&error), "cannot resume stream; the resume token was not found. (error 280, Name)");
        for (login, want) in [(Login::Nobody, "Put a user"), (Login::Password, "factsync setup"), (Login::Certificate, "factsync setup")] {
            let error = judge(login, Trust::NoTls).failed("read", command(13, "no { _id: \"ann\" }"));
            let text = format!("{error} {error:?}");
            assert!(text.contains(want) && !text.contains("ann"), "{text}");
            assert_eq!(error.disposition(), Disposition::Operator);
        }
    }

    #[test]
    fn a_certificate_waits_for_a_person_and_a_closed_connection_does_not() {
        let unknown = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let hint = |error: io::Error, trust| match verdict(&error, trust) {
            Verdict::Refused(hint) => hint,
            Verdict::Passes(advice) => panic!("{advice:?}"),
        };
        assert!(hint(tls(unknown()), Trust::PublicAuthorities).contains("tlsCAFile=FILE"));
        assert!(hint(tls(unknown()), Trust::File).contains("another authority"));
        assert!(hint(tls(TlsError::InvalidCertificate(CertificateError::NotValidForName)), Trust::File).contains("subjectAltName"));
        assert!(hint(tls(TlsError::AlertReceived(rustls::AlertDescription::CertificateRequired)), Trust::File).contains("KeyFile"));
        let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(matches!(verdict(&closed(), Trust::NoTls), Verdict::Passes(Some(advice)) if advice.contains("add tls=true")));
        assert!(matches!(verdict(&closed(), Trust::File), Verdict::Passes(Some(advice)) if advice.contains("tls=false")));
        assert_eq!(verdict(&io::Error::from(io::ErrorKind::ConnectionRefused), Trust::NoTls), Verdict::Passes(None));
    }

    #[test]
    fn what_the_heartbeats_met_explains_why_no_server_is_there() {
        let judge = judge(Login::Password, Trust::File);
        let selection = "Server selection timeout: No available servers. Topology: { Type: Unknown, Servers: [ a ] }";
        let error = judge.no_server("connect", selection);
        assert_eq!(error.disposition(), Disposition::Retry);
        let failures = [
            ("a:1", io::Error::from(io::ErrorKind::ConnectionRefused)),
            ("b:1", tls(TlsError::InvalidCertificate(CertificateError::UnknownIssuer))),
        ];
        for (address, failure) in failures {
            judge.heartbeats.0.lock().expect("not poisoned").insert(address.to_owned(), failure.into());
        }
        let error = judge.no_server("connect", selection);
        assert_eq!(error.disposition(), Disposition::Operator);
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert!(cause.contains("a:1: I/O error: connection refused; b:1: I/O error: invalid peer certificate"), "{cause}");
    }

    #[test]
    fn a_set_of_another_name_and_a_role_nobody_has_are_told() {
        assert!(no_match("No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: x }").is_some());
        let suitable = "None of the available servers suitable for criteria ReadPreference";
        assert!(no_match(&format!("{suitable}(Secondary {{ options: None }}). Topology: {{ Servers: [ a ] }}")).is_some());
        assert!(no_match(&format!("{suitable}(Primary). Topology: {{ Servers: [ a ] }}")).is_none());
    }
}
