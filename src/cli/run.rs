//! `factsync run`: the main job.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::{
    cli::{Configs, Exit, Global, duration, load_sources, target},
    config::{MaxRemovals, SourceConfig, SourceKind},
    engine::{self, Board, Delivery, Parts, ShadowOptions},
    server,
    source::{Follow, csv, mongo, postgres},
    store::{Checkpoint, Store},
    target::{
        TargetError,
        embedded::{self, EmbeddedStore},
    },
    telemetry,
    view::Guard,
};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    configs: Configs,
    /// Let removals go that `max_removals` or `--adopt` held, and do not hold any
    #[arg(long)]
    allow_removals: bool,
    /// At the first comparison, take over what the fact store holds: insert what is missing, remove nothing. What no query wants is
    /// held, as `/v1/status` shows, until `--allow-removals` lets go of it
    #[arg(long, conflicts_with = "allow_removals")]
    adopt: bool,
    /// Write nothing; report on stdout what would be written, and how what the application writes differs, commit by commit
    #[arg(long, conflicts_with_all = ["allow_removals", "adopt"])]
    shadow: bool,
    /// How late the application's own write may be, for --shadow
    #[arg(long, value_name = "5s", value_parser = grace, default_value = "5s", requires = "shadow")]
    #[arg(conflicts_with_all = ["allow_removals", "adopt"])]
    shadow_grace: Duration,
    /// Not ready (/readyz) with more than this many grants that the fact store refused; a refused revocation is always too much
    #[arg(long, value_name = "N")]
    max_parked: Option<u64>,
}

/// The longest grace: so long the changes of every commit that does not agree are kept in memory.
const LONGEST_GRACE: Duration = Duration::from_secs(10 * 60);

fn grace(text: &str) -> Result<Duration, String> {
    let grace = duration(text)?;
    if grace > LONGEST_GRACE { Err("the longest is 10m".to_owned()) } else { Ok(grace) }
}

impl RunArgs {
    fn guard(&self, limits: MaxRemovals) -> Guard {
        match (self.allow_removals, self.adopt) {
            (true, _) => Guard::Off,
            (false, true) => Guard::Adopt(limits),
            (false, false) => Guard::Limit(limits),
        }
    }

    fn delivery(&self) -> Delivery {
        if self.shadow {
            Delivery::Shadow(ShadowOptions { grace: self.shadow_grace, report: Box::new(std::io::stdout()) })
        } else {
            Delivery::Send
        }
    }
}

pub(super) async fn run(global: &Global, args: &RunArgs) -> anyhow::Result<Exit> {
    let config = load_sources(global, &args.configs)?;
    let choice = target::choose(global)?;
    let mut state = target::lock(&global.state)?;
    let followers = config.sources.iter().map(|source| follower(source, &state.spool())).collect();
    let target = choice.open(global, Some(&state))?;
    let api = match &target.embedded {
        Some(store) => Some(embedded::router(store.clone(), target::access(global)?, global.limits)),
        None => None,
    };
    let board = Board::new(&config, target.kind, target.plan).with_max_parked(args.max_parked);
    let board = Arc::new(if args.shadow { board.in_shadow() } else { board });
    let parts = Parts {
        store: Store::open(&state.state())?,
        checkpoint: Checkpoint::open(&state.checkpoint())?,
        target: target.store,
        spool: state.spool(),
        followers,
        guard: args.guard(config.sync.max_removals),
        board: board.clone(),
        delivery: args.delivery(),
    };
    let signals = Signals::catch()?;
    let listener = listen(global).await?;
    let url = format!("http://{}", listener.local_addr()?);
    state.listens_at(&url)?;
    info!(target = target.kind, "listening on {url}");
    let (stop, stopped) = watch::channel(false);
    let router = server::router(board, telemetry::init_metrics(), target::holder(global)?, api, stopped.clone());
    let http = tokio::spawn(server::serve(listener, router, stopped.clone(), engine::GRACE));
    let signals = tokio::spawn(until_signalled(signals, stop.clone()));
    let mut outcome = tokio::select! {
        outcome = engine::run(&config, parts, stopped) => outcome,
        // A fact store that failed to commit takes no more writes until it is opened again.
        error = failed(target.embedded.as_ref()) => return Err(error.into()),
    };
    stop.send_replace(true);
    if let Ok(Err(error)) = http.await {
        outcome = outcome.and(Err(engine::EngineError::Http(error)));
    }
    signals.abort();
    outcome?;
    Ok(Exit::Done)
}

/// Returns when the embedded fact store has failed for good; never without one.
async fn failed(store: Option<&EmbeddedStore>) -> TargetError {
    match store {
        Some(store) => store.failed().await,
        None => std::future::pending().await,
    }
}

/// Binds `--listen`.
pub(super) async fn listen(global: &Global) -> anyhow::Result<TcpListener> {
    TcpListener::bind(global.listen)
        .await
        .with_context(|| format!("could not listen on {}. Pass --listen with a free address, such as 127.0.0.1:0", global.listen))
}

/// The signals that stop a process in good order.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they do not end the process by themselves. To be called before it says that it listens.
    pub(super) fn catch() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Turns `stop` on SIGTERM or SIGINT, and ends the process if the stop takes longer than it may.
#[expect(clippy::disallowed_methods, reason = "a stop that takes too long has no other end")]
pub(super) async fn until_signalled(mut signals: Signals, stop: watch::Sender<bool>) {
    tokio::select! {
        _ = signals.terminate.recv() => {}
        _ = signals.interrupt.recv() => {}
    }
    info!("stopping");
    stop.send_replace(true);
    tokio::time::sleep(engine::GRACE + Duration::from_secs(1)).await;
    // What is not durable by now was not acknowledged to anybody, so nothing is lost.
    warn!("stopping took too long, leaving now");
    std::process::exit(0)
}

fn follower(source: &SourceConfig, spool: &std::path::Path) -> Box<dyn Follow> {
    match &source.kind {
        SourceKind::Postgres(config) => Box::new(postgres::Follower::new(&source.name, config, spool.to_owned())),
        SourceKind::Csv(config) => Box::new(csv::Follower::new(&source.name, config, spool)),
        SourceKind::Mongo(config) => Box::new(mongo::Follower::new(&source.name, config.clone(), spool)),
    }
}
