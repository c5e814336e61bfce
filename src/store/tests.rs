//! The store against a model: whatever the order of events, the desired facts are the last result and the outbox turns what
//! the fact store holds into them.

mod adopting;
mod backlog;
mod following;
mod holding;
mod journaled;
mod layout;
mod loading;
mod outbox;
mod reassigning;
mod scripted;
mod watching;

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::{
    config::MaxRemovals,
    data::{Extent, Lsn, Position, Row},
    fact::FactType,
    store::{Store, StoreError, Turn, ViewRecord},
    target::{Offset, Op},
    view::Guard,
};

fn fact_type() -> FactType {
    "f(User:_)".parse().expect("a signature")
}

fn extent(names: &BTreeSet<String>) -> Extent {
    let rows: BTreeSet<Row> = names.iter().map(|name| Row::from_texts([name.as_str()])).collect();
    Extent::from_sorted(rows.into_iter().map(Ok))
}

fn names(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn at(lsn: u64) -> Position {
    Lsn(lsn).into()
}

struct Fixture {
    folder: tempfile::TempDir,
    store: Store,
    view: ViewRecord,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("a spool");
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        let view = store.register("db", &[&fact_type()]).expect("registered").remove(0);
        store.begin("db", "fingerprint", "identity").expect("begun");
        Self { folder, store, view }
    }

    fn reopened(self) -> Self {
        let Self { folder, store, .. } = self;
        drop(store);
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        let view = store.register("db", &[&fact_type()]).expect("registered").remove(0);
        Self { folder, store, view }
    }

    fn apply(&mut self, lsn: u64, wanted: &BTreeSet<String>, guard: Guard) -> super::Change {
        let changes = self.store.apply("db", &at(lsn).into(), vec![(self.view.clone(), extent(wanted)).into()], guard).expect("applied");
        let change = changes.views[0].clone();
        (self.view.facts, self.view.held) = (change.facts, change.held);
        change
    }

    fn desired(&self) -> BTreeSet<String> {
        let rows = self.store.desired(self.view.id).expect("opened");
        rows.map(|row| row.expect("read").cells().remove(0).expect("a text")).collect()
    }

    /// Delivers everything that waits to `target`, netted, checking that each change is a real one, unless a process before this one may
    /// have sent some.
    fn deliver(&mut self, target: &mut BTreeSet<String>, first_process: bool) {
        while self.store.fold(None, 2).expect("folded") > 0 {}
        loop {
            let Turn { entries, dropped } = self.store.backlog(3).expect("read");
            assert_eq!(dropped, 0, "what is netted is what is desired");
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let name = entry.row.cells().remove(0).expect("a text");
                let changes = match entry.op {
                    Op::Insert => target.insert(name),
                    Op::Delete => target.remove(&name),
                };
                assert!(changes || !first_process, "a change that changes nothing is not net");
            }
            self.store.acknowledge(&entries, &Offset("7".to_owned())).expect("acknowledged");
        }
        assert_eq!((self.store.outbox_len(), self.store.backlog_len()), (0, 0));
    }
}

proptest! {
    #[test]
    fn net_the_outbox_turns_what_the_fact_store_holds_into_the_last_result(
        first in prop::collection::btree_set("[a-e]", 0..5),
        listed in prop::collection::btree_set("[a-f]", 0..6),
        results in prop::collection::vec(prop::collection::btree_set("[a-e]", 0..5), 0..6),
        deliver_after in 0_usize..6,
        reopen_after in 0_usize..6,
    ) {
        let mut fixture = Fixture::new();
        let mut target = listed.clone();
        fixture.store.replace("db", &at(1).into(), vec![(fixture.view.clone(), extent(&first)).into()], Guard::Off).expect("replaced");
        fixture = fixture.reopened();
        fixture.store.correct("db", vec![(fixture.view.clone(), extent(&listed))], Guard::Off).expect("corrected");
        for (index, result) in results.iter().enumerate() {
            fixture.apply(index as u64 + 2, result, Guard::Off);
            prop_assert_eq!(&fixture.desired(), result);
            prop_assert_eq!(fixture.view.facts, result.len() as u64);
            if index == deliver_after {
                fixture.deliver(&mut target, reopen_after >= index);
                prop_assert_eq!(&target, result);
            }
            if index == reopen_after {
                fixture = fixture.reopened();
            }
        }
        fixture.deliver(&mut target, deliver_after <= reopen_after);
        prop_assert_eq!(&target, results.last().unwrap_or(&first));
    }
}

#[test]
fn atomic_a_result_that_breaks_off_changes_nothing() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a b"), Guard::Off);
    let waiting = fixture.store.outbox_len();
    let broken = Extent::from_sorted([Ok(Row::from_texts(["c"])), Err(std::io::Error::other("cut off"))].into_iter());
    let error = fixture.store.apply("db", &at(3).into(), vec![(fixture.view.clone(), broken).into()], Guard::Off).expect_err("cut off");
    assert!(matches!(error, StoreError::Rows(_)), "{error}");
    let fixture = fixture.reopened();
    assert_eq!(fixture.desired(), names("a b"));
    assert_eq!(fixture.store.outbox_len(), waiting);
    assert_eq!(fixture.store.source("db").expect("read").expect("known").position, Some(at(2)));
}

#[test]
fn guarded_removals_wait_while_inserts_flow_on() {
    let mut fixture = Fixture::new();
    let guard = Guard::Limit(MaxRemovals { count: 2, percent: 50 });
    fixture.apply(2, &names("a b c d"), guard);
    let change = fixture.apply(3, &names("d e"), guard);
    assert_eq!((change.inserted, change.removed, change.held), (1, 0, 3));
    assert_eq!(fixture.desired(), names("a b c d e"));
    assert_eq!(fixture.reopened().view.held, 3);
}

