//! Trees as PostgreSQL prints them, and the SQL they are.

use super::*;
use crate::query::{
    catalogue::{Collation, EqualImage, Operator, Type},
    tree::Tree,
};

const A: &str = "{VAR :varno 1 :varattno 1 :vartype 23 :vartypmod -1 :varcollid 0 :varlevelsup 0 :location 3}";
const B: &str = "{VAR :varno 1 :varattno 2 :vartype 25 :vartypmod -1 :varcollid 100 :varlevelsup 0 :location 3}";
/// `B` of a column whose collation is "C".
const C: &str = "{VAR :varno 1 :varattno 3 :vartype 25 :vartypmod -1 :varcollid 950 :varlevelsup 0 :location 3}";
const X: &str = "{CONST :consttype 25 :consttypmod -1 :constcollid 100 :constlen -1 :constbyval false :constisnull false :location 1 \
                 :constvalue 6 [ 24 0 0 0 36 39 ]}";

fn catalogue() -> Catalogue {
    let type_of = |sql: &str, kind, base, element| Type {
        sql: sql.to_owned(),
        kind,
        category: 'U',
        base,
        element,
        length: -1,
        by_value: false,
        equal_image: EqualImage::Never,
        equality: 0,
        input: 1,
        output: 2,
        labels: vec![(16_390, "it's".to_owned()), (16_392, "b".to_owned())],
    };
    let function = |sql: &str, volatility: &str, users| Function {
        title: sql.to_owned(),
        sql: sql.to_owned(),
        volatility: volatility.to_owned(),
        strict: true,
        returns_set: false,
        users,
        version: String::new(),
    };
    let operator = |name: &str, function| Operator {
        schema: "pg_catalog".to_owned(),
        name: name.to_owned(),
        function,
        left: 25,
        right: 25,
        equality: false,
        less: false,
        greater: false,
    };
    let collation = Collation { sql: "pg_catalog.\"C\"".into(), locale: "C".into(), deterministic: true, c: true, version: String::new() };
    Catalogue {
        types: [
            (16, type_of("boolean", TypeKind::Plain, 16, 0)),
            (23, type_of("integer", TypeKind::Plain, 23, 0)),
            (25, type_of("text", TypeKind::Plain, 25, 0)),
            (1042, type_of("character", TypeKind::Plain, 1042, 0)),
            (16_388, type_of("app.status[]", TypeKind::Array, 16_388, 16_389)),
            (16_389, type_of("app.status", TypeKind::Enum, 16_389, 0)),
            (16_400, type_of("app.email", TypeKind::Domain, 25, 0)),
        ]
        .into(),
        collations: [(950, collation)].into(),
        functions: [
            (1, function("pg_catalog.textin", "i", false)),
            (2, function("pg_catalog.textout", "i", false)),
            (67, function("pg_catalog.texteq", "i", false)),
            (1254, function("pg_catalog.textregexeq", "i", false)),
            (2003, function("pg_catalog.textanycat", "s", false)),
            (870, function("pg_catalog.lower", "i", false)),
            (1770, function("pg_catalog.to_char", "s", false)),
            (1598, function("pg_catalog.random", "v", false)),
            (17_000, function("public.looked_up", "i", true)),
        ]
        .into(),
        operators: [(98, operator("=", 67)), (641, operator("~", 1254)), (2779, operator("||", 2003))].into(),
        ..Catalogue::default()
    }
}

fn written(tree: &str) -> Result<RemoteExpr, String> {
    let tree = Tree::read(tree).expect("a tree");
    let column = |node: Node<'_, '_>| (node.tag() == "VAR").then(|| node.number("varattno")).flatten()?.try_into().ok();
    deparse(tree.root().expect("a node"), &catalogue(), &mut { column })
}

fn sql(tree: &str) -> String {
    written(tree).unwrap_or_else(|reason| panic!("{reason}: {tree}")).sql
}

fn operator(tag: &str, opno: u32, collation: u32, args: &str) -> String {
    format!(
        "{{{tag} :opno {opno} :opfuncid 0 :opresulttype 16 :opretset false :opcollid 0 :inputcollid {collation} \
         :args ({args}) :location 9}}"
    )
}

fn function(oid: u32, collation: u32, args: &str) -> String {
    format!(
        "{{FUNCEXPR :funcid {oid} :funcresulttype 25 :funcretset false :funcvariadic false :funcformat 0 :funccollid {collation} \
         :inputcollid {collation} :args ({args}) :location 9}}"
    )
}

#[test]
fn parameters_are_places_of_the_row_once_each() {
    let found = written(&operator("OPEXPR", 641, 100, &format!("{B} {}", function(870, 100, B)))).expect("it is understood");
    assert_eq!(found.sql, "($1 OPERATOR(pg_catalog.~) pg_catalog.lower($1))");
    assert_eq!((found.args, found.types), (vec![2], vec!["text".to_owned()]));
}

