//! `WITH RECURSIVE … UNION`: the smallest set that holds the base and what one step makes of the set.
//!
//! ```text
//!  base ───────────────┐
//!                      v
//!  others ──> [ Derivations ] ──> [ Members ] ──> the set
//!              ^ a step │
//!              └────────┘
//! ```
//!
//! For every row it is kept how often the base has it and how often the step makes it of the set's rows: its *derivations*. A row is a member if
//! it has one. The number alone cannot tell when a member must go: on a cycle rows derive each other long after the last way in from
//! the base is gone. So a chunk is applied as delete and re-derive (DRed), with the numbers saying what can be re-derived:
//!
//! 1. **The chunk's own share**: what the base gains and loses, and what the step gains and loses because its other inputs change, over the
//!    set as it was.
//! 2. **Over-delete**: a member that lost any derivation is taken out, unless the base still has it; what the step made of it
//!    loses those derivations, and so on. What is left in the set has never lost a derivation or is in the base: it follows from the base
//!    alone, in as many steps as before.
//! 3. **Insert**: a row with a derivation left or gained is a member; what the step makes of it gains derivations, and so on.
//!
//! After 3 the members are exactly the rows with a derivation, so the set is closed under the step; and each of them follows from the base, so
//! no smaller set is. Every derivation is counted once: with the others' change over the old set in 1, and with every later change of the
//! set over the others as they are after the chunk in 2 and 3.
//!
//! In 1 derivations are looked at one by one and not netted: a row that loses one and gains another may have gained it from itself.

use std::collections::{HashMap, VecDeque};

use crate::{
    data::{Cells, Row},
    query::{EqualPair, Expr, Plan},
    view::{
        Space, State, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        lower::{Built, Lowering, NodeId},
        operator::{BATCH_ROWS, Context, Emit, Operator, broken, walk},
    },
};

/// Rows whose derivations one chunk may change before running the query again is the better way: some 200 MiB of them.
const MAX_TOUCHED: usize = 1_000_000;

/// Why a recursive query is not kept up to date.
pub(super) const REFERENCE: &str = "the recursive query refers to itself in another way than once, as one side of an inner join";

/// Rows of the other inputs that one row may meet in a step.
type Found = Vec<(Row, i64)>;

/// How often a row is in the base, and how often the step makes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    base: i64,
    steps: i64,
}

impl Count {
    fn read(bytes: Option<&[u8]>) -> Result<Self, ViewError> {
        let Some(bytes) = bytes else { return Ok(Self::default()) };
        let Some((base, rest)) = bytes.split_first_chunk() else { return broken("a recursion's count is cut off") };
        let Ok(steps) = rest.try_into() else { return broken("a recursion's count is cut off") };
        Ok(Self { base: i64::from_be_bytes(*base), steps: i64::from_be_bytes(steps) })
    }

    fn bytes(self) -> Option<[u8; 16]> {
        if self == Self::default() {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.base.to_be_bytes());
        bytes[8..].copy_from_slice(&self.steps.to_be_bytes());
        Some(bytes)
    }

    fn is_member(self) -> bool {
        self.base > 0 || self.steps > 0
    }
}

/// The counts of all rows that have one.
#[derive(Debug, Clone, Copy)]
struct Counts(Space);

impl Counts {
    fn get(self, row: &Row, state: &dyn State) -> Result<Count, ViewError> {
        Count::read(state.get(self.0, row.as_bytes())?.as_deref())
    }

    fn scan(self, state: &dyn State, each: &mut dyn FnMut(Row, Count) -> Result<(), ViewError>) -> Result<(), ViewError> {
        walk(|callback| state.scan(self.0, &[], callback), &mut |row, count| {
            each(Row::from_encoded([row]), Count::read(Some(count))?)?;
            Ok(std::ops::ControlFlow::Continue(()))
        })
    }
}

/// What stands between a row and what becomes of it.
#[derive(Debug, Clone)]
enum Stage {
    Filter(Expr),
    Map(Vec<Expr>),
}

/// `row` after `stages`; `None` if a condition is not TRUE.
fn pass(stages: &[Stage], mut row: Row, now: i64) -> Result<Option<Row>, ViewError> {
    for stage in stages {
        let cells = Cells::of(row.as_bytes());
        match stage {
            Stage::Filter(condition) => {
                if !condition.holds(&cells, now)? {
                    return Ok(None);
                }
            }
            Stage::Map(columns) => {
                let mut bytes = Vec::new();
                for column in columns {
                    column.eval(&cells, now)?.write(&mut bytes);
                }
                row = Row::from_encoded([&bytes[..]]);
            }
        }
    }
    Ok(Some(row))
}

