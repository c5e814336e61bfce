//! MongoDB connections as production has them: TLS, users, certificates, the role of `setup`, and what `check` says about all of it.
//!
//! Every statement is about what a person sees: the exit code and the text of the real binary against a real server.

mod checks;
mod election;
mod login;
mod role;
mod tls;

use tempfile::TempDir;

use crate::support::factsync::{Factsync, Output, Process};

/// What no output may hold: every password of these tests has it.
const SECRET: &str = "pass-word";

/// A config with one fact type over the collection `users` of the database that `$MONGODB_URL` names.
struct Config {
    folder: TempDir,
    query: String,
}

impl Config {
    fn new() -> Self {
        Self::reading("users", "find: {}")
    }

    fn reading(collection: &str, query: &str) -> Self {
        let query = format!("{{db: app, collection: {collection}, query: {{{query}}}, fields: [_id, role]}}");
        Self { folder: tempfile::tempdir().expect("a folder"), query }
    }

    /// The path of the file.
    fn written(&self) -> String {
        let path = self.folder.path().join("mongo.yaml");
        let facts = format!("  has_role(User:_, String:_): {}\n", self.query);
        let yaml = format!("version: 1\nsource: mongodb\nfacts:\n{facts}dbs:\n  app: {{connection_string: $MONGODB_URL}}\n");
        std::fs::write(&path, yaml).expect("written");
        path.display().to_string()
    }

    fn run(&self, command: &[&str], uri: &str) -> Output {
        let output = Factsync::run(&[command, &[&self.written()]].concat(), &[("MONGODB_URL", uri)]);
        let text = format!("{}{}", output.stdout, output.stderr);
        assert!(!text.contains(SECRET), "{text}");
        output
    }

    /// `run`, until the process is dropped.
    fn follow(&self, uri: &str) -> Process {
        Process::spawn(&["run", &self.written()], &[("MONGODB_URL", uri)])
    }

    fn check(&self, uri: &str) -> Output {
        self.run(&["check"], uri)
    }

    /// The facts that `reconcile` would add, `USER role`, in order; it has to succeed.
    fn reconciled(&self, uri: &str) -> Vec<String> {
        let output = self.run(&["reconcile"], uri).expect_code(0);
        let json = output.json();
        let added = json["fact_types"][0]["add"].as_array().unwrap_or_else(|| panic!("{json}"));
        let id = |fact: &serde_json::Value, n: usize| fact["args"][n]["id"].as_str().expect("an id").to_owned();
        let mut facts: Vec<String> = added.iter().map(|fact| format!("{} {}", id(fact, 0), id(fact, 1))).collect();
        facts.sort();
        facts
    }
}

/// Both commands fail, and tell every one of `wanted`.
fn refused(uri: &str, wanted: &[&str]) {
    let config = Config::new();
    for command in ["check", "reconcile"] {
        let output = config.run(&[command], uri).expect_code(1);
        let text = format!("{}{}", output.stdout, output.stderr);
        for wanted in wanted {
            assert!(text.contains(wanted), "{command} does not say \"{wanted}\": {text}");
        }
    }
}
