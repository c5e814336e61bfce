//! An application of a test's own: its schema, its fact types and queries, and a factsync that follows it.
//!
//! factsync connects as the role that `factsync setup` prints, which reads what the queries need and owns nothing; an administrator runs
//! `setup` before each run, as the README asks. [`App::into_owner`] is for what only an owner's factsync does: mending the publication
//! itself.

use std::path::PathBuf;

use factsync::fact::FactType;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    factsync::{DEVELOPMENT_KEY, Factsync, Process, client},
    github::assert_holds,
    postgres::{Cluster, Major},
};

/// The role of `sql/role.sql` in tests.
pub(crate) const ROLE: &str = "sync";

/// As whom factsync connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// As [`ROLE`], with the privileges of `factsync setup`.
    LeastPrivilege,
    /// As the superuser, who owns the tables.
    Owner,
}

/// A database on a cluster of its own, and a configuration for it.
pub(crate) struct App {
    pub(crate) cluster: Cluster,
    pub(crate) database: String,
    pub(crate) client: tokio_postgres::Client,
    facts: Vec<(FactType, String)>,
    access: Access,
    folder: TempDir,
}

impl App {
    /// Runs `schema` and writes a configuration of `facts`, each a signature and a query; `sync` goes into the block of that name.
    pub(crate) async fn start(schema: &str, facts: &[(&str, &str)], sync: &str) -> Self {
        Self::start_on(Major::V15, schema, facts, sync).await
    }

    /// The same on another server.
    pub(crate) async fn start_on(major: Major, schema: &str, facts: &[(&str, &str)], sync: &str) -> Self {
        Self::on(Cluster::start(major), schema, facts, sync).await
    }

    /// The same on a server of the test's own.
    pub(crate) async fn on(cluster: Cluster, schema: &str, facts: &[(&str, &str)], sync: &str) -> Self {
        let database = cluster.database();
        let client = cluster.client(&database).await;
        client.batch_execute(schema).await.expect("the schema runs");
        let folder = tempfile::tempdir().expect("a folder");
        let mut app = Self { facts: Vec::new(), access: Access::LeastPrivilege, cluster, database, client, folder };
        app.configure(facts, sync);
        app
    }

    /// The same with a factsync that owns the tables and mends the publication by itself.
    pub(crate) fn into_owner(mut self) -> Self {
        self.access = Access::Owner;
        self
    }

    /// Other fact types for the next [`Self::run`].
    pub(crate) fn configure(&mut self, facts: &[(&str, &str)], sync: &str) {
        let parsed = facts.iter().map(|(signature, query)| (signature.parse().expect("a signature"), (*query).to_owned()));
        self.facts = parsed.collect();
        let mut yaml = String::from("version: 1\nsource: postgres\nfacts:\n");
        for (signature, query) in facts {
            yaml.push_str(&format!("  {signature}:\n    db: app\n    query: |-\n      {query}\n"));
        }
        yaml.push_str(&format!("dbs:\n  app:\n    connection_string: $DATABASE_URL\nsync:\n  slot: app\n  {sync}\n"));
        std::fs::write(self.config(), yaml).expect("the configuration can be written");
    }

    /// Lets [`Self::assert_equal`] compare these of the configured fact types only.
    pub(crate) fn compare_only(&mut self, facts: &[(&str, &str)]) {
        let listed = |of: &FactType| facts.iter().any(|(signature, _)| of.to_string() == *signature);
        self.facts.retain(|(of, _)| listed(of));
    }

    /// Goes on with another server in the place of the first, which is gone.
    pub(crate) async fn move_to(&mut self, cluster: Cluster) {
        self.client = cluster.client(&self.database).await;
        self.cluster = cluster;
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("app.yaml")
    }

    /// The state directory of [`Self::run`].
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The database as factsync connects to it.
    pub(crate) fn url(&self) -> String {
        match self.access {
            Access::LeastPrivilege => self.owner_url().replace("postgres@", &format!("{ROLE}@")),
            Access::Owner => self.owner_url(),
        }
    }