/// Takes filters and maps off `plan`: what is below them, and they in the order in which a row passes them.
fn peel(mut plan: &Plan) -> (&Plan, Vec<Stage>) {
    let mut stages = Vec::new();
    loop {
        plan = match plan {
            Plan::Filter { input, condition } => {
                stages.push(Stage::Filter(condition.clone()));
                input
            }
            Plan::Map { input, columns } => {
                stages.push(Stage::Map(columns.clone()));
                input
            }
            _ => break,
        };
    }
    stages.reverse();
    (plan, stages)
}

/// One more input of a join: which, where its rows are, and what its key's columns equal.
struct Lookup {
    input: usize,
    arrangement: Arrangement,
    /// For each column of the key, the input and the column that it equals.
    operands: Vec<(usize, usize)>,
}

/// The recursive part: a join of the set with others, or the set alone, below filters and maps.
struct Step {
    /// Between the set and the join.
    before: Vec<Stage>,
    /// Columns of each input of the join.
    widths: Vec<usize>,
    on: Vec<EqualPair>,
    /// Which input is the set.
    itself: usize,
    /// For each input, how a row of it finds those of the others.
    lookups: Vec<Vec<Lookup>>,
    /// Where the set's rows are, as they enter the join.
    arrangements: Vec<Arrangement>,
    /// Between the join and the set.
    after: Vec<Stage>,
}

/// Keeps count of the derivations. Its output is what the step makes, as often as it does.
struct Derivations {
    counts: Counts,
    step: Step,
}

/// The set.
struct Members {
    counts: Counts,
}

pub(super) fn lower(lowering: &mut Lowering<'_>, base: &Plan, step: &Plan, width: usize) -> Result<Built, String> {
    let base = lowering.node(base)?;
    let counts = Counts(lowering.space());
    let (step, others) = Step::lower(lowering, step, width)?;
    let inputs = std::iter::once(base).chain(others).collect();
    let derivations = lowering.push(Built { operator: Box::new(Derivations { counts, step }), inputs }, width);
    Ok(Built { operator: Box::new(Members { counts }), inputs: vec![base, derivations] })
}

/// How many columns there are after `stages`.
fn width_after(stages: &[Stage], width: usize) -> usize {
    stages.iter().rev().find_map(|stage| if let Stage::Map(columns) = stage { Some(columns.len()) } else { None }).unwrap_or(width)
}

impl Step {
    /// The step, and the nodes of the inputs other than the set, in order.
    fn lower(lowering: &mut Lowering<'_>, plan: &Plan, width: usize) -> Result<(Self, Vec<NodeId>), String> {
        let (core, mut after) = peel(plan);
        let alone = [core.clone()];
        let (inputs, on) = match core {
            Plan::Join { inputs, on, filter } => {
                after.splice(0..0, filter.iter().cloned().map(Stage::Filter));
                (&inputs[..], on.clone())
            }
            _ => (&alone[..], Vec::new()),
        };
        let is_itself = |plan: &Plan| matches!(peel(plan).0, Plan::Itself { .. });
        let mut places = inputs.iter().enumerate().filter(|(_, input)| is_itself(input)).map(|(place, _)| place);
        let (Some(itself), None) = (places.next(), places.next()) else { return Err(REFERENCE.into()) };
        let (_, before) = peel(&inputs[itself]);
        let mut nodes = Vec::new();
        for (place, input) in inputs.iter().enumerate() {
            nodes.push(if place == itself { None } else { Some(lowering.node(input)?) });
        }
        let widths = nodes.iter().map(|node| node.map_or_else(|| width_after(&before, width), |node| lowering.width(node))).collect();
        let mut step = Self { before, widths, on, itself, lookups: Vec::new(), arrangements: Vec::new(), after };
        for driver in 0..nodes.len() {
            let lookups = step.plan(lowering, &nodes, driver);
            step.lookups.push(lookups);
        }
        Ok((step, nodes.into_iter().flatten().collect()))
    }

