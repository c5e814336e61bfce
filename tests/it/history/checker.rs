//! What a fact store may go through, given what the source went through: a pure function of the two histories.
//!
//! The *moments* are numbered: 0 is what the fact store held at first, 1 the source's result at the start, then one for each of its
//! transactions. So a fact that the store held wrongly was true at moment 0 and at no other: it may go, and never come again.
//!
//! With each batch comes its *head*, the last moment that may have been known when it arrived. The rules:
//!
//! - **Order.** What a batch says of a fact, that it holds or does not, was so at the source at some moment up to the head, and at none
//!   before that of the batch which spoke of it last. So nothing comes before its transaction, and what was deleted comes back with a later
//!   transaction only. A delete of what is not there counts: an insert from before it must not follow.
//! - **Known.** A wait that was answered for a moment is a promise: from then on the store holds what held at all moments from there to the
//!   head, and nothing that held at none of them. This is also the rule for facts that were true only inside of a transaction: they held
//!   at no moment.
//! - **Commit**, in the *live* lane: each state of the store is that of a moment, none before that of the state before; or it lies on the
//!   way between two that are too far apart for a batch, the deletes first. In the *folded* lane, where commits are netted, some
//!   facts may be missing, but all that are there held together at one moment: no grant comes before a revocation that is older.
//! - **Repetition.** A batch that comes twice in a row changes nothing the second time.
//! - **Delay.** At most so many changes arrive between the commit of a revocation and its delete.
//! - **End.** In the end the store holds what the source's last result says.
//!
//! Where there are several moments that explain a state the earliest is taken: whatever comes later and is explained by a later choice is
//! explained by this one. So a history that is refused has no explanation.

use std::collections::BTreeMap;

use factsync::target::Op;

use super::facts::Facts;

/// The two histories.
#[derive(Debug, Clone)]
pub(super) struct History {
    /// What held at each moment.
    pub(super) moments: Vec<Facts>,
    /// What the fact store went through.
    pub(super) steps: Vec<Step>,
    /// When a state may lie between two moments.
    pub(super) split: Split,
    /// The most changes that may arrive between the commit of a revocation and its delete.
    pub(super) delay: Option<usize>,
}

/// What happens to the fact store, or to those who watch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A batch was applied.
    Batch {
        /// In order.
        changes: Vec<(Op, usize)>,
        /// The last moment whose commit had begun when the batch arrived.
        head: usize,
        /// Whether it is the batch before once more.
        again: bool,
    },
    /// The source has answered a commit.
    Committed {
        /// Its moment.
        moment: usize,
    },
    /// A wait for a moment was answered.
    Reached {
        /// Which.
        moment: usize,
        /// The last moment whose commit had begun by then.
        head: usize,
    },
    /// From here on the lane is this one.
    Lane(Lane),
}

/// What kinds of batches may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Those of a comparison or of a queue that is being caught up with too.
    Backlog,
    /// Those of commits only, in their order.
    Live,
    /// Those of commits, any number of them folded into one.
    Folded,
}

/// When commits may arrive in several batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    /// When they have more changes than this.
    Above(usize),
    /// Always: the fact store refuses facts or large batches, so that they are halved.
    Anywhere,
}

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Order,
    Known,
    Commit,
    Repetition,
    Delay,
    End,
}

/// A history that has no explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// The number of the step that shows it.
    pub(super) step: usize,
    pub(super) rule: Rule,
    /// The fact, if there is one.
    pub(super) fact: Option<usize>,
    pub(super) what: String,
}

/// What a history that holds had to show, so that a test can tell whether it showed anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) batches: usize,
    pub(super) changes: usize,
    pub(super) repetitions: usize,
    /// States in the live lane, those on the way between two moments apart.
    pub(super) whole: usize,
    pub(super) parts: usize,
    pub(super) waits: usize,
    /// Revocations that were followed to their delete, and the most changes that came before one of them.
    pub(super) revocations: usize,
    pub(super) longest: usize,
}

type Checked<T = ()> = Result<T, Violation>;

impl History {
    /// Whether the fact store went through nothing but what it may.
    pub(super) fn check(&self) -> Checked<Seen> {
        let mut checker = Checker {
            history: self,
            step: 0,
            store: self.moments[0].clone(),
            spoken: BTreeMap::new(),
            reached: 0,
            lane: Lane::Backlog,
            position: 0,
            revoked: BTreeMap::new(),
            seen: Seen::default(),
        };
        for (number, step) in self.steps.iter().enumerate() {
            checker.step = number;
            checker.take(step)?;
        }
        checker.end()
    }
}

