//! The local store: what the fact store should hold, what is still to be sent, and how far each source is.
//!
//! One SQLite file, `state.db`, in the state directory. Everything that one event changes changes in one transaction, so a
//! `kill -9` between any two instructions leaves either all of it or nothing:
//!
//! ```text
//! begin ─ desired facts ─ outbox ─ counts ─ position ─ commit (fsync) ─ checkpoint (sled) ─ acknowledge upstream
//! ```
//!
//! | table | key | holds |
//! |---|---|---|
//! | `meta` | `key` | `store_id` (a UUID made with the file), `offset` (the fact store's last token), `commit_no` (the last number given out) |
//! | `source` | `name` | position, fingerprint, identity of the database, and whether the last snapshot was compared with the fact store |
//! | `view` | `id` | source, signature, whether its desired facts come from a full result, whether its last run failed, their number, rows skipped by reason, removals held back |
//! | `fact` | `view, row` | desired facts as [`Row`](crate::data::Row) bytes: byte order is row order, so a view is read as an [`Extent`](crate::data::Extent) |
//! | `outbox` | `commit_no, op, seq` | changes not yet acknowledged, in the order they are sent: by commit, its deletes first |
//! | `parked` | `view, op, row` | changes the fact store refused, with its reason |
//!
//! `PRAGMA user_version` is the layout's version ([`LAYOUT`]); a file with another one is refused by name.
//!
//! Writers go through [`Store`], of which there is one; readers open connections of their own and see one committed state
//! for as long as they read. A failed commit or fsync is final ([`StoreError::Poisoned`]): what SQLite's cache holds may then
//! differ from the disk, so the store refuses everything until it is opened again.

mod checkpoint;
mod directory;
mod outbox;
#[cfg(test)]
mod tests;
mod views;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{data::Position, error::Disposition, target::Offset};

pub use checkpoint::Checkpoint;
pub use directory::{StateDirectory, StateError};
pub use outbox::{OutboxEntry, OutboxKey, Parked};
pub use views::{Change, Changes, ViewId, ViewRecord};

/// The layout's version, `PRAGMA user_version`.
pub const LAYOUT: i32 = 1;

/// SQLite's page cache of a connection, in KiB (negative is SQLite's way of saying KiB instead of pages).
const CACHE_KIB: i64 = -8192;

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE source (
    name TEXT PRIMARY KEY, position TEXT, fingerprint TEXT NOT NULL, identity TEXT NOT NULL, compared INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE view (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL, signature TEXT NOT NULL UNIQUE,
    known INTEGER NOT NULL DEFAULT 0, failing INTEGER NOT NULL DEFAULT 0,
    facts INTEGER NOT NULL DEFAULT 0, skipped TEXT NOT NULL DEFAULT '{}', held INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE fact (view INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (view, row)) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    commit_no INTEGER NOT NULL, op INTEGER NOT NULL, seq INTEGER NOT NULL, view INTEGER NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (commit_no, op, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE parked (
    view INTEGER NOT NULL, op INTEGER NOT NULL, row BLOB NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (view, op, row)
) STRICT, WITHOUT ROWID;
";

/// Why the local store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed while opening or reading.
    #[error("could not {action} the local store \"{}\"", path.display())]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// Rows could not be read or spooled.
    #[error("could not read rows for the local store")]
    Rows(#[from] std::io::Error),
    /// A file of another version.
    #[error(
        "the local store \"{}\" has layout {found}, this factsync reads {LAYOUT}. \
         Move the state directory away: the next run rebuilds it from a snapshot",
        path.display()
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
    },
    /// The file holds what no version of ours writes.
    #[error(
        "the local store \"{}\" holds a malformed {what}. \
         Move the state directory away: the next run rebuilds it from a snapshot",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which value.
        what: &'static str,
    },
    /// A commit failed before; nothing is written any more.
    #[error(
        "the local store \"{}\" failed to commit earlier and is closed. \
         Free disk space if it is full, then start factsync again",
        path.display()
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
    /// The checkpoint could not be written.
    #[error("could not write the checkpoint")]
    Checkpoint(#[source] sled::Error),
}

impl StoreError {
    /// Who acts next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Sqlite { .. } | Self::Rows(_) | Self::Layout { .. } | Self::Malformed { .. } => Disposition::Operator,
            // Not retried in place: the process ends and recovers when it starts again.
            Self::Poisoned { .. } | Self::Checkpoint(_) => Disposition::Bug,
        }
    }
}

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    /// How far its changes are in the desired facts.
    pub position: Option<Position>,
    /// What its views depended on when they were last read in full.
    pub fingerprint: String,
    /// Which database it was.
    pub identity: String,
    /// Whether the fact store was compared with the desired facts since the last snapshot.
    pub compared: bool,
}

