//! The handle: what the rest of the process does with the embedded store.

use std::{io, path::Path, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    data::Row,
    fact::{Fact, FactType, MAX_ARGUMENTS, Value},
    target::{
        Batch, BatchLimits, FactStore, Offset, Op, TargetError,
        embedded::{
            apply::{Change, Policy, Terms, Work, stored_policy},
            reader::{Lease, Readers},
            schema::open_writer,
            select::{Halt, Selection},
            writer::{GROUP_ENTRIES, Outcome, WriteError, Writer},
        },
    },
};

/// What a batch of the process's own may hold: no more entries than a group, so that it fits the log (`pending.rs`), and the parsed
/// batch in some 64 MiB at worst.
const BATCH: BatchLimits = BatchLimits { entries: GROUP_ENTRIES, bytes: 16 * 1024 * 1024 };

/// Bytes of request bodies that may be in memory at a time; further requests wait before their bodies are read. Parsed,
/// a body takes a few times as much.
const ROOM_BYTES: usize = 64 * 1024 * 1024;

/// The unit in which room is counted, so that a body's size fits a semaphore.
const ROOM_UNIT: usize = 1024;

/// Rows that a listing hands over at a time, and how many such parts may wait for the receiver.
const LISTED_ROWS: usize = 512;
const LISTED_PARTS: usize = 4;

/// A durable fact store in one SQLite file; a cheap handle that can be cloned.
///
/// Dropping the last handle waits for the requests in hand, and closes the file.
#[derive(Debug, Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    readers: Arc<Readers>,
    writer: Writer,
    room: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store in the file `path`, which is created if it is missing; its folder must exist.
    ///
    /// The caller sees to it that no other process has it open for writing.
    pub fn open(path: &Path) -> Result<Self, TargetError> {
        let connection = open_writer(path).map_err(|error| TargetError::Embedded { action: "open", source: error.into() })?;
        let writer = Writer::start(connection).map_err(|error| TargetError::Embedded { action: "open", source: error.into() })?;
        let room = Arc::new(Semaphore::new(ROOM_BYTES / ROOM_UNIT));
        Ok(Self { inner: Arc::new(Inner { readers: Readers::new(path.to_owned()), writer, room }) })
    }

    /// Ends when the store can no longer be written to, with the reason: the process should then stop and recover by starting again.
    pub async fn failed(&self) -> TargetError {
        cannot_write(self.inner.writer.ended().await)
    }

    /// Waits for memory for a body of `bytes`.
    pub(super) async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = u32::try_from(bytes.min(ROOM_BYTES).div_ceil(ROOM_UNIT)).expect("the total fits 32 bits");
        Arc::clone(&self.inner.room).acquire_many_owned(units).await.expect("the semaphore is never closed")
    }

    /// Does `work` durably.
    pub(super) async fn write(&self, work: Work, terms: Terms, room: Option<OwnedSemaphorePermit>) -> Result<Outcome, WriteError> {
        self.inner.writer.write(work, terms, room).await
    }

    /// Waits for the right to one read of facts, which sees everything that was answered before.
    pub(super) async fn lease(&self) -> Result<Lease, WriteError> {
        let lease = self.inner.readers.lease().await;
        self.inner.writer.settle().await?;
        Ok(lease)
    }

    /// The policy that is stored, if there is one.
    pub(super) async fn policy(&self) -> Result<Option<Policy>, TargetError> {
        let lease = self.inner.readers.lease().await;
        blocking(move || lease.read(stored_policy)).await
    }

    /// Whether it can be read and written, without writing.
    pub(super) async fn healthy(&self) -> Result<(), TargetError> {
        if let Some(error) = self.inner.writer.failure() {
            return Err(cannot_write(error));
        }
        self.policy().await.map(|_| ())
    }

    async fn list_rows(&self, fact_type: &FactType, each: &mut (dyn FnMut(Row) -> io::Result<()> + Send)) -> Result<(), TargetError> {
        let lease = self.lease().await.map_err(|error| TargetError::Embedded { action: "read", source: error.into() })?;
        let (parts, mut received) = mpsc::channel::<Vec<Row>>(LISTED_PARTS);
        let fact_type = fact_type.clone();
        // Detached if this future is dropped; it then ends at its next part, because nobody receives it.
        let reading = tokio::task::spawn_blocking(move || lease.read(|connection| send_rows(connection, &fact_type, &parts)));
        while let Some(rows) = received.recv().await {
            rows.into_iter().try_for_each(&mut *each).map_err(TargetError::Receiver)?;
        }
        drop(received);
        match joined(reading.await) {
            Ok(()) | Err(Halt::Enough) => Ok(()),
            Err(Halt::Sql(error)) => Err(cannot_read(error)),
        }
    }
}

