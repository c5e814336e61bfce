//! Creating and opening the database file.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::{
    fact::MAX_ARGUMENTS,
    target::embedded::{apply::Shapes, pending::Pending},
};

/// The layout described in the module docs of `embedded`.
const VERSION: i64 = 2;

/// `fact` in ASCII, so that `file` and we can tell our database from any other.
const APPLICATION_ID: i64 = 0x6661_6374;

/// Statements kept prepared per connection: every pattern of one arity in all its uses (32 sets of bound arguments, three uses).
const PREPARED_STATEMENTS: usize = 96;

/// The writer's page cache; it grows with the file up to this. Two thirds of the trees of a million facts, which settling then
/// mostly works on in memory.
const CACHE_KIB: usize = 64 * 1024;

/// Pages in the WAL after which a commit copies them into the file. A page that many commits write is copied once; the WAL stays
/// within 64 MiB, which a start reads in a fraction of a second.
const CHECKPOINT_PAGES: usize = 16_384;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("\"{path}\" has layout version {found}, this factsync knows versions up to {VERSION}. Use the newer factsync that wrote it")]
    Newer { path: PathBuf, found: i64 },
    #[error("\"{path}\" is an SQLite database of another program. Choose another state directory")]
    Foreign { path: PathBuf },
    #[error("SQLite does not open \"{path}\"")]
    Sqlite { path: PathBuf, source: rusqlite::Error },
}

/// Opens the file for the writer; creates it or brings it to the newest layout first.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    let sqlite = |source| OpenError::Sqlite { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(sqlite)?;
    match kind(&connection).map_err(sqlite)? {
        Kind::Empty => {}
        Kind::Foreign => return Err(OpenError::Foreign { path: path.to_owned() }),
        Kind::Ours(found) if found > VERSION => return Err(OpenError::Newer { path: path.to_owned(), found }),
        Kind::Ours(_) => {}
    }
    prepare(&mut connection).map_err(sqlite)?;
    Ok(connection)
}

/// Opens the file for reading only; the writer has created it.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    // Reads are index ranges, which profit little from a cache of their own; the system's page cache is shared.
    connection.execute_batch("PRAGMA cache_size = -2048")?;
    connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    Ok(connection)
}

enum Kind {
    /// A new file.
    Empty,
    /// Ours, in this version.
    Ours(i64),
    /// Somebody else's.
    Foreign,
}

fn kind(connection: &Connection) -> rusqlite::Result<Kind> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    Ok(match (application, number("SELECT count(*) FROM sqlite_master")?) {
        (APPLICATION_ID, _) => Kind::Ours(version),
        (0, 0) if version == 0 => Kind::Empty,
        _ => Kind::Foreign,
    })
}

fn prepare(connection: &mut Connection) -> rusqlite::Result<()> {
    // FULL fsyncs the WAL in every commit: an answer means durable. The two fullfsync pragmas make macOS mean it too.
    // The size limit gives disk space back after a long read.
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA fullfsync = 1;
         PRAGMA checkpoint_fullfsync = 1;
         PRAGMA cache_size = -{CACHE_KIB};
         PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
         PRAGMA journal_size_limit = 67108864;",
    ))?;
    connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version = match kind(&transaction)? {
        Kind::Empty => {
            create(&transaction)?;
            1
        }
        Kind::Ours(version) => version,
        Kind::Foreign => VERSION,
    };
    if version < 2 {
        add_log(&transaction)?;
    }
    Pending::load(&transaction)?.settle(&transaction, &mut Shapes::default())?;
    sweep(&transaction)?;
    transaction.commit()
}

/// Version 2: a factsync that does not know the log would miss what is in it, so the number keeps it away.
fn add_log(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch("CREATE TABLE log (id INTEGER PRIMARY KEY, entries TEXT NOT NULL) STRICT;")?;
    transaction.pragma_update(None, "user_version", 2)
}

