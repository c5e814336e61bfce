//! From a plan to nodes: operators in topological order, with the spaces they read.
//!
//! The same subplan is one node, however often it occurs, and the same rows by the same key are one arrangement. The layout
//! depends on the plan alone, so that the spaces of a stored view are found again after a restart.

use std::collections::BTreeMap;

use crate::{
    query::{EqualPair, Expr, Kind, OuterKind, Plan, SemiKind, Table},
    view::{
        Space,
        arrangement::{Arrangement, Nulls, Shape},
        clock, distinct, group, join,
        keys::identity,
        linear::{Filter, Map, Scan, UnionAll, Unnest, Unpack, Values},
        notin,
        operator::Operator,
        recursive, remote, semi, set, top,
    },
};

/// A node's number; an input's is smaller than that of the node above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(pub(super) usize);

/// One operator in its place.
pub(super) struct Node {
    /// What it does.
    pub(super) operator: Box<dyn Operator>,
    /// Where its input comes from; a node may occur twice.
    pub(super) inputs: Vec<NodeId>,
    /// Columns of its output.
    pub(super) width: usize,
    /// Where its output is kept, brought up to date by the dataflow.
    pub(super) arrangements: Vec<Arrangement>,
}

/// What the function returns that lowers one kind of operator.
pub(super) struct Built {
    /// What it does.
    pub(super) operator: Box<dyn Operator>,
    /// Where its input comes from, as [`Lowering::node`] gave it out.
    pub(super) inputs: Vec<NodeId>,
}

/// A dataflow while it is laid out.
///
/// An operator's module has a function such as
/// `pub(super) fn lower(lowering: &mut Lowering<'_>, input: &Plan, keys: &[usize]) -> Result<Built, String>`, which lowers the inputs
/// ([`Lowering::node`]), asks for arrangements of them and for spaces of its own, and returns the operator. Its error says why the view is
/// better refreshed.
pub(super) struct Lowering<'a> {
    tables: &'a BTreeMap<u32, Table>,
    nodes: Vec<Node>,
    known: Vec<(Plan, NodeId)>,
    spaces: u16,
}

impl<'a> Lowering<'a> {
    /// Nothing yet.
    pub(super) fn new(tables: &'a BTreeMap<u32, Table>) -> Self {
        Self { tables, nodes: Vec::new(), known: Vec::new(), spaces: 0 }
    }

    /// The node that computes `plan`.
    pub(super) fn node(&mut self, plan: &Plan) -> Result<NodeId, String> {
        if let Some(node) = self.known(plan) {
            return Ok(node);
        }
        let width = plan.width(self.tables);
        let built = self.build(plan)?;
        let node = self.push(built, width);
        self.known.push((plan.clone(), node));
        Ok(node)
    }

    /// One more node, whose output is `width` columns wide: for an operator that is more than one node.
    pub(super) fn push(&mut self, built: Built, width: usize) -> NodeId {
        self.nodes.push(Node { operator: built.operator, inputs: built.inputs, width, arrangements: Vec::new() });
        NodeId(self.nodes.len() - 1)
    }

    /// How many columns a node's output has.
    pub(super) fn width(&self, node: NodeId) -> usize {
        self.nodes[node.0].width
    }

    /// The rows of `node` by `key`, kept up to date by the dataflow and shared with whoever asks for the same.
    pub(super) fn arrange(&mut self, node: NodeId, key: &[usize], nulls: Nulls) -> Arrangement {
        let width = self.width(node);
        let wanted = Arrangement::new(Space(0), width, key, nulls);
        if let Some(known) = self.nodes[node.0].arrangements.iter_mut().find(|known| known.serves(&wanted)) {
            known.keep(nulls);
            return known.clone();
        }
        let shape = if self.identifies(node, wanted.key()) { Shape::Keyed } else { Shape::Counted };
        let arrangement = Arrangement::new(self.space(), width, key, nulls).shaped(shape);
        self.nodes[node.0].arrangements.push(arrangement.clone());
        arrangement
    }

    /// Whether `key` is the identity of the rows of a table, all of them or filtered, and not all there is of them.
    fn identifies(&self, node: NodeId, key: &[usize]) -> bool {
        let plan = self.known.iter().find(|(_, known)| *known == node).map(|(plan, _)| plan);
        let plan = if let Some(Plan::Filter { input, .. }) = plan { Some(&**input) } else { plan };
        let Some(Plan::Scan { table }) = plan else { return false };
        let table = &self.tables[table];
        table.identity.key().is_some() && identity(table) == key && key.len() < self.width(node)
    }

    /// A space for the operator alone.
    pub(super) fn space(&mut self) -> Space {
        self.spaces += 1;
        Space(self.spaces)
    }

