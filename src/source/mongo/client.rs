//! Connecting, and telling whose turn it is when that or a command fails.

use std::time::Duration;

use mongodb::{
    Client, Database,
    bson::{Document, doc},
    error::{CommandError, Error, ErrorKind},
    options::{ClientOptions, SelectionCriteria},
};

use crate::{
    config::{ExposeSecret, MongoConfig},
    source::{Cause, SourceError},
};

/// How long to try to reach a server when the connection string does not say (`connectTimeoutMS`,
/// `serverSelectionTimeoutMS`). An election takes a few seconds; the driver's 30 seconds are long for a person who runs `check`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The wire version of MongoDB 5.0, the first with snapshot reads outside of transactions.
const SNAPSHOT_WIRE_VERSION: i32 = 13;
/// Codes of errors that pass: the driver specifications' retryable reads, and `SnapshotUnavailable` (246), which a
/// collection that was created or dropped a moment ago causes.
const PASSING_CODES: [i32; 14] = [6, 7, 89, 91, 134, 189, 246, 262, 9001, 10107, 11600, 11602, 13435, 13436];

/// One source's database.
#[derive(Clone)]
pub(super) struct Server {
    name: String,
    client: Client,
    pub(super) database: Database,
    /// Whether this is a mongos.
    router: bool,
    /// The name of the replica set.
    set: Option<String>,
}

impl Server {
    /// Connects, and makes sure that the server can read a snapshot.
    pub(super) async fn connect(name: &str, config: &MongoConfig) -> Result<Self, SourceError> {
        let options = options(name, config.connection_string.expose_secret()).await?;
        let client = Client::with_options(options).map_err(|error| failed(name, "connect", error))?;
        let database = client.default_database().ok_or_else(|| {
            let hint = "Name the database in the connection string's path, as in mongodb://host/DATABASE.".to_owned();
            refused(name, "connect", hint, "the connection string names no database")
        })?;
        let mut server = Self { name: name.to_owned(), client, database, router: false, set: None };
        server.require_snapshots().await?;
        Ok(server)
    }

    /// Whether this is a router (mongos).
    pub(super) fn is_router(&self) -> bool {
        self.router
    }

    /// Which deployment and database this is, as far as a user with the least privileges can tell.
    pub(super) fn identity(&self) -> String {
        let set = self.set.as_deref().unwrap_or("sharded cluster");
        format!("{set}/{}", self.database.name())
    }

    /// Where the connection string says that reads go.
    pub(super) fn read_preference(&self) -> Option<&SelectionCriteria> {
        self.client.selection_criteria()
    }

    /// Runs a read-only command where the connection string's read preference says.
    pub(super) async fn run(&self, command: Document) -> Result<Document, Error> {
        let mut run = self.database.run_command(command);
        if let Some(criteria) = self.read_preference() {
            run = run.selection_criteria(criteria.clone());
        }
        run.await
    }

    /// Classifies what the driver says.
    pub(super) fn failed(&self, action: &'static str, error: Error) -> SourceError {
        failed(&self.name, action, error)
    }

    /// The server is not there, or does not do what it always does.
    pub(super) fn unreachable(&self, action: &'static str, source: impl Into<Cause>) -> SourceError {
        SourceError::Unreachable { name: self.name.clone(), action, source: source.into() }
    }

    /// The server answers, and somebody has to do something.
    pub(super) fn refused(&self, action: &'static str, hint: &str, source: impl Into<Cause>) -> SourceError {
        refused(&self.name, action, hint.to_owned(), source)
    }

    /// The changes since the stored position are not to be had.
    pub(super) fn position_lost(&self, problem: String) -> SourceError {
        SourceError::PositionLost { name: self.name.clone(), problem }
    }

    /// What some views depend on has changed.
    pub(super) fn views_changed(&self, views: Vec<usize>, problem: String) -> SourceError {
        SourceError::ViewsChanged { name: self.name.clone(), views, problem }
    }

    /// Says that one view failed.
    pub(super) fn view(&self, fact_type: &str, problem: String) -> SourceError {
        SourceError::View { name: self.name.clone(), fact_type: fact_type.to_owned(), problem }
    }

    async fn require_snapshots(&mut self) -> Result<(), SourceError> {
        const ACTION: &str = "read a snapshot";
        let hello = self.run(doc! { "hello": 1 }).await.map_err(|error| self.failed("connect", error))?;
        self.router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        self.set = hello.get_str("setName").ok().map(str::to_owned);
        if !self.router && self.set.is_none() {
            let hint = "Start mongod with --replSet and run rs.initiate() once in mongosh; one node is enough.".to_owned();
            return Err(refused(&self.name, ACTION, hint, "the server is not a member of an initiated replica set"));
        }
        let version = hello.get_i32("maxWireVersion").unwrap_or(0);
        if version < SNAPSHOT_WIRE_VERSION {
            let hint = "Upgrade to MongoDB 5.0 or later.".to_owned();
            return Err(refused(&self.name, ACTION, hint, format!("the server speaks wire version {version}")));
        }
        Ok(())
    }
}

async fn options(name: &str, connection_string: &str) -> Result<ClientOptions, SourceError> {
    let mut options = ClientOptions::parse(connection_string).await.map_err(|error| match *error.kind {
        ErrorKind::DnsResolve { .. } => failed(name, "resolve the host", error),
        // The driver quotes what it takes for the host, which is part of the password if that holds an unescaped "/" or "@".
        _ => {
            let hint = "Percent-encode special characters in the user name and the password.".to_owned();
            refused(name, "connect", hint, "the connection string is no MongoDB URI; it may hold a secret, so it is not quoted here")
        }
    })?;
    options.app_name.get_or_insert_with(|| "factsync".to_owned());
    options.connect_timeout.get_or_insert(CONNECT_TIMEOUT);
    options.server_selection_timeout.get_or_insert(CONNECT_TIMEOUT);
    Ok(options)
}

fn failed(name: &str, action: &'static str, error: Error) -> SourceError {
    match &*error.kind {
        _ if passes(&error) => SourceError::Unreachable { name: name.to_owned(), action, source: error.into() },
        ErrorKind::Authentication { .. } => {
            let hint = "Check the user, the password and authSource in the connection string.".to_owned();
            refused(name, action, hint, error)
        }
        ErrorKind::Command(CommandError { code: 13, .. }) => {
            let hint = "Grant the user the role \"read\" on the database.".to_owned();
            refused(name, action, hint, error)
        }
        _ => refused(name, action, "See the cause.".to_owned(), error),
    }
}

/// Whether the same command, repeated later, may succeed.
pub(super) fn passes(error: &Error) -> bool {
    match &*error.kind {
        ErrorKind::Io(_)
        | ErrorKind::ServerSelection { .. }
        | ErrorKind::ConnectionPoolCleared { .. }
        | ErrorKind::DnsResolve { .. }
        | ErrorKind::Shutdown => true,
        ErrorKind::Command(error) => PASSING_CODES.contains(&error.code),
        _ => false,
    }
}

/// Whether the oplog no longer has what a change stream should go on with, or has another history.
pub(super) fn position_lost(error: &Error) -> bool {
    const CODES: [i32; 6] = [286, 280, 260, 50811, 40615, 40649];
    matches!(&*error.kind, ErrorKind::Command(error) if CODES.contains(&error.code))
}

fn refused(name: &str, action: &'static str, hint: String, source: impl Into<Cause>) -> SourceError {
    SourceError::Refused { name: name.to_owned(), action, hint, source: source.into() }
}
