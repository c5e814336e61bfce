//! The scripted source, and an engine that follows it into a fact store in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    config::{Config, Place, PostgresConfig, SourceConfig, SourceKind, SyncOptions, View},
    data::{ChangeBatch, Extent, Lsn, Position, Row},
    engine::{Board, Delivery, EngineError, Parts, run},
    fact::{Fact, FactType},
    query::{Clock, Expr, Identity, Kind, Native, Now, Plan, RemoteExpr, Table, ViewPlan, scalar},
    source::{Cause, Evaluate, Event, Follow, Link, Prepared, PreparedView, Reading, SourceError, SourceState, Start, ViewMode},
    store::{Checkpoint, Store},
    target::{Batch, BatchLimits, FactStore, Offset, Op, TargetError, quota},
    view::Guard,
};

/// For anything to happen; the slowest machine needs a fraction.
const PATIENCE: Duration = Duration::from_secs(60);

/// Attempts that the test has not taken: it takes each before it goes on.
const ATTEMPTS: usize = 1;

/// The view of rows whose moment has not come, and the table's number.
pub(super) const LIVE: usize = 0;
/// The view of rows whose moment has come.
pub(super) const BEGUN: usize = 1;

const SIGNATURES: [&str; 2] = ["live(Grant:_)", "begun(Grant:_)"];

/// A row's name, and its moment in seconds of the first minute of 2000.
type Moment<'a> = (&'a str, &'a str);

pub(super) fn at(lsn: u64) -> Position {
    Lsn(lsn).into()
}

fn time(seconds: &str) -> String {
    format!("2000-01-01 00:00:{seconds}+00")
}

fn oid(view: usize) -> u32 {
    16_384 + u32::try_from(view).expect("there are two")
}

/// What the source computes of a name.
fn computed(name: &str) -> String {
    format!("new-{name}")
}

fn native(oid: u32) -> &'static Native {
    &scalar::entries().find(|entry| entry.native.oid == oid).expect("it is on the list").native
}

/// `timestamptz_gt` or `timestamptz_le` of the second column and `now()`.
fn plan(view: usize) -> ViewPlan {
    let text = |index| Expr::Column { index, kind: Kind::Text };
    let function = native(if view == LIVE { 1157 } else { 1155 });
    let condition = Expr::Call { function, args: vec![text(1), Expr::Now(Now { shift: 0 })] };
    let clock = Clock { condition, terms: vec![(text(1), 0)] };
    let timed = Plan::Clock { input: Box::new(Plan::Scan { table: oid(view) }), clock };
    let remote = RemoteExpr { sql: "app.computed($1)".to_owned(), args: vec![0], types: vec!["text".to_owned()] };
    let (input, place) = if view == LIVE { (timed, 0) } else { (Plan::Remote { input: Box::new(timed), columns: vec![remote] }, 2) };
    let plan = Plan::Map { input: Box::new(input), columns: vec![text(place)] };
    let table = Table { title: format!("app.t{view}"), columns: vec![1, 2], identity: Identity::Key(vec![1]), toast: false };
    ViewPlan { plan: Plan::Distinct(Box::new(plan)), tables: BTreeMap::from([(oid(view), table)]) }
}

fn extent(rows: impl Iterator<Item = Row>) -> Extent {
    Extent::from_sorted(rows.collect::<BTreeSet<_>>().into_iter().map(Ok))
}

