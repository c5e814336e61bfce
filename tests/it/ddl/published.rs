//! The publication in other hands: what is missing from the log without a word.

use super::campaign::{
    Campaign, Case,
    Must::{BeRight, ReadAgain, Stop},
};
use super::columns;
use crate::support::postgres::Major;

/// Rows that a filter would turn into others, or hide.
const WRITES: &str = "UPDATE thing SET id = id + 1000 WHERE id IN (1, 2); UPDATE thing SET name = 'u' WHERE id IN (3, 4);
        DELETE FROM thing WHERE id = 5 OR id > 1000;
    INSERT INTO thing (id, name, other) VALUES (5, 'again', 5), (1, 'once', 2001), (2, 'more', 2002)";

const CASES: [Case; 6] = [
    Case { what: "a table taken out", ddl: &["ALTER PUBLICATION app DROP TABLE thing"], writes: WRITES, must: ReadAgain, undo: &[] },
    Case {
        what: "taken out and put back",
        ddl: &[
            "ALTER PUBLICATION app DROP TABLE thing",
            "DELETE FROM thing WHERE id = 8",
            "ALTER PUBLICATION app ADD TABLE thing (id, name, kind, flag)",
        ],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case { what: "inserts only", ddl: &["ALTER PUBLICATION app SET (publish = 'insert')"], writes: WRITES, must: BeRight, undo: &[] },
    Case {
        what: "a row filter",
        ddl: &["ALTER PUBLICATION app SET TABLE bystander, thing WHERE (id < 3)"],
        writes: WRITES,
        must: BeRight,
        undo: &[],
    },
    Case {
        what: "a shorter column list",
        ddl: &["ALTER PUBLICATION app SET TABLE bystander, thing (id)"],
        writes: WRITES,
        must: BeRight,
        undo: &[],
    },
    Case { what: "dropped", ddl: &["DROP PUBLICATION app"], writes: WRITES, must: BeRight, undo: &[] },
];

async fn published(major: Major) {
    let campaign = Campaign::start(major, columns::SCHEMA, &columns::QUERIES).await;
    for case in &CASES {
        // Some of these concern every table.
        campaign.run_all(case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn published_on_15() {
    published(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn published_on_18() {
    published(Major::V18).await;
}

/// Where every table is published, nothing keeps one from leaving the log for a while, or its columns from being rewritten.
const EVERYWHERE: [Case; 2] = [
    Case {
        what: "unlogged for a while",
        ddl: &["ALTER TABLE thing SET UNLOGGED", "DELETE FROM thing WHERE id IN (8, 9)", "ALTER TABLE thing SET LOGGED"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "another text of the same type",
        ddl: &["ALTER TABLE thing ALTER COLUMN name TYPE text USING upper(name)"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn published_with_every_table() {
    let schema = format!("{}; CREATE PUBLICATION app FOR ALL TABLES WITH (publish_via_partition_root = true)", columns::SCHEMA);
    let campaign = Campaign::start(Major::V18, &schema, &columns::QUERIES).await;
    for case in &EVERYWHERE {
        campaign.run(case).await;
    }
}

const ROLE: &str =
    "CREATE ROLE reader LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;
    CREATE PUBLICATION app FOR TABLE bystander, computed, thing (id, name, kind, flag) WITH (publish_via_partition_root = true)";

/// The role of `sql/` owns nothing: only an administrator can mend the publication, and until then the other views go on.
const POWERLESS: [Case; 3] = [
    Case {
        what: "a table taken out",
        ddl: &["ALTER PUBLICATION app DROP TABLE thing"],
        writes: WRITES,
        must: Stop(&[1, 2, 3, 4], "ALTER PUBLICATION \"app\" SET TABLE"),
        undo: &["ALTER PUBLICATION app ADD TABLE thing (id, name, kind, flag)"],
    },
    Case {
        what: "made anew",
        ddl: &["BEGIN; CREATE TABLE copy AS TABLE thing; DROP TABLE thing; ALTER TABLE copy RENAME TO thing;
                ALTER TABLE thing ADD PRIMARY KEY (id); GRANT SELECT ON thing TO reader; COMMIT"],
        writes: "DELETE FROM thing WHERE id = 5",
        must: Stop(&[1, 2, 3, 4], "ALTER PUBLICATION \"app\" SET TABLE"),
        undo: &["ALTER PUBLICATION app ADD TABLE thing (id, name, kind, flag)"],
    },
    Case {
        what: "no key",
        ddl: &["ALTER TABLE thing DROP CONSTRAINT thing_pkey"],
        writes: "INSERT INTO thing VALUES (3000, 'x', 'a', true, '', 1, '')",
        must: Stop(&[1, 2, 3, 4], "REPLICA IDENTITY FULL"),
        undo: &["ALTER TABLE thing ADD PRIMARY KEY (id)"],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn published_by_an_administrator() {
    let schema = format!("{}; {ROLE}", columns::SCHEMA);
    let campaign = Campaign::start_as(Major::V18, &schema, &columns::QUERIES, "reader").await;
    for case in &POWERLESS {
        campaign.run(case).await;
    }
}
