//! What has failed once: repeated, halved, parked, or let go of.

use std::time::Duration;

use tracing::{error, warn};
use uuid::Uuid;

use crate::{
    crash::{self, Moment},
    engine::{
        board::TargetState,
        deliver::{Deliver, Waited, last_live},
        error::EngineError,
        ingest::stopped,
    },
    error::causes,
    store::Waiting,
    target::{Batch, Offset, TargetError, retry::Schedule},
    telemetry,
};

/// A batch that failed.
pub(super) struct Failing {
    pub(super) request_id: Uuid,
    pub(super) entries: Vec<Waiting>,
    schedule: Schedule,
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
    /// What waits is to be looked at again.
    LetGo,
}

impl Deliver {
    /// What has failed once, halving what is refused.
    pub(super) async fn send_again(&mut self, entries: Vec<Waiting>, batch: Batch, error: TargetError) -> Result<Waited, EngineError> {
        let mut left = &entries[..];
        let mut attempt = self.repeat(left, batch, error).await?;
        let mut length = left.len();
        loop {
            let part = &left[..length];
            match attempt {
                Attempt::Stopped => return Ok(Waited::Stopped),
                Attempt::LetGo => return Ok(Waited::News),
                Attempt::Halve => length = part.len().div_ceil(2),
                Attempt::Park(reason) => {
                    let fact_type = &self.fact_types[&part[0].view];
                    error!(%fact_type, reason, "the fact store refuses a fact, parked");
                    self.writer.park(part[0].clone(), reason).await?;
                    crash::moment(Moment::Parked);
                    // Parked counts as settled: who waits would wait for ever.
                    self.show().await?;
                    left = &left[1..];
                    length = left.len();
                }
                Attempt::Delivered(offset) => {
                    self.delivered(part.to_vec(), offset).await?;
                    left = &left[part.len()..];
                    // What is left may be acceptable as a whole.
                    length = left.len();
                }
            }
            if left.is_empty() {
                return Ok(Waited::Over);
            }
            let part = &left[..length];
            let batch = self.batch(part);
            if self.spend(part.len()).await == Waited::Stopped {
                return Ok(Waited::Stopped);
            }
            let answer = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(Waited::Stopped),
                answer = self.target.apply(&batch) => answer,
            };
            attempt = match answer {
                Ok(offset) => Attempt::Delivered(offset),
                Err(error) => self.repeat(part, batch, error).await?,
            };
        }
    }

    /// Repeats `batch`, which has failed with `error`, until the fact store has taken a decision.
    async fn repeat(&mut self, entries: &[Waiting], batch: Batch, error: TargetError) -> Result<Attempt, EngineError> {
        let mut error = error;
        let mut in_doubt = !error.left_no_trace();
        if in_doubt {
            self.doubt(entries).await?;
        }
        loop {
            metrics::counter!(telemetry::DELIVERY_FAILURES).increment(1);
            if let TargetError::TooLarge { message } | TargetError::Refused { message, .. } = &error {
                // It answers, and it will not answer otherwise.
                self.answered();
                return Ok(if entries.len() == 1 { Attempt::Park(message.clone()) } else { Attempt::Halve });
            }
            if matches!(error, TargetError::Garbage { .. }) && !std::mem::replace(&mut self.misled, true) {
                // A fallback node, for instance, or a proxy: what was listed there may be anything.
                self.writer.doubt_comparisons().await?;
            }
            let pause = self.failed(entries, &batch, &error);
            match self.pause(pause).await? {
                Waited::Stopped => return Ok(Attempt::Stopped),
                Waited::News => return Ok(Attempt::LetGo),
                Waited::Over if !in_doubt => return Ok(Attempt::LetGo),
                Waited::Over => {}
            }
            if self.spend(batch.changes.len()).await == Waited::Stopped {
                return Ok(Attempt::Stopped);
            }
            let answer = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(Attempt::Stopped),
                answer = self.target.apply(&batch) => answer,
            };
            match answer {
                Ok(offset) => return Ok(Attempt::Delivered(offset)),
                Err(again) => {
                    if !again.left_no_trace() && !std::mem::replace(&mut in_doubt, true) {
                        self.doubt(entries).await?;
                    }
                    error = again;
                }
            }
        }
    }

    /// Waits, while what comes may have to be folded; that is news.
    async fn pause(&mut self, pause: Duration) -> Result<Waited, EngineError> {
        let until = tokio::time::Instant::now() + pause;
        let mut waited = Waited::Over;
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(Waited::Stopped),
                () = tokio::time::sleep_until(until) => return Ok(waited),
                changed = self.commits.changed() => {
                    if changed.is_err() {
                        return Ok(Waited::Stopped);
                    }
                    let queues = self.writer.queues();
                    if self.folds(queues) {
                        self.fold(queues.outbox).await?;
                        waited = Waited::News;
                    }
                }
            }
        }
    }

    /// Nobody knows whether `entries` arrived.
    pub(super) async fn doubt(&mut self, entries: &[Waiting]) -> Result<(), EngineError> {
        self.tried = last_live(entries).max(self.tried);
        self.writer.doubt(entries.to_vec()).await?;
        crash::moment(Moment::Doubted);
        Ok(())
    }

    /// Notes a failure and says how long to wait.
    fn failed(&mut self, entries: &[Waiting], batch: &Batch, error: &TargetError) -> Duration {
        let reason = causes(error);
        let request_id = batch.request_id;
        warn!(fact_count = entries.len(), %request_id, reason, "fact batch not delivered, will retry");
        self.board.target(TargetState::Failing(reason));
        let schedule = self.failing.take().map_or_else(|| Schedule::new(request_id), |failing| failing.schedule);
        let failing = self.failing.insert(Failing { request_id, entries: entries.to_vec(), schedule });
        failing.schedule.wait_after(error)
    }

    pub(super) fn answered(&mut self) {
        self.failing = None;
        self.board.target(TargetState::Reachable);
    }
}
