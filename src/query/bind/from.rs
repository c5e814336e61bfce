//! FROM and WHERE: inner joins flattened into one join of many inputs, conditions as deep down as they go.
//!
//! A condition that concerns one input filters it before the join, so that fewer rows are ever stored. An equality between two
//! inputs becomes a pair of the join if bytes decide it; everything else filters the join's output.

use std::collections::BTreeSet;

use super::{
    Binder, Bound, RTE_CTE, RTE_FUNCTION, RTE_RELATION, RTE_RESULT, RTE_SUBQUERY, RTE_VALUES,
    clock::ELSEWHERE,
    group::names,
    relation::{Level, Refs, Relation, Vars, conjuncts, is_small, passing},
    scalar::Scope,
    subquery::Known,
    unknown, unreadable,
};
use crate::data::Row;
use crate::query::{Clock, EqualPair, Expr, Kind, OuterKind, Plan, Srf, tree::Node};

/// `unnest(anyarray)`, `jsonb_array_elements_text`, `json_array_elements_text`.
const SET_FUNCTIONS: [(u32, Srf); 3] = [(2331, Srf::Unnest), (3465, Srf::JsonbArrayElementsText), (3969, Srf::JsonArrayElementsText)];
/// `JoinType` of `nodes/nodes.h`.
const INNER: u32 = 0;
const LEFT: u32 = 1;
const FULL: u32 = 2;
const RIGHT: u32 = 3;

/// The rows of FROM and WHERE, and the conditions that also concern the query around.
pub(super) struct Block<'a, 't> {
    /// The rows.
    pub(super) relation: Relation,
    /// What is left for whoever joins them with the query around.
    pub(super) correlated: Vec<Node<'a, 't>>,
}

/// What a FROM clause is made of.
struct Parts<'a, 't> {
    atoms: Vec<Relation>,
    conditions: Vec<Node<'a, 't>>,
    /// Functions that are applied to the rows of the others.
    functions: Vec<(u32, Node<'a, 't>)>,
}

