//! `factsync reconcile`: one full compare, a drop-in for `oso-cloud reconcile`.
//!
//! The fact store is listed while the sources are read: each waits mostly for somebody else.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    cli::{
        Configs, Exit, Global, load_sources, print,
        progress::{Line, Progress},
        prove, say, target,
    },
    config::{Config, SourceConfig},
    data::Extent,
    error::{Disposition, causes},
    fact::FactType,
    reconcile::{self, Detail, Outcome, Report, Spool},
    source,
    target::{
        FactStore,
        quota::Plan,
        retry::{Attempts, probe_with_retry},
    },
    view::{Guard, Verdict},
};

/// How often a fact store is asked at the start: for a second or two, so that a wrong URL is told soon, and one that is just being
/// restarted is not an error.
const PROBES: Attempts = Attempts(NonZeroU32::new(4).expect("four is not zero"));
/// Fact types listed at a time. More would only share what one listing leaves of the network and the fact store.
const LISTINGS: usize = 2;

#[derive(Debug, Args)]
pub(super) struct ReconcileArgs {
    #[command(flatten)]
    configs: Configs,
    /// Make the fact store equal the queries, instead of only reporting
    #[arg(long)]
    perform_updates: bool,
    /// Print JSON; always on, accepted because Oso's CLI has it
    #[arg(long)]
    json: bool,
    /// Print counts even if there are few changes
    #[arg(long)]
    summarized_output: bool,
    /// Write nothing if there are more changes than this, and exit with 4
    #[arg(long, value_name = "N")]
    max_changes: Option<u64>,
    /// Exit with 3 if there is drift
    #[arg(long)]
    exit_code: bool,
    /// Let removals go that `max_removals` would hold
    #[arg(long)]
    allow_removals: bool,
    /// Have the factsync that runs at --listen compare source, desired facts and fact store at one position while it goes on
    #[arg(long, conflicts_with_all = ["max_changes", "allow_removals", "summarized_output"])]
    live: bool,
}

pub(super) async fn run(global: &Global, args: &ReconcileArgs) -> anyhow::Result<Exit> {
    if args.live {
        return prove::live(global, args.perform_updates, args.exit_code).await;
    }
    let config = load_sources(global, &args.configs)?;
    let choice = target::choose(global)?;
    // Only the embedded store lives in the state directory; a remote one can be reconciled beside a running factsync.
    let state = match &choice {
        target::Choice::Embedded => Some(target::lock(&global.state)?),
        target::Choice::Remote { .. } => None,
    };
    // A comparison that nothing follows from is allowed with a read-only key, too.
    let target = choice.open(global, state.as_ref())?;
    // A fact store that is away, or refuses the key, is one error, and not one for each fact type after everything was read.
    probe_with_retry(target.store.as_ref(), PROBES).await?;
    let spool = tempfile::tempdir().context("could not make a temporary folder for sorting. TMPDIR says where")?;
    let progress = Progress::new();
    let mut outcomes = compare(&config, &args.configs.configs, &target.store, spool.path(), &progress).await;
    let detail = if args.summarized_output { Detail::Counts } else { Detail::Facts };
    let report = Report::new(&mut outcomes, detail).context("could not read the changes back")?;
    print(&format!("{}\n", serde_json::to_string(&report)?))?;

    let changes: u64 = outcomes.iter().map(Outcome::changes).sum();
    let mut exit = Exit::Done;
    if changes > 0 && args.exit_code {
        exit = Exit::Drift;
    }
    if args.perform_updates && changes > 0 {
        if let Some(max) = args.max_changes.filter(|max| changes > *max) {
            say(&format!("{changes} changes are more than --max-changes {max}: nothing was written"));
            exit = Exit::Guard;
        } else {
            let guard = if args.allow_removals { Guard::Off } else { Guard::Limit(config.sync.max_removals) };
            if hold_removals(&mut outcomes, guard, spool.path())? {
                exit = Exit::Guard;
            }
            write(target.store.as_ref(), &mut outcomes, global.plan, &progress.line("writing")).await?;
        }
    }
    let failed = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Failed { .. }));
    Ok(if failed { Exit::Failure } else { exit })
}

