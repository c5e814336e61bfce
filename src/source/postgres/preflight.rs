//! What `check` asks of a database: everything that would stop `run`, all at once, each with its remedy.

use tokio_postgres::{Client, config::SslMode};

use crate::{
    config::{Place, PostgresConfig, SecretString, View},
    source::{
        SourceError,
        postgres::{
            address::Address,
            analyze::{self, Analysis},
            fault, prepare,
            publication::{self, Publication},
            session::{Purpose, Server},
            slot::{self, SlotState},
            trust::Trust,
        },
    },
};

/// The oldest minor release whose logical decoding we rely on: later ones fix lost changes after DDL and slot races.
const OLDEST_VERSION: i32 = 140_010;
/// One slot to stream from and a temporary one for each snapshot.
const SLOTS_NEEDED: i64 = 2;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Fine,
    /// `run` works, but something is worth a look.
    Warning,
    /// `run` will not work.
    Problem,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The query it is about.
    pub place: Option<Place>,
    /// What was found.
    pub text: String,
    /// What to do, as a sentence.
    pub remedy: Option<String>,
}

impl Finding {
    pub(in crate::source) fn fine(text: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, place: None, text: text.into(), remedy: None }
    }

    pub(in crate::source) fn bad(severity: Severity, text: impl Into<String>, remedy: &str) -> Self {
        Self { severity, place: None, text: text.into(), remedy: Some(remedy.to_owned()) }
    }
}

/// Checks everything that `run` needs of this database.
pub async fn preflight(name: &str, config: &PostgresConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = examine(name, config, &mut findings).await {
        findings.push(unusable(&error));
    }
    findings
}

/// Lets a database judge the queries of a local-authorization file: they must prepare and have a column for each variable.
pub async fn judge(connection_string: &SecretString, views: &[View<String>]) -> Vec<Finding> {
    match prepare_all(connection_string, views).await {
        Ok(findings) => findings,
        Err(error) => vec![unusable(&error)],
    }
}

fn unusable(error: &SourceError) -> Finding {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    Finding { severity: Severity::Problem, place: None, text, remedy: None }
}

async fn prepare_all(connection_string: &SecretString, views: &[View<String>]) -> Result<Vec<Finding>, SourceError> {
    let name = "--db";
    let server = Server::from_parts(name, Address::parse(connection_string, None))?;
    let session = server.connect(Purpose::Read).await?;
    let mut findings = Vec::new();
    for view in views {
        let wanted = view.fact_type.variables();
        let problem = match session.client.prepare(&view.query).await {
            Ok(statement) if statement.columns().len() == wanted => None,
            Ok(statement) => Some(format!("the query has {} columns and the fact type {wanted} variables", statement.columns().len())),
            Err(error) => match fault::of_query(&error) {
                Some(problem) => Some(problem),
                None => return Err(fault::sql(name, "prepare a query", error)),
            },
        };
        findings.push(match problem {
            None => Finding { place: Some(view.place.clone()), ..Finding::fine(format!("{} prepares", view.fact_type)) },
            Some(problem) => Finding { place: Some(view.place.clone()), ..Finding::bad(Severity::Problem, problem, "Correct the query.") },
        });
    }
    Ok(findings)
}

async fn examine(name: &str, config: &PostgresConfig, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
    let server = Server::new(name, config)?;
    let failed = |error| fault::sql(name, "read the catalogue", error);
    let mut session = server.connect(Purpose::Analyze).await?;
    findings.push(Finding::fine(format!("connected to database \"{}\" as \"{}\"", server.database(), server.user())));
    findings.extend(link(server.address()));
    findings.extend(settings(&session.client).await.map_err(failed)?);
    let analysis = analyze::analyze(&server, &mut session, &config.views).await?;
    for (view, analysed) in config.views.iter().zip(&analysis.views) {
        let place = Some(view.place.clone());
        findings.push(match analysed {
            Ok(_) => Finding { place, ..Finding::fine(format!("{} can be followed", view.fact_type)) },
            Err(problem) => {
                let (text, remedy) = problem.rsplit_once(". ").map_or((problem.as_str(), None), |(text, remedy)| (text, Some(remedy)));
                let text = format!("{}: {text}", view.fact_type);
                Finding { severity: Severity::Problem, place, text, remedy: remedy.map(|remedy| format!("{remedy}.")) }
            }
        });
    }
    findings.extend(privileges(&session.client, config, &analysis).await.map_err(failed)?);
    findings.push(slot_finding(&session.client, config).await.map_err(failed)?);
    let publication = Publication::read(&session.client, &config.slot, analysis.server_version).await.map_err(failed)?;
    findings.push(publication_finding(&session.client, config, &analysis, publication).await.map_err(failed)?);
    Ok(())
}

