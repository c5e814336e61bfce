//! Where following starts: at the stored position or with a new history, and what each view needs for it.

use std::time::Instant;

use tracing::{error, info};

use crate::{
    crash::{self, Moment},
    data::Position,
    engine::{compare::Compared, error::EngineError, flows::Flows, ingest::Ingest},
    source::{Prepared, Role, ViewMode},
    store::SourceRecord,
    view::Guard,
};

/// What a session starts with.
pub(super) enum Start {
    /// From a position, or with a new history; refresh views may lack what is after `settled`.
    At { from: Option<Position>, settled: Option<Position>, compared: Compared, roles: Vec<Role>, flows: Flows },
    /// Not at all, and why.
    Refused(String),
}

impl Ingest {
    /// Decides between the stored position and a new history.
    pub(super) async fn start_at(&mut self, prepared: &Prepared, flows: Flows) -> Result<Start, EngineError> {
        let Some(record) = self.writer.source(&self.name).await? else {
            return self.start_over(prepared, flows, "no position is stored").await;
        };
        if prepared.stands_in_for(&record.identity) {
            let (identity, why) = self.meet(prepared, &record.identity);
            return self.start_over(&Prepared { identity, ..prepared.clone() }, flows, &why).await;
        }
        if record.identity != prepared.identity {
            return Ok(Start::Refused(format!(
                "it is not the database this state directory was made from (that was {}, this is {}). \
                 If that is meant, run `factsync reset` or pass --state with another directory",
                record.identity, prepared.identity
            )));
        }
        if self.guard == Guard::Off && self.views.iter().any(|view| view.held > 0) {
            return self.start_over(prepared, flows, "held removals are let go").await;
        }
        let Some(position) = record.position.clone() else {
            let why = self.lost.take();
            return self.start_over(prepared, flows, why.as_deref().unwrap_or("the position was lost")).await;
        };
        if let Some(lost) = self.checkpoint.lost(&self.name, &self.writer.store_id(), &position)? {
            return self.start_over(prepared, flows, &lost).await;
        }
        // A file has no log to go on with, so its views are read all or none.
        if let (Position::Digest(_), true) = (&position, self.outdated(prepared, &record)) {
            return self.start_over(prepared, flows, "the queries changed, or a fact type could not be read the last time").await;
        }
        let roles = self.roles(prepared, &record, &flows);
        self.drop_unused_states(&roles).await?;
        self.keep_changed_views_stale(prepared, &record, &roles).await?;
        let compared = if record.compared { Compared::Done(self.next_audit()) } else { Compared::Due(Instant::now()) };
        Ok(Start::At { from: Some(position), settled: record.settled, compared, roles, flows })
    }

    /// Lets go of states that no change will reach from here on. Kept, they would be taken for current by a start at which the same query
    /// can be followed change by change again, because an index or a column is back.
    async fn drop_unused_states(&mut self, roles: &[Role]) -> Result<(), EngineError> {
        for (view, role) in self.views.iter_mut().zip(roles) {
            let unused = matches!(role, Role::Refresh { .. } | Role::Off);
            // A demotion is remembered by the fingerprint of the plan that is not trusted; it has no state.
            if unused && view.fingerprint.is_some() && view.demoted.is_none() {
                self.writer.drop_state(view.id).await?;
                (view.fingerprint, view.position) = (None, None);
            }
        }
        Ok(())
    }

    /// A new history, which begins with a snapshot.
    async fn start_over(&mut self, prepared: &Prepared, mut flows: Flows, why: &str) -> Result<Start, EngineError> {
        info!(source = self.name, why, "reading every view");
        self.board.reads_all(self.index, why);
        // In this order: an old position without its witness would be trusted by the next start.
        self.writer.begin(&self.name, &fingerprint(prepared), &prepared.identity).await?;
        crash::moment(Moment::Begun);
        self.checkpoint.forget(&self.name)?;
        for view in &mut self.views {
            (view.known, view.position, view.clock) = (false, None, None);
        }
        self.clock.begin_again();
        let roles = prepared.views.iter().enumerate().map(|(view, prepared)| match (flows.get_mut(view), &prepared.mode) {
            (Some(flow), _) => {
                flow.loaded = false;
                Role::Load
            }
            (None, ViewMode::Refused(_)) => Role::Off,
            (None, ViewMode::Incremental(_) | ViewMode::Refresh(_)) => Role::Refresh { stale: false },
        });
        let roles = roles.collect();
        Ok(Start::At { from: None, settled: None, compared: Compared::Due(Instant::now()), roles, flows })
    }

    /// Whether a view that can be followed lacks something before the stored position.
    fn outdated(&self, prepared: &Prepared, record: &SourceRecord) -> bool {
        let followed = prepared.views.iter().map(|view| !matches!(view.mode, ViewMode::Refused(_)));
        let lacking = self.views.iter().zip(followed).any(|(view, followed)| followed && (view.failing || !view.known));
        lacking || record.fingerprint != fingerprint(prepared)
    }

    /// What each view needs to go on from the stored position.
    fn roles(&self, prepared: &Prepared, record: &SourceRecord, flows: &Flows) -> Vec<Role> {
        let behind = record.settled != record.position || record.fingerprint != fingerprint(prepared);
        let role = |(view, prepared): (usize, &crate::source::PreparedView)| match (flows.get(view), &prepared.mode) {
            (Some(flow), _) if flow.loaded => Role::Incremental,
            (Some(_), _) => Role::Load,
            (None, ViewMode::Refused(_)) => Role::Off,
            (None, ViewMode::Incremental(_) | ViewMode::Refresh(_)) => {
                let record = &self.views[view];
                Role::Refresh { stale: behind || record.failing || !record.known }
            }
        };
        prepared.views.iter().enumerate().map(role).collect()
    }

    /// The stored results of refresh views may be those of other queries: remembers that before the new fingerprint hides it.
    async fn keep_changed_views_stale(&mut self, prepared: &Prepared, record: &SourceRecord, roles: &[Role]) -> Result<(), EngineError> {
        let now = fingerprint(prepared);
        if record.fingerprint == now {
            return Ok(());
        }
        for (view, role) in roles.iter().enumerate() {
            if let Role::Refresh { .. } = role {
                self.writer.mark_failing(self.views[view].id).await?;
                self.views[view].failing = true;
            }
        }
        crash::moment(Moment::Marked);
        self.writer.set_fingerprint(&self.name, &now).await
    }

    /// Says how each view is kept up to date; `reasons` are those of views that could be incremental and are not.
    pub(super) fn announce(&self, prepared: &Prepared, reasons: Vec<Option<String>>) {
        for ((view, prepared), reason) in prepared.views.iter().enumerate().zip(reasons) {
            let (mode, reason) = match (&prepared.mode, reason) {
                (ViewMode::Incremental(_), None) => ("incremental", None),
                (ViewMode::Incremental(_), Some(reason)) => ("refresh", Some(reason)),
                (ViewMode::Refresh(reason), _) => ("refresh", Some(reason.clone())),
                (ViewMode::Refused(problem), _) => {
                    error!(source = self.name, fact_type = %self.views[view].fact_type, problem, "fact type cannot be followed");
                    ("refused", Some(problem.clone()))
                }
            };
            if mode == "refused" || !self.views[view].failing {
                self.board.view_failed(self.index, view, reason.clone().filter(|_| mode == "refused"));
            }
            self.board.mode(self.index, view, mode, reason);
        }
    }
}

/// Of all views together.
fn fingerprint(prepared: &Prepared) -> String {
    prepared.views.iter().map(|view| view.fingerprint.as_str()).collect::<Vec<_>>().join(" ")
}
