//! The one writer: a thread that commits waiting requests in groups.
//!
//! Whatever waits when the thread comes around goes into one transaction: under load a group is what arrived during the
//! last fsync, alone a request pays one fsync. Nobody is answered before the commit that holds the request.
//!
//! A group goes into the fact tables, or into the log until enough is there (`pending.rs`). Before anything that has to see the
//! tables, and after [`SETTLE_AFTER`] without a request, the log is settled.
//!
//! The thread ends when the last [`Writer`] handle goes, after the requests that are queued by then, or with the first
//! error of SQLite: then the group in hand and everything after it is answered with [`WriteError::Stopped`].

use std::{
    io,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Wake},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::error;

use crate::{
    crash::{self, Moment},
    target::embedded::{
        apply::{Apply, Failure, Refusal, Shapes, Terms, Work},
        pending::Pending,
    },
};

/// Requests that wait for the writer. More wait in their own tasks; their bodies are bounded by `store::ROOM_BYTES`.
const QUEUE: usize = 256;

/// Entries after which a group is closed: half of what may be pending, so that the groups of a busy time fit the log.
pub(super) const GROUP_ENTRIES: usize = 4_096;

/// How long the log waits for more. A client that writes batch after batch sends the next one far sooner; and whoever reads after
/// a pause finds the tables settled.
const SETTLE_AFTER: Duration = Duration::from_millis(250);

/// A request on its way to the writer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) terms: Terms,
    /// The memory it occupies, given back with it.
    pub(super) _room: Option<OwnedSemaphorePermit>,
    pub(super) answer: oneshot::Sender<Result<Outcome, WriteError>>,
}

/// A request that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The commit counter after it.
    pub(super) offset: i64,
    /// Whether anything is different now.
    pub(super) changed: bool,
}

/// A request that is not.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum WriteError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the writer has stopped: {0}")]
    Stopped(Arc<str>),
}

/// The handle; dropping it waits for the thread.
#[derive(Debug)]
pub(super) struct Writer {
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
    failure: Arc<OnceLock<Arc<str>>>,
    /// Whether something that was answered is in the log only.
    behind: watch::Receiver<bool>,
    /// Closed when the thread has ended.
    running: watch::Receiver<()>,
}

