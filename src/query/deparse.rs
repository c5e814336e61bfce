//! SQL of a scalar expression of the node tree, for the source to compute over values it is sent.
//!
//! The text must mean the same functions, types and collations as the tree, in any session: every name is written with its schema,
//! every constant and parameter with its type, so that each function and operator finds an exact match of its argument types and no
//! search path matters. What is short for an operator found by name (`IS DISTINCT FROM`, `NULLIF`, CASE with an operand) is written out
//! with the operator of the tree. A collation the tree gives to a function is written on its arguments unless it is the default one.
//!
//! Only what depends on its arguments alone is written: immutable functions of PostgreSQL and its extensions, and stable ones reviewed for
//! depending on nothing but pinned settings. An unknown node, or a known one with a field that is not, is a reason to refuse.

mod fields;

pub(in crate::query) use fields::only_known;

use crate::query::{
    RemoteExpr,
    catalogue::{Catalogue, Function, TypeKind},
    deparse::fields::{collation_of, type_of},
    scalar,
    scalar::oids,
    tree::Node,
};

/// Deeper expressions are refused: this recurses, and the server parses the text again on a stack of its own.
const MAX_DEPTH: usize = 200;
/// `pg_collation` of "default".
const DEFAULT_COLLATION: u32 = 100;

/// Writes `node` over parameters for its columns: `column` says at which place of the row the value of a node is, for variables and
/// whatever else has been computed before. The error is a reason for people.
pub(crate) fn deparse<'a, 't>(
    node: Node<'a, 't>,
    catalogue: &Catalogue,
    column: &mut impl FnMut(Node<'a, 't>) -> Option<usize>,
) -> Result<RemoteExpr, String> {
    let mut writer = Writer { catalogue, column, args: Vec::new(), types: Vec::new(), tested: Vec::new(), depth: 0 };
    let written = writer.write(node)?;
    Ok(RemoteExpr { sql: written.sql, args: writer.args, types: writer.types })
}

/// An expression as SQL, in parentheses where it needs any.
#[derive(Clone)]
struct Written {
    sql: String,
    /// The collation of its value; 0 for a type without.
    collation: u32,
    /// The collation that COLLATE gives it, which wins over that of others.
    explicit: Option<u32>,
}

struct Writer<'c, F> {
    catalogue: &'c Catalogue,
    column: &'c mut F,
    /// Places of the parameters.
    args: Vec<usize>,
    /// Their types.
    types: Vec<String>,
    /// The operands of the CASEs around.
    tested: Vec<Written>,
    depth: usize,
}

fn unreadable(node: Node<'_, '_>) -> String {
    format!("it has an expression that is not understood ({})", node.tag())
}

impl<'a, 't: 'a, F: FnMut(Node<'a, 't>) -> Option<usize>> Writer<'_, F> {
    fn write(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        if self.depth == MAX_DEPTH {
            return Err("it has an expression that is nested too deeply".to_owned());
        }
        self.depth += 1;
        let written = self.node(node);
        self.depth -= 1;
        written
    }

