//! Reading connections: a small pool, a snapshot for each read.
//!
//! In WAL mode readers and the writer do not wait for each other. A read is one transaction, so everything in it
//! belongs to one commit, however long it takes and whatever is written meanwhile.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::target::embedded::schema::open_reader;

/// Reads at a time; each may hold a blocking thread and a connection (some 2 MiB). More wait.
const READERS: usize = 16;

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// The right to one read.
#[derive(Debug)]
pub(super) struct Lease {
    readers: Arc<Readers>,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS)) })
    }

    /// Waits for the right to one read.
    pub(super) async fn lease(self: &Arc<Self>) -> Lease {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        Lease { readers: Arc::clone(self), _permit: permit }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // A push or pop that panicked left the list whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Runs `read` in a snapshot, blocking the thread. The connection of a read that failed is not used again.
    pub(super) fn read<T, E: From<rusqlite::Error>>(self, read: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let idle = self.readers.idle().pop();
        let mut connection = idle.map_or_else(|| open_reader(&self.readers.path), Ok)?;
        let snapshot = connection.transaction()?;
        let done = read(&snapshot)?;
        snapshot.rollback()?;
        self.readers.idle().push(connection);
        Ok(done)
    }
}
