//! The journal of what is on its way, against a fact store that is played: whatever is pushed, delivered and planted while it is listed,
//! exactly the planted differences are left over.

use std::collections::BTreeSet;

use super::{Fixture, at, extent, names};
use crate::{
    config::MaxRemovals,
    data::{Extent, Row},
    store::{Found, Lane, Store, Waiting, Watching},
    target::{Offset, Op},
    view::Guard,
};

fn rows(extent: Extent) -> Vec<String> {
    extent.map(|row| row.expect("read").cells().remove(0).expect("a text")).collect()
}

fn watch(fixture: &mut Fixture) -> Watching {
    fixture.store.watch_facts(&[fixture.view.id]).expect("watched").expect("little waits")
}

/// What was on its way until now, and what is desired.
fn sight(fixture: &mut Fixture, watching: &Watching) -> (Vec<String>, Vec<String>) {
    let mut sight = fixture.store.sight(watching).expect("read").expect("nothing else happened");
    let mut desired = Vec::new();
    let mut each = |row: Row| {
        desired.push(row.cells().remove(0).expect("a text"));
        Ok(())
    };
    sight.desired(fixture.view.id, &mut each).expect("read");
    (rows(sight.on_their_way(fixture.view.id).expect("sorted")), desired)
}

/// Everything that waits is delivered.
fn deliver(store: &mut Store) {
    let waiting: Vec<Waiting> = store.outbox(100).expect("read").into_iter().map(Into::into).collect();
    store.acknowledge(&waiting, &Offset("1".to_owned())).expect("acknowledged");
}

#[test]
fn what_waited_before_and_what_came_since_was_on_its_way_delivered_or_not() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a b"), Guard::Off);
    deliver(&mut fixture.store);
    fixture.apply(2, &names("a b c"), Guard::Off);
    let watching = watch(&mut fixture);
    // Comes and goes, and both are delivered before anybody looks again.
    fixture.apply(3, &names("a b c d"), Guard::Off);
    deliver(&mut fixture.store);
    fixture.apply(4, &names("b c"), Guard::Off);
    deliver(&mut fixture.store);
    let (on_their_way, desired) = sight(&mut fixture, &watching);
    assert_eq!((on_their_way.join(" "), desired.join(" ")), ("a c d".to_owned(), "b c".to_owned()));
    fixture.apply(5, &names("b"), Guard::Off);
    let (on_their_way, desired) = sight(&mut fixture, &watching);
    assert_eq!((on_their_way.join(" "), desired.join(" ")), ("c".to_owned(), "b".to_owned()), "each is told once");
}

fn found(fixture: &Fixture, missing: &str, stale: &str) -> Vec<Found> {
    vec![Found { view: fixture.view.clone(), missing: extent(&names(missing)), stale: extent(&names(stale)) }]
}

fn backlog(store: &mut Store) -> BTreeSet<(Op, String)> {
    let mut all = BTreeSet::new();
    loop {
        let turn = store.backlog(100).expect("read");
        if turn.entries.is_empty() {
            return all;
        }
        all.extend(turn.entries.iter().map(|entry| (entry.op, entry.row.cells().remove(0).expect("a text"))));
        assert!(turn.entries.iter().all(|entry| entry.lane == Lane::Backlog));
        store.acknowledge(&turn.entries, &Offset("2".to_owned())).expect("acknowledged");
    }
}

#[test]
fn drift_is_put_into_the_backlog_but_for_what_moved_since() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a b c d"), Guard::Off);
    deliver(&mut fixture.store);
    let watching = watch(&mut fixture);
    sight(&mut fixture, &watching);
    // "b" and "y" are made right by the outbox.
    fixture.apply(2, &names("a c d y"), Guard::Off);
    let drift = found(&fixture, "a b", "x y z");
    let (differing, changes) = fixture.store.settle_drift("db", &watching, drift, Some(Guard::Off)).expect("settled").expect("undisturbed");
    assert_eq!((differing[0].missing, differing[0].stale, differing[0].foreign), (2, 3, 0), "nothing was compared before");
    assert_eq!((changes.views[0].inserted, changes.views[0].removed), (1, 2));
    deliver(&mut fixture.store);
    let want = [(Op::Delete, "x"), (Op::Delete, "z"), (Op::Insert, "a")].map(|(op, name)| (op, name.to_owned()));
    assert_eq!(backlog(&mut fixture.store), BTreeSet::from(want));
}

