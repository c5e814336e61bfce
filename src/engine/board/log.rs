//! What the board knows of the source's log: what is kept of it for us, and why it had to be left.

use std::time::SystemTime;

use crate::{
    engine::{
        board::{Board, timestamp},
        status::{RetainedStatus, SnapshotStatus},
    },
    source::WalRisk,
    telemetry,
};

/// Of one source.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// What its slot holds back.
    kept: Option<(u64, WalRisk)>,
    /// When everything was last read, and why.
    read: Option<(SystemTime, String)>,
}

impl Log {
    /// Why everything is being read, or was.
    pub(super) fn why(&self) -> Option<String> {
        self.read.as_ref().map(|(_, why)| why.clone())
    }

    pub(super) fn snapshot(&self) -> Option<SnapshotStatus> {
        self.read.as_ref().map(|(at, why)| SnapshotStatus { at: timestamp(*at), reason: why.clone() })
    }

    pub(super) fn retained(&self) -> Option<RetainedStatus> {
        let problem = |risk: WalRisk| risk.problem().map(str::to_owned);
        self.kept.map(|(bytes, risk)| RetainedStatus { bytes, warning: problem(risk) })
    }

    pub(super) fn record_metrics(&self, source: &str) {
        let Some((bytes, risk)) = self.kept else { return };
        metrics::gauge!(telemetry::RETAINED_WAL, "source" => source.to_owned()).set(bytes as f64);
        metrics::gauge!(telemetry::WAL_RISK, "source" => source.to_owned()).set(f64::from(risk as u8));
    }
}

impl Board {
    pub(in crate::engine) fn wal_kept(&self, source: usize, bytes: u64, risk: WalRisk) {
        self.lines().sources[source].log.kept = Some((bytes, risk));
    }

    /// The position is of no use any more.
    pub(in crate::engine) fn position_lost(&self, source: usize) {
        let name = self.lines().sources[source].name.clone();
        metrics::counter!(telemetry::POSITIONS_LOST, "source" => name).increment(1);
    }

    /// Everything is read, because of `why`.
    pub(in crate::engine) fn reads_all(&self, source: usize, why: &str) {
        self.lines().sources[source].log.read = Some((SystemTime::now(), why.to_owned()));
    }
}
