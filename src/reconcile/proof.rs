//! What an audit found: the JSON of `reconcile --live` and of `prove`.
//!
//! ```json
//! {"type":"audit","factsync":"0.1.0","sources":[…],"failed":[{"source":"other","error":"…"}],"drift":{…},"verdict":"equal"}
//! ```
//!
//! and of each source
//!
//! ```json
//! {"source":"app_db","kind":"postgres","identity":"database \"app\" of cluster 7301…","server_version":"18.1","timeline":"1",
//!  "position":"0/1A2B3C8","at":"2026-11-22T00:00:00Z","took_ms":73,"held_up_ms":4,
//!  "fact_types":[{"fact_type":"has_role(User:_, String:_, Organization:_)","mode":"incremental","rows":3,
//!    "source":{"facts":3,"sha256":"…"},"desired":{"facts":3,"sha256":"…"},"stored":{"facts":3,"sha256":"…"},"listed":3,
//!    "held":0,"on_their_way":0,"drift":{"missing_grant":0,"stale_access":0,"foreign_fact":0,"view_error":0},
//!    "unjudged":null,"verdict":"equal"}],
//!  "verdict":"equal"}
//! ```
//!
//! There is no cell value in it, and no id of a fact.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::reconcile::digest::FactSet;

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Source, desired facts and fact store say the same.
    Equal,
    /// Something could not be compared; what could be is equal.
    Unjudged,
    /// They differ.
    Drift,
}

/// Facts in which source, desired facts and fact store differ, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// Desired, and the fact store lacks it.
    pub missing_grant: u64,
    /// In the fact store, and not desired: access that should be gone.
    pub stale_access: u64,
    /// In the fact store, not desired, and never ours since an earlier comparison of the same process.
    pub foreign_fact: u64,
    /// Desired, and the source does not say so, or the other way round.
    pub view_error: u64,
}

impl Drift {
    /// The classes by name, as metrics and `/v1/status` have them.
    pub fn classes(self) -> [(&'static str, u64); 4] {
        let Self { missing_grant, stale_access, foreign_fact, view_error } = self;
        [("missing_grant", missing_grant), ("stale_access", stale_access), ("foreign_fact", foreign_fact), ("view_error", view_error)]
    }

    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

impl std::ops::Add for Drift {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            missing_grant: self.missing_grant + other.missing_grant,
            stale_access: self.stale_access + other.stale_access,
            foreign_fact: self.foreign_fact + other.foreign_fact,
            view_error: self.view_error + other.view_error,
        }
    }
}

/// One fact type.
#[derive(Debug, Clone, Serialize)]
pub struct TypeAudit {
    /// The signature.
    pub fact_type: String,
    /// How it is kept up to date; `unfollowed` where nobody keeps it up to date.
    pub mode: &'static str,
    /// Distinct rows of the query.
    pub rows: Option<u64>,
    /// The facts that they make.
    pub source: Option<FactSet>,
    /// The facts that are desired, without those that are held.
    pub desired: Option<FactSet>,
    /// The facts that are stored, without those that are held; those on their way as they are desired.
    pub stored: Option<FactSet>,
    /// Facts that the fact store listed.
    pub listed: u64,
    /// Facts that stay until a person has looked at them.
    pub held: u64,
    /// Facts that differ and were on their way.
    pub on_their_way: u64,
    /// Facts that differ.
    pub drift: Drift,
    /// Why it was not compared with its source, if it was not.
    pub unjudged: Option<String>,
    /// What came out.
    pub verdict: Verdict,
}

impl TypeAudit {
    /// The same with the verdict that follows from the rest.
    #[must_use]
    pub fn judged(self) -> Self {
        let verdict = match (self.drift.is_none(), &self.unjudged) {
            (false, _) => Verdict::Drift,
            (true, Some(_)) => Verdict::Unjudged,
            (true, None) => Verdict::Equal,
        };
        Self { verdict, ..self }
    }
}

/// One source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceAudit {
    /// Its name.
    pub source: String,
    /// `postgres`, `mongodb` or `csv`.
    pub kind: &'static str,
    /// Which database or file it is.
    pub identity: String,
    /// What else identifies the state.
    #[serde(flatten)]
    pub about: BTreeMap<&'static str, String>,
    /// The state that was compared.
    pub position: String,
    /// When, in RFC 3339.
    pub at: String,
    /// How long all of it took.
    pub took_ms: u64,
    /// How long the stream was held up by it.
    pub held_up_ms: u64,
    /// One for each fact type.
    pub fact_types: Vec<TypeAudit>,
    /// The worst of the fact types'.
    pub verdict: Verdict,
}

impl SourceAudit {
    /// The worst verdict.
    pub fn verdict_of(fact_types: &[TypeAudit]) -> Verdict {
        fact_types.iter().map(|audit| audit.verdict).max().unwrap_or(Verdict::Equal)
    }

    /// All drift.
    pub fn drift(&self) -> Drift {
        self.fact_types.iter().fold(Drift::default(), |sum, audit| sum + audit.drift)
    }
}

/// All sources.
#[derive(Debug, Serialize)]
pub struct Audit {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Our version.
    factsync: &'static str,
    /// Those that were audited.
    pub sources: Vec<SourceAudit>,
    /// The others.
    pub failed: Vec<FailedAudit>,
    /// All drift.
    pub drift: Drift,
    /// The worst; `unjudged` if a source could not be audited.
    pub verdict: Verdict,
}

/// A source that could not be audited.
#[derive(Debug, Serialize)]
pub struct FailedAudit {
    /// Its name.
    pub source: String,
    /// Why.
    pub error: String,
}

impl Audit {
    /// Of each source's outcome.
    pub fn new(outcomes: impl IntoIterator<Item = (String, Result<SourceAudit, String>)>) -> Self {
        let (mut sources, mut failed) = (Vec::new(), Vec::new());
        for (source, outcome) in outcomes {
            match outcome {
                Ok(audit) => sources.push(audit),
                Err(error) => failed.push(FailedAudit { source, error }),
            }
        }
        let worst = if failed.is_empty() { Verdict::Equal } else { Verdict::Unjudged };
        let verdict = sources.iter().map(|source| source.verdict).fold(worst, Verdict::max);
        let drift = sources.iter().fold(Drift::default(), |sum, source| sum + source.drift());
        Self { kind: "audit", factsync: env!("CARGO_PKG_VERSION"), sources, failed, drift, verdict }
    }
}
