//! `--shadow`: in place of delivery, what would be delivered beside what the application itself writes.
//!
//! ```text
//! ingest ──a comparison is due──> compare ──────────────────────┐
//! outbox ──take──> pending ──look, until it agrees or is over──>├──> lines on stdout
//!                     └──────────── fact store (reads only) ────┘
//! ```
//!
//! Nothing is written: the fact store is an [`Observed`], and a run with this loop has no [`Deliver`](super::deliver).
//!
//! A commit (a step of the local store, which under load is several of the source's) is taken out of the outbox and looked at, at once
//! and again with growing pauses, until the fact store holds what it says, or the grace is over: the application may write a little before
//! or a little after it commits. What is taken and not judged when the process dies is not reported; the next start compares everything.
//!
//! What no commit tells, facts that the application writes and no query has, is found by the comparison at the start and every
//! `reconcile_every`. It reports what is so after the grace, too: a commit whose facts the application never writes is told once with its
//! commit and, for as long as it lasts, by each comparison.

mod compare;
mod observed;
mod pending;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::warn;
use uuid::Uuid;

use crate::{
    data::Row,
    engine::{
        board::{Board, TargetState},
        error::EngineError,
        ingest::stopped,
        writer::Writer,
    },
    error::causes,
    fact::FactType,
    store::{Taken, TakenChanges, ViewId, ViewRecord},
    target::{Op, TargetError, retry::Schedule},
};

pub(super) use compare::Asked;
pub(super) use observed::Observed;

use compare::Comparing;
use pending::{Judged, Pending};
use report::{CommitLine, Line, Output, Totals};

/// Comparisons that may be asked for before the loop takes note: one for each of a few sources.
pub(super) const ASKED: usize = 8;
/// Changes of commits in memory, some 20 MB; while there are more, those that come wait on disk. A commit that alone has more is
/// compared and not judged fact by fact.
const MOST_CHANGES: usize = 50_000;
/// Facts asked for at a time: a few connections, so that the application's own reads have the rest.
const LOOKUPS: usize = 8;
/// Facts of one type from which on all facts of that type are listed instead: a listing costs as much as some hundred single facts
/// unless the type is large, and then so many single ones are a load, too.
const LISTED_FROM: usize = 200;
/// How often an idle fact store is probed, so that `/v1/status` says whether it answers.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// For the last look, when the process stops.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// What a shadow run needs to know.
pub struct ShadowOptions {
    /// How late the application's own writes may be.
    pub grace: Duration,
    /// Where the report goes.
    pub report: Box<dyn Write + Send>,
}

/// The loop that takes the place of delivery.
pub(super) struct Shadow {
    comparing: Comparing,
    asked: mpsc::Receiver<Asked>,
    views: BTreeMap<ViewId, Watched>,
    grace: Duration,
    totals: Totals,
    comparisons: JoinSet<Result<Option<usize>, EngineError>>,
    /// Sources that were compared, and those whose first comparison is under way.
    compared: BTreeSet<usize>,
    first: BTreeSet<usize>,
    /// When the fact store is asked again, while it does not answer.
    failing: Option<Schedule>,
    /// Turns when there may be something to take.
    commits: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

/// A view that is watched.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) source: usize,
    pub(super) name: String,
    pub(super) record: ViewRecord,
}

impl Shadow {
    /// Starts the task that writes the report, too.
    pub(super) fn new(
        (writer, store, board, spool): (Writer, Observed, Arc<Board>, PathBuf),
        options: ShadowOptions,
        views: BTreeMap<ViewId, Watched>,
        asked: mpsc::Receiver<Asked>,
        stop: watch::Receiver<bool>,
        tasks: &mut JoinSet<Result<(), EngineError>>,
    ) -> Self {
        let ShadowOptions { grace, report } = options;
        let commits = writer.commits();
        let pending = Arc::new(Mutex::new(Pending::new(grace)));
        let comparing = Comparing { writer, store, board, output: Output::new(report, tasks), spool, pending };
        Self {
            comparing,
            asked,
            views,
            grace,
            totals: Totals::default(),
            comparisons: JoinSet::new(),
            compared: BTreeSet::new(),
            first: BTreeSet::new(),
            failing: None,
            commits,
            stop,
        }
    }

    /// Watches until the process stops. An error is a bug or a store that cannot be written to.
    pub(super) async fn run(mut self) -> Result<(), EngineError> {
        // What the process before this one left, if nothing is compared meanwhile.
        self.commits.mark_changed();
        loop {
            let next = self.pending().next();
            let look = next.unwrap_or_else(|| Instant::now() + PROBE_EVERY);
            let takes = self.first.is_empty() && self.pending().size() < MOST_CHANGES;
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => break,
                Some(compared) = self.comparisons.join_next() => {
                    if let Some(source) = compared.map_err(EngineError::panicked)?? {
                        self.first.remove(&source);
                    }
                }
                Some(asked) = self.asked.recv() => self.compare(asked),
                changed = self.commits.changed(), if takes => {
                    if changed.is_err() {
                        break;
                    }
                    self.take().await?;
                }
                () = tokio::time::sleep_until(look.into()) => match next {
                    Some(_) => self.look().await?,
                    None => self.probe().await,
                },
            }
        }
        self.end().await
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.comparing.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits wait until the first comparison of each source that is there is reported: it is what they begin from.
    fn compare(&mut self, asked: Asked) {
        let source = asked.source;
        if self.compared.insert(source) {
            self.first.insert(source);
        }
        let comparing = self.comparing.clone();
        self.comparisons.spawn(async move { comparing.run(asked, Duration::ZERO).await.map(|()| Some(source)) });
    }

