//! Which fields of a query's nodes are understood: all others must say nothing.
//!
//! A newer server may print a field that changes what a query means. Where it has its usual value, it changes nothing.

use crate::query::{
    deparse::only_known,
    tree::{Node, Tree},
};

/// What an unused field holds.
const NOTHING: [&str; 4] = ["<>", "0", "false", "-1"];

/// For each kind of node that is no plain expression: the fields that are read, or that say nothing about the result. What is refused
/// where it is used (row marks, merges, ON CONFLICT) is not among them.
const READ: [(&str, &[&str]); 18] = [
    // Whether it returns a set is asked where it is called.
    ("FUNCEXPR", &["funcid", "funcresulttype", "funcretset", "funcvariadic", "funcformat", "funccollid", "inputcollid", "args"]),
    ("FROMEXPR", &["fromlist", "quals"]),
    ("RANGETBLREF", &["rtindex"]),
    ("JOINEXPR", &["jointype", "isNatural", "larg", "rarg", "usingClause", "join_using_alias", "quals", "alias", "rtindex"]),
    ("TARGETENTRY", &["expr", "resno", "resname", "ressortgroupref", "resorigtbl", "resorigcol", "resjunk"]),
    ("VAR", &["varno", "varattno", "vartype", "vartypmod", "varcollid", "varlevelsup", "varnullingrels", "varnosyn", "varattnosyn"]),
    ("PARAM", &["paramkind", "paramid", "paramtype", "paramtypmod", "paramcollid"]),
    ("SUBLINK", &["subLinkType", "testexpr", "operName", "subselect"]),
    ("SQLVALUEFUNCTION", &["op", "type", "typmod"]),
    ("SORTGROUPCLAUSE", &["tleSortGroupRef", "eqop", "sortop", "reverse_sort", "nulls_first", "hashable"]),
    ("SETOPERATIONSTMT", &["op", "all", "larg", "rarg", "colTypes", "colTypmods", "colCollations", "groupClauses"]),
    ("RANGETBLFUNCTION", &["funcexpr", "funccolcount", "funcparams"]),
    (
        "WINDOWCLAUSE",
        &["name", "refname", "partitionClause", "orderClause", "frameOptions", "startOffset", "endOffset", "winref", "copiedOrder"],
    ),
    ("WINDOWFUNC", &["winfnoid", "wintype", "wincollid", "inputcollid", "args", "aggfilter", "winref"]),
    ("AGGREF", &AGGREGATE),
    ("COMMONTABLEEXPR", &WITH),
    ("RANGETBLENTRY", &ENTRY),
    ("QUERY", &QUERY),
];

const AGGREGATE: [&str; 17] = [
    "aggfnoid",
    "aggtype",
    "aggcollid",
    "inputcollid",
    "aggtranstype",
    "aggargtypes",
    "args",
    // Of the aggregates that are known none depends on an order.
    "aggorder",
    "aggdistinct",
    "aggfilter",
    "aggstar",
    "aggkind",
    "agglevelsup",
    "aggsplit",
    "aggno",
    "aggtransno",
    "aggpresorted",
];

const WITH: [&str; 12] = [
    "ctename",
    "aliascolnames",
    "ctematerialized",
    "ctequery",
    "search_clause",
    "cycle_clause",
    "cterecursive",
    "cterefcount",
    "ctecolnames",
    "ctecoltypes",
    "ctecoltypmods",
    "ctecolcollations",
];

const ENTRY: [&str; 36] = [
    "alias",
    "eref",
    "rtekind",
    "relid",
    "relkind",
    "rellockmode",
    "inh",
    "perminfoindex",
    "lateral",
    "inFromCl",
    "requiredPerms",
    "checkAsUser",
    "selectedCols",
    "insertedCols",
    "updatedCols",
    "extraUpdatedCols",
    "subquery",
    "security_barrier",
    "jointype",
    "joinmergedcols",
    "joinaliasvars",
    "joinleftcols",
    "joinrightcols",
    "join_using_alias",
    "functions",
    "funcordinality",
    "values_lists",
    "coltypes",
    "coltypmods",
    "colcollations",
    "ctename",
    "ctelevelsup",
    "self_reference",
    "groupexprs",
    "tablefunc",
    "tablesample",
];

const QUERY: [&str; 29] = [
    "commandType",
    "querySource",
    "canSetTag",
    "hasAggs",
    "hasWindowFuncs",
    "hasTargetSRFs",
    "hasSubLinks",
    // That a table has policies; those that apply to us are `securityQuals` of its entry, and refused.
    "hasRowSecurity",
    "hasDistinctOn",
    "hasRecursive",
    "hasGroupRTE",
    "cteList",
    "rtable",
    "rteperminfos",
    "jointree",
    "targetList",
    "groupClause",
    "groupingSets",
    "havingQual",
    "windowClause",
    "distinctClause",
    "sortClause",
    "limitOffset",
    "limitCount",
    "limitOption",
    "setOperations",
    "constraintDeps",
    "stmt_location",
    "stmt_len",
];

/// An error if any node has a field that is not known and says something.
pub(super) fn check(tree: &Tree<'_>) -> Result<(), String> {
    tree.nodes().try_for_each(check_node)
}

fn check_node(node: Node<'_, '_>) -> Result<(), String> {
    let Some((tag, read)) = READ.iter().find(|(tag, _)| *tag == node.tag()) else { return only_known(node) };
    let silent = |name: &str, value: Option<&str>| {
        read.contains(&name) || matches!(name, "location" | "varreturningtype") || value.is_some_and(|value| NOTHING.contains(&value))
    };
    // An empty set of numbers is `(b)`.
    let empty = |name: &str| node.words(name).is_some_and(|words| words.len() <= 1);
    match node.fields().find(|(name, value)| !silent(name, *value) && !empty(name)) {
        Some((name, _)) => Err(format!("it has a part that this version of factsync cannot read ({name} of {tag})")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<(), String> {
        check(&Tree::read(text).expect("a tree"))
    }

    #[test]
    fn an_unknown_field_matters_when_it_says_something() {
        assert_eq!(of("{QUERY :commandType 1 :news <> :more false :set (b)}"), Ok(()));
        assert!(of("{QUERY :commandType 1 :news 5}").expect_err("unknown").contains("news of QUERY"));
        assert!(of("{QUERY :commandType 1 :news {VAR :varno 1}}").is_err());
        assert!(of("{JOINEXPR :jointype 0 :larg {RANGETBLREF :rtindex 1 :upside true}}").expect_err("unknown").contains("upside"));
        assert!(of("{OPEXPR :opno 96 :negated true}").expect_err("unknown").contains("negated"));
    }
}
