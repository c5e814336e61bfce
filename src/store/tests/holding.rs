//! Holds against a model of sets: a held fact stays in the fact store until the query wants it, a person lets it go, or it is not there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use proptest::prelude::*;

use crate::{
    config::MaxRemovals,
    data::Row,
    store::{
        HoldId, Store,
        tests::{
            Fixture, extent,
            following::Followers,
            names,
            scripted::{Names, transaction},
        },
    },
    view::{Cause, Guard, TOGETHER_SECONDS},
};

const LIMITS: MaxRemovals = MaxRemovals { count: 1, percent: 30 };

#[derive(Debug, Clone)]
enum Step {
    /// The query has this now.
    Result(BTreeSet<String>),
    /// The position was lost.
    Snapshot(BTreeSet<String>),
    /// A person lets one of the holds go, counted from the first.
    Release(usize),
    /// Or forgets it.
    Drop(usize),
    /// Somebody else removes facts.
    Removes(BTreeSet<String>),
    Compare,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let set = || prop::collection::btree_set("[a-j]", 0..10);
    prop_oneof![
        6 => set().prop_map(Step::Result),
        1 => set().prop_map(Step::Snapshot),
        2 => (0_usize..3).prop_map(Step::Release),
        2 => (0_usize..3).prop_map(Step::Drop),
        1 => set().prop_map(Step::Removes),
        2 => Just(Step::Compare),
        1 => Just(Step::Restart),
    ]
}

/// The name of each held fact, and its hold.
fn held(store: &Store) -> BTreeMap<String, HoldId> {
    let mut held = BTreeMap::new();
    for hold in store.holds().expect("read") {
        let rows = store.held_facts(hold.id, usize::MAX >> 1).expect("read");
        assert_eq!(rows.len() as u64, hold.removals, "a hold says how many it has");
        held.extend(rows.iter().map(|row| (row.cells().remove(0).expect("a text"), hold.id)));
    }
    held
}

fn keys(held: &BTreeMap<String, HoldId>) -> BTreeSet<String> {
    held.keys().cloned().collect()
}

proptest! {
    #[test]
    fn guarded_what_is_held_stays_until_it_is_wanted_let_go_or_not_there(
        first in prop::collection::btree_set("[a-j]", 0..10),
        steps in prop::collection::vec(step(), 0..14),
    ) {
        let (guard, mut fixture) = (Guard::Limit(LIMITS), Fixture::new());
        fixture.snapshot(1, &first, guard);
        let mut target = BTreeSet::new();
        fixture.compare(&target, guard);
        fixture.deliver(&mut target, false);
        let (mut result, mut forgotten) = (first, BTreeSet::new());
        for (index, step) in steps.into_iter().enumerate() {
            let lsn = index as u64 + 10;
            let before = held(&fixture.store);
            match step.clone() {
                Step::Result(new) => {
                    fixture.apply(lsn, &new, guard);
                    result = new;
                }
                Step::Snapshot(new) => {
                    fixture.snapshot(lsn, &new, guard);
                    fixture.compare(&target, guard);
                    result = new;
                    forgotten.clear();
                }
                Step::Release(which) | Step::Drop(which) => {
                    let holds = fixture.store.holds().expect("read");
                    let Some(hold) = holds.get(which) else { continue };
                    let names: BTreeSet<String> = before.iter().filter(|(_, id)| **id == hold.id).map(|(name, _)| name.clone()).collect();
                    let release = matches!(step, Step::Release(_));
                    let mut end = || if release { fixture.store.release(hold.id) } else { fixture.store.forget_hold(hold.id) };
                    let changes = end().expect("ended").expect("there");
                    prop_assert_eq!(changes.views[0].let_go, names.len() as u64);
                    prop_assert!(end().expect("asked").is_none(), "a hold ends once");
                    if !release {
                        forgotten.extend(names);
                    }
                    fixture.view = fixture.store.reread(&fixture.view).expect("read");
                }
                Step::Removes(gone) => {
                    target = &target - &gone;
                    forgotten = &forgotten - &gone;
                    fixture.compare(&target, guard);
                    forgotten.clear();
                }
                Step::Compare => {
                    fixture.compare(&target, guard);
                    forgotten.clear();
                }
                Step::Restart => fixture = fixture.reopened(),
            }
            fixture.deliver(&mut target, false);
            forgotten = &forgotten - &result;
            let now = held(&fixture.store);
            prop_assert_eq!(fixture.store.reread(&fixture.view).expect("read").held, now.len() as u64);
            prop_assert!(keys(&now).is_disjoint(&result), "{:?}: what the query has is not held", step);
            prop_assert_eq!(fixture.desired(), &result | &keys(&now), "{:?}", step);
            prop_assert_eq!(&target, &(&(&result | &keys(&now)) | &forgotten), "{:?}", step);
            if let Step::Result(_) | Step::Snapshot(_) = step {
                for (name, hold) in before.iter().filter(|(name, _)| !result.contains(*name)) {
                    prop_assert_eq!(now.get(name), Some(hold), "{} is held no longer", name);
                }
            }
        }
        // A person lets everything go.
        fixture.snapshot(99, &result, Guard::Off);
        fixture.compare(&target, Guard::Off);
        fixture.deliver(&mut target, false);
        prop_assert_eq!(&target, &result);
        prop_assert_eq!(fixture.store.holds().expect("read"), Vec::new());
    }
}

/// Gives the store a clock that the test moves.
fn clock(store: &mut Store, now: &Arc<AtomicU64>) {
    let now = now.clone();
    store.time = Box::new(move || now.load(Ordering::Relaxed));
}

