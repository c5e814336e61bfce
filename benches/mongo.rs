//! How fast `factsync run` follows a MongoDB, beside the bare driver draining the same change stream.
//!
//! ```sh
//! cargo bench --bench mongo -- --documents 1000000
//! ```
//!
//! Rust and not a script, so that both readers use the same driver and none has to be installed. For each case factsync reads the
//! documents for the first time; then it is stopped while changes are made, so that everybody finds the same backlog: the bare driver,
//! which decodes each event and forgets it, and factsync, which is timed from its start until the last change is durable in its state
//! (`local`) and acknowledged by the fact store (`delivered`). The fact store is one that takes everything and keeps nothing, in this
//! process. Then, with factsync's own fact store in its process: how long after a write its fact is there, nothing else happening.
//!
//! Everything it starts lives in a temporary directory and ends with it. Needs the mongod that `tests/run.sh` installs.

use std::{
    error::Error,
    fmt::Display,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Router, response::IntoResponse};
use clap::Parser;
use futures_util::StreamExt;
use mongodb::{
    Client, Database,
    bson::{Document, Timestamp, doc},
    change_stream::event::ChangeStreamEvent,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{MissedTickBehavior, interval};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const DATABASE: &str = "bench";
/// The key that the embedded store accepts on loopback.
const KEY: &str = "e_0123456789_12345_osotesttoken01xiIn";
/// Documents or updates in one command.
const BATCH: i64 = 1_000;
/// Between two looks at a fact whose latency is measured.
const LOOK: Duration = Duration::from_millis(1);
/// Between two looks at a process that is busy: rarely enough not to take the processor from it.
const GLANCE: Duration = Duration::from_millis(10);
/// For anything that is waited for: a first load of a million facts takes a minute or two.
const PATIENCE: Duration = Duration::from_secs(900);
/// Resident memory is told in these.
const MEBIBYTE: f64 = 1024.0;

#[derive(Debug, Parser)]
struct Args {
    /// Documents that are there at first
    #[arg(long, default_value_t = 1_000_000)]
    documents: i64,
    /// Changes made while factsync is stopped
    #[arg(long, default_value_t = 200_000)]
    changes: i64,
    /// Times the drain is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Writes one after the other, for the latency
    #[arg(long, default_value_t = 300)]
    writes: i64,
    /// Which views: find, pipeline, lookup
    #[arg(long, value_delimiter = ',', default_value = "find,pipeline,lookup")]
    cases: Vec<String>,
    /// Use factsync's own fact store for the first load and the drain, too
    #[arg(long)]
    embedded: bool,
    /// What `cargo bench` passes
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = Args::parse();
    let server = Server::start().await?;
    let store = null_store().await?;
    say("| case | changes | bare, as it comes | bare, projected | local | delivered | local / as it comes | local / projected | CPU |")?;
    say("|---|---|---|---|---|---|---|---|---|")?;
    for case in &args.cases {
        run_case(&server, &store, case, &args).await?;
    }
    Ok(())
}

async fn run_case(server: &Server, store: &str, case: &str, args: &Args) -> Outcome<()> {
    let database = server.client.database(DATABASE);
    database.drop().await?;
    fill(&database, args.documents).await?;
    let work = tempfile::tempdir()?;
    let config = work.path().join("bench.yaml");
    std::fs::write(&config, configuration(case)?.to_string())?;
    let target = if args.embedded { None } else { Some(store) };
    let mut factsync = Factsync::new(server, &config, &work.path().join("state"), target);
    let loaded = factsync.start().await?;
    factsync.wait(mark(&database).await?).await?;
    let first = factsync.peak()?;
    let (mut next, mut rounds) = (args.documents, Vec::new());
    for _ in 0..args.rounds {
        rounds.push(drain(&database, &mut factsync, &mut next, args).await?);
    }
    let median = |column: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(column).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (plain, projected, local) = (median(|round| round.plain), median(|round| round.projected), median(|round| round.local));
    let (delivered, cpu) = (median(|round| round.delivered), median(|round| round.cpu));
    say(format!(
        "| {case} | {} | {plain:.0}/s | {projected:.0}/s | {local:.0}/s | {delivered:.0}/s | {:.2} | {:.2} | {cpu:.1} µs |",
        args.changes,
        local / plain,
        local / projected
    ))?;
    let followed = factsync.peak()?;
    factsync.stop()?;
    let again = factsync.start().await?;
    factsync.wait(mark(&database).await?).await?;
    say(format!(
        "\n{case}, {} documents: peak resident {first:.0} MiB after the first load ({:.1} s), {followed:.0} MiB after the drain, \
         {:.0} MiB after a restart ({:.0} ms)",
        args.documents,
        loaded.as_secs_f64(),
        factsync.peak()?,
        again.as_secs_f64() * 1000.0
    ))?;
    factsync.stop()?;
    latency(server, &database, &config, &work, args, case).await
}

/// What one drain took.
struct Round {
    plain: f64,
    projected: f64,
    local: f64,
    delivered: f64,
    /// Microseconds of processor time for each change.
    cpu: f64,
}

async fn drain(database: &Database, factsync: &mut Factsync<'_>, next: &mut i64, args: &Args) -> Outcome<Round> {
    let begin = mark(database).await?;
    factsync.wait(begin).await?;
    factsync.stop()?;
    change(database, next, args).await?;
    let end = mark(database).await?;
    let rate = |took: Duration| args.changes as f64 / took.as_secs_f64();
    let plain = rate(bare(database, begin, end).await?);
    let projected = rate(bare_projected(database, begin, end).await?);
    let began = Instant::now();
    factsync.start().await?;
    factsync.reaches(end).await?;
    let local = rate(began.elapsed());
    factsync.wait(end).await?;
    let delivered = rate(began.elapsed());
    Ok(Round { plain, projected, local, delivered, cpu: factsync.cpu()? * 1e6 / args.changes as f64 })
}

/// The driver's own change stream with its own types, no pipeline and no option, from just behind `begin` to `end`.
async fn bare(database: &Database, begin: Timestamp, end: Timestamp) -> Outcome<Duration> {
    let began = Instant::now();
    let mut stream = database.watch().start_at_operation_time(begin).await?;
    while let Some(event) = stream.next().await {
        let event: ChangeStreamEvent<Document> = event?;
        if event.cluster_time.is_some_and(|time| time >= end) {
            return Ok(began.elapsed());
        }
    }
    Err("the change stream ended".into())
}

/// The same with only the fields that a follower needs.
async fn bare_projected(database: &Database, begin: Timestamp, end: Timestamp) -> Outcome<Duration> {
    let began = Instant::now();
    let project = doc! { "$project": { "operationType": 1, "clusterTime": 1, "ns": 1, "to": 1, "documentKey": 1 } };
    let mut stream = database.watch().pipeline([project]).start_at_operation_time(begin).await?.with_type::<Document>();
    while let Some(event) = stream.next().await {
        if event?.get_timestamp("clusterTime").is_ok_and(|time| time >= end) {
            return Ok(began.elapsed());
        }
    }
    Err("the change stream ended".into())
}

/// Half of them inserts, half updates of a document anywhere, each its own operation.
async fn change(database: &Database, next: &mut i64, args: &Args) -> Outcome<()> {
    for _ in 0..args.changes / (2 * BATCH) {
        let documents: Vec<Document> = (*next..*next + BATCH).map(user).collect();
        let update = |number: i64| {
            // A multiplicative hash: all over the collection, and the same in each run.
            let id = number.wrapping_mul(2_654_435_761).rem_euclid(args.documents);
            doc! { "q": { "_id": id }, "u": { "$set": { "role": format!("role-{number}") } } }
        };
        let updates: Vec<Document> = (*next..*next + BATCH).map(update).collect();
        *next += BATCH;
        database.collection("users").insert_many(documents).await?;
        database.run_command(doc! { "update": "users", "updates": updates }).await?;
    }
    Ok(())
}

async fn fill(database: &Database, documents: i64) -> Outcome<()> {
    let organizations = (0..1000_i64).map(|number| doc! { "_id": number, "name": format!("organization-{number}"), "active": true });
    database.collection("organizations").insert_many(organizations).await?;
    database.run_command(doc! { "createIndexes": "users", "indexes": [{ "key": { "organization": 1 }, "name": "organization" }] }).await?;
    for first in (0..documents).step_by(10 * BATCH as usize) {
        let batch: Vec<Document> = (first..documents.min(first + 10 * BATCH)).map(user).collect();
        database.collection("users").insert_many(batch).await?;
    }
    Ok(())
}

fn user(number: i64) -> Document {
    doc! {
        "_id": number,
        "name": format!("user-{number}"),
        "email": format!("user-{number}@example.org"),
        "role": format!("role-{}", number % 7),
        "organization": number % 1000,
        "teams": [number % 10, 10 + number % 20],
        "active": true,
        "about": "x".repeat(100),
    }
}

fn configuration(case: &str) -> Outcome<Value> {
    let (fields, query) = match case {
        "find" => (json!(["_id", "role", "organization"]), json!({ "find": { "active": true } })),
        "pipeline" => (
            json!(["_id", "role", "team"]),
            json!({ "aggregate": [{ "$match": { "active": true } }, { "$set": { "team": { "$first": "$teams" } } }] }),
        ),
        "lookup" => (
            json!(["_id", "role", "organizations.name"]),
            json!({ "aggregate": [
                { "$lookup": { "from": "organizations", "localField": "organization", "foreignField": "_id", "as": "organizations" } },
                { "$unwind": "$organizations" },
            ] }),
        ),
        _ => return Err(format!("there is no case \"{case}\"").into()),
    };
    let fact = json!({ "db": "app", "collection": "users", "query": query, "fields": fields });
    Ok(json!({
        "version": 1,
        "source": "mongodb",
        "facts": { "has_role(User:_, Role:_, Organization:_)": fact },
        "dbs": { "app": { "connection_string": "$MONGODB_URL" } },
        "sync": { "max_removals": { "count": 1_000_000_000, "percent": 100 } },
    }))
}

/// A write behind everything so far, which no view reads; its time.
async fn mark(database: &Database) -> Outcome<Timestamp> {
    let mut session = database.client().start_session().await?;
    database.collection::<Document>("marks").insert_one(doc! {}).session(&mut session).await?;
    session.operation_time().ok_or_else(|| "an answer without a time".into())
}

/// Writes one after the other on an idle machine; each is awaited in factsync's own fact store.
async fn latency(server: &Server, database: &Database, config: &Path, work: &TempDir, args: &Args, case: &str) -> Outcome<()> {
    // Few facts: this store would take minutes for a million, and how long one takes does not depend on them.
    database.run_command(doc! { "delete": "users", "deletes": [{ "q": { "_id": { "$gte": 1000 } }, "limit": 0 }] }).await?;
    let mut factsync = Factsync::new(server, config, &work.path().join("latency"), None);
    factsync.start().await?;
    factsync.wait(mark(database).await?).await?;
    let (mut from_write, mut from_answer, mut waited) = (Vec::new(), Vec::new(), Vec::new());
    let mut session = database.client().start_session().await?;
    for number in 0..2 * args.writes {
        let role = format!("latest-{number}");
        let began = Instant::now();
        let update = doc! { "$set": { "role": &role } };
        database.collection::<Document>("users").update_one(doc! { "_id": number % 1000 }, update).session(&mut session).await?;
        let answered = Instant::now();
        if number < args.writes {
            let path = format!("/api/facts?predicate=has_role&args.1.type=Role&args.1.id={role}");
            let seen = until(LOOK, async || Ok(factsync.get(&path).await?.1.as_array().is_some_and(|facts| !facts.is_empty()))).await?;
            from_write.push(seen - began);
            from_answer.push(seen - answered);
        } else {
            factsync.wait(session.operation_time().ok_or("an answer without a time")?).await?;
            waited.push(answered.elapsed());
        }
    }
    for (what, times) in [
        ("the write's beginning to its fact", from_write),
        ("the write's acknowledgement to its fact", from_answer),
        ("the write's acknowledgement to the answer of /v1/wait", waited),
    ] {
        say(format!("{case}, idle, from {what}, {} writes: {}", times.len(), quantiles(times)))?;
    }
    say("")?;
    factsync.stop()
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
    format!("p50 {:.1} ms, p99 {:.1} ms", at(50), at(99))
}

/// Looks until it is so; tells when the look began that saw it.
async fn until(pause: Duration, mut look: impl AsyncFnMut() -> Outcome<bool>) -> Outcome<Instant> {
    let deadline = Instant::now() + PATIENCE;
    let mut looks = interval(pause);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let began = Instant::now();
        if look().await? {
            return Ok(began);
        }
        if began > deadline {
            return Err("waited in vain".into());
        }
    }
}

