//! What a connection string means to the driver, and what it asks for that the driver has not.
//!
//! The driver's own messages about a connection string quote it, and parts of a password with it, so no such message is passed on:
//! what goes wrong often is looked for here and named. The files of TLS are looked at before the driver does, because it skips what it
//! cannot read in the one and calls everything it does not understand in the other "no items found".

use std::{net::IpAddr, path::Path, time::Duration};

use mongodb::{
    error::ErrorKind,
    options::{AuthMechanism, ClientOptions, ServerAddress, Tls, TlsOptions},
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject},
    },
};

use crate::source::{SourceError, mongo::fault::Judge};

/// How long to try to reach a server when the connection string does not say (`connectTimeoutMS`,
/// `serverSelectionTimeoutMS`). An election takes a few seconds; the driver's 30 seconds are long for a person who runs `check`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const READABLE: &str = "It takes a PEM file that this process may read.";
const TOGETHER: &str = "Put the certificate and its private key into one PEM file, cat client.crt client.key > client.pem.";

/// As whom we connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// No user is named.
    Nobody,
    /// A user and a password, by the mechanism that driver and server agree on.
    Password,
    /// The same by a mechanism that the connection string names.
    NamedMechanism,
    /// The subject of a client certificate.
    Certificate,
}

/// Which server we take for the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Any, over a connection that is not encrypted.
    NoTls,
    /// One with a certificate by a public authority.
    PublicAuthorities,
    /// One with a certificate by an authority in `tlsCAFile`.
    File,
    /// Any that speaks TLS.
    Anybody,
}

/// A connection string, understood.
pub(super) struct Access {
    pub(super) options: ClientOptions,
    pub(super) judge: Judge,
    /// What the string asks for and does not get, or had better not ask for: what, and what to do.
    pub(super) warnings: Vec<(&'static str, &'static str)>,
}

impl Access {
    /// Reads a connection string; looks up the hosts of a `mongodb+srv://` one.
    pub(super) async fn read(name: &str, connection_string: &str) -> Result<Self, SourceError> {
        let mut judge = Judge::offline(name);
        let mut options = ClientOptions::parse(connection_string).await.map_err(|error| match *error.kind {
            ErrorKind::DnsResolve { .. } => judge.failed("resolve the host", error),
            // The driver quotes what it takes for the host, which is part of the password if that holds an unescaped "/" or "@".
            _ => {
                let hint = "Percent-encode special characters in the user name and the password, and check the names of the options.";
                judge.refused(
                    "connect",
                    hint,
                    "the connection string is not one the driver takes; it may hold a secret, so it is not quoted here",
                )
            }
        })?;
        judge.login = login(&options);
        if let Some(Tls::Enabled(tls)) = &options.tls {
            judge.trust = trust(tls);
            examine(tls).map_err(|(problem, hint)| judge.refused("connect", hint, problem))?;
        }
        let warnings = warnings(&options, judge.trust);
        options.app_name.get_or_insert_with(|| "factsync".to_owned());
        options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
        options.server_selection_timeout.get_or_insert(CONNECT_TIMEOUT);
        // Every read and every stream says what it needs; the driver would put a level from here beside or in place of that.
        options.read_concern = None;
        options.sdam_event_handler = Some(judge.heartbeats.handler());
        Ok(Self { options, judge, warnings })
    }
}

fn login(options: &ClientOptions) -> Login {
    match &options.credential {
        None => Login::Nobody,
        Some(credential) => match credential.mechanism {
            None => Login::Password,
            Some(AuthMechanism::MongoDbX509) => Login::Certificate,
            Some(_) => Login::NamedMechanism,
        },
    }
}

fn trust(tls: &TlsOptions) -> Trust {
    match tls {
        TlsOptions { allow_invalid_certificates: Some(true), .. } => Trust::Anybody,
        TlsOptions { ca_file_path: Some(_), .. } => Trust::File,
        _ => Trust::PublicAuthorities,
    }
}

fn warnings(options: &ClientOptions, trust: Trust) -> Vec<(&'static str, &'static str)> {
    let mut warnings = Vec::new();
    if options.read_concern.is_some() {
        warnings.push((
            "readConcernLevel in the connection string is not used: factsync reads snapshots, and changes that a majority has",
            "Remove it.",
        ));
    }
    if trust == Trust::NoTls && options.hosts.iter().any(is_remote) {
        warnings.push((
            "another machine is spoken to in clear: whoever is between reads every document and can change it",
            "Add tls=true, with tlsCAFile=FILE for an authority of your own.",
        ));
    }
    if trust == Trust::Anybody {
        warnings.push((
            "the connection string takes every certificate, so whoever answers in the server's place decides on access",
            "Name the authority with tlsCAFile=FILE in place of tlsAllowInvalidCertificates or tlsInsecure.",
        ));
    }
    warnings
}

/// Whether it is another machine's address, as far as the string tells; names other than `localhost` are not looked up.
fn is_remote(host: &ServerAddress) -> bool {
    match host {
        ServerAddress::Tcp { host, .. } => {
            let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
            !host.eq_ignore_ascii_case("localhost") && !address.is_ok_and(|address| address.is_loopback())
        }
        // A socket; the enum is open.
        _ => false,
    }
}

/// Looks at the files; the error is what is wrong and what to do, and holds nothing of what they hold.
fn examine(tls: &TlsOptions) -> Result<(), (String, &'static str)> {
    if let Some(path) = &tls.ca_file_path {
        let count = certificates(path, "tlsCAFile")?;
        if count == 0 {
            return Err((format!("\"{}\" holds no certificate", path.display()), "tlsCAFile takes a PEM file of certificates."));
        }
    }
    tls.cert_key_file_path.as_deref().map_or(Ok(()), certificate_and_key)
}

/// How many certificates a file has.
fn certificates(path: &Path, option: &str) -> Result<usize, (String, &'static str)> {
    let broken = |error: PemError| (unreadable(path, option, &error), READABLE);
    let mut count = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(broken)? {
        certificate.map_err(broken)?;
        count += 1;
    }
    Ok(count)
}

fn certificate_and_key(path: &Path) -> Result<(), (String, &'static str)> {
    const OPTION: &str = "tlsCertificateKeyFile";
    // Both forms of an encrypted key say so in plain text: "BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED".
    if std::fs::read(path).is_ok_and(|pem| pem.windows(9).any(|part| part == b"ENCRYPTED")) {
        let hint = "Decrypt it, openssl pkey -in client.key -out plain.key, and protect the file by its mode.";
        return Err((format!("the private key in \"{}\" is encrypted with a password, which is not supported", path.display()), hint));
    }
    if certificates(path, OPTION)? == 0 {
        return Err((format!("\"{}\" holds no certificate", path.display()), TOGETHER));
    }
    let key = PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        PemError::NoItemsFound => (format!("\"{}\" holds no private key", path.display()), TOGETHER),
        error => (unreadable(path, OPTION, &error), READABLE),
    })?;
    any_supported_type(&key).map(drop).map_err(|_| {
        let hint = "Use RSA of 2048 to 4096 bits, EC on P-256 or P-384, or Ed25519.";
        (format!("the private key in \"{}\" is of a kind that is not supported", path.display()), hint)
    })
}

/// Without what the file holds, which may be a key.
fn unreadable(path: &Path, option: &str, error: &PemError) -> String {
    let why = match error {
        PemError::Io(error) => error.to_string(),
        // The enum is open, and what else it says quotes the file.
        _ => "it is no PEM file".to_owned(),
    };
    format!("{option} \"{}\" cannot be read: {why}", path.display())
}
