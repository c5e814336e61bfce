//! Adoption against a model of sets: whatever happens, the fact store ends as the result and what is still adopted.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    config::MaxRemovals,
    store::{
        Change,
        tests::{Fixture, at, extent, names},
    },
    view::Guard,
};

/// Holds nothing by itself, so that what is held is adopted.
const LIMITS: MaxRemovals = MaxRemovals { count: u64::MAX, percent: 100 };
/// Holds whatever it can.
const STRICT: MaxRemovals = MaxRemovals { count: 0, percent: 0 };

impl Fixture {
    pub(super) fn snapshot(&mut self, lsn: u64, result: &BTreeSet<String>, guard: Guard) {
        let fresh = (self.view.clone(), extent(result)).into();
        self.store.replace("db", &at(lsn).into(), vec![fresh], guard).expect("replaced");
        self.view = self.store.reread(&self.view).expect("read");
    }

    pub(super) fn compare(&mut self, listed: &BTreeSet<String>, guard: Guard) -> Change {
        let listed = vec![(self.view.clone(), extent(listed))];
        let change = self.store.correct("db", listed, guard).expect("corrected").views.remove(0);
        self.view = self.store.reread(&self.view).expect("read");
        assert_eq!((self.view.facts, self.view.held), (change.facts, change.held));
        assert_eq!(self.view.facts, self.desired().len() as u64, "counted as it is");
        change
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// The query is run again, and the guard is the one that is configured or `--adopt` is still there.
    Result(BTreeSet<String>, bool),
    /// The position was lost.
    Snapshot(BTreeSet<String>),
    /// Whoever wrote the facts before us takes some away, and a comparison follows.
    Removes(BTreeSet<String>),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let set = || prop::collection::btree_set("[a-h]", 0..6);
    prop_oneof![
        4 => (set(), any::<bool>()).prop_map(|(result, adopt)| Step::Result(result, adopt)),
        2 => set().prop_map(Step::Snapshot),
        2 => set().prop_map(Step::Removes),
        1 => Just(Step::Restart),
    ]
}

/// What is adopted, and what the query returned last.
struct Model {
    adopted: BTreeSet<String>,
    result: BTreeSet<String>,
}

impl Model {
    fn result(&mut self, result: BTreeSet<String>) {
        self.adopted.retain(|name| !result.contains(name));
        self.result = result;
    }

    fn all(&self) -> BTreeSet<String> {
        &self.result | &self.adopted
    }
}

proptest! {
    #[test]
    fn guarded_what_was_adopted_stays_until_it_is_let_go_wanted_or_gone(
        before in prop::collection::vec((prop::collection::btree_set("[a-h]", 0..6), any::<bool>()), 1..4),
        listed in prop::collection::btree_set("[a-h]", 0..8),
        steps in prop::collection::vec(step(), 0..8),
    ) {
        let adopting = Guard::Adopt(LIMITS);
        let mut fixture = Fixture::new();
        // Nobody has reached the fact store yet; what was wanted once and is no longer was revoked.
        let mut wanted = BTreeSet::new();
        for (index, (result, snapshot)) in before.iter().enumerate() {
            if *snapshot || index == 0 {
                fixture.snapshot(index as u64 + 1, result, adopting);
            } else {
                fixture.apply(index as u64 + 1, result, adopting);
            }
            wanted.extend(result.iter().cloned());
        }
        fixture = fixture.reopened();
        let mut target = listed.clone();
        let change = fixture.compare(&target, adopting);
        let mut model = Model { adopted: &listed - &wanted, result: before[before.len() - 1].0.clone() };
        prop_assert_eq!(change.held, model.adopted.len() as u64);
        fixture.deliver(&mut target, false);
        prop_assert_eq!(&target, &model.all());

        for (index, step) in steps.into_iter().enumerate() {
            let lsn = index as u64 + 10;
            match step {
                Step::Result(result, adopt) => {
                    fixture.apply(lsn, &result, if adopt { adopting } else { Guard::Limit(LIMITS) });
                    model.result(result);
                }
                Step::Snapshot(result) => {
                    fixture.snapshot(lsn, &result, adopting);
                    model.result(result);
                    fixture.compare(&target, adopting);
                }
                Step::Removes(gone) => {
                    target = &target - &gone;
                    model.adopted = &model.adopted - &gone;
                    fixture.compare(&target, Guard::Limit(LIMITS));
                }
                Step::Restart => fixture = fixture.reopened(),
            }
            fixture.deliver(&mut target, false);
            prop_assert_eq!(&target, &model.all());
            prop_assert_eq!(fixture.store.reread(&fixture.view).expect("read").held, model.adopted.len() as u64);
        }
        // A person lets go: the next start takes a new snapshot.
        let result = model.result.clone();
        fixture.snapshot(99, &result, Guard::Off);
        fixture.compare(&target, Guard::Off);
        fixture.deliver(&mut target, false);
        prop_assert_eq!(target, result);
    }
}

#[test]
fn guarded_only_the_first_contact_is_adopted() {
    let mut fixture = Fixture::new();
    fixture.snapshot(1, &names("a b"), Guard::Adopt(LIMITS));
    let change = fixture.compare(&names("b x y"), Guard::Adopt(LIMITS));
    assert_eq!((change.inserted, change.removed, change.held), (1, 0, 2));
    // A lost position is no first contact: what appeared since is none of what was there.
    fixture.snapshot(2, &names("a b"), Guard::Adopt(LIMITS));
    let change = fixture.compare(&names("a b x y z"), Guard::Adopt(LIMITS));
    assert_eq!((change.inserted, change.removed, change.held), (0, 1, 2));
}

#[test]
fn guarded_without_adoption_the_first_contact_is_judged_like_any_other() {
    let mut fixture = Fixture::new();
    fixture.snapshot(1, &names("a b"), Guard::Limit(LIMITS));
    let change = fixture.compare(&names("b x y"), Guard::Limit(LIMITS));
    assert_eq!((change.inserted, change.removed, change.held), (1, 2, 0));
}

#[test]
fn a_held_fact_that_the_fact_store_no_longer_has_is_not_brought_back() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a b c"), Guard::Limit(LIMITS));
    let mut target = names("");
    fixture.deliver(&mut target, true);
    assert_eq!(fixture.apply(3, &names("a"), Guard::Limit(STRICT)).held, 2);
    target.remove("c");
    let change = fixture.compare(&target, Guard::Limit(STRICT));
    assert_eq!((change.inserted, change.removed, change.held), (0, 0, 1));
    fixture.deliver(&mut target, true);
    assert_eq!(target, names("a b"));
}
