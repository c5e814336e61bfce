//! From the two queues to the fact store.
//!
//! ```text
//! outbox ──whole commits──┐                                    ┌──> acknowledge (entries go, the token is kept) ──> waiters
//!    │ fold               ├──> batch ──quota──> fact store ────┤
//!    v                    │                                    └──> park (what is refused)
//! backlog ──spare room────┘
//! ```
//!
//! - **The outbox goes first, in commit order.** A batch ends at a commit: it holds as many whole commits as fit. Only a commit that is too
//!   large for one batch is split, its deletes first, which the outbox's order already says.
//! - **The backlog** (what a comparison found, what catch-up folded) gets what is left: the room of a live batch, and the time in between,
//!   deletes before inserts. It spends only what the quota spares, a commit interrupts its waiting, and its batches are as small as
//!   [`Stride`] finds they must be, so a revocation waits for one of them at the most. Why it can never bring back what a live change
//!   removed is in `store/backlog.rs`; what is sent from it is read in the same moment as the outbox.
//! - **Catch-up.** An outbox that would take longer than [`CATCH_UP_AFTER`] at the rate the fact store takes is folded into the backlog:
//!   what happened to a fact is netted, and every revocation in it goes before every grant. While such revocations wait, what comes is
//!   folded, too, so that none waits behind a later grant. It is over when the backlog is empty.
//! - **Idle means at once**: a commit is sent when it is there. Commits that come while a batch is on its way share the next one.
//!
//! # One request at a time, and when not
//!
//! A live batch is alone on its way, until the fact store has answered, so nothing overtakes anything. Batches of the backlog may be on
//! their way together, [`TOGETHER`] of them, where no quota makes that pointless. That is sound: they hold different facts, all of
//! one operation, and facts are a set, so any order of them, each applied once or more, ends in the same state; every state in
//! between is that of one commit less some grants that are still to come, or plus some facts whose revocation was still to come. Nothing
//! else is sent before all of them have been answered. The last ones go one by one, so that the token that ends the
//! wait for them is of the last answer.
//!
//! # What an attempt may have done
//!
//! An answer that was lost leaves unknown whether the batch was applied; it is repeated as it is, with its own `X-Request-ID`, which
//! changes nothing if it was. An error that leaves no trace (no connection, 429, a refused key) lets go of the batch, and the next one
//! is made of
//! what waits by then. If catch-up folds a batch that may have been applied, its entries are in doubt and cancel nothing.
//!
//! A batch that the fact store refuses is halved until the offending fact stands alone; that one is parked, with the fact store's words,
//! and the rest goes on. Halving gives up the atomicity of the commits in that batch, which is the lesser evil: the alternative is to stop
//! revoking because of one fact.

mod attempt;
mod select;
mod stride;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::sync::watch;
use tracing::info;
use uuid::Uuid;

use crate::{
    crash::{self, Moment},
    engine::{
        board::{Board, Delivered, Mode, TargetState},
        error::EngineError,
        ingest::stopped,
        writer::{Queues, Writer},
    },
    error::causes,
    fact::FactType,
    store::{Lane, OutboxKey, ViewId, Waiting},
    target::{Batch, FactChange, FactStore, Offset, quota::WriteQuota},
    telemetry,
};

use attempt::Failing;
use select::{batches, live_batch};
use stride::{Rate, Stride};

/// How often the loop looks at an idle fact store, so that `/readyz` tells of one that is gone before a revocation needs it.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// An outbox that takes longer than this to empty is folded: what a revocation may wait behind the grants before it.
const CATCH_UP_AFTER: Duration = Duration::from_secs(10);
/// The shortest outbox that is folded, in full batches: less is sent as soon as it is folded.
const CATCH_UP_BATCHES: u64 = 2;
/// The longest outbox that is not folded, however fast the fact store was when it last answered.
const CATCH_UP_ENTRIES: u64 = 500_000;
/// Entries folded in one store transaction: some tens of milliseconds, which a commit of the source may have to wait.
const FOLD_ENTRIES: usize = 8_192;
/// How often the log says how far a backfill or a catch-up is.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Batches of the backlog that are on their way together: enough to hide a round trip behind the fact store's own work.
const TOGETHER: usize = 4;

