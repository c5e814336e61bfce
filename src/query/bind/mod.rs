//! From the tree of an analysed query to a plan that can be kept up to date, or the reason why not.
//!
//! ```text
//! QUERY ── from: FROM, WHERE ── subquery: EXISTS, IN, (SELECT …) ── group: GROUP BY, DISTINCT, row_number ── set: UNION, WITH
//!                  └ scalar: expressions, clock: now()                            prune: only used columns, and tables' own
//! ```
//!
//! Nothing is guessed: a node of a kind that is not named here, or a field whose value would mean something else, is a reason. A
//! reason ends up before a user as "… because *reason*", so it says what of the query it is about.
//!
//! A [`Plan::Scan`] is first bound to all columns of its table; [`prune`] then finds which of them are used, and those and the replica
//! identity's become the [`Table`]'s.

mod clock;
mod equality;
mod fields;
mod from;
mod group;
mod keys;
mod prune;
mod relation;
mod scalar;
mod set;
mod subquery;

use std::collections::BTreeMap;

use crate::query::{
    Expr, Identity, KeyClass, Kind, Plan, Table, ViewPlan,
    catalogue::{Catalogue, ReplicaIdentity, TableKind},
    scalar::bool_to_text,
    tree::{ItemId, Node, Tree},
};
use group::Grouped;
use relation::{Level, Typed};

/// `RTEKind` of `nodes/parsenodes.h`.
const RTE_RELATION: u32 = 0;
const RTE_SUBQUERY: u32 = 1;
const RTE_JOIN: u32 = 2;
const RTE_FUNCTION: u32 = 3;
const RTE_VALUES: u32 = 5;
const RTE_CTE: u32 = 6;
const RTE_RESULT: u32 = 8;
const RTE_GROUP: u32 = 9;
/// `SubLinkType` of `nodes/primnodes.h`.
const EXISTS_SUBLINK: u32 = 0;
const EXPR_SUBLINK: u32 = 4;

/// What to say of window functions.
const WINDOW: &str = "it uses a window function other than row_number() in a subquery whose result is compared with a constant, as in \
                      WHERE row_number = 1";

/// Binding recurses; this is two hundred operators in each other, or sixty subqueries, and a fraction of a thread's stack.
const MAX_DEPTH: usize = 400;

/// Raised whenever the same query may be bound to another plan, or the same plan laid out otherwise, so that stored state is not what
/// the new one expects.
pub(crate) const PLAN_VERSION: u32 = 2;

/// Binds the tree of a whole query.
pub(crate) fn bind(tree: &Tree<'_>, catalogue: &Catalogue) -> Result<ViewPlan, String> {
    if !catalogue.utf8 {
        return Err("the database's encoding is not UTF-8, so texts compare otherwise than here".to_owned());
    }
    if tree.depth() > MAX_DEPTH {
        return Err("it is nested too deeply".to_owned());
    }
    fields::check(tree)?;
    let query = tree.root().filter(|node| node.tag() == "QUERY").ok_or_else(|| unreadable("the query"))?;
    let mut binder = Binder { catalogue, only_rows_matter: true, unusable: None, groups: BTreeMap::new() };
    let bound = binder.query(&Level { query, parent: None })?;
    let plan = as_facts(bound, catalogue);
    let tables = tables(&plan, catalogue)?;
    let plan = prune::to_tables(plan, catalogue, &tables);
    Ok(ViewPlan { plan, tables })
}

/// What is carried along while a query is bound.
struct Binder<'c> {
    catalogue: &'c Catalogue,
    /// Whether how often a row occurs makes no difference to anything above.
    only_rows_matter: bool,
    /// An equality that could not be used as one, to explain what is then missing.
    unusable: Option<String>,
    /// What the grouped queries' expressions have become.
    groups: BTreeMap<ItemId, Grouped>,
}

/// A query's result.
struct Bound {
    plan: Plan,
    width: usize,
    types: Vec<Typed>,
}

/// A node this version does not know.
fn unknown(node: Node<'_, '_>) -> String {
    format!("it has a part that this version of factsync cannot read ({})", node.tag())
}

/// Something that is not where it has to be.
fn unreadable(what: &str) -> String {
    format!("the server describes {what} in a way this version of factsync cannot read")
}

