//! The operators, each with the rule that it follows.
//!
//! Two phases: [`Operator::delta`] computes what the output gains and loses, reading only the state before the changes and the changes
//! themselves; [`Operator::commit`] then folds them in. Nothing here is indexed: the rules say which rows count, not how to find them.

use std::collections::{BTreeMap, BTreeSet};

use super::zset::{Row, Value, Zset, equal};

/// A table of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    R,
    S,
    T,
}

/// The net row changes of some tables.
pub(super) type Changes = BTreeMap<Table, Zset>;

/// A condition with SQL's three values.
pub(super) type Condition = fn(&[Value]) -> Option<bool>;

/// What becomes of a row, if it stays.
type Mapping = Box<dyn Fn(&[Value]) -> Option<Row>>;

/// What a partition's output is, from its key and its rows of each input.
pub(super) type Content = Box<dyn Fn(&[Value], &[Zset]) -> Zset>;

pub(super) trait Operator {
    fn delta(&mut self, changes: &Changes) -> Zset;
    fn commit(&mut self);
}

pub(super) type Plan = Box<dyn Operator>;

/// A bug that somebody might write, seeded on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bug {
    /// Every term of a join reads the other inputs as they were.
    JoinAllOld,
    /// Every term of a join reads the other inputs as they will be.
    JoinAllNew,
    /// A self join sees a half-applied table.
    JoinHalfApplied,
    /// NULL joins NULL.
    JoinNullEqualsNull,
    /// A row with a NULL key is dropped by NOT EXISTS.
    AntiDropsNullKey,
    /// New left rows are judged by the old right side.
    AntiReadsOldRight,
    /// A NULL in the subquery of NOT IN is ignored.
    NotInIgnoresNull,
    /// DISTINCT passes the weight on.
    DistinctKeepsWeight,
    /// An aggregate without GROUP BY has no row over nothing.
    NothingHasNoRow,
    /// A group stays when its last row goes.
    EmptyGroupStays,
    /// What a deletion took with it is not derived again.
    RecursionNotRederived,
    /// A deletion spreads along the edges that there will be.
    RecursionDeletesAlongNew,
    /// Of several changes to one key in a transaction the first one counts.
    FirstChangeWins,
    /// EXCEPT ALL counts like EXCEPT.
    ExceptAllIsExcept,
}

/// Makes operators, all of them with the same bug, if any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) bug: Option<Bug>,
}

/// A table's rows: their changes are the input.
struct Scan(Table);

impl Operator for Scan {
    fn delta(&mut self, changes: &Changes) -> Zset {
        changes.get(&self.0).cloned().unwrap_or_default()
    }

    fn commit(&mut self) {}
}

/// *Linear*: filters, projections and maps of the changes are the changes of the output. A condition keeps what is TRUE.
struct Linear {
    input: Plan,
    map: Mapping,
}

impl Operator for Linear {
    fn delta(&mut self, changes: &Changes) -> Zset {
        let changed = self.input.delta(changes);
        changed.iter().filter_map(|(row, weight)| Some(((self.map)(row)?, weight))).collect()
    }

    fn commit(&mut self) {
        self.input.commit();
    }
}

/// *Linear* as well: the changes of all inputs.
struct UnionAll(Vec<Plan>);

impl Operator for UnionAll {
    fn delta(&mut self, changes: &Changes) -> Zset {
        let mut all = Zset::default();
        self.0.iter_mut().for_each(|input| all.fold(&input.delta(changes), 1));
        all
    }

    fn commit(&mut self) {
        self.0.iter_mut().for_each(|input| input.commit());
    }
}

/// Two columns that must be equal, each as (input, column).
pub(super) type Equality = ((usize, usize), (usize, usize));

/// *Join*: the changes are Σi A1' ⋈ … ⋈ A(i-1)' ⋈ ΔAi ⋈ A(i+1)° ⋈ … ⋈ An°, where ° is before and ' after. One term for each
/// occurrence of a table, so a self join needs nothing of its own. NULL equals nothing.
struct Join {
    inputs: Vec<Plan>,
    on: Vec<Equality>,
    filter: Option<Condition>,
    stored: Vec<Zset>,
    changed: Vec<Zset>,
    bug: Option<Bug>,
}

impl Join {
    /// Whether the term of input `term` reads input `other` as it will be.
    fn reads_new(&self, other: usize, term: usize) -> bool {
        match self.bug {
            Some(Bug::JoinAllOld) => false,
            Some(Bug::JoinAllNew) => true,
            Some(Bug::JoinHalfApplied) => other <= term + 1,
            _ => other < term,
        }
    }