/// `factsync run`.
struct Factsync<'a> {
    server: &'a Server,
    config: PathBuf,
    state: PathBuf,
    target: Option<String>,
    running: Option<(Killed, u16)>,
    client: reqwest::Client,
}

impl<'a> Factsync<'a> {
    fn new(server: &'a Server, config: &Path, state: &Path, target: Option<&str>) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().expect("the TLS provider is installed");
        let target = target.map(str::to_owned);
        Self { server, config: config.to_owned(), state: state.to_owned(), target, running: None, client }
    }

    /// Returns when it streams; how long that took.
    async fn start(&mut self) -> Outcome<Duration> {
        let (began, port) = (Instant::now(), free_port()?);
        let log = std::fs::File::options().create(true).append(true).open(self.state.with_extension("log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_factsync"));
        command.arg("run").arg(&self.config).arg("--state").arg(&self.state).args(["--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--limits", "off", "--plan", "unlimited", "--target", self.target.as_deref().unwrap_or("embedded")]);
        command.env_remove("OSO_AUTH").env_remove("OSO_URL").env("MONGODB_URL", self.server.uri());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        self.running = Some((Killed(child), port));
        until(GLANCE, async || Ok(self.get("/v1/status").await.is_ok_and(|(_, status)| status["state"] == "streaming"))).await?;
        Ok(began.elapsed())
    }

