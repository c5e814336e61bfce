//! TLS for both drivers: rustls with ring, and the same trust for both.
//!
//! `tokio-postgres` takes a rustls configuration. `pgwire-replication` builds its own from a mode and the path of one PEM
//! file, so trust that does not come from one file is written to a temporary one.
//!
//! Its `verify-ca` still fails when the certificate names another host: it knows only rustls' older error for that, without the
//! names. So our own check remembers a name that the certificate does have, and the crate is told to expect that one. The authority's
//! signature is checked all the same. A certificate without any alternative name cannot be used this way, and is refused.

use std::{
    io::Write,
    sync::{Arc, OnceLock},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use pgwire_replication::{SslMode as ReplicationMode, TlsConfig};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{Error as PemError, PemObject},
    },
};
use tempfile::NamedTempFile;
use tokio_postgres::config::SslMode as Offer;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::source::postgres::{
    address::Address,
    trust::{Identity, Roots, Trust},
};

/// Columns of a PEM line (RFC 7468).
const PEM_LINE: usize = 64;

/// Trust, loaded once for all connections of a source.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: MakeRustlsConnect,
    replication: TlsConfig,
    /// A name the server's certificate has, once `verify-ca` has seen another one than the host's.
    presented: Arc<OnceLock<String>>,
    /// Keeps the file that `replication` names.
    _roots: Option<Arc<NamedTempFile>>,
}

impl Tls {
    /// Loads the certificates `address` trusts; the error is a sentence.
    pub(crate) fn load(address: &Address) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let presented = Arc::new(OnceLock::new());
        let (verifier, mode, roots): (Arc<dyn ServerCertVerifier>, _, _) = match &address.tls.trust {
            Trust::Anybody => (Arc::new(Unchecked(provider.clone())), ReplicationMode::Require, None),
            Trust::Authority(roots) => {
                let certificates = certificates(roots)?;
                let inner = verifier(&certificates, &provider)?;
                (Arc::new(AnyName { inner, presented: presented.clone() }), ReplicationMode::VerifyCa, Some((roots, certificates)))
            }
            Trust::Name(roots) => {
                let certificates = certificates(roots)?;
                let verifier = verifier(&certificates, &provider)?;
                (verifier, ReplicationMode::VerifyFull, Some((roots, certificates)))
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &address.tls.identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = shown(identity)?;
                config.with_client_auth_cert(chain, key).map_err(|_| mismatch(identity))?
            }
        };
        let mode = match (address.sql.get_ssl_mode(), &address.tls.trust) {
            (Offer::Disable, _) => ReplicationMode::Disable,
            (Offer::Prefer, Trust::Anybody) => ReplicationMode::Prefer,
            _ => mode,
        };
        let mut replication = TlsConfig { mode, ..TlsConfig::disabled() };
        if let Some(identity) = &address.tls.identity {
            replication = replication.with_client_cert(&identity.certificate, &identity.key);
        }
        let mut file = None;
        if let Some((roots, certificates)) = roots {
            match &roots.ca_file {
                Some(path) if !roots.system => replication.ca_pem_path = Some(path.clone()),
                _ => {
                    let pem = pem_file(&certificates).map_err(|error| format!("the system's certificates cannot be kept: {error}"))?;
                    replication.ca_pem_path = Some(pem.path().to_owned());
                    file = Some(Arc::new(pem));
                }
            }
            // The crate refuses IP addresses unless they are named a second time.
            replication = replication.with_sni_hostname(address.host());
        }
        Ok(Self { connector: MakeRustlsConnect::new(config), replication, presented, _roots: file })
    }

    /// For `tokio-postgres`.
    pub(crate) fn connector(&self) -> MakeRustlsConnect {
        self.connector.clone()
    }

    /// For `pgwire-replication`.
    pub(crate) fn replication(&self) -> TlsConfig {
        match self.presented.get() {
            Some(name) => self.replication.clone().with_sni_hostname(name),
            None => self.replication.clone(),
        }
    }
}

