//! The local store: what the fact store should hold, what is still to be sent, and how far each source is.
//!
//! One SQLite file, `state.db`, in the state directory. Everything that one event changes changes in one transaction, so a
//! `kill -9` between any two instructions leaves either all of it or nothing. An event is a run of whole commits (as many as have
//! arrived, `follow.rs`), the passing of time, a cut of whole results (`cut.rs`), or an acknowledged batch (`outbox.rs`):
//!
//! ```text
//! begin ─ views' state ─ desired facts ─ outbox ─ counts ─ position ─ commit (fsync) ─ checkpoint (sled) ─ acknowledge upstream
//! ```
//!
//! | table | key | holds |
//! |---|---|---|
//! | `meta` | `key` | `store_id` (a UUID made with the file), `offset` (the fact store's last token), `commit_no` (the last number given out); of the backlog the `floor` and the `epoch`; each source's slot under `slot:` and its name (`slots.rs`) |
//! | `source` | `name` | position; up to where no view lacks anything (`settled`); fingerprint, identity of the database; whether the last snapshot was compared with the fact store; what its clock showed |
//! | `view` | `id` | source, signature, whether its desired facts come from a full result, whether its last run failed, their number, rows skipped by reason, removals held back, and how many facts the query had lately (`recent`, for the guard); whether the fact store was ever compared with it (`met`); for its state the plan's fingerprint, its position while that is ahead of the source's, its time, and why the plan is not trusted (`demoted`) |
//! | `fact` | `view, row` | desired facts as [`Row`](crate::data::Row) bytes: byte order is row order, so a view is read as an [`Extent`](crate::data::Extent) |
//! | `held` | `view, row` | facts that the query does not have and whose removal waits for a person, and in which hold; they are in `fact`, too |
//! | `hold` | `id` | what one judgement of the guard holds (`holds.rs`): how many removals, out of how many facts, why, since when and where |
//! | `skipped` | `view, row` | rows of an incremental view's result that make no fact |
//! | `state_N` | `key` | what view N's dataflow keeps between two commits (`state.rs`) |
//! | `outbox` | `commit_no, op, seq` | changes not yet acknowledged, in the order they are sent: by commit, its deletes first; each row a block of a view's changes (`block.rs`), of which the first `sent` are gone |
//! | `backlog` | `op, view, row` | facts in which the fact store is known to differ, without an order (`backlog.rs`), and by which process that was written |
//! | `parked` | `view, op, row` | changes the fact store refused, with its reason |
//!
//! `PRAGMA user_version` is the layout's version ([`LAYOUT`]); an older file is brought up to date in one transaction when it is opened,
//! one of a later version is refused by name.
//!
//! A view's state is made from whole tables (`load.rs`), and kept only if it computes what the database itself answers for the same moment.
//! It is used only under the fingerprint of the plan that made it, which is written in the same transaction as the facts that belong to it.
//! So whatever happens in between, a state without its facts, or of another plan, is as good as none.
//!
//! Writers go through [`Store`], of which there is one; readers open connections of their own and see one committed state
//! for as long as they read. A failed commit or fsync is final ([`StoreError::Poisoned`]): what SQLite's cache holds may then
//! differ from the disk, so the store refuses everything until it is opened again.

mod adopt;
mod backlog;
mod block;
mod checkpoint;
mod cut;
mod directory;
mod facts;
mod flips;
mod follow;
mod holds;
mod journal;
mod layout;
mod load;
mod maintain;
mod outbox;
mod parked;
mod settle;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod views;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use crate::{
    crash::{self, Moment},
    data::Position,
    error::Disposition,
    target::Offset,
};

pub use backlog::Turn;
pub use checkpoint::Checkpoint;
pub use cut::{Fresh, LoadedState, Reached};
pub use directory::{StateDirectory, StateError};
pub use follow::{Applied, Followed, Live};
pub use holds::{Hold, HoldId};
pub use journal::{Differing, Found, Sight, Watching};
pub use layout::LAYOUT;
pub use load::{Audit, Doubt, Loaded};
pub use maintain::Maintain;
pub use outbox::{Gone, Lane, OutboxEntry, OutboxKey, Parked, Waiting};
pub use parked::ParkedSummary;
pub use slots::{Slots, slots};
pub use views::{Change, Changes, ViewId, ViewRecord};
pub use watch::{Taken, TakenChanges};

