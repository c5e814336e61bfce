//! Writers that never pause: random operations from several sessions, until a number of them is done.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mongodb::Client;
use tokio::task::JoinHandle;

use super::operations::{Kind, Outcome, Writer};
use crate::support::{eventually_async, github::Random};

/// For the writers to do what a test waits for, also while the server restarts.
const DEADLINE: Duration = Duration::from_secs(300);

/// A load on one database.
pub(super) struct Load {
    done: Arc<AtomicU64>,
    goal: u64,
    writers: Vec<JoinHandle<BTreeMap<Kind, u64>>>,
}

impl Load {
    /// `goal` operations by `writers` of them. `lossy`: the server may go away meanwhile, or forget a session.
    pub(super) async fn start(client: &Client, database: &str, random: &mut Random, writers: u64, goal: u64, lossy: bool) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..writers {
            let mut random = random.split();
            let (client, database, done) = (client.clone(), database.to_owned(), done.clone());
            tasks.push(tokio::spawn(async move {
                let mut worked = BTreeMap::new();
                let mut writer = Writer::new(&client, &database, random.split()).await;
                while done.fetch_add(1, Ordering::Relaxed) < goal {
                    if writer.step().await == Outcome::Lost {
                        assert!(lossy, "the server is gone");
                        add(&mut worked, &writer.done);
                        writer = Writer::new(&client, &database, random.split()).await;
                    }
                }
                add(&mut worked, &writer.done);
                worked
            }));
        }
        Self { done, goal, writers: tasks }
    }

    /// Waits until `count` more operations have been tried, or all: the unit of time of a random moment.
    pub(super) async fn goes_on(&self, count: u64) {
        let goal = (self.done.load(Ordering::Relaxed) + count).min(self.goal);
        eventually_async(DEADLINE, "the writers go on", async || (self.done.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// Ends it before its time.
    pub(super) async fn stop(self) {
        self.done.store(self.goal, Ordering::Relaxed);
        self.finish().await;
    }

    /// Waits for the last of them and tells how often each kind worked.
    pub(super) async fn finish(self) -> BTreeMap<Kind, u64> {
        let mut worked = BTreeMap::new();
        for writer in self.writers {
            add(&mut worked, &writer.await.expect("a writer does not panic"));
        }
        worked
    }
}

/// Adds `more` to `counts`.
pub(super) fn add(counts: &mut BTreeMap<Kind, u64>, more: &BTreeMap<Kind, u64>) {
    for (kind, count) in more {
        *counts.entry(*kind).or_default() += count;
    }
}
