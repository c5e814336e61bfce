//! The file's layout: made step by step, so that a new file and one that was brought up to date are the same.

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::store::outbox;

/// The layout's version, `PRAGMA user_version`.
pub const LAYOUT: i32 = 5;

/// A part of the way from one layout to the next.
enum Part {
    Sql(&'static str),
    /// What SQL cannot say. It writes the layout that its step makes: a later one that changes what it writes keeps a copy of it here.
    Code(fn(&Transaction<'_>) -> rusqlite::Result<()>),
}

impl Part {
    fn take(&self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        match self {
            Self::Sql(sql) => tx.execute_batch(sql),
            Self::Code(code) => code(tx),
        }
    }
}

/// `STEPS[n]` makes layout `n + 1` of layout `n`; 0 is an empty file. A released step is never edited.
const STEPS: [&[Part]; LAYOUT as usize] = [
    &[Part::Sql(
        "
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
",
    )],
    // Up to its position a source of layout 1 lacked nothing.
    &[Part::Sql(
        "
ALTER TABLE source ADD COLUMN settled TEXT;
ALTER TABLE source ADD COLUMN clock INTEGER;
UPDATE source SET settled = position;
ALTER TABLE view ADD COLUMN fingerprint TEXT;
ALTER TABLE view ADD COLUMN position INTEGER;
ALTER TABLE view ADD COLUMN clock INTEGER;
ALTER TABLE view ADD COLUMN demoted TEXT;
CREATE TABLE held (view INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (view, row)) STRICT, WITHOUT ROWID;
CREATE TABLE skipped (view INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (view, row)) STRICT, WITHOUT ROWID;
",
    )],
    &[
        Part::Sql(
            "
ALTER TABLE outbox RENAME TO outbox_entries;
CREATE TABLE outbox (
    commit_no INTEGER NOT NULL, op INTEGER NOT NULL, seq INTEGER NOT NULL, view INTEGER NOT NULL,
    count INTEGER NOT NULL, sent INTEGER NOT NULL, entries BLOB NOT NULL, PRIMARY KEY (commit_no, op, seq)
) STRICT, WITHOUT ROWID;
",
        ),
        Part::Code(outbox::gather),
        Part::Sql("DROP TABLE outbox_entries"),
    ],
    // An earlier file that ever wrote to its fact store has met what is in it.
    &[Part::Sql(
        "
CREATE TABLE backlog (
    op INTEGER NOT NULL, view INTEGER NOT NULL, row BLOB NOT NULL, epoch INTEGER NOT NULL, PRIMARY KEY (op, view, row)
) STRICT, WITHOUT ROWID;
ALTER TABLE held ADD COLUMN adopted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE view ADD COLUMN met INTEGER NOT NULL DEFAULT 0;
UPDATE view SET met = 1 WHERE source IN (SELECT name FROM source WHERE compared = 1) OR EXISTS (SELECT 1 FROM meta WHERE key = 'offset');
",
    )],
    // What an earlier file held is one hold for each view, or two if some was adopted.
    &[Part::Sql(
        "
CREATE TABLE hold (
    id INTEGER PRIMARY KEY AUTOINCREMENT, view INTEGER NOT NULL, cause TEXT NOT NULL, removals INTEGER NOT NULL, facts INTEGER NOT NULL,
    since INTEGER, last INTEGER, position TEXT, most INTEGER, percent INTEGER
) STRICT;
INSERT INTO hold (view, cause, removals, facts)
    SELECT view, iif(adopted, 'adopted', 'earlier'), count(*), (SELECT facts FROM view WHERE view.id = held.view)
    FROM held GROUP BY view, adopted ORDER BY view, adopted;
ALTER TABLE held RENAME TO held_rows;
CREATE TABLE held (view INTEGER NOT NULL, row BLOB NOT NULL, hold INTEGER NOT NULL, PRIMARY KEY (view, row)) STRICT, WITHOUT ROWID;
INSERT INTO held SELECT held_rows.view, row, hold.id FROM held_rows
    JOIN hold ON hold.view = held_rows.view AND hold.cause = iif(adopted, 'adopted', 'earlier');
DROP TABLE held_rows;
ALTER TABLE view ADD COLUMN recent TEXT NOT NULL DEFAULT '[]';
",
    )],
];

/// Creates the tables or brings them up to date, in one transaction; `Err` is the version of a file that is none of ours.
pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<Result<(), i32>> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i32 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(missing) = usize::try_from(found).ok().and_then(|found| STEPS.get(found..)) else { return Ok(Err(found)) };
    if missing.is_empty() {
        return Ok(Ok(()));
    }
    missing.iter().copied().flatten().try_for_each(|part| part.take(&tx))?;
    if found == 0 {
        name(&tx)?;
    }
    tx.pragma_update(None, "user_version", LAYOUT)?;
    tx.commit()?;
    Ok(Ok(()))
}

/// Gives a new file its own UUID.
fn name(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("INSERT INTO meta VALUES ('store_id', ?1)", [uuid::Uuid::new_v4().to_string()])?;
    Ok(())
}
