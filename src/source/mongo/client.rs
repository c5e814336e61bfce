//! One source's database: connecting to it, and what is asked of it everywhere.
//!
//! [`Server::connect`] refuses at once what would fail each view by itself later: a server without snapshots, a user who is not
//! known, one who may see nothing of the database.

use mongodb::{
    Client, ClientSession, Database,
    bson::{Document, doc},
    error::Error,
};

pub(super) use crate::source::mongo::fault::passes;
use crate::{
    config::{ExposeSecret, MongoConfig},
    source::{
        SourceError,
        mongo::{
            access::Access,
            fault::{Judge, is_unauthorized},
        },
    },
};

/// The wire version of MongoDB 5.0, the first with snapshot reads outside of transactions.
const SNAPSHOT_WIRE_VERSION: i32 = 13;

/// One source's database.
pub(super) struct Server {
    judge: Judge,
    client: Client,
    pub(super) database: Database,
    /// What the connection string asks for and does not get, or had better not ask for: what, and what to do.
    pub(super) warnings: Vec<(&'static str, &'static str)>,
}

impl Server {
    /// Connects, and makes sure that the server can read a snapshot and lets us see something of the database.
    pub(super) async fn connect(name: &str, config: &MongoConfig) -> Result<Self, SourceError> {
        let Access { options, judge, warnings } = Access::read(name, config.connection_string.expose_secret()).await?;
        let client = Client::with_options(options).map_err(|error| judge.failed("connect", error))?;
        let database = client.default_database().ok_or_else(|| {
            let hint = "Name the database in the connection string's path, as in mongodb://host/DATABASE.";
            judge.refused("connect", hint, "the connection string names no database")
        })?;
        let server = Self { judge, client, database, warnings };
        server.require_snapshots().await?;
        server.require_login().await?;
        Ok(server)
    }

    /// For what is outside of the source's database.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// A session whose reads all see one cluster time.
    pub(super) async fn snapshot_session(&self) -> Result<ClientSession, SourceError> {
        self.client.start_session().snapshot(true).await.map_err(|error| self.failed("start a session", error))
    }

    /// Runs a read-only command where the connection string's read preference says.
    pub(super) async fn run(&self, command: Document) -> Result<Document, Error> {
        let mut run = self.database.run_command(command);
        if let Some(criteria) = self.client.selection_criteria() {
            run = run.selection_criteria(criteria.clone());
        }
        run.await
    }

    /// Classifies what the driver says.
    pub(super) fn failed(&self, action: &'static str, error: Error) -> SourceError {
        self.judge.failed(action, error)
    }

    /// Says that one view failed.
    pub(super) fn view(&self, fact_type: &str, problem: String) -> SourceError {
        SourceError::View { name: self.judge.name.clone(), fact_type: fact_type.to_owned(), problem }
    }

    async fn require_snapshots(&self) -> Result<(), SourceError> {
        const ACTION: &str = "read a snapshot";
        let hello = self.run(doc! { "hello": 1 }).await.map_err(|error| self.failed("connect", error))?;
        let is_router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        if !is_router && hello.get_str("setName").is_err() {
            let hint = "Start mongod with --replSet and run rs.initiate() once in mongosh; one node is enough.";
            return Err(self.judge.refused(ACTION, hint, "the server is not a member of an initiated replica set"));
        }
        let version = hello.get_i32("maxWireVersion").unwrap_or(0);
        if version < SNAPSHOT_WIRE_VERSION {
            let hint = "Upgrade to MongoDB 5.0 or later.";
            return Err(self.judge.refused(ACTION, hint, format!("the server speaks wire version {version}")));
        }
        Ok(())
    }

    /// The server answers `hello` to anybody, and this only to a user who has some privilege on the database.
    async fn require_login(&self) -> Result<(), SourceError> {
        let nothing = doc! { "listCollections": 1, "nameOnly": true, "authorizedCollections": true, "filter": { "name": "" } };
        match self.run(nothing).await {
            Ok(_) => Ok(()),
            Err(error) if is_unauthorized(&error) => Err(self.failed("show the database", error)),
            Err(error) => Err(self.failed("connect", error)),
        }
    }
}
