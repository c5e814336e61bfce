//! The blast-radius guard: a change that would remove too much of a fact type waits for a person.

use crate::config::MaxRemovals;

/// What a fact type may lose in one change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// More than both the count and the percentage is held.
    Limit(MaxRemovals),
    /// The same; but what is there at the first contact with a fact type, and not wanted, is held whatever it is: `--adopt`.
    Adopt(MaxRemovals),
    /// A person said `--allow-removals`.
    Off,
}

/// What becomes of the removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// They are applied.
    Apply,
    /// They wait; what the change inserts does not.
    Hold,
}

impl Guard {
    /// Whether the first contact with a fact type removes nothing.
    pub fn adopts(self) -> bool {
        match self {
            Self::Adopt(_) => true,
            Self::Limit(_) | Self::Off => false,
        }
    }

    /// Judges `removals` out of `facts`.
    pub fn judge(self, removals: u64, facts: u64) -> Verdict {
        match self {
            Self::Off => Verdict::Apply,
            Self::Limit(MaxRemovals { count, percent }) | Self::Adopt(MaxRemovals { count, percent }) => {
                let share = u128::from(removals) * 100 > u128::from(facts) * u128::from(percent);
                if removals > count && share { Verdict::Hold } else { Verdict::Apply }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_a_change_is_held_only_beyond_both_limits() {
        let guard = Guard::Limit(MaxRemovals { count: 10, percent: 20 });
        for (removals, facts, want) in [
            (0, 0, Verdict::Apply),
            (10, 10, Verdict::Apply),
            (11, 55, Verdict::Apply),
            (11, 54, Verdict::Hold),
            (u64::MAX, u64::MAX, Verdict::Hold),
        ] {
            assert_eq!(guard.judge(removals, facts), want, "{removals} of {facts}");
            assert_eq!(Guard::Off.judge(removals, facts), Verdict::Apply);
        }
    }
}
