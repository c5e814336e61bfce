//! The GitHub example as an application under test: its database, random transactions on it, and the oracle.
//!
//! The oracle is PostgreSQL: what the configured queries return there is what the fact store must hold.

use std::{collections::BTreeSet, path::PathBuf};

use factsync::{
    config::{Config, SourceKind, View},
    fact::FactType,
};
use serde_json::Value;

use super::{
    app::ROLE,
    factsync::{Factsync, Process},
    postgres::{Cluster, Major},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The example's database on a cluster of its own.
pub(crate) struct Github {
    pub(crate) cluster: Cluster,
    pub(crate) database: String,
    pub(crate) client: tokio_postgres::Client,
}

impl Github {
    /// The example with its seed rows.
    pub(crate) async fn start(major: Major) -> Self {
        let cluster = Cluster::start(major);
        let database = cluster.database();
        let client = cluster.client(&database).await;
        for file in ["schema.sql", "seed.sql"] {
            let sql = std::fs::read_to_string(format!("{ROOT}/sql/example/{file}")).expect("the example has its SQL");
            client.batch_execute(&sql).await.expect("the example's SQL runs");
        }
        let github = Self { cluster, database, client };
        let args = ["setup", "examples/github/github.yaml", "--apply", "--role", ROLE];
        Factsync::run(&args, &[("DATABASE_URL", &github.url())]).expect_code(0);
        github
    }

    /// The database as the superuser, who is the application.
    pub(crate) fn url(&self) -> String {
        self.cluster.url(&self.database)
    }

    /// The database as factsync connects to it: as the role that `factsync setup` prints.
    pub(crate) fn sync_url(&self) -> String {
        self.url().replace("postgres@", &format!("{ROLE}@"))
    }

    /// `factsync run` on the example, with `state` kept between runs.
    pub(crate) fn run(&self, state: &std::path::Path, more: &[&str]) -> Process {
        let state = state.to_str().expect("a UTF-8 path");
        let mut args = vec!["run", "examples/github/github.yaml", "--limits", "off", "--state", state];
        args.extend(more);
        Process::spawn(&args, &[("DATABASE_URL", &self.sync_url())])
    }

    /// [`Github::run`] of a process that dies at a moment of `src/crash.rs`.
    pub(crate) fn run_to_death(&self, state: &std::path::Path, moment: &str) -> Process {
        let state = state.to_str().expect("a UTF-8 path");
        let args = ["run", "examples/github/github.yaml", "--limits", "off", "--state", state];
        Process::spawn(&args, &[("DATABASE_URL", &self.sync_url()), ("FACTSYNC_DIE_AT", moment)])
    }

    /// Where the database's log is now; everything committed so far lies before it.
    pub(crate) async fn position(&self) -> String {
        let row = self.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position");
        row.get(0)
    }

    /// The fact types and queries of the example.
    pub(crate) fn views(&self) -> Vec<View<String>> {
        let config = self.config();
        match config.sources.into_iter().next().expect("a source").kind {
            SourceKind::Postgres(postgres) => postgres.views,
            SourceKind::Mongo(_) | SourceKind::Csv(_) => panic!("the example is a PostgreSQL one"),
        }
    }

    fn config(&self) -> Config {
        let url = self.url();
        let file = PathBuf::from(format!("{ROOT}/examples/github/github.yaml"));
        factsync::config::load(&[file], &|name| (name == "DATABASE_URL").then(|| url.clone())).expect("the example is valid")
    }

    /// `factsync run` on the example, into the fact store at `target`.
    pub(crate) fn run_into(&self, target: &str, state: &std::path::Path) -> Process {
        self.run(state, &["--target", target, "--plan", "unlimited"])
    }

    /// Panics unless the fact store of `process` holds exactly what the queries return now.
    pub(crate) async fn assert_equal(&self, process: &Process, context: &str) {
        let views = self.views().into_iter().map(|view| (view.fact_type, view.query));
        assert_holds(&self.client, views, process, context).await;
    }
}

/// Panics unless the fact store of `process` holds exactly what `views` return now.
pub(crate) async fn assert_holds(
    client: &tokio_postgres::Client,
    views: impl IntoIterator<Item = (FactType, String)>,
    process: &Process,
    context: &str,
) {
    for (fact_type, query) in views {
        let pattern = serde_json::to_value(&fact_type).expect("a fact type is JSON");
        let stored = rows_of(&process.facts(&fact_type.predicate).await, &pattern);
        let wanted = rows(client, &query).await;
        assert_eq!(stored, wanted, "{context}: {fact_type} holds the left, the query returns the right");
    }
}

/// The distinct rows of `query` without those that hold a NULL, as text.
pub(crate) async fn rows(client: &tokio_postgres::Client, query: &str) -> BTreeSet<Vec<String>> {
    let messages = client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let mut rows = BTreeSet::new();
    for message in messages {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            let cells: Option<Vec<String>> = (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect();
            rows.extend(cells);
        }
    }
    rows
}

/// The ids that stand where `pattern` has `null`, of the facts that fit it.
fn rows_of(facts: &[Value], pattern: &Value) -> BTreeSet<Vec<String>> {
    let args = pattern["args"].as_array().expect("arguments");
    let row = |fact: &Value| {
        let values = fact["args"].as_array().expect("arguments");
        let fits = |(arg, value): (&Value, &Value)| arg["type"] == value["type"] && (arg["id"].is_null() || arg["id"] == value["id"]);
        if values.len() != args.len() || !args.iter().zip(values).all(fits) {
            return None;
        }
        let variables = args.iter().zip(values).filter(|(arg, _)| arg["id"].is_null());
        Some(variables.map(|(_, value)| value["id"].as_str().expect("a text").to_owned()).collect())
    };
    facts.iter().filter_map(row).collect()
}

/// A small generator of reproducible randomness (SplitMix64, <https://prng.di.unimi.it/splitmix64.c>).
pub(crate) struct Random(u64);

impl Random {
    /// From `FACTSYNC_SEED`, else from the clock; the seed is printed, and a failing test shows it.
    pub(crate) fn new(test: &str) -> Self {
        let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        let seed = std::env::var("FACTSYNC_SEED").ok().map_or_else(clock, |text| text.parse().expect("FACTSYNC_SEED is a number"));
        eprintln!("{test}: FACTSYNC_SEED={seed}");
        Self(seed)
    }

    /// Another one, for a task of its own.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A transaction on the example's tables, over so few keys that rows collide: inserts, updates of keys, deletes with their
    /// cascades, delete and re-insert, a rolled-back savepoint, now and then a TRUNCATE.
    pub(crate) fn transaction(&mut self) -> String {
        let mut sql = String::from("BEGIN;\n");
        for _ in 0..=self.below(4) {
            let statement = self.statement();
            match self.below(8) {
                0 => sql.push_str(&format!("SAVEPOINT s;\n{statement};\nROLLBACK TO s;\n")),
                _ => sql.push_str(&format!("{statement};\n")),
            }
        }
        sql.push_str(if self.below(12) == 0 { "ROLLBACK" } else { "COMMIT" });
        sql
    }

    fn statement(&mut self) -> String {
        let (a, b, c) = (self.below(6) + 1, self.below(6) + 1, self.below(6) + 1);
        let flag = self.pick(&["true", "false"]);
        let role = self.pick(&["reader", "writer", "maintainer", "admin"]);
        let member = self.pick(&["member", "admin"]);
        let parent = self.pick(&["NULL", "1", "2", "3"]);
        let default = self.pick(&["NULL", "'reader'", "'writer'"]);
        match self.below(22) {
            0 => format!("INSERT INTO account VALUES ({a}, 'user{a}', {flag}) ON CONFLICT (id) DO UPDATE SET suspended = {flag}"),
            1 => format!("INSERT INTO organization VALUES ({a}, 'org{a}', {default}) ON CONFLICT DO NOTHING"),
            2 => format!("UPDATE organization SET default_repository_role = {default} WHERE id = {a}"),
            3 | 4 => format!(
                "INSERT INTO organization_member SELECT o.id, u.id, '{member}' FROM organization o, account u \
                 WHERE o.id = {a} AND u.id = {b} \
                 ON CONFLICT (organization_id, account_id) DO UPDATE SET role = excluded.role"
            ),
            5 | 6 => format!(
                "INSERT INTO repository SELECT {a}, id, 'repo{a}', {flag} FROM organization WHERE id = {b} \
                 ON CONFLICT (id) DO UPDATE SET is_public = {flag}"
            ),
            7 | 8 => format!(
                "INSERT INTO repository_member SELECT r.id, u.id, '{role}' FROM repository r, account u WHERE r.id = {a} AND u.id = {b} \
                 ON CONFLICT (repository_id, account_id) DO UPDATE SET role = excluded.role"
            ),
            9 => format!("INSERT INTO team SELECT {a}, id, 'team{a}' FROM organization WHERE id = {b} ON CONFLICT DO NOTHING"),
            10 => format!(
                "INSERT INTO team_member SELECT t.id, u.id FROM team t, account u WHERE t.id = {a} AND u.id = {b} ON CONFLICT DO NOTHING"
            ),
            11 => format!(
                "INSERT INTO team_repository SELECT t.id, r.id, '{role}' FROM team t, repository r WHERE t.id = {a} AND r.id = {b} \
                 ON CONFLICT (team_id, repository_id) DO UPDATE SET role = excluded.role"
            ),
            12 => format!(
                "INSERT INTO folder SELECT {a}, id, {parent}, 'f' FROM repository WHERE id = {b} \
                 ON CONFLICT (id) DO UPDATE SET parent_id = {parent}"
            ),
            13 => format!(
                "UPDATE account SET id = 10 - id WHERE id = {c} AND NOT EXISTS (SELECT FROM organization_member WHERE account_id = {c})"
            ),
            14 => format!("DELETE FROM account WHERE id = {a}"),
            15 => format!("DELETE FROM organization_member WHERE organization_id = {a} AND account_id = {b}"),
            16 => format!("DELETE FROM repository_member WHERE repository_id = {a}"),
            17 => format!("DELETE FROM repository WHERE id = {a}"),
            18 => format!("DELETE FROM team_member WHERE account_id = {a}"),
            19 => format!("UPDATE repository SET is_public = NOT is_public WHERE organization_id = {a}"),
            20 => format!(
                "DELETE FROM team_repository WHERE team_id = {a}; \
                 INSERT INTO team_repository SELECT t.id, r.id, '{role}' \
                 FROM team t, repository r WHERE t.id = {a} AND r.id = {b}"
            ),
            _ if self.below(6) == 0 => {
                format!("TRUNCATE {}", self.pick(&["folder", "team_member", "repository_member", "organization_member"]))
            }
            _ => format!("DELETE FROM organization WHERE id = {a}"),
        }
    }
}

/// Runs `count` random transactions; one that violates a constraint rolls back, as an application's would.
pub(crate) async fn work(client: &tokio_postgres::Client, random: &mut Random, count: u64) {
    for _ in 0..count {
        let sql = random.transaction();
        if let Err(error) = client.batch_execute(&sql).await {
            assert!(error.as_db_error().is_some(), "the connection is lost: {error:?}");
            client.batch_execute("ROLLBACK").await.expect("rolled back");
        }
    }
}
