//! What an administrator has to run once, and what `reset` removes.
//!
//! The statements live in `sql/`, where people look for them; braces mark what is filled in here, quoted.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use postgres_protocol::escape::escape_identifier;
use tokio::time;
use tokio_postgres::{Client, error::SqlState};

use crate::{
    config::PostgresConfig,
    source::{
        SourceError,
        postgres::{
            analyze::{self, Analysis},
            fault, prepare,
            publication::{self, Publication, quoted},
            session::{Purpose, Server, Session},
            slot::{self, SlotState},
        },
    },
};

/// How long the server may take to notice that the reader of a slot has gone. One that goes on reading is told of after that.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
/// How often that is looked at.
const RELEASE_POLL: Duration = Duration::from_millis(50);

const ROLE: &str = include_str!("../../../sql/role.sql");
const GRANTS: &str = include_str!("../../../sql/grants.sql");
const PUBLICATION: &str = include_str!("../../../sql/publication.sql");

/// The SQL that is missing for this configuration, given what the server has already; empty if nothing is.
///
/// `role` is who factsync will connect as; without one it is the configured user.
pub async fn setup_sql(name: &str, config: &PostgresConfig, role: Option<&str>) -> Result<String, SourceError> {
    let server = Server::new(name, config)?;
    let role = role.unwrap_or(server.user());
    let failed = |error| fault::sql(name, "read the catalogue", error);
    let mut session = server.connect(Purpose::Analyze).await?;
    let analysis = analyze::analyze(&server, &mut session, &config.views).await?;
    let mut script = String::new();
    let exists = "SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = $1";
    match session.client.query_opt(exists, &[&role]).await.map_err(failed)?.map(|row| row.get::<_, bool>(0)) {
        None => script.push_str(&fill(ROLE, &[("role", &escape_identifier(role))])),
        Some(false) => script.push_str(&format!("ALTER ROLE {} WITH REPLICATION;\n", escape_identifier(role))),
        Some(true) => {}
    }
    let grants = grants(&analysis, role);
    let role = escape_identifier(role);
    script.push_str(&fill(GRANTS, &[("role", &role), ("database", &escape_identifier(server.database())), ("grants", &grants)]));
    let existing = Publication::read(&session.client, &config.slot, analysis.server_version).await.map_err(failed)?;
    let statements = publication::plan(&config.slot, existing.as_ref(), &publication::needed(&analysis));
    if !statements.is_empty() {
        script.push_str(&fill(PUBLICATION, &[("publication", &statements.join(";\n"))]));
    }
    Ok(script)
}

fn grants(analysis: &Analysis, role: &str) -> String {
    let role = escape_identifier(role);
    let mut schemas = BTreeSet::new();
    let mut tables = BTreeSet::new();
    for used in prepare::columns_read(analysis).values() {
        schemas.insert(format!("GRANT USAGE ON SCHEMA {} TO {role};", escape_identifier(&used.schema)));
        let columns: Vec<String> = used.columns.iter().map(|column| escape_identifier(column)).collect();
        let table = quoted(&used.schema, &used.name);
        // A query that counts rows uses no column, and then any one of them is enough; the key is the least telling.
        tables.insert(match columns.as_slice() {
            [] => format!("GRANT SELECT ON {table} TO {role};"),
            columns => format!("GRANT SELECT ({}) ON {table} TO {role};", columns.join(", ")),
        });
    }
    schemas.into_iter().chain(tables).collect::<Vec<_>>().join("\n")
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    // In one pass, so that a value with braces in it is not filled in again.
    let mut script = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((key, after)) = after.split_once('}') else { break };
        script.push_str(before);
        match values.iter().find(|(name, _)| *name == key) {
            Some((_, value)) => script.push_str(value),
            None => script.push_str(&format!("{{{key}}}")),
        }
        rest = after;
    }
    script + rest
}

/// Runs a script of [`setup_sql`] in one transaction, as the configured user.
pub async fn apply_setup(name: &str, config: &PostgresConfig, script: &str) -> Result<(), SourceError> {
    let session = Server::new(name, config)?.connect(Purpose::Write).await?;
    let script = format!("BEGIN;\n{script}\nCOMMIT;");
    session.client.batch_execute(&script).await.map_err(|error| fault::sql(name, "set up the database", error))
}

/// What `reset` would drop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResetPlan {
    /// The slot, if it exists and is ours.
    pub slot: Option<String>,
    /// Whether somebody streams from it; it cannot be dropped then.
    pub slot_is_active: bool,
    /// The publication, if it exists.
    pub publication: Option<String>,
}

/// Names what factsync has created in this database.
pub async fn plan_reset(name: &str, config: &PostgresConfig) -> Result<ResetPlan, SourceError> {
    let session = Server::new(name, config)?.connect(Purpose::Read).await?;
    plan_reset_in(name, config, &session).await
}

async fn plan_reset_in(name: &str, config: &PostgresConfig, session: &Session) -> Result<ResetPlan, SourceError> {
    let failed = |error| fault::sql(name, "read the catalogue", error);
    let state = slot::state(&session.client, &config.slot).await.map_err(failed)?;
    let ours = match state {
        SlotState::Missing | SlotState::Foreign(_) => None,
        SlotState::Active | SlotState::Lost(_) | SlotState::Free(_) => Some(config.slot.clone()),
    };
    let exists = "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1";
    let publication = session.client.query_opt(exists, &[&config.slot]).await.map_err(failed)?;
    Ok(ResetPlan { slot: ours, slot_is_active: state == SlotState::Active, publication: publication.map(|_| config.slot.clone()) })
}

/// Drops what [`plan_reset`] names, the slot first: it is what holds the server's log.
pub async fn apply_reset(name: &str, config: &PostgresConfig) -> Result<ResetPlan, SourceError> {
    let session = Server::new(name, config)?.connect(Purpose::Write).await?;
    let plan = plan_reset_in(name, config, &session).await?;
    if let Some(slot) = &plan.slot {
        drop_released(&session.client, slot).await.map_err(|error| fault::sql(name, "drop the slot", error))?;
    }
    if let Some(publication) = &plan.publication {
        let statement = format!("DROP PUBLICATION {}", escape_identifier(publication));
        session.client.batch_execute(&statement).await.map_err(|error| fault::sql(name, "drop the publication", error))?;
    }
    Ok(plan)
}

/// Drops a slot that its reader may have let go of this very moment: the server's process notices a little later.
async fn drop_released(client: &Client, slot: &str) -> Result<(), tokio_postgres::Error> {
    let began = Instant::now();
    loop {
        match slot::drop_slot(client, slot).await {
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) && began.elapsed() < RELEASE_PATIENCE => {}
            outcome => return outcome,
        }
        time::sleep(RELEASE_POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_once() {
        let script = fill("GRANT {a} TO {b}; {c}", &[("a", "{b}"), ("b", "\"x\"")]);
        assert_eq!(script, "GRANT {b} TO \"x\"; {c}");
    }

    #[test]
    fn every_template_is_filled_completely() {
        let values = ["role", "database", "grants", "publication"].map(|name| (name, "x"));
        for template in [ROLE, GRANTS, PUBLICATION] {
            assert!(!fill(template, &values).contains('{'), "{template}");
        }
    }
}
