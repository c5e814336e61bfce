//! The write quota of an Oso Cloud plan, kept on our own clock.
//!
//! Oso Cloud refuses more than so many fact updates *in any minute* (a sliding window). governor's limiter is a GCRA: it
//! lets `burst` through at once and one more every `period`. How many can pass in the worst minute? Let batches of n₁ … nₖ
//! changes pass at t₁ ≤ … ≤ tₖ ≤ t₁ + 60 s. The limiter's theoretical arrival time is at least t₁ + (n₁ + … + nₖ₋₁)·period
//! before the last, and it lets that pass only if adding (nₖ − 1)·period comes to at most tₖ + (burst − 1)·period. So
//! n₁ + … + nₖ ≤ burst + 60 s / period: the quota holds in every minute if
//!
//! ```text
//! burst = one full batch          period = 60 s / (quota − burst), rounded up
//! ```
//!
//! The burst may not be smaller, or a full batch would never pass; it is not larger, because the rate pays for it.
//! Every attempt counts, also one that failed, for its answer may be all that was lost. What our clock cannot see is left to
//! the server's 429: other writers, what a process before this one wrote, and batches that the network delays and then
//! delivers together.

use std::{num::NonZeroU32, str::FromStr, time::Duration};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use crate::target::BatchLimits;

/// The largest request body of a write, on every plan (Oso's service limits).
const BODY_BYTES: usize = 960 << 10;
/// Entries of a batch on the free plan.
const FREE_ENTRIES: usize = 20;
/// Entries of a batch on the Startup and Growth plans. No plan allows more, so it also bounds an unlimited one.
const GROWTH_ENTRIES: usize = 1_000;
/// Fact updates a minute on the free plan.
const FREE_PER_MINUTE: u32 = 1_000;
/// Fact updates a minute on the Startup and Growth plans.
const GROWTH_PER_MINUTE: u32 = 30_000;
/// The window of those two.
const WINDOW: Duration = Duration::from_secs(60);

/// What the fact store allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Plan {
    /// Oso Cloud's free plan and its developer accounts.
    Free,
    /// Oso Cloud's Startup and Growth plans.
    #[default]
    Growth,
    /// Batches as on [`Plan::Growth`] and no limit by the minute: a store of one's own.
    Unlimited,
}

impl Plan {
    /// What one batch may hold.
    pub fn limits(self) -> BatchLimits {
        let entries = match self {
            Self::Free => FREE_ENTRIES,
            Self::Growth | Self::Unlimited => GROWTH_ENTRIES,
        };
        BatchLimits { entries, bytes: BODY_BYTES }
    }

    /// Fact updates in any minute, or `None` for any number.
    pub fn updates_per_minute(self) -> Option<u32> {
        match self {
            Self::Free => Some(FREE_PER_MINUTE),
            Self::Growth => Some(GROWTH_PER_MINUTE),
            Self::Unlimited => None,
        }
    }

    /// How long `updates` will keep the quota busy: the honest part of a progress bar's forecast.
    pub fn time_for(self, updates: u64) -> Duration {
        let Some(quota) = self.quota() else { return Duration::ZERO };
        let paced = updates.saturating_sub(u64::from(quota.burst_size().get()));
        let nanos = quota.replenish_interval().as_nanos().saturating_mul(u128::from(paced));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn quota(self) -> Option<Quota> {
        let per_minute = self.updates_per_minute()?;
        let burst = u32::try_from(self.limits().entries).expect("a batch has at most 1,000 entries");
        let rate = u128::from(per_minute - burst);
        let period = u64::try_from(WINDOW.as_nanos().div_ceil(rate)).expect("it is at most a minute");
        let burst = NonZeroU32::new(burst).expect("a batch holds at least 20 entries");
        Some(Quota::with_period(Duration::from_nanos(period)).expect("it is at least a millisecond").allow_burst(burst))
    }
}

/// A name that is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a plan; expected free, growth or unlimited")]
pub struct ParsePlanError(String);

impl FromStr for Plan {
    type Err = ParsePlanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "free" => Ok(Self::Free),
            "growth" => Ok(Self::Growth),
            "unlimited" => Ok(Self::Unlimited),
            _ => Err(ParsePlanError(text.to_owned())),
        }
    }
}

