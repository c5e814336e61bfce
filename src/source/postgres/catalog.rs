//! What the server's catalogues say about the tables and functions of the queries.
//!
//! Every name is written with its schema, because `search_path` is the user's.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

/// The first OID that is not PostgreSQL's own (`FirstNormalObjectId` of `access/transam.h`).
const FIRST_USER_OID: u32 = 16_384;

/// Which columns of an UPDATE's or DELETE's old row the change log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The columns of the primary key or of the chosen index.
    Columns(BTreeSet<String>),
    /// All of them.
    Full,
    /// None: publishing the table would break the application's own UPDATEs and DELETEs.
    Missing,
}

/// What kind of relation a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Rows of its own.
    Table,
    /// Rows in its partitions.
    Partitioned,
    /// Anything that logical replication does not carry.
    Other(&'static str),
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// Its type, as `format_type` spells it.
    pub(crate) type_name: String,
    /// Whether it is computed from others.
    pub(crate) generated: bool,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its schema.
    pub(crate) schema: String,
    /// Its name.
    pub(crate) name: String,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its own identity; a partitioned table's rows have that of their partition.
    pub(crate) identity: Identity,
    /// Its columns by attribute number, dropped ones left out.
    pub(crate) columns: BTreeMap<i16, Column>,
    /// Its partitions and inheritance children, at any depth.
    pub(crate) descendants: BTreeSet<u32>,
    /// The partitioned tables it is a partition of: changes are published under their names.
    pub(crate) ancestors: BTreeSet<u32>,
}

impl Table {
    /// `schema.name`, for messages.
    pub(crate) fn title(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// One function that a query calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// `schema.name`.
    pub(crate) title: String,
    /// `i`, `s` or `v`.
    pub(crate) volatility: String,
    /// Neither PostgreSQL's nor an extension's.
    pub(crate) users: bool,
    /// Changes when it is redefined.
    pub(crate) version: String,
}

/// The tables `wanted` and every descendant and ancestor of theirs.
pub(crate) async fn tables(client: &Client, wanted: &[u32]) -> Result<BTreeMap<u32, Table>, Error> {
    let (descendants, ancestors) = families(client, wanted).await?;
    let mut all: BTreeSet<u32> = wanted.iter().copied().collect();
    all.extend(descendants.values().flatten().chain(ancestors.values().flatten()));
    let all: Vec<u32> = all.into_iter().collect();
    let mut columns = columns(client, &all).await?;
    let mut keys = keys(client, &all).await?;
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)",
            &[&all],
        )
        .await?;
    let tables = rows.iter().map(|row| {
        let oid: u32 = row.get(0);
        let identity = match (row.get::<_, &str>(5), keys.remove(&oid)) {
            ("f", _) => Identity::Full,
            ("n", _) | (_, None) => Identity::Missing,
            (_, Some(key)) => Identity::Columns(key),
        };
        let table = Table {
            schema: row.get(1),
            name: row.get(2),
            kind: kind(oid, row.get(3), row.get(4)),
            identity,
            columns: columns.remove(&oid).unwrap_or_default(),
            descendants: descendants.get(&oid).cloned().unwrap_or_default(),
            ancestors: ancestors.get(&oid).cloned().unwrap_or_default(),
        };
        (oid, table)
    });
    Ok(tables.collect())
}

fn kind(oid: u32, relkind: &str, persistence: &str) -> Kind {
    match (relkind, persistence) {
        _ if oid < FIRST_USER_OID => Kind::Other("a system catalogue"),
        (_, "u") => Kind::Other("an unlogged table"),
        (_, "t") => Kind::Other("a temporary table"),
        ("r", _) => Kind::Table,
        ("p", _) => Kind::Partitioned,
        ("f", _) => Kind::Other("a foreign table"),
        ("m", _) => Kind::Other("a materialized view"),
        ("S", _) => Kind::Other("a sequence"),
        _ => Kind::Other("no table"),
    }
}

type Family = BTreeMap<u32, BTreeSet<u32>>;

async fn families(client: &Client, wanted: &[u32]) -> Result<(Family, Family), Error> {
    let down = client
        .query(
            "WITH RECURSIVE tree (root, oid) AS (
               SELECT inhparent, inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY ($1)
               UNION SELECT t.root, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
             SELECT root, oid FROM tree",
            &[&wanted],
        )
        .await?;
    let up = client
        .query(
            "SELECT c.oid, a.relid::oid FROM pg_catalog.pg_class c, pg_catalog.pg_partition_ancestors(c.oid) a
             WHERE c.oid = ANY ($1) AND c.relispartition AND a.relid <> c.oid",
            &[&wanted],
        )
        .await?;
    let family = |rows: Vec<tokio_postgres::Row>| {
        let mut family = Family::new();
        for row in rows {
            family.entry(row.get(0)).or_default().insert(row.get(1));
        }
        family
    };
    Ok((family(down), family(up)))
}

async fn columns(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, BTreeMap<i16, Column>>, Error> {
    let rows = client
        .query(
            "SELECT attrelid, attnum, attname::text, pg_catalog.format_type(atttypid, atttypmod), attgenerated <> ''
             FROM pg_catalog.pg_attribute WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped",
            &[&oids],
        )
        .await?;
    let mut columns: BTreeMap<u32, BTreeMap<i16, Column>> = BTreeMap::new();
    for row in rows {
        let column = Column { name: row.get(2), type_name: row.get(3), generated: row.get(4) };
        columns.entry(row.get(0)).or_default().insert(row.get(1), column);
    }
    Ok(columns)
}

/// The columns of each table's replica identity index.
async fn keys(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, BTreeSet<String>>, Error> {
    let rows = client
        .query(
            "SELECT i.indrelid, a.attname::text FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
             WHERE i.indrelid = ANY ($1) AND i.indisvalid
               AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END",
            &[&oids],
        )
        .await?;
    let mut keys: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        keys.entry(row.get(0)).or_default().insert(row.get(1));
    }
    Ok(keys)
}

/// The functions that queries call, by name or through an operator.
pub(crate) async fn functions(client: &Client, functions: &[u32], operators: &[u32]) -> Result<BTreeMap<u32, Function>, Error> {
    let rows = client
        .query(
            "SELECT p.oid, n.nspname::text || '.' || p.proname::text,
                    -- i, s, v: the letters sort as the promises weaken, and an aggregate promises no more than its parts.
                    greatest(p.provolatile::text, (SELECT max(part.provolatile::text) FROM pg_catalog.pg_aggregate a
                       JOIN pg_catalog.pg_proc part ON part.oid IN (a.aggtransfn, a.aggfinalfn) WHERE a.aggfnoid = p.oid)),
                    p.oid >= $3 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                       WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'),
                    p.xmin::text
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
             WHERE p.oid = ANY ($1) OR p.oid IN (SELECT oprcode::oid FROM pg_catalog.pg_operator WHERE oid = ANY ($2))",
            &[&functions, &operators, &FIRST_USER_OID],
        )
        .await?;
    let functions = rows.iter().map(|row| {
        let function = Function { title: row.get(1), volatility: row.get(2), users: row.get(3), version: row.get(4) };
        (row.get(0), function)
    });
    Ok(functions.collect())
}

/// The function behind each operator.
pub(crate) async fn operators(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, u32>, Error> {
    let rows = client.query("SELECT oid, oprcode::oid FROM pg_catalog.pg_operator WHERE oid = ANY ($1)", &[&oids]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
