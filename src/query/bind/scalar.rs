//! Scalar expressions: native where the function is on the reviewed list, else computed by the source.
//!
//! What guards its parts from being evaluated (CASE, COALESCE, AND, OR) goes to the source as a whole if a part of it has to: so
//! `CASE WHEN x ~ '^\d+$' THEN x::int END` fails for no row for which PostgreSQL does not fail.

use std::collections::BTreeMap;

use super::{
    clock,
    relation::{Level, Vars, alias, kind_of, typed},
    unknown, unreadable,
};
use crate::query::{
    Expr, Kind, Native, Now, RemoteExpr,
    catalogue::{Catalogue, TypeKind},
    deparse::deparse,
    scalar,
    tree::{ItemId, Node},
};

/// Fields that say where something stood in the text or how it was written.
pub(super) const PLACES: [&str; 7] =
    ["location", "varnosyn", "varattnosyn", "list_start", "list_end", "varnullingrels", "varreturningtype"];

/// `text || anynonarray` and the other way round: a user's cast from an enum to text would be called.
const CONCATENATES_ANY: [u32; 2] = [2003, 2004];

/// Where the names of an expression are to be found, and what it needs beyond the row.
pub(super) struct Scope<'x, 'a, 't> {
    /// The catalogue.
    pub(super) catalogue: &'x Catalogue,
    /// The query it is in.
    pub(super) level: &'x Level<'a, 't>,
    /// That query's variables.
    pub(super) vars: &'x Vars,
    /// The query around and its variables.
    pub(super) outer: Option<(&'x Level<'a, 't>, &'x Vars)>,
    /// What is known already: subqueries, aggregates.
    pub(super) known: &'x BTreeMap<ItemId, Expr>,
    /// GROUP BY's expressions: their signatures and what they are now. Vars outside of them and of aggregates do not exist.
    pub(super) keys: &'x [(String, Expr)],
    /// The compared columns of a subquery, `PARAM` 1 being the first.
    pub(super) params: &'x [Expr],
    /// The operand of the CASE around.
    pub(super) operand: Option<Expr>,
    /// Where the row ends and what the source computes begins; `None` if it may compute nothing here.
    pub(super) remote_from: Option<usize>,
    /// What the source is to compute.
    pub(super) remote: Vec<RemoteExpr>,
    /// Whether `now()` may be compared here; with the other sides of comparisons.
    pub(super) clock: Option<Vec<(Expr, i64)>>,
}

impl<'x, 'a, 't> Scope<'x, 'a, 't> {
    /// A scope of one query's variables.
    pub(super) fn new(
        catalogue: &'x Catalogue,
        level: &'x Level<'a, 't>,
        vars: &'x Vars,
        known: &'x BTreeMap<ItemId, Expr>,
        remote_from: Option<usize>,
    ) -> Self {
        let (outer, keys, params): (_, &[_], &[_]) = (None, &[], &[]);
        Self { catalogue, level, vars, outer, known, keys, params, operand: None, remote_from, remote: Vec::new(), clock: None }
    }

    /// Binds an expression.
    pub(super) fn expr(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        if let Some(known) = self.known.get(&node.id()) {
            return Ok(known.clone());
        }
        if !self.keys.is_empty() && node.tag() != "CONST" {
            let signature = self.signature(node);
            if let Some((_, key)) = self.keys.iter().find(|(key, _)| *key == signature) {
                return Ok(key.clone());
            }
        }
        match node.tag() {
            "VAR" => self.var(node),
            "CONST" => self.constant(node),
            "PARAM" => {
                let index = node.number("paramid").and_then(|number| usize::try_from(number).ok()?.checked_sub(1));
                index.and_then(|index| self.params.get(index)).cloned().ok_or_else(|| unknown(node))
            }
            "OPEXPR" => self.operator(node),
            "FUNCEXPR" => self.function(node),
            "BOOLEXPR" if node.atom("boolop") == Some("not") => Ok(Expr::Not(Box::new(self.only_arg(node)?))),
            "BOOLEXPR" | "CASEEXPR" | "COALESCEEXPR" => self.guarded(node),
            "RELABELTYPE" => self.relabel(node),
            // It says how a function above works, and that function's node says so, too.
            "COLLATEEXPR" => self.expr(node.node("arg").ok_or_else(|| unknown(node))?),
            "COERCEVIAIO" => self.through_text(node),
            "NULLTEST" => self.null_test(node),
            "BOOLEANTEST" => self.boolean_test(node),
            "DISTINCTEXPR" | "NULLIFEXPR" => self.by_equality(node),
            "SCALARARRAYOPEXPR" => self.any_of(node),
            "CASETESTEXPR" => self.operand.clone().ok_or_else(|| unreadable("a CASE")),
            "SQLVALUEFUNCTION" => Err(clock::ELSEWHERE.to_owned()),
            "SUBLINK" => Err("it has a subquery in a place where only PostgreSQL can run it".to_owned()),
            "AGGREF" => Err("it has an aggregate of a query around it".to_owned()),
            "WINDOWFUNC" => Err(super::WINDOW.to_owned()),
            "CURRENTOFEXPR" | "NEXTVALUEEXPR" | "GROUPINGFUNC" => Err(unknown(node)),
            _ => self.remote(node),
        }
    }

