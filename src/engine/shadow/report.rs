//! What `--shadow` prints on stdout: a line of JSON for each finding.
//!
//! ```json
//! {"type":"comparison","source":"app_db","fact_type":{…},"stored":2,"missing":1,"stale":0,"samples":{"missing":[{…}],"stale":[]}}
//! {"type":"commit","commit":7,"position":"0/1A2B3C8","add":[{…}],"remove":[],"agrees":false,"missing":[{…}],"stale":[],"waited_ms":5003}
//! {"type":"summary","commits":1,"agreed":0,"missing":1,"stale":0,"unjudged":0,"late_ms_p50":null,"late_ms_max":null}
//! ```
//!
//! Facts and fact types are as in the report of `reconcile`. A line lists at most [`MAX_LISTED_CHANGES`] facts; in place of a list that
//! does not fit there is its length (`add_count` and so on), that of what changed before that of what differs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    engine::error::EngineError,
    fact::{Fact, FactType},
    reconcile::{Comparison, MAX_LISTED_CHANGES},
    target::Op,
};

/// Facts in a comparison's samples: enough to see what they have in common.
const SAMPLES: usize = 10;
/// Lines that may wait for a slow reader; one of the longest takes some 200 KiB.
const LINES: usize = 16;

/// One line.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Line<'a> {
    Comparison(ComparisonLine<'a>),
    Commit(CommitLine),
    Summary(SummaryLine),
}

#[derive(Debug, Serialize)]
pub(super) struct ComparisonLine<'a> {
    source: &'a str,
    fact_type: &'a FactType,
    stored: u64,
    missing: u64,
    stale: u64,
    samples: Samples,
}

#[derive(Debug, Serialize)]
struct Samples {
    missing: Vec<Fact>,
    stale: Vec<Fact>,
}

impl<'a> ComparisonLine<'a> {
    pub(super) fn new(source: &'a str, comparison: &'a mut Comparison) -> io::Result<Self> {
        let Comparison { fact_type, adds, removes, stored, .. } = comparison;
        let fact_type: &FactType = fact_type;
        let (missing, stale) = (adds.len(), removes.len());
        let fact = |row: io::Result<_>| row.map(|row| fact_type.stored_fact(&row));
        let samples = Samples {
            missing: adds.rows()?.take(SAMPLES).map(fact).collect::<io::Result<_>>()?,
            stale: removes.rows()?.take(SAMPLES).map(fact).collect::<io::Result<_>>()?,
        };
        Ok(Self { source, fact_type, stored: *stored, missing, stale, samples })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct CommitLine {
    commit: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(flatten)]
    changes: Changes,
    /// Null for one that is too large to be judged fact by fact: the comparison that follows it judges.
    agrees: Option<bool>,
    #[serde(flatten)]
    differences: Option<Differences>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Changes {
    Listed { add: Vec<Fact>, remove: Vec<Fact> },
    Counted { add_count: u64, remove_count: u64 },
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Differences {
    Listed { missing: Vec<Fact>, stale: Vec<Fact> },
    Counted { missing_count: u64, stale_count: u64 },
}

impl CommitLine {
    /// A commit that was judged fact by fact.
    pub(super) fn judged(
        commit: u64,
        position: Option<String>,
        changes: Vec<(Op, Fact)>,
        amiss: Vec<(Op, Fact)>,
        waited: Duration,
    ) -> Self {
        let agrees = amiss.is_empty();
        let (all, different) = (changes.len() as u64, amiss.len() as u64);
        let ([add, remove], [missing, stale]) = (split(changes), split(amiss));
        let changes = if all + different <= MAX_LISTED_CHANGES {
            Changes::Listed { add, remove }
        } else {
            Changes::Counted { add_count: add.len() as u64, remove_count: remove.len() as u64 }
        };
        let differences = if different <= MAX_LISTED_CHANGES {
            Differences::Listed { missing, stale }
        } else {
            Differences::Counted { missing_count: missing.len() as u64, stale_count: stale.len() as u64 }
        };
        Self { commit, position, changes, agrees: Some(agrees), differences: Some(differences), waited_ms: Some(millis(waited)) }
    }

    /// A commit of which only the size is known.
    pub(super) fn counted(commit: u64, position: Option<String>, add_count: u64, remove_count: u64) -> Self {
        let changes = Changes::Counted { add_count, remove_count };
        Self { commit, position, changes, agrees: None, differences: None, waited_ms: None }
    }
}

/// Inserts and deletes.
fn split(changes: Vec<(Op, Fact)>) -> [Vec<Fact>; 2] {
    let (inserts, deletes): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(op, _)| *op == Op::Insert);
    [inserts, deletes].map(|changes| changes.into_iter().map(|(_, fact)| fact).collect())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Serialize)]
pub(super) struct SummaryLine {
    commits: u64,
    agreed: u64,
    missing: u64,
    stale: u64,
    unjudged: u64,
    late_ms_p50: Option<u64>,
    late_ms_max: Option<u64>,
}

/// What was found in all.
#[derive(Debug, Default)]
pub(super) struct Totals {
    commits: u64,
    missing: u64,
    stale: u64,
    unjudged: u64,
    /// By milliseconds, how many commits agreed so late: at most as many numbers as the grace has milliseconds, and a little.
    late: BTreeMap<u64, u64>,
}

impl Totals {
    pub(super) fn judged<'a>(&mut self, amiss: impl Iterator<Item = &'a Op>, waited: Duration) {
        self.commits += 1;
        let (missing, stale) = amiss.fold((0, 0), |(missing, stale), op| match op {
            Op::Insert => (missing + 1, stale),
            Op::Delete => (missing, stale + 1),
        });
        (self.missing, self.stale) = (self.missing + missing, self.stale + stale);
        if missing + stale == 0 {
            *self.late.entry(millis(waited)).or_default() += 1;
        }
    }

