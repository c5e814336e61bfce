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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const GRACE: Duration = Duration::from_secs(5);

    /// Commits of a store: each is the names that its view has from then on.
    fn commits(results: &[&str]) -> Vec<(u64, Vec<OutboxEntry>)> {
        use crate::{data::Extent, data::Lsn, store::TakenChanges, view::Guard};
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("a spool");
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        let view = store.register("db", &[&"f(User:_)".parse().expect("a signature")]).expect("registered").remove(0);
        store.begin("db", "fingerprint", "identity").expect("begun");
        for (lsn, names) in (2..).zip(results) {
            let rows: Vec<Row> = names.split_whitespace().map(|name| Row::from_texts([name])).collect();
            let fresh = (store.reread(&view).expect("read"), Extent::from_sorted(rows.into_iter().map(Ok))).into();
            store.apply("db", &Position::from(Lsn(lsn)).into(), vec![fresh], Guard::Off).expect("applied");
        }
        let listed = |changes| match changes {
            TakenChanges::Listed(entries) => entries,
            TakenChanges::Counted(counts) => panic!("{counts:?}"),
        };
        store.take(1_000).expect("taken").into_iter().map(|taken| (taken.commit_no, listed(taken.changes))).collect()
    }

    /// All of them taken at once.
    fn pending(results: &[&str]) -> (Pending, Instant, ViewId) {
        let (mut pending, start) = (Pending::new(GRACE), Instant::now());
        let commits = commits(results);
        let view = commits[0].1[0].view;
        for (commit_no, entries) in commits {
            pending.push(commit_no, None, entries, start);
        }
        (pending, start, view)
    }

    fn names(changes: &[(ViewId, Op, Row)]) -> Vec<(Op, String)> {
        changes.iter().map(|(_, op, row)| (*op, row.cells().remove(0).expect("a text"))).collect()
    }

    #[test]
    fn a_commit_is_over_as_soon_as_it_agrees_and_otherwise_when_it_was_looked_at_after_its_time() {
        let (mut pending, start, view) = pending(&["a b", "a b c"]);
        let row = |name: &str| Row::from_texts([name]);
        assert_eq!((pending.due(start).len(), pending.size(), pending.commits()), (3, 3, 2));
        for (name, held) in [("a", true), ("b", false), ("c", true)] {
            pending.saw(view, row(name), held);
        }
        let judged = pending.judge(start, start + Duration::from_millis(3));
        assert_eq!(judged.iter().map(|judged| (judged.commit_no, judged.amiss.len())).collect::<Vec<_>>(), [(2, 0)]);
        assert_eq!(judged[0].waited, Duration::from_millis(3));
        // Looked at again with growing pauses, the last time at the end of the grace.
        let mut looks = 0;
        let (judged, now) = loop {
            let now = pending.next().expect("one waits");
            looks += 1;
            assert_eq!(pending.due(now), [(view, row("b"))]);
            pending.saw(view, row("b"), false);
            let judged = pending.judge(now, now);
            if !judged.is_empty() {
                break (judged, now);
            }
        };
        assert_eq!((now - start, looks), (GRACE, 9));
        assert_eq!(names(&judged[0].amiss), [(Op::Insert, "b".to_owned())]);
        assert_eq!((pending.size(), pending.commits(), pending.next()), (0, 0, None));
    }

    #[test]
    fn a_fact_that_is_changed_again_is_judged_with_the_later_commit() {
        let (mut pending, start, view) = pending(&["a b", "b"]);
        // What the first one says of "a" no longer matters, so "b" settles it.
        assert_eq!(pending.due(start).len(), 2);
        pending.saw(view, Row::from_texts(["a"]), true);
        pending.saw(view, Row::from_texts(["b"]), true);
        assert_eq!(pending.judge(start, start).iter().map(|judged| judged.commit_no).collect::<Vec<_>>(), [1]);
        let judged = pending.judge(start + GRACE, start + GRACE);
        assert_eq!(names(&judged[0].amiss), [(Op::Delete, "a".to_owned())], "still there");
    }

    #[test]
    fn nothing_is_judged_while_the_fact_store_cannot_be_asked() {
        let (mut pending, start, _) = pending(&["a"]);
        pending.postpone(start + 2 * GRACE);
        assert!(pending.judge(start + GRACE, start + GRACE).is_empty() && pending.due(start + GRACE).is_empty());
        pending.hurry(start + GRACE);
        assert_eq!(pending.due(start + GRACE).len(), 1);
        assert_eq!(pending.judge(start + GRACE, start + GRACE)[0].amiss.len(), 1);
    }
}
