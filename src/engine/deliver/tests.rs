//! Delivery against a fact store that the test plays, batch by batch: each answer is the one that is meant, at the moment that is meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use uuid::Uuid;

use crate::{
    config::{Config, SyncOptions},
    data::{Extent, Lsn, Position, Row},
    engine::{
        board::Board,
        deliver::{CATCH_UP_BATCHES, Deliver, TOGETHER, belongs_behind, stride::Rate},
        error::EngineError,
        writer::{Queues, Writer},
    },
    fact::FactType,
    store::{Store, ViewRecord},
    target::{Batch, BatchLimits, FactChange, FactStore, Offset, Op, TargetError, quota::Plan},
    view::Guard,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Entries of a batch.
const MOST: usize = 20;

type Answer = oneshot::Sender<Result<Offset, TargetError>>;

/// Asks the test what to answer.
struct Asked(mpsc::Sender<(Batch, Answer)>);

impl FactStore for Asked {
    fn limits(&self) -> BatchLimits {
        BatchLimits { entries: MOST, bytes: 100_000 }
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send((batch.clone(), answer)).expect("never so many at once");
        async { answered.await.expect("the test answers") }.boxed()
    }

    fn list<'a>(&'a self, _: &'a FactType, _: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send)) -> BoxFuture<'a, Result<(), TargetError>> {
        async { Ok(()) }.boxed()
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        async { Ok(()) }.boxed()
    }
}

fn busy(status: u16) -> TargetError {
    TargetError::Busy { status, message: "not now".to_owned(), retry_after: None }
}

fn offset() -> Offset {
    Offset("7".to_owned())
}

fn extent(names: &BTreeSet<String>) -> Extent {
    let rows: BTreeSet<Row> = names.iter().map(|name| Row::from_texts([name.as_str()])).collect();
    Extent::from_sorted(rows.into_iter().map(Ok))
}

fn names(count: usize) -> BTreeSet<String> {
    (0..count).map(|at| format!("m{at:05}")).collect()
}

/// A batch that waits for its answer.
struct Asking {
    batch: Batch,
    answer: Answer,
}

impl Asking {
    fn changes(&self) -> Vec<(Op, String)> {
        self.batch.changes.iter().map(|FactChange { op, fact }| (*op, fact.args[0].id.clone())).collect()
    }

    fn all(&self, op: Op) -> bool {
        self.batch.changes.iter().all(|change| change.op == op)
    }
}

struct Play {
    writer: Writer,
    view: ViewRecord,
    lsn: u64,
    result: BTreeSet<String>,
    asked: mpsc::Receiver<(Batch, Answer)>,
    /// What the fact store holds.
    held: BTreeSet<String>,
    board: Arc<Board>,
    target: Arc<dyn FactStore>,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<Result<(), EngineError>>>,
    _folder: tempfile::TempDir,
}

impl Play {
    /// A fact store that holds `stored`, and a query that says `first`.
    async fn new(stored: &BTreeSet<String>, first: &BTreeSet<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("a spool");
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        let fact_type: FactType = "f(User:_)".parse().expect("a signature");
        let view = store.register("db", &[&fact_type]).expect("registered").remove(0);
        store.begin("db", "fingerprint", "identity").expect("begun");
        let config = Config { sources: Vec::new(), local: Vec::new(), sync: SyncOptions::default() };
        let board = Arc::new(Board::new(&config, "asked", Plan::Unlimited));
        let writer = Writer::new(store, board.clone()).expect("read");
        let at = Position::from(Lsn(1));
        writer.replace("db", at.into(), vec![(view.clone(), extent(first)).into()], Guard::Off).await.expect("replaced");
        let view = writer.views(&[view]).await.expect("read").remove(0);
        writer.correct("db", vec![(view.clone(), extent(stored))], Guard::Off).await.expect("corrected");
        let (ask, asked) = mpsc::channel(2 * TOGETHER);
        Self {
            writer,
            view,
            lsn: 1,
            result: first.clone(),
            asked,
            held: stored.clone(),
            board,
            target: Arc::new(Asked(ask)),
            stop: watch::Sender::new(false),
            task: None,
            _folder: folder,
        }
    }

    fn start(&mut self) {
        let fact_types = BTreeMap::from([(self.view.id, self.view.fact_type.clone())]);
        let stop = self.stop.subscribe();
        let mut deliver = Deliver::new(self.writer.clone(), self.target.clone(), self.board.clone(), fact_types, stop);
        // Whatever is more than two batches is too long.
        deliver.rate = Rate::new(Some(60));
        self.task = Some(tokio::spawn(deliver.run()));
    }

    /// The query's result changes.
    async fn commit(&mut self, change: impl FnOnce(&mut BTreeSet<String>)) {
        change(&mut self.result);
        self.lsn += 1;
        let fresh = vec![(self.view.clone(), extent(&self.result)).into()];
        self.writer.apply("db", Position::from(Lsn(self.lsn)).into(), fresh, Guard::Off).await.expect("applied");
        self.view = self.writer.views(std::slice::from_ref(&self.view)).await.expect("read").remove(0);
    }

    async fn asks(&mut self) -> Asking {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await.expect("a batch comes").expect("it runs");
        Asking { batch: asked.0, answer: asked.1 }
    }

    /// Applies a batch and returns how many of its changes changed nothing.
    fn apply(&mut self, asking: &Asking) -> usize {
        let mut idle = 0;
        for (op, name) in asking.changes() {
            let changed = match op {
                Op::Insert => self.held.insert(name),
                Op::Delete => self.held.remove(&name),
            };
            idle += usize::from(!changed);
        }
        idle
    }

    fn take(&mut self, asking: Asking) -> usize {
        let idle = self.apply(&asking);
        asking.answer.send(Ok(offset())).expect("it waits");
        idle
    }

    fn fail(asking: Asking, error: TargetError) {
        asking.answer.send(Err(error)).expect("it waits");
    }

    /// Takes batches until nothing waits; returns them.
    async fn finish(&mut self) -> (Vec<Vec<(Op, String)>>, usize) {
        let (mut batches, mut idle) = (Vec::new(), 0);
        while !self.writer.queues().is_empty() {
            if let Ok(asked) = tokio::time::timeout(Duration::from_millis(20), self.asked.recv()).await {
                let (batch, answer) = asked.expect("it runs");
                let asking = Asking { batch, answer };
                batches.push(asking.changes());
                idle += self.take(asking);
            }
        }
        assert_eq!(self.held, self.result);
        (batches, idle)
    }

    fn mode(&self) -> &'static str {
        self.board.status().outbox.mode
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        let task = self.task.take().expect("it runs");
        tokio::time::timeout(PATIENCE, task).await.expect("it ends").expect("it does not panic").expect("it does not fail");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_revocation_waits_for_one_round_of_a_backfill_at_the_most() {
    let mut wanted = names(500);
    wanted.insert("a".to_owned());
    let mut play = Play::new(&BTreeSet::from(["a".to_owned()]), &wanted).await;
    play.start();
    let round = [play.asks().await, play.asks().await];
    assert!(round.iter().all(|asking| asking.all(Op::Insert)));
    assert_eq!(play.mode(), "backfill");
    play.commit(|result| assert!(result.remove("a"))).await;
    let mut round: Vec<Asking> = round.into();
    for _ in round.len()..TOGETHER {
        round.push(play.asks().await);
    }
    round.into_iter().for_each(|asking| {
        play.take(asking);
    });
    let next = play.asks().await;
    assert_eq!(next.changes()[0], (Op::Delete, "a".to_owned()));
    // Its spare room is used all the same.
    assert_eq!(next.changes().len(), MOST);
    play.take(next);
    let (batches, idle) = play.finish().await;
    assert_eq!(idle, 0);
    assert!(batches.concat().iter().all(|(op, _)| *op == Op::Insert));
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_a_backfill_never_brings_back_what_a_live_change_removed() {
    let mut play = Play::new(&BTreeSet::new(), &names(200)).await;
    play.start();
    let first = play.asks().await;
    let gone: BTreeSet<String> = names(200).into_iter().skip(100).collect();
    play.commit(|result| result.retain(|name| !gone.contains(name))).await;
    play.take(first);
    let (batches, _) = play.finish().await;
    let mut deleted = BTreeSet::new();
    for (op, name) in batches.concat() {
        match op {
            Op::Delete => drop(deleted.insert(name)),
            Op::Insert => assert!(!deleted.contains(&name), "{name} came back"),
        }
    }
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_batches_on_their_way_together_hold_different_facts_of_one_operation() {
    let mut play = Play::new(&names(300).into_iter().map(|name| name.replace('m', "x")).collect(), &names(300)).await;
    play.start();
    let mut together = Vec::new();
    while !play.writer.queues().is_empty() {
        let mut round = Vec::new();
        while let Ok(Some((batch, answer))) = tokio::time::timeout(Duration::from_millis(50), play.asked.recv()).await {
            round.push(Asking { batch, answer });
        }
        if round.is_empty() {
            continue;
        }
        assert!(round.len() <= TOGETHER);
        assert!([Op::Delete, Op::Insert].iter().any(|op| round.iter().all(|asking| asking.all(*op))));
        let facts: Vec<String> = round.iter().flat_map(Asking::changes).map(|(_, name)| name).collect();
        assert_eq!(facts.iter().collect::<BTreeSet<_>>().len(), facts.len());
        together.push(round.len());
        // In any order.
        round.into_iter().rev().for_each(|asking| {
            play.take(asking);
        });
    }
    assert_eq!(play.held, play.result);
    assert_eq!((together.iter().max(), together.last()), (Some(&TOGETHER), Some(&1)));
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn net_an_outage_ends_with_the_net_writes_revocations_first() {
    let kept = names(10 * MOST);
    let mut play = Play::new(&kept, &kept).await;
    play.start();
    // The fact store answers nobody while everything goes away, comes back and goes again, and something new comes each time.
    for step in 0..12 {
        if let Ok((batch, answer)) = play.asked.try_recv() {
            Play::fail(Asking { batch, answer }, busy(429));
        }
        let turned: Vec<String> = kept.iter().skip(step % 3 * MOST).take(8 * MOST).cloned().collect();
        play.commit(|result| {
            for name in turned {
                if !result.remove(&name) {
                    result.insert(name);
                }
            }
            result.insert(format!("n{step:02}"));
        })
        .await;
    }
    while play.mode() != "catch-up" || play.board.status().outbox.backlog == 0 {
        if let Ok((batch, answer)) = play.asked.try_recv() {
            Play::fail(Asking { batch, answer }, busy(429));
        }
        tokio::task::yield_now().await;
    }
    let difference = play.held.symmetric_difference(&play.result).count();
    // A batch that was asked for before everything was folded is not applied either.
    let (batches, idle) = {
        let asking = play.asks().await;
        Play::fail(asking, busy(429));
        play.finish().await
    };
    let changes = batches.concat();
    assert_eq!((changes.len(), idle), (difference, 0));
    let first_insert = changes.iter().position(|(op, _)| *op == Op::Insert).unwrap_or(changes.len());
    assert!(changes[first_insert..].iter().all(|(op, _)| *op == Op::Insert), "a grant before a revocation");
    assert!(difference as u64 > CATCH_UP_BATCHES);
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotent_what_may_have_arrived_is_repeated_by_its_name_and_revoked_if_it_was_netted() {
    let mut play = Play::new(&BTreeSet::new(), &BTreeSet::new()).await;
    play.start();
    play.commit(|result| assert!(result.insert("a".to_owned()))).await;
    let first = play.asks().await;
    let id: Uuid = first.batch.request_id;
    // Applied, and the answer is lost: nobody knows.
    play.apply(&first);
    Play::fail(first, busy(502));
    let again = play.asks().await;
    assert_eq!((again.batch.request_id, again.changes()), (id, vec![(Op::Insert, "a".to_owned())]));
    Play::fail(again, busy(429));
    // What comes now makes the queue too long to be sent commit by commit.
    let many = CATCH_UP_BATCHES as usize * MOST * 3;
    play.commit(|result| {
        result.remove("a");
        result.extend(names(many));
    })
    .await;
    let mut revoked = false;
    while !revoked {
        let asking = play.asks().await;
        if asking.batch.request_id == id {
            Play::fail(asking, busy(502));
            continue;
        }
        assert_eq!(play.mode(), "catch-up");
        assert_eq!(asking.changes(), [(Op::Delete, "a".to_owned())], "the revocation is the first thing");
        play.take(asking);
        revoked = true;
    }
    assert!(!play.held.contains("a"));
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_a_fact_that_is_refused_in_a_backfill_is_parked_and_settled_by_what_comes_later() {
    let mut play = Play::new(&BTreeSet::new(), &names(3)).await;
    play.start();
    let bad = "m00001";
    while play.board.status().outbox.parked == 0 {
        let asking = play.asks().await;
        let refused = asking.changes().iter().any(|(_, name)| name == bad);
        if refused {
            Play::fail(asking, TargetError::Refused { status: 400, message: "no such predicate".to_owned() });
        } else {
            play.take(asking);
        }
        while play.board.status().outbox.parked == 0 && play.asked.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    while !play.writer.queues().is_empty() {
        let asking = play.asks().await;
        play.take(asking);
        while !play.writer.queues().is_empty() && play.asked.is_empty() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(play.held.len(), 2);
    play.commit(|result| assert!(result.remove(bad))).await;
    let asking = play.asks().await;
    assert_eq!(asking.changes(), [(Op::Delete, bad.to_owned())]);
    play.take(asking);
    while play.board.status().outbox.parked > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(play.held, play.result);
    play.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_no_later_grant_goes_before_the_revocations_of_a_catch_up() {
    let mut play = Play::new(&names(3), &BTreeSet::new()).await;
    // It came after the queues were looked at, and before what goes next is read.
    play.commit(|result| assert!(result.insert("late".to_owned()))).await;
    let behind = |queues: Queues| belongs_behind(queues, false);
    let parcel = play.writer.parcel((MOST, MOST), (behind, None, MOST)).await.expect("read");
    assert!(parcel.outbox.is_empty(), "it waits with the other grants");
    assert!(parcel.backlog.len() == 3 && parcel.backlog.iter().all(|entry| entry.op == Op::Delete));
    // A long one is left to be folded in parts.
    play.commit(|result| result.extend(names(MOST).iter().map(|name| format!("later {name}")))).await;
    let parcel = play.writer.parcel((MOST, MOST), (behind, None, MOST / 2)).await.expect("read");
    assert!(parcel.outbox.is_empty() && parcel.backlog.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_who_waits_for_what_was_netted_to_nothing_is_answered() {
    let kept = names(10 * MOST);
    let mut play = Play::new(&kept, &kept).await;
    play.start();
    play.commit(|result| assert!(result.insert("a".to_owned()))).await;
    let asking = play.asks().await;
    // While the fact store answers nobody, so much goes and comes back that nothing is left to say.
    play.commit(BTreeSet::clear).await;
    play.commit(|result| result.extend(kept.clone())).await;
    Play::fail(asking, busy(429));
    let commit_no = play.writer.commit_no();
    let told = async {
        while play.board.delivered_up_to() < commit_no {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("everything is delivered");
    assert!(play.asked.is_empty() && play.writer.queues().is_empty());
    play.end().await;
}