    fn fits(&self, bound: &[Option<&Row>], input: usize, row: &Row) -> bool {
        let cell = |(of, column): (usize, usize)| if of == input { Some(row[column]) } else { bound[of].map(|row| row[column]) };
        let meets = |a: Value, b: Value| match self.bug {
            Some(Bug::JoinNullEqualsNull) => a == b,
            _ => equal(a, b) == Some(true),
        };
        let concerned = self.on.iter().filter(|(left, right)| left.0 == input || right.0 == input);
        concerned.map(|(left, right)| (cell(*left), cell(*right))).all(|pair| match pair {
            (Some(a), Some(b)) => meets(a, b),
            // The other side is not bound yet and will check.
            _ => true,
        })
    }

    /// Binds the inputs that are not bound yet, in every way.
    fn extend(&self, bound: &mut Vec<Option<&Row>>, weight: i64, term: usize, out: &mut Zset) {
        let Some(next) = bound.iter().position(Option::is_none) else {
            let row: Row = bound.iter().flat_map(|row| row.expect("all are bound")).copied().collect();
            if self.filter.is_none_or(|filter| filter(&row) == Some(true)) {
                out.add(row, weight);
            }
            return;
        };
        let new = Some(&self.changed[next]).filter(|_| self.reads_new(next, term));
        let rows: Vec<(&Row, i64)> = self.stored[next].iter().chain(new.into_iter().flat_map(Zset::iter)).collect();
        for (row, times) in rows {
            if self.fits(bound, next, row) {
                let mut bound = bound.clone();
                bound[next] = Some(row);
                self.extend(&mut bound, weight * times, term, out);
            }
        }
    }
}

impl Operator for Join {
    fn delta(&mut self, changes: &Changes) -> Zset {
        self.changed = self.inputs.iter_mut().map(|input| input.delta(changes)).collect();
        let mut out = Zset::default();
        for (term, changed) in self.changed.iter().enumerate() {
            for (row, weight) in changed.iter() {
                let mut bound = vec![None; self.inputs.len()];
                bound[term] = Some(row);
                self.extend(&mut bound, weight, term, &mut out);
            }
        }
        out
    }

    fn commit(&mut self) {
        self.stored.iter_mut().zip(&self.changed).for_each(|(stored, changed)| stored.fold(changed, 1));
        self.inputs.iter_mut().for_each(|input| input.commit());
    }
}

/// What a [`Semi`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Matched,
    Unmatched,
}

/// *Semi and anti join*: changed left rows are judged by the right side as it will be; stored left rows come or go where their verdict
/// changes. The weight is the left row's. A NULL key matches nothing: EXISTS drops the row, NOT EXISTS keeps it.
struct Semi {
    left: Plan,
    right: Plan,
    keep: Keep,
    on: (usize, usize),
    filter: Option<Condition>,
    stored: [Zset; 2],
    changed: [Zset; 2],
    bug: Option<Bug>,
}

impl Semi {
    fn keeps(&self, row: &Row, right: &Zset) -> bool {
        let residual = |other: &Row| self.filter.is_none_or(|filter| filter(&[row.as_slice(), other].concat()) == Some(true));
        let meets = |other: &Row| equal(row[self.on.0], other[self.on.1]) == Some(true) && residual(other);
        let matched = right.iter().any(|(other, weight)| weight > 0 && meets(other));
        let lost = self.bug == Some(Bug::AntiDropsNullKey) && row[self.on.0] == Value::Null;
        matched == (self.keep == Keep::Matched) && !lost
    }
}

impl Operator for Semi {
    fn delta(&mut self, changes: &Changes) -> Zset {
        self.changed = [self.left.delta(changes), self.right.delta(changes)];
        let old = &self.stored[1];
        let new = old.plus(&self.changed[1]);
        let judge = if self.bug == Some(Bug::AntiReadsOldRight) { old } else { &new };
        let mut out: Zset = self.changed[0].iter().filter(|(row, _)| self.keeps(row, judge)).map(|(row, w)| (row.clone(), w)).collect();
        for (row, weight) in self.stored[0].iter() {
            match (self.keeps(row, old), self.keeps(row, &new)) {
                (false, true) => out.add(row.clone(), weight),
                (true, false) => out.add(row.clone(), -weight),
                (true, true) | (false, false) => {}
            }
        }
        out
    }

    fn commit(&mut self) {
        self.stored.iter_mut().zip(&self.changed).for_each(|(stored, changed)| stored.fold(changed, 1));
        self.left.commit();
        self.right.commit();
    }
}

/// *Partition*, the rule that is always right: where the output is a union over keys, the changes are the new content of each touched
/// partition minus its old content.
struct Partition {
    inputs: Vec<Plan>,
    /// The key's columns, of each input.
    keys: Vec<Vec<usize>>,
    content: Content,
    /// Whether there is a row over nothing: an aggregate without GROUP BY has one, from the start on.
    over_nothing: bool,
    started: bool,
    stored: Vec<Zset>,
    changed: Vec<Zset>,
    bug: Option<Bug>,
}