    fn node(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        if let Some(index) = (self.column)(node) {
            return self.parameter(node, index);
        }
        only_known(node)?;
        match node.tag() {
            "VAR" => Err("it uses a column in a place where it is not available".to_owned()),
            "CONST" => self.constant(node),
            "OPEXPR" => self.operator(node),
            "FUNCEXPR" => self.function(node),
            "BOOLEXPR" => self.connective(node),
            "NULLTEST" => self.test(node, "nulltesttype", &["IS NULL", "IS NOT NULL"]),
            "BOOLEANTEST" => {
                let tests = ["IS TRUE", "IS NOT TRUE", "IS FALSE", "IS NOT FALSE", "IS UNKNOWN", "IS NOT UNKNOWN"];
                self.test(node, "booltesttype", &tests)
            }
            "RELABELTYPE" | "COERCEVIAIO" | "ARRAYCOERCEEXPR" => self.cast(node),
            "COLLATEEXPR" => {
                let arg = self.child(node, "arg")?;
                self.collated(arg, number(node, "collOid")?)
            }
            "CASEEXPR" => self.case(node),
            "CASETESTEXPR" => self.tested.last().cloned().ok_or_else(|| unreadable(node)),
            "COALESCEEXPR" => self.call("COALESCE", node),
            "MINMAXEXPR" => match node.number("op") {
                Some(0) => self.call("GREATEST", node),
                Some(1) => self.call("LEAST", node),
                _ => Err(unreadable(node)),
            },
            "NULLIFEXPR" | "DISTINCTEXPR" => self.by_equality(node),
            "SCALARARRAYOPEXPR" => self.any_of(node),
            "ARRAYEXPR" => {
                let elements = self.list(node, "elements")?;
                let types = self.type_name(number(node, "array_typeid")?)?;
                self.result(node, format!("(ARRAY[{}]::{types})", join(&elements)), &elements)
            }
            "SUBSCRIPTINGREF" => self.subscript(node),
            _ => Err(unreadable(node)),
        }
    }

    /// A value the row holds. A domain's is sent as what the domain is over: its constraints were checked when it was stored.
    fn parameter(&mut self, node: Node<'a, 't>, index: usize) -> Result<Written, String> {
        let of = type_of(node).ok_or_else(|| unreadable(node))?;
        let name = self.type_name(self.catalogue.base(of))?;
        let known = self.args.iter().zip(&self.types).position(|(&arg, known)| arg == index && *known == name);
        let place = known.unwrap_or_else(|| {
            self.args.push(index);
            self.types.push(name);
            self.args.len() - 1
        });
        Ok(Written { sql: format!("${}", place + 1), collation: collation_of(node), explicit: None })
    }

    fn constant(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let of = number(node, "consttype")?;
        let text = match node.atom("constisnull") {
            Some("true") => "NULL".to_owned(),
            Some("false") => {
                let bytes = node.bytes("constvalue").ok_or_else(|| unreadable(node))?;
                let text = self.datum(of, &bytes);
                literal(&text.ok_or_else(|| format!("it has a constant of type {}, which is not understood", self.catalogue.type_sql(of)))?)
            }
            _ => return Err(unreadable(node)),
        };
        // An untyped literal stays one: an argument of type "any".
        let sql = if of == oids::UNKNOWN { text } else { format!("({text}::{})", self.type_name(of)?) };
        Ok(Written { sql, collation: collation_of(node), explicit: None })
    }

    /// The text of a constant's datum.
    fn datum(&self, of: u32, bytes: &[u8]) -> Option<String> {
        let base = self.catalogue.base(of);
        let label =
            |oid: &str, labels: &[(u32, String)]| labels.iter().find(|(known, _)| known.to_string() == oid).map(|known| known.1.clone());
        let Some(found) = self.catalogue.types.get(&base) else { return scalar::constant(base, bytes) };
        match found.kind {
            TypeKind::Enum => label(&scalar::constant(oids::OID, bytes)?, &found.labels),
            TypeKind::Array => {
                let element = self.catalogue.types.get(&found.element)?;
                let is_enum = element.kind == TypeKind::Enum;
                let items = scalar::array_constant(if is_enum { oids::OID } else { found.element }, bytes)?;
                let items = items.into_iter().map(|item| match item {
                    Some(oid) if is_enum => label(&oid, &element.labels).map(Some),
                    other => Some(other),
                });
                Some(array_text(&items.collect::<Option<Vec<_>>>()?))
            }
            TypeKind::Plain | TypeKind::Domain | TypeKind::Other => scalar::constant(base, bytes),
        }
    }

    fn operator(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let name = self.operator_name(node)?;
        let args = self.args_of(node)?;
        let sql = match &args[..] {
            [arg] => format!("({name} {})", arg.sql),
            [left, right] => format!("({} {name} {})", left.sql, right.sql),
            _ => return Err(unreadable(node)),
        };
        self.result(node, sql, &args)
    }

