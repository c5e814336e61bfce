//! `(SELECT …)` as a value: columns beside the rows around it.
//!
//! Such a subquery has one row at most, or the query is in error. One that refers to nothing around is joined to every row. A correlated
//! one is joined by its keys, as an outer join, since without a row its value is NULL; where it aggregates all its rows, a group without
//! rows has no key to be found by, so what the aggregates of no rows would be is put in its place. Conditions other than equalities
//! would have to choose among the rows of a group, so they are refused.

use std::collections::{BTreeMap, BTreeSet};

use super::{Correlated, Known, refers_outside, target_exprs};
use crate::query::{
    Aggregate, AggregateKind, EqualPair, Expr, Kind, OuterKind, Plan, SemiKind,
    bind::{
        Binder,
        from::project,
        group::aggregates_in,
        keys,
        relation::{Level, Relation, kind_of, typed},
        scalar::Scope,
        unknown, unreadable,
    },
    tree::Node,
};

impl<'a, 't> Binder<'_> {
    /// `(SELECT …)` as a value.
    pub(super) fn scalar(&mut self, level: &Level<'a, 't>, relation: &mut Relation, sublink: Node<'a, 't>) -> Result<Expr, String> {
        let query = sublink.node("subselect").ok_or_else(|| unknown(sublink))?;
        let inside = Level { query, parent: Some(level) };
        let before = std::mem::replace(&mut self.only_rows_matter, false);
        let bound = if !refers_outside(query) {
            self.independent_scalar(relation, &inside)
        } else if query.atom("hasAggs") == Some("true") {
            self.aggregated_scalar(level, relation, &inside)
        } else {
            self.single_scalar(level, relation, &inside)
        };
        self.only_rows_matter = before;
        bound
    }

    /// The one row of a subquery that refers to nothing around: beside every row.
    fn independent_scalar(&mut self, relation: &mut Relation, inside: &Level<'a, 't>) -> Result<Expr, String> {
        let bound = self.query(inside)?;
        let kind = kind_of(self.catalogue, bound.types.first().ok_or_else(|| unreadable("a subquery"))?.oid);
        let one_row = inside.query.atom("hasAggs") == Some("true") && !inside.query.has("groupClause") && !inside.query.has("havingQual");
        let right = if one_row { bound.plan } else { group(bound.plan, Vec::new(), vec![single(0)]) };
        let index = relation.width;
        relation.width += if one_row { bound.width } else { 1 };
        relation.wrap(|left| Plan::Join { inputs: vec![*left, right], on: Vec::<EqualPair>::new(), filter: None });
        Ok(Expr::Column { index, kind })
    }

    /// A correlated subquery of rows of which there may be one for each outer row.
    fn single_scalar(&mut self, level: &Level<'a, 't>, relation: &mut Relation, inside: &Level<'a, 't>) -> Result<Expr, String> {
        self.check_plain(inside.query, false)?;
        let Correlated { mut own, on, residual } = self.correlated(level, relation, inside)?;
        check_scalar_correlation(&on, &residual)?;
        let mut targets = self.all(inside, &mut own, &target_exprs(inside.query)?)?;
        let target = targets.pop().filter(|_| targets.is_empty()).ok_or_else(|| unreadable("a subquery"))?;
        let value = own.append(target);
        let keys: BTreeSet<usize> = on.iter().map(|(_, inner)| *inner).collect();
        let index = if keys::keys(&own.plan, self.catalogue).iter().any(|key| key.is_subset(&keys)) {
            // There is one row at most for each outer row: no need to see to it.
            let index = relation.width + value;
            relation.width += own.width;
            relation.wrap(|left| Plan::Outer { kind: OuterKind::Left, left, right: Box::new(own.plan), on, filter: None });
            index
        } else {
            // A second row is an error only where there is an outer row that asks for it.
            let asked = project(relation.plan.clone(), &on.iter().map(|(outer, _)| *outer).collect::<Vec<_>>());
            let pairs = on.iter().enumerate().map(|(place, (_, inner))| (*inner, place)).collect();
            own.wrap(|left| Plan::Semi { kind: SemiKind::Semi, left, right: Box::new(asked), on: pairs, filter: None });
            attach(relation, group(own.plan, on.iter().map(|(_, inner)| *inner).collect(), vec![single(value)]), &on, 1)
        };
        let of = target_exprs(inside.query)?.first().map(|node| typed(*node)).ok_or_else(|| unreadable("a subquery"))??;
        Ok(Expr::Column { index, kind: kind_of(self.catalogue, of.oid) })
    }

    /// A correlated subquery that aggregates all its rows: a group for each key, and what an empty group would give for other rows.
    fn aggregated_scalar(&mut self, level: &Level<'a, 't>, relation: &mut Relation, inside: &Level<'a, 't>) -> Result<Expr, String> {
        let query = inside.query;
        if ["groupClause", "havingQual", "groupingSets", "distinctClause", "limitCount", "limitOffset", "setOperations"]
            .iter()
            .any(|name| query.has(name))
            || query.atom("hasWindowFuncs") == Some("true")
        {
            return Err("a subquery in an expression both refers to the query around it and groups or limits its rows".to_owned());
        }
        let Correlated { mut own, on, residual } = self.correlated(level, relation, inside)?;
        check_scalar_correlation(&on, &residual)?;
        let targets = target_exprs(query)?;
        let [target] = targets[..] else { return Err(unreadable("a subquery")) };
        let mut found = Vec::new();
        aggregates_in(target, &mut found);
        let mut aggregates: Vec<Aggregate> = Vec::new();
        for node in &found {
            aggregates.push(self.aggregate(inside, &mut own, *node)?);
        }
        let keys: Vec<usize> = on.iter().map(|(_, inner)| *inner).collect();
        let counts: Vec<bool> = aggregates.iter().map(|of| matches!(of.kind, AggregateKind::Count | AggregateKind::CountAll)).collect();
        let from = attach(relation, group(own.plan, keys, aggregates), &on, found.len());
        let mut known = Known::new();
        for (offset, (node, is_count)) in found.iter().zip(counts).enumerate() {
            let column = Expr::Column { index: from + offset, kind: kind_of(self.catalogue, typed(*node)?.oid) };
            let zero = Expr::Const { text: Some("0".into()), kind: Kind::Int };
            known.insert(node.id(), if is_count { Expr::Coalesce(vec![column, zero]) } else { column });
        }
        let (vars, nothing) = (relation.vars.clone(), BTreeMap::new());
        let (expr, remote) = {
            let mut scope = Scope::new(self.catalogue, inside, &nothing, &known, Some(relation.width));
            scope.outer = Some((level, &vars));
            (scope.expr(target)?, scope.remote)
        };
        relation.remote(remote);
        Ok(expr)
    }
}

fn check_scalar_correlation(on: &[(usize, usize)], residual: &[Node<'_, '_>]) -> Result<(), String> {
    if on.is_empty() || !residual.is_empty() {
        return Err("a subquery in an expression refers to the query around it by more than equalities".to_owned());
    }
    Ok(())
}

/// Puts the groups of `right`, whose keys come first, beside the rows of `relation`; the index of the first of `values` columns.
fn attach(relation: &mut Relation, right: Plan, on: &[(usize, usize)], values: usize) -> usize {
    let keys = on.len();
    let on = on.iter().enumerate().map(|(place, (outer, _))| (*outer, place)).collect();
    let from = relation.width + keys;
    relation.wrap(|left| Plan::Outer { kind: OuterKind::Left, left, right: Box::new(right), on, filter: None });
    relation.width = from + values;
    from
}

fn group(input: Plan, keys: Vec<usize>, aggregates: Vec<Aggregate>) -> Plan {
    Plan::Group { input: Box::new(input), keys, aggregates }
}

fn single(column: usize) -> Aggregate {
    Aggregate { kind: AggregateKind::Single, column: Some(column), distinct: false, order: None }
}
