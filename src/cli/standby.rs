//! Waiting for the state directory: `run --standby`.
//!
//! Two processes on one state directory would write over each other, so the directory is locked, and the standby waits for the lock. The
//! kernel gives it away in the moment in which the first process ends, also by `kill -9`. From there on the standby is an ordinary run that
//! resumes from the stored position. Until then it listens already, so that whoever watches it sees that it is alive and not ready, and
//! its port is known to be free.

use anyhow::Context;
use tokio::{net::TcpListener, sync::oneshot, sync::watch};
use tracing::info;

use crate::{
    cli::{
        Global,
        run::{Signals, listen},
    },
    engine,
    server::{self, Patience},
    store::{StateDirectory, StateError},
};

/// Locks the state directory as soon as nobody else does; `None` if the process is to stop before that.
pub(super) async fn wait(global: &Global) -> anyhow::Result<Option<(StateDirectory, TcpListener)>> {
    let mut signals = Signals::catch()?;
    let listener = listen(global).await?.into_std()?;
    let holder = match StateDirectory::lock(&global.state) {
        Ok(state) => return Ok(Some((state, TcpListener::from_std(listener)?))),
        Err(StateError::Locked { holder, .. }) => holder,
        Err(error @ StateError::Io { .. }) => return Err(error.into()),
    };
    let url = format!("http://{}", listener.local_addr()?);
    let why = format!("the standby: the state directory \"{}\" is in use by {holder}", global.state.display());
    info!(holder, "waiting for the state directory as the standby, listening on {url}");
    let (stop, stopped) = watch::channel(false);
    let waiting = TcpListener::from_std(listener.try_clone()?)?;
    tokio::spawn(server::serve(waiting, server::standby_router(&why), Patience::default(), stopped, engine::GRACE));
    let locked = lock_when_free(global)?;
    let state = tokio::select! {
        locked = locked => Some(locked.context("the thread that waits for the state directory has ended")??),
        () = signals.caught() => None,
    };
    // It accepts nobody from here on, and closes the connections that it has, so that the next request on any of them is the run's.
    stop.send_replace(true);
    match state {
        Some(state) => {
            info!(holder, "the state directory is free, taking over");
            Ok(Some((state, TcpListener::from_std(listener)?)))
        }
        None => {
            info!("stopping");
            Ok(None)
        }
    }
}

/// In a thread of its own: the wait has no end of its own, and a process that stops must not wait for it.
fn lock_when_free(global: &Global) -> anyhow::Result<oneshot::Receiver<Result<StateDirectory, StateError>>> {
    let (found, locked) = oneshot::channel();
    let path = global.state.clone();
    let wait = move || {
        // Nobody listens any more if the process is stopping.
        let _ = found.send(StateDirectory::lock_when_free(&path));
    };
    std::thread::Builder::new().name("standby".to_owned()).spawn(wait).context("could not start a thread")?;
    Ok(locked)
}