impl<'a, 't> Binder<'_> {
    /// Binds `query`'s FROM and WHERE.
    pub(super) fn block(&mut self, level: &Level<'a, 't>, correlated: bool) -> Result<Block<'a, 't>, String> {
        let tree = level.query.node("jointree").ok_or_else(|| unreadable("FROM"))?;
        let mut conditions = Vec::new();
        conjuncts(tree.node("quals"), &mut conditions);
        let items = tree.nodes("fromlist").ok_or_else(|| unreadable("FROM"))?;
        let mut correlations = Vec::new();
        let relation = self.inner(level, &items, conditions, correlated.then_some(&mut correlations))?;
        Ok(Block { relation, correlated: correlations })
    }

    fn inner(
        &mut self,
        level: &Level<'a, 't>,
        items: &[Node<'a, 't>],
        mut conditions: Vec<Node<'a, 't>>,
        correlations: Option<&mut Vec<Node<'a, 't>>>,
    ) -> Result<Relation, String> {
        for item in items {
            inner_conditions(*item, &mut conditions);
        }
        let mut parts = Parts { atoms: Vec::new(), conditions, functions: Vec::new() };
        for item in items {
            self.collect(level, *item, &mut parts)?;
        }
        if let Some(correlations) = correlations {
            let (around, own) = parts.conditions.into_iter().partition(|node| Refs::of(*node, level).outer);
            (*correlations, parts.conditions) = (around, own);
        }
        self.apply_functions_to_atoms(level, &mut parts)?;
        self.join(level, parts)
    }

    /// Collects the inputs of inner joins.
    fn collect(&mut self, level: &Level<'a, 't>, item: Node<'a, 't>, parts: &mut Parts<'a, 't>) -> Result<(), String> {
        match (item.tag(), item.number("jointype")) {
            ("RANGETBLREF", _) => {
                let number = item.number("rtindex").ok_or_else(|| unknown(item))?;
                let entry = level.entry(number).ok_or_else(|| unknown(item))?;
                if entry.number("rtekind") == Some(RTE_FUNCTION) {
                    parts.functions.push((number, entry));
                } else {
                    let atom = self.entry(level, number, entry, &mut parts.conditions)?;
                    parts.atoms.push(atom);
                }
                Ok(())
            }
            ("JOINEXPR", Some(INNER)) => {
                for side in ["larg", "rarg"] {
                    self.collect(level, item.node(side).ok_or_else(|| unknown(item))?, parts)?;
                }
                Ok(())
            }
            ("JOINEXPR", Some(LEFT | FULL | RIGHT)) => {
                let atom = self.outer(level, item)?;
                parts.atoms.push(atom);
                Ok(())
            }
            _ => Err(unknown(item)),
        }
    }

    /// One entry of the range table.
    fn entry(
        &mut self,
        level: &Level<'a, 't>,
        number: u32,
        entry: Node<'a, 't>,
        conditions: &mut Vec<Node<'a, 't>>,
    ) -> Result<Relation, String> {
        if entry.has("tablesample") || entry.has("securityQuals") {
            return Err("it samples a table or is filtered by row-level security".to_owned());
        }
        match entry.number("rtekind") {
            Some(RTE_RELATION) => self.table(number, entry),
            Some(RTE_SUBQUERY) => {
                let query = entry.node("subquery").ok_or_else(|| unknown(entry))?;
                let inside = Level { query, parent: Some(level) };
                if query.atom("hasWindowFuncs") == Some("true") {
                    return self.windowed(&inside, number, conditions);
                }
                let Bound { plan, width, .. } = self.query(&inside)?;
                Ok(Relation::entry(plan, width, number))
            }
            Some(RTE_CTE) => {
                let Bound { plan, width, .. } = self.cte(level, entry)?;
                Ok(Relation::entry(plan, width, number))
            }
            Some(RTE_VALUES) => self.values(level, number, entry),
            Some(RTE_RESULT) => Ok(Relation { covers: BTreeSet::from([number]), ..Relation::unit() }),
            Some(4) => Err("it reads a table function such as XMLTABLE or JSON_TABLE".to_owned()),
            _ => Err(unknown(entry)),
        }
    }

    fn table(&mut self, number: u32, entry: Node<'a, 't>) -> Result<Relation, String> {
        let oid = entry.number("relid").ok_or_else(|| unknown(entry))?;
        let table = self.catalogue.tables.get(&oid).ok_or_else(|| unreadable("a table"))?;
        self.check_table(oid, entry.atom("inh") == Some("true"))?;
        let attributes = table.columns.keys().enumerate();
        let vars = attributes.filter_map(|(index, attribute)| Some(((number, u32::try_from(*attribute).ok()?), index))).collect();
        Ok(Relation { plan: Plan::Scan { table: oid }, width: table.columns.len(), vars, covers: BTreeSet::from([number]) })
    }

    fn values(&mut self, level: &Level<'a, 't>, number: u32, entry: Node<'a, 't>) -> Result<Relation, String> {
        let lists = entry.lists("values_lists").ok_or_else(|| unknown(entry))?;
        let width = lists.first().map_or(0, Vec::len);
        let (mut constant, mut computed) = (Vec::new(), Vec::new());
        for list in lists {
            let mut row = Relation::unit();
            let columns = self.all(level, &mut row, &list)?;
            match constants(&columns).filter(|_| row.width == 0) {
                Some(row) => constant.push(row),
                None => computed.push(Plan::Map { input: Box::new(row.plan), columns }),
            }
        }
        if !constant.is_empty() || computed.is_empty() {
            computed.push(Plan::Values { rows: constant, width });
        }
        let plan = if computed.len() == 1 { computed.remove(0) } else { Plan::UnionAll(computed) };
        Ok(Relation::entry(plan, width, number))
    }

    /// Binds expressions over a relation's rows, which may get columns that the source computes.
    pub(super) fn all(&mut self, level: &Level<'a, 't>, relation: &mut Relation, nodes: &[Node<'a, 't>]) -> Result<Vec<Expr>, String> {
        let (keys, mut known) = names(&self.groups, level);
        for node in nodes {
            self.subqueries(level, relation, *node, false, &mut known)?;
        }
        let vars = relation.vars.clone();
        let mut scope = Scope::new(self.catalogue, level, &vars, &known, Some(relation.width));
        scope.keys = &keys;
        let columns = nodes.iter().map(|node| scope.expr(*node)).collect::<Result<Vec<Expr>, String>>()?;
        relation.remote(scope.remote);
        Ok(columns)
    }

    /// A function over the rows of one input extends that input.
    fn apply_functions_to_atoms(&mut self, level: &Level<'a, 't>, parts: &mut Parts<'a, 't>) -> Result<(), String> {
        for (number, entry) in std::mem::take(&mut parts.functions) {
            let refs = Refs::of(entry, level);
            let touched: Vec<usize> = (0..parts.atoms.len()).filter(|&atom| !refs.local.is_disjoint(&parts.atoms[atom].covers)).collect();
            match touched[..] {
                [] => {
                    let mut atom = Relation::unit();
                    self.function(level, &mut atom, number, entry)?;
                    parts.atoms.push(atom);
                }
                [atom] => self.function(level, &mut parts.atoms[atom], number, entry)?,
                _ => return Err("it has a function in FROM over columns of several tables".to_owned()),
            }
        }
        Ok(())
    }

    fn function(&mut self, level: &Level<'a, 't>, relation: &mut Relation, number: u32, entry: Node<'a, 't>) -> Result<(), String> {
        let [wrapper] = entry.nodes("functions").ok_or_else(|| unknown(entry))?[..] else {
            return Err("it has ROWS FROM with several functions".to_owned());
        };
        if entry.atom("funcordinality") != Some("false") {
            return Err("it numbers the rows of a function by WITH ORDINALITY".to_owned());
        }
        let call = wrapper.node("funcexpr").ok_or_else(|| unknown(entry))?;
        let oid = call.number("funcid").filter(|_| call.tag() == "FUNCEXPR");
        let function = SET_FUNCTIONS.iter().find(|(known, _)| Some(*known) == oid).map(|(_, function)| *function);
        let (Some(function), [argument]) = (function, &call.nodes("args").ok_or_else(|| unknown(call))?[..]) else {
            let title = oid.and_then(|oid| self.catalogue.functions.get(&oid)).map_or("a function", |function| &function.title);
            return Err(format!(
                "it reads rows from {title} in FROM, which is not one of unnest, jsonb_array_elements_text and \
                                json_array_elements_text"
            ));
        };
        let argument = self.all(level, relation, &[*argument])?.remove(0);
        relation.wrap(|input| Plan::Unnest { input, function, argument });
        relation.vars.insert((number, 1), relation.width);
        relation.covers.insert(number);
        relation.width += 1;
        Ok(())
    }

    /// Joins the inputs of one block.
    fn join(&mut self, level: &Level<'a, 't>, mut parts: Parts<'a, 't>) -> Result<Relation, String> {
        let (mut pairs, mut between, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        // Filters first: what the source computes is computed for fewer rows then, and may rely on them.
        let mut single: Vec<(usize, Node<'a, 't>)> = Vec::new();
        for node in std::mem::take(&mut parts.conditions) {
            let refs = Refs::of(node, level);
            let touched: Vec<usize> = (0..parts.atoms.len()).filter(|&atom| !refs.local.is_disjoint(&parts.atoms[atom].covers)).collect();
            match touched[..] {
                [atom] => single.push((atom, node)),
                [_, _] => between.push(node),
                _ => rest.push(node),
            }
        }
        for (index, atom) in parts.atoms.iter_mut().enumerate() {
            let own = single.iter().filter(|(of, _)| *of == index).map(|(_, node)| *node).collect();
            self.conditions(level, atom, own)?;
        }
        for node in between {
            match self.pair(level, node, &mut parts.atoms)? {
                Some(pair) => pairs.push(pair),
                None => rest.push(node),
            }
        }
        let mut joined = self.connect(parts.atoms, &pairs, !rest.is_empty())?;
        self.conditions(level, &mut joined, rest)?;
        Ok(joined)
    }

    /// One join of what equalities connect; small inputs are combined with everything.
    fn connect(&mut self, atoms: Vec<Relation>, pairs: &[EqualPair], conditions: bool) -> Result<Relation, String> {
        let mut group: Vec<usize> = (0..atoms.len()).collect();
        for pair in pairs {
            let (from, to) = (group[pair.left.0], group[pair.right.0]);
            group.iter_mut().filter(|of| **of == from).for_each(|of| *of = to);
        }
        let mut groups: Vec<usize> = group.clone();
        groups.sort_unstable();
        groups.dedup();
        let mut joined: Vec<Relation> = Vec::new();
        let mut atoms: Vec<Option<Relation>> = atoms.into_iter().map(Some).collect();
        for wanted in groups {
            let members: Vec<usize> = (0..group.len()).filter(|&atom| group[atom] == wanted).collect();
            let place = |atom: usize| members.iter().position(|&member| member == atom);
            let on = pairs
                .iter()
                .filter_map(|pair| {
                    Some(EqualPair { left: (place(pair.left.0)?, pair.left.1), right: (place(pair.right.0)?, pair.right.1) })
                })
                .collect();
            let inputs: Vec<Relation> = members.iter().filter_map(|&atom| atoms[atom].take()).collect();
            joined.push(combine(inputs, on));
        }
        let Some(mut whole) = joined.iter().position(|part| !is_small(&part.plan)).map(|index| joined.remove(index)) else {
            return Ok(combine(joined, Vec::new()));
        };
        for part in joined {
            if !is_small(&part.plan) {
                return Err(match (&self.unusable, conditions) {
                    (Some(why), _) => why.clone(),
                    (None, true) => "it joins two tables by something other than an equality of columns or expressions".to_owned(),
                    (None, false) => "it combines every row of one table with every row of another".to_owned(),
                });
            }
            whole = combine(vec![whole, part], Vec::new());
        }
        Ok(whole)
    }

    /// Keeps the rows for which all of `nodes` hold; comparisons that need no help of the source go first.
    pub(super) fn conditions(&mut self, level: &Level<'a, 't>, relation: &mut Relation, nodes: Vec<Node<'a, 't>>) -> Result<(), String> {
        let mut later = Vec::new();
        for node in nodes {
            let refs = Refs::of(node, level);
            let vars = relation.vars.clone();
            let (keys, known) = names(&self.groups, level);
            let mut scope = Scope::new(self.catalogue, level, &vars, &known, None);
            scope.keys = &keys;
            let native = if refs.subquery || refs.clock { None } else { scope.expr(node).ok() };
            match native {
                // What may fail waits for the conditions before it, which may be there to prevent that.
                Some(condition) if later.is_empty() || never_fails(&condition) => relation.filter(condition),
                Some(_) | None => later.push(node),
            }
        }
        later.into_iter().try_for_each(|node| self.condition(level, relation, node))
    }

    /// Keeps the rows for which `node` holds.
    fn condition(&mut self, level: &Level<'a, 't>, relation: &mut Relation, node: Node<'a, 't>) -> Result<(), String> {
        if self.subquery_condition(level, relation, node)? {
            return Ok(());
        }
        let (keys, mut known) = names(&self.groups, level);
        self.subqueries(level, relation, node, true, &mut known)?;
        let vars = relation.vars.clone();
        let (expr, remote, clock) = {
            let mut scope = Scope::new(self.catalogue, level, &vars, &known, Some(relation.width));
            scope.clock = Some(Vec::new());
            scope.keys = &keys;
            let clock = Refs::of(node, level).clock;
            // Whatever it is, the time's part in the condition is what makes it impossible.
            let expr = scope.expr(node).map_err(|problem| if clock { ELSEWHERE.to_owned() } else { problem })?;
            (expr, scope.remote, scope.clock.unwrap_or_default())
        };
        relation.remote(remote);
        if clock.is_empty() {
            relation.filter(expr);
        } else {
            relation.wrap(|input| Plan::Clock { input, clock: Clock { condition: expr, terms: clock } });
        }
        Ok(())
    }

    /// LEFT, RIGHT and FULL joins.
    fn outer(&mut self, level: &Level<'a, 't>, item: Node<'a, 't>) -> Result<Relation, String> {
        let (mut left, mut right) = (item.node("larg").ok_or_else(|| unknown(item))?, item.node("rarg").ok_or_else(|| unknown(item))?);
        let kind = match item.number("jointype") {
            Some(FULL) => OuterKind::Full,
            Some(RIGHT) => {
                std::mem::swap(&mut left, &mut right);
                OuterKind::Left
            }
            _ => OuterKind::Left,
        };
        let mut left = self.inner(level, &[left], Vec::new(), None)?;
        let mut right = self.inner(level, &[right], Vec::new(), None)?;
        let mut conditions = Vec::new();
        conjuncts(item.node("quals"), &mut conditions);
        let (mut on, mut below, mut residual) = (Vec::new(), Vec::new(), Vec::new());
        for node in conditions {
            let refs = Refs::of(node, level);
            let on_right = !refs.local.is_empty() && refs.local.is_disjoint(&left.covers);
            let mut sides = [left, right];
            let pair = self.pair(level, node, &mut sides)?;
            [left, right] = sides;
            match pair {
                Some(pair) => on.push((pair.left.1, pair.right.1)),
                // A right row that fails it matches nobody, and stays nobody's match.
                None if on_right && kind == OuterKind::Left => below.push(node),
                None => residual.push(node),
            }
        }
        self.conditions(level, &mut right, below)?;
        if on.is_empty() && !is_small(&right.plan) {
            let fallback = || "an outer join of it has no equality between its two sides".to_owned();
            return Err(self.unusable.clone().unwrap_or_else(fallback));
        }
        let vars: Vars = left.vars.iter().map(|(var, index)| (*var, *index)).chain(shifted(&right.vars, left.width)).collect();
        let filter = self.residual(level, &vars, None, &residual)?;
        let width = left.width + right.width;
        let covers = left.covers.union(&right.covers).copied().collect();
        let plan = Plan::Outer { kind, left: Box::new(left.plan), right: Box::new(right.plan), on, filter };
        Ok(Relation { plan, width, vars, covers })
    }

    /// Conditions over two sides at once, which only native functions can decide.
    pub(super) fn residual(
        &self,
        level: &Level<'a, 't>,
        vars: &Vars,
        outer: Option<(&Level<'a, 't>, &Vars)>,
        nodes: &[Node<'a, 't>],
    ) -> Result<Option<Expr>, String> {
        let known = Known::new();
        let mut scope = Scope::new(self.catalogue, level, vars, &known, None);
        scope.outer = outer;
        let mut bound = nodes.iter().map(|node| scope.expr(*node)).collect::<Result<Vec<Expr>, String>>()?;
        Ok(if bound.len() > 1 { Some(Expr::And(bound)) } else { bound.pop() })
    }
}