#[test]
fn guarded_a_flood_of_commits_is_one_hold_over_a_restart_and_single_revocations_go_on_after_it() {
    let now = Arc::new(AtomicU64::new(5_000));
    let mut followers = Followers::new(&[Names::default()]);
    followers.guard = Guard::Limit(MaxRemovals { count: 3, percent: 10 });
    clock(&mut followers.store, &now);
    let all: Vec<String> = (0..30).map(|row| format!("{row}=n{row}")).collect();
    followers.follow(transaction(20, &all.join(" ")));
    followers.sent();
    let mut sent = Vec::new();
    for row in 0..12_u64 {
        followers.follow(transaction(100 + 10 * row, &row.to_string()));
        sent.push(followers.sent());
        if row == 7 {
            // A process that ends in the middle of the flood has forgotten nothing.
            followers = followers.reopened();
            followers.guard = Guard::Limit(MaxRemovals { count: 3, percent: 10 });
            clock(&mut followers.store, &now);
        }
    }
    assert_eq!(sent[..3], ["-n0", "-n1", "-n2"]);
    assert!(sent[3..].iter().all(String::is_empty), "{sent:?}");
    // A grant of the same fact type goes.
    followers.follow(transaction(400, "90=new"));
    assert_eq!(followers.sent(), "+new");
    let holds = followers.store.holds().expect("read");
    assert_eq!((holds.len(), holds[0].cause, holds[0].removals), (1, Cause::Series, 9));
    now.fetch_add(2 * TOGETHER_SECONDS, Ordering::Relaxed);
    followers.follow(transaction(410, "20"));
    assert_eq!(followers.sent(), "-n20");
    // The next flood is another accident.
    for row in 21..26_u64 {
        followers.follow(transaction(420 + 10 * row, &row.to_string()));
    }
    let removals: Vec<u64> = followers.store.holds().expect("read").iter().map(|hold| hold.removals).collect();
    assert_eq!((followers.sent().as_str(), removals), ("-n21 -n22", vec![9, 3]));
}

#[test]
fn guarded_a_second_larger_accident_is_a_hold_of_its_own_and_small_ones_flow_in_between() {
    let mut fixture = Fixture::new();
    let guard = Guard::Limit(MaxRemovals { count: 2, percent: 20 });
    let mut target = names("");
    fixture.apply(2, &names("a b c d e f g h i j k l m n o p q r s t"), guard);
    fixture.deliver(&mut target, true);
    assert_eq!(fixture.apply(3, &names("f g h i j k l m n o p q r s t"), guard).held, 5);
    // A query that is run again has these, and the five that are held do not come along.
    let change = fixture.apply(4, &names("g h i j k l m n o p q r s t u"), guard);
    assert_eq!((change.inserted, change.removed, change.held), (1, 1, 5));
    // All that is left, which is no more than it is because five are held.
    assert_eq!(fixture.apply(5, &names(""), guard).held, 20);
    let removals: Vec<u64> = fixture.store.holds().expect("read").iter().map(|hold| hold.removals).collect();
    assert_eq!(removals, [5, 15]);
    let first = fixture.store.holds().expect("read")[0].id;
    fixture.store.release(first).expect("released").expect("there");
    fixture.deliver(&mut target, true);
    assert_eq!(target, names("g h i j k l m n o p q r s t u"));
}

#[test]
fn guarded_what_was_released_is_not_judged_again_by_a_comparison_that_comes_before_it_is_delivered() {
    let guard = Guard::Limit(MaxRemovals { count: 2, percent: 20 });
    for snapshot in [false, true] {
        let mut fixture = Fixture::new();
        let mut target = names("");
        fixture.apply(2, &names("a b c d e"), guard);
        fixture.deliver(&mut target, true);
        assert_eq!(fixture.apply(3, &names("e"), guard).held, 4);
        let hold = fixture.store.holds().expect("read")[0].id;
        fixture.store.release(hold).expect("released").expect("there");
        // The fact store is away. Three more facts are written there by somebody else, and one of the released comes back.
        target.extend(names("x y z"));
        let result = if snapshot { names("a e") } else { names("e") };
        fixture.view = fixture.store.reread(&fixture.view).expect("read");
        if snapshot {
            fixture.snapshot(4, &result, guard);
        }
        let change = fixture.compare(&target, guard);
        assert_eq!((change.removed, change.held), (if snapshot { 3 } else { 4 }, 3), "only what nobody has let go is judged");
        fixture.deliver(&mut target, false);
        assert_eq!(target, &result | &names("x y z"));
    }
}

#[test]
fn holds_without_end_join_the_last_one() {
    let mut fixture = Fixture::new();
    let guard = Guard::Limit(MaxRemovals { count: 0, percent: 0 });
    let all: BTreeSet<String> = (0..300).map(|n| format!("{n:03}")).collect();
    fixture.apply(2, &all, guard);
    let mut left = all.clone();
    for lsn in 3..203 {
        left.pop_first();
        assert_eq!(fixture.apply(lsn, &left, guard).newly_held, 1);
    }
    let removals: Vec<u64> = fixture.store.holds().expect("read").iter().map(|hold| hold.removals).collect();
    assert_eq!((removals.len(), removals[98], removals[99]), (100, 1, 101));
    let rows = fixture.store.held_facts(fixture.store.holds().expect("read")[99].id, 2).expect("read");
    assert_eq!(rows, ["099", "100"].map(|name| Row::from_texts([name])));
    assert_eq!(extent(&left).count(), 100);
}
