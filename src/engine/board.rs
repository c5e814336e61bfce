//! The board: what everybody may know about a running factsync.
//!
//! Tasks write their part, `/v1/status` and `/metrics` read all of it. Waiting for a position goes through two marks ([`Waits`]), each of
//! which wakes a waiter once, so that a thousand waiters cost a commit a thousand comparisons, and no wake-up but of those it answers:
//!
//! 1. `applied`: the source's position is in the desired facts, and whatever it changed has a commit number;
//! 2. `delivered`: the fact store has acknowledged every entry up to that number.

mod audits;
mod holds;
mod log;
mod metrics;
mod waits;

pub use waits::{Applied, Delivered};

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use crate::{
    config::Config,
    data::Position,
    engine::{
        audit::Asked,
        board::waits::Waits,
        holds::Ask,
        parked::ParkedChanges,
        status::{FactTypeStatus, HeldStatus, OutboxStatus, QuotaStatus, ReconcileStatus, SourceStatus, Status, TargetStatus, timestamp},
        writer::Queues,
    },
    reconcile::Drift,
    source::SourceState,
    store::{Change, Hold, ViewRecord},
    target::{
        FactStore,
        quota::{Budget, Plan},
    },
};

/// Whether the fact store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// Not asked yet.
    Unknown,
    /// It answered the last time.
    Reachable,
    /// It did not; the text is for a person.
    Failing(String),
}

/// What delivery is busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Commits go as they come. Entered when nothing else waits.
    Live,
    /// What a comparison found goes where commits leave room. Entered when it has found something.
    Backfill,
    /// What waited too long is netted, revocations first. Entered when the outbox is too long, left when all of that is delivered; a
    /// restart in between goes on as [`Mode::Backfill`], and comes back here if the outbox is still too long.
    CatchUp,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Live, Self::Backfill, Self::CatchUp];

    /// Its name in `/v1/status` and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Backfill => "backfill",
            Self::CatchUp => "catch-up",
        }
    }
}

/// What stands for all of [`Mode`] in a run that delivers nothing.
const SHADOW: &str = "shadow";

/// Outcome of the last comparison with the fact store.
#[derive(Debug, Clone, Copy)]
struct Reconciled {
    at: SystemTime,
    missing: u64,
    stale: u64,
    drift: Drift,
}

struct SourceLine {
    name: String,
    kind: &'static str,
    state: SourceState,
    position: Option<Position>,
    head: Option<Position>,
    caught_up: Instant,
    /// The commit that brings the fact store to the state of the start or of the last snapshot; ready is who has delivered it.
    founded: Option<u64>,
    reconciled: Option<Reconciled>,
    log: log::Log,
}

struct ViewLine {
    signature: String,
    source: usize,
    mode: &'static str,
    reason: Option<String>,
    problem: Option<String>,
    facts: u64,
    skipped: BTreeMap<String, u64>,
    held: u64,
    last_change: Option<SystemTime>,
}

struct Lines {
    sources: Vec<SourceLine>,
    views: Vec<Vec<ViewLine>>,
    queues: Queues,
    mode: Mode,
    /// Changes that the fact store takes in a second, as far as it was measured.
    rate: Option<f64>,
    parked: ParkedChanges,
    holds: Vec<Hold>,
    target: TargetState,
}

/// The board.
pub struct Board {
    /// Whether nothing is delivered in this run.
    shadow: bool,
    target_kind: &'static str,
    plan: Plan,
    max_parked: Option<u64>,
    lines: Mutex<Lines>,
    store: OnceLock<Arc<dyn FactStore>>,
    asks: OnceLock<mpsc::Sender<Ask>>,
    audits: OnceLock<Vec<mpsc::Sender<Asked>>>,
    applied: Vec<Waits<Applied>>,
    delivered: Waits<Delivered>,
}