/// Whether an expression is free of functions that fail for some values: it only compares what is there.
fn never_fails(expr: &Expr) -> bool {
    match expr {
        Expr::Column { .. } | Expr::Const { .. } => true,
        Expr::Call { function, args } => function.result == Kind::Bool && function.oid != 0 && args.iter().all(never_fails),
        Expr::AnyOf { function, operand, items, .. } => {
            function.result == Kind::Bool && never_fails(operand) && items.iter().all(never_fails)
        }
        Expr::And(args) | Expr::Or(args) | Expr::Coalesce(args) => args.iter().all(never_fails),
        Expr::Not(arg) | Expr::IsNull(arg) | Expr::IsBool(arg, _) => never_fails(arg),
        Expr::Distinct { args, .. } | Expr::NullIf { args, .. } => args.iter().all(never_fails),
        Expr::Case { .. } | Expr::AnyElement { .. } | Expr::Now(_) => false,
    }
}

/// The row of expressions that are all constants.
fn constants(columns: &[Expr]) -> Option<Row> {
    let texts: Option<Vec<Option<&str>>> = columns
        .iter()
        .map(|column| match column {
            Expr::Const { text, .. } => Some(text.as_deref()),
            _ => None,
        })
        .collect();
    texts.map(Row::from_cells)
}

