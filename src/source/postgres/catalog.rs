//! What the server's catalogues say about the tables, types and functions of the queries, as [`crate::query`] wants it.
//!
//! Every name is written with its schema, because `search_path` is the user's.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error};

use crate::query::catalogue::{Collation, EqualImage, Operator};
pub(crate) use crate::query::catalogue::{Column, Function, ReplicaIdentity as Identity, Table, TableKind as Kind, Type, TypeKind};

/// The first OID that is not PostgreSQL's own (`FirstNormalObjectId` of `access/transam.h`).
pub(crate) const FIRST_USER_OID: u32 = 16_384;
/// `BTLessStrategyNumber` of `access/stratnum.h`.
const BTREE_LESS: i16 = 1;
/// `BTEqualStrategyNumber`.
const BTREE_EQUAL: i16 = 3;
/// `BTGreaterStrategyNumber`.
const BTREE_GREATER: i16 = 5;

/// The tables `wanted` and every descendant and ancestor of theirs.
pub(crate) async fn tables(client: &Client, wanted: &[u32]) -> Result<BTreeMap<u32, Table>, Error> {
    let (descendants, ancestors) = families(client, wanted).await?;
    let mut all: BTreeSet<u32> = wanted.iter().copied().collect();
    all.extend(descendants.values().flatten().chain(ancestors.values().flatten()));
    let all: Vec<u32> = all.into_iter().collect();
    let mut columns = columns(client, &all).await?;
    let mut keys = keys(client, &all).await?;
    let mut unique = unique(client, &all).await?;
    let rows = client
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)",
            &[&all],
        )
        .await?;
    let tables = rows.iter().map(|row| {
        let oid: u32 = row.get(0);
        let (key, included) = keys.remove(&oid).map_or((None, BTreeSet::new()), |(key, included)| (Some(key), included));
        let identity = match (row.get::<_, &str>(5), key) {
            ("f", _) => Identity::Full,
            ("n", _) | (_, None) => Identity::Missing,
            (_, Some(key)) => Identity::Columns(key),
        };
        let table = Table {
            schema: row.get(1),
            name: row.get(2),
            kind: kind(oid, row.get(3), row.get(4)),
            identity,
            included,
            columns: columns.remove(&oid).unwrap_or_default(),
            unique: unique.remove(&oid).unwrap_or_default(),
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
            "SELECT attrelid, attnum, attname::text, pg_catalog.format_type(atttypid, atttypmod), atttypid, atttypmod, attcollation,
                    attnotnull, attgenerated <> '', attstorage <> 'p'
             FROM pg_catalog.pg_attribute WHERE attrelid = ANY ($1) AND attnum > 0 AND NOT attisdropped",
            &[&oids],
        )
        .await?;
    let mut columns: BTreeMap<u32, BTreeMap<i16, Column>> = BTreeMap::new();
    for row in rows {
        let column = Column {
            name: row.get(2),
            type_name: row.get(3),
            type_oid: row.get(4),
            typmod: row.get(5),
            collation: row.get(6),
            not_null: row.get(7),
            generated: row.get(8),
            toast: row.get(9),
        };
        columns.entry(row.get(0)).or_default().insert(row.get(1), column);
    }
    Ok(columns)
}

/// What tells that the rows of a table were written anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace {
    /// For each column the transaction that changed its definition last.
    pub(crate) columns: BTreeMap<String, String>,
    /// For each generated column its expression's number: another expression is another object.
    pub(crate) generated: BTreeMap<String, u32>,
    /// The table's file.
    pub(crate) file: u32,
}

