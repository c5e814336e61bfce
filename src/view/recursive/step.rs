//! One step of a recursion: what becomes of the set's rows, alone or joined with others.
//!
//! The step is linear: the set is one input of one inner join, so what it makes of two rows is what it makes of the one and of the other.
//! The join looks up input by input, in an order of its own for each input that it starts from. In the sum that makes up a difference the
//! set comes last: the others' changes meet the set as it was, the set's changes meet the others as they are after the chunk.

use crate::{
    data::{Cells, Row},
    query::{EqualPair, Expr, Plan},
    view::{
        Space, State, ViewError,
        arrangement::{Arranged, Arrangement, Nulls},
        delta::Delta,
        lower::{Lowering, NodeId},
    },
};

/// Why a recursive query is not kept up to date.
pub(in crate::view) const REFERENCE: &str = "the recursive query refers to itself in another way than once, as one side of an inner join";

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
pub(super) struct Step {
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

/// How many columns there are after `stages`.
fn width_after(stages: &[Stage], width: usize) -> usize {
    stages.iter().rev().find_map(|stage| if let Stage::Map(columns) = stage { Some(columns.len()) } else { None }).unwrap_or(width)
}

impl Step {
    /// The step, and the nodes of the inputs other than the set, in order.
    pub(super) fn lower(lowering: &mut Lowering<'_>, plan: &Plan, width: usize) -> Result<(Self, Vec<NodeId>), String> {
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

    /// How many inputs the join has, the set included.
    pub(super) fn inputs(&self) -> usize {
        self.widths.len()
    }

    /// The inputs but for the set.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        (0..self.widths.len()).filter(|input| *input != self.itself)
    }

    /// Where the set's rows are, as they enter the join.
    pub(super) fn arrangements(&self) -> &[Arrangement] {
        &self.arrangements
    }

    /// What enters the join when rows of the set come and go.
    pub(super) fn entering(&self, rows: Vec<(Row, i64)>) -> Result<Delta, ViewError> {
        let mut entering = Vec::with_capacity(rows.len());
        for (row, weight) in rows {
            // No stage reads the time: that is what a clock is for.
            entering.extend(pass(&self.before, row, 0)?.map(|row| (row, weight)));
        }
        Ok(Delta::consolidate(entering))
    }

    /// Which of the operator's inputs, the base being the first, the join's `input` is; not asked of the set.
    pub(super) fn place(&self, input: usize) -> usize {
        if input < self.itself { input + 1 } else { input }
    }
}

/// Rows of the other inputs that one row may meet in a step.
type Found = Vec<(Row, i64)>;

/// The other inputs while a chunk goes through the step.
pub(super) struct Run<'a> {
    step: &'a Step,
    state: &'a dyn State,
    now: i64,
    /// For each driver and each of its lookups, what the input's change is.
    changes: Vec<Vec<Arranged>>,
}

impl<'a> Run<'a> {
    pub(super) fn new(step: &'a Step, inputs: &[&Delta], state: &'a dyn State, now: i64) -> Self {
        let change = |driver: usize, lookup: &Lookup| {
            // The set comes last: it is joined with the others as they are after the chunk, and the others with it as it was before.
            let after = lookup.input != step.itself && (driver == step.itself || lookup.input < driver);
            if after { lookup.arrangement.arrange(inputs[step.place(lookup.input)]) } else { Arranged::default() }
        };
        let changes = step.lookups.iter().enumerate().map(|(driver, lookups)| lookups.iter().map(|one| change(driver, one)).collect());
        Self { step, state, now, changes: changes.collect() }
    }

    /// Calls `each` with what the step makes of a row of the set.
    pub(super) fn of_member(&self, row: &Row, weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
        match pass(&self.step.before, row.clone(), self.now)? {
            Some(row) => self.of_input(self.step.itself, row, weight, each),
            None => Ok(()),
        }
    }

    /// Calls `each` with what the step makes of a row of one input of the join.
    pub(super) fn of_input(&self, driver: usize, row: Row, weight: i64, each: Derived<'_>) -> Result<(), ViewError> {
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
pub(super) type Derived<'a> = &'a mut dyn FnMut(Row, i64) -> Result<(), ViewError>;