impl Writer {
    /// Starts the thread on `connection`.
    pub(super) fn start(connection: Connection) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (alive, running) = watch::channel(());
        let failure = Arc::<OnceLock<Arc<str>>>::default();
        let kept = Arc::clone(&failure);
        let mut turn = Turn::new(connection);
        let behind = turn.behind.subscribe();
        let thread = thread::Builder::new().name("fact-store".into()).spawn(move || {
            let _alive = alive;
            if let Err(cause) = turn.serve(queue, &kept) {
                error!(error = %cause, "the embedded fact store cannot write and has stopped taking changes");
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), failure, behind, running })
    }

    /// Does `work` durably. If the future is dropped, whether it was done is unknown.
    pub(super) async fn write(&self, work: Work, terms: Terms, room: Option<OwnedSemaphorePermit>) -> Result<Outcome, WriteError> {
        let (answer, done) = oneshot::channel();
        let job = Job { work, terms, _room: room, answer };
        let jobs = self.jobs.as_ref().expect("the sender is there until the drop");
        jobs.send(job).await.map_err(|_| self.stopped())?;
        done.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Waits until the fact tables hold everything that was answered before.
    pub(super) async fn settle(&self) -> Result<(), WriteError> {
        // Set before the answer that it is about, so whoever was told sees it.
        if *self.behind.borrow() {
            self.write(Work::Settle, Terms::none(), None).await?;
        }
        Ok(())
    }

    /// Why the thread has ended, if it has.
    pub(super) fn failure(&self) -> Option<WriteError> {
        self.running.has_changed().is_err().then(|| self.stopped())
    }

    /// Ends when the thread has ended.
    pub(super) async fn ended(&self) -> WriteError {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
        self.stopped()
    }

    fn stopped(&self) -> WriteError {
        WriteError::Stopped(self.failure.get().cloned().unwrap_or_else(|| "its thread is gone".into()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported by the panic hook; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

struct Turn {
    connection: Connection,
    shapes: Shapes,
    pending: Pending,
    behind: watch::Sender<bool>,
}

impl Turn {
    fn new(connection: Connection) -> Self {
        Self { connection, shapes: Shapes::default(), pending: Pending::default(), behind: watch::Sender::new(false) }
    }

    /// Takes groups until the queue is closed and empty, or SQLite fails.
    fn serve(&mut self, mut queue: mpsc::Receiver<Job>, failure: &OnceLock<Arc<str>>) -> rusqlite::Result<()> {
        // Known before anybody can see that the queue is closed.
        let stopped = |queue: &mut mpsc::Receiver<Job>, error: &rusqlite::Error| {
            let cause = Arc::clone(failure.get_or_init(|| error.to_string().into()));
            queue.close();
            cause
        };
        while let Some(first) = self.next(&mut queue).inspect_err(|error| drop(stopped(&mut queue, error)))? {
            let mut group = gather(first, &mut queue);
            match self.commit(&mut group) {
                Ok((offset, results)) => tell(group, results.into_iter().map(|done| Ok(Outcome { offset, changed: done? }))),
                Err(error) => {
                    let cause = stopped(&mut queue, &error);
                    tell(group, std::iter::repeat_with(|| Err(WriteError::Stopped(Arc::clone(&cause)))));
                    return Err(error);
                }
            }
        }
        while !self.pending.is_empty() {
            self.settle_slice()?;
        }
        Ok(())
    }

    /// Waits for a request, and settles the log if none comes for a while, slice by slice until one does.
    fn next(&mut self, queue: &mut mpsc::Receiver<Job>) -> rusqlite::Result<Option<Job>> {
        let mut patience = SETTLE_AFTER;
        while !self.pending.is_empty() {
            match receive_within(patience, queue) {
                Poll::Ready(next) => return Ok(next),
                Poll::Pending => self.settle_slice()?,
            }
            patience = Duration::ZERO;
        }
        Ok(queue.blocking_recv())
    }

    fn settle_slice(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.pending.settle_slice(&transaction, &mut self.shapes)?;
        transaction.commit()?;
        crash::moment(Moment::Settled);
        self.tell_behind();
        Ok(())
    }

    /// Says whether the tables are behind; called after the commit and before the answers.
    fn tell_behind(&self) {
        let behind = !self.pending.is_empty();
        self.behind.send_if_modified(|told| std::mem::replace(told, behind) != behind);
    }

    /// Applies a group in one transaction; `Ok` has the commit counter and a result for each, and means durable.
    fn commit(&mut self, group: &mut [Job]) -> rusqlite::Result<(i64, Vec<Result<bool, Refusal>>)> {
        let mut logged = self.pending.takes(group.iter().map(|job| &job.work));
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !logged {
            self.pending.settle(&transaction, &mut self.shapes)?;
            // If it was only that the log was full, whoever waits for settling does not wait for tables of its own, too.
            logged = self.pending.takes(group.iter().map(|job| &job.work));
        }
        let mut results = Vec::with_capacity(group.len());
        for job in group {
            results.push(match &mut job.work {
                Work::Changes(changes) if logged => {
                    let mut apply = Apply { connection: &transaction, shapes: &mut self.shapes, terms: &job.terms };
                    judged(apply.log(std::mem::take(changes), &mut self.pending))?
                }
                Work::Changes(_) | Work::Clear | Work::Policy(_) | Work::Settle => one(&mut transaction, &mut self.shapes, job)?,
            });
        }
        if results.contains(&Ok(true)) {
            transaction.execute("UPDATE store SET offset = offset + 1", [])?;
        }
        let offset = transaction.query_row("SELECT offset FROM store", [], |row| row.get(0))?;
        transaction.commit()?;
        crash::moment(Moment::Answering);
        self.tell_behind();
        Ok((offset, results))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// `blocking_recv` with a time limit; pending if it has passed.
fn receive_within(limit: Duration, queue: &mut mpsc::Receiver<Job>) -> Poll<Option<Job>> {
    let deadline = Instant::now() + limit;
    let waker = Arc::new(Unpark(thread::current())).into();
    loop {
        let received = queue.poll_recv(&mut Context::from_waker(&waker));
        let left = deadline.saturating_duration_since(Instant::now());
        if received.is_ready() || left.is_zero() {
            return received;
        }
        thread::park_timeout(left);
    }
}

/// `first` and what waits behind it, up to a group. Whoever gave up was told nothing, so leaving it out is as good as doing it.
fn gather(first: Job, queue: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let (mut group, mut entries, mut next) = (Vec::new(), 0, Some(first));
    while let Some(job) = next {
        if !job.answer.is_closed() {
            entries += job.work.entries();
            group.push(job);
        }
        next = if entries < GROUP_ENTRIES { queue.try_recv().ok() } else { None };
    }
    group
}

/// Applies one request in a savepoint, and rolls it back if it is refused.
fn one(transaction: &mut rusqlite::Transaction<'_>, shapes: &mut Shapes, job: &Job) -> rusqlite::Result<Result<bool, Refusal>> {
    let mut savepoint = transaction.savepoint()?;
    match (Apply { connection: &savepoint, shapes, terms: &job.terms }).run(&job.work) {
        Ok(changed) => {
            savepoint.commit()?;
            Ok(Ok(changed))
        }
        Err(Failure::Refused(refusal)) => {
            savepoint.rollback()?;
            savepoint.commit()?;
            shapes.forget();
            Ok(Err(refusal))
        }
        Err(Failure::Sql(error)) => Err(error),
    }
}

/// A refusal is an answer; a failure of SQLite is the end.
fn judged(done: Result<bool, Failure>) -> rusqlite::Result<Result<bool, Refusal>> {
    match done {
        Ok(changed) => Ok(Ok(changed)),
        Err(Failure::Refused(refusal)) => Ok(Err(refusal)),
        Err(Failure::Sql(error)) => Err(error),
    }
}

fn tell(group: Vec<Job>, answers: impl Iterator<Item = Result<Outcome, WriteError>>) {
    for (job, answer) in group.into_iter().zip(answers) {
        // Whoever is gone by now finds the result by asking again.
        let _ = job.answer.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fact::{Fact, Value},
        target::embedded::{apply::Change, schema::open_writer, select::Selection},
    };

    fn insert(id: &str) -> Work {
        Work::Changes(vec![Change::Insert(Fact { predicate: "f".into(), args: vec![Value::new("User", id)] })])
    }

    fn new_type() -> Fact {
        Fact { predicate: "new".into(), args: vec![Value::new("Type", "x")] }
    }

    fn any() -> Selection {
        Selection { predicate: None, args: Vec::new(), arity: crate::target::embedded::select::Arity::AtLeast }
    }

    #[tokio::test]
    async fn a_failed_commit_is_final() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("facts.db");
        let mut connection = open_writer(&path).expect("a new file opens");
        // The second commit fails, as it would when the disk does.
        let mut commits = 0;
        let hook = move || {
            commits += 1;
            commits == 2
        };
        connection.commit_hook(Some(hook)).expect("the connection is ours");
        let writer = Writer::start(connection).expect("a thread starts");
        let first = writer.write(insert("1"), Terms::none(), None).await.expect("the first commit succeeds");
        assert_eq!(first, Outcome { offset: 1, changed: true });
        for id in ["2", "3"] {
            let error = writer.write(insert(id), Terms::none(), None).await.expect_err("the store has stopped");
            assert!(matches!(&error, WriteError::Stopped(cause) if !cause.is_empty()), "{error}");
        }
        writer.ended().await;
        assert!(writer.failure().is_some());
        drop(writer);
        let connection = open_writer(&path).expect("the next start recovers");
        assert_eq!(any().count(&connection, 10).expect("it reads"), 1, "only what was answered is there");
    }

    #[tokio::test]
    async fn what_waits_is_one_commit_and_a_refused_neighbour_leaves_no_trace() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open_writer(&folder.path().join("facts.db")).expect("a new file opens");
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let mut waiting = Vec::new();
        for id in 0..9 {
            let (answer, receiver) = oneshot::channel();
            let refused = Work::Changes(vec![Change::Insert(new_type()), Change::DeleteMatching(any())]);
            let work = if id == 4 { refused } else { insert(&(id % 4).to_string()) };
            let terms = Terms { max_removed: Some(1), ..Terms::none() };
            jobs.try_send(Job { work, terms, _room: None, answer }).expect("the queue has room");
            waiting.push(receiver);
        }
        waiting.pop();
        let mut turn = Turn::new(connection);
        let mut group = gather(queue.try_recv().expect("a job waits"), &mut queue);
        assert_eq!(group.len(), 8, "all but the one that nobody waits for");
        let (offset, results) = turn.commit(&mut group).expect("the group commits");
        assert_eq!(offset, 1, "eight requests, one commit");
        let changed: Vec<_> = results.iter().map(|done| done.clone().ok()).collect();
        let (new, same) = (Some(true), Some(false));
        assert_eq!(changed, [new, new, new, new, None, same, same, same]);
        assert_eq!(any().count(&turn.connection, 100).expect("it reads"), 4);
        assert_eq!(any().shapes(&turn.connection).expect("it reads").len(), 1, "the refused request's shape is gone");
        let (answer, _waiting) = oneshot::channel();
        let work = Work::Changes(vec![Change::Insert(new_type())]);
        let again = Job { work, terms: Terms::none(), _room: None, answer };
        turn.commit(&mut [again]).expect("the group commits");
        assert_eq!(any().count(&turn.connection, 100).expect("it reads"), 5, "a shape that was rolled back is made anew");
    }

    fn many(range: std::ops::Range<u32>) -> Work {
        let fact = |n: u32| Fact { predicate: "f".into(), args: vec![Value::new("User", n.to_string())] };
        Work::Changes(range.map(|n| Change::Insert(fact(n))).collect())
    }

    fn logged(path: &std::path::Path) -> i64 {
        let reader = crate::target::embedded::schema::open_reader(path).expect("it opens");
        reader.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).expect("the table is there")
    }

    #[tokio::test]
    async fn what_was_logged_is_read_after_settling_and_settles_by_itself_after_a_pause() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("facts.db");
        let writer = Writer::start(open_writer(&path).expect("a new file opens")).expect("a thread starts");
        let count = |path: &std::path::Path| {
            let reader = crate::target::embedded::schema::open_reader(path).expect("it opens");
            any().count(&reader, u64::MAX).expect("it reads")
        };
        for round in 0..5 {
            let done = writer.write(many(round * 500..round * 500 + 500), Terms::none(), None).await.expect("it is written");
            assert_eq!(done, Outcome { offset: i64::from(round) + 1, changed: true });
            writer.settle().await.expect("it settles");
            assert_eq!(count(&path), u64::from(round + 1) * 500);
        }
        writer.write(many(2_500..3_000), Terms::none(), None).await.expect("it is written");
        let mut behind = writer.behind.clone();
        let settled = tokio::time::timeout(Duration::from_secs(20), behind.wait_for(|behind| !behind)).await;
        settled.expect("it settles by itself").expect("the writer runs");
        assert_eq!((count(&path), logged(&path)), (3_000, 0));
        writer.write(many(3_000..4_000), Terms::none(), None).await.expect("it is written");
        drop(writer);
        assert_eq!((count(&path), logged(&path)), (4_000, 0), "the end settles too");
    }

    #[tokio::test]
    async fn a_read_fails_rather_than_miss_what_only_the_log_holds() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut connection = open_writer(&folder.path().join("facts.db")).expect("a new file opens");
        let mut commits = 0;
        let hook = move || {
            commits += 1;
            commits == 2
        };
        connection.commit_hook(Some(hook)).expect("the connection is ours");
        let writer = Writer::start(connection).expect("a thread starts");
        writer.write(many(0..500), Terms::none(), None).await.expect("the first commit succeeds");
        assert!(writer.settle().await.is_err(), "settling is the second");
        assert!(writer.settle().await.is_err(), "and there is no third");
        drop(writer);
        let connection = open_writer(&folder.path().join("facts.db")).expect("the next start recovers");
        assert_eq!(any().count(&connection, 1_000).expect("it reads"), 500);
    }
}
