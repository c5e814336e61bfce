//! From a plan to nodes: operators in topological order, with the spaces they read.
//!
//! The same subplan is one node, however often it occurs, and the same rows by the same key are one arrangement. The layout
//! depends on the plan alone, so that the spaces of a stored view are found again after a restart.

use std::collections::BTreeMap;

use crate::{
    query::{Plan, Table},
    view::{
        Space,
        arrangement::{Arrangement, Nulls},
        operator::Operator,
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
    pub(super) arrangements: Vec<(Arrangement, Nulls)>,
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

    /// The tables the view reads.
    pub(super) fn tables(&self) -> &'a BTreeMap<u32, Table> {
        self.tables
    }

    /// The node that computes `plan`.
    pub(super) fn node(&mut self, plan: &Plan) -> Result<NodeId, String> {
        if let Some((_, node)) = self.known.iter().find(|(known, _)| known == plan) {
            return Ok(*node);
        }
        let width = plan.width(self.tables);
        let built = self.build(plan)?;
        let node = NodeId(self.nodes.len());
        self.nodes.push(Node { operator: built.operator, inputs: built.inputs, width, arrangements: Vec::new() });
        self.known.push((plan.clone(), node));
        Ok(node)
    }

    /// How many columns a node's output has.
    pub(super) fn width(&self, node: NodeId) -> usize {
        self.nodes[node.0].width
    }

    /// The rows of `node` by `key`, kept up to date by the dataflow and shared with whoever asks for the same.
    pub(super) fn arrange(&mut self, node: NodeId, key: &[usize], nulls: Nulls) -> Arrangement {
        let width = self.width(node);
        let wanted = Arrangement::new(Space(0), width, key, nulls);
        if let Some((known, _)) = self.nodes[node.0].arrangements.iter().find(|(known, _)| known.is_like(&wanted)) {
            return known.clone();
        }
        let arrangement = Arrangement::new(self.space(), width, key, nulls);
        self.nodes[node.0].arrangements.push((arrangement.clone(), nulls));
        arrangement
    }

    /// A space for the operator alone.
    pub(super) fn space(&mut self) -> Space {
        self.spaces += 1;
        Space(self.spaces)
    }

    /// All nodes, inputs first.
    pub(super) fn finish(self) -> Vec<Node> {
        self.nodes
    }

    fn build(&mut self, plan: &Plan) -> Result<Built, String> {
        let _ = &mut *self;
        Err(format!("no operator for {plan:?}"))
    }
}
