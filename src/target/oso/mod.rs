//! Oso Cloud, or anything else that speaks its facts API.
//!
//! ```text
//! Batch ──batch::body──> POST <base>/api/batch ──answer──> Offset or TargetError
//! FactType ──query──> GET <base>/api/facts?… ──chunks──> listing::FactArray ──rows──> each
//! ```
//!
//! One call is one attempt: nothing here repeats a request, because only the caller knows how long it may take (`retry`). The
//! exception is a key that was replaced (`key`).
//! Redirects are not followed: they would carry the key, and a batch, to a place nobody configured.
//!
//! What protects the facts from a bad answer: a listing counts only if its array is closed and nothing follows it
//! (`listing`), so that a body cut anywhere is an error and never a shorter list, which would look like facts to add; and
//! a batch counts as applied only if the answer is the API's `{"message"}`, so that a proxy's friendly 200 is not taken for one.
//!
//! Oso's fallback nodes answer reads, up to half an hour late, and take no writes: they are never asked in the fact store's place, for what
//! they say would decide what is written. If one stands there all the same, its refusal of a write (404 or 405) is a place that
//! is not the fact store, and everything is compared again when writes are taken (`engine/deliver/attempt.rs`).
//!
//! TLS: reqwest is built without a TLS provider of its own, takes the process's default and panics if there is none. ring is
//! installed as that default here, unless somebody (the PostgreSQL source does the same) was first. Certificates are those
//! of the system, and `http://` needs none, so that it also works in an image that has none.

mod answer;
mod key;
mod listing;

use std::{fmt, io, time::Duration};

use futures_util::future::BoxFuture;
use reqwest::{
    Client, ClientBuilder, RequestBuilder, Response, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use uuid::Uuid;

use crate::{
    data::Row,
    error::causes,
    fact::{Argument, FactType, Value},
    target::{
        Batch, BatchLimits, FactStore, Offset, TargetError, batch,
        quota::{Plan, WriteQuota},
    },
};
use answer::Unconfirmed;
pub use key::KeySource;
use key::{CurrentKey, Key};
use listing::FactArray;

/// The version of the API, which is a header and not a part of the path.
const API_VERSION: HeaderName = HeaderName::from_static("x-osoapiversion");
/// Names a request; the same on every repetition of a batch.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The fact store's consistency token, sent back on every later request.
const OFFSET: HeaderName = HeaderName::from_static("osooffset");

/// How long to wait for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, TLS included. Ten seconds cover a lost SYN, which is sent again after 1, 3 and 7.
    pub connect: Duration,
    /// For each piece of an answer, its head included. Oso Cloud itself gives a query up after 20 seconds.
    pub silence: Duration,
    /// For the whole answer to a write: three times as long, since its body is a line.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), silence: Duration::from_secs(30), write: Duration::from_secs(90) }
    }
}

/// A client of one Oso Cloud environment.
pub struct OsoCloud {
    client: Client,
    /// Ends without a slash.
    base: Url,
    key: CurrentKey,
    limits: BatchLimits,
    quota: WriteQuota,
    write_timeout: Duration,
    /// The last one received. A lock that is never held across an await.
    offset: std::sync::Mutex<Option<Offset>>,
}

impl OsoCloud {
    /// A client for the environment at `url` that `key` belongs to. Nothing is sent yet.
    pub fn new(url: &str, key: impl Into<KeySource>, plan: Plan) -> Result<Self, TargetError> {
        Self::with_timeouts(url, key, plan, Timeouts::default())
    }

    /// [`OsoCloud::new`] with other patience.
    pub fn with_timeouts(url: &str, key: impl Into<KeySource>, plan: Plan, timeouts: Timeouts) -> Result<Self, TargetError> {
        let base = base_url(url)?;
        let client = builder(&base);
        Self::from_parts(base, key.into(), plan, timeouts, client)
    }

    fn from_parts(base: Url, key: KeySource, plan: Plan, timeouts: Timeouts, client: ClientBuilder) -> Result<Self, TargetError> {
        let key = CurrentKey::new(key)?;
        let client = client
            .default_headers(headers())
            .redirect(redirect::Policy::none())
            .connect_timeout(timeouts.connect)
            .read_timeout(timeouts.silence)
            .build()
            .map_err(|error| TargetError::Setup { problem: causes(&error) })?;
        Ok(Self {
            client,
            base,
            key,
            limits: plan.limits(),
            quota: WriteQuota::new(plan),
            write_timeout: timeouts.write,
            offset: std::sync::Mutex::new(None),
        })
    }

