//! Histories that the checker must refuse, and such that it must not.
//!
//! Each of the refused ones is a way in which access is given or kept that nobody meant to give.

use factsync::target::Op::{self, Delete, Insert};

use super::{
    checker::{History, Lane, Rule, Seen, Split, Step, Violation},
    facts::Facts,
};
use crate::support::github::Random;

/// Facts are numbers below this.
const BOUND: usize = 70;

fn history(moments: &[&[usize]], steps: Vec<Step>) -> History {
    let moments = moments.iter().map(|facts| Facts::of(BOUND, facts.iter().copied())).collect();
    History { moments, steps, split: Split::Above(3), delay: None }
}

fn batch(head: usize, changes: &[(Op, usize)]) -> Step {
    Step::Batch { changes: changes.to_vec(), head, again: false }
}

fn again(head: usize, changes: &[(Op, usize)]) -> Step {
    Step::Batch { changes: changes.to_vec(), head, again: true }
}

fn reached(moment: usize, head: usize) -> Step {
    Step::Reached { moment, head }
}

const LIVE: Step = Step::Lane(Lane::Live);

/// Which rule is broken by which step.
#[track_caller]
fn refused(history: &History) -> (Rule, usize) {
    let Violation { step, rule, .. } = history.check().expect_err("this history has no explanation");
    (rule, step)
}

#[track_caller]
fn accepted(history: &History) -> Seen {
    history.check().unwrap_or_else(|violation| panic!("{violation:?}"))
}

#[test]
fn what_follows_the_source_holds() {
    let moments: [&[usize]; 5] = [&[9], &[1, 2], &[1, 2, 3], &[2, 3], &[1, 2, 3]];
    let steps = vec![
        batch(1, &[(Delete, 9), (Insert, 1)]),
        batch(2, &[(Insert, 2)]),
        reached(1, 2),
        LIVE,
        batch(3, &[(Insert, 3)]),
        again(3, &[(Insert, 3)]),
        reached(2, 3),
        // Two commits at once.
        batch(4, &[(Delete, 1), (Insert, 1)]),
        reached(4, 4),
    ];
    let seen = accepted(&history(&moments, steps));
    assert_eq!((seen.batches, seen.repetitions, seen.waits, seen.whole, seen.parts), (4, 1, 3, 4, 0));
}

