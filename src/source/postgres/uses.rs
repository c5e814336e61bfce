//! What a query reads and calls, from its analysed and view-expanded tree.
//!
//! Relations are found by their range table entries, wherever they are nested: joins, views, CTEs, subqueries and sublinks
//! all have them, so a query form this file has never heard of cannot hide a table. What can change a result without a
//! change of a table is refused: each refusal names its reason and what to do instead.
//!
//! The columns of a relation come from its `selectedCols` bitmap, the one the server checks privileges against, so it is
//! complete by construction. It is in the range table entry up to PostgreSQL 15 and in an `RTEPERMISSIONINFO` from 16 on.

use std::collections::{BTreeMap, BTreeSet};

use crate::query::tree::{ItemId, Node, Tree};

/// `FirstLowInvalidHeapAttributeNumber`: bit n of a column bitmap stands for attribute n + this (`access/sysattr.h`).
const BITMAP_OFFSET: i32 = -7;
/// `CMD_SELECT` of `nodes/nodes.h`.
const CMD_SELECT: &str = "1";
/// `RTE_RELATION` of `nodes/parsenodes.h`; 1 to 9 are the kinds that hold no table of their own.
const RTE_RELATION: u32 = 0;
/// `RTE_NAMEDTUPLESTORE`, the transition tables of triggers.
const RTE_TUPLESTORE: u32 = 7;
/// `RTE_GROUP` of PostgreSQL 18, the newest kind.
const RTE_NEWEST: u32 = 9;
/// `SVFOP_LOCALTIMESTAMP_N` of `nodes/primnodes.h`; smaller ones ask the clock too.
const SQL_VALUE_NEWEST_CLOCK: u32 = 8;
/// `SVFOP_SESSION_USER`; from the clock up to here it is who asks.
const SQL_VALUE_LAST_USER: u32 = 12;

/// The columns of one relation that a query uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ColumnsUsed {
    /// Attribute numbers from 1.
    pub(crate) attributes: BTreeSet<i16>,
    /// The row as a whole.
    pub(crate) whole_row: bool,
    /// Whether inheritance children are read too.
    pub(crate) with_children: bool,
}

/// What a query depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Relations by OID; views are expanded and not listed.
    pub(crate) relations: BTreeMap<u32, ColumnsUsed>,
    /// The views that were expanded.
    pub(crate) views: BTreeSet<u32>,
    /// Those of them that whoever runs the query has to be allowed to read, and not only the owner of a view around them.
    pub(crate) shown: BTreeMap<u32, ColumnsUsed>,
    /// Functions by OID.
    pub(crate) functions: BTreeSet<u32>,
    /// Operators by OID, whose functions are called.
    pub(crate) operators: BTreeSet<u32>,
    /// Types by OID, and other numbers that are none.
    pub(crate) types: BTreeSet<u32>,
    /// Collations by OID.
    pub(crate) collations: BTreeSet<u32>,
    /// Whether it asks for the time by an SQL keyword.
    pub(crate) clock: bool,
    /// Why it cannot be kept up to date; empty if it can.
    pub(crate) refusals: BTreeSet<String>,
}

/// The number or the list of numbers, such as `(o 25 25)`, of a field.
fn numbers(node: Node<'_, '_>, name: &str) -> Vec<u32> {
    let words = node.words(name).unwrap_or_default();
    words.into_iter().chain(node.atom(name)).filter_map(|word| word.parse().ok()).filter(|&oid| oid != 0).collect()
}

impl Uses {
    /// Collects what `tree` depends on.
    pub(crate) fn of(tree: &Tree<'_>) -> Self {
        let mut uses = Self::default();
        // EXISTS asks only whether there is a row, so a LIMIT in it leaves no choice.
        let exists: BTreeSet<ItemId> = tree
            .nodes()
            .filter(|node| node.tag() == "SUBLINK" && node.atom("subLinkType") == Some("0"))
            .filter_map(|node| node.child("subselect"))
            .collect();
        for node in tree.nodes() {
            uses.node(node, &exists);
        }
        // Columns in a second pass: from 16 on they stand before or after the relation they belong to.
        for node in tree.nodes().filter(|node| matches!(node.tag(), "RANGETBLENTRY" | "RTEPERMISSIONINFO")) {
            uses.columns(node);
        }
        uses
    }

    fn refuse(&mut self, reason: &str) {
        self.refusals.insert(reason.to_owned());
    }