    async fn write(&self, batch: &Batch) -> Result<Offset, TargetError> {
        // The official clients send nothing for nothing either.
        if batch.changes.is_empty() {
            return Ok(self.offset());
        }
        let request = self.client.post(self.endpoint("batch"));
        let request = request.header(CONTENT_TYPE, "application/json").timeout(self.write_timeout).body(batch::body(&batch.changes));
        let response = self.send(request, batch.request_id).await?;
        let received = response.headers().get(OFFSET).and_then(|value| value.to_str().ok()).map(|text| Offset(text.to_owned()));
        answer::confirm(response).await.map_err(|unconfirmed| match unconfirmed {
            Unconfirmed::Cut(error) => self.unreachable(error),
            Unconfirmed::Foreign(problem) => self.garbage(problem),
        })?;
        if let Some(received) = received {
            *self.offset.lock().expect("nothing panics while it is held") = Some(received);
        }
        Ok(self.offset())
    }

    async fn read(&self, fact_type: &FactType, each: &mut (dyn FnMut(Row) -> io::Result<()> + Send)) -> Result<(), TargetError> {
        let request = self.client.get(self.listing_url(fact_type));
        let mut response = self.send(request, Uuid::new_v4()).await?;
        let mut facts = FactArray::new(fact_type);
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            facts.feed(&chunk, &mut *each).map_err(|error| match error {
                listing::Error::Receiver(error) => TargetError::Receiver(error),
                listing::Error::Garbage(problem) => self.garbage(problem),
            })?;
        }
        facts.finish().map_err(|problem| self.garbage(problem))
    }

    /// Sends `request` and returns the answer if it is a success; a second time if the key was refused and there is another one by now.
    async fn send(&self, request: RequestBuilder, id: Uuid) -> Result<Response, TargetError> {
        let again = request.try_clone().expect("no request streams its body");
        let key = self.key.get();
        match self.present(request, id, &key).await {
            Err(refused @ TargetError::Key { .. }) => match self.key.after(&key).await {
                Some(other) => self.present(again, id, &other).await,
                None => Err(refused),
            },
            other => other,
        }
    }

    async fn present(&self, request: RequestBuilder, id: Uuid, key: &Key) -> Result<Response, TargetError> {
        let mut request = request.header(AUTHORIZATION, key.authorization.clone()).header(REQUEST_ID, id.to_string());
        let offset = self.offset.lock().expect("nothing panics while it is held").clone();
        if let Some(Offset(offset)) = offset {
            request = request.header(OFFSET, offset);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(answer::refusal(response, &self.place(), &key.secret).await)
    }

    /// The newest token, or `0`: every store is past that.
    fn offset(&self) -> Offset {
        self.offset.lock().expect("nothing panics while it is held").clone().unwrap_or_else(|| Offset("0".to_owned()))
    }

    fn endpoint(&self, name: &str) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("it is http or https").pop_if_empty().extend(["api", name]);
        url
    }

    /// Selects what the API can select by: predicate, types and constants. The number of arguments cannot be said, which is
    /// why [`FactType::row`] has the last word.
    fn listing_url(&self, fact_type: &FactType) -> Url {
        let mut url = self.endpoint("facts");
        let mut query = url.query_pairs_mut();
        query.append_pair("predicate", &fact_type.predicate);
        for (index, arg) in fact_type.args.iter().enumerate() {
            query.append_pair(&format!("args.{index}.type"), arg.type_name());
            if let Argument::Constant(value) = arg {
                query.append_pair(&format!("args.{index}.id"), &value.id);
            }
        }
        drop(query);
        url
    }

    /// Scheme, host and port.
    fn place(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    fn unreachable(&self, error: reqwest::Error) -> TargetError {
        TargetError::Unreachable { url: self.place(), connected: !error.is_connect(), source: Box::new(error.without_url()) }
    }

    fn garbage(&self, problem: String) -> TargetError {
        TargetError::Garbage { url: self.place(), problem }
    }
}

impl FactStore for OsoCloud {
    fn limits(&self) -> BatchLimits {
        self.limits
    }

    fn quota(&self) -> &WriteQuota {
        &self.quota
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
        Box::pin(self.write(batch))
    }

    fn list<'a>(
        &'a self,
        fact_type: &'a FactType,
        each: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(self.read(fact_type, each))
    }

    /// Lists one concrete fact that nobody stores. That asks the very endpoint a reconcile needs for what it can answer from an
    /// index in a few bytes, with the key checked; `/api/policy_metadata` would check the key too, but answers with the
    /// whole policy and says nothing of the facts.
    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(async move {
            let nobodys = Argument::Constant(Value::new("String", "probe"));
            let fact_type = FactType { predicate: "factsync_probe".to_owned(), args: vec![nobodys] };
            self.read(&fact_type, &mut |_| Ok(())).await
        })
    }
}

/// Without the key.
impl fmt::Debug for OsoCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OsoCloud").field("url", &self.place()).field("limits", &self.limits).finish_non_exhaustive()
    }
}

