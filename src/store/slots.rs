//! Which replication slot each source is followed with, for as long as the state directory exists.
//!
//! The name of a slot that no file names depends on how many sources a run has, and must not change when one is added or removed: the
//! slot of the old name would be left behind with the server's log, and the source would be read anew. So a run writes down the
//! names, and every command reads them first. They are in `meta` under `slot:` and the source's name.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::{
    data::Lsn,
    store::{Store, StoreError, meta, set_meta},
};

/// Sources that were followed with a slot, and its name, unless that was before names were written down.
pub type Slots = BTreeMap<String, Option<String>>;

/// What comes before the source's name in a key of `meta`.
const KEY: &str = "slot:";

/// The slots that the local store at `path` knows of; none if there is no such file. Nothing is changed, and a process that runs is not
/// disturbed.
pub fn slots(path: &Path) -> Result<Slots, StoreError> {
    if !path.exists() {
        return Ok(Slots::new());
    }
    let failed = |source| StoreError::Sqlite { action: "read", path: path.to_owned(), source };
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).and_then(|connection| read(&connection)).map_err(failed)
}

fn read(connection: &Connection) -> rusqlite::Result<Slots> {
    // A process that died while it made the file leaves one without tables.
    let tables = "SELECT 1 FROM sqlite_master WHERE name = 'meta'";
    if connection.query_row(tables, [], |_| Ok(())).optional()?.is_none() {
        return Ok(Slots::new());
    }
    let mut slots = Slots::new();
    let mut sources = connection.prepare("SELECT name, position FROM source WHERE position IS NOT NULL")?;
    for source in sources.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))? {
        let (name, position) = source?;
        if position.parse::<Lsn>().is_ok() {
            slots.insert(name, None);
        }
    }
    let mut kept = connection.prepare("SELECT substr(key, length(?1) + 1), value FROM meta WHERE substr(key, 1, length(?1)) = ?1")?;
    for slot in kept.query_map([KEY], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (name, slot) = slot?;
        slots.insert(name, Some(slot));
    }
    Ok(slots)
}

impl Store {
    /// The slot of the source `name`, if it is written down.
    pub fn slot(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|connection| meta(connection, &format!("{KEY}{name}")))
    }

    /// Writes down which slot each of these sources has; returned are those that had another one before, with that. A source that is
    /// not among them and had one of these slots has none any more.
    pub fn keep_slots(&mut self, slots: &[(String, String)]) -> Result<Vec<(String, String)>, StoreError> {
        self.write(|tx| {
            let mut left = Vec::new();
            for (name, slot) in slots {
                let key = format!("{KEY}{name}");
                left.extend(meta(tx, &key)?.filter(|before| before != slot).map(|before| (name.clone(), before)));
                let taken = "DELETE FROM meta WHERE substr(key, 1, length(?1)) = ?1 AND key <> ?2 AND value = ?3";
                tx.execute(taken, params![KEY, key, slot])?;
                set_meta(tx, &key, slot)?;
            }
            Ok(left)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Position;

    #[test]
    fn a_slot_stays_with_its_source_until_another_one_takes_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state.db");
        assert_eq!(slots(&path).expect("read"), Slots::new(), "there is no file");
        assert!(!path.exists(), "reading makes none");
        let mut store = Store::open(&path).expect("a store");
        for (name, position) in [("old", "0/10".parse()), ("users.csv", "a".repeat(64).parse())] {
            let position: Position = position.expect("a position");
            store.begin(name, "fingerprint", "identity").expect("begun");
            store.advance(name, &position.into()).expect("advanced");
        }
        let before = Slots::from([("old".to_owned(), None)]);
        assert_eq!(slots(&path).expect("read"), before, "a file has no slot, and what an earlier version followed has one without a name");
        let pair = |name: &str, slot: &str| (name.to_owned(), slot.to_owned());
        let mut keep = |pairs: &[(String, String)]| store.keep_slots(pairs).expect("kept");
        assert_eq!(keep(&[pair("old", "factsync"), pair("a%", "factsync_a_")]), []);
        let named = |name: &str, slot: &str| (name.to_owned(), Some(slot.to_owned()));
        assert_eq!(slots(&path).expect("read"), Slots::from([named("old", "factsync"), named("a%", "factsync_a_")]));
        assert_eq!(keep(&[pair("renamed", "factsync")]), []);
        let after = Slots::from([("old".to_owned(), None), named("renamed", "factsync"), named("a%", "factsync_a_")]);
        assert_eq!(slots(&path).expect("read"), after);
        assert_eq!(keep(&[pair("a%", "other")]), [pair("a%", "factsync_a_")], "what is left behind is told");
    }
}
