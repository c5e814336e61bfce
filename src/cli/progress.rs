//! Progress on stderr: a bar per fact type on a terminal, plain lines otherwise.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::say;

/// How often a bar moves while nothing is counted.
const TICK: Duration = Duration::from_millis(120);

/// Everything in progress.
pub(super) struct Progress {
    bars: Option<MultiProgress>,
}

/// One fact type, or the writing at the end.
pub(super) struct Line {
    name: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Bars if stderr is a terminal.
    pub(super) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Adds a line for `name`.
    pub(super) fn line(&self, name: &str) -> Line {
        let bar = self.bars.as_ref().map(|bars| {
            let style = ProgressStyle::with_template("{spinner} {prefix}  {human_pos} {msg}").expect("the template is valid");
            let bar = bars.add(ProgressBar::new_spinner()).with_style(style).with_prefix(name.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Line { name: name.to_owned(), bar }
    }
}

impl Line {
    /// `count` of `what` so far.
    pub(super) fn at(&self, count: u64, what: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what);
            bar.set_position(count);
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