/// Version 1.
fn create(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "CREATE TABLE store (id INTEGER PRIMARY KEY CHECK (id = 1), offset INTEGER NOT NULL) STRICT;
         INSERT INTO store (id, offset) VALUES (1, 0);
         CREATE TABLE policy (id INTEGER PRIMARY KEY CHECK (id = 1), filename TEXT, src TEXT NOT NULL) STRICT;
         CREATE TABLE shape (id INTEGER PRIMARY KEY, predicate TEXT NOT NULL, types TEXT NOT NULL, UNIQUE (predicate, types)) STRICT;",
    )?;
    for arity in 1..=MAX_ARGUMENTS {
        let columns = (0..arity).map(|n| format!("i{n} TEXT NOT NULL, ")).collect::<String>();
        let key = rotated(arity, 0).collect::<Vec<_>>().join(", ");
        transaction.execute_batch(&format!(
            "CREATE TABLE facts{arity} (shape INTEGER NOT NULL, {columns}PRIMARY KEY (shape, {key})) STRICT, WITHOUT ROWID;"
        ))?;
        for start in 1..arity {
            let key = rotated(arity, start).collect::<Vec<_>>().join(", ");
            transaction.execute_batch(&format!("CREATE INDEX facts{arity}_from{start} ON facts{arity} (shape, {key});"))?;
        }
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", 1)
}

/// The columns of a fact table in the order of the index that starts with `start`.
pub(super) fn rotated(arity: usize, start: usize) -> impl Iterator<Item = String> {
    (0..arity).map(move |n| format!("i{}", (start + n) % arity))
}

/// Forgets the shapes of which no fact is left. Only here, before anything caches them.
fn sweep(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    for arity in 1..=MAX_ARGUMENTS {
        transaction.execute(
            &format!(
                "DELETE FROM shape WHERE json_array_length(types) = {arity}
                 AND NOT EXISTS (SELECT 1 FROM facts{arity} WHERE facts{arity}.shape = shape.id)"
            ),
            [],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(setup: &str) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("facts.db");
        let connection = Connection::open(&path).expect("SQLite opens a new file");
        connection.execute_batch(setup).expect("the setup is valid SQL");
        open_writer(&path).expect_err("the file must be refused").to_string()
    }

    #[test]
    fn a_newer_layout_is_refused_by_its_number() {
        let text = refusal(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {}", VERSION + 1));
        assert!(text.contains("layout version 3") && text.contains("facts.db") && text.contains("newer factsync"), "{text}");
    }

    #[test]
    fn the_database_of_another_program_is_not_touched() {
        assert!(refusal("CREATE TABLE users (id)").contains("another program"));
        assert!(refusal("PRAGMA user_version = 1").contains("another program"));
        assert!(refusal("PRAGMA application_id = 7").contains("another program"));
    }

    #[test]
    fn commits_are_synced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open_writer(&folder.path().join("facts.db")).expect("a new file opens");
        let pragma =
            |name| connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).expect("a known pragma");
        assert_eq!(pragma("journal_mode"), rusqlite::types::Value::Text("wal".into()));
        assert_eq!(pragma("synchronous"), rusqlite::types::Value::Integer(2), "FULL");
    }

    #[test]
    fn shapes_without_facts_are_swept_at_the_next_start() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("facts.db");
        let connection = open_writer(&path).expect("a new file opens");
        connection
            .execute_batch(
                "INSERT INTO shape (id, predicate, types) VALUES (1, 'used', '[\"User\"]'), (2, 'unused', '[\"User\"]');
                 INSERT INTO facts1 (shape, i0) VALUES (1, 'bob');",
            )
            .expect("the rows fit the tables");
        drop(connection);
        let connection = open_writer(&path).expect("it opens again");
        let left = connection.query_row("SELECT group_concat(predicate) FROM shape", [], |row| row.get::<_, String>(0));
        assert_eq!(left.expect("one shape is left"), "used");
    }
}
