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
//!
//! What nobody waits for, a backfill, spends *spare* updates only: it passes a second limiter first, of nineteen twentieths of the rate and
//! half of the burst. What is left lets the first limiter recover while a backfill goes on, so that a live commit of half a batch or less
//! finds it open, and a larger one waits a second instead of two.
//!
//! Every attempt counts, also one that failed, for its answer may be all that was lost. What our clock cannot see is left to
//! the server's 429: other writers, what a process before this one wrote, and batches that the network delays and then
//! delivers together.

use std::{
    collections::VecDeque,
    num::NonZeroU32,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

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

    /// How long a backfill of `updates` keeps what the quota spares busy.
    pub fn time_to_spare(self, updates: u64) -> Duration {
        let Some(quota) = self.quota().map(spare) else { return Duration::ZERO };
        let nanos = quota.replenish_interval().as_nanos().saturating_mul(u128::from(updates));
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

/// A plan's quota and what of it is used, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Fact updates in any minute.
    pub per_minute: u32,
    /// Of them in the last minute, to the second.
    pub used: u32,
}

/// Holds writes back until the quota allows them.
#[derive(Debug)]
pub struct WriteQuota {
    pace: Pace,
    spent: Mutex<Spent>,
}

#[derive(Debug)]
enum Pace {
    /// No limit.
    Open,
    /// At most a plan's updates in any minute.
    Paced { per_minute: u32, all: Limiter, spare: Limiter },
}

#[derive(Debug)]
struct Limiter {
    limiter: DefaultDirectRateLimiter,
    /// The most it lets through at once.
    burst: NonZeroU32,
}

impl Limiter {
    fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::direct(quota), burst: quota.burst_size() }
    }

    /// More than the burst, which only a caller that disregards the limits asks for, is waited for in parts.
    async fn spend(&self, updates: usize) {
        let mut left = u32::try_from(updates).unwrap_or(u32::MAX);
        while let Some(part) = NonZeroU32::new(left.min(self.burst.get())) {
            self.limiter.until_n_ready(part).await.expect("a part is never larger than the burst");
            left -= part.get();
        }
    }

    fn try_spend(&self, updates: usize) -> bool {
        let Some(updates) = u32::try_from(updates).ok().and_then(NonZeroU32::new) else { return updates == 0 };
        matches!(self.limiter.check_n(updates), Ok(Ok(())))
    }
}

impl WriteQuota {
    /// A quota of which nothing is used up.
    pub fn new(plan: Plan) -> Self {
        let paced =
            |(quota, per_minute): (Quota, u32)| Pace::Paced { per_minute, all: Limiter::new(quota), spare: Limiter::new(spare(quota)) };
        let pace = plan.quota().zip(plan.updates_per_minute()).map_or(Pace::Open, paced);
        Self { pace, spent: Mutex::new(Spent::new()) }
    }

    /// No limit.
    pub fn open() -> &'static Self {
        static OPEN: WriteQuota = WriteQuota { pace: Pace::Open, spent: Mutex::new(Spent::new()) };
        &OPEN
    }

    /// Waits until `updates` may be sent. Cancel-safe: a wait that is dropped has used up nothing, or a part of what is more than a batch.
    pub async fn spend(&self, updates: usize) {
        if let Pace::Paced { all, .. } = &self.pace {
            all.spend(updates).await;
            self.note(updates);
        }
    }

    /// The most that is spared at once, if it is less than `most`.
    pub fn spares(&self, most: usize) -> usize {
        match &self.pace {
            Pace::Open => most,
            Pace::Paced { spare, .. } => most.min(spare.burst.get() as usize),
        }
    }

    /// Waits until `updates` may be sent that nobody waits for. Cancel-safe: a wait that is dropped delays others of its kind at most.
    pub async fn spare(&self, updates: usize) {
        if let Pace::Paced { all, spare, .. } = &self.pace {
            spare.spend(updates).await;
            all.spend(updates).await;
            self.note(updates);
        }
    }

    /// Whether `updates` may be sent right now that nobody waits for; then they are spent.
    pub fn try_spare(&self, updates: usize) -> bool {
        let spared = match &self.pace {
            Pace::Open => true,
            Pace::Paced { all, spare, .. } => spare.try_spend(updates) && all.try_spend(updates),
        };
        if spared {
            self.note(updates);
        }
        spared
    }

    /// How much of it is used; `None` without a limit.
    pub fn budget(&self) -> Option<Budget> {
        match &self.pace {
            Pace::Open => None,
            Pace::Paced { per_minute, .. } => Some(Budget { per_minute: *per_minute, used: self.spent().within(Instant::now(), WINDOW) }),
        }
    }

    fn note(&self, updates: usize) {
        if matches!(self.pace, Pace::Paced { .. }) {
            self.spent().note(Instant::now(), u32::try_from(updates).unwrap_or(u32::MAX));
        }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a backfill may spend of `quota`.
fn spare(quota: Quota) -> Quota {
    let burst = NonZeroU32::new(quota.burst_size().get().div_ceil(2)).expect("half of a burst is at least one");
    let period = quota.replenish_interval() * 20 / 19;
    Quota::with_period(period).expect("it is longer than that of the quota").allow_burst(burst)
}

/// What was spent lately, second by second.
#[derive(Debug)]
struct Spent {
    /// At most one for each second of the window, and the one that has just left it.
    seconds: VecDeque<(Instant, u32)>,
}

impl Spent {
    const fn new() -> Self {
        Self { seconds: VecDeque::new() }
    }

    fn note(&mut self, now: Instant, updates: u32) {
        match self.seconds.back_mut() {
            Some((began, spent)) if now.duration_since(*began) < Duration::from_secs(1) => *spent = spent.saturating_add(updates),
            Some(_) | None => self.seconds.push_back((now, updates)),
        }
        while self.seconds.front().is_some_and(|(began, _)| now.duration_since(*began) > WINDOW) {
            self.seconds.pop_front();
        }
    }

    fn within(&self, now: Instant, window: Duration) -> u32 {
        let lately = self.seconds.iter().filter(|(began, _)| now.duration_since(*began) <= window);
        lately.map(|(_, spent)| spent).fold(0, |sum, spent| sum.saturating_add(*spent))
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