/// What can be said of the connection itself.
fn link(address: &Address) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(problem) = address.unfollowable() {
        let (text, remedy) = problem.rsplit_once(". ").expect("the sentence about it ends with what to do");
        findings.push(Finding::bad(Severity::Problem, text, &format!("{remedy}.")));
    }
    if address.is_remote() && address.tls.trust == Trust::Anybody {
        let text = match address.tls.offer {
            SslMode::Disable => "another machine is spoken to in clear: whoever is between reads every row and can change them",
            // `Prefer` falls back, and the enum is open.
            _ => "another machine is spoken to without verifying its certificate: whoever answers in its place decides on access",
        };
        findings.push(Finding::bad(
            Severity::Warning,
            text,
            "Write sslmode=verify-full, with sslrootcert=FILE for an authority of your own.",
        ));
    }
    findings
}

/// The server as a whole.
async fn settings(client: &Client) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT pg_catalog.current_setting('server_version_num')::int, pg_catalog.current_setting('server_version'),
                    pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery(),
                    (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
                    pg_catalog.current_setting('max_replication_slots')::bigint
                      - (SELECT count(*) FROM pg_catalog.pg_replication_slots),
                    pg_catalog.current_setting('max_wal_senders')::bigint - (SELECT count(*) FROM pg_catalog.pg_stat_replication)",
            &[],
        )
        .await?;
    let (version, spelled, wal_level): (i32, &str, &str) = (row.get(0), row.get(1), row.get(2));
    let (standby, replication, slots, senders): (bool, bool, i64, i64) = (row.get(3), row.get(4), row.get(5), row.get(6));
    let free = |what: &str, count: i64, setting: &str| match count >= SLOTS_NEEDED {
        true => Finding::fine(format!("{count} {what} are free")),
        false => Finding::bad(
            Severity::Warning,
            format!("{count} {what} are free and {SLOTS_NEEDED} are needed"),
            &format!("Raise {setting} and restart the server, unless factsync itself is what uses them."),
        ),
    };
    Ok(vec![
        match version >= OLDEST_VERSION {
            true => Finding::fine(format!("PostgreSQL {spelled}")),
            false => Finding::bad(
                Severity::Warning,
                format!("PostgreSQL {spelled} is older than 14.10"),
                "Update it: earlier releases have known faults in logical decoding.",
            ),
        },
        match wal_level {
            "logical" => Finding::fine("wal_level is logical"),
            _ => Finding::bad(
                Severity::Problem,
                format!("wal_level is \"{wal_level}\""),
                "Run ALTER SYSTEM SET wal_level = logical and restart the server.",
            ),
        },
        match standby {
            false => Finding::fine("the server is a primary"),
            true => Finding::bad(Severity::Problem, "the server is a standby", "Connect to the primary."),
        },
        match replication {
            true => Finding::fine("the role may replicate"),
            false => Finding::bad(
                Severity::Problem,
                "the role has no REPLICATION attribute",
                "Have an administrator run what `factsync setup CONFIG` prints.",
            ),
        },
        free("replication slots", slots, "max_replication_slots"),
        free("WAL senders", senders, "max_wal_senders"),
    ])
}