/// ON of the inner joins within `item`, which is as good as WHERE.
fn inner_conditions<'a, 't>(item: Node<'a, 't>, into: &mut Vec<Node<'a, 't>>) {
    if item.tag() == "JOINEXPR" && item.number("jointype") == Some(INNER) {
        for side in ["larg", "rarg"] {
            if let Some(side) = item.node(side) {
                inner_conditions(side, into);
            }
        }
        conjuncts(item.node("quals"), into);
    }
}

/// Variables of what comes after `by` other columns.
pub(super) fn shifted(vars: &Vars, by: usize) -> impl Iterator<Item = ((u32, u32), usize)> + '_ {
    vars.iter().map(move |(var, index)| (*var, index + by))
}

/// The inputs side by side.
pub(super) fn combine(mut inputs: Vec<Relation>, on: Vec<EqualPair>) -> Relation {
    match inputs.len() {
        0 => return Relation::unit(),
        1 => return inputs.remove(0),
        _ => {}
    }
    let mut whole = Relation::unit();
    let mut plans = Vec::new();
    for input in inputs {
        whole.vars.extend(shifted(&input.vars, whole.width));
        whole.covers.extend(&input.covers);
        whole.width += input.width;
        plans.push(input.plan);
    }
    // Pairs of columns within one input are that input's filters; callers make none.
    whole.plan = Plan::Join { inputs: plans, on, filter: None };
    whole
}

/// Some columns of a relation, in this order.
pub(super) fn project(plan: Plan, columns: &[usize]) -> Plan {
    Plan::Map { input: Box::new(plan), columns: passing(columns.iter().copied()) }
}
