//! Sets of facts, which a history has hundreds of.
//!
//! A fact is a number here, so that a set is a row of bits: comparing two of them costs microseconds, and a checker compares each state
//! of the fact store with many states of the source.

/// A set of the numbers below a fixed bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts(Vec<u64>);

impl Facts {
    /// None of the facts below `bound`.
    pub(super) fn none(bound: usize) -> Self {
        Self(vec![0; bound.div_ceil(64)])
    }

    /// Those of `facts`, all below `bound`.
    pub(super) fn of(bound: usize, facts: impl IntoIterator<Item = usize>) -> Self {
        let mut set = Self::none(bound);
        facts.into_iter().for_each(|fact| set.set(fact, true));
        set
    }

    pub(super) fn has(&self, fact: usize) -> bool {
        self.0[fact / 64] & (1 << (fact % 64)) != 0
    }

    /// Puts `fact` in or takes it out.
    pub(super) fn set(&mut self, fact: usize, present: bool) {
        let bit = 1 << (fact % 64);
        if present { self.0[fact / 64] |= bit } else { self.0[fact / 64] &= !bit }
    }

    pub(super) fn add(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(own, other)| *own |= other);
    }

    pub(super) fn keep(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(own, other)| *own &= other);
    }

    /// The first fact that is not in `others`.
    pub(super) fn beyond(&self, others: &Self) -> Option<usize> {
        let (word, bits) = self.0.iter().zip(&others.0).map(|(own, other)| own & !other).enumerate().find(|(_, bits)| *bits != 0)?;
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// How many facts only one of the two has.
    pub(super) fn distance(&self, others: &Self) -> usize {
        self.0.iter().zip(&others.0).map(|(own, other)| (own ^ other).count_ones() as usize).sum()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        let bits = |(word, bits): (usize, &u64)| {
            let bits = *bits;
            (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit)
        };
        self.0.iter().enumerate().flat_map(bits)
    }

    /// Whether a fact store that goes from `before` to `after` may hold this on the way: first the deletes go, then the inserts come.
    pub(super) fn is_between(&self, before: &Self, after: &Self) -> bool {
        let (mut deleting, mut inserting) = (true, true);
        for ((own, before), after) in self.0.iter().zip(&before.0).zip(&after.0) {
            if before & after & !own != 0 {
                return false;
            }
            deleting &= own & !before == 0;
            inserting &= own & !after == 0;
            if !deleting && !inserting {
                return false;
            }
        }
        true
    }
}

#[test]
fn a_way_between_two_states_deletes_before_it_inserts() {
    let set = |facts: &[usize]| Facts::of(200, facts.iter().copied());
    let (before, after) = (set(&[1, 2, 150]), set(&[2, 3, 199]));
    for way in [&[1, 2, 150][..], &[1, 2], &[2], &[2, 3], &[2, 3, 199]] {
        assert!(set(way).is_between(&before, &after), "{way:?}");
    }
    for way in [&[1, 2, 3][..], &[1, 150], &[], &[2, 7], &[1, 2, 3, 150, 199]] {
        assert!(!set(way).is_between(&before, &after), "{way:?}");
    }
    assert_eq!((before.beyond(&after), after.beyond(&before), before.distance(&after)), (Some(1), Some(3), 4));
    assert_eq!(after.iter().collect::<Vec<_>>(), [2, 3, 199]);
}
