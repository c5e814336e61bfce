//! A plan under construction, and where the query's variables are in its rows.

use std::collections::{BTreeMap, BTreeSet};

use crate::query::{Expr, Kind, Plan, RemoteExpr, catalogue::Catalogue, tree::Node};

/// A variable: a place in the range table and an attribute, both from 1.
pub(super) type Var = (u32, u32);

/// Where variables are in a row.
pub(super) type Vars = BTreeMap<Var, usize>;

/// One query's text, inside of the queries around it.
#[derive(Clone, Copy)]
pub(super) struct Level<'a, 't> {
    /// The `QUERY`.
    pub(super) query: Node<'a, 't>,
    /// The query it is part of.
    pub(super) parent: Option<&'a Level<'a, 't>>,
}

impl<'a, 't> Level<'a, 't> {
    /// An entry of its range table.
    pub(super) fn entry(&self, number: u32) -> Option<Node<'a, 't>> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        self.query.nodes("rtable")?.get(index).copied()
    }
}

/// Rows, and what their columns are.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    /// The rows.
    pub(super) plan: Plan,
    /// How many columns they have.
    pub(super) width: usize,
    /// Which variables they hold.
    pub(super) vars: Vars,
    /// The places in the range table they cover.
    pub(super) covers: BTreeSet<u32>,
}

impl Relation {
    /// One row without columns.
    pub(super) fn unit() -> Self {
        let plan = Plan::Values { rows: vec![crate::data::Row::from_cells([])], width: 0 };
        Self { plan, width: 0, vars: Vars::new(), covers: BTreeSet::new() }
    }

    /// The rows of one entry of the range table, column by column.
    pub(super) fn entry(plan: Plan, width: usize, number: u32) -> Self {
        let vars = (0..width).map(|index| ((number, u32::try_from(index + 1).unwrap_or(u32::MAX)), index)).collect();
        Self { plan, width, vars, covers: BTreeSet::from([number]) }
    }

    /// Replaces its plan by what `make` makes of it.
    pub(super) fn wrap(&mut self, make: impl FnOnce(Box<Plan>) -> Plan) {
        let plan = std::mem::replace(&mut self.plan, Plan::Itself { width: 0 });
        self.plan = make(Box::new(plan));
    }

    /// Where `expr` is among the columns, computed as one more if it is none.
    pub(super) fn append(&mut self, expr: Expr) -> usize {
        if let Expr::Column { index, .. } = expr {
            return index;
        }
        let mut columns = passing(0..self.width);
        columns.push(expr);
        self.wrap(|input| Plan::Map { input, columns });
        self.width += 1;
        self.width - 1
    }

    /// Keeps rows for which `condition` is TRUE.
    pub(super) fn filter(&mut self, condition: Expr) {
        self.wrap(|input| match *input {
            // The same rows, and one operator less.
            Plan::Join { inputs, on, filter } => {
                let filter = match filter {
                    None => condition,
                    Some(Expr::And(mut parts)) => {
                        parts.push(condition);
                        Expr::And(parts)
                    }
                    Some(other) => Expr::And(vec![other, condition]),
                };
                Plan::Join { inputs, on, filter: Some(filter) }
            }
            Plan::Filter { input, condition: before } => {
                let condition = match before {
                    Expr::And(mut parts) => {
                        parts.push(condition);
                        Expr::And(parts)
                    }
                    other => Expr::And(vec![other, condition]),
                };
                Plan::Filter { input, condition }
            }
            other => Plan::Filter { input: Box::new(other), condition },
        });
    }

    /// Lets the source compute columns and appends them.
    pub(super) fn remote(&mut self, columns: Vec<RemoteExpr>) {
        if !columns.is_empty() {
            self.width += columns.len();
            self.wrap(|input| Plan::Remote { input, columns });
        }
    }
}

/// Columns as they are.
pub(super) fn passing(columns: impl IntoIterator<Item = usize>) -> Vec<Expr> {
    columns.into_iter().map(|index| Expr::Column { index, kind: Kind::Text }).collect()
}

/// Whether a plan has few rows by construction, so that everything may be combined with them.
pub(super) fn is_small(plan: &Plan) -> bool {
    match plan {
        Plan::Values { .. } => true,
        Plan::Group { keys, .. } => keys.is_empty(),
        Plan::Filter { input, .. } | Plan::Map { input, .. } | Plan::Remote { input, .. } | Plan::Clock { input, .. } => is_small(input),
        Plan::Distinct(input) | Plan::Top { input, .. } => is_small(input),
        Plan::Semi { left, .. } | Plan::NotIn { left, .. } => is_small(left),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().all(is_small),
        Plan::Outer { left, right, .. } | Plan::Set { left, right, .. } => is_small(left) && is_small(right),
        Plan::Scan { .. } | Plan::Unnest { .. } | Plan::Unpack { .. } | Plan::Recursive { .. } | Plan::Itself { .. } => false,
    }
}

/// What an expression refers to, seen from one query.
#[derive(Debug, Default)]
pub(super) struct Refs {
    /// Entries of the query's own range table.
    pub(super) local: BTreeSet<u32>,
    /// Whether it refers to the query around.
    pub(super) outer: bool,
    /// Whether it asks for the time.
    pub(super) clock: bool,
    /// Whether it holds a subquery.
    pub(super) subquery: bool,
}

impl Refs {
    /// What `node`, an expression of `level`, refers to.
    pub(super) fn of(node: Node<'_, '_>, level: &Level<'_, '_>) -> Self {
        let mut refs = Self::default();
        refs.walk(node, 0, level);
        refs
    }

