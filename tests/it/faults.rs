//! The failure matrix of delivery: `factsync run` against a fact store that does, request by request, what a test says.
//!
//! After each failure the fact store holds the rows of the source and nothing else, nothing is parked or left to send, and whatever
//! was sent twice under one `X-Request-ID` was the same batch. Failures that leave it open whether a batch was applied must be
//! repeated under its own id; those that leave no doubt (429, a refused key or connection, 404) may also be followed by another batch.
//!
//! What one request meets is tested closer to the client in `oso_target`, names that do not resolve in the client's own tests.

mod answers;
mod connections;
mod deaths;
mod fallback;
mod keys;
mod refusals;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{eventually_async, factsync::Process};
use store::Store;

const DEADLINE: Duration = Duration::from_secs(60);

/// A source of users, a fact store that follows a script, and the factsync between them.
struct Scene {
    folder: TempDir,
    store: Store,
    process: Process,
}

/// What the test says of a source before there is a factsync.
fn source(users: &[&str], sync: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("members.csv");
    let yaml =
        format!("version: 1\nsource: csv\nfacts:\n  has_role(User:_, String:_):\n    path: {}\n    fields: [user, role]\n", path.display());
    std::fs::write(folder.path().join("members.yaml"), yaml + sync).expect("written");
    write(&folder, users);
    folder
}

fn config(folder: &TempDir) -> String {
    folder.path().join("members.yaml").to_str().expect("UTF-8").to_owned()
}

fn write(folder: &TempDir, users: &[&str]) {
    let rows: String = users.iter().map(|user| format!("{user},member\n")).collect();
    let next = folder.path().join("next.csv");
    std::fs::write(&next, format!("user,role\n{rows}")).expect("written");
    std::fs::rename(next, folder.path().join("members.csv")).expect("renamed");
}

impl Scene {
    /// In step, with `users` in source and fact store.
    async fn start(users: &[&str]) -> Self {
        Self::start_with(users, &[], &[]).await
    }

    /// The same with more arguments and another environment.
    async fn start_with(users: &[&str], args: &[&str], env: &[(&str, &str)]) -> Self {
        let scene = Self::launch(Store::start(&[]).await, users, args, env);
        scene.process.wait_ready().await;
        scene.holds(users).await;
        scene.store.forget();
        scene
    }

    /// The same, comparing the fact store every second.
    async fn start_comparing(users: &[&str]) -> Self {
        let folder = source(users, "sync:\n  reconcile_every: 1s\n");
        let scene = Self::over(folder, Store::start(&[]).await, &[], &[]);
        scene.process.wait_ready().await;
        scene.holds(users).await;
        scene
    }

    /// Just started, with `store` as it is.
    fn launch(store: Store, users: &[&str], args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::over(source(users, ""), store, args, env)
    }

    fn over(folder: TempDir, store: Store, args: &[&str], env: &[(&str, &str)]) -> Self {
        let process = Self::follower(&folder, &store, args, env);
        Self { folder, store, process }
    }

    /// A factsync between the two.
    fn follower(folder: &TempDir, store: &Store, args: &[&str], env: &[(&str, &str)]) -> Process {
        let (config, url) = (config(folder), store.url());
        let all = [&["run", &config, "--target", &url, "--plan", "unlimited"], args].concat();
        Process::spawn(&all, env)
    }

    /// The source becomes `users`.
    fn write(&self, users: &[&str]) {
        write(&self.folder, users);
    }

    /// Waits until the fact store holds `users` and nothing is left to send.
    async fn holds(&self, users: &[&str]) {
        let users: BTreeSet<String> = users.iter().map(|user| (*user).to_owned()).collect();
        let what = format!("the fact store holds {users:?}");
        eventually_async(DEADLINE, &what, async || (self.store.users() == users && self.outbox().await["facts"] == json!(0)).then_some(()))
            .await;
    }

    /// The whole of what must hold after a failure.
    async fn recovered(&self, users: &[&str]) {
        self.holds(users).await;
        self.process.wait_ready().await;
        assert_eq!(self.outbox().await["parked"], json!(0), "{}", self.process.log());
        self.assert_repetitions();
    }

    /// One id, one batch.
    fn assert_repetitions(&self) {
        let mut batches = BTreeMap::new();
        for attempt in self.store.attempts() {
            let first = batches.entry(attempt.id.clone()).or_insert_with(|| attempt.body.clone());
            assert_eq!(first, &attempt.body, "two batches have the id {}", attempt.id);
        }
    }

    /// How many attempts there were, all of them at one batch under one id.
    fn repetitions(&self) -> usize {
        let attempts = self.store.attempts();
        let ids: BTreeSet<&str> = attempts.iter().map(|attempt| attempt.id.as_str()).collect();
        assert_eq!(ids.len(), 1, "{attempts:?}");
        self.assert_repetitions();
        attempts.len()
    }

    async fn outbox(&self) -> Value {
        self.process.status().await["outbox"].clone()
    }

    /// Waits until `/readyz` says 503, and why: a text that holds `want`.
    async fn not_ready(&self, want: &str) {
        eventually_async(DEADLINE, &format!("/readyz says {want}"), async || {
            let (status, body) = self.process.get("/readyz").await;
            (status == 503 && body.contains(want)).then_some(())
        })
        .await;
    }
}
