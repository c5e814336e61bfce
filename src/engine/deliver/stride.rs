//! How much goes at once and how fast the fact store takes it, both learnt from the answers.

use std::time::{Duration, Instant};

/// How much longer a batch of the backlog may take than a bare round trip: a revocation that comes just then waits for it.
const PATIENCE: Duration = Duration::from_millis(50);
/// The fewest entries of a batch of the backlog: below that the round trip is most of what a batch costs.
const LEAST: usize = 20;
/// What the first batch of the backlog has, before anything is known.
const FIRST: usize = 200;

/// How many entries of the backlog go in one batch: as many as the fact store takes within [`PATIENCE`] of a bare round trip.
///
/// A batch that took longer halves it, one of full size that took less than half of that makes it grow by a quarter.
#[derive(Debug)]
pub(super) struct Stride {
    entries: usize,
    most: usize,
    /// The shortest round trip seen.
    bare: Option<Duration>,
}

impl Stride {
    /// Of a fact store that takes `most` entries in a batch.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: FIRST.min(most), most, bare: None }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// A batch of `entries` was answered after `took`.
    pub(super) fn note(&mut self, entries: usize, took: Duration) {
        let bare = self.bare.map_or(took, |bare| bare.min(took));
        self.bare = Some(bare);
        let beyond = took.saturating_sub(bare);
        if beyond > PATIENCE {
            // It is the fault of a larger one if it was larger.
            self.entries = (entries.min(self.entries) / 2).max(LEAST).min(self.most);
        } else if beyond < PATIENCE / 2 && entries >= self.entries {
            self.entries = (self.entries + self.entries.div_ceil(4)).min(self.most);
        }
    }
}

/// What an unlimited fact store is taken for before it was measured: little for a local one, much for one far away.
const FIRST_RATE: f64 = 5_000.0;
/// The weight of the newest measurement.
const WEIGHT: f64 = 0.2;

/// How many changes the fact store takes in a second, while changes wait.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// What the quota allows.
    most: f64,
    began: Option<Instant>,
}

impl Rate {
    /// `per_minute` is what the quota allows.
    pub(super) fn new(per_minute: Option<u32>) -> Self {
        let most = per_minute.map_or(f64::INFINITY, |updates| f64::from(updates) / 60.0);
        Self { per_second: FIRST_RATE.min(most), most, began: None }
    }

    /// A batch is about to be sent, while `waiting` changes wait in all; only one that has others behind it tells what can be taken.
    pub(super) fn begin(&mut self, entries: usize, waiting: u64) {
        self.began = (waiting > entries as u64).then(Instant::now);
    }

    /// `entries` were taken since.
    pub(super) fn end(&mut self, entries: usize) {
        let Some(took) = self.began.take().map(|began| began.elapsed()) else { return };
        let measured = (entries as f64 / took.as_secs_f64().max(1e-6)).min(self.most);
        self.per_second += WEIGHT * (measured - self.per_second);
    }

    pub(super) fn per_second(&self) -> f64 {
        self.per_second
    }

    /// How many changes it takes in `time`.
    pub(super) fn within(&self, time: Duration) -> u64 {
        (self.per_second * time.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fact store with a round trip of `bare` that takes `each` for an entry; the size that a stride comes to.
    fn settles_at(bare: Duration, each: Duration) -> usize {
        let mut stride = Stride::new(1_000);
        stride.note(1, bare + each);
        for _ in 0..100 {
            let entries = stride.entries();
            stride.note(entries, bare + each * u32::try_from(entries).expect("small"));
        }
        stride.entries()
    }

    #[test]
    fn batches_of_a_backlog_are_as_large_as_the_fact_store_is_fast() {
        let (bare, micros) = (Duration::from_millis(80), Duration::from_micros);
        assert_eq!(settles_at(bare, micros(10)), 1_000);
        let slow = settles_at(bare, micros(500));
        assert!((40..=100).contains(&slow), "{slow}");
        assert_eq!(settles_at(bare, micros(50_000)), LEAST);
    }

    #[test]
    fn a_rate_is_never_above_the_quota_and_a_lone_batch_says_nothing() {
        let mut rate = Rate::new(Some(30_000));
        assert_eq!(rate.within(Duration::from_secs(10)), 5_000);
        rate.begin(1_000, 5_000);
        rate.end(1_000);
        assert!(rate.per_second() <= 500.0);
        let mut rate = Rate::new(None);
        rate.begin(1, 1);
        rate.end(1);
        assert!((rate.per_second() - FIRST_RATE).abs() < 1e-9);
        rate.begin(1_000, 5_000);
        rate.end(1_000);
        assert!(rate.per_second() > FIRST_RATE);
    }
}
