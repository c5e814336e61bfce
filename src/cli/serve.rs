//! `factsync serve`: the embedded fact store alone.

use tokio::sync::watch;
use tracing::info;

use crate::{
    cli::{Exit, Global, run, target},
    engine,
    server::{self, Patience},
    target::embedded::{self, EmbeddedStore},
};

pub(super) async fn run(global: &Global) -> anyhow::Result<Exit> {
    let access = target::access(global)?;
    let mut state = target::lock(&global.state)?;
    let store = EmbeddedStore::open(&state.facts())?;
    let signals = run::Signals::catch()?;
    let listener = run::listen(global).await?;
    let url = format!("http://{}", listener.local_addr()?);
    state.listens_at(&url)?;
    info!("listening on {url}");
    let (stop, stopped) = watch::channel(false);
    let signals = tokio::spawn(run::until_signalled(signals, stop));
    let router = server::bare_router(embedded::router(store.clone(), access, global.limits));
    tokio::select! {
        served = server::serve(listener, router, Patience::default(), stopped, engine::GRACE) => served?,
        // A store that failed to commit takes no more writes until it is opened again.
        error = store.failed() => return Err(error.into()),
    }
    signals.abort();
    Ok(Exit::Done)
}
