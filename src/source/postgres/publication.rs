//! The publication: which tables and columns the server puts into our change log.
//!
//! It has the slot's name, names the tables the queries use and, from PostgreSQL 15 on, only the columns they use and those of
//! the replica identity, so that nothing else of the customer's data leaves the server. Never `FOR ALL TABLES`: that would
//! also forbid UPDATE and DELETE on every table without a key.
//!
//! The server reads the publication as it was at the point of the log it decodes. So it must exist before the slot does, and a
//! change of it makes a hole: changes before it were decoded under the old one. Hence what it has of a view's tables
//! ([`Publication::of`]) is part of the view's fingerprint, and a different fingerprint means that the view is read again. So that one
//! view's needs do not disturb the others, only what is wrong is altered: an entry that is the same in `SET TABLE` keeps
//! its row in the catalogue. And where this role may not alter it, the views go on whose tables it has ([`Standing`]).
//!
//! A table that has lost its identity is taken out: published, it could not be updated any more, not even by the application.

use std::collections::{BTreeMap, BTreeSet};

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::{Client, Error};

use crate::{
    error::causes,
    source::{
        SourceError,
        postgres::{
            analyze::{self, AnalysedView, Analysis},
            catalog::{Identity, Kind, Table},
            fault,
            look::Thing,
            session::{Server, Session},
        },
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
    /// What applies to every table: changes when the options do, or when it is made anew.
    general: String,
    /// What identifies each table's entry.
    entries: BTreeMap<u32, String>,
    all_tables: bool,
    complete: bool,
    schemas: BTreeSet<String>,
    tables: BTreeMap<u32, Option<BTreeSet<String>>>,
}

/// How the publication stands after an attempt to make it right.
pub(crate) enum Standing {
    /// Every change that matters is published.
    Right,
    /// It exists, and this role may not alter it: what somebody else has to do.
    Lacking(String),
}

/// The tables and columns that the views need.
pub(crate) fn needed(analysis: &Analysis) -> BTreeMap<u32, Published> {
    needed_by(analysis, analysis.views.iter().flatten())
}

/// The tables and columns that these views need.
pub(crate) fn needed_by<'a>(analysis: &Analysis, views: impl Iterator<Item = &'a AnalysedView>) -> BTreeMap<u32, Published> {
    let mut needed: BTreeMap<u32, Published> = BTreeMap::new();
    for view in views {
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
        let (mut entries, mut tables) = (BTreeMap::new(), BTreeMap::new());
        for row in client.query(&members, &[&oid]).await? {
            entries.insert(row.get(0), format!("{}/{}", row.get::<_, u32>(3), row.get::<_, &str>(4)));
            if row.get(2) {
                tables.insert(row.get(0), row.get::<_, Option<Vec<String>>>(1).map(|columns| columns.into_iter().collect()));
            }
        }
        // With the number of the entry: a schema that was taken out and put in again has another one.
        let schemas: BTreeMap<String, u32> = if has_lists {
            let schemas = "SELECT n.nspname::text, p.oid FROM pg_catalog.pg_publication_namespace p
                           JOIN pg_catalog.pg_namespace n ON n.oid = p.pnnspid WHERE p.pnpubid = $1";
            client.query(schemas, &[&oid]).await?.iter().map(|row| (row.get(0), row.get(1))).collect()
        } else {
            BTreeMap::new()
        };
        let general = format!("{oid}/{} {schemas:?}", publication.get::<_, &str>(3));
        let schemas = schemas.into_keys().collect();
        Ok(Some(Self { general, entries, all_tables: publication.get(1), complete: publication.get(2), schemas, tables }))
    }

    /// Changes when what is published of one of `tables` may have changed.
    pub(crate) fn of(&self, tables: &BTreeSet<u32>) -> String {
        let entries: Vec<&str> = tables.iter().filter_map(|oid| self.entries.get(oid)).map(String::as_str).collect();
        format!("{} {}", self.general, entries.join(" "))
    }

    /// Whether a table is published with a list of columns. The server lets nobody give these columns another type.
    pub(crate) fn lists_columns(&self, oid: u32) -> bool {
        matches!(self.tables.get(&oid), Some(Some(_))) && !self.all_tables
    }

    /// Whether a table is published by its own name. The server does not let it become unlogged then.
    pub(crate) fn names(&self, oid: u32) -> bool {
        self.entries.contains_key(&oid)
    }

    /// Whether every change that matters to `needed` is published.
    pub(crate) fn covers(&self, needed: &BTreeMap<u32, Published>) -> bool {
        self.complete && needed.iter().all(|(oid, wanted)| self.has(*oid, wanted))
    }

    fn has(&self, oid: u32, wanted: &Published) -> bool {
        self.all_tables
            || self.schemas.contains(&wanted.schema)
            || match (self.tables.get(&oid), &wanted.columns) {
                (None, _) | (Some(Some(_)), None) => false,
                (Some(None), _) => true,
                (Some(Some(published)), Some(wanted)) => published.is_superset(wanted),
            }
    }

    /// The entry that a table should have: the one it has, if that is enough; none if its schema is published.
    fn entry(&self, oid: u32, wanted: &Published) -> Option<Published> {
        match self.tables.get(&oid) {
            Some(columns) if self.has(oid, wanted) => Some(Published { columns: columns.clone(), ..wanted.clone() }),
            None if self.has(oid, wanted) => None,
            Some(_) | None => Some(wanted.clone()),
        }
    }
}