/// The delivery loop.
pub(super) struct Deliver {
    writer: Writer,
    target: Arc<dyn FactStore>,
    board: Arc<Board>,
    fact_types: BTreeMap<ViewId, FactType>,
    /// Turns when there may be something to send.
    commits: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    mode: Mode,
    stride: Stride,
    rate: Rate,
    /// Of the outbox up to here nobody knows whether it arrived.
    tried: Option<OutboxKey>,
    /// Entries of the backlog that the quota has been asked for and that were not sent.
    paid: usize,
    /// What failed last, until something succeeds.
    failing: Option<Failing>,
    /// When the log last said how far it is.
    said: Instant,
    /// Whether something else than a fact store answered since writes were last taken.
    misled: bool,
}

/// How waiting ends.
#[derive(PartialEq, Eq)]
enum Waited {
    Over,
    /// Something else is to be looked at first.
    News,
    Stopped,
}

impl Deliver {
    pub(super) fn new(
        writer: Writer,
        target: Arc<dyn FactStore>,
        board: Arc<Board>,
        fact_types: BTreeMap<ViewId, FactType>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let budget = target.quota().budget();
        Self {
            commits: writer.commits(),
            mode: Mode::Live,
            stride: Stride::new(target.limits().entries),
            rate: Rate::new(budget.map(|budget| budget.per_minute)),
            // Of the process before this one nobody knows what it had on its way.
            tried: writer.left_over(),
            paid: 0,
            failing: None,
            said: Instant::now(),
            misled: false,
            writer,
            target,
            board,
            fact_types,
            stop,
        }
    }

    /// Delivers until the process stops. An error is a bug or a store that cannot be written to.
    pub(super) async fn run(mut self) -> Result<(), EngineError> {
        self.show().await?;
        let mut rest = Duration::ZERO;
        loop {
            self.commits.borrow_and_update();
            let queues = self.writer.queues();
            self.change_mode(queues);
            if self.folds(queues) {
                self.fold(queues.outbox).await?;
                continue;
            }
            if queues.is_empty() {
                // Not every end is an acknowledgement: what cancels, no longer holds, or went with a snapshot is never sent.
                if self.board.delivered_up_to() < self.writer.commit_no() {
                    self.show().await?;
                }
                // Nothing to send at the start either: readiness must not wait for the first regular look.
                if self.idle(std::mem::replace(&mut rest, PROBE_EVERY)).await == Waited::Stopped {
                    return Ok(());
                }
                continue;
            }
            match self.pay(queues).await {
                Waited::Over => {}
                Waited::News => continue,
                Waited::Stopped => return Ok(()),
            }
            if self.round(queues).await? == Waited::Stopped {
                return Ok(());
            }
        }
    }

