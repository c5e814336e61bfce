//! Connections: how many there may be and what each may cost, whoever opens it.
//!
//! Nothing here depends on a key, because nobody has shown one yet. A connection is closed when a request's head takes too long or is too
//! large, when it asks for nothing, and when its other end stops taking what it asked for; a body is the business of who reads it, and
//! what nobody reads ends the connection. So whoever dribbles bytes holds one connection for a known time, and never holds a
//! thread, a lease on the store or anything that writes. Requests are told apart by hyper, which refuses what two readers could
//! understand differently (two lengths, a length beside chunks, folded headers).

use std::{convert::Infallible, io, pin::pin, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tower_service::Service;
use tracing::warn;

use crate::server::visitor;

/// What a connection may cost.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Connections at the same time; who comes later waits in the listener's queue.
    pub connections: usize,
    /// From the end of one request, or from the start, until the next one's head is there.
    pub head: Duration,
    /// How long the other end may take nothing of an answer.
    pub silence: Duration,
}

impl Default for Patience {
    /// All who may wait at the same time, and a thousand who write and look. 75 seconds is what proxies and clients count on
    /// for a connection that is idle, so that none is closed while they are about to use it. A receiver that takes nothing for
    /// 30 seconds is gone.
    fn default() -> Self {
        Self { connections: super::MOST_WAITERS + 1024, head: Duration::from_secs(75), silence: Duration::from_secs(30) }
    }
}

/// Bytes of a request's head: ten times what proxies take, and so little that a thousand of them do not matter.
const HEAD_BYTES: usize = 64 * 1024;
/// Headers of a request; browsers send twenty.
const MOST_HEADERS: usize = 100;
/// After the system had no room for another connection.
const BREATH: Duration = Duration::from_secs(1);

/// Serves `router` until `stop`, then gives open connections up to `grace`.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) -> io::Result<()> {
    // A thousand who wait are a thousand connections, and the usual soft limit of 1,024 open files is there for `select`, which nothing
    // here calls. Where it cannot be raised, those who come too late wait in the listener's queue.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let router = visitor::guard(router, listener.local_addr()?);
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept(), if open.len() < patience.connections => accepted,
        };
        match accepted {
            Ok((stream, _)) => drop(open.spawn(converse(stream, router.clone(), patience, stop.clone()))),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(error = %error, "no connection can be accepted");
                // A stop is seen at the next turn.
                let _ = timeout(BREATH, stopped(&mut stop)).await;
            }
        }
    }
    drop(listener);
    // What has not ended by then is cut off when the set is dropped.
    let _ = timeout(grace, async { while open.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Returns when the process is to end; a dropped sender is that as well.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether the other end went away before it was accepted; the listener is well.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// One connection, to its end.
async fn converse(stream: TcpStream, router: Router, patience: Patience, mut stop: watch::Receiver<bool>) {
    // An answer in two pieces must not wait for the acknowledgement of the first: that costs 40 ms. Where it cannot be set,
    // it is only slow.
    let _ = stream.set_nodelay(true);
    // The kernel counts the time in which the other end has taken nothing, also behind a window that is shut.
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(patience.silence));
    let service = service_fn(move |request: Request<Incoming>| answer(router.clone(), request));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(patience.head).max_buf_size(HEAD_BYTES).max_headers(MOST_HEADERS);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // What ends a connection badly is the other end's business.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        () = stopped(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

async fn answer(mut router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    router.call(request.map(Body::new)).await
}

#[cfg(test)]
mod tests;
