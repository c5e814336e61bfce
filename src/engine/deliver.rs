//! From the outbox to the fact store, in order.
//!
//! ```text
//! outbox ──first entries──> batch ──apply──> fact store ──offset──> acknowledge (entries go, offset is kept) ──> waiters
//! ```
//!
//! - A batch ends at a commit: it holds as many whole commits as fit. Only a commit that is too large for one batch is split,
//!   its deletes first, which the outbox's order already says.
//! - One batch is on its way at a time, and it is repeated with its own `X-Request-ID` until the fact store has answered, so
//!   nothing overtakes anything. An answer that was lost makes a repetition, which changes nothing, because facts are a set.
//! - Idle means at once: a commit is sent when it is there, without waiting for more.
//! - A batch that the fact store refuses is halved until the offending fact stands alone; that one is parked, with the fact
//!   store's words, and the rest goes on. Halving gives up the atomicity of the commits in that batch, which is the lesser
//!   evil: the alternative is to stop revoking because of one fact.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{error, warn};
use uuid::Uuid;

use crate::{
    engine::{
        board::{Board, Delivered, TargetState},
        crash::{self, Moment},
        error::EngineError,
        ingest::stopped,
        writer::Writer,
    },
    error::causes,
    fact::FactType,
    store::{OutboxEntry, ViewId},
    target::{Batch, BatchLimits, FactChange, FactStore, Offset, TargetError, batch::Packer, retry::Schedule},
    telemetry,
};

/// How often the loop looks at an idle fact store, so that `/readyz` tells of one that is gone before a revocation needs it.
const PROBE_EVERY: Duration = Duration::from_secs(15);

/// The delivery loop.
pub(super) struct Deliver {
    pub(super) writer: Writer,
    pub(super) target: Arc<dyn FactStore>,
    pub(super) board: Arc<Board>,
    pub(super) fact_types: BTreeMap<ViewId, FactType>,
    /// Turns when there may be something to send.
    pub(super) commits: watch::Receiver<u64>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What became of one attempt.
enum Attempt {
    /// Everything in it is acknowledged.
    Delivered(Offset),
    /// The process stops.
    Stopped,
    /// Nothing of it is acceptable as it is; it must be smaller.
    Halve,
    /// The only fact in it is refused.
    Park(String),
}

impl Deliver {
    /// Delivers until the process stops. An error is a bug or a store that cannot be written to.
    pub(super) async fn run(mut self) -> Result<(), EngineError> {
        self.show().await?;
        self.caught_up().await?;
        let mut rest = Duration::ZERO;
        loop {
            let most = self.target.limits().entries;
            self.commits.borrow_and_update();
            // From reading the outbox to the answer: who compares the fact store must know that nothing is on its way.
            let writer = self.writer.clone();
            let under_way = writer.under_way().await;
            let entries = self.writer.outbox(most + 1).await?;
            if entries.is_empty() {
                drop(under_way);
                // Nothing to send at the start either: readiness must not wait for the first regular look.
                if !self.idle(std::mem::replace(&mut rest, PROBE_EVERY)).await {
                    return Ok(());
                }
                continue;
            }
            let length = batch_length(&self.changes(&entries), &entries, self.target.limits());
            if !self.send(&entries[..length]).await? {
                return Ok(());
            }
        }
    }

    /// Waits for something to send and probes after `rest`; `false` when the process stops.
    async fn idle(&mut self, rest: Duration) -> bool {
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => return false,
            changed = self.commits.changed() => return changed.is_ok(),
            () = tokio::time::sleep(rest) => {}
        }
        self.probe().await;
        true
    }

    /// Asks the fact store whether it is there.
    async fn probe(&self) {
        let state = match self.target.probe().await {
            Ok(()) => TargetState::Reachable,
            Err(error) => TargetState::Failing(causes(&error)),
        };
        self.board.target(state);
    }

