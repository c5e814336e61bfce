//! What is built of the operators: outer joins, DISTINCT, set operations, NOT IN, GROUP BY; and the one that is not, recursion.

use std::collections::BTreeSet;

use super::{
    operators::{Bug, Changes, Condition, Keep, Operator, Plan, Rules},
    zset::{Row, Value, Zset},
};

/// Makes a plan; who uses an input twice needs it twice, each with its own state.
pub(super) type Make<'a> = &'a dyn Fn() -> Plan;

impl Rules {
    /// *Outer join*: A ⟕ B = (A ⋈ B) + (A ▷ B) × NULL. The ON condition belongs to both parts.
    pub(super) fn left(self, left: Make<'_>, right: Make<'_>, on: (usize, usize), width: usize, filter: Option<Condition>) -> Plan {
        let joined = self.join(vec![left(), right()], &[((0, on.0), (1, on.1))], filter);
        let lonely = self.semi(Keep::Unmatched, left(), right(), on, filter);
        let padded = Box::new(Padded { input: lonely, before: 0, after: width });
        self.union_all(vec![joined, padded])
    }

    /// FULL adds (B ▷ A).
    pub(super) fn full(self, left: Make<'_>, right: Make<'_>, on: (usize, usize), widths: (usize, usize)) -> Plan {
        let kept = self.left(left, right, on, widths.1, None);
        let lonely = self.semi(Keep::Unmatched, right(), left(), (on.1, on.0), None);
        self.union_all(vec![kept, Box::new(Padded { input: lonely, before: widths.0, after: 0 })])
    }

    /// *Distinct*: a row appears when its weight becomes positive and goes when it ceases to be. NULLs equal each other.
    pub(super) fn distinct(self, input: Plan, columns: &'static [usize]) -> Plan {
        let keeps_weight = self.bug == Some(Bug::DistinctKeepsWeight);
        let once = move |weight: i64| if keeps_weight { weight } else { i64::from(weight > 0) };
        self.partition(vec![input], &[columns], Box::new(move |row, part| Zset::of(row.to_vec(), once(part[0].total()))))
    }

    /// *Set operations*, row by row: `times` says how often a row stays that occurs so often on the left and on the right.
    pub(super) fn set(self, left: Plan, right: Plan, columns: &'static [usize], times: fn(i64, i64) -> i64) -> Plan {
        let times = move |part: &[Zset]| times(part[0].total(), part[1].total());
        self.partition(vec![left, right], &[columns, columns], Box::new(move |row, part| Zset::of(row.to_vec(), times(part))))
    }

    pub(super) fn except_all(self, left: Plan, right: Plan, columns: &'static [usize]) -> Plan {
        match self.bug {
            Some(Bug::ExceptAllIsExcept) => self.set(left, right, columns, except),
            _ => self.set(left, right, columns, |a, b| (a - b).max(0)),
        }
    }

    /// *NOT IN*: true over nothing; else only if the operand is not NULL, no NULL is among the values and it is none of them.
    pub(super) fn not_in(self, left: Plan, right: Plan, operand: (usize, usize), correlated: (&[usize], &[usize])) -> Plan {
        let ignores_null = self.bug == Some(Bug::NotInIgnoresNull);
        let content = move |_: &[Value], part: &[Zset]| {
            let values: BTreeSet<Value> = part[1].iter().map(|(row, _)| row[operand.1]).collect();
            let known = |value: Value| ignores_null || (value != Value::Null && !values.contains(&Value::Null));
            let keeps = |row: &Row| values.is_empty() || (known(row[operand.0]) && !values.contains(&row[operand.0]));
            part[0].iter().filter(|(row, _)| keeps(row)).map(|(row, weight)| (row.clone(), weight)).collect()
        };
        self.partition(vec![left, right], &[correlated.0, correlated.1], Box::new(content))
    }

    /// The transitive closure of an input of edges.
    pub(super) fn reach(self, edges: Plan) -> Plan {
        Box::new(Reach { edges, bug: self.bug, ..Reach::nowhere() })
    }
}

/// EXCEPT: what is on the left and not on the right, once.
pub(super) fn except(left: i64, right: i64) -> i64 {
    i64::from(left > 0 && right <= 0)
}

