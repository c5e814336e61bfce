//! Writers that never pause: random transactions from several connections, until they are told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use super::{
    POLL_INTERVAL, eventually_async,
    github::{Github, Random},
};

/// For the writers to commit what a test waits for, also while the server restarts.
const DEADLINE: Duration = Duration::from_secs(60);

/// A load on the example's database.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` of them.
    pub(crate) fn start(github: &Github, random: &mut Random, writers: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |random: Random| tokio::spawn(write(github.url(), random, stop.clone(), done.clone()));
        let writers = (0..writers).map(|_| writer(random.split())).collect();
        Self { stop, done, writers }
    }

    /// Waits until `count` more transactions have ended: the unit of time of a random moment.
    pub(crate) async fn goes_on(&self, count: u64) {
        let goal = self.done.load(Ordering::Relaxed) + count;
        eventually_async(DEADLINE, "the writers go on", async || (self.done.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// Stops them and tells how many transactions ended.
    pub(crate) async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.expect("a writer does not panic");
        }
        self.done.load(Ordering::Relaxed)
    }
}

/// One connection after the other, since a test may restart the server.
async fn write(url: String, mut random: Random, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            tokio::time::sleep(POLL_INTERVAL).await;
            continue;
        };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            // One that violates a constraint rolls back, as an application's would.
            let outcome = client.batch_execute(&random.transaction()).await;
            if outcome.is_err() && client.batch_execute("ROLLBACK").await.is_err() {
                break;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}