#[test]
fn a_grant_from_before_a_revocation_is_refused_after_it() {
    let moments: [&[usize]; 4] = [&[1], &[1], &[], &[2]];
    let steps = vec![batch(3, &[(Delete, 1)]), batch(3, &[(Insert, 1)]), batch(3, &[(Delete, 1), (Insert, 2)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Order, 1));
}

#[test]
fn a_backfill_that_brings_back_what_was_revoked_before_it_came_is_refused() {
    // The fact is missing at first. Its delete finds nothing to do, and is a promise all the same.
    let moments: [&[usize]; 3] = [&[], &[1], &[]];
    let steps = vec![batch(2, &[(Delete, 1)]), batch(2, &[(Insert, 1)]), batch(2, &[(Delete, 1)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Order, 1));
    // Granted again, it may come.
    let moments: [&[usize]; 4] = [&[], &[1], &[], &[1]];
    accepted(&history(&moments, vec![batch(3, &[(Delete, 1)]), batch(3, &[(Insert, 1)])]));
}

#[test]
fn a_stale_fact_of_the_start_may_go_and_not_come_again() {
    let moments: [&[usize]; 3] = [&[5], &[], &[]];
    accepted(&history(&moments, vec![batch(1, &[(Delete, 5)])]));
    assert_eq!(refused(&history(&moments, vec![batch(1, &[(Delete, 5)]), batch(2, &[(Insert, 5)])])), (Rule::Order, 1));
    assert_eq!(refused(&history(&moments, vec![])), (Rule::End, 0));
}

#[test]
fn a_grant_or_a_revocation_before_its_transaction_is_refused() {
    let moments: [&[usize]; 3] = [&[], &[], &[1]];
    assert_eq!(refused(&history(&moments, vec![batch(1, &[(Insert, 1)])])), (Rule::Order, 0));
    accepted(&history(&moments, vec![batch(2, &[(Insert, 1)])]));
    let moments: [&[usize]; 3] = [&[1], &[1], &[]];
    assert_eq!(refused(&history(&moments, vec![batch(1, &[(Delete, 1)])])), (Rule::Order, 0));
}

#[test]
fn a_fact_that_was_true_inside_of_a_transaction_only_is_refused() {
    // Moment 2 inserted and deleted fact 7.
    let moments: [&[usize]; 3] = [&[], &[], &[1]];
    let steps = vec![batch(2, &[(Insert, 7)]), batch(2, &[(Delete, 7), (Insert, 1)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Order, 0));
}

#[test]
fn a_split_deletes_before_it_inserts() {
    let moments: [&[usize]; 3] = [&[1, 2, 3], &[1, 2, 3], &[4, 5, 6]];
    let split = |first: &[(Op, usize)], second: &[(Op, usize)]| {
        history(&moments, vec![reached(1, 1), LIVE, batch(2, first), batch(2, second), reached(2, 2)])
    };
    let right = split(&[(Delete, 1), (Delete, 2), (Delete, 3)], &[(Insert, 4), (Insert, 5), (Insert, 6)]);
    let seen = accepted(&right);
    assert_eq!((seen.whole, seen.parts), (2, 1));
    accepted(&split(&[(Delete, 1), (Delete, 2), (Delete, 3), (Insert, 4)], &[(Insert, 5), (Insert, 6)]));
    let wrong = split(&[(Insert, 4), (Insert, 5), (Insert, 6)], &[(Delete, 1), (Delete, 2), (Delete, 3)]);
    assert_eq!(refused(&wrong), (Rule::Commit, 2));
    let wrong = split(&[(Delete, 1), (Insert, 4)], &[(Delete, 2), (Delete, 3), (Insert, 5), (Insert, 6)]);
    assert_eq!(refused(&wrong), (Rule::Commit, 2));
    // Six changes fit a batch of six.
    assert_eq!(refused(&History { split: Split::Above(6), ..right.clone() }), (Rule::Commit, 2));
    accepted(&History { split: Split::Anywhere, ..right });
}

#[test]
fn commits_in_another_order_are_refused() {
    let moments: [&[usize]; 4] = [&[], &[], &[1], &[1, 2]];
    let steps = vec![reached(1, 1), LIVE, batch(3, &[(Insert, 2)]), batch(3, &[(Insert, 1)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Commit, 2));
    // Where nothing is split, a state between those of two moments is none; where everything may be, it cannot be told from a part.
    let steps = vec![reached(1, 1), LIVE, batch(3, &[(Insert, 1)]), batch(3, &[(Insert, 2)])];
    accepted(&history(&moments, steps));
}

#[test]
fn a_state_from_before_that_of_the_state_before_is_refused() {
    let moments: [&[usize]; 5] = [&[], &[], &[1], &[2], &[1, 2]];
    let to = |head, changes: &[(Op, usize)]| batch(head, changes);
    let steps = vec![reached(1, 1), LIVE, to(4, &[(Insert, 2)]), to(4, &[(Delete, 2), (Insert, 1)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Order, 3));
    // Facts that are not spoken of again show it as a whole only.
    let moments: [&[usize]; 5] = [&[], &[], &[1], &[1, 2], &[1, 2, 3]];
    let steps = vec![reached(1, 1), LIVE, to(4, &[(Insert, 1), (Insert, 3)]), to(4, &[(Insert, 2)])];
    assert_eq!(refused(&history(&moments, steps)), (Rule::Commit, 2));
}

#[test]
fn a_lost_revocation_is_refused_by_the_wait_and_in_the_end() {
    let moments: [&[usize]; 4] = [&[1], &[1], &[], &[3]];
    assert_eq!(refused(&history(&moments, vec![batch(3, &[(Insert, 3)])])), (Rule::End, 1));
    assert_eq!(refused(&history(&moments, vec![reached(2, 3), batch(3, &[(Delete, 1)])])), (Rule::Known, 0));
    // The wait asks for nothing that came after its moment.
    accepted(&history(&moments, vec![reached(1, 3), batch(3, &[(Delete, 1), (Insert, 3)]), reached(3, 3)]));
}

#[test]
fn a_lost_grant_is_refused_by_the_wait_and_in_the_end() {
    let moments: [&[usize]; 3] = [&[], &[1], &[1, 2]];
    assert_eq!(refused(&history(&moments, vec![reached(1, 2)])), (Rule::Known, 0));
    assert_eq!(refused(&history(&moments, vec![batch(1, &[(Insert, 1)]), reached(1, 2)])), (Rule::End, 2));
}

#[test]
fn what_was_always_true_never_goes() {
    let moments: [&[usize]; 3] = [&[1, 2], &[1, 2], &[1]];
    assert_eq!(refused(&history(&moments, vec![batch(2, &[(Delete, 1)])])), (Rule::Order, 0));
}

#[test]
fn a_repetition_that_changes_something_is_refused() {
    let moments: [&[usize]; 3] = [&[], &[], &[1]];
    let changes = [(Delete, 1), (Insert, 1)];
    accepted(&history(&moments, vec![batch(2, &changes), again(2, &changes)]));
    assert_eq!(refused(&history(&moments, vec![again(2, &changes)])), (Rule::Repetition, 0));
}

#[test]
fn a_revocation_behind_a_backfill_is_refused() {
    let rest: Vec<usize> = (10..30).collect();
    let mut with = rest.clone();
    with.push(1);
    let moments: [&[usize]; 3] = [&[1], &with, &rest];
    let fill = |from: usize| batch(2, &(from..from + 5).map(|fact| (Insert, fact)).collect::<Vec<_>>());
    let commit = Step::Committed { moment: 2 };
    let late = |before: usize| {
        let mut steps = vec![fill(10), commit.clone(), fill(15), fill(20), fill(25)];
        steps.insert(2 + before, batch(2, &[(Delete, 1)]));
        History { delay: Some(10), ..history(&moments, steps) }
    };
    for before in 0..=2 {
        let seen = accepted(&late(before));
        assert_eq!((seen.revocations, seen.longest), (1, 5 * before));
    }
    assert_eq!(refused(&late(3)), (Rule::Delay, 4));
}

#[test]
fn a_folded_queue_revokes_before_it_grants() {
    // Fact 1 goes and comes again, 2 goes for good, 3 comes.
    let moments: [&[usize]; 4] = [&[1, 2], &[1, 2], &[2], &[1, 3]];
    let folded = |batches: &[&[(Op, usize)]]| {
        let mut steps = vec![reached(1, 1), Step::Lane(Lane::Folded)];
        steps.extend(batches.iter().map(|changes| batch(3, changes)));
        history(&moments, steps)
    };
    accepted(&folded(&[&[(Delete, 1)], &[(Delete, 2)], &[(Insert, 3)], &[(Insert, 1)]]));
    accepted(&folded(&[&[(Delete, 2)], &[(Insert, 3)]]));
    assert_eq!(refused(&folded(&[&[(Delete, 1)], &[(Insert, 3)], &[(Delete, 2)], &[(Insert, 1)]])), (Rule::Commit, 3));
}

/// Sends what a fact store must be sent, a run of commits at a time, large ones in parts.
fn right(random: &mut Random) -> History {
    let mut moments = vec![Facts::none(BOUND)];
    (0..BOUND).filter(|_| random.below(2) == 0).for_each(|fact| moments[0].set(fact, true));
    for _ in 0..30 {
        let mut next = moments[moments.len() - 1].clone();
        (0..1 + random.below(6)).for_each(|_| next.set(random.below(BOUND as u64) as usize, random.below(2) == 0));
        moments.push(next);
    }
    let mut steps = vec![LIVE];
    let mut at = 0;
    while at + 1 < moments.len() {
        let to = (at + 1 + random.below(3) as usize).min(moments.len() - 1);
        let (before, after) = (&moments[at], &moments[to]);
        let mut changes: Vec<_> = before.iter().filter(|fact| !after.has(*fact)).map(|fact| (Delete, fact)).collect();
        changes.extend(after.iter().filter(|fact| !before.has(*fact)).map(|fact| (Insert, fact)));
        let head = (to + random.below(4) as usize).min(moments.len() - 1);
        for part in changes.chunks(3) {
            steps.push(batch(head, part));
            if random.below(4) == 0 {
                steps.push(again(head, part));
            }
        }
        // A wait at rest: what a later commit undoes could be explained by that one.
        steps.push(reached(to, to));
        at = to;
    }
    History { moments, steps, split: Split::Above(3), delay: None }
}

#[test]
fn no_right_history_is_refused_and_none_with_a_batch_less_is_accepted() {
    let mut random = Random::new("right histories");
    for _ in 0..300 {
        let history = right(&mut random);
        accepted(&history);
        let batches: Vec<usize> = (0..history.steps.len()).filter(|step| is_batch(&history.steps[*step])).collect();
        let mut without = history;
        without.steps.remove(batches[random.below(batches.len() as u64) as usize]);
        without.check().expect_err("a batch is missing");
    }
}

fn is_batch(step: &Step) -> bool {
    matches!(step, Step::Batch { again: false, .. })
}