fn certificates(roots: &Roots) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    if let Some(path) = &roots.ca_file {
        let unreadable = |error| format!("the certificates in \"{}\" cannot be read: {error}", path.display());
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            certificates.push(certificate.map_err(unreadable)?);
        }
        if certificates.is_empty() {
            return Err(format!("\"{}\" holds no certificate. It must be a PEM file", path.display()));
        }
    }
    if roots.system {
        let native = rustls_native_certs::load_native_certs();
        certificates.extend(native.certs);
    }
    if certificates.is_empty() {
        return Err("this system has no trusted certificates. Install ca-certificates or name a ca_file".into());
    }
    Ok(certificates)
}

/// The certificate and the key that are shown to the server. The errors hold nothing of what the files hold.
fn shown(identity: &Identity) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let file = identity.certificate.display();
    let unreadable = |error| format!("the client certificate in \"{file}\" cannot be read: {}", pem_problem(&error));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&identity.certificate).map_err(unreadable)?.collect();
    let chain = chain.map_err(unreadable)?;
    if chain.is_empty() {
        return Err(format!("\"{file}\" holds no certificate. sslcert must be a PEM file"));
    }
    let file = identity.key.display();
    // Both forms of an encrypted key say so in plain text: "BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED".
    if std::fs::read(&identity.key).is_ok_and(|pem| pem.windows(9).any(|part| part == b"ENCRYPTED")) {
        let decrypt = "Decrypt it, openssl pkey -in client.key -out plain.key, and protect the file by its mode";
        return Err(format!("the private key in \"{file}\" is encrypted, which is not supported. {decrypt}"));
    }
    let key = PrivateKeyDer::from_pem_file(&identity.key);
    Ok((chain, key.map_err(|error| format!("the private key in \"{file}\" cannot be read: {}", pem_problem(&error)))?))
}

/// Without what the file holds, which may be a key.
fn pem_problem(error: &PemError) -> String {
    match error {
        PemError::Io(error) => error.to_string(),
        // The enum is open, and what else it says quotes the file.
        _ => "it is no PEM file of that kind".to_owned(),
    }
}

fn mismatch(identity: &Identity) -> String {
    let (certificate, key) = (identity.certificate.display(), identity.key.display());
    format!("the private key in \"{key}\" is not that of the certificate in \"{certificate}\", or of a kind that is not supported")
}

fn verifier(certificates: &[CertificateDer<'static>], provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
        .build()
        .map_err(|error| format!("the trusted certificates cannot be used: {error}"))
}

fn pem_file(certificates: &[CertificateDer<'_>]) -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    for certificate in certificates {
        writeln!(file, "-----BEGIN CERTIFICATE-----")?;
        for line in BASE64_STANDARD.encode(certificate).as_bytes().chunks(PEM_LINE) {
            file.write_all(line)?;
            writeln!(file)?;
        }
        writeln!(file, "-----END CERTIFICATE-----")?;
    }
    file.flush()?;
    Ok(file)
}

/// libpq's `require`: encrypted, whoever answers.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// libpq's `verify-ca`: signed by a trusted authority, for whatever name.
#[derive(Debug)]
struct AnyName {
    inner: Arc<WebPkiServerVerifier>,
    presented: Arc<OnceLock<String>>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is checked after the chain, so a wrong name means a right chain.
        match self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
                if let Some(name) = presented.iter().find_map(|name| host_name(name)) {
                    self.presented.get_or_init(|| name);
                }
                Ok(ServerCertVerified::assertion())
            }
            Err(Error::InvalidCertificate(CertificateError::NotValidForName)) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The host inside `DnsName("host")`, as rustls spells the names of a certificate; a wildcard stands for any host below it.
fn host_name(presented: &str) -> Option<String> {
    let name = presented.strip_prefix("DnsName(\"")?.strip_suffix("\")")?;
    Some(name.strip_prefix("*.").map_or(name.to_owned(), |domain| format!("any.{domain}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_are_taken_from_a_certificate() {
        assert_eq!(host_name("DnsName(\"db.example\")").as_deref(), Some("db.example"));
        assert_eq!(host_name("DnsName(\"*.example\")").as_deref(), Some("any.example"));
        assert_eq!(host_name("IpAddress(127.0.0.1)"), None);
    }
}
