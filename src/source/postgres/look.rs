//! A look at the catalogues, in parts: what has become of everything that the queries name, each thing by itself.
//!
//! Some DDL changes what a query returns without a row in our change log: attaching, detaching and dropping a partition, and TRUNCATE of a
//! single one; taking a table out of the publication, after which it is missing from the stream without a word; and a view, a
//! function, a label, a policy or a `search_path` can be another one from one moment to the next. A look has a text for each of these
//! things, which is another text when the thing is another one. None of it waits for a lock on a table.
//!
//! Two looks that differ do not say what follows from it: that takes an analysis, and an analysis does wait for tables that somebody has
//! locked. But they say whom it can concern: a view whose own things ([`Named`]) are what they were means what it meant. That argument is
//! no weaker for one view than for all of them, whose analyses are not repeated either when two looks are the same. What no view can be
//! without (the schemas, the settings, the role, the publication as a whole) concerns every view.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio_postgres::{Client, Error, Statement};

use crate::source::postgres::publication;

/// The catalogue rows of relations, functions and types in one text for each of them. `xmin` names the transaction that wrote a row.
/// Also the relations that have the same name as one of ours in another schema: they stand in its way, or do no longer.
const MARKS: &str = "WITH named AS (SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)),
    rows (kind, object, row) AS (
      SELECT 'r', n.oid, concat_ws('/', 'c', c.oid, c.relname, c.relnamespace, c.relkind, c.relpersistence, c.relreplident,
        c.relrowsecurity, c.relforcerowsecurity, c.relispartition, c.relhassubclass, c.relnatts, c.relowner)
      FROM named n JOIN pg_catalog.pg_class c ON c.relname = n.relname
      UNION ALL SELECT 'r', a.attrelid, concat_ws('/', 'a', a.attnum, a.xmin) FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = ANY ($1) AND a.attnum > 0
      UNION ALL SELECT 'r', d.adrelid, concat_ws('/', 'd', d.oid, d.xmin) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ANY ($1)
      UNION ALL SELECT 'r', i.indrelid, concat_ws('/', 'k', i.indexrelid, i.xmin) FROM pg_catalog.pg_index i WHERE i.indrelid = ANY ($1)
      UNION ALL SELECT 'r', i.inhparent, concat_ws('/', 'i', i.inhrelid, i.xmin) FROM pg_catalog.pg_inherits i WHERE i.inhparent = ANY ($1)
      UNION ALL SELECT 'r', r.ev_class, concat_ws('/', 'w', r.oid, r.xmin) FROM pg_catalog.pg_rewrite r WHERE r.ev_class = ANY ($1)
      UNION ALL SELECT 'r', p.polrelid, concat_ws('/', 'l', p.oid, p.xmin) FROM pg_catalog.pg_policy p WHERE p.polrelid = ANY ($1)
      UNION ALL SELECT 'f', p.oid, p.xmin::text FROM pg_catalog.pg_proc p WHERE p.oid = ANY ($2)
      UNION ALL SELECT 't', t.oid, concat_ws('/', 't', t.xmin) FROM pg_catalog.pg_type t WHERE t.oid = ANY ($3)
      UNION ALL SELECT 't', e.enumtypid, concat_ws('/', 'e', e.oid, e.xmin) FROM pg_catalog.pg_enum e WHERE e.enumtypid = ANY ($3)
      UNION ALL SELECT '', 0, concat_ws('/', 'n', n.oid, n.nspname) FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_'
      UNION ALL SELECT '', 0, concat_ws('/', 's', s.setdatabase, s.setrole, s.xmin) FROM pg_catalog.pg_db_role_setting s
      UNION ALL SELECT '', 0, concat_ws('/', 'u', u.oid, u.rolbypassrls, u.rolsuper) FROM pg_catalog.pg_roles u
        WHERE u.rolname = current_user)
    SELECT kind, object::oid, pg_catalog.md5(pg_catalog.string_agg(row, ' ' ORDER BY row)) FROM rows GROUP BY kind, object";

/// The partitions of tables with their files, one text for each table.
const SHAPES: &str = "WITH RECURSIVE tree (root, oid) AS (
      SELECT oid, oid FROM pg_catalog.pg_class WHERE oid = ANY ($1)
      UNION SELECT t.root, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
    SELECT t.root, pg_catalog.md5(pg_catalog.string_agg(c.oid || '/' || c.relfilenode, ' ' ORDER BY c.oid))
    FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid GROUP BY t.root";

/// One thing in the catalogues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    /// What every name and every value can depend on: the schemas, the settings of roles and databases, what our role may ignore.
    Surroundings,
    /// A table or a view: not what TRUNCATE and VACUUM change, which may be in every commit.
    Relation(u32),
    /// A function.
    Function(u32),
    /// A type, with its labels.
    Type(u32),
    /// A table's partitions: one is attached, detached, dropped or gets a new file.
    Shape(u32),
    /// The publication without its tables.
    Publication,
    /// What it has of a table.
    Published(u32),
}

/// What a query names, in whatever schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Tables with their families, and views.
    pub(crate) relations: BTreeSet<u32>,
    /// Functions.
    pub(crate) functions: BTreeSet<u32>,
    /// Types.
    pub(crate) types: BTreeSet<u32>,
}

impl Named {
    /// Whether another state of `thing` can make the query mean something else, or change which of its changes are told.
    fn feels(&self, thing: Thing) -> bool {
        match thing {
            Thing::Surroundings | Thing::Publication => true,
            Thing::Relation(oid) | Thing::Shape(oid) | Thing::Published(oid) => self.relations.contains(&oid),
            Thing::Function(oid) => self.functions.contains(&oid),
            Thing::Type(oid) => self.types.contains(&oid),
        }
    }
}

