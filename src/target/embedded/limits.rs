//! The service's documented limits, and its sliding quota of fact updates.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use tokio::time::{Duration, Instant};

/// The body of a write, as Oso Cloud limits it (960 KiB).
const WRITE_BYTES: usize = 960 * 1024;

/// The body of any other request, as Oso Cloud limits it (10 MiB); the SDKs themselves stop there too.
const OTHER_BYTES: usize = 10 * 1024 * 1024;

/// The body of any request when Oso's limits are off: room for everything an SDK sends (10 MiB) and for our own batches (16 MiB).
const UNLIMITED_BYTES: usize = 16 * 1024 * 1024;

/// Seconds whose counts are kept: those of a whole minute and, because a count is only known to lie somewhere in its second,
/// one more. So no sixty seconds ever see more than the quota.
const WINDOW_SECONDS: u64 = 61;

/// Which of Oso Cloud's plans the embedded store imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// Startup and Growth: 1,000 entries and 960 KiB a batch, 10,000 facts a wildcard delete, 30,000 fact updates a minute.
    Growth,
    /// Free: 20 entries a batch, 1,000 fact updates a minute, 1,000 facts a listing; the rest as in Growth.
    Free,
    /// Only what protects the process: 16 MiB a body.
    Off,
}

impl Limits {
    /// Entries of a batch: facts and patterns, over all its changesets.
    pub(super) fn entries(self) -> Option<usize> {
        match self {
            Self::Growth => Some(1_000),
            Self::Free => Some(20),
            Self::Off => None,
        }
    }

    /// Bytes of a body that writes facts.
    pub(super) fn write_bytes(self) -> usize {
        match self {
            Self::Growth | Self::Free => WRITE_BYTES,
            Self::Off => UNLIMITED_BYTES,
        }
    }

    /// Bytes of any other body.
    pub(super) fn other_bytes(self) -> usize {
        match self {
            Self::Growth | Self::Free => OTHER_BYTES,
            Self::Off => UNLIMITED_BYTES,
        }
    }

    /// Facts that one wildcard delete may touch.
    pub(super) fn removed(self) -> Option<u64> {
        match self {
            Self::Growth | Self::Free => Some(10_000),
            Self::Off => None,
        }
    }

    /// Facts that one listing may have.
    pub(super) fn listed(self) -> Option<u64> {
        match self {
            Self::Free => Some(1_000),
            Self::Growth | Self::Off => None,
        }
    }

    /// Fact updates in any sixty seconds: an insert or a concrete delete is one, a wildcard delete as many as it removes, at least one.
    pub(super) fn updates_per_minute(self) -> Option<u64> {
        match self {
            Self::Growth => Some(30_000),
            Self::Free => Some(1_000),
            Self::Off => None,
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Growth => "growth",
            Self::Free => "free",
            Self::Off => "off",
        })
    }
}

/// A word that names no [`Limits`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is none of \"growth\", \"free\", \"off\"")]
pub struct UnknownLimits(String);

impl FromStr for Limits {
    type Err = UnknownLimits;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Growth, Self::Free, Self::Off]
            .into_iter()
            .find(|limits| limits.to_string() == text)
            .ok_or_else(|| UnknownLimits(text.to_owned()))
    }
}

/// Why the quota does not pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OverQuota {
    #[error("this is over the quota of {limit} fact updates a minute; it fits in {retry_after} s")]
    Later { limit: u64, retry_after: u64 },
    #[error("this is {cost} fact updates, more than the quota of {limit} a minute ever allows; send it in parts")]
    Never { limit: u64, cost: u64 },
}

/// At most so many fact updates in any sixty seconds.
#[derive(Debug)]
pub(super) struct Quota {
    limit: u64,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    /// Second since `start` and the updates charged in it, oldest first; at most [`WINDOW_SECONDS`].
    counts: VecDeque<(u64, u64)>,
}