    fn node(&mut self, node: Node<'_, '_>, exists: &BTreeSet<ItemId>) {
        match node.tag() {
            "QUERY" => self.query(node, exists.contains(&node.id())),
            "RANGETBLENTRY" => self.relation(node),
            "TABLESAMPLECLAUSE" => self.refuse("TABLESAMPLE returns different rows each time. Remove it"),
            "ROWMARKCLAUSE" => self.refuse("FOR UPDATE and FOR SHARE lock the application's rows. Remove them"),
            "NEXTVALUEEXPR" => self.refuse("it draws from a sequence. Select stored values instead"),
            "CURRENTOFEXPR" => self.refuse("WHERE CURRENT OF needs a cursor. Select by key instead"),
            "PARAM" if node.atom("paramkind") == Some("0") => {
                self.refuse("it has a parameter such as $1. Write the value into the query");
            }
            "SQLVALUEFUNCTION" => self.sql_value(node),
            _ => {}
        }
        for name in node.names() {
            match name {
                "funcid" | "opfuncid" | "aggfnoid" | "winfnoid" => self.functions.extend(node.number(name).filter(|&oid| oid != 0)),
                "opno" | "eqop" | "sortop" => self.operators.extend(node.number(name).filter(|&oid| oid != 0)),
                "opnos" => {
                    let oids = node.words(name).unwrap_or_default();
                    self.operators.extend(oids.iter().filter_map(|word| word.parse::<u32>().ok()));
                }
                // More than types is better than fewer: what is none is not found.
                _ if name.contains("type") => self.types.extend(numbers(node, name)),
                _ if name.contains("coll") => self.collations.extend(numbers(node, name)),
                _ => {}
            }
        }
    }

    fn query(&mut self, node: Node<'_, '_>, in_exists: bool) {
        if node.atom("commandType") != Some(CMD_SELECT) {
            self.refuse("it is not a SELECT. A query may only read");
        }
        let ordered = node.has("sortClause");
        if !ordered && !in_exists && (node.has("limitCount") || node.has("limitOffset")) {
            self.refuse("LIMIT or OFFSET without ORDER BY returns arbitrary rows. Add an ORDER BY over a unique key");
        }
        if !ordered && node.atom("hasDistinctOn") == Some("true") {
            self.refuse("DISTINCT ON without ORDER BY returns arbitrary rows. Add an ORDER BY over a unique key");
        }
    }

    fn relation(&mut self, node: Node<'_, '_>) {
        if node.has("securityQuals") {
            self.refuse("row-level security filters it for this role, so the facts would depend on who reads. Use a role with BYPASSRLS");
        }
        // With the subquery it stands for, or in a placeholder's entry.
        self.views.extend(node.number("relid").filter(|&relid| relid != 0 && node.atom("relkind") == Some("v")));
        match node.number("rtekind") {
            // The rewriter leaves an expanded view's placeholders OLD and NEW in its range table (PostgreSQL 15 and older).
            Some(RTE_RELATION) if node.atom("relkind") == Some("v") => {}
            Some(RTE_RELATION) => match node.number("relid") {
                Some(relid) => {
                    self.relations.entry(relid).or_default().with_children |= node.atom("inh") == Some("true");
                }
                None => self.refuse("its tree has a table without a number, which this version cannot read. Please report it"),
            },
            Some(RTE_TUPLESTORE) => self.refuse("it reads a trigger's transition table. Read the table itself"),
            Some(kind) if kind <= RTE_NEWEST => {}
            Some(_) | None => self.refuse("it reads data in a way this version does not know. Please report the query"),
        }
    }

    fn columns(&mut self, node: Node<'_, '_>) {
        let Some(relid) = node.number("relid") else { return };
        // Up to 15 a view that was expanded is asked for in the entry of its placeholder OLD; NEW asks for nothing.
        let asked = node.number("requiredPerms").is_some_and(|asked| asked != 0) && node.number("checkAsUser") == Some(0);
        if asked && self.views.contains(&relid) {
            self.shown.entry(relid).or_default();
        }
        let Some(used) = self.relations.get_mut(&relid).or_else(|| self.shown.get_mut(&relid).filter(|_| asked)) else { return };
        let mut system = false;
        for bit in node.words("selectedCols").unwrap_or_default().iter().filter_map(|word| word.parse::<i32>().ok()) {
            match bit + BITMAP_OFFSET {
                0 => used.whole_row = true,
                attribute if attribute < 0 => system = true,
                attribute => used.attributes.extend(i16::try_from(attribute).ok()),
            }
        }
        if system {
            self.refuse("it uses a system column such as ctid or xmin, whose changes are not in the change log. Use a stored column");
        }
    }

