//! What a SELECT makes of the rows of FROM and WHERE: GROUP BY, aggregates, DISTINCT, the first rows of each partition.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Binder, Bound, WINDOW,
    from::project,
    keys::keys,
    relation::{Level, Relation, Typed, Vars, alias, conjuncts, kind_of, typed},
    scalar::{PLACES, collation},
    subquery::{Known, target_exprs},
    unknown, unreadable,
};
use crate::query::{Aggregate, AggregateKind, Expr, KeyClass, Kind, Order, Plan, scalar, tree::Node};

/// `row_number()`.
const ROW_NUMBER: u32 = 3100;

/// What GROUP BY's expressions and the aggregates of a query have become.
#[derive(Default)]
pub(super) struct Grouped {
    /// Signatures of the expressions, and their columns.
    pub(super) keys: Vec<(String, Expr)>,
    /// The aggregates' columns.
    pub(super) known: Known,
}

/// The rows of a query before they are cut down to its SELECT list.
struct Ordered {
    /// The columns: the SELECT list, then what is only ordered by.
    plan: Plan,
    types: Vec<Typed>,
    partition: Vec<usize>,
    order: Vec<Order>,
}

impl<'a, 't> Binder<'_> {
    /// Binds a query.
    pub(super) fn query(&mut self, level: &Level<'a, 't>) -> Result<Bound, String> {
        if level.query.has("limitCount") || level.query.has("limitOffset") {
            return Err("it uses LIMIT or OFFSET. Use row_number() in a subquery, compared with a constant".to_owned());
        }
        self.unlimited(level)
    }

    /// Binds a query regardless of its LIMIT.
    pub(super) fn unlimited(&mut self, level: &Level<'a, 't>) -> Result<Bound, String> {
        let query = level.query;
        check_query(query)?;
        if query.has("setOperations") {
            return self.set_operation(level);
        }
        if query.atom("hasWindowFuncs") == Some("true") {
            return Err(WINDOW.to_owned());
        }
        let distinct_on = query.atom("hasDistinctOn") == Some("true");
        let distinct = query.has("distinctClause") && !distinct_on;
        let before = self.only_rows_matter;
        self.only_rows_matter = !is_grouped(query) && !distinct_on && (before || distinct);
        let bound = self
            .rows(level)
            .and_then(|relation| if distinct_on { self.distinct_on(level, relation) } else { self.select(level, relation, distinct) });
        self.only_rows_matter = before;
        bound
    }

    /// FROM, WHERE, GROUP BY and HAVING.
    fn rows(&mut self, level: &Level<'a, 't>) -> Result<Relation, String> {
        // Bound before, for another reference to the same WITH.
        self.groups.remove(&level.query.id());
        let relation = self.block(level, false)?.relation;
        if !is_grouped(level.query) {
            return Ok(relation);
        }
        let mut relation = self.group(level, relation)?;
        let mut having = Vec::new();
        conjuncts(level.query.node("havingQual"), &mut having);
        self.conditions(level, &mut relation, having)?;
        Ok(relation)
    }

    fn select(&mut self, level: &Level<'a, 't>, mut relation: Relation, distinct: bool) -> Result<Bound, String> {
        let targets = target_exprs(level.query)?;
        let columns = self.all(level, &mut relation, &targets)?;
        let types = targets.iter().map(|target| typed(*target)).collect::<Result<Vec<Typed>, String>>()?;
        let width = columns.len();
        relation.wrap(|input| Plan::Map { input, columns });
        if distinct {
            self.check_keys(&types, "it uses DISTINCT")?;
            relation.wrap(Plan::Distinct);
        }
        Ok(Bound { plan: relation.plan, width, types })
    }

    fn group(&mut self, level: &Level<'a, 't>, mut relation: Relation) -> Result<Relation, String> {
        let query = level.query;
        let mut exprs = Vec::new();
        for clause in query.nodes("groupClause").ok_or_else(|| unreadable("GROUP BY"))? {
            let expr = clause_expr(query, clause)?;
            exprs.push(alias(level, expr).filter(|_| expr.tag() == "VAR").unwrap_or(expr));
        }
        let types = exprs.iter().map(|expr| typed(*expr)).collect::<Result<Vec<Typed>, String>>()?;
        self.check_keys(&types, "it uses GROUP BY")?;
        let signatures: BTreeSet<String> = exprs.iter().map(|expr| expr.signature(&PLACES)).collect();
        let mut dependent = Vec::new();
        let mut aggregates = Vec::new();
        for node in query.nodes("targetList").into_iter().flatten().chain(query.node("havingQual")) {
            aggregates_in(node, &mut aggregates);
            ungrouped(level, node, &signatures, &mut dependent);
        }
        // PostgreSQL lets in other columns only if the key of their table is grouped by: then they are the same within a group.
        for var in dependent {
            if !exprs.iter().any(|known| super::subquery::same(*known, var)) {
                exprs.push(var);
            }
        }
        let columns = self.all(level, &mut relation, &exprs)?;
        let keys: Vec<usize> = columns.into_iter().map(|column| relation.append(column)).collect();
        let mut grouped = Grouped::default();
        let mut vars = Vars::new();
        for (index, expr) in exprs.iter().enumerate() {
            let kind = kind_of(self.catalogue, typed(*expr)?.oid);
            grouped.keys.push((expr.signature(&PLACES), Expr::Column { index, kind }));
            if let ("VAR", Some(number), Some(attribute)) = (expr.tag(), expr.number("varno"), expr.number("varattno")) {
                vars.insert((number, attribute), index);
            }
        }
        let mut computed = Vec::new();
        for (place, node) in aggregates.iter().enumerate() {
            computed.push(self.aggregate(level, &mut relation, *node)?);
            let kind = kind_of(self.catalogue, typed(*node)?.oid);
            grouped.known.insert(node.id(), Expr::Column { index: exprs.len() + place, kind });
        }
        self.groups.insert(query.id(), grouped);
        let width = exprs.len() + computed.len();
        let plan = Plan::Group { input: Box::new(relation.plan), keys, aggregates: computed };
        Ok(Relation { plan, width, vars, covers: relation.covers })
    }

    /// An aggregate over a column of `relation`, which may be appended for it.
    pub(super) fn aggregate(&mut self, level: &Level<'a, 't>, relation: &mut Relation, node: Node<'a, 't>) -> Result<Aggregate, String> {
        let oid = node.number("aggfnoid").ok_or_else(|| unknown(node))?;
        let title = self.catalogue.functions.get(&oid).map_or("", |function| &function.title);
        if node.number("agglevelsup") != Some(0) {
            return Err("it has an aggregate of a query around it".to_owned());
        }
        let args = node.nodes("args").ok_or_else(|| unknown(node))?;
        let arg = args.first().and_then(|target| target.node("expr"));
        let of = arg.map(typed).transpose()?;
        let base = of.map(|of| self.catalogue.base(of.oid));
        let kind = match (title, base) {
            ("pg_catalog.count", None) => AggregateKind::CountAll,
            ("pg_catalog.count", Some(_)) if args.len() == 1 => AggregateKind::Count,
            ("pg_catalog.sum", Some(scalar::oids::INT2 | scalar::oids::INT4 | scalar::oids::INT8)) => AggregateKind::Sum,
            ("pg_catalog.min", Some(_)) => AggregateKind::Min,
            ("pg_catalog.max", Some(_)) => AggregateKind::Max,
            ("pg_catalog.bool_and" | "pg_catalog.every", Some(_)) => AggregateKind::BoolAnd,
            ("pg_catalog.bool_or", Some(_)) => AggregateKind::BoolOr,
            _ => {
                let of = base.map(|base| format!(" of {}", self.catalogue.type_sql(base))).unwrap_or_default();
                return Err(format!(
                    "it uses the aggregate {title}{of}. Of the aggregates only count, sum of integers, min, max, bool_and and \
                                    bool_or can be kept up to date"
                ));
            }
        };
        let distinct = node.has("aggdistinct");
        if let Some(of) = of.filter(|_| distinct && matches!(kind, AggregateKind::Count | AggregateKind::Sum)) {
            self.check_keys([&of], "it uses DISTINCT in an aggregate")?;
        }
        let order = match (kind, of) {
            (AggregateKind::Min | AggregateKind::Max, Some(of)) => Some(self.aggregate_order(of)?),
            _ => None,
        };
        let column = self.aggregated(level, relation, node, arg)?;
        // `count(*) FILTER` counts the rows for which there is a value.
        let kind = if kind == AggregateKind::CountAll && column.is_some() { AggregateKind::Count } else { kind };
        let order = order.map(|order| Order { column: column.unwrap_or_default(), ..order });
        Ok(Aggregate { kind, column, distinct, order })
    }

    fn aggregate_order(&self, of: Typed) -> Result<Order, String> {
        if self.distinct_class(of) != KeyClass::Exact {
            let name = self.catalogue.type_sql(of.oid);
            return Err(format!("it takes the min or max of type {name}, of which values that are spelled differently may be equal"));
        }
        let comparison = self.comparison(of)?;
        Ok(Order { column: 0, comparison, descending: false, nulls_first: false })
    }

    /// The column that an aggregate reads; FILTER leaves NULL for the rows it rejects, which every aggregate skips.
    fn aggregated(
        &mut self,
        level: &Level<'a, 't>,
        relation: &mut Relation,
        node: Node<'a, 't>,
        arg: Option<Node<'a, 't>>,
    ) -> Result<Option<usize>, String> {
        let value = match arg {
            Some(arg) => Some(self.all(level, relation, &[arg])?.remove(0)),
            None => None,
        };
        let Some(filter) = node.node("aggfilter") else { return Ok(value.map(|value| relation.append(value))) };
        let filter = self.all(level, relation, &[filter])?.remove(0);
        let kind = arg.map(typed).transpose()?.map_or(Kind::Bool, |of| kind_of(self.catalogue, of.oid));
        let value = value.unwrap_or(Expr::Const { text: Some("t".into()), kind: Kind::Bool });
        let column = Expr::Case { whens: vec![(filter, value)], otherwise: Box::new(Expr::Const { text: None, kind }) };
        Ok(Some(relation.append(column)))
    }

    /// How values of a type are ordered.
    fn comparison(&self, of: Typed) -> Result<crate::query::Comparison, String> {
        scalar::comparison(self.catalogue.base(of.oid), collation(self.catalogue, of.collation)).ok_or_else(|| {
            match self.catalogue.collations.get(&of.collation) {
                Some(collation) => format!(
                    "it orders text by collation {} ({}), which only the database can do. Write \
                     COLLATE \"C\" if the order of bytes will do",
                    collation.sql, collation.locale
                ),
                None => format!("it orders values of type {}, which only the database can do", self.catalogue.type_sql(of.oid)),
            }
        })
    }

    /// `SELECT DISTINCT ON (…) … ORDER BY …`.
    fn distinct_on(&mut self, level: &Level<'a, 't>, relation: Relation) -> Result<Bound, String> {
        let distinct = level.query.nodes("distinctClause").ok_or_else(|| unreadable("DISTINCT"))?;
        let sort = level.query.nodes("sortClause").ok_or_else(|| unreadable("ORDER BY"))?;
        let ordered = self.ordered(level, relation, &distinct, &sort, None)?;
        let types: Vec<Typed> = ordered.types.clone();
        let width = target_exprs(level.query)?.len();
        let plan = self.top(ordered, 1, "DISTINCT ON")?;
        Ok(Bound { plan: project(plan, &(0..width).collect::<Vec<_>>()), width, types: types.into_iter().take(width).collect() })
    }

    /// A subquery with `row_number()`, whose number is compared with a constant by one of `conditions`, which is used up.
    pub(super) fn windowed(&mut self, inside: &Level<'a, 't>, number: u32, conditions: &mut Vec<Node<'_, 't>>) -> Result<Relation, String> {
        let query = inside.query;
        check_query(query)?;
        if ["setOperations", "distinctClause", "limitCount", "limitOffset"].iter().any(|name| query.has(name)) {
            return Err(WINDOW.to_owned());
        }
        let targets = target_exprs(query)?;
        let windows: Vec<usize> = (0..targets.len()).filter(|&index| targets[index].tag() == "WINDOWFUNC").collect();
        let ([place], 1) = (&windows[..], window_functions(query)) else { return Err(WINDOW.to_owned()) };
        let window = targets[*place];
        if window.number("winfnoid") != Some(ROW_NUMBER) || window.has("aggfilter") {
            return Err(WINDOW.to_owned());
        }
        let attribute = u32::try_from(*place + 1).map_err(|_| unreadable("a SELECT list"))?;
        let found = conditions.iter().enumerate().find_map(|(index, node)| Some((index, self.row_limit(*node, (number, attribute))?)));
        let (index, limit) = found.ok_or_else(|| WINDOW.to_owned())?;
        conditions.remove(index);
        let clauses = query.nodes("windowClause").ok_or_else(|| unreadable("a window"))?;
        let clause = clauses.into_iter().find(|clause| clause.number("winref") == window.number("winref"));
        let clause = clause.ok_or_else(|| unreadable("a window"))?;
        let (Some(partition), Some(order)) = (clause.nodes("partitionClause"), clause.nodes("orderClause")) else {
            return Err(unreadable("a window"));
        };
        let before = std::mem::replace(&mut self.only_rows_matter, false);
        let relation = self.rows(inside);
        self.only_rows_matter = before;
        let ordered = self.ordered(inside, relation?, &partition, &order, Some(*place))?;
        let plan = self.top(ordered, limit, "row_number()")?;
        let mut relation = Relation::entry(plan, targets.len(), number);
        if limit != 1 {
            // Then it is more than a constant, and nobody else may ask for it.
            relation.vars.remove(&(number, attribute));
        }
        let mut columns = super::subquery::whole(targets.len());
        columns[*place] = Expr::Const { text: Some("1".into()), kind: Kind::Int };
        relation.wrap(|input| Plan::Map { input, columns });
        Ok(relation)
    }

    /// The limit that a condition on a row number sets: `= 1`, `<= k`, `< k`.
    fn row_limit(&self, node: Node<'_, 't>, var: (u32, u32)) -> Option<u64> {
        let operator = self.catalogue.operators.get(&node.number("opno").filter(|_| node.tag() == "OPEXPR")?)?;
        let [left, right] = node.nodes("args")?[..] else { return None };
        let is_number = |node: Node<'_, '_>| {
            node.tag() == "VAR"
                && (node.number("varno"), node.number("varattno"), node.number("varlevelsup")) == (Some(var.0), Some(var.1), Some(0))
        };
        let (constant, name) = match (operator.name.as_str(), is_number(left), is_number(right)) {
            (name @ ("=" | "<=" | "<"), true, false) => (right, name),
            ("=", false, true) => (left, "="),
            (">=", false, true) => (left, "<="),
            (">", false, true) => (left, "<"),
            _ => return None,
        };
        let of = typed(constant).ok().filter(|of| constant.tag() == "CONST" && scalar::kind(of.oid) == Kind::Int)?;
        let value: i64 = scalar::constant(of.oid, &constant.bytes("constvalue")?)?.parse().ok()?;
        match (operator.schema.as_str(), name, value) {
            ("pg_catalog", "=", 1) => Some(1),
            ("pg_catalog", "<=", 1..) => u64::try_from(value).ok(),
            ("pg_catalog", "<", 2..) => u64::try_from(value - 1).ok(),
            _ => None,
        }
    }

    /// The SELECT list with what else is partitioned and ordered by; `number` is the place of `row_number()` in the list.
    fn ordered(
        &mut self,
        level: &Level<'a, 't>,
        mut relation: Relation,
        partition: &[Node<'a, 't>],
        sort: &[Node<'a, 't>],
        number: Option<usize>,
    ) -> Result<Ordered, String> {
        let mut exprs = target_exprs(level.query)?;
        let shown = exprs.len();
        let mut clauses = Vec::new();
        for clause in partition.iter().chain(sort) {
            clauses.push(exprs.len());
            exprs.push(clause_expr(level.query, *clause)?);
        }
        let bindable: Vec<Node<'a, 't>> =
            exprs.iter().enumerate().filter(|(index, _)| Some(*index) != number).map(|(_, expr)| *expr).collect();
        let mut columns = self.all(level, &mut relation, &bindable)?;
        if let Some(number) = number {
            columns.insert(number, Expr::Const { text: Some("1".into()), kind: Kind::Int });
        }
        let types = exprs.iter().map(|expr| typed(*expr)).collect::<Result<Vec<Typed>, String>>()?;
        let (by_partition, by_order) = clauses.split_at(partition.len());
        // A column that is in the list, too, is one column.
        let place = |column: usize| (0..shown).find(|&known| columns[known] == columns[column]).unwrap_or(column);
        let parts: Vec<usize> = by_partition.iter().map(|column| place(*column)).collect();
        let mut order = Vec::new();
        for (column, clause) in by_order.iter().zip(sort) {
            if !parts.contains(&place(*column)) {
                order.push(self.order(place(*column), types[*column], *clause)?);
            }
        }
        relation.wrap(|input| Plan::Map { input, columns });
        Ok(Ordered { plan: relation.plan, types, partition: parts, order })
    }

    fn order(&self, column: usize, of: Typed, clause: Node<'a, 't>) -> Result<Order, String> {
        let operator = clause.number("sortop").and_then(|oid| self.catalogue.operators.get(&oid));
        let descending = match operator {
            Some(operator) if operator.less => false,
            Some(operator) if operator.greater => true,
            Some(_) | None => return Err("it orders by an operator of its own".to_owned()),
        };
        let nulls_first = clause.atom("nulls_first") == Some("true");
        Ok(Order { column, comparison: self.comparison(of)?, descending, nulls_first })
    }

    /// The first rows of each partition, if the order leaves no choice.
    fn top(&self, ordered: Ordered, limit: u64, what: &str) -> Result<Plan, String> {
        let Ordered { plan, types, partition, order } = ordered;
        self.check_keys(partition.iter().map(|column| &types[*column]), &format!("it uses {what}"))?;
        let decided: BTreeSet<usize> = partition.iter().copied().chain(order.iter().map(|order| order.column)).collect();
        let by_key = keys(&plan, self.catalogue).iter().any(|key| key.is_subset(&decided));
        let Plan::Map { columns, .. } = &plan else { return Err(unreadable("an order")) };
        let constant = |index: usize| matches!(columns[index], Expr::Const { .. });
        let repeated =
            |index: usize| columns.iter().position(|column| *column == columns[index]).is_some_and(|first| decided.contains(&first));
        let by_all = (0..columns.len()).all(|index| constant(index) || decided.contains(&index) || repeated(index))
            && decided.iter().all(|column| self.distinct_class(types[*column]) == KeyClass::Exact);
        if !by_key && !by_all {
            return Err(format!(
                "the order of its {what} is not total, so the database may choose among rows. Add the columns of a unique \
                                key of NOT NULL columns of every table it reads to the ORDER BY"
            ));
        }
        Ok(Plan::Top { input: Box::new(plan), partition, order, limit })
    }
}

