//! Columns, types and keys of a table.

use super::campaign::{
    Campaign, Case,
    Must::{BeFree, BeRight, ReadAgain, Stop},
};
use crate::support::postgres::Major;

pub(super) const SCHEMA: &str = "CREATE TYPE kind AS ENUM ('a', 'b', 'c');
CREATE DOMAIN short AS varchar(20);
CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL, kind kind NOT NULL DEFAULT 'a', flag boolean NOT NULL DEFAULT true,
  note text, other int NOT NULL, code short DEFAULT 'c');
CREATE TABLE computed (id int PRIMARY KEY, note text, shown text GENERATED ALWAYS AS (upper(note)) STORED);
INSERT INTO computed SELECT i, 'x' || i FROM generate_series(1, 9) AS i;
CREATE UNIQUE INDEX thing_other ON thing (other);
INSERT INTO thing SELECT i, 'n' || i, (ARRAY['a', 'b', 'c'])[i % 3 + 1]::kind, i % 5 <> 0, 'x', i FROM generate_series(1, 30) AS i";

/// Incremental, incremental by a label, refreshed, one that tells the labels, one of a generated column.
pub(super) const QUERIES: [&str; 5] = [
    "SELECT id, name FROM thing WHERE flag",
    "SELECT id, name FROM thing WHERE kind = 'a'",
    "SELECT id, count(*) OVER (PARTITION BY kind) FROM thing WHERE flag",
    "SELECT id, kind FROM thing WHERE id > 0",
    "SELECT id, shown FROM computed",
];

pub(super) const WRITES: &str = "UPDATE thing SET name = name || '+' WHERE id IN (1, 2, 3); DELETE FROM thing WHERE id = 7;
    INSERT INTO thing (id, name, other) VALUES (7, 'again', 7)";