    /// `OPERATOR(schema.name)`, once its function may be called.
    fn operator_name(&self, node: Node<'a, 't>) -> Result<String, String> {
        let found = self.catalogue.operators.get(&number(node, "opno")?).ok_or_else(|| unreadable(node))?;
        self.callable(found.function)?;
        Ok(format!("OPERATOR({}.{})", found.schema, found.name))
    }

    fn function(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let name = self.callable(number(node, "funcid")?)?.sql.clone();
        let args = self.args_of(node)?;
        let variadic = node.atom("funcvariadic") == Some("true");
        let last = args.len().saturating_sub(1);
        let texts = args
            .iter()
            .enumerate()
            .map(|(index, arg)| if variadic && index == last { format!("VARIADIC {}", arg.sql) } else { arg.sql.clone() });
        let sql = format!("{name}({})", texts.collect::<Vec<_>>().join(", "));
        self.result(node, sql, &args)
    }

    /// The function, if its result depends on nothing but its arguments.
    fn callable(&self, oid: u32) -> Result<&Function, String> {
        let found =
            self.catalogue.functions.get(&oid).ok_or_else(|| format!("it calls a function that is not in the catalogue ({oid})"))?;
        if found.returns_set {
            return Err(format!("it calls {}, which returns several rows, outside of FROM", found.title));
        }
        match found.volatility.as_str() {
            "i" if !found.users => Ok(found),
            "i" => Err(format!("it calls {}, which may read tables although it is declared IMMUTABLE", found.title)),
            "s" if !found.users && scalar::reviewed_stable(oid) => Ok(found),
            _ => Err(format!("it calls {}, whose result may change while no row does", found.title)),
        }
    }

    fn connective(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let args = self.list(node, "args")?;
        let texts: Vec<&str> = args.iter().map(|arg| arg.sql.as_str()).collect();
        let sql = match (node.atom("boolop"), &texts[..]) {
            (Some("not"), [arg]) => format!("(NOT {arg})"),
            (Some("and"), [_, ..]) => format!("({})", texts.join(" AND ")),
            (Some("or"), [_, ..]) => format!("({})", texts.join(" OR ")),
            _ => return Err(unreadable(node)),
        };
        Ok(Written { sql, collation: 0, explicit: None })
    }

    fn test(&mut self, node: Node<'a, 't>, field: &str, tests: &[&str]) -> Result<Written, String> {
        if node.atom("argisrow") == Some("true") {
            return Err("it asks whether a whole row is NULL".to_owned());
        }
        let arg = self.child(node, "arg")?;
        let test = node.number(field).and_then(|index| tests.get(usize::try_from(index).ok()?)).ok_or_else(|| unreadable(node))?;
        Ok(Written { sql: format!("({} {test})", arg.sql), collation: 0, explicit: None })
    }

    /// A cast by the function, the text or the elements' cast that `::` finds as well.
    fn cast(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let arg_node = node.node("arg").ok_or_else(|| unreadable(node))?;
        let (from, to) = (type_of(arg_node).ok_or_else(|| unreadable(arg_node))?, number(node, "resulttype")?);
        match node.tag() {
            "COERCEVIAIO" => {
                let io = |oid: u32| self.catalogue.types.get(&self.catalogue.base(oid)).ok_or_else(|| unreadable(node));
                self.callable(io(from)?.output)?;
                self.callable(io(to)?.input)?;
            }
            "ARRAYCOERCEEXPR" if node.number("resulttypmod").is_some() => {
                return Err("it casts an array to a type with a length".to_owned());
            }
            _ => {}
        }
        // PostgreSQL would check the domain's constraints, whose functions are not in the tree.
        if self.catalogue.base(to) != to && self.catalogue.base(from) != self.catalogue.base(to) {
            return Err("it casts to a domain".to_owned());
        }
        if node.tag() == "ARRAYCOERCEEXPR" {
            self.element_casts(node)?;
        }
        let arg = self.child(node, "arg")?;
        let name = self.type_name(to)?;
        self.result(node, format!("({}::{name})", arg.sql), &[arg])
    }