fn base_url(url: &str) -> Result<Url, TargetError> {
    let setup = |problem: &str| TargetError::Setup { problem: problem.to_owned() };
    // What was written is not repeated: it may hold a password.
    let mut base: Url = url.trim().parse().map_err(|error| setup(&format!("its URL is not one: {error}")))?;
    if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
        return Err(setup("its URL must start with http:// or https://"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(setup("its URL must not hold a user or a password. The key goes into OSO_AUTH"));
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(setup("its URL must not hold \"?\" or \"#\""));
    }
    let path = base.path().trim_end_matches('/').to_owned();
    base.set_path(&path);
    Ok(base)
}

fn headers() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json")), (API_VERSION, HeaderValue::from_static("0"))])
}

fn builder(base: &Url) -> ClientBuilder {
    // An error says that somebody else installed one, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder().user_agent(concat!("factsync/", env!("CARGO_PKG_VERSION")));
    match base.scheme() {
        "http" => builder.tls_certs_only([]),
        _ => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::SecretString;
    use std::sync::Arc;

    fn at(url: &str) -> Result<OsoCloud, TargetError> {
        OsoCloud::new(url, SecretString::from("e_1_2_key"), Plan::Growth)
    }

    #[tokio::test]
    async fn a_base_keeps_its_path_with_or_without_a_slash() {
        for (url, want) in [
            ("https://api.osohq.com", "https://api.osohq.com/api/batch"),
            ("http://localhost:8080/", "http://localhost:8080/api/batch"),
            (" http://h/base// ", "http://h/base/api/batch"),
            ("http://h/a%20b/c", "http://h/a%20b/c/api/batch"),
            ("http://[::1]:1", "http://[::1]:1/api/batch"),
        ] {
            assert_eq!(at(url).expect(url).endpoint("batch").as_str(), want);
        }
    }

    /// Knows no name the first time it is asked, and every name from then on.
    struct LateNames(std::sync::atomic::AtomicU32, std::net::SocketAddr);

    impl reqwest::dns::Resolve for LateNames {
        fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
            let found = match self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
                0 => Err(io::Error::other("no such name").into()),
                _ => Ok(Box::new(std::iter::once(self.1)) as reqwest::dns::Addrs),
            };
            Box::pin(std::future::ready(found))
        }
    }

    #[tokio::test]
    async fn a_name_that_did_not_resolve_is_asked_for_again_with_the_next_attempt() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let taken = axum::Router::new().route("/api/batch", axum::routing::post(async || r#"{"message":"ok"}"#));
        tokio::spawn(async move { axum::serve(listener, taken).await });

        let base = base_url("http://facts.example:80").expect("a URL");
        let client = builder(&base).no_proxy().dns_resolver(Arc::new(LateNames(0.into(), address)));
        let key = SecretString::from("e_1_2_key").into();
        let store = OsoCloud::from_parts(base, key, Plan::Growth, Timeouts::default(), client).expect("a client");
        let fact_type: FactType = "f(User:1)".parse().expect("a signature");
        let fact = fact_type.stored_fact(&Row::from_texts(Vec::<&str>::new()));
        let batch = Batch { request_id: Uuid::new_v4(), changes: vec![crate::target::FactChange { op: crate::target::Op::Insert, fact }] };
        let error = store.apply(&batch).await.expect_err("the name is not known");
        assert!(matches!(error, TargetError::Unreachable { .. }) && causes(&error).contains("no such name"), "{}", causes(&error));
        assert_eq!(error.disposition(), crate::error::Disposition::Retry);
        store.apply(&batch).await.expect("the name is known by now");
    }

    #[tokio::test]
    async fn a_listing_asks_for_types_and_constants_and_no_more() {
        let fact_type: FactType = "has_relation(Repo:_, a b&c=d/é+%, Org:_)".parse().expect("a signature");
        let url = at("http://h").expect("a client").listing_url(&fact_type);
        let want = "predicate=has_relation&args.0.type=Repo&args.1.type=String&args.1.id=a+b%26c%3Dd%2F%C3%A9%2B%25&args.2.type=Org";
        assert_eq!(url.query(), Some(want));
    }

    #[tokio::test]
    async fn what_cannot_be_an_address_or_a_key_is_refused_at_once() {
        for (url, want) in [
            ("api.osohq.com", "URL"),
            ("ftp://h", "http://"),
            ("localhost:8080", "http://"),
            ("http://user:secret@h", "OSO_AUTH"),
            ("http://h?key=secret", "\"?\""),
            ("", "URL"),
        ] {
            let error = at(url).expect_err(url).to_string();
            assert!(error.contains(want) && !error.contains("secret"), "{url}: {error}");
        }
        for key in ["", "  \n", "secret\nkey", "secret\u{7f}"] {
            let error = OsoCloud::new("http://h", SecretString::from(key), Plan::Growth).expect_err("a bad key");
            let text = format!("{error} {error:?}");
            assert!(text.contains("OSO_AUTH") && !text.contains("secret"), "{text}");
        }
    }
}
