//! The blast-radius guard: a change that would remove too much of a fact type waits for a person.
//!
//! **What is judged.** Of every view that is followed each store transaction, and of every comparison with the fact store what it found
//! too many. Held are the removals of what is judged too large, all of them; what it inserts goes on. Whatever is held stays held, however
//! small the rest of it has become, until the query has the fact again or a person says what becomes of it: nothing that comes later
//! waits with it, and nothing that comes later lets go of it.
//!
//! **By itself, or with what came before.** An accident need not be one statement. A program that deletes row by row makes thousands of
//! commits, each of them as harmless as the one revocation that must not wait. So each change is judged twice:
//!
//! 1. by itself: its removals out of the facts that the query had before it;
//! 2. together with the last minute: how many facts fewer the query has after it than it had at any time within [`TOGETHER_SECONDS`]
//!    ([`Recent`]), out of that most.
//!
//! The second is the *loss*, not the sum of the removals: an application that replaces facts all the time (sessions, roles that change)
//! removes more than all of them within a minute and loses nothing, and to hold its revocations would be a hole of its own. The price is an
//! accident that replaces row by row; one that replaces in one commit is found by the first judgement, which counts removals.
//!
//! **While it lasts and after it.** The loss is counted by what the query has, whether its removals went or wait. So while a flood goes on
//! at more than the limit in a minute, all of it waits, and not another limit's worth of it goes every minute; what it lets through is the
//! limit once. A revocation that comes in the middle of the flood waits with it, for nothing tells it from the flood. A minute after
//! the flood a single one goes at once. A change that is held by itself does not count as a loss ([`Recent::excuse`]): it is known to be an
//! accident, and the next small revocation goes at once.
//!
//! **What expires is no loss.** Grants that end by time end as somebody wished when they were given, many of them around the same hour. So
//! when nothing but time has passed, a step is judged by itself alone, which is what finds a clock that jumps.
//!
//! **Which clock.** That of this machine, when the transaction is computed: what arrives together is judged together, also when it is an
//! hour's work after an outage. What was last seen is stored with the view, so a restart forgets nothing. A clock that is set back makes
//! the minute longer, one that is set forward may end it, which lets another limit's worth go.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::MaxRemovals;

/// How long losses are judged together. Programs that delete row by row do hundreds in a second, so a minute gathers what is needed to know
/// them; and it is how long after a flood a revocation still waits for a person, which should not be long.
pub const TOGETHER_SECONDS: u64 = 60;

/// How fine [`Recent`] is: with six steps it is a few dozen bytes, and forgets after seven at the latest.
const STEP_SECONDS: u64 = 10;

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
    Hold(Cause),
}

/// Why removals wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// One change was too large by itself.
    Change,
    /// Each change was small, and together they were too large.
    Series,
    /// A comparison found too many facts that no query has.
    Comparison,
    /// They were there at the first contact: `--adopt`.
    Adopted,
    /// Held by a release that did not write down why.
    Earlier,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Change, Self::Series, Self::Comparison, Self::Adopted, Self::Earlier];

    /// Its name where it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Series => "series",
            Self::Comparison => "comparison",
            Self::Adopted => "adopted",
            Self::Earlier => "earlier",
        }
    }

    /// The cause with that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change => write!(f, "one change removes more than max_removals"),
            Self::Series => write!(f, "changes within {TOGETHER_SECONDS} s remove more than max_removals"),
            Self::Comparison => write!(f, "a comparison would remove more than max_removals"),
            Self::Adopted => write!(f, "was there before, see --adopt"),
            Self::Earlier => write!(f, "held by an earlier release"),
        }
    }
}

/// Why facts come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody changed something.
    Change,
    /// Time has passed, and nothing else.
    Time,
}

/// What a change does to the number of facts that a query has.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Why.
    pub occasion: Occasion,
    /// Facts that it had.
    pub before: u64,
    /// Facts that it did not have and has now.
    pub inserted: u64,
    /// Facts that it had and has no longer.
    pub removed: u64,
}

impl Guard {
    /// Whether the first contact with a fact type removes nothing.
    pub fn adopts(self) -> bool {
        match self {
            Self::Adopt(_) => true,
            Self::Limit(_) | Self::Off => false,
        }
    }

    /// The limits, unless a person lifted them.
    pub fn limits(self) -> Option<MaxRemovals> {
        match self {
            Self::Limit(limits) | Self::Adopt(limits) => Some(limits),
            Self::Off => None,
        }
    }

