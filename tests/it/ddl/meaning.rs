//! What a query means without a change of its tables: names, functions, policies, privileges, settings.

use super::campaign::{
    Campaign, Case,
    Must::{BeFree, ReadAgain, Stop},
};
use crate::support::postgres::Major;

pub(super) const SCHEMA: &str =
    "CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL DEFAULT '2026-01-01 12:00+00',
  bytes bytea NOT NULL DEFAULT '\\x01ff', part float8 NOT NULL DEFAULT 0.1);
INSERT INTO thing SELECT i, 'n' || i FROM generate_series(1, 20) AS i;
CREATE SCHEMA front; CREATE TABLE front.thing (LIKE public.thing INCLUDING ALL);
INSERT INTO front.thing SELECT i, 'f' || i FROM generate_series(10, 30) AS i;
CREATE SCHEMA empty;
CREATE FUNCTION label(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT 'l' || $1 $$;
CREATE TABLE told (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO told SELECT i, 't' || i FROM generate_series(1, 20) AS i;
CREATE ROLE reader LOGIN REPLICATION; GRANT USAGE ON SCHEMA public, front, empty TO reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public, front TO reader;
CREATE PUBLICATION app FOR TABLE bystander, public.thing, front.thing, told
  WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)";

/// Incremental and refreshed; a function of the application's; texts that settings shape.
pub(super) const QUERIES: [&str; 4] = [
    "SELECT id, name FROM thing WHERE id <> 3",
    "SELECT id, name || count(*) OVER () FROM thing",
    "SELECT id, label(name) FROM told WHERE label(name) <> 'lt3'",
    "SELECT id, at::text || bytes::text || part::text FROM public.thing WHERE id > 0",
];

pub(super) const WRITES: &str = "UPDATE public.thing SET name = name || '+' WHERE id IN (1, 12); DELETE FROM public.thing WHERE id = 13;
    INSERT INTO public.thing (id, name) VALUES (13, 'again'); UPDATE front.thing SET name = name || '-' WHERE id IN (11, 12);
    UPDATE told SET name = name || '+' WHERE id = 2";

pub(super) const CASES: [Case; 9] = [
    Case {
        what: "a function replaced",
        ddl: &["CREATE OR REPLACE FUNCTION label(text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT 'm' || $1 $$"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "search_path of the database",
        ddl: &["DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = front, public',
        current_database()); END $$"],
        writes: WRITES,
        must: ReadAgain,
        undo: &["DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET search_path',
            current_database()); END $$"],
    },
    Case {
        what: "a schema before the others without such a table",
        ddl: &["DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = empty, public', current_database()); END $$"],
        writes: WRITES,
        must: ReadAgain,
        undo: &[],
    },
    Case {
        what: "and then such a table in it",
        ddl: &["CREATE TABLE empty.thing (LIKE public.thing INCLUDING ALL);
        INSERT INTO empty.thing SELECT id, 'e' FROM public.thing WHERE id < 9"],
        writes: WRITES,
        must: Stop(&[1, 2], "ALTER PUBLICATION"),
        undo: &["DROP TABLE empty.thing"],
    },
    Case {
        what: "row-level security",
        ddl: &["ALTER TABLE public.thing ENABLE ROW LEVEL SECURITY"],
        writes: WRITES,
        must: Stop(&[1, 2, 4], "BYPASSRLS"),
        undo: &["ALTER TABLE public.thing DISABLE ROW LEVEL SECURITY"],
    },
    Case {
        what: "a policy that hides half of the rows",
        ddl: &["CREATE POLICY half ON public.thing TO reader USING (id % 2 = 0)", "ALTER TABLE public.thing ENABLE ROW LEVEL SECURITY"],
        writes: WRITES,
        must: Stop(&[1, 2, 4], "BYPASSRLS"),
        undo: &["ALTER TABLE public.thing DISABLE ROW LEVEL SECURITY"],
    },
    Case {
        what: "no privilege any more",
        ddl: &["REVOKE SELECT ON public.thing FROM reader"],
        writes: WRITES,
        must: Stop(&[2], "permission denied"),
        undo: &["GRANT SELECT ON public.thing TO reader", "UPDATE public.thing SET name = 'granted' WHERE id = 5"],
    },
    Case {
        what: "settings that shape texts",
        ddl: &[
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET DateStyle = German', current_database());
            EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Tokyo''', current_database());
                EXECUTE format('ALTER DATABASE %I SET bytea_output = escape', current_database());
                    EXECUTE format('ALTER DATABASE %I SET extra_float_digits = 0', current_database()); END $$",
            "ALTER ROLE reader SET TimeZone = 'America/New_York'",
        ],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
    Case {
        what: "privileges of others",
        ddl: &["GRANT SELECT ON public.thing TO PUBLIC", "COMMENT ON COLUMN public.thing.name IS 'x'"],
        writes: WRITES,
        must: BeFree,
        undo: &[],
    },
];

async fn meaning(major: Major) {
    let campaign = Campaign::start_as(major, SCHEMA, &QUERIES, "reader").await;
    for case in &CASES {
        campaign.run(case).await;
    }
    campaign.nothing_was_read().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn meaning_on_15() {
    meaning(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn meaning_on_18() {
    meaning(Major::V18).await;
}