    fn sql_value(&mut self, node: Node<'_, '_>) {
        match node.number("op") {
            Some(op) if op <= SQL_VALUE_NEWEST_CLOCK => self.clock = true,
            Some(op) if op > SQL_VALUE_LAST_USER => {}
            Some(_) | None => self.refuse("current_user and its kin depend on who reads. Write the name into the query"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(text: &str) -> Uses {
        Uses::of(&Tree::read(text).expect("a tree"))
    }

    #[test]
    fn relations_and_columns_are_found_in_both_layouts() {
        let old = uses(
            "{QUERY :commandType 1 :rtable ({RANGETBLENTRY :rtekind 0 :relid 7 :relkind v :selectedCols (b 8)} \
             {RANGETBLENTRY :rtekind 0 :relid 9 :relkind r :inh true :selectedCols (b 7 8 10)})}",
        );
        let new = uses(
            "{QUERY :commandType 1 :rtable ({RANGETBLENTRY :rtekind 1 :relid 7 :relkind v} {RANGETBLENTRY :rtekind 0 :relid 9 \
             :relkind r :inh true :perminfoindex 2}) :rteperminfos ({RTEPERMISSIONINFO :relid 7 :selectedCols (b 8)} \
             {RTEPERMISSIONINFO :relid 9 :selectedCols (b 7 8 10)})}",
        );
        let want = ColumnsUsed { attributes: BTreeSet::from([1, 3]), whole_row: true, with_children: true };
        assert_eq!(old.relations, BTreeMap::from([(9, want)]));
        assert_eq!(old, new);
    }

    #[test]
    fn views_that_the_reader_needs_are_told_from_those_within() {
        let old = uses(
            "{QUERY :commandType 1 :rtable (\
             {RANGETBLENTRY :rtekind 0 :relid 7 :relkind v :requiredPerms 2 :checkAsUser 0 :selectedCols (b 8)} \
             {RANGETBLENTRY :rtekind 0 :relid 7 :relkind v :requiredPerms 0 :checkAsUser 0 :selectedCols (b)} \
             {RANGETBLENTRY :rtekind 0 :relid 8 :relkind v :requiredPerms 2 :checkAsUser 10 :selectedCols (b 9)})}",
        );
        let new = uses(
            "{QUERY :commandType 1 :rtable ({RANGETBLENTRY :rtekind 1 :relid 7 :relkind v} {RANGETBLENTRY :rtekind 1 :relid 8 :relkind v}) \
             :rteperminfos ({RTEPERMISSIONINFO :relid 7 :requiredPerms 2 :checkAsUser 0 :selectedCols (b 8)} \
             {RTEPERMISSIONINFO :relid 8 :requiredPerms 2 :checkAsUser 10 :selectedCols (b 9)})}",
        );
        let want = ColumnsUsed { attributes: BTreeSet::from([1]), ..ColumnsUsed::default() };
        assert_eq!(old.shown, BTreeMap::from([(7, want)]));
        assert_eq!(old, new);
    }

    #[test]
    fn a_way_of_reading_that_is_unknown_is_refused() {
        assert_eq!(uses("{RANGETBLENTRY :rtekind 10}").refusals.len(), 1);
        assert_eq!(uses("{RANGETBLENTRY}").refusals.len(), 1);
        assert_eq!(uses("{RANGETBLENTRY :rtekind 0 :relkind r}").refusals.len(), 1);
        assert_eq!(uses("{QUERY :commandType 1 :cteList ({COMMONTABLEEXPR :ctequery {QUERY :commandType 4}})}").refusals.len(), 1);
    }

    #[test]
    fn a_limit_matters_only_where_it_chooses() {
        let limited = "{QUERY :commandType 1 :sortClause <> :limitCount {CONST}}";
        assert_eq!(uses(limited).refusals.len(), 1);
        assert_eq!(uses(&format!("{{SUBLINK :subLinkType 0 :subselect {limited}}}")).refusals.len(), 0);
        assert_eq!(uses(&format!("{{SUBLINK :subLinkType 4 :subselect {limited}}}")).refusals.len(), 1);
        assert_eq!(uses("{QUERY :commandType 1 :sortClause ({SORTGROUPCLAUSE :eqop 96}) :limitCount {CONST}}").refusals.len(), 0);
    }
}
