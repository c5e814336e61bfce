//! The source's clock, as far as it is known here, and the next moment at which time alone changes facts.
//!
//! A grant that expires must not wait for the database to come back. So the clock goes on without the source, in three steps:
//!
//! - *A reading* is what the source's clock showed, and when that was heard here. Later the source's clock shows at least the reading plus
//!   what our monotonic clock has measured since, less what two clocks can drift apart in that time (`DRIFT`). This never runs ahead
//!   of the source, so a fact is never taken away early; it is late by the way of the answer and by the drift of the time without
//!   contact (3.6 s after an hour). Of two readings the one that says more now is the better one, so a slow answer makes nothing worse.
//!   Only a reading that is behind by more than `SET_BACK` is no slow answer: the source's clock was set back, or another server answers
//!   after a failover.
//! - *Over attempts*: the clock belongs to the process, not to a connection. While the source is away, the views that are loaded are moved
//!   along by it (`away.rs`), from the local store alone.
//! - *Over a restart* no reading is left: a monotonic clock means nothing to another process, and the difference to the machine's wall
//!   clock would be only as good as that is, which people and time daemons set, also while nobody runs. What the views were last moved to
//!   is stored with them and is a lower bound, so that is where they stand until the source has said what time it is. Nothing is lost by
//!   that: without the source there is no plan either, by which a view could be computed.
//!
//! `now()` of the views never goes back, whatever the source's clock does: what is behind it is waited for. Only a new history, which
//! reads everything again, begins with what the source says.

use std::time::{Duration, Instant};

/// How many microseconds out of a million our clock may run fast against the source's: daemons that keep clocks right slew both by at
/// most 500 (`adjtimex`); quartz is ten times better.
const DRIFT: u128 = 1000;
/// A second, in the unit of [`DRIFT`].
const MILLION: u128 = 1_000_000;
/// A reading that is behind what is known by more than this is no slow answer.
const SET_BACK: i64 = 1_000_000;
/// How long to sleep at a stretch: a moment can be further off than a timer can be set.
const NAP: Duration = Duration::from_secs(3600);

/// A clock that never goes back and never runs ahead of the source's.
#[derive(Debug, Default)]
pub(super) struct SourceClock {
    /// What the source said, and when that had been heard.
    heard: Option<(i64, Instant)>,
    /// What `now()` is in the views.
    views: Option<i64>,
    /// The next moment that matters.
    due: Due,
}

/// When time next changes facts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Due {
    /// Never, without a commit.
    #[default]
    Never,
    /// Somebody has to look.
    Unknown,
    /// Then.
    At(i64),
}

impl SourceClock {
    /// The source said `at`, no later than `seen`.
    pub(super) fn set(&mut self, at: i64, seen: Instant) {
        self.set_at(at, seen, Instant::now());
    }

    fn set_at(&mut self, at: i64, seen: Instant, here: Instant) {
        let better = self.told(here).is_none_or(|known| {
            let told = after(at, seen, here);
            told >= known || known.saturating_sub(told) > SET_BACK
        });
        if better {
            self.heard = Some((at, seen));
        }
    }

    /// What the source's clock shows at least, if it has said anything.
    fn told(&self, here: Instant) -> Option<i64> {
        self.heard.map(|(at, seen)| after(at, seen, here))
    }

    /// What time it is at the source, as far as the views may know: it never goes back. The beginning of time before anything is known.
    pub(super) fn now(&self) -> i64 {
        self.now_at(Instant::now())
    }

    fn now_at(&self, here: Instant) -> i64 {
        self.told(here).max(self.views).unwrap_or(i64::MIN)
    }

    /// The views are as of `now`.
    pub(super) fn passed(&mut self, now: i64) {
        self.views = self.views.max(Some(now));
    }

    /// Everything is read again, and is as of what the source says then.
    pub(super) fn begin_again(&mut self) {
        *self = Self::default();
    }

    /// The next moment that matters, if there is one.
    pub(super) fn wait_for(&mut self, due: Option<i64>) {
        self.due = due.map_or(Due::Never, Due::At);
    }

    /// Before which moment time changes nothing, as far as it is known; the end of time if it never does.
    pub(super) fn quiet_until(&self) -> Option<i64> {
        match self.due {
            Due::Never => Some(i64::MAX),
            Due::Unknown => None,
            Due::At(due) => Some(due),
        }
    }

    /// The next moment that matters is not known: it has come as soon as the time is known.
    pub(super) fn look(&mut self) {
        self.due = Due::Unknown;
    }

    /// Returns when that moment has come; never without one. Cancel-safe.
    pub(super) async fn due(&self) {
        loop {
            match self.rest(Instant::now()) {
                Some(Duration::ZERO) => return,
                Some(rest) => tokio::time::sleep(rest.min(NAP)).await,
                None => std::future::pending().await,
            }
        }
    }

    /// How long it is until that moment; `None` if it cannot be told, or there is none.
    fn rest(&self, here: Instant) -> Option<Duration> {
        let (at, seen) = self.heard?;
        let due = match self.due {
            Due::Never => return None,
            Due::Unknown => return Some(Duration::ZERO),
            Due::At(due) => due,
        };
        let ahead = u128::try_from(i128::from(due) - i128::from(at)).unwrap_or(0);
        // The inverse of `after`, rounded up.
        let elapsed = (ahead * MILLION).div_ceil(MILLION - DRIFT);
        let rest = elapsed.saturating_sub(here.saturating_duration_since(seen).as_micros());
        Some(Duration::from_micros(u64::try_from(rest).unwrap_or(u64::MAX)))
    }
}

