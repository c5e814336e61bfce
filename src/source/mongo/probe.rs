//! What `check` asks of a database: everything that would stop `run`, all at once, each with its remedy.
//!
//! What `run` does is done once here, so that it is the server that judges: collections and their indexes are listed, a change stream on
//! the database is opened and closed, and every query is planned without reading a document. Only to name what a refused user lacks is
//! the server asked for a list of privileges.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::{
    bson::{Document, doc},
    error::{Error, ErrorKind},
};

use crate::{
    config::{MongoConfig, MongoQuery, View},
    source::{
        SourceError,
        mongo::{
            client::Server,
            collections::{self, Kind},
            fault::{is_unauthorized, passes, said},
            privileges,
            query::Query,
            shape::Shape,
        },
        postgres::{Finding, Severity},
    },
};

const SETUP: &str = "Have an administrator run what `factsync setup CONFIG` prints.";
/// `NamespaceNotFound`: the collection does not exist, so it has no indexes.
const NO_SUCH_COLLECTION: i32 = 26;

/// Connects, and finds out what would stop `run`.
pub async fn probe(name: &str, config: &MongoConfig) -> Result<Vec<Finding>, SourceError> {
    let server = Server::connect(name, config).await?;
    let mut probe = Probe { server: &server, config, findings: Vec::new(), is_denied: false };
    probe.server_as_a_whole().await;
    let kinds = probe.collections().await?;
    probe.change_stream().await?;
    for view in &config.views {
        probe.view(view, kinds.as_ref()).await?;
    }
    probe.indexes(kinds.as_ref()).await?;
    if probe.is_denied {
        probe.privileges().await;
    }
    Ok(probe.findings)
}

struct Probe<'a> {
    server: &'a Server,
    config: &'a MongoConfig,
    findings: Vec<Finding>,
    /// Something was refused for want of a privilege.
    is_denied: bool,
}