/// Refuses what no part of this module knows.
fn check_query(query: Node<'_, '_>) -> Result<(), String> {
    if query.atom("commandType") != Some("1") || query.has("utilityStmt") {
        return Err("it is not a SELECT".to_owned());
    }
    if query.has("groupingSets") {
        return Err("it uses GROUPING SETS, CUBE or ROLLUP. Write UNION ALL".to_owned());
    }
    if query.atom("hasTargetSRFs") == Some("true") {
        return Err("it has a function that returns several rows in its SELECT list. Move it to FROM".to_owned());
    }
    if query.has("rowMarks") || query.atom("hasModifyingCTE") == Some("true") {
        return Err("it locks or changes rows".to_owned());
    }
    Ok(())
}

fn is_grouped(query: Node<'_, '_>) -> bool {
    query.atom("hasAggs") == Some("true") || query.has("groupClause") || query.has("havingQual")
}

/// The expression of the SELECT list that a GROUP BY, DISTINCT or ORDER BY term names.
fn clause_expr<'a, 't>(query: Node<'a, 't>, clause: Node<'_, '_>) -> Result<Node<'a, 't>, String> {
    let wanted = clause.number("tleSortGroupRef").ok_or_else(|| unreadable("GROUP BY or ORDER BY"))?;
    let targets = query.nodes("targetList").ok_or_else(|| unreadable("a SELECT list"))?;
    let target = targets.into_iter().find(|target| target.number("ressortgroupref") == Some(wanted));
    target.and_then(|target| target.node("expr")).ok_or_else(|| unreadable("GROUP BY or ORDER BY"))
}

