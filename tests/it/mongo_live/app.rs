//! An application: a server, a database with the indexes that lookups need, a configuration, and a factsync that follows it.

use std::path::PathBuf;

use mongodb::{
    Client, Database,
    bson::{Document, Timestamp, doc},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    operations::{COLLECTIONS, index},
    oracle::{self, Facts},
    server::Server,
    views::View,
};
use crate::support::factsync::Process;

/// The database that everything is about.
pub(super) const DATABASE: &str = "live";
/// A collection that no view reads.
const MARKS: &str = "marks";

pub(super) struct App {
    pub(super) server: Server,
    pub(super) views: Vec<View>,
    pub(super) folder: TempDir,
}

impl App {
    pub(super) async fn start(views: Vec<View>) -> Self {
        Self::on(Server::start().await, views).await
    }

    pub(super) async fn on(server: Server, views: Vec<View>) -> Self {
        let app = Self { server, views, folder: tempfile::tempdir().expect("a folder") };
        app.configure();
        for collection in COLLECTIONS {
            app.run_command(index(collection)).await;
        }
        app
    }

    /// Writes the configuration; JSON is YAML.
    fn configure(&self) {
        let facts: serde_json::Map<String, Value> = self.views.iter().map(|view| (view.signature.to_owned(), view.config())).collect();
        let yaml = json!({
            "version": 1,
            "source": "mongodb",
            "facts": facts,
            "dbs": { "app": { "connection_string": "$MONGODB_URL" } },
            "sync": { "max_removals": { "count": 1_000_000_000, "percent": 100 } },
        });
        std::fs::write(self.config(), yaml.to_string()).expect("the configuration can be written");
    }

    pub(super) fn config(&self) -> PathBuf {
        self.folder.path().join("app.yaml")
    }

    /// The state directory of [`Self::run`].
    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(super) fn client(&self) -> &Client {
        self.server.client()
    }

    pub(super) fn database(&self) -> Database {
        self.client().database(DATABASE)
    }

    /// `factsync run` with the same state directory each time.
    pub(super) fn run(&self, more: &[&str]) -> Process {
        let (config, state) = (self.config(), self.state());
        let mut args = vec!["run", config.to_str().expect("UTF-8"), "--limits", "off", "--state", state.to_str().expect("UTF-8")];
        args.extend(more);
        Process::spawn(&args, &[("MONGODB_URL", &self.server.uri(DATABASE))])
    }

    /// [`Self::run`] of a process that dies at a moment of `engine/crash.rs`.
    pub(super) fn run_to_death(&self, moment: &str) -> Process {
        let (config, state) = (self.config(), self.state());
        let args = ["run", config.to_str().expect("UTF-8"), "--limits", "off", "--state", state.to_str().expect("UTF-8")];
        Process::spawn(&args, &[("MONGODB_URL", &self.server.uri(DATABASE)), ("FACTSYNC_DIE_AT", moment)])
    }

    /// [`Self::run`], once it has caught up.
    pub(super) async fn started(&self, more: &[&str]) -> Process {
        let process = self.run(more);
        process.wait_ready().await;
        process
    }

    /// Runs a command of the test's own, which works.
    pub(super) async fn run_command(&self, command: Document) -> Document {
        let answer = self.database().run_command(command.clone()).await.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(!answer.contains_key("writeErrors"), "{command}: {answer}");
        answer
    }

    /// The time of a write that comes after everything so far; no view reads it.
    pub(super) async fn mark(&self) -> Timestamp {
        let mut session = self.client().start_session().await.expect("a session");
        let marks = self.database().collection::<Document>(MARKS);
        marks.insert_one(doc! {}).session(&mut session).await.expect("inserted");
        session.operation_time().expect("an answer has the time")
    }

    /// Waits until the facts of all writes so far are acknowledged; gives the fact store's token.
    pub(super) async fn settle(&self, process: &Process) -> String {
        let mark = position(self.mark().await);
        let answer = process.wait_position(&mark).await;
        answer["offset"].as_str().unwrap_or_default().to_owned()
    }

    /// What the queries return now, or at a cluster time.
    pub(super) async fn answers(&self, at: Option<Timestamp>) -> Facts {
        oracle::facts(&self.database(), &self.views, at).await
    }

    /// What the fact store of `process` holds, in one listing.
    pub(super) async fn stored(&self, process: &Process) -> Facts {
        let (status, body) = process.get("/api/facts").await;
        assert_eq!(status, 200, "{body}");
        let listed: Vec<Value> = serde_json::from_str(&body).expect("a list of facts");
        let mut facts: Facts = self.views.iter().map(|view| (view.predicate(), Default::default())).collect();
        for fact in listed {
            let predicate = fact["predicate"].as_str().expect("a name");
            let ids = fact["args"].as_array().expect("arguments").iter().map(|arg| arg["id"].as_str().expect("an id").to_owned());
            let (_, set) = facts.iter_mut().find(|(name, _)| **name == predicate).unwrap_or_else(|| panic!("whose is {fact}?"));
            assert!(set.insert(ids.collect()), "{fact} is there twice");
        }
        facts
    }

    /// Panics unless the fact store of `process` holds exactly what the queries return now.
    pub(super) async fn assert_equal(&self, process: &Process, context: &str) {
        let (stored, wanted) = (self.stored(process).await, self.answers(None).await);
        for view in &self.views {
            let (stored, wanted) = (&stored[view.predicate()], &wanted[view.predicate()]);
            let missing: Vec<_> = wanted.difference(stored).collect();
            let ghosts: Vec<_> = stored.difference(wanted).collect();
            if !missing.is_empty() || !ghosts.is_empty() {
                let status = process.status().await;
                panic!("{context}: {} lacks {missing:?} and has too much: {ghosts:?}; {status:#}", view.signature);
            }
        }
    }

    /// [`Self::settle`] and [`Self::assert_equal`].
    pub(super) async fn assert_settled(&self, process: &Process, context: &str) {
        self.settle(process).await;
        self.assert_equal(process, context).await;
    }
}

/// A position as `/v1/wait` takes it.
pub(super) fn position(time: Timestamp) -> String {
    format!("{}:{}", time.time, time.increment)
}

/// How many fact changes this process has delivered.
pub(super) async fn delivered(process: &Process) -> u64 {
    let (_, metrics) = process.get("/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix("factsync_delivered_facts_total "));
    line.map_or(0, |count| count.parse().expect("a count"))
}