    /// What an expression is, wherever it stands.
    pub(super) fn signature(&self, node: Node<'a, 't>) -> String {
        match alias(self.level, node).filter(|_| node.tag() == "VAR" && node.number("varlevelsup") == Some(0)) {
            Some(behind) => self.signature(behind),
            None => node.signature(&PLACES),
        }
    }

    fn args(&mut self, node: Node<'a, 't>) -> Result<Vec<Expr>, String> {
        let args = node.nodes("args").ok_or_else(|| unknown(node))?;
        args.into_iter().map(|arg| self.expr(arg)).collect()
    }

    fn only_arg(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let mut args = self.args(node)?;
        if args.len() == 1 { args.pop().ok_or_else(|| unknown(node)) } else { Err(unknown(node)) }
    }

    fn var(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let number = node.number("varno").ok_or_else(|| unknown(node))?;
        let attribute: i32 = node.atom("varattno").and_then(|word| word.parse().ok()).ok_or_else(|| unknown(node))?;
        let (level, vars) = match (node.number("varlevelsup"), self.outer) {
            (Some(0), _) => (self.level, self.vars),
            (Some(1), Some(outer)) => outer,
            _ => {
                return Err(
                    "a subquery refers to the query around it from a place where it cannot be turned into a join, such as two levels \
                            down, in its SELECT list or below an aggregate"
                        .to_owned(),
                );
            }
        };
        if attribute == 0 {
            return Err("it uses a table's whole row as a value. Name the columns".to_owned());
        }
        let Ok(attribute) = u32::try_from(attribute) else { return Err("it uses a system column such as ctid".to_owned()) };
        if let Some(&index) = vars.get(&(number, attribute)) {
            return Ok(Expr::Column { index, kind: kind_of(self.catalogue, typed(node)?.oid) });
        }
        match alias(level, node) {
            Some(behind) => self.at(level, vars, behind),
            None => Err("it refers to a column from a place where it cannot be turned into a join, such as a LATERAL subquery".to_owned()),
        }
    }

    /// Binds an expression of another query than the one at hand.
    fn at(&mut self, level: &'x Level<'a, 't>, vars: &'x Vars, node: Node<'a, 't>) -> Result<Expr, String> {
        let (before_level, before_vars) = (self.level, self.vars);
        (self.level, self.vars) = (level, vars);
        let bound = self.expr(node);
        (self.level, self.vars) = (before_level, before_vars);
        bound
    }

    fn constant(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let of = typed(node)?;
        let kind = kind_of(self.catalogue, of.oid);
        match node.atom("constisnull") {
            Some("true") => return Ok(Expr::Const { text: None, kind }),
            Some("false") => {}
            _ => return Err(unknown(node)),
        }
        let bytes = node.bytes("constvalue").ok_or_else(|| unknown(node))?;
        let found = self.catalogue.types.get(&self.catalogue.base(of.oid));
        let text = match found.filter(|found| found.kind == TypeKind::Enum) {
            Some(found) => {
                let oid = bytes.get(..4).and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
                found.labels.iter().find(|(label, _)| Some(*label) == oid).map(|(_, label)| label.clone())
            }
            None => scalar::constant(self.catalogue.base(of.oid), &bytes),
        };
        match text {
            Some(text) => Ok(Expr::Const { text: Some(text.into()), kind }),
            None => self.remote(node),
        }
    }

    fn operator(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let number = node.number("opno").ok_or_else(|| unknown(node))?;
        let function = self.catalogue.operators.get(&number).ok_or_else(|| unknown(node))?.function;
        if clock::compares(function)
            && self.clock.is_some()
            && let Some(bound) = self.compare_with_now(node, function)?
        {
            return Ok(bound);
        }
        self.call(node, function)
    }

