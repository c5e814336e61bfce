//! Elections: a replica set whose primary steps down, dies and comes back, followed all the while.
//!
//! One factsync reads from the primary, another one from secondaries; the new primary's own answers are the truth for both. Nothing is
//! read anew, for the oplog has it all. What a primary took and nobody else had is rolled back, and must never have been a fact.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mongodb::{
    Client, ClientSession, Database,
    bson::{Document, Timestamp, doc},
    error::{Error, ErrorKind, RETRYABLE_WRITE_ERROR, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT},
    options::{Acknowledgment, WriteConcern},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{
    app::position,
    operations::index,
    oracle,
    views::{self, View},
};
use crate::support::{eventually_async, factsync::Process, github::Random, replica_set::ReplicaSet};

/// The database that everything is about.
const DATABASE: &str = "elections";
/// For the writers to go on after an election.
const DEADLINE: Duration = Duration::from_secs(90);
/// What the connection strings add: a primary is read from, or a secondary as long as there is one.
const PREFERENCES: [&str; 2] = ["", "&readPreference=secondaryPreferred"];

/// A replica set, and a factsync for each of [`PREFERENCES`].
struct Scene {
    set: ReplicaSet,
    client: Client,
    views: Vec<View>,
    processes: Vec<Process>,
    folder: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let set = ReplicaSet::start(3).await;
        let client = set.client().await;
        for collection in ["users", "repos"] {
            client.database(DATABASE).run_command(index(collection)).await.expect("an index, and a collection for it");
        }
        let mut views = views::all();
        views.retain(|view| ["has_role", "hinto_owner", "has_grant", "owns", "is_counted"].contains(&view.predicate()));
        let folder = tempfile::tempdir().expect("a folder");
        let facts: Map<String, Value> = views.iter().map(|view| (view.signature.to_owned(), view.config())).collect();
        let dbs = json!({ "app": { "connection_string": "$MONGODB_URL" } });
        let yaml = json!({ "version": 1, "source": "mongodb", "facts": facts, "dbs": dbs });
        std::fs::write(folder.path().join("app.yaml"), yaml.to_string()).expect("written");
        let mut scene = Self { set, client, views, processes: Vec::new(), folder };
        scene.follow().await;
        scene
    }

    /// Starts a factsync for each of [`PREFERENCES`], with a state of its own.
    async fn follow(&mut self) {
        let config = self.folder.path().join("app.yaml");
        for preference in PREFERENCES {
            let args = ["run", config.to_str().expect("UTF-8"), "--limits", "off"];
            let process = Process::spawn(&args, &[("MONGODB_URL", &(self.set.uri(DATABASE) + preference))]);
            process.wait_ready().await;
            self.processes.push(process);
        }
    }

    fn database(&self) -> Database {
        self.client.database(DATABASE)
    }

    /// The time of a write that a majority has, after everything so far.
    async fn mark(&self) -> Timestamp {
        let mut session = self.client.start_session().await.expect("a session");
        let marks = self.database().collection::<Document>("marks");
        marks.insert_one(doc! {}).write_concern(WriteConcern::majority()).session(&mut session).await.expect("a majority has it");
        session.operation_time().expect("an answer has the time")
    }

    /// Waits for every write so far, and compares the facts of each process with the primary's answers.
    async fn assert_settled(&self, context: &str) {
        let last = self.mark().await;
        let wanted = oracle::facts(&self.database(), &self.views, None).await;
        assert!(wanted.values().any(|rows| !rows.is_empty()), "{context}: there is nothing to compare");
        for (process, preference) in self.processes.iter().zip(PREFERENCES.into_iter().cycle()) {
            process.wait_position(&position(last)).await;
            for view in &self.views {
                let (stored, wanted) = (stored(process, view.predicate()).await, &wanted[view.predicate()]);
                let missing: Vec<_> = wanted.difference(&stored).collect();
                let ghosts: Vec<_> = stored.difference(wanted).collect();
                assert!(
                    missing.is_empty() && ghosts.is_empty(),
                    "{context} {preference}: {} lacks {missing:?}, has too much: {ghosts:?}",
                    view.signature
                );
            }
        }
    }

    /// Panics if anything was read anew.
    fn assert_followed(&self) {
        for (process, preference) in self.processes.iter().zip(PREFERENCES.into_iter().cycle()) {
            let log = process.log();
            let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
            let (anew, lost) = (count("reading every view"), count("position lost"));
            eprintln!("{preference:?}: lost {} times, views changed {} times", count("source lost"), count("views changed"));
            assert_eq!((anew, lost, count("views changed")), (1, 0, 0), "{preference}: a snapshot was taken anew:\n{log}");
        }
    }
}