#[test]
fn without_a_guard_nothing_is_written() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a"), Guard::Off);
    deliver(&mut fixture.store);
    let watching = watch(&mut fixture);
    sight(&mut fixture, &watching);
    let drift = found(&fixture, "a", "x");
    let (differing, changes) = fixture.store.settle_drift("db", &watching, drift, None).expect("settled").expect("undisturbed");
    assert_eq!((differing[0].missing, differing[0].stale), (1, 1));
    assert!(changes.views.is_empty() && backlog(&mut fixture.store).is_empty());
}

#[test]
fn foreign_is_what_we_did_not_remove_since_everything_was_equal() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a b c"), Guard::Off);
    deliver(&mut fixture.store);
    let listed = vec![(fixture.view.clone(), extent(&names("a b c old")))];
    fixture.store.correct("db", listed, Guard::Off).expect("corrected");
    assert_eq!(backlog(&mut fixture.store).len(), 1);
    fixture.apply(2, &names("a b"), Guard::Off);
    deliver(&mut fixture.store);
    let watching = watch(&mut fixture);
    sight(&mut fixture, &watching);
    let drift = found(&fixture, "", "c old x");
    let (differing, _) = fixture.store.settle_drift("db", &watching, drift, None).expect("settled").expect("undisturbed");
    assert_eq!((differing[0].stale, differing[0].foreign), (2, 1), "c and old we have removed, x we have not");
    // Another process knows nothing of what this one removed.
    let mut fixture = fixture.reopened();
    let watching = watch(&mut fixture);
    sight(&mut fixture, &watching);
    let drift = found(&fixture, "", "x");
    let (differing, _) = fixture.store.settle_drift("db", &watching, drift, None).expect("settled").expect("undisturbed");
    assert_eq!((differing[0].stale, differing[0].foreign), (1, 0));
}

#[test]
fn a_snapshot_ends_a_journal_and_so_does_its_holder() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a b"), Guard::Off);
    let watching = watch(&mut fixture);
    let fresh = vec![(fixture.view.clone(), extent(&names("a"))).into()];
    fixture.store.replace("db", &at(2).into(), fresh, Guard::Off).expect("replaced");
    assert!(fixture.store.sight(&watching).expect("read").is_none());
    assert!(fixture.store.settle_drift("db", &watching, Vec::new(), None).expect("read").is_none());
    drop(watching);
    fixture.view.facts = 1;
    fixture.apply(3, &names("a c"), Guard::Off);
    assert_eq!(fixture.store.journals.lock().open_count(), 0, "nobody listens any more");
}

#[test]
fn a_held_fact_that_is_gone_is_no_missing_grant_and_is_held_no_longer() {
    let mut fixture = Fixture::new();
    fixture.apply(1, &names("a b c d"), Guard::Off);
    deliver(&mut fixture.store);
    fixture.apply(2, &names("a b"), Guard::Limit(MaxRemovals { count: 1, percent: 10 }));
    assert_eq!(fixture.store.holds().expect("read")[0].removals, 2);
    for (mend, left) in [(None, 2), (Some(Guard::Off), 1)] {
        let watching = watch(&mut fixture);
        sight(&mut fixture, &watching);
        // Somebody else has removed "d", whose removal waits, and "a".
        let drift = found(&fixture, "a d", "");
        let (differing, _) = fixture.store.settle_drift("db", &watching, drift, mend).expect("settled").expect("undisturbed");
        assert_eq!((differing[0].missing, differing[0].stale, differing[0].foreign), (1, 0, 0));
        assert_eq!(fixture.store.holds().expect("read")[0].removals, left);
    }
    assert_eq!(backlog(&mut fixture.store), BTreeSet::from([(Op::Insert, "a".to_owned())]));
}
