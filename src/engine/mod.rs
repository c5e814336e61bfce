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
//! With `--shadow` the delivery loop is another one, `shadow.rs`, which reads and never writes.
//!
//! Shutdown: the stop signal turns; sources end their streams and give their last acknowledgement a moment; the delivery
//! loop drops the attempt it is in (it will be repeated, which changes nothing); HTTP connections get
//! [`GRACE`] to finish; then everything is joined. Nothing has to be written at the end: what is not durable by then was not
//! acknowledged to anybody.

mod apply;
mod audit;
mod away;
mod backoff;
mod board;
mod clock;
mod compare;
mod deliver;
mod error;
mod flows;
mod holds;
mod inbox;
mod ingest;
mod parked;
mod shadow;
mod start;
mod status;
mod stranger;
#[cfg(test)]
mod tests;
mod writer;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
};
use tracing::{error, info, warn};

use crate::{
    config::{Config, SyncOptions},
    crash::{self, Moment},
    error::causes,
    source::Follow,
    store::{Checkpoint, Store, ViewId, ViewRecord},
    target::FactStore,
    view::Guard,
};

pub use board::{Applied, Board, Delivered, Mode, TargetState};
pub use error::EngineError;
pub use holds::{EndedHold, HeldFacts, HoldEnd, HoldError};
pub use shadow::ShadowOptions;
pub use status::{
    FactTypeStatus, HeldStatus, OutboxStatus, ParkedStatus, QuotaStatus, ReconcileStatus, RetainedStatus, SnapshotStatus, SourceStatus,
    Status, TargetStatus,
};

use clock::SourceClock;
use deliver::Deliver;
use flows::Flows;
use holds::Holds;
use ingest::Ingest;
use shadow::{Asked, Observed, Shadow, Watched};
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
    /// What becomes of the changes.
    pub delivery: Delivery,
}

/// What becomes of the changes.
pub enum Delivery {
    /// They are sent to the fact store.
    Send,
    /// They are compared with what somebody else writes there, and nothing is sent.
    Shadow(ShadowOptions),
}

/// Runs until `stop` turns `true`, or until something fails that only a restart or a person can mend.
pub async fn run(config: &Config, parts: Parts, stop: watch::Receiver<bool>) -> Result<(), EngineError> {
    let Parts { store, checkpoint, target, spool, followers, guard, board, delivery } = parts;
    let writer = Writer::new(store, board.clone())?;
    let checkpoint = Arc::new(checkpoint);
    let SyncOptions { reconcile_every, drift, .. } = config.sync;
    // A failing task stops the others through a signal of its own.
    let (halt, stopped) = halt(stop);
    let mut tasks = JoinSet::new();
    let mut watched = BTreeMap::new();
    let (asks, asked) = mpsc::channel::<Asked>(shadow::ASKED);
    let shadow = match delivery {
        Delivery::Send => None,
        Delivery::Shadow(_) => {
            // Before the first change is taken that will not be sent.
            writer.doubt_comparisons().await?;
            Some(asks)
        }
    };
    settle_claims(config, &writer).await?;
    crash::moment(Moment::Reassigned);
    let mut numbered = BTreeMap::new();
    let mut audits = Vec::with_capacity(config.sources.len());
    for (index, (source, follower)) in config.sources.iter().zip(followers).enumerate() {
        let views = writer.register(source).await?;
        crash::moment(Moment::Registered);
        board.registered(index, &views);
        numbered.extend(views.iter().enumerate().map(|(view, record)| (record.id, (index, view, record.fact_type.clone()))));
        let watch = |view: &ViewRecord| (view.id, Watched { source: index, name: source.name.clone(), record: view.clone() });
        watched.extend(views.iter().map(watch));
        let (asks, asked) = mpsc::channel(audit::ASKS);
        audits.push(asks);
        let ingest = Ingest {
            lost: None,
            stranger: None,
            drift,
            asked,
            unanswered: None,
            witness: None,
            kind: source.kind_name(),
            reloads: vec![0; views.len()],
            clock: SourceClock::default(),
            resting: Flows::default(),
            index,
            name: source.name.clone(),
            views,
            writer: writer.clone(),
            checkpoint: checkpoint.clone(),
            board: board.clone(),
            target: Observed::new(target.clone()),
            shadow: shadow.clone(),
            spool: spool.clone(),
            guard,
            reconcile_every,
            stop: stopped.clone(),
            again: writer.comparisons(),
        };
        tasks.spawn(ingest.run(follower));
    }
    board.audits(audits);
    tasks.spawn(Holds::new(writer.clone(), board.clone(), numbered, stopped.clone()).run());
    set_out(delivery, (writer, target, board, spool), watched, (asked, stopped), &mut tasks);
    join(tasks, &halt).await
}

/// Sends what changes, or compares it.
fn set_out(
    delivery: Delivery,
    (writer, target, board, spool): (Writer, Arc<dyn FactStore>, Arc<Board>, PathBuf),
    watched: BTreeMap<ViewId, Watched>,
    (asked, stopped): (mpsc::Receiver<Asked>, watch::Receiver<bool>),
    tasks: &mut JoinSet<Result<(), EngineError>>,
) {
    match delivery {
        Delivery::Send => {
            board.spends(target.clone());
            let fact_types = watched.into_iter().map(|(id, watched)| (id, watched.record.fact_type)).collect();
            tasks.spawn(Deliver::new(writer, target, board, fact_types, stopped).run());
        }
        Delivery::Shadow(options) => {
            let parts = (writer, Observed::new(target), board, spool);
            let shadow = Shadow::new(parts, options, watched, asked, stopped, tasks);
            tasks.spawn(shadow.run());
        }
    }
}

/// Makes the local store's sources those of `config`, and says what is left behind.
async fn settle_claims(config: &Config, writer: &Writer) -> Result<(), EngineError> {
    // A slot that nobody reads keeps the server's log until its disk is full.
    for (source, slot) in writer.keep_slots(&config.sources).await? {
        warn!(source, slot, "source has another slot from now on: drop the one it had, for it holds the server's log");
    }
    crash::moment(Moment::SlotsKept);
    for (source, slot) in writer.reassign(&config.sources).await? {
        match slot {
            Some(slot) => {
                warn!(source, slot, "source is in no configuration file any more: its facts stay, and its slot holds the server's log");
            }
            None => warn!(source, "source is in no configuration file any more: its facts stay as they are"),
        }
    }
    Ok(())
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
            error!(reason = causes(&error), "a task failed, stopping");
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
