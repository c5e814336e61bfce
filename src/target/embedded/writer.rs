//! The one writer: a thread that commits waiting requests in groups.
//!
//! Whatever waits when the thread comes around goes into one transaction: under load a group is what arrived during the
//! last fsync, alone a request pays one fsync. Nobody is answered before the commit that holds the request.
//!
//! The thread ends when the last [`Writer`] handle goes, after the requests that are queued by then, or with the first
//! error of SQLite: then the group in hand and everything after it is answered with [`WriteError::Stopped`].

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
};

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tracing::error;

use crate::target::embedded::apply::{Apply, Failure, Refusal, Shapes, Terms, Work};

/// Requests that wait for the writer. More wait in their own tasks; their bodies are bounded by `store::ROOM_BYTES`.
const QUEUE: usize = 256;

/// Entries after which a group is closed: some 100 ms of work, so that the first of a group waits far less than the 5 s after
/// which Python's SDK sends its request again.
const GROUP_ENTRIES: usize = 10_000;

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
        let thread = thread::Builder::new().name("fact-store".into()).spawn(move || {
            let _alive = alive;
            let mut turn = Turn { connection, shapes: Shapes::default() };
            if let Err(cause) = turn.serve(queue, &kept) {
                error!(error = %cause, "the embedded fact store cannot write and has stopped taking changes");
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), failure, running })
    }

    /// Does `work` durably. If the future is dropped, whether it was done is unknown.
    pub(super) async fn write(&self, work: Work, terms: Terms, room: Option<OwnedSemaphorePermit>) -> Result<Outcome, WriteError> {
        let (answer, done) = oneshot::channel();
        let job = Job { work, terms, _room: room, answer };
        let jobs = self.jobs.as_ref().expect("the sender is there until the drop");
        jobs.send(job).await.map_err(|_| self.stopped())?;
        done.await.unwrap_or_else(|_| Err(self.stopped()))
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
}

impl Turn {
    /// Takes groups until the queue is closed and empty, or SQLite fails.
    fn serve(&mut self, mut queue: mpsc::Receiver<Job>, failure: &OnceLock<Arc<str>>) -> rusqlite::Result<()> {
        while let Some(first) = queue.blocking_recv() {
            let group = gather(first, &mut queue);
            match self.commit(&group) {
                Ok((offset, results)) => tell(group, results.into_iter().map(|done| Ok(Outcome { offset, changed: done? }))),
                Err(error) => {
                    // Known before anybody can see that the queue is closed.
                    let cause = failure.get_or_init(|| error.to_string().into());
                    queue.close();
                    tell(group, std::iter::repeat_with(|| Err(WriteError::Stopped(Arc::clone(cause)))));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Applies a group in one transaction; `Ok` has the commit counter and a result for each, and means durable.
    fn commit(&mut self, group: &[Job]) -> rusqlite::Result<(i64, Vec<Result<bool, Refusal>>)> {
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(group.len());
        for job in group {
            results.push(one(&mut transaction, &mut self.shapes, job)?);
        }
        if results.contains(&Ok(true)) {
            transaction.execute("UPDATE store SET offset = offset + 1", [])?;
        }
        let offset = transaction.query_row("SELECT offset FROM store", [], |row| row.get(0))?;
        transaction.commit()?;
        Ok((offset, results))
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
        let mut turn = Turn { connection, shapes: Shapes::default() };
        let group = gather(queue.try_recv().expect("a job waits"), &mut queue);
        assert_eq!(group.len(), 8, "all but the one that nobody waits for");
        let (offset, results) = turn.commit(&group).expect("the group commits");
        assert_eq!(offset, 1, "eight requests, one commit");
        let changed: Vec<_> = results.iter().map(|done| done.clone().ok()).collect();
        let (new, same) = (Some(true), Some(false));
        assert_eq!(changed, [new, new, new, new, None, same, same, same]);
        assert_eq!(any().count(&turn.connection, 100).expect("it reads"), 4);
        assert_eq!(any().shapes(&turn.connection).expect("it reads").len(), 1, "the refused request's shape is gone");
        let (answer, _waiting) = oneshot::channel();
        let work = Work::Changes(vec![Change::Insert(new_type())]);
        let again = Job { work, terms: Terms::none(), _room: None, answer };
        turn.commit(&[again]).expect("the group commits");
        assert_eq!(any().count(&turn.connection, 100).expect("it reads"), 5, "a shape that was rolled back is made anew");
    }
}