#[test]
fn guarded_what_a_comparison_holds_is_not_forgotten_by_the_next_run() {
    let mut fixture = Fixture::new();
    let guard = Guard::Limit(MaxRemovals { count: 2, percent: 50 });
    fixture.apply(2, &names("a"), guard);
    let listed = vec![(fixture.view.clone(), extent(&names("b c d e")))];
    let change = fixture.store.correct("db", listed, guard).expect("corrected").views.remove(0);
    assert_eq!((change.inserted, change.removed, change.held, change.facts), (1, 0, 4, 5));
    assert_eq!(fixture.desired(), names("a b c d e"));
    (fixture.view.facts, fixture.view.held) = (change.facts, change.held);
    let change = fixture.apply(3, &names("a z"), guard);
    assert_eq!((change.inserted, change.removed, change.held), (1, 0, 4));
    // A second comparison finds nothing new, and keeps what is shown.
    let listed = vec![(fixture.view.clone(), extent(&names("a b c d e z")))];
    let change = fixture.store.correct("db", listed, guard).expect("corrected").views.remove(0);
    assert_eq!((change.inserted, change.removed, change.held), (0, 0, 4));
    assert_eq!(fixture.apply(4, &names("a z"), Guard::Off).removed, 4);
}

#[test]
fn guarded_a_small_revocation_flows_and_a_hold_ends_when_the_rows_are_back() {
    let mut fixture = Fixture::new();
    let guard = Guard::Limit(MaxRemovals { count: 2, percent: 50 });
    fixture.apply(2, &names("a b c d"), guard);
    assert_eq!(fixture.apply(3, &names("d"), guard).held, 3);
    let change = fixture.apply(4, &names("a b c"), guard);
    assert_eq!((change.removed, change.held), (1, 0));
    assert_eq!(fixture.desired(), names("a b c"));
}

#[test]
fn rows_that_make_no_fact_are_counted_by_reason() {
    let mut fixture = Fixture::new();
    let rows = [Row::from_cells([None]), Row::from_texts([""]), Row::from_texts(["*"]), Row::from_texts(["a"])];
    let wanted = Extent::from_sorted(rows.into_iter().map(Ok));
    let changes = fixture.store.apply("db", &at(2).into(), vec![(fixture.view.clone(), wanted).into()], Guard::Off).expect("applied");
    assert_eq!(changes.views[0].skipped.values().sum::<u64>(), 3, "{changes:?}");
    assert_eq!(changes.views[0].skipped.get("an argument is NULL"), Some(&1));
    assert_eq!(fixture.desired(), names("a"));
}

#[test]
fn a_commit_leaves_with_its_deletes_first() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("b c"), Guard::Off);
    fixture.apply(3, &names("a c d"), Guard::Off);
    let order: Vec<(u64, Op)> = fixture.store.outbox(9).expect("read").iter().map(|entry| (entry.key.commit_no, entry.op)).collect();
    assert_eq!(order, [(1, Op::Insert), (1, Op::Insert), (2, Op::Delete), (2, Op::Insert), (2, Op::Insert)]);
}

#[test]
fn an_event_without_changes_takes_no_commit_number() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a"), Guard::Off);
    let before = fixture.store.commit_no();
    fixture.apply(3, &names("a"), Guard::Off);
    assert_eq!(fixture.store.commit_no(), before);
    assert_eq!(fixture.store.source("db").expect("read").expect("known").position, Some(at(3)));
}

#[test]
fn scoped_a_view_that_left_the_configuration_takes_its_facts_along() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a"), Guard::Off);
    let other: FactType = "g(User:_)".parse().expect("a signature");
    fixture.store.register("db", &[&other]).expect("registered");
    assert_eq!(fixture.store.outbox_len(), 0);
    assert!(fixture.store.outbox(9).expect("read").is_empty());
    assert_eq!(fixture.reopened().desired(), names(""));
}

#[test]
fn a_parked_change_is_kept_with_its_reason() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a b"), Guard::Off);
    let entry = fixture.store.outbox(1).expect("read").remove(0);
    fixture.store.park(&entry.into(), "no such predicate").expect("parked");
    let fixture = fixture.reopened();
    assert_eq!(fixture.store.outbox_len(), 1);
    let parked = fixture.store.parked(9).expect("read");
    assert_eq!((parked.len(), parked[0].reason.as_str(), parked[0].op), (1, "no such predicate", Op::Insert));
}

#[test]
fn parked_revocations_are_told_before_grants_however_many_there_are() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a b c d"), Guard::Off);
    let insert = fixture.store.outbox(1).expect("read").remove(0);
    fixture.store.park(&insert.into(), "why").expect("parked");
    assert_eq!(fixture.store.parked_summary(9).expect("read").first.len(), 1);
    for entry in fixture.store.outbox(9).expect("read") {
        fixture.store.park(&entry.into(), "why").expect("parked");
    }
    fixture.apply(3, &names("a b"), Guard::Off);
    let delete = fixture.store.outbox(1).expect("read").remove(0);
    fixture.store.park(&delete.into(), "why").expect("parked");
    let summary = fixture.store.parked_summary(2).expect("read");
    assert_eq!((summary.revocations, summary.grants), (1, 4));
    assert_eq!(summary.first.iter().map(|(_, parked)| parked.op).collect::<Vec<_>>(), [Op::Delete, Op::Insert]);
}
