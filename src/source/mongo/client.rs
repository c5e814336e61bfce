//! One source's database: connecting to it, and what is asked of it everywhere.
//!
//! [`Server::connect`] refuses at once what would fail each view by itself later: a server without snapshots, a user who is not
//! known, one who may see nothing of the database.

use mongodb::{
    Client, Database,
    bson::{Document, doc},
    error::Error,
    options::SelectionCriteria,
};

pub(super) use crate::source::mongo::fault::{passes, position_lost};
use crate::{
    config::{ExposeSecret, MongoConfig},
    source::{
        Cause, SourceError,
        mongo::{
            access::Access,
            fault::{Judge, is_unauthorized},
        },
    },
};

/// The wire version of MongoDB 5.0, the first with snapshot reads outside of transactions.
const SNAPSHOT_WIRE_VERSION: i32 = 13;

/// One source's database.
#[derive(Clone)]
pub(super) struct Server {
    judge: Judge,
    client: Client,
    pub(super) database: Database,
    /// What the connection string asks for and does not get, or had better not ask for: what, and what to do.
    pub(super) warnings: Vec<(&'static str, &'static str)>,
    /// Whether this is a mongos.
    router: bool,
    /// The name of the replica set.
    set: Option<String>,
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
        let mut server = Self { judge, client, database, warnings, router: false, set: None };
        server.require_snapshots().await?;
        server.require_login().await?;
        Ok(server)
    }

    /// For what is outside of the source's database.
    pub(super) fn client(&self) -> &Client {
        &self.client
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
        self.judge.failed(action, error)
    }

    /// The server is not there, or does not do what it always does.
    pub(super) fn unreachable(&self, action: &'static str, source: impl Into<Cause>) -> SourceError {
        SourceError::Unreachable { name: self.judge.name.clone(), action, source: source.into() }
    }

    /// The server answers, and somebody has to do something.
    pub(super) fn refused(&self, action: &'static str, hint: &str, source: impl Into<Cause>) -> SourceError {
        self.judge.refused(action, hint, source)
    }

    /// The changes since the stored position are not to be had.
    pub(super) fn position_lost(&self, problem: String) -> SourceError {
        SourceError::PositionLost { name: self.judge.name.clone(), problem }
    }

    /// What some views depend on has changed.
    pub(super) fn views_changed(&self, views: Vec<usize>, problem: String) -> SourceError {
        SourceError::ViewsChanged { name: self.judge.name.clone(), views, problem }
    }

    /// Says that one view failed.
    pub(super) fn view(&self, fact_type: &str, problem: String) -> SourceError {
        SourceError::View { name: self.judge.name.clone(), fact_type: fact_type.to_owned(), problem }
    }

    async fn require_snapshots(&mut self) -> Result<(), SourceError> {
        const ACTION: &str = "read a snapshot";
        let hello = self.run(doc! { "hello": 1 }).await.map_err(|error| self.failed("connect", error))?;
        self.router = hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid");
        self.set = hello.get_str("setName").ok().map(str::to_owned);
        if !self.router && self.set.is_none() {
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
