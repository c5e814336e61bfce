//! Subqueries in expressions, turned into joins with the rows around them.
//!
//! A correlated subquery's WHERE may refer to the query around it. Its conditions of the form `inside = outside` become the keys of the
//! join, what else concerns both sides filters the matches, and the rest belongs to the subquery alone. That is the definition of a
//! correlated subquery read from the other end, as long as nothing between WHERE and the result (aggregates, DISTINCT, a limit) works
//! on the rows of one outer row at a time; where something does, the keys become its groups.

mod value;

use std::collections::BTreeMap;

use super::{
    Binder, EXISTS_SUBLINK, EXPR_SUBLINK,
    from::shifted,
    relation::{Level, Refs, Relation, is_small, kind_of, passing},
    scalar::{PLACES, Scope},
    unknown, unreadable,
};
use crate::query::{
    Expr, Kind, Plan, SemiKind,
    tree::{ItemId, Node},
};

/// `ANY_SUBLINK` of `nodes/primnodes.h`.
const ANY_SUBLINK: u32 = 2;

/// `int8(int4)`, by which `LIMIT 1` is written.
const INT4_TO_INT8: u32 = 481;

/// What is known of subqueries, by their nodes.
pub(super) type Known = BTreeMap<ItemId, Expr>;

/// A subquery's rows and what ties them to the query around.
struct Inside<'a, 't> {
    level: Level<'a, 't>,
    /// Its rows.
    relation: Relation,
    /// Equalities: the outer column, the inner column.
    on: Vec<(usize, usize)>,
    /// What else makes a match.
    residual: Vec<Node<'a, 't>>,
    /// Its SELECT list, if it was asked for.
    targets: Vec<Expr>,
}

/// FROM and WHERE of a correlated subquery.
struct Correlated<'a, 't> {
    /// Its rows.
    own: Relation,
    /// Equalities: the outer column, the inner column.
    on: Vec<(usize, usize)>,
    /// What else ties it to the query around.
    residual: Vec<Node<'a, 't>>,
}

