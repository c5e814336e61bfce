//! HTTP on `--listen`: status, waiting, metrics, health, the status page, and the fact store's own API beside them.
//!
//! | path | what |
//! |---|---|
//! | `GET /v1/status` | JSON: [`Status`](crate::engine::Status) |
//! | `GET /v1/wait?position=P&timeout_ms=N&source=NAME` | `{"position", "offset"}` once every fact of the commits up to P is acknowledged; 504 when time runs out, 503 when too many wait |
//! | | without `source` the one that counts in the position's measure, if only one does; 400 names the sources |
//! | `GET /v1/holds` | `{"held": […]}`, as in the status |
//! | `GET /v1/holds/{id}` | the hold and its facts, with the key |
//! | `POST /v1/holds/{id}/release`, `…/drop` | lets its removals go, or forgets them, with the key; 404 if there is none, also for the second of two |
//! | `POST /v1/audit?repair=true` | compares source, desired facts and fact store at one position and tells what differs, with the key |
//! | `GET /metrics` | Prometheus text |
//! | `GET /healthz`, `/readyz` | alive; caught up, fact store reachable and no revocation refused |
//! | `GET /` | the status page |
//! | `/api/*` | Oso Cloud's facts API, when the target is the embedded store |
//!
//! On loopback no web page is served but our own (`visitor`), and no connection costs more than it may (`accept`).
//!
//! What changes something asks for the key, and so do what shows facts and what costs source and fact store a reading of everything; where
//! no key was set and there is no `/api`, it is the public one on loopback, and nobody's elsewhere. The rest shows no secret, and no cell
//! value other than the ids of the few facts that the fact store refused.

mod accept;
mod visitor;

pub use accept::{Patience, serve};

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, watch};

use crate::{
    data::Position,
    engine::{Board, HoldEnd, HoldError},
    target::{Offset, embedded::Access},
    telemetry,
};

/// How long `/v1/wait` waits unless told: what an interactive request can afford.
const DEFAULT_WAIT: Duration = Duration::from_secs(5);
/// The longest it can be told to wait: below the minute after which proxies give up.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(55);
/// Requests that may wait at the same time, each with its connection. Four times what a busy application has under way at once;
/// at 25 KB each they are 100 MB, and no outage of the fact store makes them more.
const MOST_WAITERS: usize = 4096;
/// When to try again after a 503, in seconds. Most waits are milliseconds, so there is room again by then, or something is wrong for
/// longer.
const RETRY_AFTER: &str = "1";

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    board: Arc<Board>,
    metrics: PrometheusHandle,
    waiters: Arc<Semaphore>,
    /// Who may change something; nobody if there is no key.
    access: Option<Access>,
    stop: watch::Receiver<bool>,
}

/// The routes of a run; `access` says who may change something, `api` is the embedded store's. From `stop` on nobody waits any longer.
pub fn router(
    board: Arc<Board>,
    metrics: PrometheusHandle,
    access: Option<Access>,
    api: Option<Router>,
    stop: watch::Receiver<bool>,
) -> Router {
    let shared = Shared { board, metrics, waiters: Arc::new(Semaphore::new(MOST_WAITERS)), access, stop };
    let keyed = Router::new()
        .route("/v1/audit", post(audit))
        .route("/v1/holds/{id}", get(held_facts))
        .route(
            "/v1/holds/{id}/release",
            post(async |hold: Path<String>, shared: State<Shared>| end_hold(&hold, &shared, HoldEnd::Release).await),
        )
        .route("/v1/holds/{id}/drop", post(async |hold: Path<String>, shared: State<Shared>| end_hold(&hold, &shared, HoldEnd::Drop).await))
        .route_layer(middleware::from_fn_with_state(shared.clone(), with_key));
    let router = Router::new()
        .route("/", get(page))
        .route("/v1/status", get(status))
        .route("/v1/holds", get(holds))
        .route("/v1/wait", get(wait))
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(keyed)
        .with_state(shared);
    with_api(router, api)
}

/// The routes of `serve`, which has a fact store and nothing else.
pub fn bare_router(api: Router) -> Router {
    with_api(Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(async || "ready\n")), Some(api))
}

/// The routes of a standby: it is alive, and nothing else until it takes over; `why` says what it is.
pub fn standby_router(why: &str) -> Router {
    let why = format!("this is {why}");
    Router::new().route("/healthz", get(async || "ok\n")).fallback(async move || problem(StatusCode::SERVICE_UNAVAILABLE, &why))
}

fn with_api(router: Router, api: Option<Router>) -> Router {
    match api {
        // The API answers for every path nobody else has: it knows `//api/facts` and says 404 in JSON.
        Some(api) => router.fallback_service(api),
        None => router.fallback(async || problem(StatusCode::NOT_FOUND, "there is nothing at this path")),
    }
}

