//! Where everything of a view is: nodes, who feeds whom, what is kept of each table.

use std::collections::BTreeMap;

use crate::{
    query::{Identity, Plan, RemoteExpr, Table, ViewPlan},
    view::{
        MemoryState, Remote, Space, ViewError,
        arrangement::Nulls,
        delta::Delta,
        keys::{identity, unique},
        lower::{Lowering, Node, NodeId},
        net::Store,
        operator::{Context, Load, broken},
    },
};

/// What a node does with its difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// It is computed as a whole and kept until it is folded: somebody stores it or needs all of it.
    Keeps,
    /// It is handed on in parts: only nodes that pass it on to the root use it.
    Streams,
    /// It is made of each part that comes in, and handed on to the root.
    Passes,
}

/// Where a table's rows come in.
pub(super) struct Source {
    /// The scan.
    pub(super) node: NodeId,
    /// What is kept.
    pub(super) store: Store,
}

/// A view's dataflow.
pub(super) struct Layout {
    /// Inputs first.
    pub(super) nodes: Vec<Node>,
    parts: Vec<Part>,
    /// For each node who uses its output, as which of its inputs.
    pub(super) consumers: Vec<Vec<(NodeId, usize)>>,
    /// Whose output is the view's.
    pub(super) root: NodeId,
    /// Where each output row is counted, if it can occur more than once.
    pub(super) counts: Option<Space>,
    /// By OID.
    pub(super) sources: BTreeMap<u32, Source>,
    /// Whether everything is empty when its table is.
    pub(super) empties: bool,
    /// Spaces are numbered from 1 to this.
    pub(super) spaces: u16,
}

impl Layout {
    pub(super) fn new(view: &ViewPlan) -> Result<Self, String> {
        let plan = once(&view.plan);
        let mut lowering = Lowering::new(&view.tables);
        let root = lowering.node(&plan)?;
        let every = (0..plan.width(&view.tables)).collect();
        let counts = if unique(&plan, &every, &view.tables) { None } else { Some(lowering.space()) };
        let empties = view.tables.len() == 1 && is_empty_over_nothing(&plan);
        let mut sources = BTreeMap::new();
        for (&table, description) in &view.tables {
            if let Some(node) = lowering.known(&Plan::Scan { table }) {
                let store = store(&mut lowering, node, description, empties);
                sources.insert(table, Source { node, store });
            }
        }
        let (nodes, spaces) = lowering.finish();
        let consumers = consumers(&nodes);
        let parts = parts(&nodes, &consumers, &sources);
        Ok(Self { nodes, parts, consumers, root, counts, sources, empties, spaces })
    }

    pub(super) fn part(&self, node: NodeId) -> Part {
        self.parts[node.0]
    }

    /// Whether a chunk is netted against stored rows, and what it makes of them is handed on in parts and never held.
    pub(super) fn is_lean(&self) -> bool {
        let lean = |(node, part): (&Node, &Part)| node.operator.load() == Load::Linear || *part == Part::Streams;
        self.sources.values().any(|source| source.store.rows().is_some()) && self.nodes.iter().zip(&self.parts).all(lean)
    }

    /// What a linear node makes of a part of one of its inputs.
    pub(super) fn linear(&self, node: NodeId, place: usize, part: &Delta, now: i64) -> Result<Delta, ViewError> {
        let node = &self.nodes[node.0];
        let mut inputs = vec![Delta::EMPTY; node.inputs.len()];
        inputs[place] = part;
        // What is linear reads its input only.
        let mut context = Context { before: &MemoryState::default(), from: now, to: now, remote: &mut Nobody };
        node.operator.delta(&inputs, &mut context)
    }
}

struct Nobody;

impl Remote for Nobody {
    fn evaluate(&mut self, _: &RemoteExpr, _: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        broken("an operator asks the source and is said not to")
    }
}

/// The plan without DISTINCT where the root makes rows distinct anyway: below operators that work row by row, which make of a row as often
/// as it is there.
fn once(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    strip(&mut plan);
    plan
}

