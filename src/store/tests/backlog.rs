//! Both queues against a fact store that loses answers: whatever was folded, sent, lost, sent again or left behind by a process that died,
//! the fact store ends as the desired facts, holds nothing in between that no commit had, and gets no change twice without need.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    data::Row,
    store::{
        Lane, OutboxKey, Turn, Waiting,
        tests::{Fixture, at, extent},
    },
    target::{Offset, Op},
    view::Guard,
};

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Applied and answered.
    Answered,
    /// Applied, and the answer was lost.
    LostAnswer,
    /// Lost on the way there.
    LostBatch,
    /// Never sent: there was no connection.
    NoConnection,
}

#[derive(Debug, Clone)]
enum Step {
    /// The query's result changes.
    Commit(BTreeSet<String>),
    /// The fact store is listed and compared.
    Compare,
    /// The first entries of the outbox, and if these are all and the flag says so, some of the backlog, are sent.
    Send(usize, bool, Fate),
    Fold(usize),
    /// The process ends and another one begins.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let fate =
        prop_oneof![4 => Just(Fate::Answered), 1 => Just(Fate::LostAnswer), 1 => Just(Fate::LostBatch), 1 => Just(Fate::NoConnection)];
    prop_oneof![
        5 => prop::collection::btree_set("[a-e]", 0..5).prop_map(Step::Commit),
        1 => Just(Step::Compare),
        6 => (0_usize..5, any::<bool>(), fate).prop_map(|(most, fill, fate)| Step::Send(most, fill, fate)),
        2 => (1_usize..4).prop_map(Step::Fold),
        1 => Just(Step::Restart),
    ]
}

fn name(row: &Row) -> String {
    row.cells().remove(0).expect("a text")
}

fn offset() -> Offset {
    Offset("7".to_owned())
}

struct World {
    fixture: Fixture,
    target: BTreeSet<String>,
    /// Every result the query ever had, the fact store's first content among them.
    results: Vec<BTreeSet<String>>,
    lsn: u64,
    tried: Option<OutboxKey>,
    /// Whether any answer or batch was ever lost, or a process died.
    doubts: bool,
}

impl World {
    fn new(first: &BTreeSet<String>, stored: &BTreeSet<String>) -> Self {
        let mut fixture = Fixture::new();
        fixture.store.replace("db", &at(1).into(), vec![(fixture.view.clone(), extent(first)).into()], Guard::Off).expect("replaced");
        let results = vec![stored.clone(), first.clone()];
        let mut world = Self { fixture, target: stored.clone(), results, lsn: 1, tried: None, doubts: false };
        world.compare();
        world
    }

    fn compare(&mut self) {
        let Fixture { store, view, .. } = &mut self.fixture;
        let view = store.reread(view).expect("read");
        store.correct("db", vec![(view, extent(&self.target))], Guard::Off).expect("corrected");
        self.fixture.view = self.fixture.store.reread(&self.fixture.view).expect("read");
    }

    fn apply(&mut self, entries: &[Waiting]) {
        for entry in entries {
            match entry.op {
                Op::Insert => self.target.insert(name(&entry.row)),
                Op::Delete => self.target.remove(&name(&entry.row)),
            };
        }
        // Whatever is in the fact store was true at some commit, and not only within one.
        let ever: BTreeSet<&String> = self.results.iter().flatten().collect();
        assert!(self.target.iter().all(|fact| ever.contains(fact)));
    }

    fn send(&mut self, most: usize, fill: bool, fate: Fate) {
        let store = &mut self.fixture.store;
        let mut entries: Vec<Waiting> = store.outbox(most).expect("read").into_iter().map(Waiting::from).collect();
        let all = entries.len() as u64 == store.outbox_len();
        let before = entries.clone();
        if all && fill {
            let Turn { entries: more, .. } = store.backlog(2).expect("read");
            entries.extend(more.into_iter().filter(|more| !before.iter().any(|live| live.row == more.row)));
        }
        match fate {
            Fate::Answered => {
                self.apply(&entries);
                self.fixture.store.acknowledge(&entries, &offset()).expect("acknowledged");
            }
            Fate::LostAnswer | Fate::LostBatch => {
                if fate == Fate::LostAnswer {
                    self.apply(&entries);
                }
                self.doubts = true;
                self.fixture.store.doubt(&entries).expect("doubted");
                let last = before.last().map(|entry| match entry.lane {
                    Lane::Live(key) => key,
                    Lane::Backlog => panic!("that is of the outbox"),
                });
                self.tried = last.max(self.tried);
            }
            Fate::NoConnection => {}
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Commit(result) => {
                self.lsn += 1;
                self.fixture.apply(self.lsn, result, Guard::Off);
                self.results.push(result.clone());
            }
            Step::Compare => self.compare(),
            Step::Send(most, fill, fate) => self.send(*most, *fill, *fate),
            Step::Fold(most) => drop(self.fixture.store.fold(self.tried, *most).expect("folded")),
            Step::Restart => {
                self.doubts = true;
                let fixture = std::mem::replace(&mut self.fixture, Fixture::new());
                self.fixture = fixture.reopened();
                // The engine does not know what the process before it had tried.
                self.tried = self.fixture.store.outbox(usize::MAX).expect("read").last().map(|entry| entry.key);
            }
        }
    }