/// What the page needs and nothing more; nobody may put it into a frame of theirs.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(include_str!("page.html"))).into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    Json(shared.board.status()).into_response()
}

async fn with_key(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match &shared.access {
        Some(access) if access.admits(request.headers()) => next.run(request).await,
        Some(_) => problem(StatusCode::UNAUTHORIZED, "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\""),
        None => problem(StatusCode::UNAUTHORIZED, "this factsync listens to other machines and has no key: start it with OSO_AUTH"),
    }
}

async fn holds(State(shared): State<Shared>) -> Response {
    Json(json!({ "held": shared.board.holds() })).into_response()
}

async fn held_facts(Path(id): Path<String>, State(shared): State<Shared>) -> Response {
    answer(shared.board.held_facts(&id).await)
}

async fn end_hold(id: &str, shared: &Shared, end: HoldEnd) -> Response {
    answer(shared.board.end_hold(id, end).await)
}

fn answer(outcome: Result<impl Serialize, HoldError>) -> Response {
    match outcome {
        Ok(answer) => Json(answer).into_response(),
        Err(error @ HoldError::Unknown(_)) => problem(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error @ HoldError::Shadow) => problem(StatusCode::CONFLICT, &error.to_string()),
        Err(error @ HoldError::Away) => try_again(&error.to_string()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Audit {
    #[serde(default)]
    repair: bool,
}

/// Whoever has asked may go away; what is under way ends by itself, and the next one waits for that.
async fn audit(State(shared): State<Shared>, query: Result<Query<Audit>, axum::extract::rejection::QueryRejection>) -> Response {
    let Query(Audit { repair }) = match query {
        Ok(query) => query,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    if shared.board.is_shadow() {
        return problem(StatusCode::CONFLICT, "this factsync runs with --shadow, which compares by itself and repairs nothing");
    }
    let mut stop = shared.stop.clone();
    tokio::select! {
        biased;
        audited = shared.board.audit(repair) => Json(audited).into_response(),
        // A dropped sender is the end of the process as well.
        _ = stop.wait_for(|stop| *stop) => try_again("factsync is being stopped"),
    }
}

async fn render_metrics(State(shared): State<Shared>) -> Response {
    shared.board.record_metrics();
    metrics::gauge!(telemetry::WAITERS).set((MOST_WAITERS - shared.waiters.available_permits()) as f64);
    shared.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.metrics.render()).into_response()
}

async fn ready(State(shared): State<Shared>) -> Response {
    match shared.board.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    position: Option<String>,
    timeout_ms: Option<u64>,
    source: Option<String>,
}

#[derive(Debug, Serialize)]
struct Waited {
    position: String,
    offset: Option<Offset>,
}

async fn wait(State(shared): State<Shared>, query: Result<Query<Wait>, axum::extract::rejection::QueryRejection>) -> Response {
    let Query(wait) = match query {
        Ok(query) => query,
        Err(rejection) => return problem(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let (source, position) = match asked(&shared.board, &wait) {
        Ok(asked) => asked,
        Err(message) => return problem(StatusCode::BAD_REQUEST, &message),
    };
    if shared.board.is_shadow() {
        let why = "this factsync runs with --shadow and delivers nothing, so there is nothing to wait for";
        return problem(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let Ok(_room) = shared.waiters.try_acquire() else {
        return try_again(&format!("{MOST_WAITERS} requests are waiting already"));
    };
    let timeout = wait.timeout_ms.map_or(DEFAULT_WAIT, Duration::from_millis).min(LONGEST_WAIT);
    let mut stop = shared.stop.clone();
    tokio::select! {
        biased;
        offset = shared.board.wait(source, &position) => Json(Waited { position: position.to_string(), offset }).into_response(),
        // A dropped sender is the end of the process as well.
        _ = stop.wait_for(|stop| *stop) => try_again("factsync is being stopped"),
        () = tokio::time::sleep(timeout) => {
            let why = shared.board.kept_by(source, &position);
            let message = format!("the facts of position {position} were not acknowledged within {timeout:?}: {why}");
            problem(StatusCode::GATEWAY_TIMEOUT, &message)
        }
    }
}

fn asked(board: &Board, wait: &Wait) -> Result<(usize, Position), String> {
    let position = wait.position.as_deref().ok_or("position is missing, for instance position=0/16B3748")?;
    let position = position.parse::<Position>().map_err(|error| error.to_string())?;
    let source = board.source_of(wait.source.as_deref(), &position)?;
    Ok((source, position))
}

fn try_again(message: &str) -> Response {
    ([(header::RETRY_AFTER, RETRY_AFTER)], problem(StatusCode::SERVICE_UNAVAILABLE, message)).into_response()
}

fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "message": message }))).into_response()
}
