//! Commits that are taken out without being sent.

use crate::{
    store::{
        Lane, Taken, TakenChanges,
        tests::{Fixture, at, names},
    },
    target::{Offset, Op},
    view::Guard,
};

/// The number of each commit and how many changes it has, negative if they are only counted.
fn sizes(taken: &[Taken]) -> Vec<(u64, i64)> {
    let size = |taken: &Taken| match &taken.changes {
        TakenChanges::Listed(entries) => entries.len() as i64,
        TakenChanges::Counted(counts) => -counts.iter().map(|(.., count)| *count as i64).sum::<i64>(),
    };
    taken.iter().map(|taken| (taken.commit_no, size(taken))).collect()
}

#[test]
fn whole_commits_are_taken_in_their_order_and_a_large_one_is_counted() {
    let mut fixture = Fixture::new();
    for (lsn, wanted) in [(2, "a b"), (3, "a c"), (4, "d e f g h"), (5, "d e f g h i")] {
        fixture.apply(lsn, &names(wanted), Guard::Off);
    }
    let view = fixture.view.id;
    let taken = fixture.store.take(5).expect("taken");
    assert_eq!(sizes(&taken), [(1, 2), (2, 2)], "the third would be cut");
    assert!(taken.iter().all(|taken| taken.position.is_none()), "there is more to come");
    let taken = fixture.store.take(5).expect("taken");
    assert_eq!(sizes(&taken), [(3, -7)]);
    let TakenChanges::Counted(counts) = &taken[0].changes else { panic!("{taken:?}") };
    assert_eq!(counts, &[(view, Op::Delete, 2), (view, Op::Insert, 5)]);
    let taken = fixture.store.take(5).expect("taken");
    assert_eq!((sizes(&taken), taken[0].position.clone()), (vec![(4, 1)], Some(at(5))));
    assert!(fixture.store.take(5).expect("taken").is_empty());
    assert_eq!((fixture.store.outbox_len(), fixture.reopened().store.outbox_len()), (0, 0));
}

#[test]
fn a_commit_of_which_a_part_was_sent_is_taken_with_the_rest() {
    let mut fixture = Fixture::new();
    fixture.apply(2, &names("a b c d"), Guard::Off);
    let sent = fixture.store.outbox(2).expect("read").into_iter().map(Into::into).collect::<Vec<_>>();
    assert!(matches!(sent.as_slice(), [crate::store::Waiting { lane: Lane::Live(_), .. }, _]));
    fixture.store.acknowledge(&sent, &Offset("7".to_owned())).expect("acknowledged");
    assert_eq!(sizes(&fixture.store.take(1).expect("taken")), [(1, -2)]);
}

#[test]
fn a_store_whose_changes_are_only_watched_is_compared_before_it_delivers_again() {
    let mut fixture = Fixture::new();
    fixture.store.correct("db", Vec::new(), Guard::Off).expect("corrected");
    let compared = |fixture: &Fixture| fixture.store.source("db").expect("read").expect("known").compared;
    assert!(compared(&fixture));
    fixture.store.doubt_comparisons().expect("written");
    assert!(!compared(&fixture.reopened()));
}