/// Everything about the publication `name` in texts that change when any of it does; nothing if there is none. One query, for heartbeats.
pub(crate) async fn identity(client: &Client, name: &str, version: u32) -> Result<Vec<(Thing, String)>, Error> {
    let schemas = if version >= HAS_COLUMN_LISTS {
        "(SELECT pg_catalog.string_agg(n.oid || '/' || n.xmin::text, ' ' ORDER BY n.oid)
          FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid)"
    } else {
        "NULL"
    };
    let sql = format!(
        "SELECT NULL::oid, pg_catalog.concat_ws(' ', p.oid, p.xmin, {schemas}) FROM pg_catalog.pg_publication p WHERE p.pubname = $1
         UNION ALL SELECT r.prrelid, r.oid || '/' || r.xmin::text
         FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = $1"
    );
    let rows = client.query(&sql, &[&name]).await?;
    Ok(rows.iter().map(|row| (row.get::<_, Option<u32>>(0).map_or(Thing::Publication, Thing::Published), row.get(1))).collect())
}

/// The statements that make the publication `name` publish what is needed; none if it does.
pub(crate) fn plan(name: &str, existing: Option<&Publication>, needed: &BTreeMap<u32, Published>) -> Vec<String> {
    let name = escape_identifier(name);
    let list = |tables: Vec<Published>| tables.iter().map(Published::to_sql).collect::<Vec<_>>().join(", ");
    let Some(existing) = existing else {
        let tables = list(needed.values().cloned().collect());
        let tables = if needed.is_empty() { String::new() } else { format!("FOR TABLE {tables} ") };
        return vec![format!("CREATE PUBLICATION {name} {tables}WITH ({OPTIONS})")];
    };
    let mut statements = Vec::new();
    if !existing.complete {
        statements.push(format!("ALTER PUBLICATION {name} SET ({OPTIONS})"));
    }
    if !needed.iter().all(|(oid, wanted)| existing.has(*oid, wanted)) {
        let tables = list(needed.iter().filter_map(|(oid, wanted)| existing.entry(*oid, wanted)).collect());
        statements.push(format!("ALTER PUBLICATION {name} SET TABLE {tables}"));
    }
    statements
}

/// Makes the publication right, as far as this role may.
pub(crate) async fn ensure(server: &Server, session: &Session, name: &str, analysis: &Analysis) -> Result<Standing, SourceError> {
    let failed = |error| fault::sql(&server.name, "set up the publication", error);
    let needed = needed(analysis);
    let existing = Publication::read(&session.client, name, analysis.server_version).await.map_err(failed)?;
    let statements = plan(name, existing.as_ref(), &needed);
    let mut standing = Standing::Right;
    if !statements.is_empty() {
        tracing::info!(source = &*server.name, publication = name, tables = needed.len(), "setting up the publication");
        let done = session.client.batch_execute(&statements.join("; ")).await;
        match done.map_err(|error| with_statements(failed(error), &statements)) {
            Ok(()) => {}
            Err(error @ SourceError::Refused { .. }) if existing.is_some() => standing = Standing::Lacking(causes(&error)),
            Err(error) => return Err(error),
        }
    }
    for (_, table) in existing.iter().flat_map(|existing| harmful(existing, &needed, analysis)) {
        let statement = format!("ALTER PUBLICATION {} DROP TABLE {}", escape_identifier(name), quoted(&table.schema, &table.name));
        match session.client.batch_execute(&statement).await.map_err(failed) {
            Ok(()) => tracing::warn!(source = &*server.name, statement, "a table without a key was taken out of the publication"),
            Err(error) => {
                let reason = causes(&error);
                tracing::error!(
                    source = &*server.name,
                    reason,
                    "the application cannot change a table that is published: run {statement};"
                );
            }
        }
    }
    Ok(standing)
}

fn with_statements(error: SourceError, statements: &[String]) -> SourceError {
    match error {
        SourceError::Refused { name, action, source, .. } => {
            let hint = format!(
                "Have an administrator run what `factsync setup CONFIG` prints, or `factsync setup CONFIG --apply` as one: {};",
                statements.join("; ")
            );
            SourceError::Refused { name, action, hint, source }
        }
        other => other,
    }
}

/// Tables that are published, that no view can be kept up to date with, and that nobody can update or delete from while they are.
fn harmful<'a>(
    existing: &'a Publication,
    needed: &'a BTreeMap<u32, Published>,
    analysis: &'a Analysis,
) -> impl Iterator<Item = (&'a u32, &'a Table)> {
    let bare = |table: &&Table| {
        table.kind == Kind::Table && (table.identity == Identity::Missing || analyze::is_stuck(table, analysis.server_version))
    };
    let published = analysis.tables.iter().filter(|(oid, _)| existing.names(**oid) && !needed.contains_key(oid));
    published.filter(move |(_, table)| {
        let partitions = table.descendants.iter().filter(|_| table.kind == Kind::Partitioned).filter_map(|oid| analysis.tables.get(oid));
        std::iter::once(*table).chain(partitions).any(|member| bare(&member))
    })
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
        let (general, entries) = (String::new(), BTreeMap::new());
        Publication { general, entries, all_tables: false, complete, schemas: BTreeSet::new(), tables: tables.collect() }
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
    fn entries_that_are_enough_are_left_as_they_are() {
        let needed = BTreeMap::from([(7, published(Some(&["a"]))), (8, published(Some(&["b"])))]);
        let existing = publication(&[(7, Some(&["a", "z"])), (8, Some(&["c"]))], true);
        let statements = plan("f", Some(&existing), &needed);
        let table = |columns: &str| format!("ONLY \"app\".\"Repo \"\"x\"\"\" ({columns})");
        let tables = [table("\"a\", \"z\""), table("\"b\"")].join(", ");
        assert_eq!(statements, [format!("ALTER PUBLICATION \"f\" SET TABLE {tables}")]);
        let options = plan("f", Some(&publication(&[(7, Some(&["a"])), (8, None)], false)), &needed);
        assert!(options.len() == 1 && options[0].contains("SET (publish"), "{options:?}");
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