/// The writer of `state.db`.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    id: String,
    commit_no: u64,
    /// Entries in the outbox, counted along: counting ten million rows takes seconds.
    outbox_len: u64,
    poisoned: bool,
}

impl Store {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Sqlite { action: "open", path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        // FULL: a commit is on the disk when it returns, so what follows it may be acknowledged upstream.
        for (pragma, value) in [("journal_mode", "WAL"), ("synchronous", "FULL")] {
            connection.pragma_update(None, pragma, value).map_err(failed)?;
        }
        connection.pragma_update(None, "cache_size", CACHE_KIB).map_err(failed)?;
        match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).map_err(failed)? {
            0 => create(&mut connection).map_err(failed)?,
            LAYOUT => {}
            found => return Err(StoreError::Layout { path: path.to_owned(), found }),
        }
        let malformed = |what| StoreError::Malformed { path: path.to_owned(), what };
        let id = meta(&connection, "store_id").map_err(failed)?.ok_or_else(|| malformed("store_id"))?;
        let commit_no = match meta(&connection, "commit_no").map_err(failed)? {
            Some(text) => text.parse().map_err(|_| malformed("commit_no"))?,
            None => 0,
        };
        let outbox_len = connection.query_row("SELECT count(*) FROM outbox", [], |row| row.get(0)).map_err(failed)?;
        Ok(Self { connection, path: path.to_owned(), id, commit_no, outbox_len, poisoned: false })
    }

    /// The file's own UUID: a store that was deleted and made anew has another one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of the last commit that changed facts.
    pub fn commit_no(&self) -> u64 {
        self.commit_no
    }

    /// The fact store's last token.
    pub fn offset(&self) -> Result<Option<Offset>, StoreError> {
        Ok(self.read(|connection| meta(connection, "offset"))?.map(Offset))
    }

    /// What is known of the source `name`.
    pub fn source(&self, name: &str) -> Result<Option<SourceRecord>, StoreError> {
        let row = self.read(|connection| {
            connection
                .query_row("SELECT position, fingerprint, identity, compared FROM source WHERE name = ?1", [name], |row| {
                    Ok((row.get::<_, Option<String>>(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
                })
                .optional()
        })?;
        let Some((position, fingerprint, identity, compared)) = row else { return Ok(None) };
        let position = position.map(|text| text.parse()).transpose().map_err(|_| self.malformed("position"))?;
        Ok(Some(SourceRecord { position, fingerprint, identity, compared }))
    }

    /// Records that nothing changed up to `position`.
    pub fn advance(&mut self, name: &str, position: &Position) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE source SET position = ?2 WHERE name = ?1", params![name, position.to_string()])?;
            Ok(())
        })
    }

    /// Forgets the position of `name`: its next follow starts with a snapshot.
    pub fn forget_position(&mut self, name: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE source SET position = NULL WHERE name = ?1", [name])?;
            Ok(())
        })
    }

    /// Runs `body` in one transaction.
    fn write<T>(&mut self, body: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, Failure>) -> Result<T, StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned { path: self.path.clone() });
        }
        let path = self.path.clone();
        let failed = |source| StoreError::Sqlite { action: "write", path: path.clone(), source };
        let tx = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
        let value = match body(&tx) {
            Ok(value) => value,
            Err(Failure::Sqlite(source)) => return Err(failed(source)),
            Err(Failure::Store(error)) => return Err(error),
        };
        if let Err(error) = tx.commit() {
            // After a failed fsync the cache and the disk may differ; nobody may write on top of that.
            self.poisoned = true;
            return Err(failed(error));
        }
        Ok(value)
    }

    fn read<T>(&self, body: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        body(&self.connection).map_err(|source| StoreError::Sqlite { action: "read", path: self.path.clone(), source })
    }

    fn malformed(&self, what: &'static str) -> StoreError {
        StoreError::Malformed { path: self.path.clone(), what }
    }
}

/// How the body of a transaction fails: SQLite's errors get the file's name in [`Store::write`].
enum Failure {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Store(StoreError::Rows(error))
    }
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    tx.execute_batch(SCHEMA)?;
    tx.execute("INSERT INTO meta VALUES ('store_id', ?1)", [uuid::Uuid::new_v4().to_string()])?;
    tx.pragma_update(None, "user_version", LAYOUT)?;
    tx.commit()
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value", [key, value])?;
    Ok(())
}