    fn check(&self) {
        let store = &self.fixture.store;
        let count = |op: i64| store.connection.query_row("SELECT count(*) FROM backlog WHERE op = ?1", [op], |row| row.get::<_, u64>(0));
        let (deletes, inserts) = (count(0).expect("read"), count(1).expect("read"));
        assert_eq!((store.backlog_len(), store.backlog_deletes()), (deletes + inserts, deletes > 0));
        let both = "SELECT count(*) FROM backlog a JOIN backlog b ON a.op = 0 AND b.op = 1 AND a.row = b.row";
        let both: u64 = store.connection.query_row(both, [], |row| row.get(0)).expect("read");
        assert_eq!(both, 0, "a fact is inserted or deleted, not both");
        let delivered = store.delivered().expect("read");
        assert_eq!(delivered == store.commit_no(), store.outbox_len() + store.backlog_len() == 0);
    }

    /// Sends what waits, revocations first, and returns the changes that changed nothing.
    fn finish(&mut self) -> usize {
        while self.fixture.store.fold(self.tried, 3).expect("folded") > 0 {}
        let mut idle = 0;
        while self.fixture.store.backlog_len() > 0 {
            let deletes = self.fixture.store.backlog_deletes();
            let Turn { entries, dropped } = self.fixture.store.backlog(2).expect("read");
            assert!(!entries.is_empty() || dropped > 0, "every turn gets on");
            assert!(entries.iter().all(|entry| (entry.op == Op::Delete) == deletes));
            let before = self.target.clone();
            self.apply(&entries);
            idle += entries.len() - before.symmetric_difference(&self.target).count();
            self.fixture.store.acknowledge(&entries, &offset()).expect("acknowledged");
        }
        idle
    }
}

fn sets() -> impl Strategy<Value = BTreeSet<String>> {
    prop::collection::btree_set("[a-e]", 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn idempotent_whatever_is_lost_or_folded_the_fact_store_ends_as_the_desired_facts(
        first in sets(),
        stored in sets(),
        steps in prop::collection::vec(step(), 0..24),
    ) {
        let mut world = World::new(&first, &stored);
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.finish();
        world.check();
        prop_assert_eq!(&world.target, &world.fixture.desired());
    }

    #[test]
    fn net_an_outage_costs_exactly_the_difference(
        first in sets(),
        stored in sets(),
        commits in prop::collection::vec((sets(), 0_usize..4), 0..24),
    ) {
        let mut world = World::new(&first, &stored);
        for (result, fold) in commits {
            world.take(&Step::Commit(result));
            world.take(&Step::Fold(fold));
            world.take(&Step::Send(9, true, Fate::NoConnection));
        }
        let difference = world.target.symmetric_difference(&world.fixture.desired()).count() as u64;
        while world.fixture.store.fold(None, 3).expect("folded") > 0 {}
        prop_assert_eq!(world.fixture.store.backlog_len(), difference);
        prop_assert_eq!(world.finish(), 0);
        prop_assert_eq!(&world.target, &world.fixture.desired());
    }
}

#[test]
fn what_may_have_arrived_is_never_cancelled() {
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    for restart in [false, true] {
        let mut world = World::new(&names(""), &names("a"));
        world.compare();
        world.finish();
        world.take(&Step::Commit(names("b")));
        world.take(&Step::Send(9, false, Fate::LostAnswer));
        if restart {
            world.take(&Step::Restart);
        }
        world.take(&Step::Commit(names("")));
        assert_eq!(world.finish(), 0, "the revocation of what arrived is needed");
        assert_eq!(world.target, names(""));
    }
}

#[test]
fn bounded_every_entry_has_its_turn_however_many_come_before_it() {
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    let mut world = World::new(&names(""), &names("x y z"));
    let mut turns = Vec::new();
    for _ in 0..6 {
        // What comes before them in key order, again and again.
        world.take(&Step::Commit(names("a")));
        world.take(&Step::Send(9, false, Fate::Answered));
        world.take(&Step::Commit(names("")));
        world.take(&Step::Fold(9));
        let Turn { entries, .. } = world.fixture.store.backlog(1).expect("read");
        turns.push(name(&entries[0].row));
    }
    assert_eq!(turns, ["a", "x", "y", "z", "a", "x"]);
}
