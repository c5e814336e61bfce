//! From whole tables to the state that streaming their rows would have left.
//!
//! Rows are pushed: a table's rows, or the complete output of an operator with state, go in batches through the linear operators above, and
//! every arrangement on the way collects its entries in a sorter. When all that feeds a node has been pushed, its
//! entries are written in key order, and the operators that read them can stream their own output. Checking what is stored is the same with
//! a comparison in place of each write.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use crate::{
    data::{Cells, Extent, ExtentBuilder, Row},
    view::{
        MemoryState, Remote, Space, State, ViewError,
        arrangement::Arrangement,
        delta::Delta,
        layout::Layout,
        lower::NodeId,
        net::Store,
        operator::{BATCH_ROWS, Context, Load, broken},
        sort::{Sorted, Sorter},
    },
};

/// What is done with what should be stored.
pub(super) enum Target<'a> {
    /// It is written.
    Write(&'a mut dyn State),
    /// It is compared; operators' own spaces are built aside first.
    Check(&'a dyn State, MemoryState),
}

impl Target<'_> {
    /// What operators read.
    fn state(&self) -> &dyn State {
        match self {
            Self::Write(state) => &**state,
            Self::Check(state, _) => *state,
        }
    }

    /// Where operators fold.
    fn folded(&mut self) -> &mut dyn State {
        match self {
            Self::Write(state) => &mut **state,
            Self::Check(_, aside) => aside,
        }
    }

    /// Takes the entries of an arrangement, in order.
    fn entries(&mut self, arrangement: &Arrangement, mut entries: Sorted) -> Result<(), ViewError> {
        match self {
            Self::Write(state) => arrangement.fill(&mut entries, &mut **state),
            Self::Check(state, _) => arrangement.check(&mut entries, *state),
        }
    }

    /// Compares an operator's own spaces.
    fn own(&self, spaces: &[Space]) -> Result<(), ViewError> {
        let Self::Check(state, aside) = self else { return Ok(()) };
        for &space in spaces {
            let mut wanted = Vec::new();
            aside.scan(space, &[], &mut |key, value| {
                wanted.push((key.to_vec(), value.to_vec()));
                Ok(ControlFlow::Continue(()))
            })?;
            let mut wanted = wanted.into_iter();
            let mut same = true;
            state.scan(space, &[], &mut |key, value| {
                // Numbers have an encoding of the state's own, so what is no value is compared as a number.
                let next = wanted.next();
                same = next.is_some_and(|(k, v)| k == key && (v == value || v.len() == 8 && aside.weight(&v) == state.weight(value)));
                Ok(if same { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            if !same || wanted.next().is_some() {
                return broken(format!("space {} of an operator is not what its rows make of it", space.0));
            }
        }
        Ok(())
    }
}

/// Compares stored numbers with what they should be.
fn compare(state: &dyn State, space: Space, next: &mut dyn FnMut() -> Result<Option<(Row, i64)>, ViewError>) -> Result<(), ViewError> {
    let differs = || ViewError::Broken(format!("space {} is not what its rows make of it", space.0));
    crate::view::operator::walk(|each| state.scan(space, &[], each), &mut |key, value| match next()? {
        Some((entry, weight)) if entry.as_bytes() == key && weight == state.weight(value) => Ok(ControlFlow::Continue(())),
        Some(_) | None => Err(differs()),
    })?;
    if next()?.is_none() { Ok(()) } else { Err(differs()) }
}

/// A load, or a check, on its way through the nodes.
pub(super) struct Loader<'a> {
    layout: &'a Layout,
    spool: &'a Path,
    now: i64,
    target: Target<'a>,
    pools: Pools<'a>,
}

/// What has been pushed and not yet been taken.
struct Pools<'a> {
    layout: &'a Layout,
    spool: &'a Path,
    now: i64,
    /// Entries of arrangements, by space.
    arranged: BTreeMap<Space, Sorter>,
    /// Inputs that operators take themselves, permuted as they asked.
    inputs: BTreeMap<(NodeId, usize), Sorter>,
    /// Outputs that operators take themselves.
    outputs: BTreeMap<NodeId, Sorter>,
    /// The view's.
    root: Sorter,
}

/// All columns, `first` ones first.
fn order(first: &[usize], width: usize) -> Arrangement {
    Arrangement::new(Space(0), width, first, crate::view::arrangement::Nulls::Keep)
}

impl Pools<'_> {
    /// Takes a part of a node's complete output.
    fn push(&mut self, id: NodeId, part: &Delta) -> Result<(), ViewError> {
        let (layout, spool) = (self.layout, self.spool);
        let node = &layout.nodes[id.0];
        for arrangement in &node.arrangements {
            let sorter = self.arranged.entry(arrangement.space()).or_insert_with(|| Sorter::new(spool));
            for (entry, weight) in part.iter().filter_map(|(row, weight)| Some((arrangement.entry(row)?, weight))) {
                sorter.push(&entry, weight)?;
            }
        }
        if id == layout.root {
            part.iter().try_for_each(|(row, weight)| self.root.push(row, weight))?;
        }
        if let Some(columns) = node.operator.folds_output() {
            let sorter = self.outputs.entry(id).or_insert_with(|| Sorter::new(spool));
            collect(sorter, &order(&columns, node.width), part)?;
        }
        for &(consumer, place) in &layout.consumers[id.0] {
            let operator = &layout.nodes[consumer.0].operator;
            let wanted = match operator.load() {
                Load::Linear => {
                    let passed = layout.linear(consumer, place, part, self.now)?;
                    self.push(consumer, &passed)?;
                    continue;
                }
                Load::Streamed => Some(Vec::new()),
                Load::Scanned => operator.folds(place),
            };
            if let Some(columns) = wanted {
                let sorter = self.inputs.entry((consumer, place)).or_insert_with(|| Sorter::new(spool));
                collect(sorter, &order(&columns, node.width), part)?;
            }
        }
        Ok(())
    }
}

/// Under each key there is one row; `last` is the key before.
fn one_each(rows: &Arrangement, batch: &Delta, last: &mut Row) -> Result<(), ViewError> {
    for (entry, weight) in rows.arrange(batch).entries() {
        let key = rows.prefix(&rows.row(entry.as_bytes()));
        if *weight != 1 || key == *last {
            return broken("two rows of a table are stored under one key");
        }
        *last = key;
    }
    Ok(())
}

fn collect(sorter: &mut Sorter, order: &Arrangement, part: &Delta) -> Result<(), ViewError> {
    for (row, weight) in part.iter() {
        sorter.push(&order.entry(row).expect("an order has an entry for each row"), weight)?;
    }
    Ok(())
}

/// A batch in the order in which it was collected, back as rows.
fn restored(batch: Delta, order: &Arrangement) -> Delta {
    batch.into_rows().into_iter().map(|(entry, weight)| (order.row(entry.as_bytes()), weight)).collect()
}

impl<'a> Loader<'a> {
    pub(super) fn new(layout: &'a Layout, spool: &'a Path, now: i64, target: Target<'a>) -> Self {
        let root = Sorter::new(spool);
        let pools = Pools { layout, spool, now, arranged: BTreeMap::new(), inputs: BTreeMap::new(), outputs: BTreeMap::new(), root };
        Self { layout, spool, now, target, pools }
    }

    /// Fills the state.
    pub(super) fn load(mut self, mut tables: BTreeMap<u32, Extent>, remote: &mut dyn Remote) -> Result<Extent, ViewError> {
        for (table, source) in &self.layout.sources {
            let Some(rows) = tables.remove(table) else { return broken(format!("table {table} was not read")) };
            let width = self.layout.nodes[source.node.0].width;
            let mut batch = Vec::with_capacity(BATCH_ROWS);
            for row in rows {
                let row = row?;
                let mut cells = Cells::of(row.as_bytes());
                // Rows of a bag have one more cell, which tells equal ones apart.
                cells.truncate(width);
                batch.push((Row::from_encoded(cells.iter()), 1));
                if batch.len() == BATCH_ROWS {
                    self.pools.push(source.node, &Delta::consolidate(std::mem::take(&mut batch)))?;
                }
            }
            self.pools.push(source.node, &Delta::consolidate(batch))?;
        }
        self.nodes(remote)?;
        self.root()
    }

    /// Checks the state against the stored rows of the tables.
    pub(super) fn verify(mut self, remote: &mut dyn Remote) -> Result<Extent, ViewError> {
        let Target::Check(state, _) = self.target else { return broken("only a check verifies") };
        for source in self.layout.sources.values() {
            let Some(rows) = source.store.rows() else { return broken("the rows of a table are not stored") };
            let mut last = Row::from_encoded([]);
            rows.scan(state, &mut |batch| {
                if matches!(source.store, Store::Key { .. }) {
                    one_each(rows, &batch, &mut last)?;
                }
                self.pools.push(source.node, &batch)
            })?;
        }
        self.nodes(remote)?;
        self.root()
    }

    /// Goes through the nodes; all that comes from tables has been pushed.
    fn nodes(&mut self, remote: &mut dyn Remote) -> Result<(), ViewError> {
        for (index, node) in self.layout.nodes.iter().enumerate() {
            let id = NodeId(index);
            match node.operator.load() {
                Load::Linear => {}
                Load::Streamed => self.streamed(id, remote)?,
                Load::Scanned => {
                    self.fold_inputs(id)?;
                    let mut context = Context { before: self.target.state(), from: self.now, to: self.now, remote };
                    node.operator.scan(&mut context, &mut |part| self.pools.push(id, &part))?;
                    self.fold_output(id)?;
                }
            }
            for arrangement in &node.arrangements {
                let entries = self.pools.arranged.remove(&arrangement.space()).unwrap_or_else(|| Sorter::new(self.spool));
                self.target.entries(arrangement, entries.finish()?)?;
            }
            self.target.own(&node.operator.spaces())?;
        }
        Ok(())
    }

    fn fold_inputs(&mut self, id: NodeId) -> Result<(), ViewError> {
        let node = &self.layout.nodes[id.0];
        for (place, input) in node.inputs.iter().enumerate() {
            let Some(sorter) = self.pools.inputs.remove(&(id, place)) else { continue };
            let order = order(&node.operator.folds(place).unwrap_or_default(), self.layout.nodes[input.0].width);
            let mut rows = sorter.finish()?;
            while let Some(batch) = rows.batch()? {
                let batch = restored(batch, &order);
                let mut inputs = vec![Delta::EMPTY; node.inputs.len()];
                inputs[place] = &batch;
                node.operator.fold(&inputs, Delta::EMPTY, self.target.folded())?;
            }
        }
        Ok(())
    }

    fn fold_output(&mut self, id: NodeId) -> Result<(), ViewError> {
        let node = &self.layout.nodes[id.0];
        let Some(sorter) = self.pools.outputs.remove(&id) else { return Ok(()) };
        let order = order(&node.operator.folds_output().unwrap_or_default(), node.width);
        let mut rows = sorter.finish()?;
        while let Some(batch) = rows.batch()? {
            let inputs = vec![Delta::EMPTY; node.inputs.len()];
            node.operator.fold(&inputs, &restored(batch, &order), self.target.folded())?;
        }
        Ok(())
    }

    fn streamed(&mut self, id: NodeId, remote: &mut dyn Remote) -> Result<(), ViewError> {
        let node = &self.layout.nodes[id.0];
        let Some(sorter) = self.pools.inputs.remove(&(id, 0)) else { return Ok(()) };
        let mut rows = sorter.finish()?;
        while let Some(batch) = rows.batch()? {
            let mut context = Context { before: self.target.state(), from: self.now, to: self.now, remote };
            let output = node.operator.delta(&[&batch], &mut context)?;
            node.operator.fold(&[&batch], &output, self.target.folded())?;
            self.pools.push(id, &output)?;
        }
        Ok(())
    }

    /// Takes the view's rows: counted, where counts are kept, and each once in the result.
    fn root(self) -> Result<Extent, ViewError> {
        let Self { layout, spool, mut target, pools, .. } = self;
        let mut result = ExtentBuilder::new(spool);
        let mut rows = pools.root.finish()?;
        let mut next = || -> Result<Option<(Row, i64)>, ViewError> {
            let Some((row, weight)) = rows.next()? else { return Ok(None) };
            if weight < 1 || weight > 1 && layout.counts.is_none() {
                return broken("a row of the result is there more than once, or less than never");
            }
            result.push(row.clone())?;
            Ok(Some((row, weight)))
        };
        match (&mut target, layout.counts) {
            (Target::Check(state, _), Some(space)) => compare(*state, space, &mut next)?,
            (Target::Write(state), Some(space)) => {
                while let Some((row, weight)) = next()? {
                    state.add(space, row.as_bytes(), weight)?;
                }
            }
            (Target::Check(..) | Target::Write(_), None) => while next()?.is_some() {},
        }
        Ok(result.finish()?)
    }
}