#[test]
fn literals_are_the_same_under_every_setting_and_hold_no_parameter() {
    assert_eq!(sql(X), r"(E'\x24'''::text)");
    assert_eq!(sql(&operator("OPEXPR", 98, 100, &format!("{B} {X}"))), r"($1 OPERATOR(pg_catalog.=) (E'\x24'''::text))");
    let label = "{CONST :consttype 16389 :consttypmod -1 :constcollid 0 :constlen 4 :constbyval true :constisnull false \
                 :constvalue 4 [ 6 64 0 0 0 0 0 0 ]}";
    assert_eq!(sql(label), "('it''s'::app.status)");
    assert_eq!(sql(&label.replace("16389", "1042").replace("isnull false", "isnull true")), "(NULL::pg_catalog.bpchar)");
    let unknown =
        "{CONST :consttype 600 :consttypmod -1 :constcollid 0 :constlen 16 :constbyval false :constisnull false :constvalue 1 [ 1 ]}";
    assert!(written(unknown).is_err(), "a point");
}

#[test]
fn an_operator_found_by_name_is_written_out() {
    let args = format!("{B} {C}");
    let equal = "OPERATOR(pg_catalog.=)";
    let same = operator("DISTINCTEXPR", 98, 100, &args);
    let expected = format!("(CASE WHEN $1 IS NULL THEN $2 IS NOT NULL WHEN $2 IS NULL THEN true ELSE NOT ($1 {equal} $2) END)");
    assert_eq!(sql(&same), expected);
    assert_eq!(sql(&operator("NULLIFEXPR", 98, 100, &args)), format!("(CASE WHEN ($1 {equal} $2) THEN NULL ELSE $1 END)"));
    let test = "{CASETESTEXPR :typeId 25 :typeMod -1 :collation 100}";
    let when = operator("OPEXPR", 98, 100, &format!("{test} {X}"));
    let case =
        format!("{{CASEEXPR :casetype 23 :casecollid 0 :arg {B} :args ({{CASEWHEN :expr {when} :result {A} :location 2}}) :defresult <>}}");
    assert_eq!(sql(&case), format!(r"(CASE WHEN ($1 {equal} (E'\x24'''::text)) THEN $2 END)"));
}

#[test]
fn a_collation_of_the_tree_is_written_unless_it_is_the_default() {
    assert_eq!(sql(&function(870, 950, C)), "pg_catalog.lower(($1 COLLATE pg_catalog.\"C\"))");
    assert_eq!(sql(&function(870, 100, B)), "pg_catalog.lower($1)");
    let collate = format!("{{COLLATEEXPR :arg {B} :collOid 950 :location 3}}");
    assert_eq!(sql(&operator("OPEXPR", 98, 950, &format!("{collate} {X}"))), {
        r#"(($1 COLLATE pg_catalog."C") OPERATOR(pg_catalog.=) ((E'\x24'''::text) COLLATE pg_catalog."C"))"#
    });
    let inner = [function(870, 950, C), format!("{{COLLATEEXPR :arg {B} :collOid 100 :location 3}}")].join(" ");
    assert!(written(&operator("OPEXPR", 98, 0, &inner)).is_err(), "SQL has no way to write it");
}

#[test]
fn casts_name_their_types() {
    let cast = |tag: &str, to: u32, arg: &str| format!("{{{tag} :arg {arg} :resulttype {to} :resultcollid 0 :coerceformat 1 :location 2}}");
    assert_eq!(sql(&cast("COERCEVIAIO", 1042, A)), "($1::pg_catalog.bpchar)");
    assert_eq!(sql(&cast("COERCEVIAIO", 23, B)), "($1::integer)");
    assert!(written(&cast("COERCEVIAIO", 16_400, A)).is_err(), "a domain has constraints");
    let domain = B.replace("vartype 25", "vartype 16400");
    assert_eq!(sql(&cast("RELABELTYPE", 25, &domain)), "($1::text)");
    assert_eq!(written(&cast("RELABELTYPE", 25, &domain)).expect("it is understood").types, ["text"]);
    assert!(written(&function(870, 100, &domain)).is_err(), "lower(text) is not what a function of a domain would be");
}

#[test]
fn only_what_depends_on_its_arguments_is_written() {
    for (oid, reason) in
        [(1770, "while no row does"), (1598, "while no row does"), (17_000, "may read tables"), (5, "not in the catalogue")]
    {
        let refused = written(&function(oid, 100, B)).expect_err("it is refused");
        assert!(refused.contains(reason), "{oid}: {refused}");
    }
    assert!(written(&operator("OPEXPR", 2779, 100, &format!("{B} {A}"))).is_ok(), "stable for its output functions only");
}

#[test]
fn what_is_not_known_is_refused() {
    for tree in [
        "{XMLEXPR :op 0}",
        "{ROWEXPR :args <>}",
        "{SQLVALUEFUNCTION :op 3 :type 1184}",
        "{CASETESTEXPR :typeId 23 :typeMod -1 :collation 0}",
        "{PARAM :paramkind 0 :paramid 1 :paramtype 23}",
    ] {
        assert!(written(tree).is_err(), "{tree}");
    }
    let call = function(870, 100, B);
    assert!(written(&call.replace(":location 9", ":news true")).expect_err("a field of a later version").contains("news"));
    assert!(written(&call.replace(":location 9", ":news false")).is_ok(), "which says nothing");
    assert!(written(&call.replace("funcretset false", "funcretset true")).is_err(), "a set");
    let deep = (0..MAX_DEPTH + 1).fold(B.to_owned(), |inner, _| function(870, 100, &inner));
    assert!(written(&deep).expect_err("it is refused").contains("deep"));
}
