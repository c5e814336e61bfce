//! The same changes while factsync is down: what the log says is of tables that may have been others by then.

use super::{
    campaign::{Campaign, Case, Must},
    columns, meaning, tables,
};
use crate::support::postgres::Major;

async fn down(mut campaign: Campaign, cases: &[&[Case]]) {
    for case in cases.iter().copied().flatten() {
        campaign.run_down(case).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_while_it_is_down() {
    let campaign = Campaign::start(Major::V18, columns::SCHEMA, &columns::QUERIES).await;
    down(campaign, &[&columns::FREE, &columns::RELATED]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_while_it_is_down() {
    let campaign = Campaign::start(Major::V18, tables::SCHEMA, &tables::QUERIES).await;
    down(campaign, &[&tables::CASES]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn families_while_it_is_down() {
    let campaign = Campaign::start(Major::V18, tables::FAMILIES, &tables::FAMILY_QUERIES).await;
    down(campaign, &[&tables::FAMILY_CASES]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn meaning_while_it_is_down() {
    let campaign = Campaign::start_as(Major::V18, meaning::SCHEMA, &meaning::QUERIES, "reader").await;
    down(campaign, &[&meaning::CASES]).await;
}

/// Changed, written to, and brought back as it was: only the log or a row of a catalogue still tells.
const RESTORED: [Case; 7] = [
    Case {
        what: "a label and back",
        ddl: &[
            "ALTER TYPE kind RENAME VALUE 'a' TO 'first'",
            "UPDATE thing SET note = 'y' WHERE id IN (3, 6, 9)",
            "ALTER TYPE kind RENAME VALUE 'first' TO 'a'",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "a table out of the publication and back",
        ddl: &[
            "ALTER PUBLICATION app DROP TABLE thing",
            "DELETE FROM thing WHERE id IN (10, 11)",
            "UPDATE thing SET flag = NOT flag WHERE id IN (12, 13)",
            "ALTER PUBLICATION app ADD TABLE thing (id, name, kind, flag)",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "only inserts published for a while",
        ddl: &[
            "ALTER PUBLICATION app SET (publish = 'insert')",
            "DELETE FROM thing WHERE id IN (14, 15)",
            "ALTER PUBLICATION app SET (publish = 'insert, update, delete, truncate')",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "a column's name and back",
        ddl: &[
            "ALTER TABLE thing RENAME COLUMN name TO title",
            "UPDATE thing SET title = 'between' WHERE id = 16",
            "ALTER TABLE thing RENAME COLUMN title TO name",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "another identity and back",
        ddl: &[
            "ALTER TABLE thing REPLICA IDENTITY USING INDEX thing_other",
            "ALTER PUBLICATION app SET TABLE thing, bystander, computed",
            "UPDATE thing SET id = id + 5000 WHERE id = 17; DELETE FROM thing WHERE id = 18",
            "ALTER TABLE thing REPLICA IDENTITY DEFAULT",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "another type with other values, and back",
        ddl: &["ALTER TABLE thing ALTER COLUMN name TYPE varchar(30) USING upper(name)", "ALTER TABLE thing ALTER COLUMN name TYPE text"],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
    Case {
        what: "another publication of the name",
        ddl: &[
            "DROP PUBLICATION app",
            "DELETE FROM thing WHERE id IN (19, 20)",
            "CREATE PUBLICATION app FOR TABLE bystander, thing, computed",
        ],
        writes: columns::WRITES,
        must: Must::BeRight,
        undo: &[],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn restored_while_it_is_down() {
    for major in [Major::V15, Major::V18] {
        down(Campaign::start(major, columns::SCHEMA, &columns::QUERIES).await, &[&RESTORED]).await;
    }
}