/// *Group by*: the key, count(*), and of the last column: count, sum, min, max, count of distinct values. NULL is one group.
pub(super) fn aggregates(key: &[Value], part: &[Zset]) -> Zset {
    let mut values: Vec<i64> = Vec::new();
    for (row, weight) in part[0].iter() {
        if let Some(Value::Int(value)) = row.last() {
            values.extend((0..weight).map(|_| *value));
        }
    }
    let int = |int: Option<i64>| int.map_or(Value::Null, Value::Int);
    let count = |count: usize| Value::Int(count as i64);
    let sum = (!values.is_empty()).then(|| values.iter().sum());
    let distinct = values.iter().collect::<BTreeSet<_>>().len();
    let (min, max) = (int(values.iter().min().copied()), int(values.iter().max().copied()));
    let mut row = key.to_vec();
    row.extend([Value::Int(part[0].total()), count(values.len()), int(sum), min, max, count(distinct)]);
    Zset::of(row, 1)
}

/// NULLs before or after each row.
struct Padded {
    input: Plan,
    before: usize,
    after: usize,
}

impl Operator for Padded {
    fn delta(&mut self, changes: &Changes) -> Zset {
        let pad = |row: &Row| [vec![Value::Null; self.before], row.clone(), vec![Value::Null; self.after]].concat();
        self.input.delta(changes).iter().map(|(row, weight)| (pad(row), weight)).collect()
    }

    fn commit(&mut self) {
        self.input.commit();
    }
}

/// A pair of nodes.
type Pair = (Value, Value);

/// *Recursion*, by deletion and re-derivation: counting derivations would be wrong on cycles.
///
/// First everything goes that one of the vanished edges ever helped to derive (along the edges there were), then what can still be
/// derived from the rest comes back, then new edges are followed. Only pairs that are new are followed further.
struct Reach {
    edges: Plan,
    stored: Zset,
    changed: Zset,
    pairs: BTreeSet<Pair>,
    next: BTreeSet<Pair>,
    bug: Option<Bug>,
}

impl Reach {
    fn nowhere() -> Self {
        let edges = Box::new(Padded { input: Rules { bug: None }.union_all(Vec::new()), before: 0, after: 0 });
        Self { edges, stored: Zset::default(), changed: Zset::default(), pairs: BTreeSet::new(), next: BTreeSet::new(), bug: None }
    }
}

fn pairs(edges: &Zset) -> BTreeSet<Pair> {
    edges.present().into_iter().map(|row| (row[0], row[1])).collect()
}

/// Where one more edge leads.
fn step(from: &BTreeSet<Pair>, edges: &BTreeSet<Pair>) -> BTreeSet<Pair> {
    let leaving = |end: Value| edges.iter().filter(move |(start, _)| *start == end);
    from.iter().flat_map(|(start, end)| leaving(*end).map(|(_, further)| (*start, *further))).collect()
}

/// `found` and everything reachable from it over `edges` that `counts`.
fn spread(mut found: BTreeSet<Pair>, edges: &BTreeSet<Pair>, counts: impl Fn(&Pair) -> bool) -> BTreeSet<Pair> {
    let mut front = found.clone();
    while !front.is_empty() {
        front = step(&front, edges).into_iter().filter(|pair| counts(pair) && !found.contains(pair)).collect();
        found.extend(front.iter().copied());
    }
    found
}

impl Operator for Reach {
    fn delta(&mut self, changes: &Changes) -> Zset {
        self.changed = self.edges.delta(changes);
        let (old, new) = (pairs(&self.stored), pairs(&self.stored.plus(&self.changed)));
        let (gone, come) = (&old - &new, &new - &old);
        let was = |pair: &Pair| self.pairs.contains(pair);
        let struck: BTreeSet<Pair> = gone.iter().copied().chain(step(&self.pairs, &gone)).filter(was).collect();
        let along = if self.bug == Some(Bug::RecursionDeletesAlongNew) { &new } else { &old };
        let deleted = spread(struck, along, was);
        let mut kept = &self.pairs - &deleted;
        while self.bug != Some(Bug::RecursionNotRederived) {
            let again: BTreeSet<Pair> = &(&(&step(&kept, &new) | &new) & &deleted) - &kept;
            if again.is_empty() {
                break;
            }
            kept.extend(again);
        }
        let first: BTreeSet<Pair> = come.iter().copied().chain(step(&kept, &come)).filter(|pair| !kept.contains(pair)).collect();
        let added = spread(first, &new, |pair| !kept.contains(pair));
        self.next = &kept | &added;
        let row = |pair: &Pair| vec![pair.0, pair.1];
        let (plus, minus) = (&self.next - &self.pairs, &self.pairs - &self.next);
        plus.iter().map(|pair| (row(pair), 1)).chain(minus.iter().map(|pair| (row(pair), -1))).collect()
    }

    fn commit(&mut self) {
        self.stored.fold(&self.changed, 1);
        self.pairs = std::mem::take(&mut self.next);
        self.edges.commit();
    }
}
