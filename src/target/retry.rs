//! When to try again.
//!
//! The schedule is pure: it is told what went wrong and says how long to wait. The waits double from 100 ms up to a cap and are
//! stretched by up to as much again at random, so that clients that failed together do not come back together. backon makes
//! them; it is seeded here because, built without `std`, it would draw the same numbers in every process. What the server
//! says in `Retry-After` is a lower bound.
//!
//! [`apply_with_retry`] repeats a batch with the same `X-Request-ID`. That is safe however the attempt before ended: facts
//! are a set, and nothing else is sent in between.

use std::{num::NonZeroU32, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::warn;
use uuid::Uuid;

use crate::{
    error::{Disposition, causes},
    target::{Batch, FactStore, Offset, TargetError},
};

/// The first wait, before it is stretched: what a restarting server or a lost connection needs at the least.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait, before it is stretched to at most twice that: an outage must not delay what follows it by much.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// The longest `Retry-After` that is obeyed. The quota's window is a minute; a server that asks for hours is not to stop
/// us for hours, since trying costs it one refused request.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

/// The waits between attempts at one thing, without end.
#[derive(Debug)]
pub struct Schedule {
    waits: <ExponentialBuilder as BackoffBuilder>::Backoff,
}

impl Schedule {
    /// A schedule at its start. Its random numbers are those of `id`, a batch's for instance.
    pub fn new(id: Uuid) -> Self {
        let waits = ExponentialBuilder::new()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(id.as_u64_pair().1)
            .build();
        Self { waits }
    }

    /// How long to wait after `error` before the next attempt.
    pub fn wait_after(&mut self, error: &TargetError) -> Duration {
        let wait = self.waits.next().unwrap_or(LONGEST_WAIT);
        match error {
            TargetError::Busy { retry_after: Some(asked), .. } => wait.max((*asked).min(LONGEST_RETRY_AFTER)),
            TargetError::Busy { retry_after: None, .. }
            | TargetError::Unreachable { .. }
            | TargetError::Key { .. }
            | TargetError::TooLarge { .. }
            | TargetError::Refused { .. }
            | TargetError::Garbage { .. }
            | TargetError::Setup { .. }
            | TargetError::Embedded { .. }
            | TargetError::Receiver(_) => wait,
        }
    }
}

/// How often to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts(pub NonZeroU32);

impl Attempts {
    /// No second one.
    pub const ONCE: Self = Self(NonZeroU32::MIN);
}

/// Twelve: the eleven waits between them come to more than a minute, in which a used-up quota is whole again.
impl Default for Attempts {
    fn default() -> Self {
        Self(NonZeroU32::new(12).expect("twelve is not zero"))
    }
}

/// Applies `batch` when the quota allows it, repeating what may succeed when repeated, at most `attempts` times in all; then it is the
/// last error.
pub async fn apply_with_retry(store: &dyn FactStore, batch: &Batch, attempts: Attempts) -> Result<Offset, TargetError> {
    let mut pause = Pause::new(batch.request_id, attempts);
    loop {
        store.quota().spend(batch.changes.len()).await;
        match store.apply(batch).await {
            Ok(offset) => return Ok(offset),
            Err(error) => pause.after(error).await?,
        }
    }
}

/// Asks whether `store` answers and takes the key, repeating what may succeed when repeated, at most `attempts` times in all.
pub async fn probe_with_retry(store: &dyn FactStore, attempts: Attempts) -> Result<(), TargetError> {
    let mut pause = Pause::new(Uuid::new_v4(), attempts);
    loop {
        match store.probe().await {
            Ok(()) => return Ok(()),
            Err(error) => pause.after(error).await?,
        }
    }
}

/// The pauses between a limited number of attempts.
pub(crate) struct Pause {
    id: Uuid,
    schedule: Schedule,
    left: u32,
}

impl Pause {
    /// Before the first attempt at what `id` names in the log.
    pub(crate) fn new(id: Uuid, attempts: Attempts) -> Self {
        Self { id, schedule: Schedule::new(id), left: attempts.0.get() }
    }

    /// Waits after a failed attempt, or gives the error back if there is no point in another one.
    pub(crate) async fn after(&mut self, error: TargetError) -> Result<(), TargetError> {
        self.left -= 1;
        match error.disposition() {
            Disposition::Retry if self.left > 0 => {}
            Disposition::Retry | Disposition::Operator | Disposition::Bug => return Err(error),
        }
        let wait = self.schedule.wait_after(&error);
        let wait_ms = wait.as_millis();
        warn!(request_id = %self.id, wait_ms, attempts_left = self.left, error = causes(&error), "fact store failed, will retry");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::Row, fact::FactType, target::BatchLimits};
    use futures_util::future::BoxFuture;
    use proptest::prelude::*;
    use std::{io, sync::Mutex};
    use tokio::time::Instant;

    fn busy(retry_after: Option<u64>) -> TargetError {
        TargetError::Busy { status: 429, message: "slow down".into(), retry_after: retry_after.map(Duration::from_secs) }
    }

    fn refused() -> TargetError {
        TargetError::Refused { status: 400, message: "no such type".into() }
    }

    /// Gives the scripted answers, last first, and notes when it was asked for what.
    struct Scripted {
        answers: Mutex<Vec<Result<Offset, TargetError>>>,
        calls: Mutex<Vec<(Instant, Uuid)>>,
    }

    impl Scripted {
        fn new(answers: impl IntoIterator<Item = Result<Offset, TargetError>>) -> Self {
            let mut answers: Vec<_> = answers.into_iter().collect();
            answers.reverse();
            Self { answers: Mutex::new(answers), calls: Mutex::default() }
        }
    }

    impl FactStore for Scripted {
        fn limits(&self) -> BatchLimits {
            BatchLimits { entries: 1, bytes: 1 }
        }

        fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<Offset, TargetError>> {
            self.calls.lock().expect("one thread").push((Instant::now(), batch.request_id));
            let answer = self.answers.lock().expect("one thread").pop().expect("a scripted answer");
            Box::pin(std::future::ready(answer))
        }

        fn list<'a>(
            &'a self,
            _: &'a FactType,
            _: &'a mut (dyn FnMut(Row) -> io::Result<()> + Send),
        ) -> BoxFuture<'a, Result<(), TargetError>> {
            unreachable!("nothing is listed here")
        }

        fn probe(&self) -> BoxFuture<'_, Result<(), TargetError>> {
            unreachable!("nothing is probed here")
        }
    }

    fn batch() -> Batch {
        Batch { request_id: Uuid::new_v4(), changes: vec![] }
    }

    proptest! {
        #[test]
        fn waits_double_up_to_a_cap_and_are_stretched_at_most_twice(id: u128) {
            let mut schedule = Schedule::new(Uuid::from_u128(id));
            let mut base = FIRST_WAIT;
            for _ in 0..40 {
                let wait = schedule.wait_after(&busy(None));
                // backon computes in f32.
                prop_assert!(wait >= base.mul_f64(0.999) && wait <= base.mul_f64(2.001), "{:?} for {:?}", wait, base);
                base = (base * 2).min(LONGEST_WAIT);
            }
        }

        #[test]
        fn retry_after_is_a_lower_bound_with_an_end(id: u128, asked in 0..1_000_u64) {
            let id = Uuid::from_u128(id);
            let (free, bound) = (Schedule::new(id).wait_after(&busy(None)), Schedule::new(id).wait_after(&busy(Some(asked))));
            prop_assert_eq!(bound, free.max(Duration::from_secs(asked).min(LONGEST_RETRY_AFTER)));
        }
    }

    #[test]
    fn two_schedules_do_not_wait_alike() {
        let waits = |id| Schedule::new(Uuid::from_u128(id)).wait_after(&busy(None));
        assert_ne!(waits(1), waits(2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_usual_attempts_outlast_a_used_up_quota() {
        let attempts = Attempts::default();
        let store = Scripted::new((0..attempts.0.get()).map(|_| Err(busy(None))));
        let started = Instant::now();
        let error = apply_with_retry(&store, &batch(), attempts).await.expect_err("all attempts fail");
        assert!(matches!(error, TargetError::Busy { status: 429, .. }));
        assert_eq!(store.calls.lock().expect("one thread").len(), 12);
        assert!(started.elapsed() > Duration::from_secs(60), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_repetition_has_the_same_id_and_waits_as_long_as_it_was_told() {
        let batch = batch();
        let store = Scripted::new([Err(busy(Some(7))), Err(busy(None)), Ok(Offset("42".into()))]);
        let offset = apply_with_retry(&store, &batch, Attempts::default()).await.expect("the third attempt");
        assert_eq!(offset, Offset("42".into()));
        let calls = store.calls.lock().expect("one thread");
        assert!(calls.iter().all(|(_, id)| *id == batch.request_id));
        assert!(calls[1].0 - calls[0].0 >= Duration::from_secs(7));
        assert!(calls[2].0 - calls[1].0 >= FIRST_WAIT && calls[2].0 - calls[1].0 < Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_person_must_mend_is_not_repeated() {
        let store = Scripted::new([Err(refused())]);
        let started = Instant::now();
        let error = apply_with_retry(&store, &batch(), Attempts::default()).await.expect_err("refused");
        assert!(matches!(error, TargetError::Refused { status: 400, .. }));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