/// The ids of each fact of `predicate`.
async fn stored(process: &Process, predicate: &str) -> BTreeSet<Vec<String>> {
    let ids = |fact: &Value| {
        let args = fact["args"].as_array().expect("arguments").iter();
        args.map(|arg| arg["id"].as_str().expect("a text").to_owned()).collect()
    };
    process.facts(predicate).await.iter().map(ids).collect()
}

/// Transactions of some writers until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    writers: Vec<JoinHandle<u64>>,
}

impl Load {
    fn start(client: &Client, random: &mut Random) -> Self {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |random: Random| tokio::spawn(write(client.clone(), random, stop.clone(), committed.clone()));
        let writers = (0..2).map(|_| writer(random.split())).collect();
        Self { stop, committed, writers }
    }

    /// Waits until `count` more transactions are acknowledged.
    async fn goes_on(&self, count: u64) {
        let goal = self.committed.load(Ordering::Relaxed) + count;
        eventually_async(DEADLINE, "transactions are acknowledged", async || {
            (self.committed.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    /// How many were acknowledged, and of how many nobody knows or nothing has come.
    async fn finish(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = 0;
        for writer in self.writers {
            failed += writer.await.expect("a writer does not panic");
        }
        (self.committed.load(Ordering::Relaxed), failed)
    }
}

async fn write(client: Client, mut random: Random, stop: Arc<AtomicBool>, committed: Arc<AtomicU64>) -> u64 {
    let mut failed = 0;
    while !stop.load(Ordering::Relaxed) {
        let outcome = match client.start_session().await {
            Ok(mut session) => transaction(&client.database(DATABASE), &mut session, &mut random).await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => drop(committed.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                let labels = [TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, RETRYABLE_WRITE_ERROR];
                let passes = labels.iter().any(|label| error.contains_label(label));
                assert!(passes || matches!(&*error.kind, ErrorKind::ServerSelection { .. } | ErrorKind::Io(_)), "{error}");
                failed += 1;
            }
        }
    }
    failed
}

/// Writes to both collections over few ids, all or nothing, acknowledged by a majority.
async fn transaction(database: &Database, session: &mut ClientSession, random: &mut Random) -> Result<(), Error> {
    let (users, repos) = (database.collection::<Document>("users"), database.collection::<Document>("repos"));
    session.start_transaction().write_concern(WriteConcern::majority()).await?;
    for _ in 0..=random.below(3) {
        let (user, repo) = (format!("u{}", random.below(8)), format!("r{}", random.below(8)));
        let set = doc! { "$set": { "role": format!("role-{}", random.below(3)), "active": random.below(3) > 0 } };
        let owned = doc! { "$set": { "owner": format!("u{}", random.below(8)), "n": 1 } };
        match random.below(4) {
            0 => users.delete_one(doc! { "_id": user }).session(&mut *session).await.map(|_| ())?,
            1 => repos.delete_many(doc! { "owner": user }).session(&mut *session).await.map(|_| ())?,
            _ => users.update_one(doc! { "_id": user }, set).upsert(true).session(&mut *session).await.map(|_| ())?,
        }
        repos.update_one(doc! { "_id": repo }, owned).upsert(true).session(&mut *session).await?;
    }
    session.commit_transaction().await
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_lose_no_change_and_nothing_is_read_anew() {
    let mut random = Random::new("elections");
    let mut scene = Scene::start().await;
    let mut down = None;
    for round in 0..3 {
        let load = Load::start(&scene.client, &mut random);
        load.goes_on(random.below(30)).await;
        if let Some(member) = down.take() {
            scene.set.restart(member).await;
            load.goes_on(random.below(30)).await;
        }
        let context = if round % 2 == 0 {
            format!("round {round}: {} stepped down", scene.set.step_down().await)
        } else {
            let killed = scene.set.kill_primary().await;
            down = Some(killed);
            format!("round {round}: {killed} was killed")
        };
        load.goes_on(1 + random.below(30)).await;
        let (committed, failed) = load.finish().await;
        eprintln!("{context}; {committed} transactions were acknowledged, {failed} were not");
        scene.assert_settled(&context).await;
    }
    each_member_dies(&mut scene, &mut random).await;
    scene.assert_followed();
    for (process, preference) in scene.processes.iter().zip(PREFERENCES) {
        assert!(process.log().contains("source lost"), "{preference:?} has not noticed:\n{}", process.log());
    }
}

/// All members die, the primary last, each as soon as the one before is back: who reads from secondaries has to go on with one that may
/// be behind.
async fn each_member_dies(scene: &mut Scene, random: &mut Random) {
    let primary = scene.set.primary().await;
    let load = Load::start(&scene.client, random);
    for member in (0..3).filter(|member| *member != primary).chain([primary]) {
        load.goes_on(random.below(30)).await;
        scene.set.kill(member);
        load.goes_on(1 + random.below(30)).await;
        scene.set.restart(member).await;
        is_secondary(&scene.set, member).await;
    }
    load.finish().await;
    scene.assert_settled("each member died").await;
}

async fn is_secondary(set: &ReplicaSet, member: usize) {
    eventually_async(DEADLINE, "it is a secondary", async || {
        let hello = set.direct(member).await.database("admin").run_command(doc! { "hello": 1 }).await.ok()?;
        hello.get_bool("secondary").unwrap_or(false).then_some(())
    })
    .await;
}

/// A primary whose secondaries do not follow takes writes that nobody else will ever have, if they ask for no majority: a grant and a
/// revocation. They are rolled back, and no fact has shown them.
#[tokio::test(flavor = "multi_thread")]
async fn elections_what_is_rolled_back_was_never_a_fact() {
    let mut scene = Scene::start().await;
    let users = scene.database().collection::<Document>("users");
    users.insert_many([doc! { "_id": "ann", "role": "admin" }, doc! { "_id": "bob", "role": "guest" }]).await.expect("inserted");
    scene.assert_settled("before").await;
    let before = BTreeSet::from([["ann", "admin"], ["bob", "guest"]].map(|row| row.map(str::to_owned).to_vec()));

    let old = scene.set.primary().await;
    let others: Vec<usize> = (0..3).filter(|member| *member != old).collect();
    for member in &others {
        producing(&scene.set, *member, "alwaysOn").await;
    }
    let mut session = scene.client.start_session().await.expect("a session");
    let alone = || WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
    users
        .insert_one(doc! { "_id": "eve", "role": "admin" })
        .write_concern(alone())
        .session(&mut session)
        .await
        .expect("the primary has it");
    users.delete_one(doc! { "_id": "ann" }).write_concern(alone()).session(&mut session).await.expect("the primary has it");
    let lonely = session.operation_time().expect("a time");
    assert_eq!(names(&scene.set, old).await, ["bob", "eve"], "the writes were taken");
    // Who comes only now has not seen them either.
    scene.follow().await;
    for (process, preference) in scene.processes.iter().zip(PREFERENCES.into_iter().cycle()) {
        let (status, body) = process.get(&format!("/v1/wait?position={}&timeout_ms=1500", position(lonely))).await;
        assert_eq!(status, 504, "{preference}: {body}");
        assert_eq!(stored(process, "has_role").await, before, "{preference}: what only one member has");
    }

    scene.set.kill(old);
    for member in &others {
        producing(&scene.set, *member, "off").await;
    }
    assert_ne!(scene.set.primary().await, old);
    for process in &scene.processes {
        assert_eq!(stored(process, "has_role").await, before);
    }
    users.update_one(doc! { "_id": "bob" }, doc! { "$set": { "role": "owner" } }).await.expect("updated");
    scene.assert_settled("with a new primary").await;
    scene.set.restart(old).await;
    eventually_async(DEADLINE, "the old primary has rolled back", async || (names(&scene.set, old).await == ["ann", "bob"]).then_some(()))
        .await;
    users.delete_one(doc! { "_id": "ann" }).await.expect("deleted");
    scene.assert_settled("after the rollback").await;
    for process in &scene.processes {
        assert_eq!(stored(process, "has_role").await, BTreeSet::from([["bob", "owner"].map(str::to_owned).to_vec()]));
    }
    scene.assert_followed();
}

/// Has a secondary stop or start to fetch what the primary writes.
async fn producing(set: &ReplicaSet, member: usize, stopped: &str) {
    let command = doc! { "configureFailPoint": "stopReplProducer", "mode": stopped };
    set.direct(member).await.database("admin").run_command(command).await.expect("a fail point");
}

/// The users that one member has, whether or not others have them; none while it cannot be read.
async fn names(set: &ReplicaSet, member: usize) -> Vec<String> {
    let command = doc! { "distinct": "users", "key": "_id", "readConcern": { "level": "local" } };
    let answer = set.direct(member).await.database(DATABASE).run_command(command).await.unwrap_or_default();
    answer.get_array("values").map(|ids| ids.iter().map(|id| id.as_str().expect("a text").to_owned()).collect()).unwrap_or_default()
}
