//! What a source reports about rows becomes a store transaction: changes, the passing of time, whole results.

use std::{error::Error, time::Instant};

use tracing::{error, warn};

use crate::{
    crash::{self, Moment},
    data::{ChangeBatch, Position},
    engine::{
        compare::Compared,
        error::EngineError,
        flows::{Flows, Task},
        inbox::Inbox,
        ingest::{ACKNOWLEDGE_EVERY, Ingest, Next, Session},
    },
    error::causes,
    source::{Reading, SourceError},
    store::{Applied, Changes, Doubt, Followed, Fresh, Loaded, Reached, ViewId},
    view::ViewError,
};

/// Loads of one view's state that end in a contradiction before the view is refreshed instead: one may be bad luck with DDL.
const MOST_RELOADS: u32 = 3;

impl Ingest {
    /// Row changes, and all that have come since, in one store transaction.
    pub(super) async fn on_changes(&mut self, session: &mut Session, first: ChangeBatch) -> Result<Next, EngineError> {
        session.pace().await;
        let now = self.clock.now();
        let inbox = std::mem::replace(&mut session.inbox, Inbox::closed());
        let task = Task { inbox, ..self.task(std::mem::take(&mut session.flows)) };
        let (task, followed) = self.writer.follow(task, first, now).await?;
        (session.flows, session.inbox) = (task.flows, task.inbox);
        // The rest of a transaction did not come, because the source was lost: nothing happened.
        let Some(followed) = followed else { return Ok(Next::GoOn) };
        session.paced(followed.changes);
        self.clock.passed(now);
        session.pending = None;
        let next = self.take_in(session, followed).await?;
        // A view that failed lacks what is in these commits: nobody may be told that they are in.
        if let (Some(settled), Next::GoOn) = (session.inbox.settled(), &next) {
            session.settled = Some(settled.clone());
            if session.answers() {
                self.board.applied(self.index, settled, self.writer.commit_no());
            }
        }
        Ok(next)
    }

    /// What a store transaction of `flows` needs, without anything behind it.
    pub(super) fn task(&self, flows: Flows) -> Task {
        Task { source: self.name.clone(), records: self.views.clone(), flows, inbox: Inbox::closed(), guard: self.guard }
    }

    /// The moment has come at which rows begin or cease to count.
    pub(super) async fn let_time_pass(&mut self, session: &mut Session) -> Result<Next, EngineError> {
        let now = self.clock.now();
        let task = self.task(std::mem::take(&mut session.flows));
        let (task, followed) = self.writer.advance_clock(task, now).await?;
        session.flows = task.flows;
        self.clock.passed(now);
        self.take_in(session, followed).await
    }

    /// Keeps everything in step with a store transaction of the flows.
    async fn take_in(&mut self, session: &mut Session, followed: Followed) -> Result<Next, EngineError> {
        let next = self.note_followed(&mut session.flows, followed.views, followed.commit_no).await?;
        if let Some(position) = followed.position {
            session.position = Some(position.clone());
            session.unacknowledged = Some(position);
            if session.acknowledged.elapsed() >= ACKNOWLEDGE_EVERY {
                self.acknowledge(session).await?;
            }
        }
        self.clock.wait_for(followed.due);
        Ok(next)
    }

    /// Keeps the views in step with a store transaction of `flows`.
    pub(super) async fn note_followed(&mut self, flows: &mut Flows, views: Vec<Applied>, commit_no: u64) -> Result<Next, EngineError> {
        let mut next = Next::GoOn;
        for applied in views {
            let change = match applied {
                Applied::Changed(change) => change,
                Applied::Failed { change, why } => {
                    self.flow_failed(flows, change.view, &why).await?;
                    next = Next::StartAgain;
                    change
                }
            };
            let view = self.views.iter().position(|view| view.id == change.view).expect("the store knows the views it was given");
            self.note(&[view], &Changes { views: vec![change], commit_no });
        }
        Ok(next)
    }

    /// A view could not be kept up to date: it is loaded again, or refreshed if that makes no sense.
    async fn flow_failed(&mut self, flows: &mut Flows, id: ViewId, why: &ViewError) -> Result<(), EngineError> {
        let view = self.views.iter().position(|view| view.id == id).expect("the store knows the views it was given");
        let reason = causes(why);
        self.board.view_failed(self.index, view, Some(reason.clone()));
        let fact_type = &self.views[view].fact_type;
        error!(source = self.name, %fact_type, reason, "fact type cannot be kept up to date change by change, reading it again");
        let hopeless = self.is_hopeless(view, why);
        if let (true, Some(flow)) = (hopeless, flows.get(view)) {
            self.demote(view, &flow.fingerprint.clone(), reason).await?;
        }
        // Only a result that is read again makes its facts current.
        self.writer.mark_failing(id).await?;
        (self.views[view].failing, self.views[view].fingerprint) = (true, self.views[view].fingerprint.take().filter(|_| hopeless));
        flows.drop_view(view);
        Ok(())
    }

    /// Whether loading again makes no sense. A query that fails may heal and a source that is away comes back, so neither counts.
    fn is_hopeless(&mut self, view: usize, why: &ViewError) -> bool {
        match why {
            ViewError::Budget(_) => true,
            ViewError::Broken(_) => {
                self.reloads[view] += 1;
                self.reloads[view] >= MOST_RELOADS
            }
            ViewError::Eval(_) | ViewError::Remote(_) | ViewError::State(_) => false,
        }
    }

