//! The facts part of Oso Cloud's HTTP API.
//!
//! | request | does | answers |
//! |---|---|---|
//! | `POST /api/batch` | inserts and deletes, in order, atomically | `{"message"}` |
//! | `GET /api/facts?predicate=…&args.N.type=…&args.N.id=…` | lists facts with the named arguments *or more* | `[fact, …]` |
//! | `POST`, `DELETE /api/facts` | one fact, or one pattern | the fact; `{"message"}` |
//! | `POST /api/bulk_load`, `/api/bulk_delete`, `/api/bulk` | what older SDKs write with | `{"message"}` |
//! | `POST /api/clear_data` | removes every fact, not the policy; free of charge | `{"message"}` |
//! | `GET /api/policy`, `/api/policy_metadata` | the stored text; no resources, for it is not evaluated | `{"policy"}`, `{"metadata"}` |
//! | `POST /api/policy` | stores the text, unread; 202 if it is the one that is there | `{"message"}` |
//! | `GET /api/healthcheck` | asks for no key | `{"message"}` |
//!
//! A query has no trailing wildcards, so it cannot say how many arguments a fact has; a pattern in a body can, and does.
//!
//! Everything else under `/api`, the decision endpoints included, is a 404: no SDK repeats a 404 or takes it to a fallback
//! node. Errors are `{"message"}` and are found in this order: key (401), path and method (404, 405), size (413), JSON (400),
//! number of entries (413), each entry (400), what a wildcard touches (413), quota (429). The first one is told, and nothing is
//! changed.
//!
//! Paths are served with a second leading slash too, which Node's SDK sends if its URL ends in one. `Content-Type` is not looked
//! at, on any method. `X-Request-ID` comes back as it was sent, or is a new one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use futures_util::{StreamExt, future::BoxFuture};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tracing::debug;
use uuid::Uuid;

use crate::target::embedded::{
    Access, EmbeddedStore, Limits,
    answer::{self, Problem},
    apply::{Change, Terms, Work},
    limits::Quota,
    listing::listing,
    wire::{self, Parse},
    writer::Outcome,
};

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a request may take until its response starts; a write waits for a few commits at most, a read for a free connection.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// How much of a body that is too large is still read, and thrown away, so that its sender gets to read the 413. The SDKs send
/// at most 10 MiB.
const DRAINED_BYTES: usize = 16 * 1024 * 1024;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything under `/api`, over `store`; a 404 in JSON, with no key asked for, for every other path.
pub fn router(store: EmbeddedStore, access: Access, limits: Limits) -> Router {
    let quota = limits.updates_per_minute().map(|limit| Arc::new(Quota::new(limit)));
    let api = Arc::new(Api { store, access, limits, quota });
    let keyed = routes("/api").merge(routes("//api")).route_layer(middleware::from_fn_with_state(Arc::clone(&api), with_key));
    let open = Router::new().route("/api/healthcheck", get(healthcheck)).route("//api/healthcheck", get(healthcheck));
    keyed
        .merge(open)
        .method_not_allowed_fallback(async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method"))
        .route_layer(middleware::from_fn(framed))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .with_state(api)
}

fn routes(prefix: &str) -> Router<Arc<Api>> {
    let at = |path: &str| format!("{prefix}{path}");
    Router::new()
        .route(&at("/batch"), post(changing(wire::batch)))
        .route(&at("/facts"), get(facts).post(insert).merge(delete(changing(wire::delete))))
        .route(&at("/bulk"), post(changing(wire::bulk)))
        .route(&at("/bulk_load"), post(changing(wire::bulk_load)))
        .route(&at("/bulk_delete"), post(changing(wire::bulk_delete)))
        .route(&at("/clear_data"), post(clear_data))
        .route(&at("/policy"), get(policy).post(set_policy))
        .route(&at("/policy_metadata"), get(async || answer::policy_metadata()))
        .route(&at(""), any(unknown))
        .route(&at("/"), any(unknown))
        .route(&at("/{*path}"), any(unknown))
}

/// What every handler shares.
struct Api {
    store: EmbeddedStore,
    access: Access,
    limits: Limits,
    quota: Option<Arc<Quota>>,
}

type Answer = Result<Response, Problem>;

/// Outermost: the request's id, the time it may take, a line in the log.
async fn framed(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(REQUEST_ID).cloned().unwrap_or_else(new_id);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!("this took more than {} s; whether it was done is unknown", REQUEST_TIMEOUT.as_secs());
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, message).into_response()
    });
    debug!(%method, path, status = response.status().as_u16(), elapsed = ?started.elapsed(), "facts API request");
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

fn new_id() -> HeaderValue {
    HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is ASCII")
}

async fn with_key(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    if api.access.admits(request.headers()) {
        return next.run(request).await;
    }
    Problem::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\"").into_response()
}

async fn unknown(request: Request) -> Problem {
    let path = request.uri().path();
    Problem::new(StatusCode::NOT_FOUND, format!("\"{path}\" is not served here: this is a fact store, without Oso's decision endpoints"))
}

/// A handler that does what `parse` finds in the body.
fn changing(parse: Parse) -> impl Fn(State<Arc<Api>>, Request) -> BoxFuture<'static, Answer> + Clone {
    move |State(api), request| {
        Box::pin(async move {
            let (changes, room) = api.read_changes(request, parse).await?;
            let outcome = api.write(Work::Changes(changes), Some(room)).await?;
            Ok(answer::done(StatusCode::OK, outcome.offset, "facts updated"))
        })
    }
}