/// SQLite's page cache of the writer, in KiB (negative is SQLite's way of saying KiB instead of pages): the inner pages of a state of
/// ten million rows and a working set, within a process of 64 MB.
const CACHE_KIB: i64 = -24576;

/// Statements kept prepared, a few kilobytes each: every view has half a dozen for its state.
const CACHED_STATEMENTS: usize = 512;

/// Why the local store cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed while opening or reading.
    #[error("could not {action} the local store \"{}\"{}", path.display(), hint(source))]
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

/// What to do, where SQLite's own words do not say it: without space for the index of its log it calls everything an I/O error.
fn hint(source: &rusqlite::Error) -> &'static str {
    match source.sqlite_error().map(|error| error.extended_code) {
        Some(rusqlite::ffi::SQLITE_FULL | rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => {
            ". Its disk is full: free space, then start factsync again. What was acknowledged is there"
        }
        Some(_) | None => "",
    }
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
    /// Up to here no view lacks anything: a refresh view is to be run again if something of it changed after that.
    pub settled: Option<Position>,
    /// What its clock showed when its views last heard of it, in microseconds since 2000-01-01 UTC.
    pub clock: Option<i64>,
}

/// The writer of `state.db`.
pub struct Store {
    connection: Connection,
    path: PathBuf,
    id: String,
    commit_no: u64,
    /// Entries in the outbox, counted along: counting ten million rows takes seconds.
    outbox_len: u64,
    backlog: backlog::Backlog,
    poisoned: bool,
    /// Bytes of a view's flips that stay in memory.
    kept_flips: usize,
    /// How large the outbox's blocks become.
    blocks: block::Limits,
    /// Seconds since 1970, for the guard.
    time: Box<dyn Fn() -> u64 + Send>,
    /// Who wants to know what is on its way.
    journals: journal::SharedJournals,
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
        connection.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        if let Err(found) = layout::prepare(&mut connection).map_err(failed)? {
            return Err(StoreError::Layout { path: path.to_owned(), found });
        }
        let malformed = |what| StoreError::Malformed { path: path.to_owned(), what };
        let id = meta(&connection, "store_id").map_err(failed)?.ok_or_else(|| malformed("store_id"))?;
        let commit_no = match meta(&connection, "commit_no").map_err(failed)? {
            Some(text) => text.parse().map_err(|_| malformed("commit_no"))?,
            None => 0,
        };
        let outbox_len = outbox::count(&connection).map_err(failed)?;
        let backlog = backlog::Backlog::open(&connection).map_err(failed)?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            id,
            commit_no,
            outbox_len,
            backlog,
            poisoned: false,
            kept_flips: flips::KEPT_BYTES,
            blocks: block::LIMITS,
            time: Box::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
            journals: journal::SharedJournals::default(),
        })
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
                .query_row("SELECT position, settled, fingerprint, identity, compared, clock FROM source WHERE name = ?1", [name], |row| {
                    Ok((
                        row.get::<_, Option<String>>(0)?,
                        row.get::<_, Option<String>>(1)?,
                        row.get(2)?,
                        row.get(3)?,
                        row.get(4)?,
                        row.get(5)?,
                    ))
                })
                .optional()
        })?;
        let Some((position, settled, fingerprint, identity, compared, clock)) = row else { return Ok(None) };
        let parsed = |text: Option<String>| text.map(|text| text.parse()).transpose().map_err(|_| self.malformed("position"));
        Ok(Some(SourceRecord { position: parsed(position)?, settled: parsed(settled)?, fingerprint, identity, compared, clock }))
    }

    /// Remembers what the results of the refresh views of `name` depend on.
    pub fn set_fingerprint(&mut self, name: &str, fingerprint: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE source SET fingerprint = ?2 WHERE name = ?1", [name, fingerprint])?;
            Ok(())
        })
    }

    /// Remembers which database `name` is.
    pub fn set_identity(&mut self, name: &str, identity: &str) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE source SET identity = ?2 WHERE name = ?1", [name, identity])?;
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

    /// No source counts as compared with the fact store any more: the next start compares.
    pub fn doubt_comparisons(&mut self) -> Result<(), StoreError> {
        self.write(|tx| {
            tx.execute("UPDATE source SET compared = 0", [])?;
            Ok(())
        })
    }

    /// Runs `body` in one transaction.
    fn write<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<T, Failure>) -> Result<T, StoreError> {
        Ok(self.attempt(|tx| body(tx).map(Some))?.expect("this body never gives up"))
    }

    /// Runs `body` in one transaction, which is rolled back if it gives up with `None`.
    fn attempt<T>(&mut self, body: impl FnOnce(&Transaction<'_>) -> Result<Option<T>, Failure>) -> Result<Option<T>, StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned { path: self.path.clone() });
        }
        let path = self.path.clone();
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let tx = tx.map_err(|error| failed("write", &path, error.into()))?;
        let Some(value) = body(&tx).map_err(|failure| failed("write", &path, failure))? else { return Ok(None) };
        crash::moment(Moment::Writing);
        if let Err(error) = tx.commit() {
            // After a failed fsync the cache and the disk may differ; nobody may write on top of that.
            self.poisoned = true;
            return Err(failed("write", &path, error.into()));
        }
        Ok(Some(value))
    }

    /// Runs `body` as the next commit, which takes a number only if something is to be sent.
    fn commit(
        &mut self,
        body: impl FnOnce(&Transaction<'_>, &mut outbox::Writer) -> Result<Vec<Change>, Failure>,
    ) -> Result<Changes, StoreError> {
        let views = self.attempt_commit(|tx, outbox| body(tx, outbox).map(Some))?.expect("this body never gives up");
        Ok(Changes { views, commit_no: self.commit_no })
    }

    /// [`Store::commit`], which a body that gives up leaves as if nothing had happened.
    fn attempt_commit<T>(
        &mut self,
        body: impl FnOnce(&Transaction<'_>, &mut outbox::Writer) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, StoreError> {
        let (before, blocks, journals) = (self.commit_no, self.blocks, self.journals.clone());
        let done = self.attempt(|tx| {
            let mut writer = outbox::Writer::new(before + 1, blocks, journals);
            let Some(value) = body(tx, &mut writer)? else { return Ok(None) };
            let pushed = writer.finish(tx)?;
            let commit_no = if pushed == 0 { before } else { before + 1 };
            if commit_no != before {
                set_meta(tx, "commit_no", &commit_no.to_string())?;
            }
            Ok(Some((value, commit_no, pushed)))
        })?;
        let Some((value, commit_no, pushed)) = done else { return Ok(None) };
        self.commit_no = commit_no;
        self.outbox_len += pushed;
        Ok(Some(value))
    }

    fn spool(&self) -> PathBuf {
        self.path.parent().map_or_else(|| ".".into(), |folder| folder.join("spool"))
    }

    fn failed(&self, action: &'static str, failure: Failure) -> StoreError {
        failed(action, &self.path, failure)
    }

    fn read<T>(&self, body: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        body(&self.connection).map_err(|source| StoreError::Sqlite { action: "read", path: self.path.clone(), source })
    }

    fn malformed(&self, what: &'static str) -> StoreError {
        StoreError::Malformed { path: self.path.clone(), what }
    }
}

/// How the body of a transaction fails, before the file's name is added.
enum Failure {
    Sqlite(rusqlite::Error),
    Rows(std::io::Error),
    Malformed(&'static str),
}

fn failed(action: &'static str, path: &Path, failure: Failure) -> StoreError {
    match failure {
        Failure::Sqlite(source) => StoreError::Sqlite { action, path: path.to_owned(), source },
        Failure::Rows(source) => StoreError::Rows(source),
        Failure::Malformed(what) => StoreError::Malformed { path: path.to_owned(), what },
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// An error of SQLite that came through a stream of rows or a view's state is one of SQLite again.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.downcast() {
            Ok(error) => Self::Sqlite(error),
            Err(error) => Self::Rows(error),
        }
    }
}

fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

fn set_meta(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    connection.execute("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value", [key, value])?;
    Ok(())
}
