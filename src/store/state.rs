//! A view's state in a table of its own.
//!
//! `state_N` holds the entries of view N: key → value, the key being the space's number (two bytes, big-endian) and the entry's key,
//! the value a blob, or an integer in the spaces that count.

use std::{cell::RefCell, io, ops::ControlFlow};

use rusqlite::{CachedStatement, Connection, OptionalExtension, params, types::ValueRef};

use crate::{
    store::ViewId,
    view::{Each, Space, State},
};

/// A view's entries, within the transaction that `connection` is in.
pub(super) struct ViewState<'c> {
    connection: &'c Connection,
    sql: Sql,
    get: RefCell<Option<CachedStatement<'c>>>,
    put: Option<CachedStatement<'c>>,
    add: Option<CachedStatement<'c>>,
    remove: Option<CachedStatement<'c>>,
    key: RefCell<Vec<u8>>,
}

/// The statements' texts, by which the connection finds them again.
struct Sql {
    get: String,
    put: String,
    add: String,
    remove: String,
    range: String,
    rest: String,
    clear: String,
    clear_rest: String,
}

impl Sql {
    fn new(view: ViewId) -> Self {
        let table = format!("state_{}", view.0);
        Self {
            get: format!("SELECT value FROM {table} WHERE key = ?1"),
            put: format!("REPLACE INTO {table} VALUES (?1, ?2)"),
            add: format!(
                "INSERT INTO {table} VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value RETURNING value"
            ),
            remove: format!("DELETE FROM {table} WHERE key = ?1"),
            range: format!("SELECT key, value FROM {table} WHERE key >= ?1 AND key < ?2 ORDER BY key"),
            rest: format!("SELECT key, value FROM {table} WHERE key >= ?1 ORDER BY key"),
            clear: format!("DELETE FROM {table} WHERE key >= ?1 AND key < ?2"),
            clear_rest: format!("DELETE FROM {table} WHERE key >= ?1"),
        }
    }
}

/// Makes room for a view's state.
pub(super) fn create(connection: &Connection, view: ViewId) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("CREATE TABLE state_{} (key BLOB PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID", view.0))
}

/// Lets go of a view's state, if there is any.
pub(super) fn drop(connection: &Connection, view: ViewId) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("DROP TABLE IF EXISTS state_{}", view.0))
}

impl<'c> ViewState<'c> {
    pub(super) fn new(connection: &'c Connection, view: ViewId) -> Self {
        Self { connection, sql: Sql::new(view), get: RefCell::default(), put: None, add: None, remove: None, key: RefCell::default() }
    }

    /// Each entry from `from` on and before `to`.
    fn walk(&self, from: &[u8], to: Option<&[u8]>, each: Each<'_>) -> rusqlite::Result<io::Result<()>> {
        // A statement of its own for each walk: `each` may start another one.
        let mut statement = self.connection.prepare_cached(if to.is_some() { &self.sql.range } else { &self.sql.rest })?;
        let mut rows = match to {
            Some(to) => statement.query(params![from, to])?,
            None => statement.query([from])?,
        };
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_blob()?;
            let number;
            let value = match row.get_ref(1)? {
                ValueRef::Integer(value) => {
                    number = value.to_le_bytes();
                    &number[..]
                }
                value => value.as_blob()?,
            };
            match each(&key[SPACE_BYTES..], value) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }
}

/// A space's number in front of a key.
const SPACE_BYTES: usize = size_of::<u16>();

fn write_key(into: &mut Vec<u8>, space: Space, key: &[u8]) {
    into.clear();
    into.extend(space.0.to_be_bytes());
    into.extend(key);
}

fn full_key(space: Space, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(SPACE_BYTES + key.len());
    write_key(&mut full, space, key);
    full
}

/// The first key after all that start with `prefix`, if there can be one.
fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

/// The statement in `slot`, prepared when it is first used.
fn prepared<'s, 'c>(
    slot: &'s mut Option<CachedStatement<'c>>,
    connection: &'c Connection,
    sql: &str,
) -> io::Result<&'s mut CachedStatement<'c>> {
    if slot.is_none() {
        *slot = Some(connection.prepare_cached(sql).map_err(io::Error::other)?);
    }
    Ok(slot.as_mut().expect("it has just been filled"))
}

impl State for ViewState<'_> {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (mut slot, mut full) = (self.get.borrow_mut(), self.key.borrow_mut());
        write_key(&mut full, space, key);
        let value = prepared(&mut slot, self.connection, &self.sql.get)?.query_row([full.as_slice()], |row| match row.get_ref(0)? {
            ValueRef::Integer(number) => Ok(number.to_le_bytes().to_vec()),
            value => Ok(value.as_blob()?.to_vec()),
        });
        value.optional().map_err(io::Error::other)
    }

    fn scan(&self, space: Space, prefix: &[u8], each: Each<'_>) -> io::Result<()> {
        let from = full_key(space, prefix);
        self.walk(&from, after(&from).as_deref(), each).map_err(io::Error::other)?
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>, each: Each<'_>) -> io::Result<()> {
        let to = match to {
            Some(to) => Some(full_key(space, to)),
            None => after(&full_key(space, &[])),
        };
        self.walk(&full_key(space, from), to.as_deref(), each).map_err(io::Error::other)?
    }

    fn put(&mut self, space: Space, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let full = self.key.get_mut();
        write_key(full, space, key);
        match value {
            Some(value) => prepared(&mut self.put, self.connection, &self.sql.put)?.execute(params![full.as_slice(), value]),
            None => prepared(&mut self.remove, self.connection, &self.sql.remove)?.execute([full.as_slice()]),
        }
        .map_err(io::Error::other)?;
        Ok(())
    }

    fn add(&mut self, space: Space, key: &[u8], weight: i64) -> io::Result<i64> {
        let full = self.key.get_mut();
        write_key(full, space, key);
        let sum = prepared(&mut self.add, self.connection, &self.sql.add)?
            .query_row(params![full.as_slice(), weight], |row| row.get::<_, i64>(0))
            .map_err(io::Error::other)?;
        if sum == 0 {
            prepared(&mut self.remove, self.connection, &self.sql.remove)?.execute([full.as_slice()]).map_err(io::Error::other)?;
        }
        Ok(sum)
    }

    fn weight(&self, value: &[u8]) -> i64 {
        i64::from_le_bytes(value.try_into().expect("a number that a scan gave out has eight bytes"))
    }

    fn clear(&mut self, space: Space) -> io::Result<()> {
        let from = full_key(space, &[]);
        let cleared = match after(&from) {
            Some(to) => self.connection.prepare_cached(&self.sql.clear).and_then(|mut clear| clear.execute([from, to])),
            None => self.connection.prepare_cached(&self.sql.clear_rest).and_then(|mut clear| clear.execute([from])),
        };
        cleared.map(|_| ()).map_err(io::Error::other)
    }
}