    fn stop(&mut self) -> Outcome<()> {
        if let Some((mut child, _)) = self.running.take() {
            Command::new("kill").args(["-s", "TERM", &child.0.id().to_string()]).status()?;
            child.0.wait()?;
        }
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "what is asked for is small")]
    async fn get(&self, path: &str) -> Outcome<(u16, Value)> {
        let (_, port) = self.running.as_ref().ok_or("factsync is not running")?;
        let answer = self.client.get(format!("http://127.0.0.1:{port}{path}")).bearer_auth(KEY).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Until the fact store has acknowledged everything up to `time`.
    async fn wait(&self, time: Timestamp) -> Outcome<()> {
        let path = format!("/v1/wait?position={}:{}&timeout_ms=50000", time.time, time.increment);
        until(GLANCE, async || match self.get(&path).await? {
            (200, _) => Ok(true),
            (504, _) => Ok(false),
            (status, body) => Err(format!("/v1/wait answered {status}: {body}").into()),
        })
        .await
        .map(drop)
    }

    /// Until everything up to `time` is durable here.
    async fn reaches(&self, time: Timestamp) -> Outcome<()> {
        until(GLANCE, async || {
            let (_, status) = self.get("/v1/status").await?;
            let position = status["sources"][0]["position"].as_str().and_then(|text| text.split_once(':'));
            let position = position.and_then(|(time, increment)| Some((time.parse().ok()?, increment.parse().ok()?)));
            Ok(position.is_some_and(|position: (u32, u32)| position >= (time.time, time.increment)))
        })
        .await
        .map(drop)
    }

    fn proc(&self, file: &str) -> Outcome<String> {
        let (child, _) = self.running.as_ref().ok_or("factsync is not running")?;
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", child.0.id()))?)
    }

    /// The kernel's own peak of resident memory.
    fn peak(&self) -> Outcome<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.split_whitespace().next().ok_or("no size")?.parse::<f64>()? / MEBIBYTE)
    }

    /// Seconds of the processor so far; the kernel counts in hundredths.
    fn cpu(&self) -> Outcome<f64> {
        let stat = self.proc("stat")?;
        let (_, fields) = stat.rsplit_once(") ").ok_or("no fields")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
        Ok(ticks / 100.0)
    }
}