    /// Sends `entries`, halving what is refused; `false` when the process stops.
    async fn send(&mut self, entries: &[OutboxEntry]) -> Result<bool, EngineError> {
        let mut left = entries;
        let mut length = left.len();
        while !left.is_empty() {
            let part = &left[..length.min(left.len())];
            let attempt = self.attempt(part).await?;
            let last = part.last().expect("a part is not empty").key;
            match attempt {
                Attempt::Stopped => return Ok(false),
                Attempt::Halve => {
                    length = part.len().div_ceil(2);
                    continue;
                }
                Attempt::Park(reason) => {
                    let fact_type = &self.fact_types[&part[0].view];
                    error!(%fact_type, reason, "the fact store refuses a fact, parked");
                    self.writer.park(part[0].clone(), reason).await?;
                }
                Attempt::Delivered(offset) => {
                    crash::moment(Moment::Sent);
                    let gone = self.writer.acknowledge(last, offset).await?;
                    crash::moment(Moment::Acknowledged);
                    metrics::counter!(telemetry::DELIVERED_FACTS).increment(gone);
                }
            }
            left = &left[part.len()..];
            // What is left may be acceptable as a whole.
            length = left.len();
            // Parked counts as settled: who waits would wait for ever.
            self.caught_up().await?;
            self.show().await?;
        }
        Ok(true)
    }

    /// One batch, repeated until the fact store has taken a decision.
    async fn attempt(&mut self, entries: &[OutboxEntry]) -> Result<Attempt, EngineError> {
        let batch = Batch { request_id: Uuid::new_v4(), changes: self.changes(entries) };
        let mut schedule = Schedule::new(batch.request_id);
        loop {
            let error = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(Attempt::Stopped),
                answer = self.target.apply(&batch) => match answer {
                    Ok(offset) => {
                        self.board.target(TargetState::Reachable);
                        return Ok(Attempt::Delivered(offset));
                    }
                    Err(error) => error,
                },
            };
            metrics::counter!(telemetry::DELIVERY_FAILURES).increment(1);
            match &error {
                TargetError::TooLarge { message } | TargetError::Refused { message, .. } => {
                    // It answers, and it will not answer otherwise.
                    self.board.target(TargetState::Reachable);
                    let alone = batch.changes.len() == 1;
                    return Ok(if alone { Attempt::Park(message.clone()) } else { Attempt::Halve });
                }
                TargetError::Busy { .. }
                | TargetError::Unreachable { .. }
                | TargetError::Key { .. }
                | TargetError::Setup { .. }
                | TargetError::Garbage { .. }
                | TargetError::Embedded { .. }
                | TargetError::Receiver(_) => {}
            }
            let pause = schedule.wait_after(&error);
            let reason = causes(&error);
            warn!(fact_count = batch.changes.len(), request_id = %batch.request_id, reason, "fact batch not delivered, will retry");
            self.board.target(TargetState::Failing(reason));
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(Attempt::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// The facts that `entries` stand for: where a row becomes a fact again.
    fn changes(&self, entries: &[OutboxEntry]) -> Vec<FactChange> {
        let change = |entry: &OutboxEntry| {
            // Entries of views that the configuration no longer has went when the views were registered.
            let fact_type = &self.fact_types[&entry.view];
            let fact = fact_type.stored_fact(&entry.row);
            FactChange { op: entry.op, fact }
        };
        entries.iter().map(change).collect()
    }

    /// Tells the waiters how far the fact store is.
    async fn caught_up(&self) -> Result<(), EngineError> {
        // Read before the outbox: a commit that comes in between is not claimed as delivered.
        let last = self.writer.commit_no();
        let commit_no = match self.writer.outbox(1).await?.first() {
            Some(entry) => last.min(entry.key.commit_no - 1),
            None => last,
        };
        // Before the first write any state will do, and no store has an older token than this one.
        let offset = self.writer.offset().await?.unwrap_or_else(|| Offset("0".to_owned()));
        self.board.delivered(Delivered { commit_no, offset: Some(offset) });
        Ok(())
    }

    async fn show(&self) -> Result<(), EngineError> {
        self.board.parked(self.writer.parked(&self.fact_types).await?);
        Ok(())
    }
}

/// How many of `entries` go into the next batch: whole commits as far as they fit, else the start of the first one.
fn batch_length(changes: &[FactChange], entries: &[OutboxEntry], limits: BatchLimits) -> usize {
    let mut packer = Packer::new(limits);
    // An entry that no batch can hold goes alone: the fact store's answer parks it.
    let goes_on = |change: &FactChange| matches!(packer.push(change.clone()), Ok(None));
    let fits = changes.iter().map(goes_on).take_while(|fits| *fits).count();
    if fits >= entries.len() {
        return entries.len();
    }
    let next = entries[fits].key.commit_no;
    match entries[..fits].iter().rposition(|entry| entry.key.commit_no != next) {
        Some(end) => end + 1,
        // One commit larger than a batch; a single entry that is too large is the fact store's to refuse.
        None => fits.max(1),
    }
}