    fn compare_with_now(&mut self, node: Node<'a, 't>, function: u32) -> Result<Option<Expr>, String> {
        let Some([left, right]) = node.nodes("args").and_then(|args| <[Node; 2]>::try_from(args).ok()) else { return Err(unknown(node)) };
        let (shift, other, now_first) = match (clock::shift(left, self.catalogue), clock::shift(right, self.catalogue)) {
            (Some(_), Some(_)) => return Err(clock::ELSEWHERE.to_owned()),
            (Some(shift), None) => (shift, right, true),
            (None, Some(shift)) => (shift, left, false),
            (None, None) => return Ok(None),
        };
        let types = [scalar::oids::TIMESTAMPTZ; 2];
        let native = scalar::native(function, &types, scalar::Collation::None).ok_or_else(|| clock::ELSEWHERE.to_owned())?;
        let terms = self.clock.take();
        // Not inside of the other side: there `now()` has no place.
        let other = self.expr(other);
        self.clock = terms;
        let other = other?;
        if let Some(terms) = &mut self.clock {
            terms.push((other.clone(), shift));
        }
        let now = Expr::Now(Now { shift });
        Ok(Some(Expr::Call { function: native, args: if now_first { vec![now, other] } else { vec![other, now] } }))
    }

    fn function(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let function = node.number("funcid").ok_or_else(|| unknown(node))?;
        if clock::is_clock(function) {
            return Err(clock::ELSEWHERE.to_owned());
        }
        if node.atom("funcvariadic") == Some("true") {
            return self.remote(node);
        }
        self.call(node, function)
    }

    fn call(&mut self, node: Node<'a, 't>, function: u32) -> Result<Expr, String> {
        if ["opretset", "funcretset"].iter().any(|name| node.atom(name) == Some("true")) {
            return Err("it has a function that returns several rows outside of FROM. Move it to FROM".to_owned());
        }
        match self.native(node, function, &node.nodes("args").ok_or_else(|| unknown(node))?)? {
            Some(function) => Ok(Expr::Call { function, args: self.args(node)? }),
            None => self.remote(node),
        }
    }

