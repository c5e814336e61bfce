//! Tables that come, go, move and take each other's place; partitions and children.

use super::campaign::{
    Campaign, Case,
    Must::{BeFree, BeRight, ReadAgain, Stop},
};
use crate::support::postgres::Major;

pub(super) const SCHEMA: &str = "CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO thing SELECT i, 'n' || i FROM generate_series(1, 20) AS i;
CREATE TABLE spare (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO spare SELECT i, 's' || i FROM generate_series(5, 25) AS i;
CREATE TABLE owner (id int PRIMARY KEY); CREATE TABLE owned (id int PRIMARY KEY, owner int REFERENCES owner, name text NOT NULL);
INSERT INTO owner SELECT generate_series(1, 5); INSERT INTO owned SELECT i, i % 5 + 1, 'o' || i FROM generate_series(1, 20) AS i";

/// Incremental, refreshed, and one of a table that hangs on another.
pub(super) const QUERIES: [&str; 3] = [
    "SELECT id, name FROM thing WHERE id <> 3",
    "SELECT id, name || count(*) OVER () FROM thing",
    "SELECT d.id, d.name FROM owned d JOIN owner o ON o.id = d.owner",
];

pub(super) const WRITES: &str =
    "UPDATE thing SET name = name || '+' WHERE id IN (1, 2, 5); DELETE FROM thing WHERE id = 7; INSERT INTO thing VALUES (7, 'again')";

pub(super) const CASES: [Case; 10] = [
    Case {
        what: "another table of the same name, in one transaction",
        ddl: &["BEGIN; DROP TABLE thing; CREATE TABLE thing (name text NOT NULL, id int PRIMARY KEY);
                INSERT INTO thing SELECT 'm' || i, i FROM generate_series(1, 10) AS i; COMMIT"],
        writes: "INSERT INTO thing VALUES ('later', 50)",
        must: ReadAgain,
        undo: &["ALTER TABLE thing RENAME TO gone; CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL);
                INSERT INTO thing (id, name) SELECT id, name FROM gone; DROP TABLE gone"],
    },
    Case {
        what: "dropped, and made again later",
        ddl: &["DROP TABLE thing"],
        writes: "UPDATE owned SET name = name || '+' WHERE id < 3",
        must: Stop(&[1, 2], "relation \"thing\" does not exist"),
        undo: &["CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL);
                INSERT INTO thing SELECT i, 'n' || i FROM generate_series(1, 20) AS i"],
    },
    Case {
        what: "another name",
        ddl: &["ALTER TABLE thing RENAME TO other"],
        writes: "UPDATE other SET name = 'o' WHERE id = 1",
        must: Stop(&[1, 2], "relation \"thing\" does not exist"),
        undo: &["ALTER TABLE other RENAME TO thing"],
    },
    Case {
        what: "two tables swap their names",
        ddl: &["BEGIN; ALTER TABLE thing RENAME TO tmp; ALTER TABLE spare RENAME TO thing; ALTER TABLE tmp RENAME TO spare; COMMIT"],
        writes: "UPDATE thing SET name = name || '+' WHERE id < 9; UPDATE spare SET name = name || '-' WHERE id < 9;
            DELETE FROM spare WHERE id = 11",
        must: ReadAgain,
        undo: &["BEGIN; ALTER TABLE thing RENAME TO tmp; ALTER TABLE spare RENAME TO thing; ALTER TABLE tmp RENAME TO spare; COMMIT"],
    },
    Case {
        what: "a view takes the table's place",
        ddl: &["BEGIN; ALTER TABLE thing RENAME TO stored; CREATE VIEW thing AS SELECT id, name || '!' AS name FROM stored; COMMIT"],
        writes: "UPDATE stored SET name = 'v' WHERE id = 6",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "another definition of that view",
        ddl: &["CREATE OR REPLACE VIEW thing AS SELECT id, name || '?' AS name FROM stored WHERE id <> 4"],
        writes: "DELETE FROM stored WHERE id = 8",
        must: ReadAgain,
        undo: &["DROP VIEW thing; ALTER TABLE stored RENAME TO thing"],
    },
    Case {
        what: "another schema",
        ddl: &["CREATE SCHEMA away; ALTER TABLE thing SET SCHEMA away"],
        writes: "UPDATE away.thing SET name = 'a' WHERE id = 1",
        must: Stop(&[1, 2], "relation \"thing\" does not exist"),
        undo: &["ALTER TABLE away.thing SET SCHEMA public"],
    },
    Case {
        what: "TRUNCATE CASCADE",
        ddl: &["TRUNCATE owner CASCADE"],
        writes: "INSERT INTO owner VALUES (1); INSERT INTO owned VALUES (1, 1, 'new')",
        must: BeRight,
        undo: &[],
    },
    Case {
        what: "UNLOGGED is refused",
        ddl: &["DO $$ BEGIN ALTER TABLE thing SET UNLOGGED; EXCEPTION WHEN OTHERS THEN NULL; END $$"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "a constraint, a trigger, a comment, statistics",
        ddl: &[
            "ALTER TABLE thing ADD CONSTRAINT positive CHECK (id > 0)",
            "COMMENT ON TABLE thing IS 'x'",
            "ALTER TABLE thing SET (fillfactor = 90)",
            "CREATE TABLE unrelated (id int PRIMARY KEY)",
            "DROP TABLE unrelated",
            "CREATE TEMP TABLE t (id int)",
        ],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
];

async fn tables(major: Major) {
    let campaign = Campaign::start(major, SCHEMA, &QUERIES).await;
    for case in &CASES {
        campaign.run(case).await;
    }
    campaign.nothing_was_read().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_on_15() {
    tables(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_on_18() {
    tables(Major::V18).await;
}

pub(super) const FAMILIES: &str = "CREATE TABLE part (id int PRIMARY KEY, name text NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (100) TO (200);
CREATE TABLE part_3 (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO part SELECT i * 9, 'p' || i FROM generate_series(1, 20) AS i;
INSERT INTO part_3 SELECT i, 'p' || i FROM generate_series(200, 210) AS i;
CREATE TABLE parent (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 20) AS i";

pub(super) const FAMILY_QUERIES: [&str; 3] =
    ["SELECT id, name FROM part WHERE id <> 3", "SELECT id, name || count(*) OVER () FROM part", "SELECT id, name FROM parent"];

/// Right after a partition comes or goes somebody writes to its rows: an announcement precedes them.
pub(super) const FAMILY_CASES: [Case; 9] = [
    Case {
        what: "a new partition",
        ddl: &["CREATE TABLE part_5 PARTITION OF part FOR VALUES FROM (400) TO (500)"],
        writes: "INSERT INTO part VALUES (401, 'new'), (50, 'old'); UPDATE part SET name = 'u' WHERE id = 9",
        must: BeRight,
        undo: &[],
    },
    Case {
        what: "a table with rows attached",
        ddl: &["ALTER TABLE part ATTACH PARTITION part_3 FOR VALUES FROM (200) TO (300)"],
        writes: "UPDATE part SET name = name || '+' WHERE id IN (200, 18); DELETE FROM part WHERE id = 201",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "a partition detached",
        ddl: &["ALTER TABLE part DETACH PARTITION part_2"],
        writes: "DELETE FROM part_2 WHERE id = 108; UPDATE part SET name = 'after' WHERE id = 27",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "the same partition attached again",
        ddl: &["ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (100) TO (200)"],
        writes: "DELETE FROM part WHERE id = 117; INSERT INTO part VALUES (108, 'back')",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "a partition detached, and its rows inserted again",
        ddl: &["ALTER TABLE part DETACH PARTITION part_3"],
        writes: "CREATE TABLE part_6 PARTITION OF part FOR VALUES FROM (200) TO (300); INSERT INTO part SELECT * FROM part_3",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "a partition truncated",
        ddl: &["TRUNCATE part_2"],
        writes: "INSERT INTO part VALUES (126, 'new')",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "a partition dropped",
        ddl: &["DROP TABLE part_2"],
        writes: "UPDATE part SET name = 'x' WHERE id = 9",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "an inheritance child",
        ddl: &[
            "CREATE TABLE child (more text) INHERITS (parent)",
            "ALTER TABLE child ADD PRIMARY KEY (id)",
            "INSERT INTO child VALUES (100, 'c', 'x')",
        ],
        writes: "INSERT INTO child VALUES (101, 'c', 'x'); UPDATE parent SET name = 'p' WHERE id = 1",
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "and no child any more",
        ddl: &["ALTER TABLE child NO INHERIT parent"],
        writes: "DELETE FROM child WHERE id = 101; UPDATE parent SET name = 'q' WHERE id = 1",
        must: ReadAgain,
        undo: &[],
    },
];

async fn families(major: Major) {
    let campaign = Campaign::start(major, FAMILIES, &FAMILY_QUERIES).await;
    for case in &FAMILY_CASES {
        campaign.run(case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn families_on_15() {
    families(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn families_on_18() {
    families(Major::V18).await;
}