/// Collects the aggregates of this query within `node`.
pub(super) fn aggregates_in<'a, 't>(node: Node<'a, 't>, into: &mut Vec<Node<'a, 't>>) {
    match node.tag() {
        "AGGREF" => into.push(node),
        "QUERY" => {}
        _ => node.children().into_iter().for_each(|child| aggregates_in(child, into)),
    }
}

fn window_functions(query: Node<'_, '_>) -> usize {
    fn count(node: Node<'_, '_>) -> usize {
        match node.tag() {
            "WINDOWFUNC" => 1,
            "QUERY" => 0,
            _ => node.children().into_iter().map(count).sum(),
        }
    }
    query.children().into_iter().filter(|node| node.tag() == "TARGETENTRY").map(count).sum()
}

/// Collects the variables outside of aggregates and of GROUP BY's expressions.
fn ungrouped<'a, 't>(level: &Level<'a, 't>, node: Node<'a, 't>, keys: &BTreeSet<String>, into: &mut Vec<Node<'a, 't>>) {
    let behind = alias(level, node).filter(|_| node.tag() == "VAR" && node.number("varlevelsup") == Some(0));
    let node = behind.unwrap_or(node);
    if node.tag() == "AGGREF" || node.tag() == "QUERY" || keys.contains(&node.signature(&PLACES)) {
        return;
    }
    if node.tag() == "VAR" && node.number("varlevelsup") == Some(0) {
        into.push(node);
    }
    node.children().into_iter().for_each(|child| ungrouped(level, child, keys, into));
}

/// Columns by name of a grouped query, none for others.
pub(super) fn names(groups: &BTreeMap<crate::query::tree::ItemId, Grouped>, level: &Level<'_, '_>) -> (Vec<(String, Expr)>, Known) {
    groups.get(&level.query.id()).map(|grouped| (grouped.keys.clone(), grouped.known.clone())).unwrap_or_default()
}
