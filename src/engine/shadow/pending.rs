//! Commits whose facts the fact store does not hold yet as they say.
//!
//! A fact belongs to the last commit that changes it: one that is changed again is settled for the earlier commit and waits with the
//! later one. A commit is over when all its facts are settled, or when it was looked at after its time.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    data::{Position, Row},
    store::{OutboxEntry, ViewId},
    target::Op,
};

/// How soon a commit that does not agree is looked at again, at first.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// And in the end: a fact that is late by seconds is not known more exactly than that. In between it doubles.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A commit that waits.
#[derive(Debug)]
struct Waiting {
    commit_no: u64,
    position: Option<Position>,
    changes: Vec<(ViewId, Op, Row)>,
    taken: Instant,
    /// Facts of it that are not settled.
    unsettled: usize,
    pause: Duration,
    next: Instant,
}

/// A commit that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) commit_no: u64,
    pub(super) position: Option<Position>,
    pub(super) changes: Vec<(ViewId, Op, Row)>,
    /// Of these, what the fact store does not hold as the commit says.
    pub(super) amiss: Vec<(ViewId, Op, Row)>,
    /// How long it took to agree, or how long it was waited for.
    pub(super) waited: Duration,
}

/// The commits that wait.
#[derive(Debug)]
pub(super) struct Pending {
    grace: Duration,
    commits: VecDeque<Waiting>,
    /// Of each unsettled fact, which commit it belongs to and what that says.
    facts: HashMap<(ViewId, Row), (u64, Op)>,
    /// Changes in the commits, settled or not.
    size: usize,
}

impl Pending {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, commits: VecDeque::new(), facts: HashMap::new(), size: 0 }
    }

    /// How many commits wait.
    pub(super) fn commits(&self) -> usize {
        self.commits.len()
    }

    /// How many changes are in memory.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The facts of `view` that commits which are not over have changed.
    pub(super) fn rows(&self, view: ViewId) -> impl Iterator<Item = &Row> {
        let changes = self.commits.iter().flat_map(|commit| &commit.changes);
        changes.filter(move |(of, ..)| *of == view).map(|(.., row)| row)
    }

    pub(super) fn push(&mut self, commit_no: u64, position: Option<Position>, entries: Vec<OutboxEntry>, now: Instant) {
        let mut commit = Waiting {
            commit_no,
            position,
            changes: Vec::with_capacity(entries.len()),
            taken: now,
            unsettled: 0,
            pause: FIRST_PAUSE,
            next: now,
        };
        self.size += entries.len();
        for OutboxEntry { view, op, row, .. } in entries {
            // A commit's facts are net, so each is in it once.
            commit.unsettled += 1;
            if let Some((earlier, _)) = self.facts.insert((view, row.clone()), (commit_no, op)) {
                self.settle(earlier);
            }
            commit.changes.push((view, op, row));
        }
        self.commits.push_back(commit);
    }

    fn settle(&mut self, commit_no: u64) {
        // They come in the order of their numbers.
        let at = self.commits.binary_search_by_key(&commit_no, |commit| commit.commit_no);
        self.commits[at.expect("an unsettled fact belongs to a commit that waits")].unsettled -= 1;
    }

    /// When something is to be looked at next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.commits.iter().map(|commit| commit.next).min()
    }

    /// The facts to be looked at now.
    pub(super) fn due(&self, now: Instant) -> Vec<(ViewId, Row)> {
        let due = self.commits.iter().filter(|commit| commit.next <= now);
        due.flat_map(|commit| self.unsettled(commit)).map(|(view, _, row)| (view, row)).collect()
    }

    fn unsettled(&self, commit: &Waiting) -> Vec<(ViewId, Op, Row)> {
        let own = |(view, _, row): &&(ViewId, Op, Row)| {
            self.facts.get(&(*view, row.clone())).is_some_and(|(commit_no, _)| *commit_no == commit.commit_no)
        };
        commit.changes.iter().filter(own).cloned().collect()
    }

    /// The fact store holds this fact, or does not.
    pub(super) fn saw(&mut self, view: ViewId, row: Row, held: bool) {
        let key = (view, row);
        if let Some(&(commit_no, op)) = self.facts.get(&key)
            && held == (op == Op::Insert)
        {
            self.facts.remove(&key);
            self.settle(commit_no);
        }
    }

    /// Everything that was due at `looked` has been looked at: the commits that are over, and the others wait on.
    pub(super) fn judge(&mut self, looked: Instant, now: Instant) -> Vec<Judged> {
        let mut judged = Vec::new();
        for mut commit in std::mem::take(&mut self.commits) {
            let deadline = commit.taken + self.grace;
            if commit.unsettled > 0 && (commit.next > looked || looked < deadline) {
                if commit.next <= looked {
                    commit.next = deadline.min(now + commit.pause).max(now);
                    commit.pause = (commit.pause * 2).min(LONGEST_PAUSE);
                }
                self.commits.push_back(commit);
                continue;
            }
            let amiss = self.unsettled(&commit);
            for (view, _, row) in &amiss {
                self.facts.remove(&(*view, row.clone()));
            }
            self.size -= commit.changes.len();
            let Waiting { commit_no, position, changes, taken, .. } = commit;
            judged.push(Judged { commit_no, position, changes, amiss, waited: now - taken });
        }
        judged
    }

    /// The fact store could not be asked: what is due is looked at again at `at`, and nothing is judged before.
    pub(super) fn postpone(&mut self, at: Instant) {
        for commit in &mut self.commits {
            commit.next = commit.next.max(at);
        }
    }

    /// Everything is to be looked at now.
    pub(super) fn hurry(&mut self, now: Instant) {
        for commit in &mut self.commits {
            commit.next = commit.next.min(now);
        }
    }
}
