//! The publication: which tables and columns the server puts into our change log.
//!
//! It has the slot's name, names the tables the queries use and, from PostgreSQL 15 on, only the columns they use and those of
//! the replica identity, so that nothing else of the customer's data leaves the server. Never `FOR ALL TABLES`: that would
//! also forbid UPDATE and DELETE on every table without a key.
//!
//! The server reads the publication as it was at the point of the log it decodes. So it must exist before the slot does, and a
//! change of it makes a hole: changes before it were decoded under the old one. Hence its [`Publication::identity`] is part
//! of the fingerprint, and a different fingerprint means a new snapshot.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Error};

use crate::source::{
    SourceError,
    postgres::{
        analyze::Analysis,
        catalog::{Identity, Kind, Table},
        fault,
        session::{Server, Session},
    },
};

/// The first version with column lists, row filters and whole schemas in a publication.
const HAS_COLUMN_LISTS: u32 = 150_000;
/// What is published and how. Changes of a partition come under the name of its root, which is what queries name.
const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";

/// One table of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The columns; `None` is all of them, which `REPLICA IDENTITY FULL` and PostgreSQL 14 ask for.
    pub columns: Option<BTreeSet<String>>,
}

/// A publication as the catalogue has it.
#[derive(Debug)]
pub(crate) struct Publication {
    /// Changes whenever the publication does.
    pub(crate) identity: String,
    all_tables: bool,
    complete: bool,
    schemas: BTreeSet<String>,
    tables: BTreeMap<u32, Option<BTreeSet<String>>>,
}

/// The tables and columns that the views need.
pub(crate) fn needed(analysis: &Analysis) -> BTreeMap<u32, Published> {
    let mut needed: BTreeMap<u32, Published> = BTreeMap::new();
    for view in analysis.views.iter().flatten() {
        for (oid, used) in &view.tables {
            let Some(table) = analysis.tables.get(oid) else { continue };
            let children = table.descendants.iter().filter_map(|child| Some((child, analysis.tables.get(child)?)));
            let partitions = if table.kind == Kind::Partitioned { children.clone().map(|(_, table)| table).collect() } else { Vec::new() };
            add(&mut needed, *oid, table, &partitions, &used.columns, analysis.server_version);
            if table.kind == Kind::Table && view.with_children.contains(oid) {
                for (child, table) in children {
                    add(&mut needed, *child, table, &[], &used.columns, analysis.server_version);
                }
            }
        }
    }
    needed
}

fn add(needed: &mut BTreeMap<u32, Published>, oid: u32, table: &Table, partitions: &[&Table], used: &BTreeSet<String>, version: u32) {
    let published = needed.entry(oid).or_insert_with(|| Published {
        schema: table.schema.clone(),
        name: table.name.clone(),
        columns: (version >= HAS_COLUMN_LISTS).then(BTreeSet::new),
    });
    let Some(columns) = &mut published.columns else { return };
    columns.extend(used.iter().cloned());
    let mut whole = false;
    for member in std::iter::once(table).chain(partitions.iter().copied()) {
        match &member.identity {
            Identity::Columns(key) => columns.extend(key.iter().cloned()),
            Identity::Full => whole = true,
            Identity::Missing => {}
        }
    }
    // A generated column cannot be listed; its row is sent when what it is computed from changes.
    let generated: BTreeSet<&String> = table.columns.values().filter(|column| column.generated).map(|column| &column.name).collect();
    whole |= matches!(&table.identity, Identity::Columns(key) if key.iter().any(|name| generated.contains(name)));
    columns.retain(|name| !generated.contains(name));
    if whole || columns.is_empty() {
        published.columns = None;
    }
}

impl Publication {
    /// Reads the publication `name`, if it exists.
    pub(crate) async fn read(client: &Client, name: &str, version: u32) -> Result<Option<Self>, Error> {
        let publication = client
            .query_opt(
                "SELECT oid, puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate AND pubviaroot, xmin::text
                 FROM pg_catalog.pg_publication WHERE pubname = $1",
                &[&name],
            )
            .await?;
        let Some(publication) = publication else { return Ok(None) };
        let oid: u32 = publication.get(0);
        let has_lists = version >= HAS_COLUMN_LISTS;
        let (columns, unfiltered) = if has_lists {
            (
                "(SELECT pg_catalog.array_agg(a.attname::text) FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[]))",
                "r.prqual IS NULL",
            )
        } else {
            ("NULL::text[]", "true")
        };
        let members = format!(
            "SELECT r.prrelid, {columns}, {unfiltered}, r.oid, r.xmin::text
             FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = $1 ORDER BY r.prrelid"
        );
        let mut identity = format!("{oid}/{}", publication.get::<_, &str>(3));
        let mut tables = BTreeMap::new();
        for row in client.query(&members, &[&oid]).await? {
            identity.push_str(&format!(" {}/{}", row.get::<_, u32>(3), row.get::<_, &str>(4)));
            if row.get(2) {
                tables.insert(row.get(0), row.get::<_, Option<Vec<String>>>(1).map(|columns| columns.into_iter().collect()));
            }
        }
        let schemas = if has_lists {
            let schemas = "SELECT n.nspname::text FROM pg_catalog.pg_publication_namespace p
                           JOIN pg_catalog.pg_namespace n ON n.oid = p.pnnspid WHERE p.pnpubid = $1";
            client.query(schemas, &[&oid]).await?.iter().map(|row| row.get(0)).collect()
        } else {
            BTreeSet::new()
        };
        identity.push_str(&format!(" {schemas:?}"));
        Ok(Some(Self { identity, all_tables: publication.get(1), complete: publication.get(2), schemas, tables }))
    }