    /// The order in which a row of `driver` finds the others: next the one that most columns bind.
    fn plan(&mut self, lowering: &mut Lowering<'_>, nodes: &[Option<NodeId>], driver: usize) -> Vec<Lookup> {
        let mut bound = vec![driver];
        let mut lookups = Vec::new();
        while bound.len() < nodes.len() {
            let open = (0..nodes.len()).filter(|input| !bound.contains(input));
            let next = open.rev().max_by_key(|input| self.binds(&bound, *input).len()).expect("an input is left");
            let (key, operands): (Vec<usize>, Vec<_>) = self.binds(&bound, next).into_iter().unzip();
            let arrangement = match nodes[next] {
                Some(node) => lowering.arrange(node, &key, Nulls::Skip),
                None => self.arrange(lowering, &key),
            };
            lookups.push(Lookup { input: next, arrangement, operands });
            bound.push(next);
        }
        lookups
    }

    /// Columns of `input` that equal columns of the `bound` inputs, each once.
    fn binds(&self, bound: &[usize], input: usize) -> Vec<(usize, (usize, usize))> {
        let pairs = self.on.iter().flat_map(|pair| [(pair.left, pair.right), (pair.right, pair.left)]);
        let mut binds: Vec<_> =
            pairs.filter(|(own, other)| own.0 == input && bound.contains(&other.0)).map(|(own, other)| (own.1, other)).collect();
        binds.sort_unstable();
        binds.dedup_by_key(|bind| bind.0);
        binds
    }

    /// An arrangement of the set, as it enters the join.
    fn arrange(&mut self, lowering: &mut Lowering<'_>, key: &[usize]) -> Arrangement {
        let wanted = Arrangement::new(Space(0), self.widths[self.itself], key, Nulls::Skip);
        if let Some(known) = self.arrangements.iter().find(|known| known.serves(&wanted)) {
            return known.clone();
        }
        let arrangement = Arrangement::new(lowering.space(), self.widths[self.itself], key, Nulls::Skip);
        self.arrangements.push(arrangement.clone());
        arrangement
    }

    /// Which of the operator's inputs, the base being the first, the join's `input` is; not asked of the set.
    fn place(&self, input: usize) -> usize {
        if input < self.itself { input + 1 } else { input }
    }
}

/// The other inputs while a chunk goes through the step.
struct Run<'a> {
    step: &'a Step,
    state: &'a dyn State,
    now: i64,
    /// For each driver and each of its lookups, what the input's change is.
    changes: Vec<Vec<Arranged>>,
}

impl<'a> Run<'a> {
    fn new(step: &'a Step, inputs: &[&Delta], state: &'a dyn State, now: i64) -> Self {
        let change = |driver: usize, lookup: &Lookup| {
            // The set comes last: it is joined with the others as they are after the chunk, and the others with it as it was before.
            let after = lookup.input != step.itself && (driver == step.itself || lookup.input < driver);
            if after { lookup.arrangement.arrange(inputs[step.place(lookup.input)]) } else { Arranged::default() }
        };
        let changes = step.lookups.iter().enumerate().map(|(driver, lookups)| lookups.iter().map(|one| change(driver, one)).collect());
        Self { step, state, now, changes: changes.collect() }
    }

    /// Calls `each` with what the step makes of a row of the set.
    fn of_member(&self, row: &Row, weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
        match pass(&self.step.before, row.clone(), self.now)? {
            Some(row) => self.of_input(self.step.itself, row, weight, each),
            None => Ok(()),
        }
    }

    /// Calls `each` with what the step makes of a row of one input of the join.
    fn of_input(&self, driver: usize, row: Row, weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
        let mut bound = vec![None; self.step.widths.len()];
        bound[driver] = Some(row);
        self.look_up(driver, 0, &mut bound, weight, each)
    }

    fn look_up(&self, driver: usize, depth: usize, bound: &mut Vec<Option<Row>>, weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
        let Some(lookup) = self.step.lookups[driver].get(depth) else { return self.derive(bound, weight, each) };
        let mut key = Vec::new();
        for (input, column) in &lookup.operands {
            let row = bound[*input].as_ref().expect("operands are bound before");
            let cells = Cells::of(row.as_bytes());
            if cells.is_null(*column) {
                return Ok(());
            }
            key.extend(cells.encoded(*column));
        }
        let found: Found = lookup.arrangement.rows_after(self.state, &self.changes[driver][depth], &key)?;
        for (row, times) in found {
            bound[lookup.input] = Some(row);
            self.look_up(driver, depth + 1, bound, weight * times, each)?;
        }
        bound[lookup.input] = None;
        Ok(())
    }

