//! What `reconcile` prints on stdout: Oso Sync's own JSON.
//!
//! Up to [`MAX_LISTED_CHANGES`] changes in all they are listed, above that they are counted:
//!
//! ```json
//! {"type":"facts","fact_types":[{"fact_type":{…},"add":[{…}],"remove":[{…}]}]}
//! {"type":"counts","fact_types":[{"fact_type":{…},"add_count":501,"remove_count":500}]}
//! ```
//!
//! Facts are in their fully expanded form, and so is the fact type, with `null` for its variables. Every fact type of the
//! configuration has an entry, in its order; one that failed has `"error"` in place of changes, in both forms.

use std::io;

use serde::Serialize;

use crate::{
    fact::{Fact, FactType},
    reconcile::{Comparison, Outcome, Spool},
};

/// The most changes, adds and removes of all fact types together, that are listed and not only counted (Oso Sync's number).
pub const MAX_LISTED_CHANGES: u64 = 1_000;

/// How much to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The facts, unless there are too many.
    Facts,
    /// Only counts (`--summarized-output`).
    Counts,
}

/// The document; serialise it.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Report {
    /// Changes are listed.
    Facts {
        /// One for each fact type.
        fact_types: Vec<Entry<Lists>>,
    },
    /// Changes are counted.
    Counts {
        /// One for each fact type.
        fact_types: Vec<Entry<Counts>>,
    },
}