/// Holds writes back until the quota allows them.
#[derive(Debug)]
pub(crate) enum WriteQuota {
    /// No limit.
    Open,
    /// At most a plan's updates in any minute.
    Paced {
        /// Its state.
        limiter: DefaultDirectRateLimiter,
        /// The most it lets through at once.
        burst: NonZeroU32,
    },
}

impl WriteQuota {
    /// A quota of which nothing is used up.
    pub(crate) fn new(plan: Plan) -> Self {
        match plan.quota() {
            None => Self::Open,
            Some(quota) => Self::Paced { limiter: RateLimiter::direct(quota), burst: quota.burst_size() },
        }
    }

    /// Waits until `updates` may be sent. Cancel-safe: a wait that is dropped has used up nothing.
    ///
    /// More than a batch at once, which only a caller that disregards the limits asks for, is waited for in parts.
    pub(crate) async fn spend(&self, updates: usize) {
        match self {
            Self::Open => {}
            Self::Paced { limiter, burst } => {
                let mut left = u32::try_from(updates).unwrap_or(u32::MAX);
                while let Some(part) = NonZeroU32::new(left.min(burst.get())) {
                    limiter.until_n_ready(part).await.expect("a part is never larger than the burst");
                    left -= part.get();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    const PACED: [Plan; 2] = [Plan::Free, Plan::Growth];

    /// The most updates that passed in any 60 seconds, both ends included, when batches of `sizes` are asked for in turn,
    /// each `pauses` milliseconds after the one before and then as soon as the limiter lets it pass.
    fn worst_minute(quota: Quota, sizes: &[u32], pauses: &[u64]) -> u32 {
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        let mut now = Duration::ZERO;
        let mut passed: Vec<(Duration, u32)> = Vec::new();
        for (size, pause) in sizes.iter().zip(pauses) {
            let mut wait = Duration::from_millis(*pause);
            loop {
                clock.advance(wait);
                now += wait;
                let size = NonZeroU32::new(*size).expect("sizes start at 1");
                match limiter.check_n(size).expect("sizes end at the burst") {
                    Ok(()) => break,
                    Err(early) => wait = early.wait_time_from(now.into()),
                }
            }
            passed.push((now, *size));
        }
        let minute = |start: Duration| passed.iter().filter(move |(at, _)| (start..=start + WINDOW).contains(at));
        passed.iter().map(|(start, _)| minute(*start).map(|(_, size)| size).sum()).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn no_minute_exceeds_the_plan(
            plan in prop::sample::select(PACED.to_vec()),
            batches in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![60 => Just(0_u64), 1 => 0..90_000_u64]), 1..400),
        ) {
            let quota = plan.quota().expect("a paced plan");
            let burst = plan.limits().entries;
            let (sizes, pauses): (Vec<u32>, Vec<u64>) =
                batches.iter().map(|(size, pause)| (u32::try_from(size.index(burst)).expect("small") + 1, *pause)).unzip();
            prop_assert!(worst_minute(quota, &sizes, &pauses) <= plan.updates_per_minute().expect("a paced plan"));
        }
    }

    #[test]
    fn full_batches_back_to_back_use_the_whole_quota() {
        for plan in PACED {
            let quota = plan.quota().expect("a paced plan");
            let burst = u32::try_from(plan.limits().entries).expect("small");
            let used = worst_minute(quota, &vec![burst; 200], &vec![0; 200]);
            let allowed = plan.updates_per_minute().expect("a paced plan");
            assert!(used <= allowed && used > allowed - 2 * burst, "{plan:?}: {used} of {allowed}");
        }
    }

    #[test]
    fn the_forecast_is_the_time_the_limiter_takes() {
        assert_eq!(Plan::Growth.time_for(1_000), Duration::ZERO);
        assert_eq!(Plan::Growth.time_for(30_000).as_millis(), 60_000);
        assert_eq!(Plan::Free.time_for(1_000).as_millis(), 60_000);
        assert_eq!(Plan::Unlimited.time_for(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn plans_are_read_by_name() {
        for (text, plan) in [("free", Plan::Free), ("growth", Plan::Growth), ("unlimited", Plan::Unlimited)] {
            assert_eq!(text.parse(), Ok(plan));
        }
        assert_eq!("pro".parse::<Plan>().expect_err("no plan").to_string(), "\"pro\" is not a plan; expected free, growth or unlimited");
    }
}
