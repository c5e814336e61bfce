//! The command line: what the user typed, and one file per command.
//!
//! Logs and progress go to stderr, results to stdout, and the outcome is an [`Exit`].

mod check;
mod explain;
mod hold;
mod progress;
mod prove;
mod reconcile;
mod remote;
mod reset;
mod run;
mod serve;
mod setup;
mod standby;
mod target;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    config::{self, Config, Problems},
    store::{self, StateDirectory},
    target::{embedded::Limits, quota::Plan},
    telemetry::{self, LogFormat},
};

/// How a command ends; the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// A run-time failure.
    Failure,
    /// Usage or configuration.
    Usage,
    /// Drift found and `--exit-code` was given.
    Drift,
    /// Refused by a guard.
    Guard,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Drift => 3,
            Exit::Guard => 4,
        })
    }
}

/// Keeps authorization facts in step with application databases.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Where positions, desired facts and the embedded fact store are kept
    #[arg(long, global = true, value_name = "DIR", default_value = "./factsync-state")]
    state: PathBuf,
    /// Where HTTP is served, and where `status`, `wait` and `hold` ask
    #[arg(long, global = true, value_name = "ADDR", default_value = "127.0.0.1:7878")]
    listen: SocketAddr,
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value = "text")]
    log: Log,
    /// Where facts go: `embedded` or the URL of a fact store. Default: Oso Cloud if OSO_AUTH or OSO_AUTH_FILE is set (at OSO_URL
    /// if that is set), else `embedded`
    #[arg(long, global = true, value_name = "embedded|URL")]
    target: Option<String>,
    /// Send the key and the facts to another machine without TLS, where --target says http://
    #[arg(long, global = true)]
    plain_http: bool,
    /// The plan whose write quota is kept when facts go to a URL: free, growth or unlimited
    #[arg(long, global = true, default_value = "growth")]
    plan: Plan,
    /// Whose limits the embedded fact store enforces on its HTTP clients: growth, free or off
    #[arg(long, global = true, default_value = "growth")]
    limits: Limits,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Snapshot, reconcile once, then follow the sources until stopped
    Run(run::RunArgs),
    /// Compare the fact store with the queries once; with --perform-updates make it equal
    Reconcile(reconcile::ReconcileArgs),
    /// Oso's older spelling of `reconcile`
    #[command(hide = true)]
    Experimental {
        #[command(subcommand)]
        command: Experimental,
    },
    /// Validate configuration, queries, privileges and reachability; all problems at once
    Check(check::CheckArgs),
    /// Tell per fact type how it is kept up to date and why
    Explain(Configs),
    /// Print what an administrator has to run; with --apply run it (PostgreSQL)
    Setup(setup::SetupArgs),
    /// Serve only the embedded fact store
    Serve,
    /// Ask a running factsync how it is
    Status,
    /// Wait until the facts of a position are acknowledged by the fact store
    Wait(remote::WaitArgs),
    /// Look at removals that wait for a person, let them go, or forget them
    Hold(hold::HoldArgs),
    /// Have a running factsync compare source, desired facts and fact store at one position, and print a signed report
    Prove(prove::ProveArgs),
    /// Drop the slot, publication and local state that factsync created
    Reset(reset::ResetArgs),
}

#[derive(Debug, Subcommand)]
enum Experimental {
    /// Compare the fact store with the queries once
    Reconcile(reconcile::ReconcileArgs),
}

#[derive(Debug, Args)]
struct Configs {
    /// Configuration files; together they feed one fact store
    #[arg(required = true, value_name = "CONFIG")]
    configs: Vec<PathBuf>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    leave_no_core();
    let default = match cli.command {
        Command::Run(_) | Command::Serve => "info,pgwire_replication=off",
        Command::Reconcile(_)
        | Command::Experimental { .. }
        | Command::Check(_)
        | Command::Explain(_)
        | Command::Setup(_)
        | Command::Status
        | Command::Wait(_)
        | Command::Hold(_)
        | Command::Prove(_)
        | Command::Reset(_) => "warn,pgwire_replication=off",
    };
    telemetry::init_logs(if matches!(cli.global.log, Log::Json) { LogFormat::Json } else { LogFormat::Text }, default);
    // One TLS provider for every client in the process; a second installation is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let outcome = runtime().and_then(|runtime| runtime.block_on(dispatch(cli)));
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            let problems = error.downcast_ref::<Problems>();
            let text = problems.map_or_else(|| format!("error: {error:#}"), ToString::to_string);
            // There is nobody left to tell when stderr is closed.
            let _ = writeln!(io::stderr(), "{text}");
            let usage = problems.is_some() || error.is::<Misuse>();
            if usage { Exit::Usage } else { Exit::Failure }.into()
        }
    }
}

/// A core dump would hold every password and key, and rows. 1 rather than 0, because the kernel still hands a core to a program (as
/// `core_pattern` may say) at 0, and not at 1. Only the soft limit: who hunts a crash can raise it, `prlimit --core=unlimited --pid PID`.
fn leave_no_core() {
    if let Ok((_, hard)) = rlimit::Resource::CORE.get() {
        // A hard limit of 0 is as good.
        let _ = rlimit::Resource::CORE.set(hard.min(1), hard);
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start the async runtime")
}

async fn dispatch(cli: Cli) -> anyhow::Result<Exit> {
    let Cli { global, command } = cli;
    match command {
        Command::Run(args) => run::run(&global, &args).await,
        Command::Reconcile(args) | Command::Experimental { command: Experimental::Reconcile(args) } => reconcile::run(&global, &args).await,
        Command::Check(args) => check::run(&global, &args).await,
        Command::Explain(args) => explain::run(&global, &args).await,
        Command::Setup(args) => setup::run(&global, &args).await,
        Command::Serve => serve::run(&global).await,
        Command::Status => remote::status(&global).await,
        Command::Wait(args) => remote::wait(&global, &args).await,
        Command::Hold(args) => hold::run(&global, &args).await,
        Command::Prove(args) => prove::run(&global, &args).await,
        Command::Reset(args) => reset::run(&global, &args).await,
    }
}

/// The user asked for something that cannot be; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Misuse(String);

/// Loads what the files say; sources that the state directory knows keep their slots.
fn load(global: &Global, configs: &Configs) -> anyhow::Result<Config> {
    let kept = store::slots(&StateDirectory::state_in(&global.state))?;
    Ok(config::load_keeping(&configs.configs, &|name| std::env::var(name).ok(), &kept)?)
}

/// Loads what is to be synced: at least one source.
fn load_sources(global: &Global, configs: &Configs) -> anyhow::Result<Config> {
    let config = load(global, configs)?;
    if config.sources.is_empty() {
        let files: Vec<String> = config.local.iter().map(|local| format!("\"{}\"", local.file.display())).collect();
        return Err(Misuse(format!(
            "there is nothing to sync in {}: a local-authorization file names no database. `factsync check` judges it",
            files.join(", ")
        ))
        .into());
    }
    Ok(config)
}

/// Writes a result; a reader that went away is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("could not write to stdout"),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Says something to a person.
fn say(text: &str) {
    // There is nobody left to tell when stderr is closed.
    let _ = writeln!(io::stderr(), "{text}");
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; expected a duration such as 5s or 1m"))
}