    /// Whether every change that matters to `needed` is published.
    pub(crate) fn covers(&self, needed: &BTreeMap<u32, Published>) -> bool {
        self.complete
            && needed.iter().all(|(oid, wanted)| {
                self.all_tables
                    || self.schemas.contains(&wanted.schema)
                    || match (self.tables.get(oid), &wanted.columns) {
                        (None, _) | (Some(Some(_)), None) => false,
                        (Some(None), _) => true,
                        (Some(Some(published)), Some(wanted)) => published.is_superset(wanted),
                    }
            })
    }
}

/// The statements that make the publication `name` publish what is needed; none if it does.
pub(crate) fn plan(name: &str, existing: Option<&Publication>, needed: &BTreeMap<u32, Published>) -> Vec<String> {
    let name = escape_identifier(name);
    let tables: Vec<String> = needed.values().map(Published::to_sql).collect();
    let tables = tables.join(", ");
    match existing {
        Some(existing) if existing.covers(needed) => Vec::new(),
        Some(existing) => {
            let mut statements = vec![format!("ALTER PUBLICATION {name} SET ({OPTIONS})")];
            if !existing.all_tables && !needed.is_empty() {
                statements.push(format!("ALTER PUBLICATION {name} SET TABLE {tables}"));
            }
            statements
        }
        None if needed.is_empty() => vec![format!("CREATE PUBLICATION {name} WITH ({OPTIONS})")],
        None => vec![format!("CREATE PUBLICATION {name} FOR TABLE {tables} WITH ({OPTIONS})")],
    }
}

/// Makes the publication right and gives its identity.
pub(crate) async fn ensure(server: &Server, session: &Session, name: &str, analysis: &Analysis) -> Result<String, SourceError> {
    let action = "set up the publication";
    let failed = |error| fault::sql(&server.name, action, error);
    let read = || Publication::read(&session.client, name, analysis.server_version);
    let needed = needed(analysis);
    let existing = read().await.map_err(failed)?;
    let statements = plan(name, existing.as_ref(), &needed);
    if !statements.is_empty() {
        tracing::info!(source = &*server.name, publication = name, tables = needed.len(), "setting up the publication");
        session.client.batch_execute(&statements.join("; ")).await.map_err(|error| match failed(error) {
            SourceError::Refused { name, action, source, .. } => {
                let hint = format!(
                    "Have an administrator run what `factsync setup CONFIG` prints, or `factsync setup CONFIG --apply` as one: {};",
                    statements.join("; ")
                );
                SourceError::Refused { name, action, hint, source }
            }
            other => other,
        })?;
    }
    let publication = read().await.map_err(failed)?.ok_or_else(|| fault::timeout(&server.name, action))?;
    Ok(publication.identity)
}

/// `schema.name` for SQL.
pub(crate) fn quoted(schema: &str, name: &str) -> String {
    format!("{}.{}", escape_identifier(schema), escape_identifier(name))
}

impl Published {
    /// `ONLY`, because inheritance children are listed themselves; partitions are included regardless.
    pub(crate) fn to_sql(&self) -> String {
        let table = quoted(&self.schema, &self.name);
        match &self.columns {
            None => format!("ONLY {table}"),
            Some(columns) => {
                let columns: Vec<String> = columns.iter().map(|column| escape_identifier(column)).collect();
                format!("ONLY {table} ({})", columns.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(columns: Option<&[&str]>) -> Published {
        let columns = columns.map(|columns| columns.iter().map(|&column| column.to_owned()).collect());
        Published { schema: "app".to_owned(), name: "Repo \"x\"".to_owned(), columns }
    }

    fn publication(tables: &[(u32, Option<&[&str]>)], complete: bool) -> Publication {
        let tables = tables.iter().map(|(oid, columns)| (*oid, published(*columns).columns));
        let identity = String::new();
        Publication { identity, all_tables: false, complete, schemas: BTreeSet::new(), tables: tables.collect() }
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(published(Some(&["id", "or\"g"])).to_sql(), "ONLY \"app\".\"Repo \"\"x\"\"\" (\"id\", \"or\"\"g\")");
        let plan = plan("factsync", None, &BTreeMap::from([(7, published(None))]));
        assert!(
            plan[0].starts_with("CREATE PUBLICATION \"factsync\" FOR TABLE ONLY \"app\".\"Repo \"\"x\"\"\" WITH (publish = "),
            "{plan:?}"
        );
    }

    #[test]
    fn a_publication_is_accepted_only_if_nothing_is_missing() {
        let needed = BTreeMap::from([(7, published(Some(&["a", "b"])))]);
        let covers = |tables, complete| publication(tables, complete).covers(&needed);
        assert!(covers(&[(7, Some(&["a", "b", "c"]))], true));
        assert!(covers(&[(7, None), (8, None)], true));
        assert!(!covers(&[(7, Some(&["a", "b"]))], false));
        assert!(!covers(&[(7, Some(&["a"]))], true));
        assert!(!covers(&[(8, None)], true));
        assert!(!publication(&[(7, Some(&["a"]))], true).covers(&BTreeMap::from([(7, published(None))])));
    }
}