    fn walk(&mut self, node: Node<'_, '_>, depth: u32, level: &Level<'_, '_>) {
        let mut inside = depth;
        match node.tag() {
            "VAR" => self.var(node, depth, level),
            "SUBLINK" => self.subquery = true,
            "QUERY" => inside += 1,
            "FUNCEXPR" if depth == 0 => self.clock |= node.number("funcid").is_some_and(super::clock::is_clock),
            "SQLVALUEFUNCTION" if depth == 0 => self.clock = true,
            _ => {}
        }
        for child in node.children() {
            self.walk(child, inside, level);
        }
    }

    fn var(&mut self, node: Node<'_, '_>, depth: u32, level: &Level<'_, '_>) {
        let (Some(up), Some(number)) = (node.number("varlevelsup"), node.number("varno")) else { return };
        if up > depth {
            self.outer = true;
        } else if up == depth {
            // A variable of a join is one of the tables it joins.
            match alias(level, node) {
                Some(behind) => self.walk(behind, 0, level),
                None => drop(self.local.insert(number)),
            }
        }
    }
}

/// What a variable of a join or of GROUP BY stands for.
pub(super) fn alias<'a, 't>(level: &Level<'a, 't>, var: Node<'_, '_>) -> Option<Node<'a, 't>> {
    let entry = level.entry(var.number("varno")?)?;
    let behind = match entry.number("rtekind")? {
        super::RTE_JOIN => entry.nodes("joinaliasvars")?,
        super::RTE_GROUP => entry.nodes("groupexprs")?,
        _ => return None,
    };
    behind.get(usize::try_from(var.number("varattno")?.checked_sub(1)?).ok()?).copied()
}

/// The conditions that must all hold.
pub(super) fn conjuncts<'a, 't>(node: Option<Node<'a, 't>>, into: &mut Vec<Node<'a, 't>>) {
    let Some(node) = node else { return };
    match (node.tag(), node.atom("boolop"), node.nodes("args")) {
        ("BOOLEXPR", Some("and"), Some(args)) => args.into_iter().for_each(|arg| conjuncts(Some(arg), into)),
        _ => into.push(node),
    }
}

/// An expression's type and collation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Typed {
    /// The type.
    pub(super) oid: u32,
    /// Its modifier where the tree has it; -1 for none.
    pub(super) typmod: i32,
    /// The collation; 0 for none.
    pub(super) collation: u32,
}

/// The type of an expression.
pub(super) fn typed(node: Node<'_, '_>) -> Result<Typed, String> {
    let of = |oid: &str, typmod: &str, collation: &str| {
        let oid = node.number(oid)?;
        let typmod = node.atom(typmod).and_then(|word| word.parse().ok()).unwrap_or(-1);
        Some(Typed { oid, typmod, collation: node.number(collation).unwrap_or(0) })
    };
    let found = match node.tag() {
        "VAR" => of("vartype", "vartypmod", "varcollid"),
        "CONST" => of("consttype", "consttypmod", "constcollid"),
        "PARAM" => of("paramtype", "paramtypmod", "paramcollid"),
        "FUNCEXPR" => of("funcresulttype", "", "funccollid"),
        "OPEXPR" | "NULLIFEXPR" => of("opresulttype", "", "opcollid"),
        "RELABELTYPE" | "COERCETODOMAIN" | "ARRAYCOERCEEXPR" => of("resulttype", "resulttypmod", "resultcollid"),
        "COERCEVIAIO" => of("resulttype", "", "resultcollid"),
        "CASEEXPR" => of("casetype", "", "casecollid"),
        "CASETESTEXPR" => of("typeId", "typeMod", "collation"),
        "COALESCEEXPR" => of("coalescetype", "", "coalescecollid"),
        "MINMAXEXPR" => of("minmaxtype", "", "minmaxcollid"),
        "ARRAYEXPR" => of("array_typeid", "", "array_collid"),
        "COLLATEEXPR" => {
            let arg = typed(node.node("arg").ok_or_else(|| super::unknown(node))?)?;
            node.number("collOid").map(|collation| Typed { collation, ..arg })
        }
        "AGGREF" => of("aggtype", "", "aggcollid"),
        "WINDOWFUNC" => of("wintype", "", "wincollid"),
        "SQLVALUEFUNCTION" => of("type", "typmod", ""),
        "SUBSCRIPTINGREF" => of("refrestype", "reftypmod", "refcollid"),
        "BOOLEXPR" | "NULLTEST" | "BOOLEANTEST" | "DISTINCTEXPR" | "SCALARARRAYOPEXPR" => Some(Typed { oid: 16, typmod: -1, collation: 0 }),
        "SUBLINK" => match node.number("subLinkType") {
            Some(super::EXPR_SUBLINK) => {
                let target = node.node("subselect").and_then(|query| query.nodes("targetList")?.first()?.node("expr"));
                return typed(target.ok_or_else(|| super::unreadable("a subquery"))?);
            }
            _ => Some(Typed { oid: 16, typmod: -1, collation: 0 }),
        },
        _ => None,
    };
    found.ok_or_else(|| super::unknown(node))
}

/// How a type's text becomes a function's argument; a domain is what it is over.
pub(super) fn kind_of(catalogue: &Catalogue, oid: u32) -> Kind {
    crate::query::scalar::kind(catalogue.base(oid))
}
