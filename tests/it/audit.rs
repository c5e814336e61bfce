//! Audits of a factsync that goes on: what differs is found and classified, what is only late is not.
//!
//! The oracle is who planted the drift, and the database for everything else.

mod drift;
mod proof;
mod views;
mod writers;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{
    app::App,
    factsync::{DEVELOPMENT_KEY, Factsync, Process, client},
};

/// What `POST /v1/audit` answers.
pub(crate) async fn audit(process: &Process, repair: bool) -> Value {
    audit_at(process.url().to_owned(), repair).await
}

/// The same of a factsync at `url`.
#[expect(clippy::disallowed_methods, reason = "what a test asks for is small")]
pub(crate) async fn audit_at(url: String, repair: bool) -> Value {
    let request = client().post(format!("{url}/v1/audit?repair={repair}")).bearer_auth(DEVELOPMENT_KEY);
    let response = request.send().await.expect("it answers");
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.expect("JSON")
}

/// The audit of one fact type.
pub(crate) fn of<'a>(audit: &'a Value, signature: &str) -> &'a Value {
    let sources = audit["sources"].as_array().expect("a list");
    let mut types = sources.iter().flat_map(|source| source["fact_types"].as_array().expect("a list"));
    types.find(|line| line["fact_type"] == signature).unwrap_or_else(|| panic!("there is no {signature} in {audit:#}"))
}

/// Drift by class: missing grants, stale access, foreign facts, view errors.
pub(crate) fn drift(classes: [u64; 4]) -> Value {
    let [missing, stale, foreign, wrong] = classes;
    json!({ "missing_grant": missing, "stale_access": stale, "foreign_fact": foreign, "view_error": wrong })
}

/// `factsync COMMAND` against `process`.
fn command(process: &Process, args: &[&str]) -> crate::support::factsync::Output {
    let listen = process.url().trim_start_matches("http://").to_owned();
    let all: Vec<&str> = args.iter().copied().chain(["--listen", &listen]).collect();
    Factsync::run(&all, &[])
}

const SCHEMA: &str = "
    CREATE TABLE organization (id int PRIMARY KEY, active boolean NOT NULL DEFAULT true);
    CREATE TABLE member (org int NOT NULL, person int NOT NULL, role text NOT NULL, PRIMARY KEY (org, person));
    CREATE INDEX ON member (person);
    INSERT INTO organization SELECT n FROM generate_series(1, 20) n;
    INSERT INTO member SELECT n % 20 + 1, n, CASE n % 3 WHEN 0 THEN 'admin' ELSE 'reader' END FROM generate_series(1, 2000) n;
    CREATE TABLE setting (id int PRIMARY KEY, flag boolean NOT NULL);
    INSERT INTO setting SELECT n, n % 2 = 0 FROM generate_series(1, 50) n";

const ROLE: &str = "has_role(User:_, String:_, Organization:_)";
const CROWD: &str = "is_member(User:_)";
const FLAG: &str = "is_flagged(Setting:_)";
const TOP: &str = "ranks(Setting:_, String:_)";

/// A join, a projection that makes the same fact of many rows, a filter, and one that is refreshed.
const FACTS: [(&str, &str); 4] = [
    (ROLE, "SELECT m.person, m.role, m.org FROM member m JOIN organization o ON o.id = m.org WHERE o.active"),
    (CROWD, "SELECT person % 100 FROM member"),
    (FLAG, "SELECT id FROM setting WHERE flag"),
    (TOP, "SELECT id, rank() OVER (ORDER BY id)::text FROM setting"),
];

async fn app(sync: &str) -> App {
    App::start(SCHEMA, &FACTS, sync).await
}
