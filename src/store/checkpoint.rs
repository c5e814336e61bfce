//! What each upstream was told: a witness beside the store.
//!
//! Before a position is acknowledged upstream it is written here and flushed. The store's own position is the truth; this
//! file only tells whether the store still is the one that was promised upstream: sled's flush survives the process, but
//! not always a power loss, so it may be behind the store, never the reason to trust it. A store *behind* its checkpoint
//! was restored from a backup, deleted, or sits on a disk that lied: upstream has let go of the changes in between, and only
//! a new snapshot brings them back.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    crash::{self, Moment},
    data::Position,
    store::StoreError,
};

/// sled's cache; the checkpoint is a handful of keys.
const CACHE_BYTES: u64 = 1 << 20;
/// How long opening waits for the file's lock. The state directory is locked by then, so whoever has it is on its way out: sled lets go of
/// it in a thread of its own, a little after the last handle is dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The checkpoint file.
pub struct Checkpoint {
    db: sled::Db,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Entry {
    store_id: String,
    position: String,
}

impl Checkpoint {
    /// Opens or creates the folder.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let began = Instant::now();
        loop {
            match config.open() {
                Ok(db) => return Ok(Self { db }),
                Err(sled::Error::Io(error)) if error.to_string().contains("lock") && began.elapsed() < LOCK_PATIENCE => {
                    thread::sleep(LOCK_PATIENCE / 100);
                }
                Err(error) => return Err(StoreError::Checkpoint(error)),
            }
        }
    }

    /// Writes down, durably, that `source` is about to be told `position` by the store `store_id`.
    pub fn tell(&self, source: &str, store_id: &str, position: &Position) -> Result<(), StoreError> {
        let entry = Entry { store_id: store_id.to_owned(), position: position.stored() };
        let bytes = serde_json::to_vec(&entry).expect("an entry is two strings");
        self.db.insert(source, bytes).map_err(StoreError::Checkpoint)?;
        crash::moment(Moment::Telling);
        self.db.flush().map_err(StoreError::Checkpoint)?;
        Ok(())
    }

    /// Why a store that stands at `position` has lost changes `source` will not send again, if it has.
    pub fn lost(&self, source: &str, store_id: &str, position: &Position) -> Result<Option<String>, StoreError> {
        let Some(bytes) = self.db.get(source).map_err(StoreError::Checkpoint)? else { return Ok(None) };
        let Ok(told) = serde_json::from_slice::<Entry>(&bytes) else {
            return Ok(Some("the checkpoint is unreadable".to_owned()));
        };
        if told.store_id != store_id {
            return Ok(Some("the local store is not the one that was acknowledged upstream".to_owned()));
        }
        let Ok(told) = told.position.parse::<Position>() else {
            return Ok(Some("the checkpoint is unreadable".to_owned()));
        };
        // A file keeps no history that could be let go of. The oplog may still have what a store lacks that stands behind, but the
        // fact store has seen it: it is not to see it again, commit by commit.
        let behind = told.end().is_some_and(|told| position.end().is_some_and(|here| here < told));
        Ok(behind.then(|| format!("the local store stands at {position}, but {told} was acknowledged upstream")))
    }

    /// Forgets `source`.
    pub fn forget(&self, source: &str) -> Result<(), StoreError> {
        self.db.remove(source).map_err(StoreError::Checkpoint)?;
        self.db.flush().map_err(StoreError::Checkpoint)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_behind_its_checkpoint_has_lost_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |text: &str| text.parse::<Position>().expect("a position");
        let checkpoint = Checkpoint::open(folder.path()).expect("opened");
        assert_eq!(checkpoint.lost("db", "a", &at("0/1")).expect("read"), None);
        checkpoint.tell("db", "a", &at("0/10")).expect("written");
        drop(checkpoint);
        let checkpoint = Checkpoint::open(folder.path()).expect("opened again");
        assert_eq!(checkpoint.lost("db", "a", &at("0/10")).expect("read"), None);
        assert_eq!(checkpoint.lost("db", "a", &at("0/11")).expect("read"), None);
        assert!(checkpoint.lost("db", "a", &at("0/F")).expect("read").expect("lost").contains("0/10"));
        assert!(checkpoint.lost("db", "b", &at("0/10")).expect("read").is_some());
        assert_eq!(checkpoint.lost("other", "a", &at("0/1")).expect("read"), None);
        checkpoint.forget("db").expect("forgotten");
        assert_eq!(checkpoint.lost("db", "b", &at("0/1")).expect("read"), None);
    }
}
