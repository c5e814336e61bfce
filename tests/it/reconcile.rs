//! `factsync reconcile`, the binary itself, between real sources and a real fact store.

mod drift;
mod faults;
mod flags;
mod sources;
mod terminal;

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::factsync::{DEVELOPMENT_KEY, Factsync, Output, Process, client};

/// A fact store, and a folder of configurations that are reconciled with it.
struct Desk {
    store: Process,
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self::with_limits("off")
    }

    fn with_limits(limits: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { store: Process::spawn(&["serve", "--limits", limits], &[]), folder }
    }

    /// Writes a file and gives its path.
    fn write(&self, name: &str, text: &str) -> String {
        write(self.folder.path(), name, text)
    }

    /// A configuration with one fact type, `member(User:_, parent, Team:_)`, and a file with `rows` for it; its path.
    fn members<'a>(&self, rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
        let lines: String = rows.into_iter().map(|(user, team)| format!("{user},{team}\n")).collect();
        let csv = self.write("members.csv", &format!("user,team\n{lines}"));
        let yaml =
            format!("version: 1\nsource: csv\nfacts:\n  member(User:_, parent, Team:_):\n    path: {csv}\n    fields: [user, team]\n");
        self.write("members.yaml", &yaml)
    }

    /// `reconcile` with `args` against the store.
    fn reconcile(&self, args: &[&str]) -> Output {
        self.reconcile_in(&[], args)
    }

    /// [`Self::reconcile`] with environment variables.
    fn reconcile_in(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        let args = [&["reconcile", "--target", self.store.url()], args].concat();
        Factsync::run(&args, env)
    }

    /// Applies changesets through the API, as another client of the store would.
    #[expect(clippy::disallowed_methods, reason = "the answer is a line")]
    async fn batch(&self, changesets: Value) {
        let request = client().post(format!("{}/api/batch", self.store.url())).bearer_auth(DEVELOPMENT_KEY);
        let response = request.header("content-type", "application/json").body(changesets.to_string()).send().await.expect("an answer");
        let status = response.status();
        assert!(status.is_success(), "{status}: {}", response.text().await.expect("a body"));
    }

    /// The facts of `predicate`, as `Type:id` texts, sorted.
    async fn stored(&self, predicate: &str) -> Vec<String> {
        let mut facts: Vec<String> = self.store.facts(predicate).await.iter().map(told).collect();
        facts.sort();
        facts
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).expect("written");
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// `{"predicate": …, "args": […]}` from `predicate` and `Type:id` texts.
fn fact(predicate: &str, args: &[&str]) -> Value {
    let arg = |text: &&str| {
        let (type_name, id) = text.split_once(':').expect("Type:id");
        json!({"type": type_name, "id": id})
    };
    json!({"predicate": predicate, "args": args.iter().map(arg).collect::<Vec<_>>()})
}

/// The way back: `predicate(Type:id, …)`.
fn told(fact: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("null").to_owned();
    let args: Vec<String> =
        fact["args"].as_array().expect("arguments").iter().map(|arg| format!("{}:{}", text(&arg["type"]), text(&arg["id"]))).collect();
    format!("{}({})", text(&fact["predicate"]), args.join(", "))
}

/// Each fact type of a report with how many facts it lists to add and to remove.
fn summary(report: &Value) -> Vec<(String, usize, usize)> {
    assert_eq!(report["type"], "facts", "{report}");
    let length = |list: &Value| list.as_array().unwrap_or_else(|| panic!("no list in {report}")).len();
    let entries = report["fact_types"].as_array().expect("entries").iter();
    entries.map(|entry| (told(&entry["fact_type"]), length(&entry["add"]), length(&entry["remove"]))).collect()
}

/// Checks that a report lists no change.
fn assert_nothing_left(report: &Value) {
    assert!(summary(report).iter().all(|(_, add, remove)| (*add, *remove) == (0, 0)), "{report}");
}