/// A fact type and what became of it.
#[derive(Debug, Serialize)]
pub struct Entry<T> {
    fact_type: FactType,
    #[serde(flatten)]
    result: EntryResult<T>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum EntryResult<T> {
    Compared(T),
    Failed { error: String },
}

/// Changes.
#[derive(Debug, Serialize)]
pub struct Lists {
    add: Vec<Fact>,
    remove: Vec<Fact>,
}

/// How many changes.
#[derive(Debug, Serialize)]
pub struct Counts {
    add_count: u64,
    remove_count: u64,
}

impl Report {
    /// The report of `outcomes`. Their spools are read when facts are listed, and can be read again.
    pub fn new(outcomes: &mut [Outcome], detail: Detail) -> io::Result<Self> {
        let changes: u64 = outcomes.iter().map(Outcome::changes).sum();
        match detail {
            Detail::Facts if changes <= MAX_LISTED_CHANGES => Ok(Self::Facts { fact_types: entries(outcomes, Lists::of)? }),
            Detail::Facts | Detail::Counts => Ok(Self::Counts { fact_types: entries(outcomes, |compared| Ok(Counts::of(compared)))? }),
        }
    }
}

fn entries<T>(outcomes: &mut [Outcome], tell: impl Fn(&mut Comparison) -> io::Result<T>) -> io::Result<Vec<Entry<T>>> {
    let entry = |outcome: &mut Outcome| match outcome {
        Outcome::Compared(comparison) => {
            Ok(Entry { fact_type: comparison.fact_type.clone(), result: EntryResult::Compared(tell(comparison)?) })
        }
        Outcome::Failed { fact_type, error } => {
            Ok(Entry { fact_type: fact_type.clone(), result: EntryResult::Failed { error: error.clone() } })
        }
    };
    outcomes.iter_mut().map(entry).collect()
}

impl Lists {
    fn of(comparison: &mut Comparison) -> io::Result<Self> {
        let Comparison { fact_type, adds, removes, .. } = comparison;
        Ok(Self { add: facts(fact_type, adds)?, remove: facts(fact_type, removes)? })
    }
}

impl Counts {
    fn of(comparison: &Comparison) -> Self {
        Self { add_count: comparison.adds.len(), remove_count: comparison.removes.len() }
    }
}

fn facts(fact_type: &FactType, spool: &mut Spool) -> io::Result<Vec<Fact>> {
    spool.rows()?.map(|row| row.map(|row| fact_type.stored_fact(&row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Row;
    use std::{collections::BTreeMap, path::Path};

    fn compared(signature: &str, adds: Vec<Row>, removes: Vec<Row>) -> Outcome {
        let spool = |rows| Spool::write(Path::new("."), rows).expect("in memory");
        Outcome::Compared(Comparison {
            fact_type: signature.parse().expect(signature),
            adds: spool(adds),
            removes: spool(removes),
            wanted: 0,
            stored: 0,
            skipped: BTreeMap::new(),
        })
    }

    fn numbered(count: usize) -> Vec<Row> {
        (0..count).map(|n| Row::from_texts([n.to_string().as_str()])).collect()
    }

    fn json(outcomes: &mut [Outcome], detail: Detail) -> String {
        serde_json::to_string(&Report::new(outcomes, detail).expect("readable spools")).expect("JSON")
    }

    #[test]
    fn few_changes_are_listed_as_oso_sync_lists_them() {
        let mut outcomes = [
            compared("has_relation(Repository:_, parent, Organization:_)", vec![Row::from_texts(["1", "2"])], vec![]),
            compared("is_public(Repository:_)", vec![], vec![]),
        ];
        let want = concat!(
            r#"{"type":"facts","fact_types":[{"fact_type":{"predicate":"has_relation","args":[{"type":"Repository","id":null},"#,
            r#"{"type":"String","id":"parent"},{"type":"Organization","id":null}]},"add":[{"predicate":"has_relation","args":["#,
            r#"{"type":"Repository","id":"1"},{"type":"String","id":"parent"},{"type":"Organization","id":"2"}]}],"remove":[]},"#,
            r#"{"fact_type":{"predicate":"is_public","args":[{"type":"Repository","id":null}]},"add":[],"remove":[]}]}"#,
        );
        assert_eq!(json(&mut outcomes, Detail::Facts), want);
        assert_eq!(json(&mut outcomes, Detail::Facts), want, "a report can be made again");
    }

    #[test]
    fn the_thousand_and_first_change_turns_lists_into_counts() {
        for (adds, removes, detail, listed) in [
            (500, 500, Detail::Facts, true),
            (501, 500, Detail::Facts, false),
            (0, 1_000, Detail::Facts, true),
            (0, 0, Detail::Counts, false),
        ] {
            let mut outcomes = [compared("f(User:_)", numbered(adds), vec![]), compared("g(User:_)", vec![], numbered(removes))];
            let report = json(&mut outcomes, detail);
            assert_eq!(report.starts_with(r#"{"type":"facts","#), listed, "{adds} and {removes}");
            assert_eq!(report.matches(r#""id":"7""#).count() > 0, listed && adds + removes > 7);
            if !listed {
                let want = format!(
                    concat!(
                        r#"{{"type":"counts","fact_types":["#,
                        r#"{{"fact_type":{{"predicate":"f","args":[{{"type":"User","id":null}}]}},"add_count":{},"remove_count":0}},"#,
                        r#"{{"fact_type":{{"predicate":"g","args":[{{"type":"User","id":null}}]}},"add_count":0,"remove_count":{}}}]}}"#,
                    ),
                    adds, removes
                );
                assert_eq!(report, want);
            }
        }
    }

    #[test]
    fn a_fact_type_that_failed_is_named_and_hides_no_other() {
        let fact_type: FactType = "f(User:_)".parse().expect("a signature");
        let cause = io::Error::from(io::ErrorKind::StorageFull);
        let error = crate::reconcile::Error::Rows { fact_type: fact_type.to_string(), source: cause };
        let mut outcomes = [Outcome::failed(&fact_type, &error), compared("g(User:_)", numbered(1), vec![])];
        let failed = concat!(
            r#"{"fact_type":{"predicate":"f","args":[{"type":"User","id":null}]},"#,
            r#""error":"could not compare the facts of type \"f(User:_)\": no storage space"}"#
        );
        for (detail, other) in [(Detail::Facts, r#""add":[{"predicate":"g""#), (Detail::Counts, r#""add_count":1"#)] {
            let report = json(&mut outcomes, detail);
            assert!(report.contains(failed) && report.contains(other), "{report}");
        }
    }
}