    /// From now on the plan of this fingerprint is not used for the view.
    pub(super) async fn demote(&mut self, view: usize, fingerprint: &str, why: String) -> Result<(), EngineError> {
        let record = &mut self.views[view];
        warn!(source = self.name, fact_type = %record.fact_type, why, "fact type is refreshed from now on");
        self.writer.demote(record.id, fingerprint, &why).await?;
        (record.fingerprint, record.demoted) = (Some(fingerprint.to_owned()), Some(why));
        Ok(())
    }

    pub(super) async fn on_cut(
        &mut self,
        session: &mut Session,
        position: Position,
        views: Vec<(usize, Reading)>,
        snapshot: bool,
    ) -> Result<Next, EngineError> {
        crash::moment(Moment::Read);
        let numbers: Vec<usize> = views.iter().map(|(view, _)| *view).collect();
        let healed = numbers.iter().any(|view| session.flows.is_failing(*view));
        let mut next = if healed || std::mem::take(&mut session.unloaded) { Next::StartAgain } else { Next::GoOn };
        let mut fresh = Vec::with_capacity(views.len());
        for (view, reading) in views {
            let (one, loaded) = self.load(session, view, reading).await?;
            if loaded == Next::StartAgain {
                next = Next::StartAgain;
            }
            fresh.push(one);
        }
        // Views that were loaded are ahead of the others, which still wait for the commits in between.
        let loading = std::mem::take(&mut session.loading);
        let stands = session.position.clone().filter(|_| loading).unwrap_or_else(|| position.clone());
        let settled = if loading { session.settled.clone().unwrap_or_else(|| stands.clone()) } else { position.clone() };
        let cut = position.clone();
        let reached = Reached { cut: position, position: stands, settled: settled.clone() };
        // A view whose first result comes now was left out of the comparison, for nothing was known about it.
        let compare = snapshot || numbers.iter().any(|&view| !self.views[view].known);
        let uncompared = matches!(session.compared, Compared::Due(_));
        let changes = if compare || uncompared {
            self.writer.replace(&self.name, reached, fresh, self.guard).await?
        } else {
            self.writer.apply(&self.name, reached, fresh, self.guard).await?
        };
        crash::moment(Moment::Replaced);
        self.note(&numbers, &changes);
        session.cuts.extend(numbers.iter().map(|view| (*view, cut.clone())));
        for view in &numbers {
            session.untried.remove(view);
            (self.views[*view].known, self.views[*view].failing) = (true, false);
            self.board.view_failed(self.index, *view, None);
        }
        self.views = self.writer.views(&self.views).await?;
        session.pending = None;
        let stored = self.writer.source(&self.name).await?.and_then(|record| record.position);
        (session.position, session.unacknowledged, session.settled) = (stored.clone(), stored, Some(settled.clone()));
        self.acknowledge(session).await?;
        if compare {
            session.compared = Compared::Due(Instant::now());
            self.compare_if_due(session).await?;
        } else if session.answers() {
            self.board.applied(self.index, settled, changes.commit_no);
        }
        if next == Next::GoOn && session.flows.has_clock() {
            return self.let_time_pass(session).await;
        }
        Ok(next)
    }

    /// Builds the state of an incremental view from what was read.
    async fn load(&mut self, session: &mut Session, view: usize, reading: Reading) -> Result<(Fresh, Next), EngineError> {
        let record = self.views[view].clone();
        let Reading { answer, tables, now, unfit } = reading;
        let Some(flow) = session.flows.get(view) else {
            return Ok((Fresh::from((record, answer)), Next::GoOn));
        };
        if let Some(why) = unfit {
            self.demote(view, &flow.fingerprint.clone(), why).await?;
            session.flows.drop_view(view);
            return Ok((Fresh::from((self.views[view].clone(), answer)), Next::StartAgain));
        }
        // A query of constants has no tables.
        if tables.is_empty() && !flow.dataflow.tables().is_empty() {
            // It failed when it was to be loaded, and can be read now.
            return Ok((Fresh::from((record, answer)), Next::StartAgain));
        }
        let flows = std::mem::take(&mut session.flows);
        let now = now.unwrap_or_else(|| self.clock.now());
        let (flows, Loaded { fresh, doubt }) = self.writer.load(flows, view, record, tables, answer, now).await?;
        session.flows = flows;
        crash::moment(Moment::Loaded);
        let Some(doubt) = doubt else {
            session.flows.get_mut(view).expect("it has just been used").loaded = true;
            self.clock.passed(now);
            return Ok((fresh, Next::GoOn));
        };
        let fingerprint = session.flows.get(view).expect("it has just been used").fingerprint.clone();
        // A source that is away comes back, however often. What else keeps it from computing may pass, too, but not for ever.
        let patience = match &doubt {
            Doubt::Failed(ViewError::Remote(why)) if is_away(&**why) => true,
            Doubt::Failed(ViewError::Remote(_)) => {
                self.reloads[view] += 1;
                self.reloads[view] < MOST_RELOADS
            }
            Doubt::Failed(ViewError::Eval(_) | ViewError::State(_) | ViewError::Budget(_) | ViewError::Broken(_))
            | Doubt::Differs { .. } => false,
        };
        if !patience {
            self.demote(view, &fingerprint, causes(&doubt)).await?;
        }
        session.flows.drop_view(view);
        Ok((Fresh { view: self.views[view].clone(), ..fresh }, Next::StartAgain))
    }
}

/// Whether an expression was not computed because nobody was there to do it.
fn is_away(why: &(dyn Error + 'static)) -> bool {
    matches!(why.downcast_ref::<SourceError>(), Some(SourceError::Unreachable { .. }))
}