    /// Judges a change of a query's result at the second `now`, and remembers it in `recent`.
    pub fn judge(self, step: Step, recent: &mut Recent, now: u64) -> Verdict {
        let Step { occasion, before, inserted, removed } = step;
        let after = (before + inserted).saturating_sub(removed);
        recent.note(now, before);
        let most = recent.most();
        let Some(_) = self.limits() else {
            // A person wants what is gone to be gone.
            *recent = Recent::default();
            return Verdict::Apply;
        };
        let verdict = if removed == 0 {
            Verdict::Apply
        } else if self.exceeded(removed, before) {
            recent.excuse(removed);
            Verdict::Hold(Cause::Change)
        } else if occasion == Occasion::Time {
            recent.excuse(removed);
            Verdict::Apply
        } else if self.exceeded(most.saturating_sub(after), most) {
            Verdict::Hold(Cause::Series)
        } else {
            Verdict::Apply
        };
        recent.note(now, after);
        verdict
    }

    /// Judges what a comparison would remove of `facts` that the fact store has.
    pub fn judge_comparison(self, removals: u64, facts: u64) -> Verdict {
        if self.exceeded(removals, facts) { Verdict::Hold(Cause::Comparison) } else { Verdict::Apply }
    }

    /// Whether `removals` out of `facts` are more than both limits.
    fn exceeded(self, removals: u64, facts: u64) -> bool {
        self.limits().is_some_and(|MaxRemovals { count, percent }| {
            removals > count && u128::from(removals) * 100 > u128::from(facts) * u128::from(percent)
        })
    }
}

/// The most facts that a query had in the last minute.
///
/// Each mark says when there were how many: later ones have fewer, since nobody asks for fewer than there were later. The first one is
/// the most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recent(Vec<(u64, u64)>);

impl Recent {
    /// There are `facts` at the second `now`.
    fn note(&mut self, now: u64, facts: u64) {
        let step = now / STEP_SECONDS;
        for (at, _) in &mut self.0 {
            // The clock was set back: what was seen stays seen for another minute.
            *at = step.min(*at);
        }
        self.0.retain(|(at, most)| (step - at) * STEP_SECONDS <= TOGETHER_SECONDS && *most > facts);
        match self.0.last_mut() {
            // Within a step the most counts.
            Some((at, _)) if *at == step => {}
            Some(_) | None => self.0.push((step, facts)),
        }
    }

    fn most(&self) -> u64 {
        self.0.first().map_or(0, |(_, most)| *most)
    }