impl Board {
    /// A board for `config`, before anything has happened.
    ///
    /// `plan` is the write quota of the target, which says how long a queue takes.
    pub fn new(config: &Config, target_kind: &'static str, plan: Plan) -> Self {
        let sources = config.sources.iter().map(|source| SourceLine {
            name: source.name.clone(),
            kind: source.kind_name(),
            state: SourceState::Connecting,
            position: None,
            head: None,
            caught_up: Instant::now(),
            founded: None,
            reconciled: None,
            log: log::Log::default(),
        });
        let views =
            config.sources.iter().enumerate().map(|(index, source)| {
                source.fact_types().into_iter().map(|fact_type| ViewLine::new(index, fact_type.to_string())).collect()
            });
        Self {
            shadow: false,
            target_kind,
            plan,
            max_parked: None,
            store: OnceLock::new(),
            asks: OnceLock::new(),
            audits: OnceLock::new(),
            lines: Mutex::new(Lines {
                sources: sources.collect(),
                views: views.collect(),
                queues: Queues::default(),
                mode: Mode::Live,
                rate: None,
                parked: ParkedChanges::default(),
                holds: Vec::new(),
                target: TargetState::Unknown,
            }),
            applied: config.sources.iter().map(|_| Waits::default()).collect(),
            delivered: Waits::default(),
        }
    }

    /// The board of a run that delivers nothing.
    pub fn in_shadow(self) -> Self {
        Self { shadow: true, ..self }
    }

