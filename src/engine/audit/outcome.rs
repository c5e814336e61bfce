//! What follows from an audit: counters, the log, and no more trust in a view that is wrong.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use crate::{
    engine::{
        audit::judge::Report,
        error::EngineError,
        ingest::{Ingest, Next, Session},
    },
    reconcile::{Drift, SourceAudit, TypeAudit},
    store::ViewRecord,
    telemetry,
};

/// The first look with what the second one confirms: what was found between desired facts and fact store may be repaired by then, and a
/// view counts as wrong only if it was so both times.
pub(super) fn confirmed(first: SourceAudit, second: SourceAudit) -> SourceAudit {
    let before = |audit: &TypeAudit| first.fact_types.iter().find(|before| before.fact_type == audit.fact_type).map(|before| before.drift);
    let confirm = |audit: TypeAudit| {
        let Drift { missing_grant, stale_access, foreign_fact, view_error } = before(&audit).unwrap_or_default();
        let larger = |then: u64, now: u64| then.max(now);
        let drift = Drift {
            missing_grant: larger(missing_grant, audit.drift.missing_grant),
            stale_access: larger(stale_access, audit.drift.stale_access),
            foreign_fact: larger(foreign_fact, audit.drift.foreign_fact),
            view_error: if view_error == 0 { 0 } else { audit.drift.view_error },
        };
        TypeAudit { drift, ..audit }.judged()
    };
    let fact_types: Vec<TypeAudit> = second.fact_types.into_iter().map(confirm).collect();
    SourceAudit { verdict: SourceAudit::verdict_of(&fact_types), fact_types, ..second }
}

/// Whether the facts of a view are not those of its query.
pub(super) fn is_wrong(audit: &SourceAudit, view: &ViewRecord) -> bool {
    let signature = view.fact_type.to_string();
    audit.fact_types.iter().any(|audit| audit.fact_type == signature && audit.drift.view_error > 0)
}

impl Ingest {
    /// What the loop knows of the audit under way.
    pub(super) fn report_of(&self, session: &Session) -> Report {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Report {
            source: self.name.clone(),
            kind: self.kind,
            identity: session.identity.clone(),
            took_ms: session.audit.began.as_ref().map(Instant::elapsed).map_or(0, millis),
            held_up_ms: millis(session.audit.held_up),
        }
    }

    /// Counts what differs, and says so.
    pub(super) fn tell_drift(&self, audit: &SourceAudit, repaired: bool) {
        for TypeAudit { fact_type, drift, .. } in &audit.fact_types {
            let Drift { missing_grant, stale_access, foreign_fact, view_error } = *drift;
            for (class, facts) in drift.classes() {
                metrics::counter!(telemetry::DRIFT, "class" => class, "fact_type" => fact_type.clone()).increment(facts);
            }
            let source = &self.name;
            if stale_access + view_error > 0 {
                error!(source, fact_type, missing_grant, stale_access, foreign_fact, view_error, repaired, "drift found");
            } else if missing_grant + foreign_fact > 0 {
                warn!(source, fact_type, missing_grant, stale_access, foreign_fact, view_error, repaired, "drift found");
            }
        }
        let drift = audit.drift();
        let (missing, stale) = (drift.missing_grant, drift.stale_access + drift.foreign_fact);
        let (position, took_ms, held_up_ms) = (&audit.position, audit.took_ms, audit.held_up_ms);
        let unjudged = audit.fact_types.iter().filter(|audit| audit.unjudged.is_some()).count();
        let view_errors = drift.view_error;
        info!(source = self.name, position, missing, stale, view_errors, unjudged, took_ms, held_up_ms, "fact store compared");
        self.board.audited(self.index, drift);
    }

    /// Views whose facts are not those of their queries are read as a whole, and refreshed from then on.
    pub(super) async fn distrust(&mut self, session: &mut Session, views: &BTreeSet<usize>, repair: bool) -> Result<Next, EngineError> {
        for &view in views {
            let fact_type = self.views[view].fact_type.clone();
            if !repair {
                error!(source = self.name, %fact_type, "facts are not those of the query: a bug, or an assumption that does not hold");
                continue;
            }
            error!(source = self.name, %fact_type, "facts are not those of the query, reading it again and refreshing it from now on");
            let fingerprint = session.flows.get(view).map(|flow| flow.fingerprint.clone());
            if let Some(fingerprint) = fingerprint {
                self.demote(view, &fingerprint, "an audit found facts that are not those of the query".to_owned()).await?;
            }
            self.writer.mark_failing(self.views[view].id).await?;
            self.views[view].failing = true;
            session.flows.drop_view(view);
        }
        Ok(if repair && !views.is_empty() { Next::StartAgain } else { Next::GoOn })
    }
}