    /// The same as the superuser.
    pub(crate) fn owner_url(&self) -> String {
        self.cluster.url(&self.database)
    }

    /// What an administrator does before a run. Where it fails, so does the run, and says why.
    pub(crate) fn set_up(&self) {
        if self.access == Access::LeastPrivilege {
            let (config, state) = (self.config(), self.state());
            let (config, state) = (config.to_str().expect("UTF-8"), state.to_str().expect("UTF-8"));
            let args = ["setup", config, "--apply", "--role", ROLE, "--state", state];
            Factsync::run(&args, &[("DATABASE_URL", &self.owner_url())]);
        }
    }

    /// `factsync run` with the same state directory each time.
    pub(crate) fn run(&self, more: &[&str]) -> Process {
        self.run_with(more, &[("DATABASE_URL", &self.url())])
    }

    /// The same in another environment.
    pub(crate) fn run_with(&self, more: &[&str], env: &[(&str, &str)]) -> Process {
        self.set_up();
        let (config, state) = (self.config(), self.state());
        let mut args = vec!["run", config.to_str().expect("UTF-8"), "--limits", "off"];
        if !more.contains(&"--state") {
            args.extend(["--state", state.to_str().expect("UTF-8")]);
        }
        args.extend(more);
        Process::spawn(&args, env)
    }

    /// [`Self::run`], once it has caught up.
    pub(crate) async fn started(&self, more: &[&str]) -> Process {
        let process = self.run(more);
        process.wait_ready().await;
        process
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// One value.
    pub(crate) async fn ask(&self, sql: &str) -> String {
        let messages = self.client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let mut rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        rows.next().unwrap_or_default().to_owned()
    }

    pub(crate) async fn position(&self) -> String {
        self.ask("SELECT pg_current_wal_lsn()").await
    }

    /// Runs `sql` and waits until its facts are acknowledged; gives the fact store's token.
    pub(crate) async fn commit(&self, process: &Process, sql: &str) -> String {
        self.sql(sql).await;
        self.settle(process).await
    }

    /// Waits until the facts of all commits so far are acknowledged; gives the fact store's token.
    pub(crate) async fn settle(&self, process: &Process) -> String {
        let answer = process.wait_position(&self.position().await).await;
        answer["offset"].as_str().unwrap_or_default().to_owned()
    }

    /// Panics unless the fact store of `process` holds exactly what the queries return now.
    pub(crate) async fn assert_equal(&self, process: &Process, context: &str) {
        assert_holds(&self.client, self.facts.clone(), process, context).await;
    }
}

/// The line of `signature` in `/v1/status`.
pub(crate) fn fact_type<'a>(status: &'a Value, signature: &str) -> &'a Value {
    let lines = status["fact_types"].as_array().expect("a list");
    let found = lines.iter().find(|line| line["fact_type"] == signature);
    found.unwrap_or_else(|| panic!("there is no {signature} in {status:#}"))
}

/// A fact in the API's JSON, from a predicate and `Type:id` arguments.
pub(crate) fn fact(predicate: &str, args: &[&str]) -> Value {
    let arg = |text: &&str| {
        let (type_name, id) = text.split_once(':').expect("Type:id");
        json!({ "type": type_name, "id": id })
    };
    json!({ "predicate": predicate, "args": args.iter().map(arg).collect::<Vec<_>>() })
}

/// Inserts facts through the API of `process`, as another program would.
pub(crate) async fn insert(process: &Process, facts: &[Value]) {
    write(process, "inserts", facts).await;
}

/// Deletes them.
pub(crate) async fn delete(process: &Process, facts: &[Value]) {
    write(process, "deletes", facts).await;
}

async fn write(process: &Process, how: &str, facts: &[Value]) {
    let request = client().post(format!("{}/api/batch", process.url())).bearer_auth(DEVELOPMENT_KEY);
    let body = json!([{ (how): facts }]).to_string();
    let response = request.header("content-type", "application/json").body(body).send().await.expect("the API answers");
    assert_eq!(response.status().as_u16(), 200, "{facts:?}");
}
