//! UNION, EXCEPT, INTERSECT, and WITH.

use super::{
    Binder, Bound,
    relation::{Level, Typed},
    unknown, unreadable,
};
use crate::query::{
    Plan, SetKind,
    scalar::oids::{INT2, INT4, INT8},
    tree::Node,
};

/// `SetOperation` of `nodes/parsenodes.h`.
const UNION: u32 = 1;
const INTERSECT: u32 = 2;
const EXCEPT: u32 = 3;

impl<'a, 't> Binder<'_> {
    /// Binds a query that is a set operation.
    pub(super) fn set_operation(&mut self, level: &Level<'a, 't>) -> Result<Bound, String> {
        let operation = level.query.node("setOperations").ok_or_else(|| unreadable("a set operation"))?;
        self.operand(level, operation)
    }

    fn operand(&mut self, level: &Level<'a, 't>, node: Node<'a, 't>) -> Result<Bound, String> {
        if node.tag() == "RANGETBLREF" {
            let entry = node.number("rtindex").and_then(|number| level.entry(number)).ok_or_else(|| unknown(node))?;
            let query = entry.node("subquery").ok_or_else(|| unknown(entry))?;
            return self.query(&Level { query, parent: Some(level) });
        }
        let all = match (node.tag(), node.atom("all")) {
            ("SETOPERATIONSTMT", Some("true")) => true,
            ("SETOPERATIONSTMT", Some("false")) => false,
            _ => return Err(unknown(node)),
        };
        let types = types(node, ["colTypes", "colTypmods", "colCollations"]).ok_or_else(|| unknown(node))?;
        let operation = node.number("op");
        if operation != Some(UNION) || !all {
            self.check_keys(&types, "it uses UNION, EXCEPT or INTERSECT")?;
        }
        let before = self.only_rows_matter;
        self.only_rows_matter = !all || (before && operation == Some(UNION));
        let sides = self.side(level, node, "larg", &types).and_then(|left| Ok((left, self.side(level, node, "rarg", &types)?)));
        self.only_rows_matter = before;
        let (left, right) = sides?;
        let set = |kind| Plan::Set { kind, left: Box::new(left.clone()), right: Box::new(right.clone()) };
        let plan = match (operation, all) {
            (Some(UNION), true) => union_all(left, right),
            // What is made distinct above need not be below.
            (Some(UNION), false) => Plan::Distinct(Box::new(union_all(without_distinct(left), without_distinct(right)))),
            (Some(INTERSECT), true) => set(SetKind::IntersectAll),
            (Some(INTERSECT), false) => set(SetKind::Intersect),
            (Some(EXCEPT), true) => set(SetKind::ExceptAll),
            (Some(EXCEPT), false) => set(SetKind::Except),
            _ => return Err(unknown(node)),
        };
        Ok(Bound { plan, width: types.len(), types })
    }

    /// One side, whose texts must be those of the common types.
    fn side(&mut self, level: &Level<'a, 't>, node: Node<'a, 't>, name: &str, types: &[Typed]) -> Result<Plan, String> {
        let bound = self.operand(level, node.node(name).ok_or_else(|| unknown(node))?)?;
        if bound.types.len() != types.len() {
            return Err(unknown(node));
        }
        for (from, to) in bound.types.iter().zip(types) {
            let integers = [from.oid, to.oid].iter().all(|oid| [INT2, INT4, INT8].contains(&self.catalogue.base(*oid)));
            if !integers && !self.catalogue.same_text(from.oid, to.oid) {
                return Err(format!(
                    "it combines a column of type {} with one of type {}. Cast one of them to the type of the other",
                    self.catalogue.type_sql(from.oid),
                    self.catalogue.type_sql(to.oid)
                ));
            }
        }
        Ok(bound.plan)
    }

    /// A reference to a query of WITH, bound once more for each reference.
    pub(super) fn cte(&mut self, level: &Level<'a, 't>, entry: Node<'a, 't>) -> Result<Bound, String> {
        let (name, up) = (entry.atom("ctename").ok_or_else(|| unknown(entry))?, entry.number("ctelevelsup").ok_or_else(|| unknown(entry))?);
        let mut home = level;
        for _ in 0..up {
            home = home.parent.ok_or_else(|| unknown(entry))?;
        }
        let ctes = home.query.nodes("cteList").ok_or_else(|| unreadable("WITH"))?;
        let cte = ctes.into_iter().find(|cte| cte.atom("ctename") == Some(name)).ok_or_else(|| unknown(entry))?;
        let types = types(cte, ["ctecoltypes", "ctecoltypmods", "ctecolcollations"]).ok_or_else(|| unknown(cte))?;
        if entry.atom("self_reference") == Some("true") {
            return Ok(Bound { plan: Plan::Itself { width: types.len() }, width: types.len(), types });
        }
        if cte.has("search_clause") || cte.has("cycle_clause") {
            return Err("it uses SEARCH or CYCLE with WITH RECURSIVE. UNION without ALL ends at cycles by itself".to_owned());
        }
        let query = cte.node("ctequery").ok_or_else(|| unknown(cte))?;
        let inside = Level { query, parent: Some(home) };
        if cte.atom("cterecursive") == Some("true") { self.recursive(&inside, types) } else { self.query(&inside) }
    }

    fn recursive(&mut self, level: &Level<'a, 't>, types: Vec<Typed>) -> Result<Bound, String> {
        let operation = level.query.node("setOperations").filter(|node| node.number("op") == Some(UNION));
        let operation = operation.ok_or_else(|| "its WITH RECURSIVE is not a UNION of a start and a step".to_owned())?;
        if level.query.has("limitCount") || level.query.has("limitOffset") {
            return Err("it limits a WITH RECURSIVE".to_owned());
        }
        if operation.atom("all") == Some("true") {
            if !self.only_rows_matter {
                return Err("something counts the rows of a WITH RECURSIVE … UNION ALL. Write UNION".to_owned());
            }
        } else {
            self.check_keys(&types, "it uses WITH RECURSIVE … UNION")?;
        }
        let before = std::mem::replace(&mut self.only_rows_matter, true);
        let sides = self.side(level, operation, "larg", &types).and_then(|base| Ok((base, self.side(level, operation, "rarg", &types)?)));
        self.only_rows_matter = before;
        let (base, step) = sides?;
        if references(&step) != 1 || references(&base) != 0 || !is_linear(&step, false) {
            return Err("a step of its WITH RECURSIVE refers to the result so far twice, or in another place than an inner join".to_owned());
        }
        let width = types.len();
        Ok(Bound { plan: Plan::Recursive { base: Box::new(base), step: Box::new(step), width }, width, types })
    }
}

