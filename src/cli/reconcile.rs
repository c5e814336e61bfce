//! `factsync reconcile`: one full compare, a drop-in for `oso-cloud reconcile`.

use std::path::Path;

use anyhow::Context;
use clap::Args;

use crate::{
    cli::{
        Configs, Exit, Global, load_sources, print,
        progress::{Line, Progress},
        say, target,
    },
    config::{Config, SourceConfig},
    data::Extent,
    error::causes,
    fact::FactType,
    reconcile::{self, Detail, Outcome, Report, Spool},
    source,
    target::{FactStore, quota::Plan, retry::Attempts},
    view::{Guard, Verdict},
};

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
}

pub(super) async fn run(global: &Global, args: &ReconcileArgs) -> anyhow::Result<Exit> {
    let config = load_sources(&args.configs)?;
    let choice = target::choose(global)?;
    // Only the embedded store lives in the state directory; a remote one can be reconciled beside a running factsync.
    let state = match &choice {
        target::Choice::Embedded => Some(target::lock(&global.state)?),
        target::Choice::Remote { .. } => None,
    };
    let target = choice.open(global, state.as_ref())?;
    let spool = tempfile::tempdir().context("could not make a temporary folder for sorting. TMPDIR says where")?;
    let progress = Progress::new();
    let mut outcomes = compare(&config, target.store.as_ref(), spool.path(), &progress).await;
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

/// Compares every fact type, in the order of the files.
async fn compare(config: &Config, store: &dyn FactStore, spool: &Path, progress: &Progress) -> Vec<Outcome> {
    let mut placed = Vec::new();
    for source in &config.sources {
        let fact_types = source.fact_types();
        let lines: Vec<Line> = fact_types.iter().map(|fact_type| progress.line(&fact_type.to_string())).collect();
        let views = snapshot(source, spool, &lines).await;
        for (((fact_type, line), view), place) in fact_types.into_iter().zip(&lines).zip(views).zip(source.places()) {
            let outcome = compare_one(fact_type, view, store, spool, line).await;
            line.done(&tell(&outcome));
            placed.push((place, outcome));
        }
    }
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn snapshot(source: &SourceConfig, spool: &Path, lines: &[Line]) -> Vec<Result<Extent, String>> {
    let observer = |view: usize, rows: u64| lines[view].at(rows, "rows read");
    match source::snapshot(source, spool, &observer).await {
        Ok(snapshot) => snapshot.views.into_iter().map(|view| view.map_err(|error| causes(&error))).collect(),
        Err(error) => {
            let error = causes(&error);
            lines.iter().map(|_| Err(error.clone())).collect()
        }
    }
}

async fn compare_one(fact_type: &FactType, view: Result<Extent, String>, store: &dyn FactStore, spool: &Path, line: &Line) -> Outcome {
    let wanted = match view {
        Ok(wanted) => wanted,
        Err(error) => return Outcome::Failed { fact_type: fact_type.clone(), error },
    };
    let observer = |facts| line.at(facts, "facts listed");
    match reconcile::compare(fact_type, wanted, store, spool, Attempts::default(), &observer).await {
        Ok(comparison) => Outcome::Compared(comparison),
        Err(error) => Outcome::failed(fact_type, &error),
    }
}

/// Takes out the removals that are too many for nobody to have looked at; `true` if there were some.
fn hold_removals(outcomes: &mut [Outcome], guard: Guard, spool: &Path) -> anyhow::Result<bool> {
    let mut held = false;
    for outcome in outcomes {
        let Outcome::Compared(comparison) = outcome else { continue };
        let removals = comparison.removes.len();
        if guard.judge(removals, comparison.stored) == Verdict::Hold {
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
    let at_least = plan.time_for(changes);
    if !at_least.is_zero() {
        say(&format!("writing {changes} changes takes at least {} on this plan", humantime::format_duration(at_least)));
    }
    let observer = |written| line.at(written, "changes written");
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