    /// Takes what has come out of the outbox.
    async fn take(&mut self) -> Result<(), EngineError> {
        let taken = self.comparing.writer.run(|store| store.take(MOST_CHANGES)).await?;
        if !taken.is_empty() {
            // There may be more.
            self.commits.mark_changed();
        }
        let now = Instant::now();
        for Taken { commit_no, position, changes } in taken {
            match changes {
                TakenChanges::Listed(entries) => self.pending().push(commit_no, position, entries, now),
                TakenChanges::Counted(counts) => {
                    let of = |op: Op| counts.iter().filter(|(_, of, _)| *of == op).map(|(.., count)| count).sum();
                    let position = position.map(|position| position.to_string());
                    let line = CommitLine::counted(commit_no, position, of(Op::Insert), of(Op::Delete));
                    self.comparing.output.line(&Line::Commit(line)).await;
                    self.totals.unjudged(1);
                    self.compare_later(counts.iter().map(|(view, ..)| *view));
                }
            }
        }
        Ok(())
    }

    /// Compares the fact types of a commit that is too large, when its time is over.
    fn compare_later(&mut self, views: impl Iterator<Item = ViewId>) {
        let views: BTreeSet<ViewId> = views.collect();
        let mut watched = views.iter().filter_map(|view| self.views.get(view)).peekable();
        let Some(Watched { source, name, .. }) = watched.peek().cloned().cloned() else { return };
        let views = watched.map(|watched| watched.record.clone()).collect();
        let (comparing, grace) = (self.comparing.clone(), self.grace);
        self.comparisons.spawn(async move { comparing.run(Asked { source, name, views }, grace).await.map(|()| None) });
    }

    async fn probe(&self) {
        let state = match self.comparing.store.probe().await {
            Ok(()) => TargetState::Reachable,
            Err(error) => TargetState::Failing(causes(&error)),
        };
        self.comparing.board.target(state);
    }

    /// Looks at what is due, and reports the commits that are over.
    async fn look(&mut self) -> Result<(), EngineError> {
        let looked = Instant::now();
        let due = self.pending().due(looked);
        let mut stop = self.stop.clone();
        let asked = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Ok(()),
            asked = self.ask(due) => asked,
        };
        if let Err(error) = asked {
            let reason = causes(&error);
            warn!(reason, "the fact store cannot be asked, will retry");
            self.comparing.board.target(TargetState::Failing(reason));
            let schedule = self.failing.get_or_insert_with(|| Schedule::new(Uuid::new_v4()));
            let pause = schedule.wait_after(&error);
            self.pending().postpone(Instant::now() + pause);
            return Ok(());
        }
        self.failing = None;
        self.comparing.board.target(TargetState::Reachable);
        self.judge(looked).await
    }

    /// Asks the fact store for each of `facts`, and notes the answers.
    async fn ask(&self, facts: Vec<(ViewId, Row)>) -> Result<(), TargetError> {
        let mut of_views = BTreeMap::<ViewId, Vec<Row>>::new();
        for (view, row) in facts {
            of_views.entry(view).or_default().push(row);
        }
        for (view, rows) in of_views {
            let fact_type = self.fact_type(view);
            if rows.len() >= LISTED_FROM {
                let mut absent: HashSet<Row> = rows.into_iter().collect();
                let mut present = Vec::new();
                let mut each = |row| {
                    present.extend(absent.take(&row));
                    Ok(())
                };
                self.comparing.store.list(fact_type, &mut each).await?;
                let mut pending = self.pending();
                present.into_iter().for_each(|row| pending.saw(view, row, true));
                absent.into_iter().for_each(|row| pending.saw(view, row, false));
                continue;
            }
            let mut answers = stream::iter(rows)
                .map(async |row: Row| (self.comparing.store.holds(fact_type.stored_fact(&row)).await, row))
                .buffer_unordered(LOOKUPS);
            while let Some((held, row)) = answers.next().await {
                self.pending().saw(view, row, held?);
            }
        }
        Ok(())
    }

    /// Everything that was due at `looked` has been looked at.
    async fn judge(&mut self, looked: Instant) -> Result<(), EngineError> {
        let judged = self.pending().judge(looked, Instant::now());
        for Judged { commit_no, position, changes, mut amiss, waited } in judged {
            // What a later commit has changed that is not taken yet is judged with that one.
            let facts: Vec<(ViewId, Row)> = amiss.iter().map(|(view, _, row)| (*view, row.clone())).collect();
            let desired = self.comparing.writer.run(move |store| store.desires(&facts)).await?;
            let mut desired = desired.into_iter();
            amiss.retain(|(_, op, _)| desired.next() == Some(*op == Op::Insert));
            self.totals.judged(amiss.iter().map(|(_, op, _)| op), waited);
            let told = |changes: Vec<(ViewId, Op, Row)>| {
                changes.into_iter().map(|(view, op, row)| (op, self.fact_type(view).stored_fact(&row))).collect()
            };
            let position = position.map(|position| position.to_string());
            let line = CommitLine::judged(commit_no, position, told(changes), told(amiss), waited);
            self.comparing.output.line(&Line::Commit(line)).await;
        }
        Ok(())
    }

    /// Looks a last time and sums up.
    async fn end(mut self) -> Result<(), EngineError> {
        let now = Instant::now();
        self.pending().hurry(now);
        let due = self.pending().due(now);
        if let Ok(Ok(())) = tokio::time::timeout(LAST_LOOK, self.ask(due)).await {
            self.judge(now).await?;
        }
        let left = self.pending().commits() as u64;
        self.totals.unjudged(left);
        self.comparing.output.line(&Line::Summary(self.totals.summary())).await;
        Ok(())
    }

    fn fact_type(&self, view: ViewId) -> &FactType {
        // Entries of views that the configuration no longer has went when the views were registered.
        &self.views[&view].record.fact_type
    }
}