/// The traces of tables.
pub(crate) async fn traces(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Trace>, Error> {
    let rows = client
        .query(
            "SELECT c.oid, c.relfilenode, a.attname::text, a.xmin::text, d.oid FROM pg_catalog.pg_class c
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum AND a.attgenerated <> ''
             WHERE c.oid = ANY ($1)",
            &[&oids],
        )
        .await?;
    let mut traces: BTreeMap<u32, Trace> = BTreeMap::new();
    for row in rows {
        let trace = traces.entry(row.get(0)).or_default();
        trace.file = row.get(1);
        trace.columns.insert(row.get(2), row.get(3));
        if let Some(expression) = row.get(4) {
            trace.generated.insert(row.get(2), expression);
        }
    }
    Ok(traces)
}

/// The keys of each table that hold after every single row change.
async fn unique(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Vec<BTreeSet<i16>>>, Error> {
    let rows = client
        .query(
            // indkey lists the columns of the key first, then those that INCLUDE adds.
            "SELECT i.indrelid, array_agg(k.attnum ORDER BY k.attnum) FROM pg_catalog.pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
             LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL
               AND k.place <= i.indnkeyatts
             GROUP BY i.indrelid, i.indexrelid HAVING bool_and(k.attnum > 0 AND a.attnotnull AND NOT EXISTS (
               -- Since 18 a column may be NOT NULL for new rows only.
               SELECT FROM pg_catalog.pg_constraint n WHERE n.conrelid = i.indrelid AND n.contype = 'n' AND NOT n.convalidated
                 AND k.attnum = ANY (n.conkey))) ORDER BY i.indexrelid",
            &[&oids],
        )
        .await?;
    let mut unique: BTreeMap<u32, Vec<BTreeSet<i16>>> = BTreeMap::new();
    for row in rows {
        unique.entry(row.get(0)).or_default().push(row.get::<_, Vec<i16>>(1).into_iter().collect());
    }
    Ok(unique)
}

/// The columns of each table's replica identity index, and those that INCLUDE adds to it.
async fn keys(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, (BTreeSet<String>, BTreeSet<String>)>, Error> {
    let rows = client
        .query(
            "SELECT i.indrelid, a.attname::text, k.place <= i.indnkeyatts FROM pg_catalog.pg_index i
             JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
             CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = ANY ($1) AND i.indisvalid
               AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END",
            &[&oids],
        )
        .await?;
    let mut keys: BTreeMap<u32, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for row in rows {
        let (key, included) = keys.entry(row.get(0)).or_default();
        if row.get(2) { key } else { included }.insert(row.get(1));
    }
    Ok(keys)
}

/// Functions by number.
pub(crate) async fn functions(client: &Client, functions: &[u32]) -> Result<BTreeMap<u32, Function>, Error> {
    let rows = client
        .query(
            "SELECT p.oid, n.nspname::text || '.' || p.proname::text,
                    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(p.proname),
                    -- i, s, v: the letters sort as the promises weaken, and an aggregate promises no more than its parts.
                    greatest(p.provolatile::text, (SELECT max(part.provolatile::text) FROM pg_catalog.pg_aggregate a
                       JOIN pg_catalog.pg_proc part ON part.oid IN (a.aggtransfn, a.aggfinalfn) WHERE a.aggfnoid = p.oid)),
                    p.proisstrict, p.proretset,
                    p.oid >= $2 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                       WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'),
                    p.xmin::text
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = ANY ($1)",
            &[&functions, &FIRST_USER_OID],
        )
        .await?;
    let functions = rows.iter().map(|row| {
        let function = Function {
            title: row.get(1),
            sql: row.get(2),
            volatility: row.get(3),
            strict: row.get(4),
            returns_set: row.get(5),
            users: row.get(6),
            version: row.get(7),
        };
        (row.get(0), function)
    });
    Ok(functions.collect())
}

/// Operators by number.
pub(crate) async fn operators(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Operator>, Error> {
    let rows = client
        .query(
            "SELECT o.oid, pg_catalog.quote_ident(n.nspname), o.oprname::text, o.oprcode::oid, o.oprleft, o.oprright,
                    coalesce((SELECT array_agg(DISTINCT a.amopstrategy) FROM pg_catalog.pg_amop a
                       JOIN pg_catalog.pg_am m ON m.oid = a.amopmethod AND m.amname = 'btree'
                       WHERE a.amopopr = o.oid AND EXISTS (SELECT FROM pg_catalog.pg_opclass c
                         WHERE c.opcfamily = a.amopfamily AND c.opcdefault)), '{}')
             FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE o.oid = ANY ($1)",
            &[&oids],
        )
        .await?;
    let operators = rows.iter().map(|row| {
        let strategies: Vec<i16> = row.get(6);
        let operator = Operator {
            schema: row.get(1),
            name: row.get(2),
            function: row.get(3),
            left: row.get(4),
            right: row.get(5),
            equality: strategies.contains(&BTREE_EQUAL),
            less: strategies.contains(&BTREE_LESS),
            greater: strategies.contains(&BTREE_GREATER),
        };
        (row.get(0), operator)
    });
    Ok(operators.collect())
}

/// Types by number, with their bases and elements.
pub(crate) async fn types(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Type>, Error> {
    // With an empty search_path every name outside pg_catalog is spelled with its schema.
    client.batch_execute("BEGIN; SET LOCAL search_path = ''").await?;
    let rows = client
        .query(
            "WITH RECURSIVE wanted (oid) AS (
               SELECT t.oid FROM pg_catalog.pg_type t WHERE t.oid = ANY ($1)
               UNION SELECT part.oid FROM wanted w JOIN pg_catalog.pg_type t ON t.oid = w.oid
                 JOIN pg_catalog.pg_type part ON part.oid IN (t.typbasetype, t.typelem))
             SELECT t.oid, pg_catalog.format_type(t.oid, NULL), t.typtype::text, t.typcategory::text, t.typbasetype, t.typelem,
                    t.typlen, t.typbyval, t.typinput::oid, t.typoutput::oid, image.proname::text, coalesce(equal.amopopr, 0::oid),
                    coalesce((SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
                      WHERE e.enumtypid = t.oid), '{}'),
                    coalesce((SELECT array_agg(e.oid ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
                      WHERE e.enumtypid = t.oid), '{}')
             FROM wanted w JOIN pg_catalog.pg_type t ON t.oid = w.oid
             -- Enums and varchar have the operator class of another type.
             LEFT JOIN pg_catalog.pg_opclass c ON c.opcdefault
               AND c.opcmethod = (SELECT m.oid FROM pg_catalog.pg_am m WHERE m.amname = 'btree')
               AND c.opcintype = CASE WHEN t.typtype = 'e' THEN 'anyenum'::regtype WHEN t.oid = 'varchar'::regtype THEN 'text'::regtype
                                      ELSE t.oid END
             LEFT JOIN pg_catalog.pg_amop equal ON equal.amopfamily = c.opcfamily AND equal.amopstrategy = 3
               AND equal.amoplefttype = c.opcintype AND equal.amoprighttype = c.opcintype
             LEFT JOIN pg_catalog.pg_amproc support ON support.amprocfamily = c.opcfamily AND support.amprocnum = 4
               AND support.amproclefttype = c.opcintype AND support.amprocrighttype = c.opcintype
             LEFT JOIN pg_catalog.pg_proc image ON image.oid = support.amproc
               AND image.pronamespace = 'pg_catalog'::regnamespace",
            &[&oids],
        )
        .await?;
    client.batch_execute("COMMIT").await?;
    let mut bases = BTreeMap::new();
    let mut types: BTreeMap<u32, Type> = rows
        .iter()
        .map(|row| {
            let (oid, base): (u32, u32) = (row.get(0), row.get(4));
            bases.insert(oid, base);
            (oid, plain_type(oid, row))
        })
        .collect();
    resolve_domains(&mut types, &bases);
    Ok(types)
}

fn plain_type(oid: u32, row: &tokio_postgres::Row) -> Type {
    let (category, length): (&str, i16) = (row.get(3), row.get(6));
    let kind = match (row.get::<_, &str>(2), category) {
        ("e", _) => TypeKind::Enum,
        ("d", _) => TypeKind::Domain,
        // name, point and others have an element too, and are no arrays.
        ("b", "A") if length == -1 => TypeKind::Array,
        ("b", _) => TypeKind::Plain,
        _ => TypeKind::Other,
    };
    Type {
        sql: row.get(1),
        kind,
        category: category.chars().next().unwrap_or('U'),
        base: oid,
        element: if kind == TypeKind::Array { row.get(5) } else { 0 },
        length,
        by_value: row.get(7),
        equal_image: match row.get(10) {
            Some("btequalimage") => EqualImage::Always,
            Some("btvarstrequalimage") => EqualImage::Deterministic,
            Some(_) | None => EqualImage::Never,
        },
        equality: row.get(11),
        input: row.get(8),
        output: row.get(9),
        labels: row.get::<_, Vec<u32>>(13).into_iter().zip(row.get::<_, Vec<String>>(12)).collect(),
    }
}

/// Gives each domain what it has from its base: the operators, the output, the element.
fn resolve_domains(types: &mut BTreeMap<u32, Type>, bases: &BTreeMap<u32, u32>) {
    let domains: Vec<u32> = types.iter().filter(|(_, found)| found.kind == TypeKind::Domain).map(|(oid, _)| *oid).collect();
    for oid in domains {
        let mut base = oid;
        while let Some(&below) = bases.get(&base).filter(|&&below| below != 0) {
            base = below;
        }
        let Some(found) = types.get(&base).cloned() else { continue };
        if let Some(domain) = types.get_mut(&oid) {
            (domain.base, domain.element) = (base, found.element);
            (domain.equal_image, domain.equality) = (found.equal_image, found.equality);
        }
    }
}

/// Collations by number.
pub(crate) async fn collations(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, Collation>, Error> {
    let rows = client
        .query(
            // Providers and the columns that describe them differ from version to version, so they are read by name if they exist.
            "SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname), c.collisdeterministic,
                    CASE WHEN c.collprovider = 'd' THEN coalesce(d.def->>'datlocprovider', 'c') ELSE c.collprovider::text END,
                    CASE WHEN c.collprovider <> 'd' THEN coalesce(c.def->>'colllocale', c.def->>'colliculocale', c.collcollate::text)
                         WHEN d.def->>'datlocprovider' IN ('i', 'b') THEN coalesce(d.def->>'datlocale', d.def->>'daticulocale')
                         ELSE d.def->>'datcollate' END,
                    coalesce(pg_catalog.pg_collation_actual_version(c.oid), ''),
                    CASE WHEN c.collprovider = 'd' THEN d.def->>'datctype' ELSE c.collctype::text END
             FROM (SELECT c.*, pg_catalog.to_jsonb(c) AS def FROM pg_catalog.pg_collation c) c
             JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
             CROSS JOIN (SELECT pg_catalog.to_jsonb(d) AS def FROM pg_catalog.pg_database d
               WHERE d.datname = pg_catalog.current_database()) d
             WHERE c.oid = ANY ($1)",
            &[&oids],
        )
        .await?;
    let collations = rows.iter().map(|row| {
        let (provider, locale): (&str, Option<String>) = (row.get(3), row.get(4));
        let locale = locale.unwrap_or_default();
        let plain = |locale: Option<&str>| matches!(locale, Some("C" | "POSIX"));
        let c = match provider {
            "c" => plain(Some(&locale)) && plain(row.get(6)),
            "b" => plain(Some(&locale)),
            _ => false,
        };
        let collation = Collation {
            sql: row.get(1),
            deterministic: row.get(2),
            c,
            version: format!("{provider} {locale} {}", row.get::<_, &str>(5)),
            locale,
        };
        (row.get(0), collation)
    });
    Ok(collations.collect())
}