impl Probe<'_> {
    async fn server_as_a_whole(&mut self) {
        let version = self.server.run(doc! { "buildInfo": 1 }).await.ok();
        let version = version.and_then(|info| Some(format!(" of MongoDB {}", info.get_str("version").ok()?))).unwrap_or_default();
        let database = self.server.database.name();
        self.findings.push(Finding::fine(format!("connected to database \"{database}\"{version}, which has snapshot reads")));
        let warnings = self.server.warnings.iter().map(|(text, remedy)| Finding::bad(Severity::Warning, *text, remedy));
        self.findings.extend(warnings);
        self.findings.extend(self.oplog().await.map(|reach| {
            let reach = humantime::format_duration(std::time::Duration::from_secs(reach));
            Finding::fine(format!("the oplog reaches back {reach}; a `run` that was away for longer than it does takes a new snapshot"))
        }));
    }

    /// How many seconds the oplog reaches back, if the user may look; following does not need it, so `setup` does not grant it.
    async fn oplog(&self) -> Option<u64> {
        let end = async |order: i32| {
            let oplog = self.server.client().database("local").collection::<Document>("oplog.rs");
            let found = oplog.find_one(doc! {}).sort(doc! { "$natural": order }).projection(doc! { "ts": 1 }).await;
            found.ok().flatten().and_then(|entry| entry.get_timestamp("ts").ok()).map(|ts| u64::from(ts.time))
        };
        let (first, last) = (end(1).await?, end(-1).await?);
        last.checked_sub(first)
    }

    /// Every collection and what it is; `None` without the privilege to list them.
    async fn collections(&mut self) -> Result<Option<BTreeMap<String, Kind>>, SourceError> {
        let listed = collections::list(self.server).await;
        let Some(listed) = self.allowed("list the collections", listed)? else { return Ok(None) };
        let database = self.server.database.name();
        if listed.is_empty() {
            let text = format!("database \"{database}\" has no collections, or does not exist");
            self.findings.push(Finding::bad(Severity::Warning, text, "Check the database's name in the connection string's path."));
        }
        Ok(Some(listed))
    }

    /// Opens a change stream on the database, as `run` does, and closes it.
    async fn change_stream(&mut self) -> Result<(), SourceError> {
        let open = doc! { "aggregate": 1, "pipeline": [{ "$changeStream": {} }], "cursor": { "batchSize": 0 } };
        let opened = match self.server.run(open).await {
            Err(error) if !passes(&error) && !is_unauthorized(&error) => {
                let text = format!("no change stream can be opened on the database: {}", said(&error));
                self.findings.push(Finding::bad(Severity::Problem, text, "The server's message says why."));
                return Ok(());
            }
            answer => self.allowed("open a change stream", answer)?,
        };
        let Some(answer) = opened else { return Ok(()) };
        if let Ok(id) = answer.get_document("cursor").and_then(|cursor| cursor.get_i64("id")) {
            // The server closes one that nobody reads from, too, after ten minutes.
            drop(self.server.run(doc! { "killCursors": "$cmd.aggregate", "cursors": [id] }).await);
        }
        self.findings.push(Finding::fine("a change stream on the database can be opened"));
        Ok(())
    }

    async fn view(&mut self, view: &View<MongoQuery>, kinds: Option<&BTreeMap<String, Kind>>) -> Result<(), SourceError> {
        let mut findings = Vec::new();
        if let Some(kinds) = kinds {
            findings.extend(collections_of(&view.query).iter().filter_map(|collection| self.collection(collection, kinds.get(collection))));
        }
        match Query::new(&view.query) {
            Err(problem) => findings.push(Finding::bad(Severity::Problem, problem, "Correct the query.")),
            Ok(query) => match query.explain(self.server).await {
                Err(error) if !passes(&error) && !is_unauthorized(&error) => {
                    findings.push(Finding::bad(Severity::Problem, said(&error), "Correct the query."));
                }
                answer => {
                    self.allowed("plan a query", answer)?;
                    findings.extend(unfollowed(&view.query));
                }
            },
        }
        self.findings.extend(findings.into_iter().map(|finding| Finding { place: Some(view.place.clone()), ..finding }));
        Ok(())
    }

    /// What is wrong with a collection that a query reads.
    fn collection(&self, name: &str, kind: Option<&Kind>) -> Option<Finding> {
        let Some(kind) = kind else {
            let text = format!("database \"{}\" has no collection \"{name}\", so it counts as empty", self.server.database.name());
            return Some(Finding::bad(Severity::Warning, text, "Check the name, unless the application has yet to create it."));
        };
        let (problem, remedy) = kind.unfollowed(name)?;
        Some(Finding::bad(Severity::Problem, problem, &remedy))
    }

    async fn indexes(&mut self, kinds: Option<&BTreeMap<String, Kind>>) -> Result<(), SourceError> {
        let of_views = self.config.views.iter().flat_map(|view| collections_of(&view.query)).collect::<BTreeSet<_>>();
        // One stands for all: the privilege is on the database.
        let is_ordinary = |name: &&String| kinds.is_none_or(|kinds| matches!(kinds.get(*name), Some(Kind::Collection)));
        let Some(collection) = of_views.iter().find(is_ordinary) else { return Ok(()) };
        match self.server.run(doc! { "listIndexes": collection }).await {
            Err(error) if matches!(&*error.kind, ErrorKind::Command(error) if error.code == NO_SUCH_COLLECTION) => Ok(()),
            answer => self.allowed("list the indexes", answer).map(drop),
        }
    }

    /// The answer, if the user may have it; an error if the server cannot be asked.
    fn allowed<T>(&mut self, action: &'static str, answer: Result<T, Error>) -> Result<Option<T>, SourceError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if is_unauthorized(&error) => {
                self.is_denied = true;
                Ok(None)
            }
            Err(error) => Err(self.server.failed(action, error)),
        }
    }

    /// Names what the user lacks; called when something was refused.
    async fn privileges(&mut self) {
        let status = self.server.run(doc! { "connectionStatus": 1, "showPrivileges": true }).await.unwrap_or_default();
        let database = self.server.database.name();
        let missing = privileges::missing(&status, database);
        if missing.is_empty() {
            let text = format!("the user lacks a privilege on database \"{database}\"");
            self.findings.push(Finding::bad(Severity::Problem, text, SETUP));
        }
        let missing = missing.into_iter().map(|action| format!("the user may not {action} on all of database \"{database}\""));
        self.findings.extend(missing.map(|text| Finding::bad(Severity::Problem, text, SETUP)));
    }
}

/// Why a query that the server takes cannot be followed.
fn unfollowed(query: &MongoQuery) -> Option<Finding> {
    match Shape::of(query) {
        Ok(Shape::Refused(problem)) => Some(Finding { remedy: None, ..Finding::bad(Severity::Problem, problem, "") }),
        Ok(Shape::PerDocument(_) | Shape::Refresh { .. }) | Err(_) => None,
    }
}

/// The collections that a query reads; its own only, if it cannot be followed.
pub fn collections_of(query: &MongoQuery) -> BTreeSet<String> {
    match Shape::of(query) {
        Ok(Shape::PerDocument(shape)) => shape.collections(),
        Ok(Shape::Refresh { collections, .. }) => collections,
        Ok(Shape::Refused(_)) | Err(_) => BTreeSet::from([query.collection.clone()]),
    }
}
