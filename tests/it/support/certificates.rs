//! Certificates for tests, made by `openssl` when they are needed and gone afterwards.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A key that every TLS library takes.
pub(crate) const P256: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:P-256";

/// An authority and what it has signed. Files are named after what they hold: `ca.crt`, `NAME.key`, `NAME.crt`, and both in `NAME.pem`.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// An authority of that name, which is part of its certificate only.
    pub(crate) fn authority(name: &str) -> Self {
        let certificates = Self { folder: tempfile::tempdir().expect("a folder") };
        certificates.openssl(&format!("genpkey {P256} -out ca.key"));
        certificates.openssl(&format!("req -x509 -new -key ca.key -out ca.crt -days 2 -subj /CN={name}"));
        certificates
    }

    /// A certificate for `subject`, as openssl takes it (`/O=x/CN=y`), with a new key by `openssl genpkey`; the extensions are lines
    /// such as `subjectAltName=DNS:localhost`.
    pub(crate) fn sign(&self, name: &str, subject: &str, key: &str, extensions: &str) {
        self.sign_for(name, subject, key, extensions, 2);
    }

    /// The same for that many days, which may lie in the past.
    pub(crate) fn sign_for(&self, name: &str, subject: &str, key: &str, extensions: &str, days: i32) {
        self.openssl(&format!("genpkey {key} -out {name}.key"));
        self.openssl(&format!("req -new -key {name}.key -out {name}.csr -subj {subject}"));
        fs::write(self.file(&format!("{name}.cnf")), format!("basicConstraints=CA:FALSE\n{extensions}\n")).expect("written");
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days {days} -extfile {name}.cnf"
        ));
        self.join(&[&format!("{name}.crt"), &format!("{name}.key")], &format!("{name}.pem"));
    }

    /// Puts files together.
    pub(crate) fn join(&self, parts: &[&str], whole: &str) {
        let text: String = parts.iter().map(|part| fs::read_to_string(self.file(part)).expect("made before")).collect();
        fs::write(self.file(whole), text).expect("written");
    }

    /// Runs `openssl` in the folder.
    pub(crate) fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(self.folder.path()).stdin(Stdio::null());
        let output = command.output().expect("openssl is installed; tests/run.sh does that");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The path of a file.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Where the files are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}