impl<'a, 't> Binder<'_> {
    /// Binds a condition that is a subquery or its negation; `false` if it is none.
    pub(super) fn subquery_condition(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        node: Node<'a, 't>,
    ) -> Result<bool, String> {
        let negated = node.tag() == "BOOLEXPR" && node.atom("boolop") == Some("not");
        let sublink = if negated { node.nodes("args").and_then(|args| args.first().copied()) } else { Some(node) };
        let Some(sublink) = sublink.filter(|sublink| sublink.tag() == "SUBLINK") else { return Ok(false) };
        match (sublink.number("subLinkType"), negated) {
            (Some(EXISTS_SUBLINK), false) => self.semi(level, relation, sublink, SemiKind::Semi)?,
            (Some(EXISTS_SUBLINK), true) => self.semi(level, relation, sublink, SemiKind::Anti)?,
            (Some(ANY_SUBLINK), false) => self.semi(level, relation, sublink, SemiKind::Semi)?,
            (Some(ANY_SUBLINK), true) => self.not_in(level, relation, sublink)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Turns every subquery within `node` into columns of `relation`. `condition`: NULL is as good as FALSE for what `node` is.
    pub(super) fn subqueries(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        node: Node<'a, 't>,
        condition: bool,
        known: &mut Known,
    ) -> Result<(), String> {
        if known.contains_key(&node.id()) {
            return Ok(());
        }
        match (node.tag(), node.atom("boolop")) {
            ("SUBLINK", _) => {
                let column = match node.number("subLinkType") {
                    Some(EXISTS_SUBLINK) => self.mark(level, relation, node)?,
                    Some(ANY_SUBLINK) if condition => self.mark(level, relation, node)?,
                    Some(ANY_SUBLINK) => {
                        return Err(
                            "it uses IN with a subquery where NULL and FALSE differ, such as under NOT within OR, or in the SELECT \
                                    list. Write EXISTS"
                                .to_owned(),
                        );
                    }
                    Some(EXPR_SUBLINK) => self.scalar(level, relation, node)?,
                    Some(1) => return Err("it compares with ALL of a subquery. Write NOT EXISTS".to_owned()),
                    Some(3) => return Err("it compares rows with a subquery. Write EXISTS".to_owned()),
                    Some(6) => return Err("it makes an array of a subquery's rows".to_owned()),
                    _ => return Err(unknown(node)),
                };
                known.insert(node.id(), column);
                Ok(())
            }
            ("BOOLEXPR", Some("and" | "or")) => self.subqueries_of_all(level, relation, &node.children(), condition, known),
            ("CASEEXPR", _) if node.has("arg") => self.subqueries_of_all(level, relation, &node.children(), false, known),
            ("CASEEXPR", _) => {
                // WHEN asks whether its condition is TRUE; results are whatever the CASE is.
                for when in node.nodes("args").ok_or_else(|| unknown(node))? {
                    let (Some(test), Some(result)) = (when.node("expr"), when.node("result")) else { return Err(unknown(when)) };
                    self.subqueries(level, relation, test, true, known)?;
                    self.subqueries(level, relation, result, condition, known)?;
                }
                node.node("defresult").map_or(Ok(()), |result| self.subqueries(level, relation, result, condition, known))
            }
            ("QUERY", _) => Ok(()),
            _ => self.subqueries_of_all(level, relation, &node.children(), false, known),
        }
    }

    fn subqueries_of_all(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        nodes: &[Node<'a, 't>],
        condition: bool,
        known: &mut Known,
    ) -> Result<(), String> {
        nodes.iter().try_for_each(|node| self.subqueries(level, relation, *node, condition, known))
    }

    fn mark(&mut self, level: &Level<'a, 't>, relation: &mut Relation, sublink: Node<'a, 't>) -> Result<Expr, String> {
        self.semi(level, relation, sublink, SemiKind::Mark)?;
        relation.width += 1;
        Ok(Expr::Column { index: relation.width - 1, kind: Kind::Bool })
    }

    /// EXISTS, and IN where only TRUE counts.
    fn semi(&mut self, level: &Level<'a, 't>, relation: &mut Relation, sublink: Node<'a, 't>, kind: SemiKind) -> Result<(), String> {
        let query = sublink.node("subselect").ok_or_else(|| unknown(sublink))?;
        let inside = Level { query, parent: Some(level) };
        let exists = sublink.number("subLinkType") == Some(EXISTS_SUBLINK);
        let before = std::mem::replace(&mut self.only_rows_matter, true);
        let bound = self.inside(level, relation, inside, exists);
        self.only_rows_matter = before;
        let mut bound = bound?;
        let mut comparisons = Vec::new();
        if !exists {
            for test in tests(sublink)? {
                match self.compared(level, relation, &mut bound, test)? {
                    Some(pair) => bound.on.push(pair),
                    None => comparisons.push(test),
                }
            }
        }
        let filter = self.match_filter(level, relation, &bound, &comparisons)?;
        if bound.on.is_empty() && filter.is_some() && !is_small(&bound.relation.plan) {
            let fallback = "a subquery has no equality with the query around it".to_owned();
            return Err(self.unusable.clone().unwrap_or(fallback));
        }
        let Inside { relation: right, on, .. } = bound;
        relation.wrap(|left| Plan::Semi { kind, left, right: Box::new(right.plan), on, filter });
        Ok(())
    }

    /// A comparison of IN as a pair of columns, if bytes decide it.
    fn compared(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        inside: &mut Inside<'a, 't>,
        test: Node<'a, 't>,
    ) -> Result<Option<(usize, usize)>, String> {
        let Some((left, right)) = self.equality(test)? else { return Ok(None) };
        if holds_param(left) || !holds_param(right) {
            return Ok(None);
        }
        let outer = self.key(level, relation, left, test)?;
        let vars = inside.relation.vars.clone();
        let known = Known::new();
        let (expr, remote) = {
            let mut scope = Scope::new(self.catalogue, &inside.level, &vars, &known, Some(inside.relation.width));
            scope.params = &inside.targets;
            (scope.expr(right)?, scope.remote)
        };
        inside.relation.remote(remote);
        let expr = self.canonical(expr, right, test)?;
        Ok(Some((outer, inside.relation.append(expr))))
    }

    /// The conditions over an outer row and a row of the subquery.
    fn match_filter(
        &self,
        level: &Level<'a, 't>,
        relation: &Relation,
        inside: &Inside<'a, 't>,
        comparisons: &[Node<'a, 't>],
    ) -> Result<Option<Expr>, String> {
        let vars = shifted(&inside.relation.vars, relation.width).collect();
        let mut parts: Vec<Expr> =
            self.residual(&inside.level, &vars, Some((level, &relation.vars)), &inside.residual)?.into_iter().collect();
        let known = Known::new();
        let params: Vec<Expr> = inside.targets.iter().map(|target| moved(target, relation.width)).collect();
        let mut scope = Scope::new(self.catalogue, level, &relation.vars, &known, None);
        scope.params = &params;
        for test in comparisons {
            parts.push(scope.expr(*test)?);
        }
        Ok(if parts.len() > 1 { Some(Expr::And(parts)) } else { parts.pop() })
    }

    /// `x NOT IN (SELECT …)`.
    fn not_in(&mut self, level: &Level<'a, 't>, relation: &mut Relation, sublink: Node<'a, 't>) -> Result<(), String> {
        let query = sublink.node("subselect").ok_or_else(|| unknown(sublink))?;
        let before = std::mem::replace(&mut self.only_rows_matter, true);
        let bound = self.inside(level, relation, Level { query, parent: Some(level) }, false);
        self.only_rows_matter = before;
        let mut bound = bound?;
        let [test] = tests(sublink)?[..] else {
            return Err("it uses NOT IN with several columns. Write NOT EXISTS".to_owned());
        };
        let Some(operand) = self.compared(level, relation, &mut bound, test)? else {
            let fallback = "it uses NOT IN or NOT ANY with something other than an equality. Write NOT EXISTS".to_owned();
            return Err(self.unusable.clone().unwrap_or(fallback));
        };
        if !bound.residual.is_empty() {
            return Err("a subquery of NOT IN refers to the query around it by more than equalities. Write NOT EXISTS".to_owned());
        }
        let Inside { relation: right, on, .. } = bound;
        relation.wrap(|left| Plan::NotIn { left, right: Box::new(right.plan), on, operand });
        Ok(())
    }

    /// Binds a subquery next to the rows around it.
    fn inside(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        inside: Level<'a, 't>,
        exists: bool,
    ) -> Result<Inside<'a, 't>, String> {
        let query = inside.query;
        if !refers_outside(query) {
            let bound = if exists && is_limited_to_some(query) { self.unlimited(&inside)? } else { self.query(&inside)? };
            let targets = bound.types.iter().enumerate().map(|(index, of)| Expr::Column { index, kind: kind_of(self.catalogue, of.oid) });
            let targets = targets.collect();
            let relation = Relation { plan: bound.plan, width: bound.width, ..Relation::unit() };
            return Ok(Inside { level: inside, relation, on: Vec::new(), residual: Vec::new(), targets });
        }
        self.check_plain(query, exists)?;
        let Correlated { mut own, on, residual } = self.correlated(level, relation, &inside)?;
        let targets = if exists { Vec::new() } else { self.all(&inside, &mut own, &target_exprs(query)?)? };
        Ok(Inside { level: inside, relation: own, on, residual, targets })
    }

    /// FROM and WHERE of a correlated subquery: its rows, the equalities with the query around, what else ties them.
    fn correlated(&mut self, level: &Level<'a, 't>, relation: &mut Relation, inside: &Level<'a, 't>) -> Result<Correlated<'a, 't>, String> {
        let block = self.block(inside, true)?;
        let mut own = block.relation;
        let (mut on, mut residual) = (Vec::new(), Vec::new());
        for node in block.correlated {
            let sides = self.equality(node)?.and_then(|(left, right)| {
                let (of_left, of_right) = (Refs::of(left, inside), Refs::of(right, inside));
                let whole = |refs: &Refs| !refs.clock && !refs.subquery;
                if !whole(&of_left) || !whole(&of_right) {
                    None
                } else if of_left.outer && of_left.local.is_empty() && !of_right.outer {
                    Some((left, right))
                } else if of_right.outer && of_right.local.is_empty() && !of_left.outer {
                    Some((right, left))
                } else {
                    None
                }
            });
            match sides {
                Some((around, within)) => {
                    let outer = self.outer_key(level, relation, inside, around, node)?;
                    on.push((outer, self.key(inside, &mut own, within, node)?));
                }
                None => residual.push(node),
            }
        }
        Ok(Correlated { own, on, residual })
    }

    /// A key column of the rows around for an expression written inside of the subquery.
    fn outer_key(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        inside: &Level<'a, 't>,
        node: Node<'a, 't>,
        of: Node<'a, 't>,
    ) -> Result<usize, String> {
        let (vars, nothing, known) = (relation.vars.clone(), BTreeMap::new(), Known::new());
        let (expr, remote) = {
            let mut scope = Scope::new(self.catalogue, inside, &nothing, &known, Some(relation.width));
            scope.outer = Some((level, &vars));
            (scope.expr(node)?, scope.remote)
        };
        relation.remote(remote);
        let expr = self.canonical(expr, node, of)?;
        Ok(relation.append(expr))
    }

    /// Refuses a correlated subquery in which something works on the rows of one outer row at a time.
    fn check_plain(&self, query: Node<'a, 't>, exists: bool) -> Result<(), String> {
        let limited = query.has("limitOffset") || (query.has("limitCount") && !(exists && is_limited_to_some(query)));
        let works = limited
            || ["groupClause", "havingQual", "groupingSets", "setOperations", "cteList"].iter().any(|name| query.has(name))
            || ["hasAggs", "hasWindowFuncs", "hasTargetSRFs"].iter().any(|name| query.atom(name) == Some("true"))
            || (query.has("distinctClause") && query.atom("hasDistinctOn") == Some("true"));
        if works {
            return Err("a subquery both refers to the query around it and groups, limits or combines its rows. Move the grouping into a \
                        subquery of FROM"
                .to_owned());
        }
        Ok(())
    }
}

/// `left` with its columns `by` places further right.
fn moved(expr: &Expr, by: usize) -> Expr {
    let mut expr = expr.clone();
    super::prune::remap(&mut expr, &|index| index + by);
    expr
}

/// The comparisons of IN: one for each column.
fn tests<'a, 't>(sublink: Node<'a, 't>) -> Result<Vec<Node<'a, 't>>, String> {
    let test = sublink.node("testexpr").ok_or_else(|| unknown(sublink))?;
    let mut tests = Vec::new();
    super::relation::conjuncts(Some(test), &mut tests);
    Ok(tests)
}

fn holds_param(node: Node<'_, '_>) -> bool {
    node.tag() == "PARAM" || (node.tag() != "QUERY" && node.children().into_iter().any(holds_param))
}

/// Whether a query refers to the queries around it.
fn refers_outside(query: Node<'_, '_>) -> bool {
    fn walk(node: Node<'_, '_>, depth: u32) -> bool {
        let up = match node.tag() {
            "VAR" => node.number("varlevelsup"),
            "AGGREF" => node.number("agglevelsup"),
            "RANGETBLENTRY" if node.number("rtekind") == Some(super::RTE_CTE) => return false,
            _ => None,
        };
        let depth = depth + u32::from(node.tag() == "QUERY");
        up.is_some_and(|up| up >= depth) || node.children().into_iter().any(|child| walk(child, depth))
    }
    walk(query, 0)
}

/// Whether LIMIT only says that some rows suffice, which EXISTS knows.
fn is_limited_to_some(query: Node<'_, '_>) -> bool {
    let count = query.node("limitCount").map(|count| match (count.number("funcid"), count.nodes("args").as_deref()) {
        (Some(INT4_TO_INT8), Some([inner])) => *inner,
        _ => count,
    });
    let count = count.filter(|count| count.atom("constisnull") == Some("false"));
    let count = count.and_then(|count| count.bytes("constvalue")).and_then(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?)));
    !query.has("limitOffset") && count.is_some_and(|count| count > 0)
}

/// The SELECT list without what only ORDER BY needs.
pub(super) fn target_exprs<'a, 't>(query: Node<'a, 't>) -> Result<Vec<Node<'a, 't>>, String> {
    let targets = query.nodes("targetList").ok_or_else(|| unreadable("a SELECT list"))?;
    let shown = targets.into_iter().filter(|target| target.atom("resjunk") != Some("true"));
    shown.map(|target| target.node("expr").ok_or_else(|| unknown(target))).collect()
}

/// Whether two expressions of the same query are the same.
pub(super) fn same(left: Node<'_, '_>, right: Node<'_, '_>) -> bool {
    left.signature(&PLACES) == right.signature(&PLACES)
}

/// Every column of a row as it is.
pub(super) fn whole(width: usize) -> Vec<Expr> {
    passing(0..width)
}