    /// Waits for something to send and probes after `rest`.
    async fn idle(&mut self, rest: Duration) -> Waited {
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => return Waited::Stopped,
            changed = self.commits.changed() => return if changed.is_ok() { Waited::News } else { Waited::Stopped },
            () = tokio::time::sleep(rest) => {}
        }
        let state = match self.target.probe().await {
            Ok(()) => TargetState::Reachable,
            Err(error) => TargetState::Failing(causes(&error)),
        };
        self.board.target(state);
        Waited::Over
    }

    /// Whether the outbox, as it is, is to be folded.
    fn folds(&self, queues: Queues) -> bool {
        let least = CATCH_UP_BATCHES * self.target.limits().entries as u64;
        let longest = self.rate.within(CATCH_UP_AFTER).clamp(least, CATCH_UP_ENTRIES.max(least));
        queues.outbox > longest || (self.mode == Mode::CatchUp && belongs_behind(queues, self.failing.is_some()))
    }

    /// Folds the outbox, as it is now, into the backlog.
    async fn fold(&mut self, waiting: u64) -> Result<(), EngineError> {
        if self.mode != Mode::CatchUp {
            info!(changes = waiting, "catching up: netting what waits, revocations first");
            self.enter(Mode::CatchUp);
        }
        let mut left = waiting;
        while left > 0 {
            let folded = self.writer.fold(self.tried, FOLD_ENTRIES).await?;
            crash::moment(Moment::Folded);
            left = if folded == 0 { 0 } else { left.saturating_sub(folded) };
        }
        Ok(())
    }

    fn change_mode(&mut self, queues: Queues) {
        match (self.mode, queues.backlog) {
            (Mode::Live, 0) => {}
            (Mode::Backfill | Mode::CatchUp, 1..) if self.said.elapsed() < SAY_EVERY => {}
            (Mode::Backfill | Mode::CatchUp, waiting @ 1..) => {
                self.said = Instant::now();
                let eta = humantime::format_duration(self.board.eta_of_delivery()).to_string();
                info!(mode = self.mode.name(), changes = waiting, eta, "delivering");
            }
            (Mode::Live, waiting) => {
                info!(changes = waiting, "backfilling: live changes go first");
                self.enter(Mode::Backfill);
            }
            (Mode::Backfill | Mode::CatchUp, 0) => {
                info!("everything that waited is delivered");
                self.enter(Mode::Live);
            }
        }
    }

    fn enter(&mut self, mode: Mode) {
        (self.mode, self.said) = (mode, Instant::now());
        self.board.mode_of_delivery(mode);
    }

    /// Asks the quota for what the backlog may add. Waits only when nothing else is to be sent.
    async fn pay(&mut self, queues: Queues) -> Waited {
        if queues.backlog == 0 || self.paid > 0 {
            return Waited::Over;
        }
        let target = self.target.clone();
        let quota = target.quota();
        let batches = if quota.budget().is_none() { TOGETHER } else { 1 };
        let wanted = quota.spares(self.stride.entries()) * batches;
        let wanted = usize::try_from(queues.backlog).unwrap_or(usize::MAX).min(wanted);
        // In the room of a live batch, if it costs that one nothing.
        let wanted = if queues.outbox > 0 { wanted.min(self.stride.entries()) } else { wanted };
        // Not to wait at all comes before the news: commits without end must not keep it from being sent.
        if quota.try_spare(wanted) {
            self.paid = wanted;
            return Waited::Over;
        }
        if queues.outbox > 0 {
            return Waited::Over;
        }
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => Waited::Stopped,
            changed = self.commits.changed() => if changed.is_ok() { Waited::News } else { Waited::Stopped },
            () = quota.spare(wanted) => {
                self.paid = wanted;
                Waited::Over
            }
        }
    }

    /// Sends what goes next; news if it has to be chosen anew.
    async fn round(&mut self, queues: Queues) -> Result<Waited, EngineError> {
        let limits = self.target.limits();
        // From reading the queues to the answer: who compares the fact store must know that nothing is on its way.
        let writer = self.writer.clone();
        let _under_way = writer.under_way().await;
        let (catching_up, failing) = (self.mode == Mode::CatchUp, self.failing.is_some());
        let behind = move |queues: Queues| catching_up && belongs_behind(queues, failing);
        let parcel = self.writer.parcel((limits.entries, self.paid), (behind, self.tried, FOLD_ENTRIES)).await?;
        metrics::counter!(telemetry::DROPPED_FACTS).increment(parcel.dropped);
        if !parcel.backlog.is_empty() || parcel.dropped > 0 {
            self.paid = 0;
        }
        let change = |entry: &Waiting| self.change(entry);
        if parcel.outbox.is_empty() {
            let mut round = batches(parcel.backlog, change, self.stride.entries(), limits);
            let all: usize = round.iter().map(Vec::len).sum();
            if all as u64 >= queues.backlog || self.failing.is_some() {
                // The last ones, and those that find out whether the fact store is back, one by one.
                round.truncate(1);
            }
            return self.send_together(round, queues).await;
        }
        let entries = live_batch(parcel.outbox, parcel.backlog, change, limits);
        let live = entries.iter().filter(|entry| entry.lane != Lane::Backlog).count();
        if self.spend(live).await == Waited::Stopped {
            return Ok(Waited::Stopped);
        }
        self.send_together(vec![entries], queues).await
    }

    async fn spend(&mut self, updates: usize) -> Waited {
        let target = self.target.clone();
        let quota: &WriteQuota = target.quota();
        tokio::select! {
            biased;
            () = stopped(&mut self.stop) => Waited::Stopped,
            () = quota.spend(updates) => Waited::Over,
        }
    }

    /// Sends all of `round`, each once at first, all at a time.
    async fn send_together(&mut self, round: Vec<Vec<Waiting>>, queues: Queues) -> Result<Waited, EngineError> {
        self.rate.begin(round.iter().map(Vec::len).sum(), queues.outbox + queues.backlog);
        let batches: Vec<Batch> = round.iter().map(|entries| self.batch(entries)).collect();
        let target = self.target.clone();
        crash::moment(Moment::Sending);
        let attempts = join_all(batches.iter().map(async |batch| {
            let began = Instant::now();
            (target.apply(batch).await, began.elapsed())
        }));
        let answers = tokio::select! {
            biased;
            () = stopped(&mut self.stop) => return Ok(Waited::Stopped),
            answers = attempts => answers,
        };
        // First what all the answers say: whoever folds something meanwhile must know what has arrived and what is in doubt.
        let mut failed = Vec::new();
        for ((entries, batch), (answer, took)) in round.into_iter().zip(batches).zip(answers) {
            match answer {
                Ok(offset) => {
                    self.stride.note(entries.len(), took);
                    self.delivered(entries, offset).await?;
                }
                Err(error) => {
                    if !error.left_no_trace() {
                        self.doubt(&entries).await?;
                    }
                    failed.push((entries, batch, error));
                }
            }
        }
        for (entries, batch, error) in failed {
            let waited = self.send_again(entries, batch, error).await?;
            if waited != Waited::Over {
                // What else failed is looked at again, too.
                return Ok(waited);
            }
        }
        Ok(Waited::Over)
    }

    /// The fact store has taken `entries`.
    async fn delivered(&mut self, entries: Vec<Waiting>, offset: Offset) -> Result<(), EngineError> {
        self.rate.end(entries.len());
        self.board.rate(self.rate.per_second());
        self.answered();
        self.tried = self.tried.filter(|tried| last_live(&entries).is_none_or(|last| last < *tried));
        crash::moment(if last_live(&entries).is_some() { Moment::Sent } else { Moment::Backfilled });
        let count = entries.len() as u64;
        let commit_no = self.writer.acknowledge(entries, offset.clone()).await?;
        crash::moment(Moment::Acknowledged);
        if std::mem::take(&mut self.misled) {
            self.writer.compare_again();
        }
        metrics::counter!(telemetry::DELIVERED_FACTS).increment(count);
        self.board.delivered(Delivered { commit_no, offset: Some(offset) });
        Ok(())
    }

    /// A batch of `entries`; the same as the one that failed last has its name.
    fn batch(&self, entries: &[Waiting]) -> Batch {
        let same = self.failing.as_ref().filter(|failing| failing.entries == entries);
        let request_id = same.map_or_else(Uuid::new_v4, |failing| failing.request_id);
        Batch { request_id, changes: entries.iter().map(|entry| self.change(entry)).collect() }
    }

    /// The fact that an entry stands for: where a row becomes a fact again.
    fn change(&self, entry: &Waiting) -> FactChange {
        // Entries of views that the configuration no longer has went when the views were registered.
        let fact_type = &self.fact_types[&entry.view];
        FactChange { op: entry.op, fact: fact_type.stored_fact(&entry.row) }
    }

    /// Tells the waiters how far the fact store is.
    async fn show(&self) -> Result<(), EngineError> {
        let (commit_no, offset, parked) = self.writer.delivered().await?;
        // Before the first write any state will do, and no store has an older token than this one.
        self.board.delivered(Delivered { commit_no, offset: Some(offset.unwrap_or_else(|| Offset("0".to_owned()))) });
        self.board.parked(parked);
        Ok(())
    }
}

/// Whether what is in the outbox, while catching up, must not go before what is in the backlog: a later grant before an older revocation;
/// or whether it can only be netted, because the fact store does not answer.
fn belongs_behind(queues: Queues, failing: bool) -> bool {
    queues.outbox > 0 && (queues.deletes || failing)
}

fn last_live(entries: &[Waiting]) -> Option<OutboxKey> {
    entries.iter().rev().find_map(|entry| match entry.lane {
        Lane::Live(key) => Some(key),
        Lane::Backlog => None,
    })
}

#[cfg(test)]
mod tests;
