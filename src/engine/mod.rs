//! The engine: wires, spawns, names and joins every task of a run.
//!
//! ```text
//!  follow (one per source) ──events, EVENT_QUEUE──> ingest (one per source) ──> writer ──> state.db
//!      ^                                               │      │                   ^
//!      └────────────── durable position ───────────────┘    board              deliver ──> fact store
//!                                                             ^                   │
//!                       waiters, /v1/status, /metrics ────────┴───────────────────┘
//! ```
//!
//! Shutdown: the stop signal turns; sources end their streams and give their last acknowledgement a moment; the delivery
//! loop drops the attempt it is in (it will be repeated, which changes nothing); HTTP connections get
//! [`GRACE`] to finish; then everything is joined. Nothing has to be written at the end: what is not durable by then was not
//! acknowledged to anybody.

mod apply;
mod away;
mod backoff;
mod board;
mod clock;
mod compare;
mod crash;
mod deliver;
mod error;
mod flows;
mod inbox;
mod ingest;
mod parked;
mod start;
mod status;
#[cfg(test)]
mod tests;
mod writer;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use tracing::{error, info};

use crate::{
    config::{Config, SyncOptions},
    source::Follow,
    store::{Checkpoint, Store},
    target::FactStore,
    view::Guard,
};

pub use board::{Applied, Board, Delivered, Mode, TargetState};
pub use error::EngineError;
pub use status::{
    FactTypeStatus, HeldStatus, OutboxStatus, ParkedStatus, QuotaStatus, ReconcileStatus, SourceStatus, Status, TargetStatus,
};

use clock::SourceClock;
use deliver::Deliver;
use flows::Flows;
use ingest::Ingest;
use writer::Writer;

/// What the tasks have to end in after the stop signal; well inside the ten seconds that container runtimes give.
pub const GRACE: Duration = Duration::from_secs(8);

/// What a run needs beside its configuration.
pub struct Parts {
    /// The local store.
    pub store: Store,
    /// The checkpoint beside it.
    pub checkpoint: Checkpoint,
    /// Where facts go.
    pub target: Arc<dyn FactStore>,
    /// Where sorted runs are spilled.
    pub spool: PathBuf,
    /// One for each source of the configuration, in order.
    pub followers: Vec<Box<dyn Follow>>,
    /// The blast-radius guard.
    pub guard: Guard,
    /// The board, shared with HTTP.
    pub board: Arc<Board>,
}

/// Runs until `stop` turns `true`, or until something fails that only a restart or a person can mend.
pub async fn run(config: &Config, parts: Parts, stop: watch::Receiver<bool>) -> Result<(), EngineError> {
    let Parts { store, checkpoint, target, spool, followers, guard, board } = parts;
    let writer = Writer::new(store, board.clone());
    let checkpoint = Arc::new(checkpoint);
    let SyncOptions { reconcile_every, .. } = config.sync;
    // A failing task stops the others through a signal of its own.
    let (halt, stopped) = halt(stop);
    let mut tasks = JoinSet::new();
    let mut fact_types = BTreeMap::new();
    for (index, (source, follower)) in config.sources.iter().zip(followers).enumerate() {
        let views = writer.register(source).await?;
        board.registered(index, &views);
        fact_types.extend(views.iter().map(|view| (view.id, view.fact_type.clone())));
        let ingest = Ingest {
            reloads: vec![0; views.len()],
            clock: SourceClock::default(),
            resting: Flows::default(),
            index,
            name: source.name.clone(),
            views,
            writer: writer.clone(),
            checkpoint: checkpoint.clone(),
            board: board.clone(),
            target: target.clone(),
            spool: spool.clone(),
            guard,
            reconcile_every,
            stop: stopped.clone(),
        };
        tasks.spawn(ingest.run(follower));
    }
    board.spends(target.clone());
    let deliver = Deliver::new(writer, target, board, fact_types, stopped);
    tasks.spawn(deliver.run());
    join(tasks, &halt).await
}

/// A stop signal that turns with `stop` and can be turned here.
pub(in crate::engine) fn halt(mut stop: watch::Receiver<bool>) -> (watch::Sender<bool>, watch::Receiver<bool>) {
    let (halt, halted) = watch::channel(false);
    let forward = halt.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => { forward.send_replace(true); }
            () = forward.closed() => {}
        }
    });
    (halt, halted)
}

/// Joins every task; the first failure stops the others and is the run's.
async fn join(mut tasks: JoinSet<Result<(), EngineError>>, halt: &watch::Sender<bool>) -> Result<(), EngineError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = flatten(ended) {
            error!(reason = %error, "a task failed, stopping");
            halt.send_replace(true);
            outcome = outcome.and(Err(error));
        }
    }
    info!("stopped");
    outcome
}

fn flatten(ended: Result<Result<(), EngineError>, JoinError>) -> Result<(), EngineError> {
    ended.unwrap_or_else(|error| Err(EngineError::panicked(error)))
}