fn strip(plan: &mut Plan) {
    while let Plan::Distinct(input) = plan {
        let input = std::mem::replace(&mut **input, Plan::UnionAll(Vec::new()));
        *plan = input;
    }
    match plan {
        Plan::Filter { input, .. } | Plan::Map { input, .. } | Plan::Unnest { input, .. } | Plan::Unpack { input, .. } => strip(input),
        Plan::UnionAll(inputs) => inputs.iter_mut().for_each(strip),
        Plan::Scan { .. }
        | Plan::Values { .. }
        | Plan::Remote { .. }
        | Plan::Join { .. }
        | Plan::Outer { .. }
        | Plan::Semi { .. }
        | Plan::NotIn { .. }
        | Plan::Distinct(_)
        | Plan::Set { .. }
        | Plan::Group { .. }
        | Plan::Top { .. }
        | Plan::Recursive { .. }
        | Plan::Itself { .. }
        | Plan::Clock { .. } => {}
    }
}

/// Whether the plan's nodes have neither rows nor state when no table has a row.
fn is_empty_over_nothing(plan: &Plan) -> bool {
    match plan {
        Plan::Scan { .. } | Plan::Itself { .. } => true,
        Plan::Values { rows, .. } => rows.is_empty(),
        Plan::Filter { input, .. }
        | Plan::Map { input, .. }
        | Plan::Remote { input, .. }
        | Plan::Unnest { input, .. }
        | Plan::Unpack { input, .. }
        | Plan::Top { input, .. }
        | Plan::Clock { input, .. }
        | Plan::Distinct(input) => is_empty_over_nothing(input),
        Plan::Group { input, keys, .. } => !keys.is_empty() && is_empty_over_nothing(input),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().all(is_empty_over_nothing),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => is_empty_over_nothing(left) && is_empty_over_nothing(right),
        Plan::Recursive { base, step, .. } => is_empty_over_nothing(base) && is_empty_over_nothing(step),
    }
}

/// What has to be kept of a table's rows, and where.
fn store(lowering: &mut Lowering<'_>, scan: NodeId, table: &Table, empties: bool) -> Store {
    let key = identity(table);
    let told = table.identity == Identity::Full || key.len() == table.columns.len();
    if told && empties {
        return Store::Nothing;
    }
    let filter = only_filter(lowering.nodes(), scan);
    match filter {
        // Every row that anybody sees has passed the filter.
        Some(filter) if table.identity == Identity::Full => Store::Bag(whole(lowering, filter)),
        None if table.identity == Identity::Full => Store::Bag(whole(lowering, scan)),
        // A row that is not stored can only be replaced by one that is told as a whole.
        Some(filter) if !table.toast => Store::Key { rows: lowering.arrange(filter, &key, Nulls::Keep), admitted: true },
        // Of a document that is not stored nobody has to say anything.
        Some(_) | None => {
            let admitted = matches!(table.identity, Identity::Document(_));
            Store::Key { rows: lowering.arrange(scan, &key, Nulls::Keep), admitted }
        }
    }
}

fn whole(lowering: &mut Lowering<'_>, node: NodeId) -> crate::view::arrangement::Arrangement {
    let every: Vec<usize> = (0..lowering.width(node)).collect();
    lowering.arrange(node, &every, Nulls::Keep)
}

/// The filter through which alone everybody sees a scan.
fn only_filter(nodes: &[Node], scan: NodeId) -> Option<NodeId> {
    let mut users = nodes.iter().enumerate().filter(|(_, node)| node.inputs.contains(&scan));
    let (index, node) = users.next()?;
    let alone = users.next().is_none() && nodes[scan.0].arrangements.is_empty();
    (alone && node.operator.is_filter()).then_some(NodeId(index))
}

fn consumers(nodes: &[Node]) -> Vec<Vec<(NodeId, usize)>> {
    let mut consumers = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for (place, input) in node.inputs.iter().enumerate() {
            consumers[input.0].push((NodeId(index), place));
        }
    }
    consumers
}

fn parts(nodes: &[Node], consumers: &[Vec<(NodeId, usize)>], sources: &BTreeMap<u32, Source>) -> Vec<Part> {
    let mut parts = vec![Part::Keeps; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        let is_scan = sources.values().any(|source| source.node.0 == index);
        let passed = consumers[index].iter().all(|(consumer, _)| parts[consumer.0] == Part::Passes);
        if is_scan || !passed || !node.arrangements.is_empty() {
            continue;
        }
        parts[index] = match node.operator.load() {
            Load::Linear => Part::Passes,
            Load::Scanned if node.operator.folds_output().is_none() => Part::Streams,
            Load::Scanned | Load::Streamed => Part::Keeps,
        };
    }
    parts
}