impl Partition {
    fn key(&self, input: usize, row: &Row) -> Row {
        self.keys[input].iter().map(|column| row[*column]).collect()
    }

    /// The rows of each partition in `keys`, of each input.
    fn parts(&self, keys: &BTreeSet<Row>, inputs: &[Zset]) -> BTreeMap<Row, Vec<Zset>> {
        let mut parts: BTreeMap<Row, Vec<Zset>> = keys.iter().map(|key| (key.clone(), vec![Zset::default(); inputs.len()])).collect();
        for (input, rows) in inputs.iter().enumerate() {
            for (row, weight) in rows.iter() {
                if let Some(part) = parts.get_mut(&self.key(input, row)) {
                    part[input].add(row.clone(), weight);
                }
            }
        }
        parts
    }

    fn content(&self, key: &Row, part: &[Zset], nothing_counts: bool) -> Zset {
        let nothing = part.iter().all(Zset::is_empty);
        if nothing && !nothing_counts { Zset::default() } else { (self.content)(key, part) }
    }
}

impl Operator for Partition {
    fn delta(&mut self, changes: &Changes) -> Zset {
        self.changed = self.inputs.iter_mut().map(|input| input.delta(changes)).collect();
        let mut touched: BTreeSet<Row> = BTreeSet::new();
        for (input, changed) in self.changed.iter().enumerate() {
            touched.extend(changed.iter().map(|(row, _)| self.key(input, row)));
        }
        if self.over_nothing {
            touched.insert(Row::new());
        }
        let mut out = Zset::default();
        let stays = self.bug == Some(Bug::EmptyGroupStays);
        let changed = self.parts(&touched, &self.changed);
        for (key, old) in self.parts(&touched, &self.stored) {
            let new: Vec<Zset> = old.iter().zip(&changed[&key]).map(|(old, changed)| old.plus(changed)).collect();
            out.fold(&self.content(&key, &new, self.over_nothing || stays), 1);
            out.fold(&self.content(&key, &old, self.over_nothing && self.started), -1);
        }
        out
    }

    fn commit(&mut self) {
        self.stored.iter_mut().zip(&self.changed).for_each(|(stored, changed)| stored.fold(changed, 1));
        self.started = true;
        self.inputs.iter_mut().for_each(|input| input.commit());
    }
}

impl Rules {
    pub(super) fn scan(self, table: Table) -> Plan {
        Box::new(Scan(table))
    }

    pub(super) fn columns(self, input: Plan, columns: &'static [usize]) -> Plan {
        Box::new(Linear { input, map: Box::new(move |row| Some(columns.iter().map(|column| row[*column]).collect())) })
    }

    pub(super) fn map(self, input: Plan, map: fn(&[Value]) -> Row) -> Plan {
        Box::new(Linear { input, map: Box::new(move |row| Some(map(row))) })
    }

    pub(super) fn filter(self, input: Plan, condition: Condition) -> Plan {
        Box::new(Linear { input, map: Box::new(move |row| (condition(row) == Some(true)).then(|| row.to_vec())) })
    }

    pub(super) fn union_all(self, inputs: Vec<Plan>) -> Plan {
        Box::new(UnionAll(inputs))
    }

    /// The inputs' columns one after the other.
    pub(super) fn join(self, inputs: Vec<Plan>, on: &[Equality], filter: Option<Condition>) -> Plan {
        let stored = vec![Zset::default(); inputs.len()];
        Box::new(Join { inputs, on: on.to_vec(), filter, changed: stored.clone(), stored, bug: self.bug })
    }

    pub(super) fn semi(self, keep: Keep, left: Plan, right: Plan, on: (usize, usize), filter: Option<Condition>) -> Plan {
        Box::new(Semi { left, right, keep, on, filter, stored: Default::default(), changed: Default::default(), bug: self.bug })
    }

    pub(super) fn partition(self, inputs: Vec<Plan>, keys: &[&[usize]], content: Content) -> Plan {
        let keys = keys.iter().map(|columns| columns.to_vec()).collect();
        self.partition_of(inputs, keys, false, content)
    }

    /// An aggregate without GROUP BY.
    pub(super) fn aggregate(self, input: Plan, content: Content) -> Plan {
        self.partition_of(vec![input], vec![Vec::new()], self.bug != Some(Bug::NothingHasNoRow), content)
    }

    fn partition_of(self, inputs: Vec<Plan>, keys: Vec<Vec<usize>>, over_nothing: bool, content: Content) -> Plan {
        let stored = vec![Zset::default(); inputs.len()];
        let bug = self.bug;
        Box::new(Partition { inputs, keys, content, over_nothing, started: false, changed: stored.clone(), stored, bug })
    }
}
