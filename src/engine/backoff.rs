//! When to try a source again: a pure schedule. The fact store has its own, [`Schedule`](crate::target::retry::Schedule).

use std::time::Duration;

use backon::BackoffBuilder;

/// The first pause: long enough not to spin, short enough that a restarted server is found at once.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause: what an operator waits at most after mending something.
const LONGEST: Duration = Duration::from_secs(10);

/// Exponential backoff with jitter, up to [`LONGEST`], without end.
pub(super) struct Backoff {
    pauses: backon::ExponentialBackoff,
}

impl Default for Backoff {
    fn default() -> Self {
        let builder = backon::ExponentialBuilder::new().with_min_delay(FIRST).with_max_delay(LONGEST).with_jitter();
        // Without a seed every process would pause alike, and come back together.
        let builder = builder.with_jitter_seed(uuid::Uuid::new_v4().as_u64_pair().1);
        Self { pauses: builder.without_max_times().build() }
    }
}

impl Backoff {
    /// The next pause.
    pub(super) fn next(&mut self) -> Duration {
        self.pauses.next().unwrap_or(LONGEST).min(LONGEST)
    }

    /// The pause after a first failure.
    pub(super) fn first(&self) -> Duration {
        FIRST
    }

    /// The pause when only a person can help.
    pub(super) fn longest(&self) -> Duration {
        LONGEST
    }

    /// Starts over after a success.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_never_end() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= FIRST && pauses[0] <= FIRST * 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST), "{pauses:?}");
        assert!(pauses[20..].iter().all(|pause| *pause >= LONGEST / 2), "{pauses:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST * 2);
    }
}
