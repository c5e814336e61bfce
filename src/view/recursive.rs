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
//! For every row it is kept how often the base has it and how often the step makes it of the set's rows: its *derivations*. A row is a
//! member if it has one. The number alone cannot tell when a member must go: on a cycle rows derive each other long after the last way in
//! from the base is gone. So a chunk is applied as delete and re-derive (DRed), with the numbers saying what can be re-derived:
//!
//! 1. **The chunk's own share**: what the base gains and loses, and what the step gains and loses because its other inputs change, over the
//!    set as it was.
//! 2. **Over-delete**: a member that lost any derivation is taken out, unless the base still has it; what the step made of it
//!    loses those derivations, and so on. What is left in the set has never lost a derivation or is in the base: it follows from the base
//!    alone, in as many steps as before.
//! 3. **Insert**: a row with a derivation left or gained is a member; what the step makes of it gains derivations, and so on.
//!
//! After 3 the members are exactly the rows with a derivation, so the set is closed under the step; and each of them follows from the
//! base, so no smaller set is. Every derivation is counted once: with the others' change over the old set in 1, and with every later
//! change of the set over the others as they are after the chunk in 2 and 3.
//!
//! In 1 derivations are looked at one by one and not netted: a row that loses one and gains another may have gained it from itself.

mod step;

use std::collections::{HashMap, VecDeque};

pub(super) use step::REFERENCE;

use crate::{
    data::Row,
    query::Plan,
    view::{
        Space, State, ViewError,
        arrangement::Arrangement,
        delta::Delta,
        lower::{Built, Lowering},
        operator::{BATCH_ROWS, Context, Emit, Operator, broken, walk},
        recursive::step::{Run, Step},
    },
};

/// Rows whose derivations one chunk may change before running the query again is the better way: some 200 MiB of them.
const MAX_TOUCHED: usize = 1_000_000;

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
        for driver in self.step.others() {
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
        let members = self.step.entering(Delta::consolidate(flips).into_rows())?;
        self.step.arrangements().iter().try_for_each(|arrangement| arrangement.fold(&members, state))
    }

    fn folds(&self, input: usize) -> Option<Vec<usize>> {
        (input == 0).then(Vec::new)
    }

    fn folds_output(&self) -> Option<Vec<usize>> {
        Some(Vec::new())
    }

    /// From the base, which is folded already, everything that follows, as if the set had been empty before.
    fn scan(&self, context: &mut Context<'_>, emit: Emit<'_>) -> Result<(), ViewError> {
        let nothing = vec![Delta::EMPTY; self.step.inputs()];
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
        std::iter::once(self.counts.0).chain(self.step.arrangements().iter().map(Arrangement::space)).collect()
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
