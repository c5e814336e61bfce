//! One term of a join's difference.

use std::{collections::HashMap, ops::ControlFlow, rc::Rc};

use crate::{
    data::{Cells, Row, cell_ends},
    view::{
        State, ViewError,
        arrangement::Arranged,
        delta::Delta,
        join::{Join, MAX_CROSS_ROWS, Step, Term},
        operator::{Context, Emit, Parts},
    },
};

/// Rows found under a key that are kept to be used for all rows that look for them; where there are more, they are read again each time.
const KEPT_ROWS: usize = 1024;
/// Rows kept for one lookup of a term in all; beyond, it starts over. Some 8 MiB of the usual 60-byte rows with their allocations.
const MEMO_ROWS: usize = 64 * KEPT_ROWS;

/// A row of one input while the others are looked for: bytes copied into a buffer that is used again and again.
#[derive(Default)]
struct Bound {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// For each column its place among the cells.
    places: Vec<usize>,
}

impl Bound {
    fn set(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.ends.clear();
        cell_ends(bytes, &mut self.ends);
    }

    fn cell(&self, column: usize) -> &[u8] {
        let place = self.places[column];
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.bytes[start..self.ends[place]]
    }
}

/// Entries and weights that one lookup found.
type Found = Rc<Vec<(Box<[u8]>, i64)>>;

/// What a step has found so far, by key.
#[derive(Default)]
struct Memo {
    found: HashMap<Box<[u8]>, Found>,
    rows: usize,
}

impl Memo {
    fn keep(&mut self, key: &[u8], found: &Found) {
        if self.rows + found.len() > MEMO_ROWS {
            *self = Self::default();
        }
        self.rows += found.len().max(1);
        self.found.insert(key.into(), Rc::clone(found));
    }
}

/// A term while it runs.
struct Run<'a> {
    join: &'a Join,
    term: &'a Term,
    state: &'a dyn State,
    now: i64,
    /// For each step the difference of its input, if that is joined as it is after the chunk.
    changes: Vec<Option<Rc<Arranged>>>,
    /// One for each input.
    bound: Vec<Bound>,
    /// One for each step.
    memos: Vec<Memo>,
    parts: Parts<'a>,
}

impl Join {
    /// Emits one term.
    pub(super) fn run(&self, term: &Term, inputs: &[&Delta], context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let change = |step: &Step| {
            let after = step.input < term.driver && !inputs[step.input].is_empty();
            after.then(|| Rc::new(step.arrangement.arrange(inputs[step.input])))
        };
        let mut bound: Vec<Bound> = self.widths.iter().map(|width| Bound { places: (0..*width).collect(), ..Bound::default() }).collect();
        for step in &term.steps {
            bound[step.input].places = step.arrangement.places().to_vec();
        }
        let mut run = Run {
            join: self,
            term,
            state: context.before,
            now: context.to,
            changes: term.steps.iter().map(change).collect(),
            bound,
            memos: term.steps.iter().map(|_| Memo::default()).collect(),
            parts: Parts::new(emit),
        };
        for (row, weight) in run.in_lookup_order(inputs[term.driver]) {
            run.bind(term.driver, row.as_bytes(), 0, weight)?;
        }
        run.parts.finish()
    }
}

impl Run<'_> {
    /// The driver's rows in the order of the keys that they look for first.
    fn in_lookup_order<'d>(&self, delta: &'d Delta) -> Vec<(&'d Row, i64)> {
        let mut rows: Vec<(&Row, i64)> = delta.iter().collect();
        if let Some(step) = self.term.steps.first() {
            let columns: Vec<usize> = step.operands.iter().map(|operand| operand.1).collect();
            rows.sort_by_cached_key(|(row, _)| Cells::of(row.as_bytes()).row(&columns));
        }
        rows
    }

    /// Takes a row (or an entry) as that of `input` and goes on with the step at `depth`.
    fn bind(&mut self, input: usize, bytes: &[u8], depth: usize, weight: i64) -> Result<(), ViewError> {
        let bound = &mut self.bound[input];
        bound.set(bytes);
        let equal = |pair: &(usize, usize)| bound.cell(pair.0) == bound.cell(pair.1);
        if self.join.same[input].iter().all(equal) { self.step(depth, weight) } else { Ok(()) }
    }

    fn step(&mut self, depth: usize, weight: i64) -> Result<(), ViewError> {
        let Some(step) = self.term.steps.get(depth) else { return self.emit(weight) };
        let mut key = Vec::new();
        for (input, column) in &step.operands {
            let cell = self.bound[*input].cell(*column);
            if Cells::of(cell).is_null(0) {
                return Ok(());
            }
            key.extend_from_slice(cell);
        }
        if let Some(found) = self.memos[depth].found.get(&*key) {
            let found = Rc::clone(found);
            return self.each(step, depth, &found, weight);
        }
        self.look_up(step, depth, &key, weight)
    }

    fn each(&mut self, step: &Step, depth: usize, found: &[(Box<[u8]>, i64)], weight: i64) -> Result<(), ViewError> {
        found.iter().try_for_each(|(entry, times)| self.bind(step.input, entry, depth + 1, weight * times))
    }

    fn look_up(&mut self, step: &Step, depth: usize, key: &[u8], weight: i64) -> Result<(), ViewError> {
        let (state, change) = (self.state, self.changes[depth].clone());
        let cross = step.operands.is_empty();
        let (mut all, mut found, mut streams) = (0, Vec::new(), false);
        let mut each = |entry: &[u8], times: i64| {
            all += 1;
            if cross && all > MAX_CROSS_ROWS {
                return Err(ViewError::Budget(format!("a side of a cross join has more than {MAX_CROSS_ROWS} rows")));
            }
            if all <= KEPT_ROWS {
                found.push((entry.into(), times));
                return Ok(ControlFlow::Continue(()));
            }
            if !streams {
                streams = true;
                self.each(step, depth, &std::mem::take(&mut found), weight)?;
            }
            self.bind(step.input, entry, depth + 1, weight * times)?;
            Ok(ControlFlow::Continue(()))
        };
        match &change {
            None => step.arrangement.entries(state, key, &mut each)?,
            Some(change) => step.arrangement.entries_after(state, change, key, &mut each)?,
        }
        if streams {
            return Ok(());
        }
        let found = Rc::new(found);
        self.memos[depth].keep(key, &found);
        self.each(step, depth, &found, weight)
    }

    fn emit(&mut self, weight: i64) -> Result<(), ViewError> {
        let widths = &self.join.widths;
        let cells = self.bound.iter().zip(widths).flat_map(|(bound, width)| (0..*width).map(|column| bound.cell(column)));
        let row = Row::from_encoded(cells);
        if let Some(filter) = &self.join.filter
            && !filter.holds(&Cells::of(row.as_bytes()), self.now)?
        {
            return Ok(());
        }
        self.parts.push(row, weight)
    }
}