/// What the query returns, at a time when none of the moments has come but "00".
fn answer(view: usize, rows: &[Moment<'_>]) -> Extent {
    let here = rows.iter().filter(|(_, moment)| (*moment == "00") == (view == BEGUN));
    extent(here.map(|(name, _)| Row::from_texts([if view == LIVE { (*name).to_owned() } else { computed(name) }.as_str()])))
}

/// Views loaded at the source's time 0.
pub(super) fn loaded(lsn: u64, views: &[(usize, &[Moment<'_>])]) -> Event {
    let reading = |(view, rows): &(usize, &[Moment<'_>])| {
        let table = extent(rows.iter().map(|(name, moment)| Row::from_texts([*name, time(moment).as_str()])));
        (*view, Reading { answer: answer(*view, rows), tables: BTreeMap::from([(oid(*view), table)]), now: Some(0), unfit: None })
    };
    Event::Cut { position: at(lsn), views: views.iter().map(reading).collect(), snapshot: views.len() == SIGNATURES.len() }
}

/// A view's query, run again.
pub(super) fn read(lsn: u64, view: usize, rows: &[Moment<'_>]) -> Event {
    Event::Cut { position: at(lsn), views: vec![(view, answer(view, rows).into())], snapshot: false }
}

/// A commit of new rows; it ends one after `lsn`.
pub(super) fn commit(lsn: u64, view: usize, rows: &[Moment<'_>]) -> Event {
    let mut batch = ChangeBatch::default();
    batch.begin(Lsn(lsn));
    for (name, moment) in rows {
        batch.insert(oid(view), |image| {
            image.text(name);
            image.text(&time(moment));
        });
    }
    batch.commit(Lsn(lsn), Lsn(lsn + 1));
    Event::Changes { batch, settled: at(lsn + 1) }
}

/// One attempt to follow. The source is there until it is lost.
pub(super) struct Attempt {
    pub(super) start: Start,
    events: mpsc::Sender<Event>,
}

impl Attempt {
    pub(super) async fn streams(&self, event: Event) {
        self.events.send(Event::State(SourceState::Streaming)).await.expect("the engine listens");
        self.events.send(event).await.expect("the engine listens");
    }

    /// What the source's clock shows now.
    pub(super) async fn clock(&self, at: i64) {
        self.events.send(Event::Clock { at, seen: Instant::now() }).await.expect("the engine listens");
    }
}

struct Scripted {
    here: watch::Receiver<bool>,
    computes: watch::Receiver<bool>,
    indexed: watch::Receiver<bool>,
    attempts: mpsc::Sender<Attempt>,
}

fn away() -> SourceError {
    let source: Cause = "it is away".into();
    SourceError::Unreachable { name: "app".to_owned(), action: "connect", source }
}

impl Follow for Scripted {
    fn prepare(&mut self) -> BoxFuture<'_, Result<Prepared, SourceError>> {
        let view = |view| PreparedView { fingerprint: format!("plan {view}"), mode: ViewMode::Incremental(Arc::new(plan(view))) };
        let refreshed = || PreparedView { fingerprint: "no plan".to_owned(), mode: ViewMode::Refresh("an index is missing".to_owned()) };
        let live = if *self.indexed.borrow() { view(LIVE) } else { refreshed() };
        let prepared = Prepared { identity: "app".to_owned(), views: vec![live, view(BEGUN)] };
        let here = *self.here.borrow();
        async move { if here { Ok(prepared) } else { Err(away()) } }.boxed()
    }

    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>> {
        let attempt = Attempt { start, events: link.events.clone() };
        async move {
            // The test may have ended, and this with it.
            let _ = self.attempts.send(attempt).await;
            tokio::select! {
                _ = link.stop.wait_for(|stop| *stop) => Ok(()),
                _ = self.here.wait_for(|here| !here) => Err(away()),
            }
        }
        .boxed()
    }

    fn evaluator(&self) -> Option<Arc<dyn Evaluate>> {
        Some(Arc::new(Computer(self.computes.clone())))
    }
}

/// Computes while the source lets it.
struct Computer(watch::Receiver<bool>);

impl Evaluate for Computer {
    fn evaluate<'a>(
        &'a self,
        _: &'a RemoteExpr,
        rows: Vec<Vec<Option<String>>>,
    ) -> BoxFuture<'a, Result<Vec<Option<String>>, SourceError>> {
        let here = *self.0.borrow();
        let results = rows.into_iter().map(|row| row[0].as_deref().map(computed)).collect();
        async move { if here { Ok(results) } else { Err(away()) } }.boxed()
    }
}

/// A fact store that shows what it holds.
struct Memory(watch::Sender<BTreeSet<Fact>>);

impl FactStore for Memory {
    fn limits(&self) -> BatchLimits {
        BatchLimits { entries: 20, bytes: 10_000 }
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
        self.0.send_modify(|facts| {
            for change in &batch.changes {
                match change.op {
                    Op::Insert => facts.insert(change.fact.clone()),
                    Op::Delete => facts.remove(&change.fact),
                };
            }
        });
        async { Ok(Offset("1".to_owned())) }.boxed()
    }

    fn list<'a>(
        &'a self,
        fact_type: &'a FactType,
        each: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        let rows: Vec<Row> = self.0.borrow().iter().filter_map(|fact| fact_type.row(fact)).collect();
        let told = rows.into_iter().try_for_each(each).map_err(TargetError::Receiver);
        async move { told }.boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        async { Ok(()) }.boxed()
    }
}

/// What the fact store holds.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) live: usize,
    pub(super) begun: usize,
    /// Of all facts.
    pub(super) names: BTreeSet<String>,
}

impl Held {
    fn of(facts: &BTreeSet<Fact>) -> Self {
        let names = |view: usize| {
            let fact_type: FactType = SIGNATURES[view].parse().expect("a signature");
            let rows = facts.iter().filter_map(|fact| fact_type.row(fact)).collect::<Vec<_>>();
            rows.into_iter().map(|row| row.cells().remove(0).expect("a name")).collect::<BTreeSet<_>>()
        };
        let (live, begun) = (names(LIVE), names(BEGUN));
        Self { live: live.len(), begun: begun.len(), names: live.into_iter().chain(begun).collect() }
    }
}

/// The engine and everything around it.
pub(super) struct Play {
    pub(super) board: Arc<Board>,
    /// Whether the source is there.
    pub(super) here: watch::Sender<bool>,
    /// Whether it computes.
    pub(super) computes: watch::Sender<bool>,
    /// Whether it has what makes the first view one that can be followed change by change.
    pub(super) indexed: watch::Sender<bool>,
    attempts: mpsc::Receiver<Attempt>,
    facts: watch::Receiver<BTreeSet<Fact>>,
    stop: watch::Sender<bool>,
    engine: JoinHandle<Result<(), EngineError>>,
    _folder: tempfile::TempDir,
}

fn config() -> Config {
    let place = Place { file: PathBuf::from("app.yaml"), line: 1, column: 1 };
    let view = |signature: &str| View {
        fact_type: signature.parse().expect("a signature"),
        place: place.clone(),
        query: "SELECT what is scripted".to_owned(),
    };
    let source = PostgresConfig {
        connection_string: "postgresql://nowhere".to_owned().into(),
        ssl: None,
        slot: "app".to_owned(),
        views: SIGNATURES.map(view).into(),
    };
    let source = SourceConfig { name: "app".to_owned(), place: place.clone(), kind: SourceKind::Postgres(source) };
    Config { sources: vec![source], local: Vec::new(), sync: SyncOptions::default() }
}

impl Play {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = folder.path().join("spool");
        std::fs::create_dir(&spool).expect("a spool");
        let config = config();
        let board = Arc::new(Board::new(&config, "memory", quota::Plan::default()));
        let [here, computes, indexed] = [(); 3].map(|()| watch::Sender::new(true));
        let (tell, attempts) = mpsc::channel(ATTEMPTS);
        let memory = watch::Sender::new(BTreeSet::new());
        let facts = memory.subscribe();
        let parts = Parts {
            store: Store::open(&folder.path().join("state.db")).expect("a store"),
            checkpoint: Checkpoint::open(&folder.path().join("checkpoint")).expect("a checkpoint"),
            target: Arc::new(Memory(memory)),
            spool,
            followers: vec![Box::new(Scripted {
                here: here.subscribe(),
                computes: computes.subscribe(),
                indexed: indexed.subscribe(),
                attempts: tell,
            })],
            guard: Guard::Off,
            board: board.clone(),
            delivery: Delivery::Send,
        };
        let stop = watch::Sender::new(false);
        let stopped = stop.subscribe();
        let engine = tokio::spawn(async move { run(&config, parts, stopped).await });
        Self { board, here, computes, indexed, attempts, facts, stop, engine, _folder: folder }
    }

    /// The next attempt to follow the source.
    pub(super) async fn attempt(&mut self) -> Attempt {
        in_time("it is followed", self.attempts.recv()).await.expect("the engine runs")
    }

    /// The source goes away; returns when the engine knows.
    pub(super) async fn lose(&self, attempt: Attempt) {
        drop(attempt);
        self.here.send_replace(false);
        let mut facts = self.facts.clone();
        let lost = async {
            while self.board.status().sources[0].reason.is_none() {
                // Whatever happens meanwhile, or a moment.
                let _ = tokio::time::timeout(Duration::from_millis(5), facts.changed()).await;
            }
        };
        in_time("the source is missed", lost).await;
    }

    pub(super) fn held(&self) -> Held {
        Held::of(&self.facts.borrow())
    }

    /// Waits until the fact store holds what it should.
    pub(super) async fn until(&mut self, what: &str, mut is: impl FnMut(&Held) -> bool) {
        in_time(what, self.facts.wait_for(|facts| is(&Held::of(facts)))).await.expect("the engine runs");
    }

    /// Waits as a client does.
    pub(super) async fn wait(&self, position: Position) {
        in_time("the position is delivered", self.board.wait(0, &position)).await;
    }

    pub(super) fn modes(&self) -> Vec<&'static str> {
        self.board.status().fact_types.iter().map(|line| line.mode).collect()
    }

    /// The process stops.
    pub(super) async fn end(self, attempt: Attempt) {
        drop(attempt);
        self.stop.send_replace(true);
        in_time("it ends", self.engine).await.expect("it does not panic").expect("it does not fail");
    }
}

async fn in_time<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.unwrap_or_else(|_| panic!("still waiting: {what}"))
}