/// What the catalogues say, in texts that change when they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    things: BTreeMap<Thing, String>,
}

impl Look {
    /// The things of which two looks say something else, or only one of them anything.
    pub(crate) fn differences(&self, other: &Self) -> BTreeSet<Thing> {
        let only = |here: &Self, there: &Self| -> Vec<Thing> {
            here.things.iter().filter(|(thing, text)| there.things.get(thing) != Some(text)).map(|(thing, _)| *thing).collect()
        };
        only(self, other).into_iter().chain(only(other, self)).collect()
    }

    /// What it says of a table's partitions.
    pub(crate) fn shape(&self, table: u32) -> Option<&str> {
        self.things.get(&Thing::Shape(table)).map(String::as_str)
    }
}

/// The numbers of the views that feel one of `differences`.
pub(crate) fn concerned(views: &[Named], differences: &BTreeSet<Thing>) -> BTreeSet<usize> {
    let feels = |named: &Named| differences.iter().any(|thing| named.feels(*thing));
    views.iter().enumerate().filter(|(_, named)| feels(named)).map(|(view, _)| view).collect()
}

/// What to look at.
#[derive(Debug, Clone)]
pub(crate) struct LookedAt {
    /// Tables with partitions or children, and partitions that are used directly.
    pub(crate) watched: Vec<u32>,
    relations: Vec<u32>,
    functions: Vec<u32>,
    types: Vec<u32>,
    publication: Arc<str>,
    version: u32,
}

impl LookedAt {
    /// Everything that the `views` name, and what `publication` has of it.
    pub(crate) fn new(watched: Vec<u32>, views: &[Named], publication: &str, version: u32) -> Self {
        let all = |pick: fn(&Named) -> &BTreeSet<u32>| {
            let oids: BTreeSet<u32> = views.iter().flat_map(pick).copied().collect();
            oids.into_iter().collect()
        };
        Self {
            watched,
            relations: all(|named| &named.relations),
            functions: all(|named| &named.functions),
            types: all(|named| &named.types),
            publication: publication.into(),
            version,
        }
    }
}

/// Looks, in one session.
pub(crate) struct Looking {
    at: LookedAt,
    /// [`MARKS`], which takes longer to plan than to run.
    marks: Statement,
}

impl Looking {
    /// Prepares it for `client`.
    pub(crate) async fn at(client: &Client, at: LookedAt) -> Result<Self, Error> {
        Ok(Self { at, marks: client.prepare(MARKS).await? })
    }

    /// Looks by the same client.
    pub(crate) async fn look(&self, client: &Client) -> Result<Look, Error> {
        // Sent together, so that they take one round trip.
        let (marks, shapes, published) = futures_util::try_join!(
            self.marks(client),
            self.shapes(client),
            publication::identity(client, &self.at.publication, self.at.version)
        )?;
        Ok(Look { things: marks.into_iter().chain(shapes).chain(published).collect() })
    }

    async fn marks(&self, client: &Client) -> Result<Vec<(Thing, String)>, Error> {
        let rows = client.query(&self.marks, &[&self.at.relations, &self.at.functions, &self.at.types]).await?;
        let thing = |kind: &str, oid: u32| match kind {
            "r" => Thing::Relation(oid),
            "f" => Thing::Function(oid),
            "t" => Thing::Type(oid),
            // There is one other kind.
            _ => Thing::Surroundings,
        };
        Ok(rows.iter().map(|row| (thing(row.get(0), row.get(1)), row.get(2))).collect())
    }

    async fn shapes(&self, client: &Client) -> Result<Vec<(Thing, String)>, Error> {
        if self.at.watched.is_empty() {
            return Ok(Vec::new());
        }
        let rows = client.query(SHAPES, &[&self.at.watched]).await?;
        Ok(rows.iter().map(|row| (Thing::Shape(row.get(0)), row.get(1))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(things: &[(Thing, &str)]) -> Look {
        Look { things: things.iter().map(|(thing, text)| (*thing, (*text).to_owned())).collect() }
    }

    fn named(relations: &[u32], functions: &[u32], types: &[u32]) -> Named {
        let set = |oids: &[u32]| oids.iter().copied().collect();
        Named { relations: set(relations), functions: set(functions), types: set(types) }
    }

    #[test]
    fn what_is_new_gone_or_another_is_a_difference() {
        let before = look(&[(Thing::Relation(1), "a"), (Thing::Relation(2), "b"), (Thing::Function(1), "c")]);
        let after = look(&[(Thing::Relation(1), "a"), (Thing::Relation(2), "z"), (Thing::Published(1), "c")]);
        let differences = BTreeSet::from([Thing::Relation(2), Thing::Function(1), Thing::Published(1)]);
        assert_eq!(before.differences(&after), differences);
        assert_eq!(after.differences(&before), differences);
        assert!(before.differences(&before).is_empty());
    }

    #[test]
    fn a_difference_concerns_the_views_that_name_the_thing() {
        let views = [named(&[1, 2], &[7], &[]), named(&[3], &[], &[7]), named(&[], &[], &[])];
        for (thing, expected) in [
            (Thing::Relation(2), &[0][..]),
            (Thing::Shape(3), &[1]),
            (Thing::Published(1), &[0]),
            (Thing::Function(7), &[0]),
            (Thing::Type(7), &[1]),
            (Thing::Relation(7), &[]),
            (Thing::Surroundings, &[0, 1, 2]),
            (Thing::Publication, &[0, 1, 2]),
        ] {
            assert_eq!(concerned(&views, &BTreeSet::from([thing])), expected.iter().copied().collect(), "{thing:?}");
        }
    }
}