struct Checker<'h> {
    history: &'h History,
    step: usize,
    store: Facts,
    /// The earliest moment that what was last said of a fact can be from.
    spoken: BTreeMap<usize, usize>,
    /// The last moment that was promised.
    reached: usize,
    lane: Lane,
    /// The earliest moment that the store's state can be from, in the live lane.
    position: usize,
    /// Revocations under way: the moment of each and how many changes have arrived since.
    revoked: BTreeMap<usize, (usize, usize)>,
    seen: Seen,
}

impl Checker<'_> {
    fn take(&mut self, step: &Step) -> Checked {
        match step {
            Step::Batch { changes, again: true, .. } => self.repeated(changes),
            Step::Batch { changes, head, again: false } => self.applied(changes, *head),
            Step::Committed { moment } => {
                self.committed(*moment);
                Ok(())
            }
            Step::Reached { moment, head } => {
                self.seen.waits += 1;
                self.reached = self.reached.max(*moment);
                self.position = self.position.max(*moment);
                self.states(*head)
            }
            Step::Lane(lane) => {
                self.lane = *lane;
                self.position = self.reached;
                Ok(())
            }
        }
    }

    fn repeated(&mut self, changes: &[(Op, usize)]) -> Checked {
        self.seen.repetitions += 1;
        for (fact, op) in net(changes) {
            if self.store.has(fact) != holds(op) {
                return Err(self.broken(Rule::Repetition, Some(fact), format!("the second time {op:?} changes it")));
            }
        }
        Ok(())
    }

    fn applied(&mut self, changes: &[(Op, usize)], head: usize) -> Checked {
        self.seen.batches += 1;
        self.seen.changes += changes.len();
        let changes_of_facts = net(changes);
        for (&fact, &op) in &changes_of_facts {
            self.order(fact, op, head)?;
            self.store.set(fact, holds(op));
        }
        self.delays(changes.len(), &changes_of_facts, head)?;
        self.states(head)
    }

    /// There is a moment at which `op` is true of `fact`, and what was said of it before is not from after it.
    fn order(&mut self, fact: usize, op: Op, head: usize) -> Checked {
        // A change speaks of the source, so of no moment before its first.
        let from = self.spoken.get(&fact).copied().unwrap_or(1);
        let held = |moment: &usize| self.history.moments[*moment].has(fact) == holds(op);
        let Some(moment) = (from..=head).find(held) else {
            let what = format!("{op:?} is true at no moment from {from} to {head}, {}", self.life(fact));
            return Err(self.broken(Rule::Order, Some(fact), what));
        };
        self.spoken.insert(fact, moment);
        Ok(())
    }

    /// The store as a whole is one of those it may be.
    fn states(&mut self, head: usize) -> Checked {
        self.known(head)?;
        match self.lane {
            Lane::Backlog => Ok(()),
            Lane::Live => self.commit(head),
            Lane::Folded => self.together(head),
        }
    }

    fn known(&self, head: usize) -> Checked {
        let moments = &self.history.moments[self.reached..=head];
        let (mut some, mut all) = (moments[0].clone(), moments[0].clone());
        for moment in moments {
            some.add(moment);
            all.keep(moment);
        }
        let (from, between) = (self.reached, |fact| self.life(fact));
        if let Some(fact) = self.store.beyond(&some) {
            let what = format!("the store has it, and it is true at no moment from {from} to {head}, {}", between(fact));
            return Err(self.broken(Rule::Known, Some(fact), what));
        }
        if let Some(fact) = all.beyond(&self.store) {
            let what = format!("the store lacks it, and it is true at all moments from {from} to {head}, {}", between(fact));
            return Err(self.broken(Rule::Known, Some(fact), what));
        }
        Ok(())
    }

    fn together(&mut self, head: usize) -> Checked {
        let stale = |moment: usize| self.store.beyond(&self.history.moments[moment]);
        let Some(moment) = (self.position..=head).find(|moment| stale(*moment).is_none()) else {
            let fact = stale(head);
            let what = format!("the facts held together at no moment from {} to {head}, {}", self.position, self.life(fact.unwrap_or(0)));
            return Err(self.broken(Rule::Commit, fact, what));
        };
        self.position = moment;
        self.seen.parts += 1;
        Ok(())
    }

    fn commit(&mut self, head: usize) -> Checked {
        let moments = &self.history.moments;
        let whole = (self.position..=head).find(|moment| moments[*moment] == self.store);
        // A state on the way may happen to be that of a later moment; the earlier explanation is the one to keep.
        let parts = (self.position..whole.unwrap_or(head)).find(|from| (*from + 1..=head).any(|to| self.may_split(*from, to)));
        match whole {
            Some(_) => self.seen.whole += 1,
            None => self.seen.parts += 1,
        }
        match parts.or(whole) {
            Some(moment) => self.position = moment,
            None => {
                let nearest = (self.position..=head).min_by_key(|moment| moments[*moment].distance(&self.store)).expect("a moment");
                let differ = |one: &Facts, other: &Facts| one.iter().filter(|fact| !other.has(*fact)).take(5).collect::<Vec<_>>();
                let (missing, stale) = (differ(&moments[nearest], &self.store), differ(&self.store, &moments[nearest]));
                let what = format!(
                    "no moment from {} to {head} explains the state; the nearest is {nearest}, of which it lacks {missing:?} and which \
                     lacks {stale:?}",
                    self.position
                );
                return Err(self.broken(Rule::Commit, missing.first().or(stale.first()).copied(), what));
            }
        }
        Ok(())
    }

    /// Whether the store is on the way between two moments that may be split.
    fn may_split(&self, from: usize, to: usize) -> bool {
        let (before, after) = (&self.history.moments[from], &self.history.moments[to]);
        self.store != *after
            && self.store.is_between(before, after)
            && match self.history.split {
                Split::Above(size) => before.distance(after) > size,
                Split::Anywhere => true,
            }
    }

    /// Begins to count for what `moment` revokes and the store still has.
    fn committed(&mut self, moment: usize) {
        if self.history.delay.is_none() {
            return;
        }
        let (before, after) = (&self.history.moments[moment - 1], &self.history.moments[moment]);
        for fact in before.iter().filter(|fact| !after.has(*fact) && self.store.has(*fact)) {
            self.revoked.entry(fact).or_insert((moment, 0));
        }
    }

    fn delays(&mut self, arrived: usize, changes: &BTreeMap<usize, Op>, head: usize) -> Checked {
        let Some(most) = self.history.delay else { return Ok(()) };
        let moments = &self.history.moments;
        let deleted = |fact: &usize| changes.get(fact) == Some(&Op::Delete);
        // What was granted again need not be deleted at all.
        self.revoked.retain(|fact, (moment, _)| deleted(fact) || !moments[*moment..=head].iter().any(|later| later.has(*fact)));
        for fact in changes.keys().filter(|fact| deleted(fact)) {
            if let Some((_, before)) = self.revoked.remove(fact) {
                self.seen.revocations += 1;
                self.seen.longest = self.seen.longest.max(before);
            }
        }
        self.revoked.values_mut().for_each(|(_, since)| *since += arrived);
        match self.revoked.iter().find(|(_, (_, since))| *since > most) {
            None => Ok(()),
            Some((fact, (moment, since))) => {
                let what = format!("revoked at {moment}, and {since} changes have arrived since, more than {most}");
                Err(self.broken(Rule::Delay, Some(*fact), what))
            }
        }
    }

    fn end(mut self) -> Checked<Seen> {
        self.step = self.history.steps.len();
        let last = self.history.moments.last().expect("what the store held at first is one");
        for (fact, what) in [(self.store.beyond(last), "the store still has it"), (last.beyond(&self.store), "the store lacks it")] {
            if fact.is_some() {
                return Err(self.broken(Rule::End, fact, what.to_owned()));
            }
        }
        Ok(self.seen)
    }

    /// When a fact was true.
    fn life(&self, fact: usize) -> String {
        let moments = &self.history.moments;
        let turns = (0..moments.len()).filter(|&moment| moment == 0 || moments[moment].has(fact) != moments[moment - 1].has(fact));
        let turns: Vec<String> = turns.map(|moment| format!("{}{moment}", if moments[moment].has(fact) { "+" } else { "-" })).collect();
        format!("its life being {}", turns.join(" "))
    }

    fn broken(&self, rule: Rule, fact: Option<usize>, what: String) -> Violation {
        Violation { step: self.step, rule, fact, what }
    }
}

/// What a batch, which is applied as a whole, says of each fact in the end.
fn net(changes: &[(Op, usize)]) -> BTreeMap<usize, Op> {
    changes.iter().map(|&(op, fact)| (fact, op)).collect()
}

fn holds(op: Op) -> bool {
    match op {
        Op::Insert => true,
        Op::Delete => false,
    }
}