    /// A whole combination: checks every equality, those by which it was found included, and sends it up.
    fn derive(&self, bound: &[Option<Row>], weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
        let rows: Vec<&Row> = bound.iter().flatten().collect();
        let cells: Vec<Cells<'_>> = rows.iter().map(|row| Cells::of(row.as_bytes())).collect();
        let equal = |pair: &EqualPair| {
            let (left, right) = (cells[pair.left.0].encoded(pair.left.1), cells[pair.right.0].encoded(pair.right.1));
            left == right && !cells[pair.left.0].is_null(pair.left.1)
        };
        if !self.step.on.iter().all(equal) {
            return Ok(());
        }
        let joined = Row::from_encoded(rows.iter().map(|row| row.as_bytes()));
        match pass(&self.step.after, joined, self.now)? {
            Some(row) => each(row, weight),
            None => Ok(()),
        }
    }
}

/// Called with a row and how many of its derivations are gained or lost.
type Derived<'a> = &'a mut dyn FnMut(Row, i64) -> Result<(), ViewError>;

/// A row while a chunk is applied.
#[derive(Debug, Clone, Copy)]
struct Touched {
    before: Count,
    after: Count,
    is_member: bool,
    /// Whether it has lost a derivation.
    lost: bool,
}

/// All rows that a chunk touches.
struct Fixpoint<'a> {
    counts: Counts,
    state: &'a dyn State,
    rows: HashMap<Row, Touched>,
    /// Touched since it was last looked at.
    open: VecDeque<Row>,
}

impl Fixpoint<'_> {
    fn touch(&mut self, row: Row, base: i64, steps: i64) -> Result<(), ViewError> {
        if !self.rows.contains_key(&row) {
            if self.rows.len() == MAX_TOUCHED {
                return Err(ViewError::Budget(format!("a recursive query changes more than {MAX_TOUCHED} rows at once")));
            }
            let before = self.counts.get(&row, self.state)?;
            let touched = Touched { before, after: before, is_member: before.is_member(), lost: false };
            self.rows.insert(row.clone(), touched);
        }
        let touched = self.rows.get_mut(&row).expect("just inserted");
        touched.after.base += base;
        touched.after.steps += steps;
        touched.lost |= base < 0 || steps < 0;
        self.open.push_back(row);
        Ok(())
    }

    /// Takes out every member that has lost a derivation and is not in the base, and what follows from it.
    fn over_delete(&mut self, run: &Run<'_>) -> Result<(), ViewError> {
        let mut seen = Vec::new();
        while let Some(row) = self.open.pop_front() {
            let touched = self.rows.get_mut(&row).expect("what is open is touched");
            if touched.is_member && touched.lost && touched.after.base <= 0 {
                touched.is_member = false;
                run.of_member(&row, -1, &mut |row, weight| self.touch(row, 0, weight))?;
            }
            seen.push(row);
        }
        // What was taken out may have a derivation left.
        self.open = seen.into();
        Ok(())
    }

    /// Takes in every row with a derivation, and what follows from it.
    fn insert(&mut self, run: &Run<'_>) -> Result<(), ViewError> {
        while let Some(row) = self.open.pop_front() {
            let touched = self.rows.get_mut(&row).expect("what is open is touched");
            if !touched.is_member && touched.after.is_member() {
                touched.is_member = true;
                run.of_member(&row, 1, &mut |row, weight| self.touch(row, 0, weight))?;
            }
        }
        Ok(())
    }

    /// What the step makes more or less often than before.
    fn finish(self) -> Result<Delta, ViewError> {
        let mut out = Vec::new();
        for (row, touched) in self.rows {
            if touched.after.base < 0 || touched.after.steps < 0 {
                return broken("a row of a recursion loses a derivation that it does not have");
            }
            let change = touched.after.steps - touched.before.steps;
            if change != 0 {
                out.push((row, change));
            }
        }
        Ok(Delta::consolidate(out))
    }
}