    /// The functions that cast an array's elements.
    fn element_casts(&self, node: Node<'a, 't>) -> Result<(), String> {
        let mut open: Vec<Node<'a, 't>> = node.node("elemexpr").into_iter().collect();
        while let Some(inner) = open.pop() {
            match inner.tag() {
                "FUNCEXPR" => drop(self.callable(number(inner, "funcid")?)?),
                "COERCEVIAIO" => return Err("it casts the elements of an array by way of text".to_owned()),
                "RELABELTYPE" | "CASETESTEXPR" | "CONST" => {}
                _ => return Err(unreadable(inner)),
            }
            open.extend(inner.children());
        }
        Ok(())
    }

    /// With an operand, its conditions hold `CASETESTEXPR` in its place: they are written out over the operand itself.
    fn case(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let operand = node.node("arg").map(|arg| self.write(arg)).transpose()?;
        let mut sql = "(CASE".to_owned();
        let mut results = Vec::new();
        for when in node.nodes("args").ok_or_else(|| unreadable(node))? {
            only_known(when)?;
            self.tested.extend(operand.clone());
            let condition = self.child(when, "expr");
            self.tested.truncate(self.tested.len() - usize::from(operand.is_some()));
            let result = self.child(when, "result")?;
            sql += &format!(" WHEN {} THEN {}", condition?.sql, result.sql);
            results.push(result);
        }
        if node.has("defresult") {
            let otherwise = self.child(node, "defresult")?;
            sql += &format!(" ELSE {}", otherwise.sql);
            results.push(otherwise);
        }
        self.result(node, sql + " END)", &results)
    }

    fn call(&mut self, name: &str, node: Node<'a, 't>) -> Result<Written, String> {
        let args = self.args_of(node)?;
        self.result(node, format!("{name}({})", join(&args)), &args)
    }

    /// `NULLIF` and `IS DISTINCT FROM`, which would look for an operator named `=`.
    fn by_equality(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let equal = self.operator_name(node)?;
        let args = self.args_of(node)?;
        let [left, right] = &args[..] else { return Err(unreadable(node)) };
        let (a, b) = (&left.sql, &right.sql);
        let sql = if node.tag() == "NULLIFEXPR" {
            format!("(CASE WHEN ({a} {equal} {b}) THEN NULL ELSE {a} END)")
        } else {
            format!("(CASE WHEN {a} IS NULL THEN {b} IS NOT NULL WHEN {b} IS NULL THEN true ELSE NOT ({a} {equal} {b}) END)")
        };
        self.result(node, sql, &args)
    }

    fn any_of(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        let operator = self.operator_name(node)?;
        let args = self.args_of(node)?;
        let [operand, array] = &args[..] else { return Err(unreadable(node)) };
        let all = match node.atom("useOr") {
            Some("true") => "ANY",
            Some("false") => "ALL",
            _ => return Err(unreadable(node)),
        };
        let sql = format!("({} {operator} {all} ({}))", operand.sql, array.sql);
        self.result(node, sql, &args)
    }

    /// One element of an array, or of a jsonb; not a slice.
    fn subscript(&mut self, node: Node<'a, 't>) -> Result<Written, String> {
        if node.has("reflowerindexpr") || node.has("refassgnexpr") {
            return Err("it takes a slice of an array".to_owned());
        }
        let container = self.child(node, "refexpr")?;
        let indexes = self.list(node, "refupperindexpr")?;
        let indexes: String = indexes.iter().map(|index| format!("[{}]", index.sql)).collect();
        self.result(node, format!("(({}){indexes})", container.sql), &[container])
    }

    fn child(&mut self, node: Node<'a, 't>, field: &str) -> Result<Written, String> {
        self.write(node.node(field).ok_or_else(|| unreadable(node))?)
    }