/// Compares every fact type; the outcomes are in the order of the command line's `files` and of the lines in each.
async fn compare(config: &Config, files: &[PathBuf], store: &Arc<dyn FactStore>, spool: &Path, progress: &Progress) -> Vec<Outcome> {
    let lister = Lister::new(store, spool);
    let sources: Vec<(&SourceConfig, Vec<Listed>)> = config
        .sources
        .iter()
        .map(|source| {
            let listed = source.fact_types().into_iter().map(|fact_type| {
                let line = Arc::new(progress.line(&fact_type.to_string()));
                (line.clone(), lister.start(fact_type, line))
            });
            (source, listed.collect())
        })
        .collect();
    let mut placed = Vec::new();
    for (source, listed) in sources {
        let views = snapshot(source, spool, &listed).await;
        for (((fact_type, (line, listing)), view), place) in source.fact_types().into_iter().zip(listed).zip(views).zip(source.places()) {
            let outcome = compare_one(fact_type, view, listing, spool).await;
            line.done(&tell(&outcome));
            placed.push((place, outcome));
        }
    }
    placed.sort_by_key(|(place, _)| (files.iter().position(|file| *file == place.file), place.line, place.column));
    placed.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn snapshot(source: &SourceConfig, spool: &Path, listed: &[Listed]) -> Vec<Result<Extent, String>> {
    let observer = |view: usize, rows: u64| listed[view].0.at(rows, "rows read");
    match source::snapshot(source, spool, &observer).await {
        Ok(snapshot) => snapshot.views.into_iter().map(|view| view.map_err(|error| causes(&error))).collect(),
        Err(error) => {
            let error = causes(&error);
            listed.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

async fn compare_one(fact_type: &FactType, view: Result<Extent, String>, listing: Listing, spool: &Path) -> Outcome {
    let wanted = match view {
        Ok(wanted) => wanted,
        Err(error) => {
            listing.abort();
            return Outcome::Failed { fact_type: fact_type.clone(), error };
        }
    };
    let stored = listing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let compared = match stored {
        Ok(stored) => reconcile::compare(fact_type, wanted, stored, spool).await,
        Err(error) => Err(error),
    };
    compared.map_or_else(|error| Outcome::failed(fact_type, &error), Outcome::Compared)
}

/// What the fact store holds of one fact type, being listed.
type Listing = JoinHandle<Result<Extent, reconcile::Error>>;
/// A fact type's listing with the line it is shown on.
type Listed = (Arc<Line>, Listing);

/// Lists fact types beside everything else, [`LISTINGS`] at a time.
struct Lister {
    store: Arc<dyn FactStore>,
    spool: PathBuf,
    turns: Arc<Semaphore>,
    /// One listing had all its attempts: the others need not wait as long to learn the same.
    away: Arc<AtomicBool>,
}

impl Lister {
    fn new(store: &Arc<dyn FactStore>, spool: &Path) -> Self {
        Self { store: store.clone(), spool: spool.to_owned(), turns: Arc::new(Semaphore::new(LISTINGS)), away: Arc::default() }
    }

    fn start(&self, fact_type: &FactType, line: Arc<Line>) -> Listing {
        let (fact_type, store, spool) = (fact_type.clone(), self.store.clone(), self.spool.clone());
        let (turns, away) = (self.turns.clone(), self.away.clone());
        tokio::spawn(async move {
            let _turn = turns.acquire().await.expect("nobody closes it");
            let attempts = if away.load(Ordering::Relaxed) { Attempts::ONCE } else { Attempts::default() };
            let observer = |facts| line.at(facts, "facts listed");
            let listed = reconcile::list(&fact_type, store.as_ref(), &spool, attempts, &observer).await;
            if listed.as_ref().is_err_and(|error| error.disposition() == Disposition::Retry) {
                away.store(true, Ordering::Relaxed);
            }
            listed
        })
    }
}

/// Takes out the removals that are too many for nobody to have looked at; `true` if there were some.
fn hold_removals(outcomes: &mut [Outcome], guard: Guard, spool: &Path) -> anyhow::Result<bool> {
    let mut held = false;
    for outcome in outcomes {
        let Outcome::Compared(comparison) = outcome else { continue };
        let removals = comparison.removes.len();
        if guard.judge_comparison(removals, comparison.stored) != Verdict::Apply {
            say(&format!(
                "{}: {removals} removals of {} facts are held, more than max_removals allows. \
                 Check the source; --allow-removals lets them go",
                comparison.fact_type, comparison.stored
            ));
            comparison.removes = Spool::write(spool, []).context("could not set removals aside")?;
            held = true;
        }
    }
    Ok(held)
}

async fn write(store: &dyn FactStore, outcomes: &mut [Outcome], plan: Plan, line: &Line) -> anyhow::Result<()> {
    let changes: u64 = outcomes.iter().map(Outcome::changes).sum();
    let at_least = plan.time_for(changes).as_secs();
    if at_least > 0 {
        let at_least = humantime::format_duration(Duration::from_secs(at_least));
        say(&format!("writing {changes} changes takes at least {at_least} on this plan"));
    }
    let began = Instant::now();
    // As long as the quota says, or as the fact store takes.
    let observer = |written: u64| {
        let left = changes.saturating_sub(written);
        let taken = began.elapsed().mul_f64(left as f64 / written.max(1) as f64);
        line.at_with(written, "changes written", left, plan.time_for(left).max(taken));
    };
    let written = reconcile::apply(store, outcomes, Attempts::default(), &observer).await?;
    line.done(&format!("{written} changes written"));
    Ok(())
}

fn tell(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed { error, .. } => format!("failed: {error}"),
        Outcome::Compared(comparison) => {
            let skipped: u64 = comparison.skipped.values().sum();
            let reasons: Vec<String> = comparison.skipped.iter().map(|(reason, rows)| format!("{rows} because {reason}")).collect();
            let skipped = if skipped == 0 { String::new() } else { format!(", rows that make no fact: {}", reasons.join(", ")) };
            format!(
                "{} wanted, {} stored, {} to add, {} to remove{skipped}",
                comparison.wanted,
                comparison.stored,
                comparison.adds.len(),
                comparison.removes.len()
            )
        }
    }
}