    /// `removals` do not count as a loss.
    fn excuse(&mut self, removals: u64) {
        for (_, most) in &mut self.0 {
            *most = most.saturating_sub(removals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const LIMITS: MaxRemovals = MaxRemovals { count: 10, percent: 20 };

    #[test]
    fn guarded_a_change_is_held_only_beyond_both_limits() {
        for (removed, before, held) in [(0, 0, false), (10, 10, false), (11, 55, false), (11, 54, true), (u64::MAX, u64::MAX, true)] {
            let step = Step { occasion: Occasion::Change, before, inserted: 0, removed };
            let want = if held { Verdict::Hold(Cause::Change) } else { Verdict::Apply };
            assert_eq!(Guard::Limit(LIMITS).judge(step, &mut Recent::default(), 0), want, "{removed} of {before}");
            assert_eq!(Guard::Off.judge(step, &mut Recent::default(), 0), Verdict::Apply);
            let want = if held { Verdict::Hold(Cause::Comparison) } else { Verdict::Apply };
            assert_eq!(Guard::Limit(LIMITS).judge_comparison(removed, before), want, "{removed} of {before}");
            assert_eq!(Guard::Off.judge_comparison(removed, before), Verdict::Apply);
        }
    }

    /// A query that is changed step by step.
    struct Play {
        recent: Recent,
        facts: u64,
        now: u64,
    }

    impl Play {
        fn new(facts: u64) -> Self {
            Self { recent: Recent::default(), facts, now: 1_000 }
        }

        fn step(&mut self, inserted: u64, removed: u64) -> Verdict {
            self.on(Occasion::Change, inserted, removed)
        }

        fn on(&mut self, occasion: Occasion, inserted: u64, removed: u64) -> Verdict {
            let step = Step { occasion, before: self.facts, inserted, removed };
            let verdict = Guard::Limit(LIMITS).judge(step, &mut self.recent, self.now);
            self.facts = self.facts + inserted - removed;
            verdict
        }
    }

    #[test]
    fn guarded_a_flood_of_single_removals_goes_up_to_the_limit_and_waits_while_it_lasts() {
        let mut play = Play::new(100);
        let verdicts: Vec<Verdict> = (0..80).map(|_| play.step(0, 1)).collect();
        // 20 of 100 is not more than a fifth.
        assert!(verdicts[..20].iter().all(|verdict| *verdict == Verdict::Apply), "{verdicts:?}");
        assert!(verdicts[20..].iter().all(|verdict| *verdict == Verdict::Hold(Cause::Series)), "{verdicts:?}");
        play.now += TOGETHER_SECONDS / 2;
        assert_eq!(play.step(5, 1), Verdict::Hold(Cause::Series), "it is not over yet");
        play.now += TOGETHER_SECONDS + STEP_SECONDS;
        assert_eq!(play.step(0, 1), Verdict::Apply, "it is over");
    }

    #[test]
    fn guarded_replacing_everything_all_the_time_is_no_loss() {
        let mut play = Play::new(100);
        for _ in 0..1_000 {
            assert_eq!(play.step(10, 10), Verdict::Apply);
        }
        // What has come and goes again is one.
        assert_eq!(play.step(100, 0), Verdict::Apply);
        let held = (0..10).filter(|_| play.step(0, 10) != Verdict::Apply).count();
        assert_eq!(held, 6, "a fifth of 200 goes");
    }

    #[test]
    fn guarded_a_small_removal_goes_right_after_a_large_one_was_held() {
        let mut play = Play::new(100);
        assert_eq!(play.step(0, 70), Verdict::Hold(Cause::Change));
        for _ in 0..10 {
            assert_eq!(play.step(0, 1), Verdict::Apply);
        }
        assert_eq!(play.step(0, 1), Verdict::Hold(Cause::Series), "it is the eleventh of 30");
        assert_eq!(play.step(0, 19), Verdict::Hold(Cause::Change), "the rest of it is another accident");
    }

    #[test]
    fn guarded_what_expires_one_by_one_goes_and_all_at_once_waits() {
        let mut play = Play::new(100);
        assert!((0..60).all(|_| play.on(Occasion::Time, 0, 1) == Verdict::Apply));
        assert_eq!(play.step(0, 1), Verdict::Apply, "and nothing waits for it");
        assert_eq!(play.on(Occasion::Time, 0, 39), Verdict::Hold(Cause::Change));
    }

    #[test]
    fn guarded_what_was_let_go_by_a_person_is_no_loss_later() {
        let mut play = Play::new(100);
        let step = Step { occasion: Occasion::Change, before: 100, inserted: 0, removed: 60 };
        assert_eq!(Guard::Off.judge(step, &mut play.recent, play.now), Verdict::Apply);
        play.facts = 40;
        assert_eq!(play.step(0, 1), Verdict::Apply);
    }

    #[test]
    fn guarded_a_clock_that_is_set_back_forgets_nothing_and_remembers_no_longer_than_a_minute() {
        let mut play = Play::new(100);
        (0..20).for_each(|_| assert_eq!(play.step(0, 1), Verdict::Apply));
        play.now -= 900;
        assert_eq!(play.step(0, 1), Verdict::Hold(Cause::Series));
        play.now += TOGETHER_SECONDS + STEP_SECONDS;
        assert_eq!(play.step(0, 1), Verdict::Apply);
    }

    proptest! {
        #[test]
        fn the_most_of_the_last_minute_is_what_a_list_of_everything_says(
            steps in prop::collection::vec((0_u64..40, 0_u64..50), 1..60),
        ) {
            let mut recent = Recent::default();
            let mut all = VecDeque::new();
            let mut now = 0;
            for (pause, facts) in steps {
                now += pause;
                recent.note(now, facts);
                all.push_back((now / STEP_SECONDS, facts));
                all.retain(|(step, _)| (now / STEP_SECONDS - step) * STEP_SECONDS <= TOGETHER_SECONDS);
                prop_assert_eq!(recent.most(), all.iter().map(|(_, facts)| *facts).max().expect("one was just added"));
                prop_assert!(recent.0.len() as u64 <= TOGETHER_SECONDS / STEP_SECONDS + 1, "{:?}", recent);
            }
        }
    }
}