/// The result's cells as facts have them.
fn as_facts(bound: Bound, catalogue: &Catalogue) -> Plan {
    let column = |(index, of): (usize, &Typed)| match relation::kind_of(catalogue, of.oid) {
        Kind::Bool => Expr::Call { function: bool_to_text(), args: vec![Expr::Column { index, kind: Kind::Bool }] },
        Kind::Int | Kind::Text => Expr::Column { index, kind: Kind::Text },
    };
    let columns = bound.types.iter().enumerate().map(column).collect();
    Plan::Map { input: Box::new(bound.plan), columns }
}

impl Binder<'_> {
    /// Whether a table can be read change by change at all.
    fn check_table(&self, oid: u32, with_children: bool) -> Result<(), String> {
        let table = self.catalogue.tables.get(&oid).ok_or_else(|| unreadable("a table"))?;
        match table.kind {
            TableKind::Table if with_children && !table.descendants.is_empty() => {
                Err(format!("table {} has inheritance children. Write FROM ONLY, and UNION ALL for the children", table.title()))
            }
            TableKind::Table | TableKind::Partitioned => identity(oid, self.catalogue).map(|_| ()),
            TableKind::Other(what) => Err(format!("{} is {what}", table.title())),
        }
    }

    /// Refuses types by whose values rows cannot be told apart here.
    fn check_keys<'t>(&self, types: impl IntoIterator<Item = &'t Typed>, what: &str) -> Result<(), String> {
        for of in types {
            if self.distinct_class(*of) != KeyClass::Exact {
                let name = self.catalogue.type_sql(of.oid);
                let collation = self.catalogue.collations.get(&of.collation).filter(|collation| !collation.deterministic);
                let under = collation.map(|collation| format!(" under collation {}", collation.sql)).unwrap_or_default();
                return Err(format!(
                    "{what} over a column of type {name}{under}, of which values that are spelled differently may be equal. Cast it to text"
                ));
            }
        }
        Ok(())
    }

    /// Whether equal texts are equal values in one column.
    fn distinct_class(&self, of: Typed) -> KeyClass {
        use crate::query::scalar::oids::{BPCHAR, NUMERIC};
        match (self.catalogue.key_class(of.oid, of.collation), self.catalogue.base(of.oid)) {
            // With a scale or a length there is one spelling.
            (KeyClass::Canonical, NUMERIC | BPCHAR) if of.typmod >= 0 && self.catalogue.base(of.oid) == of.oid => KeyClass::Exact,
            (class, _) => class,
        }
    }
}

/// The tables of a plan with the columns it uses.
fn tables(plan: &Plan, catalogue: &Catalogue) -> Result<BTreeMap<u32, Table>, String> {
    let mut tables = BTreeMap::new();
    for (oid, used) in prune::used(plan, catalogue) {
        let table = catalogue.tables.get(&oid).ok_or_else(|| unreadable("a table"))?;
        let identity = identity(oid, catalogue)?;
        let mut columns = used;
        if let Some(key) = identity.key() {
            columns.extend(key.iter().copied());
        }
        let mut toast = false;
        for column in columns.iter().filter_map(|number| table.columns.get(number)) {
            if column.generated {
                return Err(format!(
                    "column {} of table {} is generated, and generated columns are not in the change log. Write out how it is computed",
                    column.name,
                    table.title()
                ));
            }
            toast |= column.toast;
        }
        tables.insert(oid, Table { title: table.title(), columns: columns.into_iter().collect(), identity, toast });
    }
    Ok(tables)
}

/// What tells a table's rows apart in the change log; of a partitioned table, in that of every partition.
fn identity(oid: u32, catalogue: &Catalogue) -> Result<Identity, String> {
    let table = catalogue.tables.get(&oid).ok_or_else(|| unreadable("a table"))?;
    if table.kind == TableKind::Partitioned {
        let mut partitions = table.descendants.iter().filter_map(|oid| catalogue.tables.get(oid));
        if let Some(partition) = partitions.find(|partition| partition.identity != table.identity) {
            return Err(format!("partition {} has another replica identity than {}. Give both the same", partition.title(), table.title()));
        }
    }
    match &table.identity {
        ReplicaIdentity::Full => Ok(Identity::Full),
        ReplicaIdentity::Columns(names) => {
            let key = table.columns.iter().filter(|(_, column)| names.contains(&column.name)).map(|(number, _)| *number);
            Ok(Identity::Key(key.collect()))
        }
        ReplicaIdentity::Missing => Err(format!("{} has no primary key and no replica identity", table.title())),
    }
}