    /// Whether this run delivers nothing, so that there is nothing to wait for.
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }

    /// The same board, which is not ready with more than `grants` parked grants; with any number of them if that is `None`.
    pub fn with_max_parked(self, grants: Option<u64>) -> Self {
        Self { max_parked: grants, ..self }
    }

    pub(super) fn state(&self, source: usize, state: SourceState) {
        self.lines().sources[source].state = state;
    }

    pub(super) fn head(&self, source: usize, head: Position) {
        let line = &mut self.lines().sources[source];
        line.head = Some(head);
        line.note_lag();
    }

    pub(super) fn applied(&self, source: usize, position: Position, commit_no: u64) {
        {
            let line = &mut self.lines().sources[source];
            line.position = Some(position.clone());
            line.note_lag();
        }
        self.applied[source].set(Applied { position: Some(position), commit_no });
    }

    /// The desired facts up to `commit_no` are those of a snapshot or of an earlier process.
    ///
    /// `None` before the fact store was compared: what a snapshot took out of the outbox is not delivered, so until then no
    /// position counts as applied for those who wait.
    pub(super) fn founded(&self, source: usize, commit_no: Option<u64>) {
        self.lines().sources[source].founded = commit_no;
        if commit_no.is_none() {
            self.applied[source].set(Applied::default());
        }
    }

    pub(super) fn registered(&self, source: usize, views: &[ViewRecord]) {
        let mut lines = self.lines();
        for (line, record) in lines.views[source].iter_mut().zip(views) {
            line.facts = record.facts;
            line.skipped = record.skipped.clone();
            line.held = record.held;
        }
    }

    /// Tells how the view is kept up to date and why.
    pub(super) fn mode(&self, source: usize, view: usize, mode: &'static str, reason: Option<String>) {
        let line = &mut self.lines().views[source][view];
        (line.mode, line.reason) = (mode, reason);
    }

    pub(super) fn view_failed(&self, source: usize, view: usize, problem: Option<String>) {
        self.lines().views[source][view].problem = problem;
    }

    pub(super) fn changed(&self, source: usize, view: usize, change: &Change) {
        let line = &mut self.lines().views[source][view];
        line.facts = change.facts;
        line.skipped = change.skipped.clone();
        line.held = change.held;
        if change.inserted + change.removed > 0 {
            line.last_change = Some(SystemTime::now());
        }
    }

    pub(super) fn reconciled(&self, source: usize, missing: u64, stale: u64) {
        let drift = Drift::default();
        self.lines().sources[source].reconciled = Some(Reconciled { at: SystemTime::now(), missing, stale, drift });
    }

    pub(super) fn audited(&self, source: usize, drift: Drift) {
        let (missing, stale) = (drift.missing_grant, drift.stale_access + drift.foreign_fact);
        self.lines().sources[source].reconciled = Some(Reconciled { at: SystemTime::now(), missing, stale, drift });
    }

    pub(super) fn queues(&self, queues: Queues) {
        self.lines().queues = queues;
    }

    pub(super) fn mode_of_delivery(&self, mode: Mode) {
        self.lines().mode = mode;
    }

    pub(super) fn rate(&self, per_second: f64) {
        self.lines().rate = Some(per_second);
    }

    /// Shows what of its quota is used.
    pub(super) fn spends(&self, store: Arc<dyn FactStore>) {
        // There is one fact store to a run.
        let _ = self.store.set(store);
    }

    pub(super) fn parked(&self, parked: ParkedChanges) {
        self.lines().parked = parked;
    }

    pub(super) fn target(&self, state: TargetState) {
        self.lines().target = state;
    }

    /// Up to which commit everything is delivered.
    pub(super) fn delivered_up_to(&self) -> u64 {
        self.delivered.get().commit_no
    }

    pub(super) fn delivered(&self, delivered: Delivered) {
        self.delivered.set(delivered);
    }

    /// Ready: every source is followed, what its snapshot found is delivered, and the fact store answers and has refused no
    /// revocation, nor too many grants. Else why not.
    pub fn ready(&self) -> Result<(), String> {
        if self.shadow {
            return Err("in shadow mode: nothing is written to the fact store".to_owned());
        }
        let lines = self.lines();
        if let TargetState::Failing(problem) = &lines.target {
            return Err(format!("the fact store does not answer: {problem}"));
        }
        for line in &lines.sources {
            if line.state != SourceState::Streaming {
                return Err(format!("source \"{}\" is {}", line.name, state_name(&line.state)));
            }
            match line.founded {
                None => return Err(format!("source \"{}\" was not compared with the fact store yet", line.name)),
                Some(commit_no) if self.delivered.get().commit_no < commit_no => {
                    return Err(format!("the first facts of source \"{}\" are still being delivered", line.name));
                }
                Some(_) => {}
            }
        }
        if lines.target == TargetState::Unknown {
            return Err("the fact store was not asked yet".to_owned());
        }
        lines.parked.problem(self.max_parked).map_or(Ok(()), Err)
    }

    /// `/v1/status`.
    pub fn status(&self) -> Status {
        let lines = self.lines();
        let offset = self.delivered.get().offset.clone();
        Status {
            state: overall(&lines.sources),
            sources: lines.sources.iter().map(SourceLine::status).collect(),
            fact_types: lines.views.iter().flatten().map(|view| view.status(&lines.sources)).collect(),
            outbox: OutboxStatus {
                facts: lines.queues.outbox + lines.queues.backlog,
                backlog: lines.queues.backlog,
                parked: lines.parked.count(),
                mode: if self.shadow { SHADOW } else { lines.mode.name() },
                eta_seconds: self.eta(&lines).as_secs(),
                quota: self.budget().map(|Budget { per_minute, used }| QuotaStatus { updates_per_minute: per_minute, used }),
            },
            target: TargetStatus {
                kind: self.target_kind,
                reachable: lines.target == TargetState::Reachable,
                problem: match &lines.target {
                    TargetState::Failing(problem) => Some(problem.clone()),
                    TargetState::Unknown | TargetState::Reachable => None,
                },
                offset,
            },
            parked: lines.parked.listed.clone(),
            last_reconcile: last_reconcile(&lines.sources),
            held: lines.configured_holds().map(HeldStatus::from).collect(),
        }
    }

    /// How long it takes to deliver what waits, in seconds.
    pub(super) fn eta_of_delivery(&self) -> Duration {
        Duration::from_secs(self.eta(&self.lines()).as_secs())
    }

    /// How long it takes to deliver what waits: as long as the quota says, or as the fact store takes.
    fn eta(&self, lines: &Lines) -> Duration {
        let Queues { outbox, backlog, .. } = lines.queues;
        let paced = self.plan.time_for(outbox) + self.plan.time_to_spare(backlog);
        let taken = lines.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64((outbox + backlog) as f64 / rate.max(1.0)));
        paced.max(taken)
    }

    fn budget(&self) -> Option<Budget> {
        self.store.get().and_then(|store| store.quota().budget())
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("nobody panics while holding the board")
    }
}

