//! What the fields of an expression's node say: which of them there are, its type, its collation.

use crate::query::{scalar::oids, tree::Node};

/// Where something stood in the text, and how it was written there.
const PLACES: [&str; 9] =
    ["location", "list_start", "list_end", "relabelformat", "coerceformat", "funcformat", "varnosyn", "varattnosyn", "varreturningtype"];

/// Values of a field that is not used.
const NOTHING: [&str; 4] = ["<>", "0", "false", "-1"];

/// For each node that is written as SQL: the fields that are read, or that say nothing about its value.
const READ: [(&str, &[&str]); 19] = [
    ("CONST", &["consttype", "consttypmod", "constcollid", "constlen", "constbyval", "constisnull", "constvalue"]),
    ("OPEXPR", &["opno", "opfuncid", "opresulttype", "opcollid", "inputcollid", "args"]),
    ("NULLIFEXPR", &["opno", "opfuncid", "opresulttype", "opcollid", "inputcollid", "args"]),
    ("DISTINCTEXPR", &["opno", "opfuncid", "opresulttype", "opcollid", "inputcollid", "args"]),
    ("FUNCEXPR", &["funcid", "funcresulttype", "funcvariadic", "funccollid", "inputcollid", "args"]),
    ("BOOLEXPR", &["boolop", "args"]),
    ("NULLTEST", &["arg", "nulltesttype", "argisrow"]),
    ("BOOLEANTEST", &["arg", "booltesttype"]),
    ("RELABELTYPE", &["arg", "resulttype", "resulttypmod", "resultcollid"]),
    ("COERCEVIAIO", &["arg", "resulttype", "resultcollid"]),
    ("ARRAYCOERCEEXPR", &["arg", "elemexpr", "resulttype", "resulttypmod", "resultcollid"]),
    ("COLLATEEXPR", &["arg", "collOid"]),
    ("CASEEXPR", &["casetype", "casecollid", "arg", "args", "defresult"]),
    ("CASEWHEN", &["expr", "result"]),
    ("CASETESTEXPR", &["typeId", "typeMod", "collation"]),
    ("COALESCEEXPR", &["coalescetype", "coalescecollid", "args"]),
    ("MINMAXEXPR", &["minmaxtype", "minmaxcollid", "inputcollid", "op", "args"]),
    ("SCALARARRAYOPEXPR", &["opno", "opfuncid", "useOr", "inputcollid", "args"]),
    ("ARRAYEXPR", &["array_typeid", "array_collid", "element_typeid", "elements", "multidims"]),
];

/// Fields of a subscript; the slice and the assignment are refused by whoever writes it.
const SUBSCRIPT: [&str; 9] = [
    "refcontainertype",
    "refelemtype",
    "refrestype",
    "reftypmod",
    "refcollid",
    "refupperindexpr",
    "reflowerindexpr",
    "refexpr",
    "refassgnexpr",
];

/// An error if a node that is about to be written has a field that is not known and says something.
pub(in crate::query) fn only_known(node: Node<'_, '_>) -> Result<(), String> {
    let read: &[&str] = match READ.iter().find(|(tag, _)| *tag == node.tag()) {
        Some((_, read)) => read,
        None if node.tag() == "SUBSCRIPTINGREF" => &SUBSCRIPT,
        // The caller knows it under another name, or refuses it.
        None => return Ok(()),
    };
    let unknown = node
        .fields()
        .find(|(name, value)| !read.contains(name) && !PLACES.contains(name) && !value.is_some_and(|value| NOTHING.contains(&value)));
    match unknown {
        Some((name, _)) => Err(format!("it has an expression whose field {name} is not understood ({})", node.tag())),
        None => Ok(()),
    }
}

/// The type of an expression's value.
pub(super) fn type_of(node: Node<'_, '_>) -> Option<u32> {
    let field = match node.tag() {
        "VAR" => "vartype",
        "CONST" => "consttype",
        "PARAM" => "paramtype",
        "OPEXPR" | "NULLIFEXPR" => "opresulttype",
        "FUNCEXPR" => "funcresulttype",
        "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" | "COERCETODOMAIN" => "resulttype",
        "COLLATEEXPR" => return type_of(node.node("arg")?),
        "CASEEXPR" => "casetype",
        "CASETESTEXPR" => "typeId",
        "COALESCEEXPR" => "coalescetype",
        "MINMAXEXPR" => "minmaxtype",
        "ARRAYEXPR" => "array_typeid",
        "SUBSCRIPTINGREF" => "refrestype",
        "AGGREF" => "aggtype",
        "SUBLINK" => return subquery_type(node),
        "BOOLEXPR" | "NULLTEST" | "BOOLEANTEST" | "DISTINCTEXPR" | "SCALARARRAYOPEXPR" => return Some(oids::BOOL),
        _ => return None,
    };
    node.number(field)
}

/// A scalar subquery (`EXPR_SUBLINK`) has the type of its column, EXISTS and ANY are conditions.
fn subquery_type(node: Node<'_, '_>) -> Option<u32> {
    const EXISTS: u32 = 0;
    const ANY: u32 = 2;
    const EXPR: u32 = 4;
    match node.number("subLinkType")? {
        EXISTS | ANY => Some(oids::BOOL),
        EXPR => type_of(node.node("subselect")?.nodes("targetList")?.first()?.node("expr")?),
        _ => None,
    }
}

/// The collation of an expression's value; 0 for a type without.
pub(super) fn collation_of(node: Node<'_, '_>) -> u32 {
    let field = match node.tag() {
        "VAR" => "varcollid",
        "CONST" => "constcollid",
        "PARAM" => "paramcollid",
        "OPEXPR" | "NULLIFEXPR" => "opcollid",
        "FUNCEXPR" => "funccollid",
        "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" | "COERCETODOMAIN" => "resultcollid",
        "COLLATEEXPR" => "collOid",
        "CASEEXPR" => "casecollid",
        "CASETESTEXPR" => "collation",
        "COALESCEEXPR" => "coalescecollid",
        "MINMAXEXPR" => "minmaxcollid",
        "ARRAYEXPR" => "array_collid",
        "SUBSCRIPTINGREF" => "refcollid",
        "AGGREF" => "aggcollid",
        _ => return 0,
    };
    node.number(field).unwrap_or(0)
}