/// The types of a list of columns.
fn types(node: Node<'_, '_>, [oids, typmods, collations]: [&str; 3]) -> Option<Vec<Typed>> {
    let numbers = |name| -> Option<Vec<i64>> { node.words(name)?.iter().skip(1).map(|word| word.parse().ok()).collect() };
    let (oids, typmods, collations) = (numbers(oids)?, numbers(typmods)?, numbers(collations)?);
    let types = oids.iter().zip(typmods).zip(collations).map(|((oid, typmod), collation)| {
        Some(Typed { oid: u32::try_from(*oid).ok()?, typmod: i32::try_from(typmod).ok()?, collation: u32::try_from(collation).ok()? })
    });
    types.collect()
}

fn union_all(left: Plan, right: Plan) -> Plan {
    let mut all = Vec::new();
    for side in [left, right] {
        match side {
            Plan::UnionAll(inputs) => all.extend(inputs),
            other => all.push(other),
        }
    }
    Plan::UnionAll(all)
}

fn without_distinct(plan: Plan) -> Plan {
    match plan {
        Plan::Distinct(input) => *input,
        other => other,
    }
}

/// How often a step refers to the set so far.
fn references(plan: &Plan) -> usize {
    match plan {
        Plan::Itself { .. } => 1,
        // Its own reference is not ours; a nested one cannot see the set around it but through WITH, which is bound inside of it.
        Plan::Recursive { base, step, .. } => references(base) + references(step).saturating_sub(1),
        Plan::Scan { .. } | Plan::Values { .. } => 0,
        Plan::Filter { input, .. }
        | Plan::Map { input, .. }
        | Plan::Remote { input, .. }
        | Plan::Unnest { input, .. }
        | Plan::Unpack { input, .. } => references(input),
        Plan::Group { input, .. } | Plan::Top { input, .. } | Plan::Clock { input, .. } | Plan::Distinct(input) => references(input),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().map(references).sum(),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => references(left) + references(right),
    }
}

/// Whether the reference stands where a row of the set so far makes rows of the step one by one.
fn is_linear(plan: &Plan, joined: bool) -> bool {
    match plan {
        Plan::Itself { .. } => true,
        Plan::Filter { input, .. } | Plan::Map { input, .. } => is_linear(input, joined),
        Plan::Join { inputs, .. } if !joined => inputs.iter().any(|input| is_linear(input, true)),
        _ => false,
    }
}