/// A child that does not outlive us.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A replica set of one node.
struct Server {
    port: u16,
    client: Client,
    _child: Killed,
    _data: TempDir,
}

impl Server {
    async fn start() -> Outcome<Self> {
        let (port, data) = (free_port()?, tempfile::tempdir()?);
        let tools = std::env::var_os("FACTSYNC_TOOLS").map(PathBuf::from);
        let tools = tools.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"));
        let mut command = Command::new(tools.join("mongod/mongod"));
        command.args(["--replSet", "rs0", "--bind_ip", "127.0.0.1", "--port", &port.to_string(), "--nounixsocket"]);
        command.args(["--oplogSize", "4096", "--wiredTigerCacheSizeGB", "1"]).arg("--dbpath").arg(data.path());
        let child = Killed(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        let member = format!("127.0.0.1:{port}");
        let direct = Client::with_uri_str(format!("mongodb://{member}/?directConnection=true")).await?;
        let set = doc! { "replSetInitiate": { "_id": "rs0", "members": [{ "_id": 0, "host": &member }] } };
        direct.database("admin").run_command(set).await?;
        let client = Client::with_uri_str(format!("mongodb://{member}")).await?;
        client.database("admin").run_command(doc! { "ping": 1 }).await?;
        Ok(Self { port, client, _child: child, _data: data })
    }

    fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/{DATABASE}", self.port)
    }
}

/// A fact store that costs as little as one can; its URL.
async fn null_store() -> Outcome<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address: SocketAddr = listener.local_addr()?;
    let headers = [("content-type", "application/json"), ("osooffset", "1")];
    let list = move || async move { (headers, "[]").into_response() };
    let take = move |_: axum::body::Bytes| async move { (headers, "{\"message\":\"ok\"}").into_response() };
    let router = Router::new().fallback(axum::routing::get(list).post(take).delete(take));
    let router = router.layer(axum::extract::DefaultBodyLimit::disable());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn say(line: impl Display) -> Outcome<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