async fn insert(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (changes, room) = api.read_changes(request, wire::insert).await?;
    let facts: Vec<_> =
        changes.iter().filter_map(|change| if let Change::Insert(fact) = change { Some(fact.clone()) } else { None }).collect();
    let outcome = api.write(Work::Changes(changes), Some(room)).await?;
    Ok(answer::with_offset(StatusCode::OK, outcome.offset, &facts[0]))
}

async fn facts(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let selection = wire::selection(request.uri().query().unwrap_or_default()).map_err(Problem::invalid)?;
    let body = listing(&api.store, selection, api.limits.listed()).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

async fn clear_data(State(api): State<Arc<Api>>) -> Answer {
    let outcome = api.write(Work::Clear, None).await?;
    Ok(answer::done(StatusCode::OK, outcome.offset, "facts cleared"))
}

async fn policy(State(api): State<Arc<Api>>) -> Answer {
    Ok(answer::policy(api.store.policy().await?))
}

async fn set_policy(State(api): State<Arc<Api>>, request: Request) -> Answer {
    let (body, room) = api.read_body(request.into_body(), api.limits.other_bytes()).await?;
    let policy = wire::policy(&body).map_err(Problem::invalid)?;
    let outcome = api.write(Work::Policy(policy), Some(room)).await?;
    Ok(match outcome.changed {
        true => answer::done(StatusCode::OK, outcome.offset, "policy updated"),
        false => answer::done(StatusCode::ACCEPTED, outcome.offset, "policy unchanged"),
    })
}

async fn healthcheck(State(api): State<Arc<Api>>) -> Answer {
    api.store.healthy().await?;
    Ok(answer::healthy())
}

impl Api {
    async fn read_changes(&self, request: Request, parse: Parse) -> Result<(Vec<Change>, OwnedSemaphorePermit), Problem> {
        let (body, room) = self.read_body(request.into_body(), self.limits.write_bytes()).await?;
        let entries = parse(&body).map_err(Problem::invalid)?;
        if let Some(limit) = self.limits.entries().filter(|limit| entries.len() > *limit) {
            return Err(Problem::too_large(format!("{} entries in one request; this plan takes {limit}", entries.len())));
        }
        Ok((wire::changes(entries).map_err(Problem::invalid)?, room))
    }

    /// The body, and the memory set aside for it.
    async fn read_body(&self, body: Body, limit: usize) -> Result<(Vec<u8>, OwnedSemaphorePermit), Problem> {
        let announced = body.size_hint().upper().map_or(limit, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let room = self.store.room(announced.min(limit)).await;
        let read = timeout(BODY_TIMEOUT, collect(body, limit)).await.unwrap_or_else(|_| {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs())))
        });
        Ok((read?, room))
    }

    async fn write(&self, work: Work, room: Option<OwnedSemaphorePermit>) -> Result<Outcome, Problem> {
        let terms = Terms { max_removed: self.limits.removed(), quota: self.quota.clone(), arrived: tokio::time::Instant::now() };
        Ok(self.store.write(work, terms, room).await?)
    }
}

/// All of the body, if it is not over `limit`.
async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let (mut kept, mut seen) = (Vec::new(), 0);
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part: Bytes = part.map_err(|_| Problem::invalid("the body ended too early"))?;
        seen += part.len();
        if seen <= limit {
            kept.extend_from_slice(&part);
        } else if seen > DRAINED_BYTES.max(limit) {
            break;
        }
    }
    if seen > limit {
        return Err(Problem::too_large(format!("the body has more than {} KiB", limit / 1024)));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tower_service::Service as _;

    use super::*;
    use crate::target::embedded::DEVELOPMENT_KEY;

    fn request(body: Body) -> Request {
        let request = Request::post("/api/policy").header(header::AUTHORIZATION, format!("Bearer {DEVELOPMENT_KEY}"));
        request.body(body).expect("a request")
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_dribbles_in_is_cut_off_and_gives_its_room_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(&folder.path().join("facts.db")).expect("the store opens");
        let mut router = router(store.clone(), Access::new(DEVELOPMENT_KEY.into()), Limits::Off);
        let began = tokio::time::Instant::now();
        // A byte every second, without an end.
        let ticks = tokio::time::interval(Duration::from_secs(1));
        let dribble = stream::unfold(ticks, async |mut ticks| {
            ticks.tick().await;
            Some((Ok::<Bytes, std::io::Error>(Bytes::from_static(b" ")), ticks))
        });
        let answer = router.call(request(Body::from_stream(dribble))).await.expect("an answer");
        assert_eq!((answer.status(), began.elapsed().as_secs()), (StatusCode::REQUEST_TIMEOUT, BODY_TIMEOUT.as_secs()));
        // From here on real threads work, which a paused clock would overtake.
        tokio::time::resume();
        let everything = timeout(BODY_TIMEOUT, store.room(usize::MAX)).await;
        drop(everything.expect("the room that was set aside is free again"));
        let answer = router.call(request(Body::from(r#"{"src": "actor User {}"}"#))).await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
    }
}
