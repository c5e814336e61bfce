//! `factsync reset`: drops what factsync created, after naming it.
//!
//! The slot goes first, because it is what holds log on the customer's server; the local state goes last, so that a reset that
//! fails half-way can be repeated. The facts stay: those in Oso Cloud, and those of the embedded store, whose next run compares them
//! anyway. Nothing is made on a MongoDB server: its position and resume token are in the local state.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::Context;
use clap::Args;

use crate::{
    cli::{Configs, Exit, Global, Misuse, load_sources, print, say, target},
    config::{Config, SourceKind},
    error::causes,
    source::postgres::{self, ResetPlan},
    store::{self, StateDirectory},
};

#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    configs: Configs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(global: &Global, args: &ResetArgs) -> anyhow::Result<Exit> {
    let config = load_sources(global, &args.configs)?;
    let state = target::lock(&global.state)?;
    let named = name(&config, &state).await?;
    for source in config.sources.iter().filter(|source| matches!(source.kind, SourceKind::Mongo(_))) {
        say(&format!("source \"{}\": factsync makes nothing on a MongoDB server, so there is nothing to drop there", source.name));
    }
    if named.is_empty() {
        print("there is nothing to drop\n")?;
        return Ok(Exit::Done);
    }
    print(&format!("to be dropped:\n{}", named.iter().map(|line| format!("  {line}\n")).collect::<String>()))?;
    if !args.yes && !confirmed()? {
        return Ok(Exit::Done);
    }
    for (source, slot) in left(&config, &state)? {
        say(&format!("slot \"{slot}\" of source \"{source}\" is not dropped, for no configuration file names that source"));
    }
    for source in &config.sources {
        if let SourceKind::Postgres(config) = &source.kind {
            postgres::apply_reset(&source.name, config).await.map_err(|error| anyhow::anyhow!(causes(&error)))?;
        }
    }
    for path in local_state(&state) {
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("could not remove \"{}\"", path.display()))?;
    }
    print("dropped\n")?;
    Ok(Exit::Done)
}

async fn name(config: &Config, state: &StateDirectory) -> anyhow::Result<Vec<String>> {
    let mut named = Vec::new();
    for source in &config.sources {
        let SourceKind::Postgres(postgres) = &source.kind else { continue };
        let plan = postgres::plan_reset(&source.name, postgres).await.map_err(|error| anyhow::anyhow!(causes(&error)))?;
        let ResetPlan { slot, slot_is_active, publication } = plan;
        if slot_is_active {
            anyhow::bail!("slot \"{}\" of source \"{}\" is in use. Stop the factsync that follows it first", postgres.slot, source.name);
        }
        named.extend(slot.map(|slot| format!("slot \"{slot}\" of source \"{}\"", source.name)));
        named.extend(publication.map(|publication| format!("publication \"{publication}\" of source \"{}\"", source.name)));
    }
    named.extend(local_state(state).iter().map(|path| format!("\"{}\"", path.display())));
    Ok(named)
}

/// The slots of sources that the state directory knows and the configuration does not.
fn left(config: &Config, state: &StateDirectory) -> anyhow::Result<Vec<(String, String)>> {
    let known = |name: &String| config.sources.iter().any(|source| source.name == *name);
    let slots = store::slots(&state.state())?.into_iter().filter(|(name, _)| !known(name));
    Ok(slots.filter_map(|(name, slot)| slot.map(|slot| (name, slot))).collect())
}

/// The files of the local store and the checkpoint that exist.
fn local_state(state: &StateDirectory) -> Vec<PathBuf> {
    let store = state.state();
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", store.display()));
    // Without its log a store that is left behind half-way could be one that never was; a log without a store is nothing.
    let paths = [store.clone(), beside("-wal"), beside("-shm"), state.checkpoint()];
    paths.into_iter().filter(|path| path.exists()).collect()
}

fn confirmed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Misuse("nobody is there to be asked. Pass --yes to drop all of this".to_owned()).into());
    }
    write!(io::stderr(), "drop all of this? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    let yes = matches!(answer.trim(), "y" | "Y" | "yes");
    if !yes {
        say("nothing was dropped");
    }
    Ok(yes)
}
