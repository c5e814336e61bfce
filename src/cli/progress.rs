//! Progress on stderr: a bar per fact type on a terminal, plain lines otherwise.
//!
//! Without a terminal a fact type is told of when it is done, and now and then while it takes long, so that whoever reads the log of a
//! nightly job sees that it works.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::say;

/// How often a bar moves while nothing is counted.
const TICK: Duration = Duration::from_millis(120);
/// How often a line without a terminal says how far it is: a few hundred lines in the longest job.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Everything in progress.
pub(super) struct Progress {
    bars: Option<MultiProgress>,
}

/// One fact type, or the writing at the end.
pub(super) struct Line {
    name: String,
    bar: Option<ProgressBar>,
    counts: Mutex<Counts>,
}

/// What is counted, in the order in which it was first heard of.
struct Counts {
    counts: Vec<(&'static str, u64)>,
    /// How long what is left will take, and how much that is.
    left: Option<(u64, Duration)>,
    said: Instant,
}

impl Progress {
    /// Bars if stderr is a terminal.
    pub(super) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Adds a line for `name`.
    pub(super) fn line(&self, name: &str) -> Line {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {prefix}  {msg}").expect("the template is valid");
            let bar = bars.add(ProgressBar::new_spinner()).with_style(style).with_prefix(name.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Line { name: name.to_owned(), bar, counts: Mutex::new(Counts { counts: Vec::new(), left: None, said: Instant::now() }) }
    }
}

impl Line {
    /// `count` of `what` so far.
    pub(super) fn at(&self, count: u64, what: &'static str) {
        self.note(|counts| counts.set(count, what));
    }

    /// `count` of `what` so far; `left` are still to come, which will take `time`.
    pub(super) fn at_with(&self, count: u64, what: &'static str, left: u64, time: Duration) {
        self.note(|counts| {
            counts.set(count, what);
            counts.left = (left > 0).then_some((left, time));
        });
    }

    fn note(&self, change: impl FnOnce(&mut Counts)) {
        // A count that panicked is no reason to count no more.
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut counts);
        match &self.bar {
            Some(bar) => bar.set_message(counts.tell()),
            None if counts.due(Instant::now()) => say(&format!("{}: {}", self.name, counts.tell())),
            None => {}
        }
    }

    /// What came of it.
    pub(super) fn done(&self, outcome: &str) {
        match &self.bar {
            Some(bar) => {
                let style = ProgressStyle::with_template("  {prefix}  {msg}").expect("the template is valid");
                bar.set_style(style);
                bar.finish_with_message(outcome.to_owned());
            }
            None => say(&format!("{}: {outcome}", self.name)),
        }
    }
}

impl Counts {
    fn set(&mut self, count: u64, what: &'static str) {
        match self.counts.iter_mut().find(|(known, _)| *known == what) {
            Some((_, known)) => *known = count,
            None => self.counts.push((what, count)),
        }
    }

    fn tell(&self) -> String {
        let mut told: Vec<String> = self.counts.iter().map(|(what, count)| format!("{} {what}", HumanCount(*count))).collect();
        told.extend(self.left.map(|(left, time)| format!("{} left, about {:#}", HumanCount(left), HumanDuration(time))));
        told.join(", ")
    }

    /// Whether it is time for a line; the next one is due [`SAY_EVERY`] after that.
    fn due(&mut self, now: Instant) -> bool {
        let due = now.duration_since(self.said) >= SAY_EVERY;
        if due {
            self.said = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_counted_is_told_and_a_line_is_due_every_ten_seconds() {
        let start = Instant::now();
        let mut counts = Counts { counts: Vec::new(), left: None, said: start };
        counts.set(1_000, "rows read");
        counts.set(7, "facts listed");
        counts.set(12_345, "rows read");
        assert_eq!(counts.tell(), "12,345 rows read, 7 facts listed");
        counts.left = Some((59_000, Duration::from_secs(118)));
        assert_eq!(counts.tell(), "12,345 rows read, 7 facts listed, 59,000 left, about 2m");
        for (seconds, want) in [(0, false), (9, false), (10, true), (11, false), (19, false), (25, true), (34, false)] {
            assert_eq!(counts.due(start + Duration::from_secs(seconds)), want, "after {seconds} s");
        }
    }
}
