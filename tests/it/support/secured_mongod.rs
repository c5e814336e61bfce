//! A server as production has it: it takes only TLS, and only users it knows.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Weak},
};

use mongodb::{
    Client,
    bson::{Document, doc},
};

use crate::support::{
    certificates::{Certificates, P256},
    mongod::{Mongod, SET_NAME},
};

/// The server that tests share; it ends with the last of them that holds it.
static SHARED: tokio::sync::Mutex<Weak<Secured>> = tokio::sync::Mutex::const_new(Weak::new());

/// The administrator.
const ROOT: &str = "root:root-password";

/// A replica set of one node, `localhost`, with a certificate by an authority of its own.
pub(crate) struct Secured {
    mongod: Mongod,
    certificates: Certificates,
}

impl Secured {
    /// The server of this test process, started if there is none. Give each test a database and users of its own.
    pub(crate) async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(secured) = shared.upgrade() {
            return secured;
        }
        let secured = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&secured);
        secured
    }

    async fn start() -> Self {
        let certificates = Certificates::authority("test-authority");
        certificates.sign("server", "/CN=server", P256, "subjectAltName=DNS:localhost");
        let key_file = certificates.folder().join("key-file");
        fs::write(&key_file, "c2VjcmV0IG9mIHRoZSBzZXQ=").expect("written");
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).expect("private");
        let (pem, ca) = (certificates.file("server.pem"), certificates.file("ca.crt"));
        let tls =
            ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", &pem, "--tlsCAFile", &ca, "--tlsAllowConnectionsWithoutCertificates"];
        let set = ["--replSet", SET_NAME, "--keyFile", &key_file.display().to_string()];
        let mongod = Mongod::launch(&[&tls[..], &set[..]].concat()).await;
        let secured = Self { mongod, certificates };
        // Before there is a user, whoever comes from the same machine may initiate the set and make one.
        let direct = secured.connect("", "directConnection=true").await;
        let admin = direct.database("admin");
        let set = doc! { "_id": SET_NAME, "members": [{ "_id": 0, "host": format!("localhost:{}", secured.mongod.port()) }] };
        admin.run_command(doc! { "replSetInitiate": set }).await.expect("initiated");
        let (user, password) = ROOT.split_once(':').expect("a user and a password");
        let primary = secured.connect("", "").await;
        let create = doc! { "createUser": user, "pwd": password, "roles": ["root"] };
        primary.database("admin").run_command(create).await.expect("the first user");
        secured
    }

    /// Its certificate, its authority's, and those that a test has signed.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.mongod.port()
    }

    /// A connection string that trusts its certificate; `login` is `USER:PASSWORD` or nothing.
    pub(crate) fn uri(&self, login: &str, database: &str, options: &str) -> String {
        let at = if login.is_empty() { "" } else { "@" };
        let and = if options.is_empty() { "" } else { "&" };
        let ca = self.certificates.file("ca.crt");
        format!("mongodb://{login}{at}localhost:{}/{database}?tls=true&tlsCAFile={ca}{and}{options}", self.port())
    }

    /// The administrator's client.
    pub(crate) async fn root(&self) -> Client {
        self.connect(ROOT, "authSource=admin").await
    }

    /// Makes a user in a database, and gives back `USER:PASSWORD`.
    pub(crate) async fn user(&self, database: &str, name: &str, more: Document) -> String {
        let mut create = doc! { "createUser": name, "pwd": "pass-word", "roles": ["read"] };
        create.extend(more);
        self.root().await.database(database).run_command(create).await.expect("a user");
        format!("{name}:pass-word")
    }

    async fn connect(&self, login: &str, options: &str) -> Client {
        Client::with_uri_str(self.uri(login, "", options)).await.expect("a client")
    }
}