/// What the source's clock shows at least when it is `here`, since it showed `at` when it was `seen`.
fn after(at: i64, seen: Instant, here: Instant) -> i64 {
    let elapsed = here.saturating_duration_since(seen).as_micros();
    let passed = elapsed - (elapsed * DRIFT).div_ceil(MILLION);
    at.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn nothing_is_due_before_the_source_has_said_what_time_it_is() {
        let mut clock = SourceClock::default();
        assert_eq!(clock.now(), i64::MIN);
        clock.passed(100);
        clock.look();
        assert_eq!(clock.rest(Instant::now()), None);
        clock.wait_for(Some(50));
        assert_eq!(clock.rest(Instant::now()), None, "the stored time is a lower bound and does not run");
        assert_eq!(clock.now(), 100);
        let here = Instant::now();
        clock.set_at(40, here, here);
        assert!(clock.rest(here) > Some(Duration::ZERO), "the moment has not come for the source");
        clock.look();
        assert_eq!(clock.rest(here), Some(Duration::ZERO));
        clock.wait_for(None);
        assert_eq!(clock.rest(here), None);
    }

    #[tokio::test]
    async fn the_moment_is_waited_for() {
        let mut clock = SourceClock::default();
        clock.set(0, Instant::now());
        clock.wait_for(Some(20_000));
        clock.due().await;
        assert!(clock.now() >= 20_000, "{}", clock.now());
        clock.look();
        clock.due().await;
    }

    #[test]
    fn it_goes_on_without_the_source_and_does_not_run_ahead() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.set_at(0, start, start);
        let hour = clock.now_at(start + seconds(3600));
        assert!((3590 * SECOND..3600 * SECOND).contains(&hour), "{hour}");
        // Its clock was slewed as far as it can be, ours as far the other way: still not ahead.
        assert!(hour <= 3600 * (SECOND - 1000));
        assert!(clock.now_at(start + seconds(7200)) > hour);
    }

    #[test]
    fn after_a_reconnect_a_clock_that_is_ahead_is_followed() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.set_at(0, start, start);
        clock.passed(10 * SECOND);
        let here = start + seconds(20);
        clock.set_at(500 * SECOND, here, here);
        assert_eq!(clock.now_at(here), 500 * SECOND);
    }

    #[test]
    fn after_a_reconnect_a_clock_that_is_behind_is_waited_for() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.set_at(100 * SECOND, start, start);
        let here = start + seconds(20);
        clock.passed(clock.now_at(here));
        let views = clock.now_at(here);
        clock.wait_for(Some(views + 1));
        clock.set_at(50 * SECOND, here, here);
        assert_eq!(clock.now_at(here), views, "time does not go back");
        assert_eq!(clock.now_at(here + seconds(30)), views, "and stands still until the source is there again");
        // What is a microsecond ahead of the views is 70 s off, so nobody spins until then.
        let rest = clock.rest(here).expect("it is known");
        assert!(rest > seconds(69) && rest < seconds(71), "{rest:?}");
        assert!(clock.now_at(here + rest) > views);
        clock.begin_again();
        clock.set_at(50 * SECOND, here, here);
        assert_eq!(clock.now_at(here), 50 * SECOND, "a new history begins where the source is");
    }

    #[test]
    fn a_slow_answer_makes_nothing_worse() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.set_at(100 * SECOND, start, start);
        let here = start + seconds(1);
        let before = clock.now_at(here);
        clock.set_at(100 * SECOND + SECOND / 2, here, here);
        assert_eq!(clock.now_at(here), before);
        clock.set_at(101 * SECOND, here, here);
        assert_eq!(clock.now_at(here), 101 * SECOND, "one that says more is better");
    }

    #[test]
    fn views_that_were_moved_further_than_the_clock_do_not_keep_readings_out() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.passed(100 * SECOND);
        clock.set_at(0, start, start);
        let here = start + seconds(10);
        clock.set_at(99 * SECOND, here, here);
        assert_eq!(clock.now_at(here + seconds(5)), after(99 * SECOND, here, here + seconds(5)));
    }

    #[test]
    fn moments_at_the_ends_of_time_are_no_trouble() {
        let (mut clock, start) = (SourceClock::default(), Instant::now());
        clock.set_at(i64::MIN, start, start);
        clock.wait_for(Some(i64::MAX));
        assert!(clock.rest(start).expect("it is known") > NAP);
        clock.set_at(i64::MAX, start, start);
        assert_eq!(clock.now_at(start + seconds(1)), i64::MAX);
        clock.wait_for(Some(i64::MIN));
        assert_eq!(clock.rest(start), Some(Duration::ZERO));
    }

    proptest! {
        #[test]
        fn after_the_rest_the_moment_has_come_and_not_long_before(
            at in -SECOND..SECOND,
            due in -SECOND..1000 * SECOND,
            since in 0..2_000_000_u64,
        ) {
            let (mut clock, start) = (SourceClock::default(), Instant::now());
            clock.set_at(at, start, start);
            clock.wait_for(Some(due));
            let here = start + Duration::from_micros(since);
            let rest = clock.rest(here).expect("it is known");
            prop_assert!(clock.now_at(here + rest) >= due);
            if rest > Duration::from_micros(2) {
                prop_assert!(clock.now_at(here + rest - Duration::from_micros(2)) < due);
            }
        }

        #[test]
        fn what_the_views_are_told_never_goes_back(readings in prop::collection::vec((-5 * SECOND..5 * SECOND, 0..3000_u64), 1..20)) {
            let (mut clock, mut here) = (SourceClock::default(), Instant::now());
            let mut last = i64::MIN;
            for (at, pause) in readings {
                clock.set_at(at, here, here);
                here += Duration::from_millis(pause);
                let now = clock.now_at(here);
                prop_assert!(now >= last);
                clock.passed(now);
                last = now;
            }
        }
    }
}
