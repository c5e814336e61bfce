//! Several sources in one process: each with its own position, slot and failure, and one fact store.
//!
//! The oracles are the databases, asked, and the files, read here.

mod changes;
mod failures;
mod mongo;
mod slots;
mod waiting;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::{
    eventually_async,
    factsync::Process,
    github::assert_holds,
    postgres::{Cluster, Major},
};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// What each database of these tests has.
const SCHEMA: &str = "CREATE TABLE member (id serial PRIMARY KEY, user_id text NOT NULL, role text NOT NULL);
    INSERT INTO member (user_id, role) VALUES ('1', 'admin'), ('2', 'viewer')";
/// What its facts are.
const QUERY: &str = "SELECT user_id, role FROM member";

/// A folder with configurations and files, and the state of their runs.
struct Desk {
    folder: TempDir,
    env: Vec<(String, String)>,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), env: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file in one step.
    fn put(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).expect("written");
        fs::rename(self.path("new"), self.path(name)).expect("renamed");
    }

    /// Writes `postgres.yaml`: each source of `of` has one fact type, `role_<fact>(User:_, String:_)`.
    fn postgres(&mut self, of: &[(&str, &str, &Database)]) {
        let mut yaml = String::from("version: 1\nsource: postgres\nfacts:\n");
        for (name, fact, _) in of {
            yaml += &format!("  \"role_{fact}(User:_, String:_)\":\n    db: {name}\n    query: {QUERY}\n");
        }
        yaml += "dbs:\n";
        for (name, _, database) in of {
            let variable = format!("{}_URL", name.to_uppercase());
            yaml += &format!("  {name}:\n    connection_string: ${variable}\n");
            self.env.retain(|(other, _)| *other != variable);
            self.env.push((variable, database.url.clone()));
        }
        self.put("postgres.yaml", &yaml);
    }

    /// Writes `csv.yaml`: each of `of` is a file `<name>.csv` and has one fact type, `member_<fact>(User:_, String:_)`.
    fn csv(&self, of: &[(&str, &str)], sync: &str) {
        let mut yaml = String::from("version: 1\nsource: csv\nfacts:\n");
        for (name, fact) in of {
            let path = self.csv_path(name);
            yaml += &format!("  \"member_{fact}(User:_, String:_)\":\n    path: {path}\n    fields: [user, role]\n");
        }
        self.put("csv.yaml", &(yaml + sync));
    }

    /// The name of the source that is `<name>.csv`.
    fn csv_path(&self, name: &str) -> String {
        self.path(&format!("{name}.csv")).display().to_string()
    }

    /// `factsync run` on the configurations `files`, with the same state each time.
    fn run(&self, files: &[&str], more: &[&str]) -> Process {
        let paths: Vec<String> = files.iter().map(|file| self.path(file).display().to_string()).collect();
        let state = self.path("state").display().to_string();
        let mut args = vec!["run", "--limits", "off", "--state", &state];
        args.extend(paths.iter().map(String::as_str));
        args.extend(more);
        let env: Vec<(&str, &str)> = self.env.iter().map(|(name, value)| (&**name, &**value)).collect();
        Process::spawn(&args, &env)
    }

    async fn started(&self, files: &[&str]) -> Process {
        let process = self.run(files, &[]);
        process.wait_ready().await;
        process
    }

    /// Waits for the file `<name>.csv` as it is, and compares its facts with it.
    async fn assert_csv(&self, process: &Process, name: &str, fact: &str, context: &str) {
        let path = self.path(&format!("{name}.csv"));
        wait(process, &self.csv_path(name), &digest(&path)).await;
        let text = fs::read_to_string(&path).expect("readable");
        let wanted: BTreeSet<Vec<String>> = text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect();
        assert_eq!(held(process, &format!("member_{fact}")).await, wanted, "{context}: {name}.csv has the right");
    }
}

/// A database of its own on some cluster.
struct Database {
    client: Client,
    url: String,
    name: String,
}

impl Database {
    async fn on(cluster: &Cluster) -> Self {
        let name = cluster.database();
        let client = cluster.client(&name).await;
        client.batch_execute(SCHEMA).await.expect("the schema runs");
        Self { client, url: cluster.url(&name), name }
    }

    /// The same after its server was away.
    async fn again(&mut self, cluster: &Cluster) {
        self.client = cluster.client(&self.name).await;
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits for all commits of the source `name` so far, and compares the facts with what the query returns.
    async fn assert_equal(&self, process: &Process, name: &str, fact: &str, context: &str) {
        let row = self.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position");
        wait(process, name, row.get(0)).await;
        let fact_type = format!("role_{fact}(User:_, String:_)").parse().expect("a signature");
        assert_holds(&self.client, [(fact_type, QUERY.to_owned())], process, context).await;
    }
}

/// What `sha256sum` prints.
fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    String::from_utf8(output.stdout).expect("hexadecimal").split(' ').next().expect("a digest").to_owned()
}

/// The ids of each fact of `predicate`.
async fn held(process: &Process, predicate: &str) -> BTreeSet<Vec<String>> {
    let ids = |fact: &Value| {
        let args = fact["args"].as_array().expect("arguments").iter();
        args.map(|arg| arg["id"].as_str().expect("a text").to_owned()).collect()
    };
    process.facts(predicate).await.iter().map(ids).collect()
}

/// Waits until the facts of `source` up to `position` are acknowledged.
async fn wait(process: &Process, source: &str, position: &str) {
    let query: String = form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("source", source), ("position", position), ("timeout_ms", "55000")])
        .finish();
    let (status, body) = process.get(&format!("/v1/wait?{query}")).await;
    assert_eq!(status, 200, "waiting for {position} of {source}: {body}\n{}", process.log());
}

/// The line of `source` in `/v1/status`.
async fn line(process: &Process, source: &str) -> Value {
    let status = process.status().await;
    let lines = status["sources"].as_array().expect("a list");
    lines.iter().find(|line| line["name"] == source).unwrap_or_else(|| panic!("there is no {source} in {status:#}")).clone()
}

/// Waits until `source` is in `state`; gives its line.
async fn in_state(process: &Process, source: &str, state: &str) -> Value {
    eventually_async(DEADLINE, &format!("source {source} is {state}"), async || {
        let line = line(process, source).await;
        (line["state"] == state).then_some(line)
    })
    .await
}