impl ViewLine {
    fn new(source: usize, signature: String) -> Self {
        Self {
            signature,
            source,
            mode: "refresh",
            reason: None,
            problem: None,
            facts: 0,
            skipped: BTreeMap::new(),
            held: 0,
            last_change: None,
        }
    }

    fn status(&self, sources: &[SourceLine]) -> FactTypeStatus {
        FactTypeStatus {
            fact_type: self.signature.clone(),
            source: sources[self.source].name.clone(),
            mode: self.mode,
            reason: self.reason.clone(),
            problem: self.problem.clone(),
            facts: self.facts,
            last_change: self.last_change.map(timestamp),
            skipped_rows: self.skipped.values().sum(),
            skipped: self.skipped.clone(),
        }
    }
}

impl SourceLine {
    /// Caught up means that the applied position is the end of the source's log, as far as it told.
    fn note_lag(&mut self) {
        if !self.lags() {
            self.caught_up = Instant::now();
        }
    }

    /// Whether the source's log goes on beyond what is applied.
    fn lags(&self) -> bool {
        let end = |position: &Option<Position>| position.as_ref().and_then(Position::end);
        end(&self.head).is_some_and(|head| end(&self.position).is_none_or(|here| here < head))
    }

    /// Cluster times count no bytes.
    fn lag_bytes(&self) -> u64 {
        match (&self.position, &self.head) {
            (Some(Position::Lsn(here, _)), Some(Position::Lsn(head, _))) => head.0.saturating_sub(here.0),
            (Some(_) | None, Some(_) | None) => 0,
        }
    }

    fn status(&self) -> SourceStatus {
        let reason = match &self.state {
            SourceState::Retrying(reason) | SourceState::Failed(reason) => Some(reason.clone()),
            SourceState::Snapshotting => self.log.why(),
            SourceState::Connecting | SourceState::Streaming | SourceState::Standby => None,
        };
        SourceStatus {
            name: self.name.clone(),
            kind: self.kind,
            state: state_name(&self.state),
            reason,
            position: self.position.as_ref().map(ToString::to_string),
            lag_bytes: self.lag_bytes(),
            lag_seconds: if !self.lags() { 0.0 } else { self.caught_up.elapsed().as_secs_f64() },
            retained: self.log.retained(),
            snapshot: self.log.snapshot(),
        }
    }
}

fn state_name(state: &SourceState) -> &'static str {
    match state {
        SourceState::Connecting => "connecting",
        SourceState::Snapshotting => "snapshotting",
        SourceState::Streaming => "streaming",
        SourceState::Standby => "standby",
        SourceState::Retrying(_) => "retrying",
        SourceState::Failed(_) => "failed",
    }
}

/// The state of the source that is furthest from streaming stands for all.
fn overall(sources: &[SourceLine]) -> &'static str {
    let distance = |state: &SourceState| match state {
        SourceState::Streaming => 0,
        SourceState::Standby => 1,
        SourceState::Snapshotting => 2,
        SourceState::Connecting => 3,
        SourceState::Retrying(_) => 4,
        SourceState::Failed(_) => 5,
    };
    sources.iter().max_by_key(|line| distance(&line.state)).map_or("streaming", |line| state_name(&line.state))
}

/// The oldest of the sources' last comparisons, with what all of them found.
fn last_reconcile(sources: &[SourceLine]) -> Option<ReconcileStatus> {
    let reconciled: Vec<Reconciled> = sources.iter().map(|line| line.reconciled).collect::<Option<_>>()?;
    let at = reconciled.iter().map(|reconciled| reconciled.at).min()?;
    Some(ReconcileStatus {
        at: timestamp(at),
        missing: reconciled.iter().map(|reconciled| reconciled.missing).sum(),
        stale: reconciled.iter().map(|reconciled| reconciled.stale).sum(),
        drift: reconciled.iter().fold(Drift::default(), |sum, reconciled| sum + reconciled.drift),
    })
}