impl Operator for Derivations {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let run = Run::new(&self.step, inputs, context.before, context.to);
        let mut rows = Fixpoint { counts: self.counts, state: context.before, rows: HashMap::new(), open: VecDeque::new() };
        for (row, weight) in inputs[0].iter() {
            rows.touch(row.clone(), weight, 0)?;
        }
        for driver in (0..self.step.widths.len()).filter(|driver| *driver != self.step.itself) {
            for (row, weight) in inputs[self.step.place(driver)].iter() {
                run.of_input(driver, row.clone(), weight, &mut |row, weight| rows.touch(row, 0, weight))?;
            }
        }
        rows.over_delete(&run)?;
        rows.insert(&run)?;
        rows.finish()
    }

    fn fold(&self, inputs: &[&Delta], output: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        let mut flips = Vec::new();
        let base = inputs[0].iter().map(|(row, weight)| (row, Count { base: weight, steps: 0 }));
        let steps = output.iter().map(|(row, weight)| (row, Count { base: 0, steps: weight }));
        for (row, change) in base.chain(steps) {
            let before = self.counts.get(row, state)?;
            let after = Count { base: before.base + change.base, steps: before.steps + change.steps };
            state.put(self.counts.0, row.as_bytes(), after.bytes().as_ref().map(|bytes| &bytes[..]))?;
            let flip = i64::from(after.is_member()) - i64::from(before.is_member());
            if flip != 0 {
                flips.push((row.clone(), flip));
            }
        }
        let mut members = Vec::new();
        for (row, flip) in Delta::consolidate(flips).into_rows() {
            // No stage reads the time: that is what a clock is for.
            members.extend(pass(&self.step.before, row, 0)?.map(|row| (row, flip)));
        }
        let members = Delta::consolidate(members);
        self.step.arrangements.iter().try_for_each(|arrangement| arrangement.fold(&members, state))
    }

    fn folds(&self, input: usize) -> Option<Vec<usize>> {
        (input == 0).then(Vec::new)
    }

    fn folds_output(&self) -> Option<Vec<usize>> {
        Some(Vec::new())
    }

    /// From the base, which is folded already, everything that follows, as if the set had been empty before.
    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let nothing = vec![Delta::EMPTY; self.step.widths.len()];
        let run = Run::new(&self.step, &nothing, context.before, context.to);
        let mut steps = HashMap::<Row, i64>::new();
        let mut open = VecDeque::new();
        let derived = |steps: &mut HashMap<Row, i64>, open: &mut VecDeque<Row>, row: Row, weight: i64| {
            if steps.len() == MAX_TOUCHED {
                return Err(ViewError::Budget(format!("a recursive query derives more than {MAX_TOUCHED} rows")));
            }
            match steps.get_mut(&row) {
                Some(count) => *count += weight,
                None => {
                    // A row of the base is a member, and went through the step, by itself.
                    if self.counts.get(&row, context.before)?.base == 0 {
                        open.push_back(row.clone());
                    }
                    steps.insert(row, weight);
                }
            }
            Ok(())
        };
        self.counts.scan(context.before, &mut |row, count| {
            if count.base > 0 {
                run.of_member(&row, 1, &mut |row, weight| derived(&mut steps, &mut open, row, weight))?;
            }
            Ok(())
        })?;
        while let Some(row) = open.pop_front() {
            run.of_member(&row, 1, &mut |row, weight| derived(&mut steps, &mut open, row, weight))?;
        }
        let mut steps = steps.into_iter();
        loop {
            let batch: Vec<(Row, i64)> = steps.by_ref().take(BATCH_ROWS).collect();
            if batch.is_empty() {
                return Ok(());
            }
            emit(Delta::consolidate(batch))?;
        }
    }

    fn spaces(&self) -> Vec<Space> {
        std::iter::once(self.counts.0).chain(self.step.arrangements.iter().map(Arrangement::space)).collect()
    }
}

impl Operator for Members {
    fn delta(&self, inputs: &[&Delta], context: &mut Context<'_>) -> Result<Delta, ViewError> {
        let mut changes = HashMap::<&Row, Count>::new();
        for (row, weight) in inputs[0].iter() {
            changes.entry(row).or_default().base += weight;
        }
        for (row, weight) in inputs[1].iter() {
            changes.entry(row).or_default().steps += weight;
        }
        let mut out = Vec::new();
        for (row, change) in changes {
            let before = self.counts.get(row, context.before)?;
            let after = Count { base: before.base + change.base, steps: before.steps + change.steps };
            let flip = i64::from(after.is_member()) - i64::from(before.is_member());
            if flip != 0 {
                out.push((row.clone(), flip));
            }
        }
        Ok(Delta::consolidate(out))
    }

    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let mut rows = Vec::new();
        self.counts.scan(context.before, &mut |row, count| {
            if count.is_member() {
                rows.push((row, 1));
            }
            if rows.len() == BATCH_ROWS {
                emit(Delta::from_consolidated(std::mem::take(&mut rows)))?;
            }
            Ok(())
        })?;
        if rows.is_empty() { Ok(()) } else { emit(Delta::from_consolidated(rows)) }
    }
}
