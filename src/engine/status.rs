//! What `GET /v1/status` answers, field by field.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    config::MaxRemovals,
    fact::Fact,
    reconcile::Drift,
    store::{Hold, HoldId},
    target::{Offset, Op},
    view::Cause,
};

/// `GET /v1/status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The state of the source that is furthest from streaming.
    pub state: &'static str,
    /// One for each source, in the order of the files.
    pub sources: Vec<SourceStatus>,
    /// One for each fact type.
    pub fact_types: Vec<FactTypeStatus>,
    /// What waits to be sent.
    pub outbox: OutboxStatus,
    /// The fact store.
    pub target: TargetStatus,
    /// Changes that the fact store refused: the first of them, revocations before grants. `outbox.parked` counts them all.
    pub parked: Vec<ParkedStatus>,
    /// The oldest of the sources' last comparisons with the fact store; null until each had one.
    pub last_reconcile: Option<ReconcileStatus>,
    /// Removals that wait for a person.
    pub held: Vec<HeldStatus>,
}

/// A source in [`Status`].
#[derive(Debug, Serialize)]
pub struct SourceStatus {
    /// The name under `dbs`, or the CSV file's path.
    pub name: String,
    /// `postgres`, `mongodb` or `csv`.
    pub kind: &'static str,
    /// `connecting`, `snapshotting`, `streaming`, `standby`, `retrying` or `failed`.
    pub state: &'static str,
    /// Why it is retrying, has failed or reads everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How far it is in the desired facts.
    pub position: Option<String>,
    /// Bytes of its log that are not in the desired facts yet.
    pub lag_bytes: u64,
    /// Seconds since it was last caught up with.
    pub lag_seconds: f64,
    /// What its replication slot holds back of the server's log; only where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained: Option<RetainedStatus>,
    /// When everything was last read since the start, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
}

/// What a replication slot holds back, in [`SourceStatus`].
#[derive(Debug, Serialize)]
pub struct RetainedStatus {
    /// Bytes of the server's log.
    pub bytes: u64,
    /// Why that is too much, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The last time that everything was read, in [`SourceStatus`].
#[derive(Debug, Serialize)]
pub struct SnapshotStatus {
    /// When it began, in RFC 3339.
    pub at: String,
    /// Why.
    pub reason: String,
}

/// A fact type in [`Status`].
#[derive(Debug, Serialize)]
pub struct FactTypeStatus {
    /// The signature.
    pub fact_type: String,
    /// Its source.
    pub source: String,
    /// How its facts are kept up to date: `incremental` (every commit brings exactly the facts it changes), `refresh` (its query is run
    /// again) or `refused` (it cannot be followed, its facts stay as they are). A view that could be incremental and whose
    /// query fails is `refresh` until the query succeeds.
    pub mode: &'static str,
    /// Why it is not incremental; null where it is, and before the source has answered.
    pub reason: Option<String>,
    /// Why its facts are not current, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Desired facts.
    pub facts: u64,
    /// When facts last changed, in RFC 3339.
    pub last_change: Option<String>,
    /// Distinct rows of the last run that made no fact.
    pub skipped_rows: u64,
    /// The same by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
}

/// The outbox in [`Status`].
#[derive(Debug, Serialize)]
pub struct OutboxStatus {
    /// Changes not yet acknowledged by the fact store.
    pub facts: u64,
    /// Of these, what a comparison found or catch-up netted: it goes where commits leave room.
    pub backlog: u64,
    /// Changes that it refused.
    pub parked: u64,
    /// `live`, `backfill`, `catch-up`, or `shadow` where nothing is sent.
    pub mode: &'static str,
    /// How long the changes take, at the rate that the quota allows and the fact store takes.
    pub eta_seconds: u64,
    /// The quota, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<QuotaStatus>,
}

/// The write quota in [`OutboxStatus`].
#[derive(Debug, Serialize)]
pub struct QuotaStatus {
    /// Fact updates in any minute.
    pub updates_per_minute: u32,
    /// Of them in the last minute.
    pub used: u32,
}

/// The fact store in [`Status`].
#[derive(Debug, Serialize)]
pub struct TargetStatus {
    /// `embedded` or `oso`.
    pub kind: &'static str,
    /// Whether it answered the last time.
    pub reachable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its last consistency token.
    pub offset: Option<Offset>,
}

/// A change that the fact store refused, in [`Status`].
#[derive(Debug, Clone, Serialize)]
pub struct ParkedStatus {
    /// The fact, with its ids: without them nobody could tell which one it is.
    pub fact: Fact,
    /// `delete` if it should be gone, `insert` if it should be there.
    pub op: Op,
    /// The fact store's words, cut to a line.
    pub reason: String,
}

/// The last comparison in [`Status`].
#[derive(Debug, Serialize)]
pub struct ReconcileStatus {
    /// When, in RFC 3339.
    pub at: String,
    /// Facts that the fact store lacked.
    pub missing: u64,
    /// Facts that it held and should not have.
    pub stale: u64,
    /// What differed, by class; what a comparison after a snapshot finds is the snapshot's news and no drift.
    pub drift: Drift,
}

/// A hold in [`Status`].
#[derive(Debug, Serialize)]
pub struct HeldStatus {
    /// Its number.
    pub id: HoldId,
    /// The signature.
    pub fact_type: String,
    /// The fact type's source.
    pub source: String,
    /// How many removals wait.
    pub removals: u64,
    /// Out of how many facts they were judged, when the first of them was.
    pub facts: u64,
    /// When that was, in RFC 3339; null if an earlier release held them.
    pub since: Option<String>,
    /// Where the source stood then.
    pub position: Option<String>,
    /// Why they wait.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl From<&Hold> for HeldStatus {
    fn from(hold: &Hold) -> Self {
        let limits = hold.limits.map(|MaxRemovals { count, percent }| format!(" {{count: {count}, percent: {percent}}}"));
        // Of what was there before, the limits are not the reason.
        let limits = limits.filter(|_| hold.cause != Cause::Adopted).unwrap_or_default();
        Self {
            id: hold.id,
            fact_type: hold.signature.clone(),
            source: hold.source.clone(),
            removals: hold.removals,
            facts: hold.facts,
            since: hold.since.map(|since| timestamp(UNIX_EPOCH + Duration::from_secs(since))),
            position: hold.position.clone(),
            why: format!("{}{limits}", hold.cause),
            hint: format!(
                "Check the source. `factsync hold release {0}` lets the removals go, `factsync hold drop {0}` forgets them",
                hold.id
            ),
        }
    }
}

/// A time in RFC 3339.
pub(super) fn timestamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