    fn native(&self, node: Node<'a, 't>, function: u32, args: &[Node<'a, 't>]) -> Result<Option<&'static Native>, String> {
        let types = args.iter().map(|arg| Ok(self.argument_type(function, typed(*arg)?.oid))).collect::<Result<Vec<u32>, String>>()?;
        Ok(scalar::native(function, &types, collation(self.catalogue, node.number("inputcollid").unwrap_or(0))))
    }

    fn argument_type(&self, function: u32, oid: u32) -> u32 {
        let base = self.catalogue.base(oid);
        let is_enum = self.catalogue.types.get(&base).is_some_and(|found| found.kind == TypeKind::Enum);
        if is_enum && !CONCATENATES_ANY.contains(&function) { scalar::oids::ANYENUM } else { base }
    }

    /// AND, OR, CASE and COALESCE: here or as a whole at the source.
    fn guarded(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let (before, terms) = (self.remote.len(), self.clock.as_ref().map(Vec::len));
        let here = self.guard(node);
        if here.is_ok() && self.remote.len() == before {
            return here;
        }
        let parts = self.remote.split_off(before);
        match (self.remote(node), here) {
            (Ok(whole), _) => {
                if let (Some(terms), Some(length)) = (&mut self.clock, terms) {
                    terms.truncate(length);
                }
                Ok(whole)
            }
            // PostgreSQL promises no order between the parts of AND and OR.
            (Err(_), Ok(here)) if node.tag() == "BOOLEXPR" => {
                self.remote.extend(parts);
                Ok(here)
            }
            (Err(problem), Ok(_)) => Err(problem),
            (Err(_), Err(problem)) => Err(problem),
        }
    }

    fn guard(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        match (node.tag(), node.atom("boolop")) {
            ("BOOLEXPR", Some("and")) => Ok(Expr::And(self.args(node)?)),
            ("BOOLEXPR", Some("or")) => Ok(Expr::Or(self.args(node)?)),
            ("COALESCEEXPR", _) => Ok(Expr::Coalesce(self.args(node)?)),
            ("CASEEXPR", _) => self.case(node),
            _ => Err(unknown(node)),
        }
    }

    fn case(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let operand = node.node("arg").map(|arg| self.expr(arg)).transpose()?;
        let mut whens = Vec::new();
        for when in node.nodes("args").ok_or_else(|| unknown(node))? {
            let (Some(condition), Some(result)) = (when.node("expr"), when.node("result")) else { return Err(unknown(when)) };
            let around = std::mem::replace(&mut self.operand, operand.clone());
            let condition = self.expr(condition);
            self.operand = around;
            whens.push((condition?, self.expr(result)?));
        }
        let otherwise = match node.node("defresult") {
            Some(result) => self.expr(result)?,
            None => Expr::Const { text: None, kind: kind_of(self.catalogue, typed(node)?.oid) },
        };
        Ok(Expr::Case { whens, otherwise: Box::new(otherwise) })
    }

    fn relabel(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let arg = node.node("arg").ok_or_else(|| unknown(node))?;
        if self.catalogue.same_text(typed(arg)?.oid, typed(node)?.oid) { self.expr(arg) } else { self.remote(node) }
    }

    /// A cast by way of text: output, then input.
    fn through_text(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let arg = node.node("arg").ok_or_else(|| unknown(node))?;
        let from = self.catalogue.base(typed(arg)?.oid);
        // Of a domain the input function also checks the constraints.
        let to = typed(node)?.oid;
        let bound = self.expr(arg)?;
        let text = match bound {
            // A cell is the output already.
            Expr::Column { index, .. } => Expr::Column { index, kind: Kind::Text },
            Expr::Const { text, .. } => Expr::Const { text, kind: Kind::Text },
            bound if scalar::kind(from) == Kind::Text => bound,
            bound => {
                let output = self.catalogue.types.get(&from).map_or(0, |found| found.output);
                match scalar::native(output, &[from], scalar::Collation::None) {
                    Some(function) => Expr::Call { function, args: vec![bound] },
                    None => return self.remote(node),
                }
            }
        };
        if matches!(to, scalar::oids::TEXT | scalar::oids::VARCHAR) {
            return Ok(text);
        }
        match scalar::cast(from, to, self.catalogue.server_version) {
            Some(function) => Ok(Expr::Call { function, args: vec![text] }),
            None => self.remote(node),
        }
    }

    fn null_test(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        if node.atom("argisrow") == Some("true") {
            return self.remote(node);
        }
        let arg = self.expr(node.node("arg").ok_or_else(|| unknown(node))?)?;
        let is_null = Expr::IsNull(Box::new(arg));
        match node.number("nulltesttype") {
            Some(0) => Ok(is_null),
            Some(1) => Ok(Expr::Not(Box::new(is_null))),
            _ => Err(unknown(node)),
        }
    }

    fn boolean_test(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let arg = Box::new(self.expr(node.node("arg").ok_or_else(|| unknown(node))?)?);
        let (wanted, negated) = match node.number("booltesttype") {
            Some(0) => (Some(true), false),
            Some(1) => (Some(true), true),
            Some(2) => (Some(false), false),
            Some(3) => (Some(false), true),
            Some(4) => (None, false),
            Some(5) => (None, true),
            _ => return Err(unknown(node)),
        };
        let test = Expr::IsBool(arg, wanted);
        Ok(if negated { Expr::Not(Box::new(test)) } else { test })
    }

    /// IS DISTINCT FROM and NULLIF.
    fn by_equality(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let args = node.nodes("args").ok_or_else(|| unknown(node))?;
        let number = node.number("opno").ok_or_else(|| unknown(node))?;
        let function = self.catalogue.operators.get(&number).ok_or_else(|| unknown(node))?.function;
        let Some(equal) = self.native(node, function, &args)? else { return self.remote(node) };
        let args = Box::new(<[Expr; 2]>::try_from(self.args(node)?).map_err(|_| unknown(node))?);
        Ok(if node.tag() == "NULLIFEXPR" { Expr::NullIf { equal, args } } else { Expr::Distinct { equal, args } })
    }

    /// `x op ANY (array)`, the array being constant or written out.
    fn any_of(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let Some([operand, array]) = node.nodes("args").and_then(|args| <[Node; 2]>::try_from(args).ok()) else {
            return Err(unknown(node));
        };
        let number = node.number("opno").ok_or_else(|| unknown(node))?;
        let function = self.catalogue.operators.get(&number).ok_or_else(|| unknown(node))?.function;
        let element = self.catalogue.types.get(&self.catalogue.base(typed(array)?.oid)).map_or(0, |found| found.element);
        let types = [self.argument_type(function, typed(operand)?.oid), self.argument_type(function, element)];
        let native = scalar::native(function, &types, collation(self.catalogue, node.number("inputcollid").unwrap_or(0)));
        let Some(function) = native else { return self.remote(node) };
        let all = match node.atom("useOr") {
            Some("true") => false,
            Some("false") => true,
            _ => return Err(unknown(node)),
        };
        let items = self.items(array, element)?;
        let operand = Box::new(self.expr(operand)?);
        match items {
            Some(items) => Ok(Expr::AnyOf { function, operand, items, all }),
            None => {
                let array = Box::new(self.expr(array)?);
                Ok(Expr::AnyElement { function, operand, array, element: kind_of(self.catalogue, element), all })
            }
        }
    }

    fn items(&mut self, array: Node<'a, 't>, element: u32) -> Result<Option<Vec<Expr>>, String> {
        match array.tag() {
            "ARRAYEXPR" if array.atom("multidims") != Some("true") => {
                let elements = array.nodes("elements").ok_or_else(|| unknown(array))?;
                elements.into_iter().map(|item| self.expr(item)).collect::<Result<Vec<Expr>, String>>().map(Some)
            }
            "ARRAYCOERCEEXPR" => match (array.node("arg"), array.node("elemexpr")) {
                (Some(arg), Some(relabel)) if relabel.tag() == "RELABELTYPE" => {
                    let from = relabel.node("arg").filter(|inner| inner.tag() == "CASETESTEXPR").map(typed).transpose()?;
                    match from {
                        Some(from) if self.catalogue.same_text(from.oid, typed(relabel)?.oid) => self.items(arg, from.oid),
                        _ => Ok(None),
                    }
                }
                _ => Ok(None),
            },
            "CONST" if array.atom("constisnull") == Some("false") => {
                let bytes = array.bytes("constvalue").ok_or_else(|| unknown(array))?;
                Ok(self.array_items(element, &bytes))
            }
            _ => Ok(None),
        }
    }

    fn array_items(&self, element: u32, bytes: &[u8]) -> Option<Vec<Expr>> {
        let base = self.catalogue.base(element);
        let labels = self.catalogue.types.get(&base).filter(|found| found.kind == TypeKind::Enum).map(|found| &found.labels);
        let texts = scalar::array_constant(if labels.is_some() { scalar::oids::OID } else { base }, bytes)?;
        let kind = kind_of(self.catalogue, base);
        let item = |text: Option<String>| {
            let text = match (text, labels) {
                (Some(oid), Some(labels)) => Some(labels.iter().find(|(label, _)| oid == label.to_string())?.1.clone()),
                (text, _) => text,
            };
            Some(Expr::Const { text: text.map(Into::into), kind })
        };
        texts.into_iter().map(item).collect()
    }

    /// Leaves it to the source.
    fn remote(&mut self, node: Node<'a, 't>) -> Result<Expr, String> {
        let of = typed(node)?;
        let expr = deparse(node, self.catalogue, &mut |leaf| self.argument(leaf))?;
        let Some(from) = self.remote_from else {
            return Err("a condition between two sides of an outer join or of a subquery has an expression that only the database can \
                        compute"
                .to_owned());
        };
        let index = match self.remote.iter().position(|known| *known == expr) {
            Some(index) => index,
            None => {
                self.remote.push(expr);
                self.remote.len() - 1
            }
        };
        Ok(Expr::Column { index: from + index, kind: kind_of(self.catalogue, of.oid) })
    }

    /// Where the value of a variable or of something known is in the row.
    fn argument(&self, leaf: Node<'_, '_>) -> Option<usize> {
        let known = match leaf.tag() {
            _ if self.known.contains_key(&leaf.id()) => self.known.get(&leaf.id()),
            "VAR" if self.keys.is_empty() => None,
            "VAR" => self.keys.iter().find(|(key, _)| *key == leaf.signature(&PLACES)).map(|(_, key)| key),
            "PARAM" => self.params.get(usize::try_from(leaf.number("paramid")?).ok()?.checked_sub(1)?),
            _ => return None,
        };
        if let Some(Expr::Column { index, .. }) = known {
            return Some(*index);
        }
        if known.is_some() || !self.keys.is_empty() || leaf.tag() != "VAR" {
            return None;
        }
        let vars = match leaf.number("varlevelsup")? {
            0 => self.vars,
            1 => self.outer?.1,
            _ => return None,
        };
        vars.get(&(leaf.number("varno")?, leaf.number("varattno")?)).copied()
    }
}

/// What the native functions want to know of a collation.
pub(super) fn collation(catalogue: &Catalogue, oid: u32) -> scalar::Collation {
    match (oid, catalogue.collations.get(&oid)) {
        (0, _) => scalar::Collation::None,
        (_, Some(found)) if found.c => scalar::Collation::C,
        (_, Some(found)) if found.deterministic => scalar::Collation::Deterministic,
        (_, Some(_) | None) => scalar::Collation::Other,
    }
}
