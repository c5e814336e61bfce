//! A fact store that misbehaves, and remembers what it went through.
//!
//! It applies a batch as a whole, writes it down with the last commit that had begun by then, and answers, or not. Everything happens
//! under one lock, so what is written down is the order in which it happened.
//!
//! At random it applies once more what it applied last, as a network that delivers a request twice does.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use factsync::target::Op;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::{
    checker::Lane,
    source::{Fact, Views},
    wire::{Answer, Request, Wire},
};
use crate::support::{free_port, github::Random};

/// How badly it behaves: of a hundred batches, how many meet with what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// 429, with or without `Retry-After`.
    pub(super) busy: u64,
    /// A status from 500 on. Of these and of those below some are applied first.
    pub(super) broken: u64,
    /// The connection ends without an answer or in the middle of one.
    pub(super) cut: u64,
    /// No answer ever. A test that wants this must kill the client, whose patience is a minute and a half.
    pub(super) silent: u64,
    /// It takes up to this long for a batch.
    pub(super) slow: Duration,
    /// It takes up to this long for a list of facts, which is old when it arrives.
    pub(super) slow_lists: Duration,
    /// What it applied last is applied once more, before or after.
    pub(super) repeated: u64,
    /// Inserts of the refused facts are refused with 400, whatever comes with them.
    pub(super) refuses: bool,
    /// The most changes that it takes, more are answered with 413; 0 for any number.
    pub(super) most: usize,
}

/// What happened, in order; the checker's steps before facts have numbers.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Batch { changes: Vec<(Op, Fact)>, head: usize, again: bool },
    Committed { moment: usize },
    Reached { moment: usize, head: usize },
    Lane(Lane),
}

/// Which of its two halves a fault spares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// Not applied.
    Busy,
    Broken {
        applied: bool,
    },
    Cut {
        applied: bool,
    },
    /// Applied, and the answer breaks off.
    Torn,
    Silent {
        applied: bool,
    },
}

struct Record {
    facts: BTreeSet<Fact>,
    entries: Vec<Entry>,
    manners: Manners,
    random: Random,
    /// `X-Request-ID` and changes of the batch that was applied last.
    last: Option<(String, Vec<(Op, Fact)>)>,
    offset: u64,
    /// How often it did not behave.
    faults: usize,
}

struct Shared {
    record: Mutex<Record>,
    /// The last moment whose commit has begun.
    head: AtomicUsize,
    views: Views,
}

/// The fact store; it ends with the test's runtime.
pub(super) struct Recorder {
    pub(super) url: String,
    port: u16,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins with `facts`.
    pub(super) async fn start(views: Views, facts: BTreeSet<Fact>, manners: Manners, random: Random) -> Self {
        let record = Record { facts, entries: Vec::new(), manners, random, last: None, offset: 0, faults: 0 };
        let shared = Arc::new(Shared { record: Mutex::new(record), head: AtomicUsize::new(1), views });
        let port = free_port();
        let mut recorder = Self { url: format!("http://127.0.0.1:{port}"), port, shared, listening: None };
        recorder.up().await;
        recorder
    }

    /// Accepts connections.
    pub(super) async fn up(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the port is this test's own");
        let shared = self.shared.clone();
        let listening = async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, shared.clone()));
            }
        };
        self.listening = Some(tokio::spawn(listening));
    }

    /// Refuses connections and ends those there are.
    pub(super) async fn down(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // It ends by the abort; what it held is closed then.
            let _ = listening.await;
        }
    }

    /// A commit is about to be sent to the source: what it makes true may arrive.
    pub(super) fn begin(&self) -> usize {
        self.shared.head.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn committed(&self, moment: usize) {
        self.shared.lock().entries.push(Entry::Committed { moment });
    }

    /// What tells of an answered wait: it must be told of before anything else is done.
    pub(super) fn watcher(&self) -> Watcher {
        Watcher(self.shared.clone())
    }

    pub(super) fn lane(&self, lane: Lane) {
        self.shared.lock().entries.push(Entry::Lane(lane));
    }

    pub(super) fn set(&self, manners: Manners) {
        self.shared.lock().manners = manners;
    }

    /// How many batches it has applied.
    pub(super) fn batches(&self) -> usize {
        self.shared.lock().entries.iter().filter(|entry| matches!(entry, Entry::Batch { again: false, .. })).count()
    }

    /// How many batches have met with a fault.
    pub(super) fn faults(&self) -> usize {
        self.shared.lock().faults
    }

    /// Everything that happened, and how often it did not behave.
    pub(super) fn take(&self) -> (Vec<Entry>, usize) {
        let mut record = self.shared.lock();
        (std::mem::take(&mut record.entries), record.faults)
    }
}

/// Writes down what a wait promises.
#[derive(Clone)]
pub(super) struct Watcher(Arc<Shared>);

impl Watcher {
    pub(super) fn reached(&self, moment: usize) {
        let mut record = self.0.lock();
        let head = self.0.head.load(Ordering::SeqCst);
        record.entries.push(Entry::Reached { moment, head });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nothing panics while it is held")
    }

