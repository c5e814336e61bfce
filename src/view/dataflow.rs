//! One view's dataflow: from the row changes of commits to the facts that begin and cease to be true.
//!
//! Two phases. Each operator first computes what its output gains and loses, reading only the state before the chunk and the chunk's
//! own changes; then everything is folded into the state. A chunk is any run of row changes: since every run takes the tables from one
//! valid state to the next, a transaction of any size is applied chunk by chunk, and the facts that come and go again in between cancel
//! in the end.

use std::{collections::BTreeMap, io, ops::ControlFlow, path::Path};

#[cfg(test)]
use crate::view::{arrangement::Arrangement, layout::Source, net::Store};
use crate::{
    data::{Change, Extent, Row},
    query::{EvalError, RemoteExpr, Table, ViewPlan},
    target::Op,
    view::{
        MemoryState, Space, State,
        delta::Delta,
        layout::{Layout, Part},
        load::{Loader, Target},
        lower::NodeId,
        net::net,
        operator::{BATCH_ROWS, Context, broken},
        root::Output,
    },
};

/// Row changes computed at once where some operator holds in memory what they join to, which may be many rows for each. More than a few
/// thousand make none of them cheaper.
const CHUNK_CHANGES: usize = 4096;
/// Row changes computed at once where nothing is held but they themselves: some ten megabytes. Twice as many need a fifth less time where
/// the same rows change again and again.
const LEAN_CHUNK_CHANGES: usize = 16_384;