    /// Commits that were not judged fact by fact.
    pub(super) fn unjudged(&mut self, commits: u64) {
        (self.commits, self.unjudged) = (self.commits + commits, self.unjudged + commits);
    }

    pub(super) fn summary(&self) -> SummaryLine {
        let agreed = self.late.values().sum();
        let mut passed = 0;
        let half = self.late.iter().find(|(_, commits)| {
            passed += **commits;
            passed * 2 >= agreed
        });
        SummaryLine {
            commits: self.commits,
            agreed,
            missing: self.missing,
            stale: self.stale,
            unjudged: self.unjudged,
            late_ms_p50: half.map(|(ms, _)| *ms),
            late_ms_max: self.late.keys().next_back().copied(),
        }
    }
}

/// Where lines go. A reader that does not keep up holds up whoever writes.
#[derive(Clone)]
pub(super) struct Output(mpsc::Sender<String>);

impl Output {
    /// Writes to `to` until all handles are gone, in a task of its own.
    pub(super) fn new(mut to: Box<dyn Write + Send>, tasks: &mut JoinSet<Result<(), EngineError>>) -> Self {
        let (output, mut lines) = mpsc::channel::<String>(LINES);
        tasks.spawn_blocking(move || {
            while let Some(line) = lines.blocking_recv() {
                to.write_all(line.as_bytes()).and_then(|()| to.flush()).map_err(EngineError::Report)?;
            }
            Ok(())
        });
        Self(output)
    }

    /// Writes a line. If that fails, the task that writes says so.
    pub(super) async fn line(&self, line: &Line<'_>) {
        let mut text = serde_json::to_string(line).expect("facts and counts are JSON");
        text.push('\n');
        let _ = self.0.send(text).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Row;

    fn facts(op: Op, count: usize) -> Vec<(Op, Fact)> {
        let fact_type: FactType = "f(User:_)".parse().expect("a signature");
        (0..count).map(|n| (op, fact_type.stored_fact(&Row::from_texts([n.to_string().as_str()])))).collect()
    }

    fn json(line: CommitLine) -> String {
        serde_json::to_string(&Line::Commit(line)).expect("JSON")
    }

    #[test]
    fn a_commit_says_what_it_changes_and_what_differs() {
        let line = CommitLine::judged(7, Some("0/7".to_owned()), facts(Op::Insert, 1), facts(Op::Insert, 1), Duration::from_millis(5_003));
        let fact = r#"{"predicate":"f","args":[{"type":"User","id":"0"}]}"#;
        let want = format!(
            concat!(
                r#"{{"type":"commit","commit":7,"position":"0/7","add":[{fact}],"remove":[],"#,
                r#""agrees":false,"missing":[{fact}],"stale":[],"waited_ms":5003}}"#
            ),
            fact = fact
        );
        assert_eq!(json(line), want);
        let want = r#"{"type":"commit","commit":8,"add_count":60000,"remove_count":2,"agrees":null}"#;
        assert_eq!(json(CommitLine::counted(8, None, 60_000, 2)), want);
    }

    #[test]
    fn a_line_lists_a_thousand_facts_at_most_and_rather_what_differs() {
        for (changes, amiss, listed, differences_listed) in [
            (1_000, 0, true, true),
            (500, 500, true, true),
            (999, 2, false, true),
            (1_500, 1_000, false, true),
            (1_500, 1_001, false, false),
        ] {
            let line = json(CommitLine::judged(1, None, facts(Op::Delete, changes), facts(Op::Delete, amiss), Duration::ZERO));
            assert_eq!(line.contains(r#""remove":["#), listed, "{changes} {amiss}");
            assert_eq!(line.contains(&format!(r#""remove_count":{changes},"#)), !listed, "{changes} {amiss}");
            assert_eq!(line.contains(r#""stale":["#), differences_listed, "{changes} {amiss}");
            assert!(line.matches("predicate").count() as u64 <= MAX_LISTED_CHANGES);
        }
    }

    #[test]
    fn half_of_the_commits_that_agreed_were_no_later_than_the_median() {
        let mut totals = Totals::default();
        for ms in [1, 2, 3, 400] {
            totals.judged([].iter(), Duration::from_millis(ms));
        }
        totals.judged([Op::Insert, Op::Delete, Op::Insert].iter(), Duration::from_secs(5));
        totals.unjudged(2);
        let want = concat!(
            r#"{"type":"summary","commits":7,"agreed":4,"missing":2,"stale":1,"unjudged":2,"#,
            r#""late_ms_p50":2,"late_ms_max":400}"#
        );
        assert_eq!(serde_json::to_string(&Line::Summary(totals.summary())).expect("JSON"), want);
    }
}