/// Whether the role may run each query: analysing one checks no privileges, starting it does.
async fn privileges(client: &Client, config: &PostgresConfig, analysis: &Analysis) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = Vec::new();
    let read = prepare::columns_read(analysis);
    for (view, analysed) in config.views.iter().zip(&analysis.views) {
        let Ok(analysed) = analysed else { continue };
        let mut queries = vec![view.query.clone()];
        if let Ok(plan) = prepare::incremental(analysis, analysed) {
            queries.extend(prepare::table_queries(analysis, plan).into_values().map(|(sql, _)| sql));
        }
        let Some(problem) = probe(client, &queries).await? else { continue };
        let mut text = format!("{}: {problem}", view.fact_type);
        for (oid, used) in analysed.tables.iter().chain(&analysed.shown) {
            let columns: Vec<&String> = read.get(oid).into_iter().flat_map(|used| &used.columns).collect();
            let forbidden = "SELECT pg_catalog.array_agg(c) FROM pg_catalog.unnest($2::text[]) c
                             WHERE NOT pg_catalog.has_column_privilege($1::oid, c, 'SELECT')";
            let row = client.query_one(forbidden, &[oid, &columns]).await?;
            if let Some(columns) = row.get::<_, Option<Vec<String>>>(0) {
                text.push_str(&format!("; no SELECT on {}.{} ({})", used.schema, used.name, columns.join(", ")));
            }
        }
        let bad = Finding::bad(Severity::Problem, text, "Have an administrator run what `factsync setup CONFIG` prints.");
        findings.push(Finding { place: Some(view.place.clone()), ..bad });
    }
    Ok(findings)
}

/// What the server holds against running one of `queries`, if anything.
async fn probe(client: &Client, queries: &[String]) -> Result<Option<String>, tokio_postgres::Error> {
    for query in queries {
        let probe = format!("SELECT * FROM (\n{query}\n) factsync_probe LIMIT 0");
        if let Err(error) = client.query(&probe, &[]).await {
            return fault::of_query(&error).map(Some).ok_or(error);
        }
    }
    Ok(None)
}

async fn slot_finding(client: &Client, config: &PostgresConfig) -> Result<Finding, tokio_postgres::Error> {
    let slot = &config.slot;
    Ok(match slot::state(client, slot).await? {
        SlotState::Missing => Finding::fine(format!("slot \"{slot}\" will be created")),
        SlotState::Free(confirmed) => Finding::fine(format!("slot \"{slot}\" exists, acknowledged up to {confirmed}")),
        SlotState::Active => Finding::bad(
            Severity::Warning,
            format!("slot \"{slot}\" is in use"),
            "If that is another factsync, this one will be its standby.",
        ),
        SlotState::Foreign(problem) => Finding::bad(Severity::Problem, problem, "Choose another name with sync.slot."),
        SlotState::Lost(problem) => {
            Finding::bad(Severity::Warning, problem, "Everything will be read again; raise max_slot_wal_keep_size.")
        }
    })
}

async fn publication_finding(
    client: &Client,
    config: &PostgresConfig,
    analysis: &Analysis,
    publication: Option<Publication>,
) -> Result<Finding, tokio_postgres::Error> {
    let name = &config.slot;
    let needed = publication::needed(analysis);
    if publication.as_ref().is_some_and(|publication| publication.covers(&needed)) {
        return Ok(Finding::fine(format!("publication \"{name}\" has everything that is needed")));
    }
    let tables: Vec<u32> = needed.keys().copied().collect();
    let row = client
        .query_one(
            "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = ANY ($1) AND NOT pg_catalog.pg_has_role(relowner, 'USAGE'))
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication
                                WHERE pubname = $2 AND NOT pg_catalog.pg_has_role(pubowner, 'USAGE'))",
            &[&tables, name],
        )
        .await?;
    let what = if publication.is_some() { "lacks tables or columns" } else { "does not exist" };
    Ok(match row.get(0) {
        true => Finding::fine(format!("publication \"{name}\" {what}; it will be set up")),
        false => Finding::bad(
            Severity::Problem,
            format!("publication \"{name}\" {what}, and the role may not set it up"),
            "Have an administrator run what `factsync setup CONFIG` prints.",
        ),
    })
}