/// Why a view cannot be kept up to date from here on. Its state must not be used any more; other views are not concerned.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The state cannot be read or written: of no view any more.
    #[error("could not use the view's state")]
    State(#[from] io::Error),
    /// The query itself fails on these rows, as it would at the source.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The source could not compute an expression.
    #[error("could not compute an expression at the source")]
    Remote(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Keeping it would cost more than running the query again.
    #[error("{0}")]
    Budget(String),
    /// What is stored contradicts the change log or itself.
    #[error("the view's state is not what its tables were: {0}")]
    Broken(String),
}

/// Computes immutable expressions over values at the source. The same in, the same out.
pub trait Remote {
    /// The results for each of `rows`, in order.
    fn evaluate(&mut self, expr: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError>;
}

/// What happens to the view's result. Within one call of the dataflow a row may flip more than once, each time for real: only a row that
/// is not in the result is inserted, only one that is in it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flip {
    /// This row becomes or ceases to be a fact.
    Row(Op, Row),
    /// No row is a fact any more, whichever there were: the view keeps no rows that could tell, and its table was emptied.
    Clear,
}

/// Called with each change of the view's result.
pub type Sink<'a> = &'a mut dyn FnMut(Flip) -> io::Result<()>;

/// A view's operators. Holds no rows: those are in its [`State`].
pub struct Dataflow {
    plan: ViewPlan,
    layout: Layout,
}

impl Dataflow {
    /// Lays out operators and spaces; the same plan always gives the same layout. An error says why this plan is better refreshed.
    pub fn new(plan: &ViewPlan) -> Result<Self, String> {
        Ok(Self { plan: plan.clone(), layout: Layout::new(plan)? })
    }

    /// How many row changes are best computed at once. The more there are, the more cancel before anything is read or written, and the more
    /// neighbours are written together.
    pub fn chunk_changes(&self) -> usize {
        if self.layout.is_lean() { LEAN_CHUNK_CHANGES } else { CHUNK_CHANGES }
    }

    /// The tables it needs, by OID.
    pub fn tables(&self) -> &BTreeMap<u32, Table> {
        &self.plan.tables
    }

    /// Applies one chunk of row changes, in order, of tables of [`Dataflow::tables`] (others are skipped). Images have the cells of
    /// `columns`: for each table where the image's cells are found, in the order of [`crate::query::Table::columns`]. A large result of the
    /// chunk is sorted in files under `spool`.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the world that this module does not know otherwise")]
    pub fn apply<'a>(
        &mut self,
        changes: &mut dyn Iterator<Item = (u32, Change<'a>)>,
        columns: &BTreeMap<u32, Vec<usize>>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        let mut step = Step { spool, state, remote, sink, time: (now, now) };
        let mut pending = BTreeMap::<u32, Vec<Change<'a>>>::new();
        for (table, change) in changes {
            if !self.layout.sources.contains_key(&table) {
                continue;
            }
            if change == Change::Truncate {
                self.chunk(std::mem::take(&mut pending), columns, &mut step)?;
                self.truncate(table, &mut step)?;
            } else {
                pending.entry(table).or_default().push(change);
            }
        }
        self.chunk(pending, columns, &mut step)
    }

    /// Lets time pass: `now()` was `from` and becomes `to`, in microseconds since 2000-01-01 UTC.
    pub fn advance(
        &mut self,
        from: i64,
        to: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        self.run(BTreeMap::new(), &mut Step { spool, state, remote, sink, time: (from, to) })
    }

    /// The first moment after `now` at which [`Dataflow::advance`] may change something; `None` if never without a commit.
    pub fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        let mut next = None;
        for node in &self.layout.nodes {
            let due = node.operator.next_due(now, state)?;
            next = next.into_iter().chain(due).min();
        }
        Ok(next)
    }

    /// Whether the result depends on the time.
    pub fn has_clock(&self) -> bool {
        self.layout.nodes.iter().any(|node| node.operator.has_clock())
    }

    /// Builds the state, which must be empty, from whole tables (see [`crate::source::Reading::tables`]) and returns the result.
    pub fn load(
        &mut self,
        tables: BTreeMap<u32, Extent>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        remote: &mut dyn Remote,
    ) -> Result<Extent, ViewError> {
        Loader::new(&self.layout, spool, now, Target::Write(state)).load(tables, remote)
    }

    /// Recomputes the result from the stored rows of the tables and checks every arrangement and count against them: what is stored is
    /// what a load would store. For tests and audits. `None` if a table's rows are not stored, so that there is nothing to compare with.
    pub fn verify(&self, now: i64, spool: &Path, state: &dyn State, remote: &mut dyn Remote) -> Result<Option<Extent>, ViewError> {
        if self.layout.sources.values().any(|source| source.store.rows().is_none()) {
            return Ok(None);
        }
        Loader::new(&self.layout, spool, now, Target::Check(state, MemoryState::default())).verify(remote).map(Some)
    }

    /// Where rows of tables are stored that may be equal, or one under each key: no number in these can be wrong.
    #[cfg(test)]
    pub(super) fn bags(&self) -> Vec<Space> {
        let bag = |source: &Source| if let Store::Bag(rows) = &source.store { Some(rows.space()) } else { None };
        let keyed = self.layout.nodes.iter().flat_map(|node| &node.arrangements).filter(|rows| rows.is_keyed());
        self.layout.sources.values().filter_map(bag).chain(keyed.map(Arrangement::space)).collect()
    }

    fn chunk(
        &self,
        pending: BTreeMap<u32, Vec<Change<'_>>>,
        columns: &BTreeMap<u32, Vec<usize>>,
        step: &mut Step<'_>,
    ) -> Result<(), ViewError> {
        let mut scans = BTreeMap::new();
        for (table, changes) in pending {
            let source = &self.layout.sources[&table];
            let title = &self.plan.tables[&table].title;
            let Some(places) = columns.get(&table) else { return broken(format!("the columns of table {title} are not known")) };
            scans.insert(source.node, net(title, &source.store, &changes, places, step.state)?);
        }
        scans.retain(|_, delta| !delta.is_empty());
        if scans.is_empty() { Ok(()) } else { self.run(scans, step) }
    }

    /// Every row of a table goes, a page of them at a time: whatever part of the rows is left is a state of the table, too.
    fn truncate(&self, table: u32, step: &mut Step<'_>) -> Result<(), ViewError> {
        if self.layout.empties {
            (1..=self.layout.spaces).try_for_each(|space| step.state.clear(Space(space)))?;
            return Ok((step.sink)(Flip::Clear)?);
        }
        let source = &self.layout.sources[&table];
        let Some(rows) = source.store.rows() else { return broken("a table was emptied whose rows are not known") };
        loop {
            let mut page = Vec::with_capacity(BATCH_ROWS);
            rows.entries(step.state, &[], &mut |entry, weight| {
                page.push((rows.row(entry), -weight));
                Ok(if page.len() < BATCH_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            if page.is_empty() {
                return Ok(());
            }
            self.run(BTreeMap::from([(source.node, Delta::consolidate(page))]), step)?;
        }
    }

    /// Both phases, from the differences of the scans.
    fn run(&self, scans: BTreeMap<NodeId, Delta>, step: &mut Step<'_>) -> Result<(), ViewError> {
        let mut output = Output::new(step.spool);
        let deltas = self.compute(scans, step, &mut output)?;
        for (index, node) in self.layout.nodes.iter().enumerate() {
            let inputs: Vec<&Delta> = node.inputs.iter().map(|input| &deltas[input.0]).collect();
            for arrangement in &node.arrangements {
                arrangement.fold(&deltas[index], step.state)?;
            }
            if inputs.iter().any(|input| !input.is_empty()) || !deltas[index].is_empty() {
                node.operator.fold(&inputs, &deltas[index], step.state)?;
            }
        }
        output.fold(self.layout.counts, step.state, step.sink)
    }

    /// Phase one: the difference of each node, but for those between a node and the root that only pass on what they are given.
    fn compute(&self, mut scans: BTreeMap<NodeId, Delta>, step: &mut Step<'_>, output: &mut Output) -> Result<Vec<Delta>, ViewError> {
        let (from, to) = step.time;
        let mut context = Context { before: &*step.state, from, to, remote: &mut *step.remote };
        let mut deltas: Vec<Delta> = Vec::with_capacity(self.layout.nodes.len());
        for (index, node) in self.layout.nodes.iter().enumerate() {
            let id = NodeId(index);
            let inputs: Vec<&Delta> = node.inputs.iter().map(|input| &deltas[input.0]).collect();
            let idle = inputs.iter().all(|input| input.is_empty()) && !(from != to && node.operator.has_clock());
            let delta = match (scans.remove(&id), self.layout.part(id)) {
                (Some(scanned), _) => scanned,
                (None, Part::Passes) => Delta::default(),
                (None, _) if idle => Delta::default(),
                (None, Part::Streams) => {
                    node.operator.stream(&inputs, &mut context, &mut |part| self.pass(id, part, to, output))?;
                    Delta::default()
                }
                (None, Part::Keeps) => node.operator.delta(&inputs, &mut context)?,
            };
            if !delta.is_empty() {
                self.feed(id, &delta, to, output)?;
            }
            deltas.push(delta);
        }
        Ok(deltas)
    }

    /// Hands a part of a node's difference to the root, through the nodes in between that only pass on.
    fn pass(&self, id: NodeId, part: Delta, now: i64, output: &mut Output) -> Result<(), ViewError> {
        self.feed(id, &part, now, output)?;
        if id == self.layout.root { output.push(part) } else { Ok(()) }
    }

    /// As [`Dataflow::pass`], for a difference that is kept.
    fn feed(&self, id: NodeId, delta: &Delta, now: i64, output: &mut Output) -> Result<(), ViewError> {
        let keeps = self.layout.part(id) == Part::Keeps;
        if keeps && id == self.layout.root {
            output.push(delta.clone())?;
        }
        for &(consumer, place) in &self.layout.consumers[id.0] {
            if self.layout.part(consumer) == Part::Passes {
                let passed = self.layout.linear(consumer, place, delta, now)?;
                if !passed.is_empty() {
                    self.pass(consumer, passed, now, output)?;
                }
            }
        }
        Ok(())
    }
}

/// What one call works with.
struct Step<'a> {
    spool: &'a Path,
    state: &'a mut dyn State,
    remote: &'a mut dyn Remote,
    sink: Sink<'a>,
    /// `now()` before and after.
    time: (i64, i64),
}
