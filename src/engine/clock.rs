//! The source's clock, as far as it is known here, and the next moment at which time alone changes facts.

use std::time::{Duration, Instant};

/// How long to wait for a moment that cannot be placed because the source has not said what time it is.
const UNKNOWN: Duration = Duration::from_secs(3600);

/// A clock that never goes back and never runs ahead of the source's.
#[derive(Debug)]
pub(super) struct SourceClock {
    /// What the source said, and when that had been heard.
    heard: Option<(i64, Instant)>,
    /// What `now()` is in the views.
    views: i64,
    /// The next moment that matters.
    due: Option<i64>,
}

impl SourceClock {
    /// `views` is what `now()` was in the views when they were last changed.
    pub(super) fn new(views: Option<i64>) -> Self {
        Self { heard: None, views: views.unwrap_or(i64::MIN), due: None }
    }

    /// The source said `at`, no later than `seen`. `true` for the first time.
    pub(super) fn set(&mut self, at: i64, seen: Instant) -> bool {
        let first = self.heard.is_none();
        let told = at.saturating_add(micros(seen.elapsed()));
        // Of two readings the one that is further is closer to the truth: neither is ahead of it, unless the source's clock was set back.
        if self.heard.is_none_or(|_| told >= self.now()) || self.now().saturating_sub(told) > micros(Duration::from_secs(1)) {
            self.heard = Some((at, seen));
        }
        first
    }

    /// What time it is at the source, as far as the views may know: it never goes back.
    pub(super) fn now(&self) -> i64 {
        let told = self.heard.map_or(i64::MIN, |(at, seen)| at.saturating_add(micros(seen.elapsed())));
        told.max(self.views)
    }

    /// The views are as of `now`.
    pub(super) fn passed(&mut self, now: i64) {
        self.views = self.views.max(now);
    }

    /// The next moment that matters, if there is one.
    pub(super) fn wait_for(&mut self, due: Option<i64>) {
        self.due = due;
    }

    /// Returns when that moment has come; never without one. Cancel-safe.
    pub(super) async fn due(&self) {
        let (Some(due), true) = (self.due, self.heard.is_some()) else { return std::future::pending().await };
        let wait = due.saturating_sub(self.now());
        let wait = u64::try_from(wait).map_or(Duration::ZERO, Duration::from_micros);
        tokio::time::sleep(wait.min(UNKNOWN)).await;
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