/// Sends the rows of `fact_type`'s facts, blocking while the receiver is behind.
fn send_rows(connection: &rusqlite::Connection, fact_type: &FactType, parts: &mpsc::Sender<Vec<Row>>) -> Result<(), Halt> {
    let selection = Selection::of(fact_type);
    let variables: Vec<usize> = (0..selection.args.len()).filter(|&n| selection.args[n].id.is_none()).collect();
    let mut rows = Vec::with_capacity(LISTED_ROWS);
    selection.visit(connection, |_, ids| {
        rows.push(Row::from_texts(variables.iter().map(|&n| ids[n])));
        if rows.len() < LISTED_ROWS {
            return Ok(());
        }
        let part = std::mem::replace(&mut rows, Vec::with_capacity(LISTED_ROWS));
        parts.blocking_send(part).map_err(|_| Halt::Enough)
    })?;
    parts.blocking_send(rows).map_err(|_| Halt::Enough)
}

impl FactStore for EmbeddedStore {
    fn limits(&self) -> BatchLimits {
        BATCH
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
        Box::pin(async move {
            if batch.changes.len() > BATCH.entries {
                return Err(TargetError::TooLarge { message: format!("a batch holds at most {} entries", BATCH.entries) });
            }
            let changes = batch.changes.iter().enumerate().map(|(index, change)| match change.op {
                Op::Insert => check_insert(&change.fact)
                    .map(|()| Change::Insert(change.fact.clone()))
                    .map_err(|problem| TargetError::Refused { status: 400, message: format!("entry {}: {problem}", index + 1) }),
                Op::Delete => Ok(Change::Delete(change.fact.clone())),
            });
            let work = Work::Changes(changes.collect::<Result<_, _>>()?);
            let outcome = self.write(work, Terms::none(), None).await.map_err(cannot_write)?;
            Ok(Offset(outcome.offset.to_string()))
        })
    }

    fn list<'a>(
        &'a self,
        fact_type: &'a FactType,
        each: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
    ) -> BoxFuture<'a, Result<(), TargetError>> {
        Box::pin(self.list_rows(fact_type, each))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
        Box::pin(self.healthy())
    }
}

/// The longest predicate or type name that is stored. Oso documents none; this is the documented limit of an id.
const MAX_NAME_BYTES: usize = crate::fact::MAX_ID_BYTES;

/// Why `fact` cannot be stored, if it cannot.
pub(super) fn check_insert(fact: &Fact) -> Result<(), String> {
    check_name("predicate", &fact.predicate)?;
    check_arity(fact.args.len())?;
    for (index, arg) in fact.args.iter().enumerate() {
        let problem =
            check_name("type", &arg.type_name).and_then(|()| Value::check(&arg.type_name, &arg.id).map_err(|error| error.to_string()));
        problem.map_err(|problem| format!("argument {}: {problem}", index + 1))?;
    }
    Ok(())
}

/// Why no fact can have so many arguments, if none can.
pub(super) fn check_arity(arity: usize) -> Result<(), String> {
    match arity {
        1..=MAX_ARGUMENTS => Ok(()),
        _ => Err(format!("it has {arity} arguments; a fact has 1 to {MAX_ARGUMENTS}")),
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.len() {
        0 => Err(format!("the {what} is empty")),
        1..=MAX_NAME_BYTES => Ok(()),
        _ => Err(format!("the {what} is longer than {MAX_NAME_BYTES} bytes")),
    }
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> rusqlite::Result<T> + Send + 'static) -> Result<T, TargetError> {
    joined(tokio::task::spawn_blocking(read).await).map_err(cannot_read)
}

/// The result of a blocking task, which is never aborted; its panic goes on here.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn cannot_read(source: rusqlite::Error) -> TargetError {
    TargetError::Embedded { action: "read", source: source.into() }
}

fn cannot_write(source: WriteError) -> TargetError {
    TargetError::Embedded { action: "write", source: source.into() }
}