    /// All nodes, inputs first.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that computes `plan`, if there is one.
    pub(super) fn known(&self, plan: &Plan) -> Option<NodeId> {
        self.known.iter().find(|(known, _)| known == plan).map(|(_, node)| *node)
    }

    /// All nodes, and how many spaces there are, numbered from 1.
    pub(super) fn finish(self) -> (Vec<Node>, u16) {
        (self.nodes, self.spaces)
    }

    fn build(&mut self, plan: &Plan) -> Result<Built, String> {
        match plan {
            Plan::Scan { .. } => Ok(linear(Scan, vec![])),
            Plan::Values { rows, .. } => {
                let rows = rows.iter().map(|row| (row.clone(), 1)).collect();
                Ok(linear(Values { rows }, vec![]))
            }
            Plan::Filter { input, condition } => Ok(linear(Filter { condition: condition.clone() }, vec![self.node(input)?])),
            Plan::Map { input, columns } => Ok(linear(Map::new(columns.clone()), vec![self.node(input)?])),
            Plan::Remote { input, columns } => remote::lower(self, input, columns),
            Plan::Unpack { input, column, width } => Ok(linear(Unpack { column: *column, width: *width }, vec![self.node(input)?])),
            Plan::Unnest { input, function, argument } => {
                Ok(linear(Unnest { function: *function, argument: argument.clone() }, vec![self.node(input)?]))
            }
            Plan::Join { inputs, on, filter } => match &inputs[..] {
                [] | [_] => Err("a join of fewer than two inputs".into()),
                _ => join::lower(self, inputs, on, filter.as_ref()),
            },
            Plan::Outer { kind, left, right, on, filter } => self.outer(*kind, [left, right], on, filter.as_ref()),
            Plan::Semi { kind, left, right, on, filter } => semi::lower(self, *kind, [left, right], on, filter.as_ref()),
            Plan::UnionAll(inputs) => {
                let inputs = inputs.iter().map(|input| self.node(input)).collect::<Result<_, _>>()?;
                Ok(linear(UnionAll, inputs))
            }
            Plan::Distinct(input) => distinct::lower(self, input),
            Plan::NotIn { left, right, on, operand } => notin::lower(self, left, right, on, *operand),
            Plan::Set { kind, left, right } => set::lower(self, *kind, left, right),
            Plan::Group { input, keys, aggregates } => group::lower(self, input, keys, aggregates),
            Plan::Top { input, partition, order, limit } => top::lower(self, input, partition, order, *limit),
            Plan::Recursive { base, step, width } => recursive::lower(self, base, step, *width),
            Plan::Itself { .. } => Err(recursive::REFERENCE.into()),
            Plan::Clock { input, clock } => clock::lower(self, input, clock),
        }
    }

    /// An outer join is the inner join and, with NULLs on the other side, the rows of a kept side without a match. What ON asks belongs to
    /// both parts.
    fn outer(&mut self, kind: OuterKind, [left, right]: [&Plan; 2], on: &[(usize, usize)], filter: Option<&Expr>) -> Result<Built, String> {
        let widths = [left.width(self.tables), right.width(self.tables)];
        let pair = |(left, right): &(usize, usize)| EqualPair { left: (0, *left), right: (1, *right) };
        let inner = Plan::Join { inputs: vec![left.clone(), right.clone()], on: on.iter().map(pair).collect(), filter: filter.cloned() };
        let anti = |sides: [&Plan; 2], on, filter| {
            let [left, right] = sides.map(|side| Box::new(side.clone()));
            Box::new(Plan::Semi { kind: SemiKind::Anti, left, right, on, filter })
        };
        let column = |index| Expr::Column { index, kind: Kind::Text };
        let null = || Expr::Const { text: None, kind: Kind::Text };
        let kept = (0..widths[0]).map(column).chain((0..widths[1]).map(|_| null())).collect();
        let mut parts = vec![inner, Plan::Map { input: anti([left, right], on.to_vec(), filter.cloned()), columns: kept }];
        if kind == OuterKind::Full {
            let kept = (0..widths[0]).map(|_| null()).chain((0..widths[1]).map(column)).collect();
            let swapped = |index: usize| if index < widths[0] { index + widths[1] } else { index - widths[0] };
            let filter = filter.map(|filter| filter.clone().remapped(swapped));
            let on = on.iter().map(|(left, right)| (*right, *left)).collect();
            parts.push(Plan::Map { input: anti([right, left], on, filter), columns: kept });
        }
        let inputs = parts.iter().map(|part| self.node(part)).collect::<Result<_, _>>()?;
        Ok(linear(UnionAll, inputs))
    }
}

fn linear(operator: impl Operator + 'static, inputs: Vec<NodeId>) -> Built {
    Built { operator: Box::new(operator), inputs }
}