impl Quota {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, window: Mutex::new(Window { start: Instant::now(), counts: VecDeque::new() }) }
    }

    /// Whether `cost` updates would be paid at `now`.
    pub(super) fn ask(&self, now: Instant, cost: u64) -> Result<(), OverQuota> {
        self.locked(|window| window.ask(now, self.limit, cost).map(|_| ()))
    }

    /// Pays `cost` updates at `now`, or nothing.
    pub(super) fn charge(&self, now: Instant, cost: u64) -> Result<(), OverQuota> {
        self.locked(|window| {
            let second = window.ask(now, self.limit, cost)?;
            match window.counts.back_mut() {
                Some((last, count)) if *last == second => *count += cost,
                Some(_) | None => window.counts.push_back((second, cost)),
            }
            Ok(())
        })
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Window) -> T) -> T {
        // Every operation leaves the window whole, so one that panicked does no harm.
        work(&mut self.window.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Window {
    /// The second in which `cost` can be charged.
    fn ask(&mut self, now: Instant, limit: u64, cost: u64) -> Result<u64, OverQuota> {
        if cost > limit {
            return Err(OverQuota::Never { limit, cost });
        }
        // Requests may be charged a little out of order; time only moves forward.
        let newest = self.counts.back().map_or(0, |(second, _)| *second);
        let elapsed = now.saturating_duration_since(self.start).max(Duration::from_secs(newest));
        let second = elapsed.as_secs();
        while self.counts.front().is_some_and(|(first, _)| first + WINDOW_SECONDS <= second) {
            self.counts.pop_front();
        }
        let mut used: u64 = self.counts.iter().map(|(_, count)| count).sum();
        if used + cost <= limit {
            return Ok(second);
        }
        let free = self.counts.iter().find_map(|(first, count)| {
            used -= count;
            (used + cost <= limit).then_some(first + WINDOW_SECONDS)
        });
        let free = Duration::from_secs(free.expect("with nothing used, a cost within the limit fits"));
        Err(OverQuota::Later { limit, retry_after: free.saturating_sub(elapsed).as_secs_f64().ceil() as u64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_have_names() {
        for limits in [Limits::Growth, Limits::Free, Limits::Off] {
            assert_eq!(limits.to_string().parse(), Ok(limits));
        }
        let error = "grow".parse::<Limits>().expect_err("no plan").to_string();
        assert!(error.contains("\"grow\"") && error.contains("\"growth\""), "{error}");
    }

    #[test]
    fn a_full_window_says_when_the_cost_fits_and_keeps_its_word() {
        let quota = Quota::new(100);
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(quota.charge(at(0), 60), Ok(()));
        assert_eq!(quota.charge(at(30_000), 40), Ok(()));
        let Err(OverQuota::Later { retry_after, .. }) = quota.charge(at(40_500), 1) else { panic!("the window is full") };
        assert!((20..=21).contains(&retry_after), "the first 60 leave it after a minute and a second: {retry_after}");
        assert!(quota.charge(at(40_500 + retry_after * 1_000), 60).is_ok());
        let Err(OverQuota::Later { retry_after, .. }) = quota.charge(at(62_000), 61) else { panic!("100 are used") };
        assert!(retry_after >= 59, "it needs room that both charges hold: {retry_after}");
    }

    #[test]
    fn a_refused_charge_uses_nothing_up() {
        let quota = Quota::new(10);
        let now = Instant::now();
        for _ in 0..100 {
            assert_eq!(quota.charge(now, 11), Err(OverQuota::Never { limit: 10, cost: 11 }));
            assert_eq!(quota.ask(now, 10), Ok(()));
        }
        assert_eq!(quota.charge(now, 10), Ok(()));
        assert!(quota.charge(now, 1).is_err());
    }

    #[test]
    fn no_sixty_seconds_ever_see_more_than_the_quota() {
        let quota = Quota::new(50);
        let start = Instant::now();
        let mut charged: Vec<(u64, u64)> = Vec::new();
        // A fixed walk through time whose steps (in ms) and costs have no common period.
        for step in 0..5_000_u64 {
            let (now, cost) = (step * 377, step * 7 % 13 + 1);
            if quota.charge(start + Duration::from_millis(now), cost).is_ok() {
                charged.push((now, cost));
                let minute: u64 = charged.iter().filter(|(at, _)| at + 60_000 > now).map(|(_, cost)| cost).sum();
                assert!(minute <= 50, "{minute} in the minute before {now} ms");
            }
        }
        assert!(charged.len() > 200, "the quota must not starve: {}", charged.len());
        assert!(quota.locked(|window| window.counts.len()) <= WINDOW_SECONDS as usize);
    }
}