pub(super) const FREE: [Case; 8] = [
    Case { what: "a new column", ddl: &["ALTER TABLE thing ADD COLUMN extra text DEFAULT 'x'"], writes: WRITES, must: BeFree, undo: &[] },
    Case {
        what: "an unused column of another type",
        ddl: &["ALTER TABLE thing ALTER COLUMN extra TYPE varchar(10)"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "a new column that rewrites the table",
        ddl: &["ALTER TABLE thing ADD COLUMN number float DEFAULT random()"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "an unused column under another name",
        ddl: &["ALTER TABLE thing RENAME COLUMN extra TO spare"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case { what: "an unused column less", ddl: &["ALTER TABLE thing DROP COLUMN spare"], writes: WRITES, must: BeFree, undo: &[] },
    Case {
        what: "another default of a used column",
        ddl: &["ALTER TABLE thing ALTER COLUMN name SET DEFAULT 'none'"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "CLUSTER and VACUUM FULL",
        ddl: &["CLUSTER thing USING thing_pkey", "VACUUM FULL thing"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "an index, triggers off, statistics",
        ddl: &["CREATE INDEX ON thing (name)", "ALTER TABLE thing DISABLE TRIGGER ALL", "ANALYZE thing"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
];

pub(super) const RELATED: [Case; 15] = [
    Case {
        what: "a used column under another name",
        ddl: &["ALTER TABLE thing RENAME COLUMN name TO title"],
        writes: "UPDATE thing SET title = 'renamed' WHERE id = 4",
        must: Stop(&[1, 2], "column \"name\" does not exist"),
        undo: &["ALTER TABLE thing RENAME COLUMN title TO name"],
    },
    Case {
        what: "a used column dropped",
        ddl: &["ALTER TABLE thing DROP COLUMN flag CASCADE"],
        writes: "UPDATE thing SET name = 'dropped' WHERE id = 4",
        must: Stop(&[1, 3], "column \"flag\" does not exist"),
        undo: &["ALTER TABLE thing ADD COLUMN flag boolean NOT NULL DEFAULT true"],
    },
    Case {
        what: "another type of a used column",
        ddl: &["BEGIN; ALTER PUBLICATION app DROP TABLE thing; ALTER TABLE thing ALTER COLUMN name TYPE varchar(40); COMMIT"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "another type with another text",
        ddl: &["BEGIN; ALTER PUBLICATION app DROP TABLE thing; ALTER TABLE thing ALTER COLUMN name TYPE text USING name || '!'; COMMIT"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "a label under another name",
        ddl: &["ALTER TYPE kind RENAME VALUE 'a' TO 'first'"],
        writes: "UPDATE thing SET note = 'y' WHERE id IN (3, 6, 9); UPDATE thing SET kind = 'first' WHERE id = 4",
        must: Stop(&[2], "invalid input value for enum kind"),
        undo: &["ALTER TYPE kind RENAME VALUE 'first' TO 'a'"],
    },
    Case {
        what: "a new label",
        ddl: &["ALTER TYPE kind ADD VALUE IF NOT EXISTS 'd' BEFORE 'a'"],
        writes: "UPDATE thing SET kind = 'd' WHERE id IN (3, 5)",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "another primary key",
        ddl: &["BEGIN; ALTER TABLE thing DROP CONSTRAINT thing_pkey; ALTER TABLE thing ADD PRIMARY KEY (other); COMMIT"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1001, 'new', 1001)",
        must: ReadAgain,
        undo: &["BEGIN; ALTER TABLE thing DROP CONSTRAINT thing_pkey; ALTER TABLE thing ADD PRIMARY KEY (id); COMMIT"],
    },
    Case {
        what: "no primary key",
        ddl: &["ALTER TABLE thing DROP CONSTRAINT thing_pkey"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1002, 'new', 1002)",
        must: Stop(&[1, 2, 3, 4], "REPLICA IDENTITY FULL"),
        undo: &["UPDATE thing SET note = 'z' WHERE id = 1", "ALTER TABLE thing ADD PRIMARY KEY (id)"],
    },
    Case {
        what: "REPLICA IDENTITY FULL",
        ddl: &["ALTER TABLE thing REPLICA IDENTITY FULL"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1003, 'new', 1003)",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "another text of the same type, and no column list",
        ddl: &["ALTER TABLE thing ALTER COLUMN name TYPE text USING upper(name)"],
        writes: "UPDATE thing SET name = 'upper' WHERE id = 2; DELETE FROM thing WHERE id = 9",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "USING INDEX",
        ddl: &["ALTER TABLE thing REPLICA IDENTITY USING INDEX thing_other"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1004, 'new', 1004)",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "the identity's index dropped",
        ddl: &["DROP INDEX thing_other"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1005, 'new', 1005)",
        must: Stop(&[1, 2, 3, 4], "has no primary key"),
        undo: &["CREATE UNIQUE INDEX thing_other ON thing (other)", "ALTER TABLE thing REPLICA IDENTITY DEFAULT"],
    },
    Case {
        what: "REPLICA IDENTITY NOTHING",
        ddl: &["ALTER TABLE thing REPLICA IDENTITY NOTHING"],
        writes: "INSERT INTO thing (id, name, other) VALUES (1006, 'new', 1006)",
        must: Stop(&[1, 2, 3, 4], "REPLICA IDENTITY"),
        undo: &["ALTER TABLE thing REPLICA IDENTITY DEFAULT"],
    },
    Case {
        what: "the key of another type",
        ddl: &["BEGIN; ALTER PUBLICATION app DROP TABLE thing; ALTER TABLE thing ALTER COLUMN id TYPE bigint; COMMIT"],
        writes: "UPDATE thing SET id = 5000000000 WHERE id = 4",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "NOT NULL of a used column",
        ddl: &["ALTER TABLE thing ALTER COLUMN name DROP NOT NULL"],
        writes: "UPDATE thing SET name = NULL WHERE id = 6",
        must: BeRight,
        undo: &[],
    },
];

/// From PostgreSQL 17 on a generated column can get another expression: its values change without a row in the log. From 18 on a table with
/// such a column in its identity cannot be updated while it is published; that it can be in the end shows that it is not.
const GENERATED: [Case; 2] = [
    Case {
        what: "another expression of a generated column",
        ddl: &["ALTER TABLE computed ALTER COLUMN shown SET EXPRESSION AS (lower(note) || '!')"],
        writes: "SELECT 1",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "REPLICA IDENTITY FULL with a generated column",
        ddl: &["ALTER TABLE computed REPLICA IDENTITY FULL"],
        writes: "INSERT INTO computed VALUES (10, 'x')",
        must: Stop(&[5], "generated column"),
        undo: &["UPDATE computed SET note = 'y' WHERE id = 1", "ALTER TABLE computed REPLICA IDENTITY DEFAULT"],
    },
];

async fn columns(major: Major) {
    let campaign = Campaign::start(major, SCHEMA, &QUERIES).await;
    for case in &FREE {
        campaign.run(case).await;
    }
    campaign.nothing_was_read().await;
    for case in &RELATED {
        campaign.run(case).await;
    }
    if major == Major::V18 {
        for case in &GENERATED {
            campaign.run(case).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_on_15() {
    columns(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_on_18() {
    columns(Major::V18).await;
}