    fn list(&mut self, node: Node<'a, 't>, field: &str) -> Result<Vec<Written>, String> {
        node.nodes(field).ok_or_else(|| unreadable(node))?.into_iter().map(|item| self.write(item)).collect()
    }

    /// The arguments, under the collation that the tree gives to the node.
    fn args_of(&mut self, node: Node<'a, 't>) -> Result<Vec<Written>, String> {
        let nodes = node.nodes("args").ok_or_else(|| unreadable(node))?;
        // A function or operator declared for a domain would not be found for what the domain is over.
        if matches!(node.tag(), "FUNCEXPR" | "OPEXPR")
            && nodes.iter().any(|arg| type_of(*arg).is_none_or(|of| self.catalogue.base(of) != of))
        {
            return Err("it passes a domain to a function".to_owned());
        }
        let args: Vec<Written> = nodes.into_iter().map(|arg| self.write(arg)).collect::<Result<_, _>>()?;
        match node.number("inputcollid") {
            None | Some(0) => Ok(args),
            Some(collation) => args.into_iter().map(|arg| self.under(arg, collation)).collect(),
        }
    }

    /// An argument of a function that runs under a collation.
    fn under(&self, arg: Written, collation: u32) -> Result<Written, String> {
        let already = arg.explicit.unwrap_or(DEFAULT_COLLATION) == collation;
        if arg.collation == 0 || already { Ok(arg) } else { self.collated(arg, collation) }
    }

    fn collated(&self, arg: Written, collation: u32) -> Result<Written, String> {
        let sql = match self.catalogue.collations.get(&collation) {
            _ if collation == DEFAULT_COLLATION => "pg_catalog.\"default\"",
            Some(found) => found.sql.as_str(),
            None => return Err("it has a collation that is not in the catalogue".to_owned()),
        };
        Ok(Written { sql: format!("({} COLLATE {sql})", arg.sql), collation, explicit: Some(collation) })
    }

    /// What a node with these parts is: an explicit collation wins, and two that contradict each other are an error in SQL, although
    /// they are none in a tree whose collations came from columns.
    fn result(&self, node: Node<'a, 't>, sql: String, parts: &[Written]) -> Result<Written, String> {
        let mut explicit = parts.iter().filter_map(|part| part.explicit);
        let first = explicit.next();
        if explicit.any(|other| Some(other) != first) {
            return Err("it mixes collations".to_owned());
        }
        let collation = collation_of(node);
        Ok(Written { sql, collation, explicit: first.filter(|_| collation != 0) })
    }

    /// The type as a cast spells it; without a modifier, which in SQL means a length of 1 for two types.
    fn type_name(&self, of: u32) -> Result<String, String> {
        let found = self.catalogue.types.get(&of).ok_or_else(|| format!("it has a type that is not in the catalogue ({of})"))?;
        let without_length = |sql: &str| match sql {
            "character" => "pg_catalog.bpchar".to_owned(),
            "bit" => "pg_catalog.\"bit\"".to_owned(),
            other => other.to_owned(),
        };
        Ok(match found.sql.strip_suffix("[]") {
            Some(element) => without_length(element) + "[]",
            None => without_length(&found.sql),
        })
    }
}

fn number(node: Node<'_, '_>, field: &str) -> Result<u32, String> {
    node.number(field).ok_or_else(|| unreadable(node))
}

fn join(parts: &[Written]) -> String {
    parts.iter().map(|part| part.sql.as_str()).collect::<Vec<_>>().join(", ")
}

/// A string literal that no setting reads otherwise and that holds no `$`, which could be taken for a parameter.
fn literal(text: &str) -> String {
    if !text.contains(['\\', '$']) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''").replace('$', "\\x24"))
}

/// The text of an array of one dimension, every element in quotes.
fn array_text(items: &[Option<String>]) -> String {
    let quoted = |item: &Option<String>| match item {
        Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        None => "NULL".to_owned(),
    };
    format!("{{{}}}", items.iter().map(quoted).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests;