    async fn respond(&self, request: Request) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/api/facts") => {
                let delay = self.draw(|manners| manners.slow_lists);
                let answer = self.list(&request);
                pause(delay).await;
                answer
            }
            ("POST", "/api/batch") => {
                let delay = self.draw(|manners| manners.slow);
                pause(delay / 2).await;
                let answer = self.batch(&request);
                pause(delay / 2).await;
                answer
            }
            (method, path) => panic!("nobody asks for {method} {path}"),
        }
    }

    /// A time up to one of its manners.
    fn draw(&self, longest: impl Fn(&Manners) -> Duration) -> Duration {
        let mut record = self.lock();
        let longest = longest(&record.manners).as_millis() as u64;
        Duration::from_millis(record.random.below(longest + 1))
    }

    /// The facts of a predicate; one in a while breaks off.
    fn list(&self, request: &Request) -> Answer {
        let predicate = request.query.iter().find(|(key, _)| key == "predicate").map(|(_, value)| value.as_str());
        let mut record = self.lock();
        let facts = record.facts.iter().map(|fact| self.views.json(fact));
        let facts: Vec<Value> = facts.filter(|fact| fact["predicate"].as_str() == predicate).collect();
        let body = Value::from(facts).to_string();
        // A comparison asks for several lists, and is put off for seconds when it does not get one.
        if record.random.below(400) < record.manners.cut {
            return Answer::Torn { body };
        }
        Answer::Whole { status: 200, headers: String::new(), body }
    }

    fn batch(&self, request: &Request) -> Answer {
        let changes = self.changes(&request.body);
        let mut record = self.lock();
        let record = &mut *record;
        let head = self.head.load(Ordering::SeqCst);
        if record.random.below(100) < record.manners.repeated {
            record.repeat(head);
        }
        if record.manners.refuses && changes.iter().any(|(op, fact)| *op == Op::Insert && self.views.is_refused(fact)) {
            return failure(400, "", "argument type not used in policy");
        }
        if record.manners.most > 0 && changes.len() > record.manners.most {
            return failure(413, "", "too large");
        }
        let answer = record.meet(&request.id, changes, head);
        if record.random.below(100) < record.manners.repeated {
            record.repeat(head);
        }
        answer
    }

    /// What a body asks for, in order.
    fn changes(&self, body: &[u8]) -> Vec<(Op, Fact)> {
        let changesets: Vec<Value> = serde_json::from_slice(body).expect("a batch is JSON");
        let sets = changesets.iter().flat_map(|changeset| changeset.as_object().expect("a changeset"));
        let of = |(kind, facts): (&String, &Value)| {
            let op = match kind.as_str() {
                "deletes" => Op::Delete,
                "inserts" => Op::Insert,
                other => panic!("{other:?} is neither inserts nor deletes"),
            };
            let facts = facts.as_array().expect("facts");
            facts.iter().map(|fact| (op, self.views.fact(fact))).collect::<Vec<_>>()
        };
        sets.flat_map(of).collect()
    }
}

impl Record {
    /// Draws what happens to a batch and lets it happen.
    fn meet(&mut self, id: &str, changes: Vec<(Op, Fact)>, head: usize) -> Answer {
        let fate = self.fate();
        let applied = match fate {
            Fate::Good | Fate::Torn => true,
            Fate::Busy => false,
            Fate::Broken { applied } | Fate::Cut { applied } | Fate::Silent { applied } => applied,
        };
        if applied {
            self.apply(id, changes, head);
        }
        if fate != Fate::Good {
            self.faults += 1;
        }
        let body = json!({ "message": "ok" }).to_string();
        match fate {
            Fate::Good => Answer::Whole { status: 200, headers: format!("OsoOffset: {}\r\n", self.offset), body },
            Fate::Busy => {
                let headers = if self.random.below(2) == 0 { "retry-after: 0\r\n" } else { "" };
                failure(429, headers, "slow down")
            }
            Fate::Broken { .. } => failure([500, 502, 503, 504][self.random.below(4) as usize], "", "try again"),
            Fate::Cut { .. } => Answer::HangUp,
            Fate::Torn => Answer::Torn { body },
            Fate::Silent { .. } => Answer::Silence,
        }
    }

    fn fate(&mut self) -> Fate {
        let Manners { busy, broken, cut, silent, .. } = self.manners;
        let (drawn, applied) = (self.random.below(100), self.random.below(2) == 0);
        let after = |rates: &[u64]| rates.iter().sum::<u64>();
        match drawn {
            drawn if drawn < busy => Fate::Busy,
            drawn if drawn < after(&[busy, broken]) => Fate::Broken { applied },
            drawn if drawn < after(&[busy, broken, cut]) && drawn % 3 == 0 => Fate::Torn,
            drawn if drawn < after(&[busy, broken, cut]) => Fate::Cut { applied },
            drawn if drawn < after(&[busy, broken, cut, silent]) => Fate::Silent { applied },
            _ => Fate::Good,
        }
    }

    fn apply(&mut self, id: &str, changes: Vec<(Op, Fact)>, head: usize) {
        let again = self.last.as_ref().is_some_and(|(last, _)| last == id);
        for (op, fact) in &changes {
            match op {
                Op::Insert => self.facts.insert(fact.clone()),
                Op::Delete => self.facts.remove(fact),
            };
        }
        self.offset += 1;
        self.last = Some((id.to_owned(), changes.clone()));
        self.entries.push(Entry::Batch { changes, head, again });
    }

    /// Applies the last one once more.
    fn repeat(&mut self, head: usize) {
        if let Some((id, changes)) = self.last.clone() {
            self.apply(&id, changes, head);
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut wire = Wire::new(stream);
    while let Some(request) = wire.request().await {
        let answer = shared.respond(request).await;
        if !wire.answer(answer).await {
            return;
        }
    }
}

/// A slow answer: nothing comes that could be waited for.
async fn pause(length: Duration) {
    let _ = tokio::time::timeout(length, std::future::pending::<()>()).await;
}

fn failure(status: u16, headers: &str, message: &str) -> Answer {
    Answer::Whole { status, headers: headers.to_owned(), body: json!({ "message": message }).to_string() }
}
