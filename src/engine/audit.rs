//! Audits: source, desired facts and fact store compared at one position, while the stream goes on.
//!
//! ```text
//! idle ──due, or asked──> listing ──fact types listed──> standing ──the source chose P──> reaching ──exactly P is in──> judging ──> idle
//!                            journal of what is on its way (store/journal.rs)                │ sight
//!                                                    the loop takes no events, for PAUSE ────┘
//! ```
//!
//! **One position.** The source chooses a state that can be read, P ([`Witness`](crate::source::Witness)). From asking for it until it is
//! there nothing is applied, so that the desired facts do not pass it; PostgreSQL needs some milliseconds for that, unless a transaction is
//! open that has written something, for whose end it waits. After [`PAUSE`] the loop therefore goes on, and if it has passed P when P is
//! told at last, another one is asked for. Then the inbox stops at P, between two commits; there the desired facts are taken hold of
//! ([`Sight`](crate::store::Sight)), and the loop goes on. What the source answers in the state P is compared with these, row by row.
//! MongoDB can read old states, so there P is where the desired facts are; a file says what it is when it has been read, and is asked again
//! if that is not what was applied last.
//!
//! **Every moment.** The fact store has no states that could be named. It is listed before, and the desired facts at P are compared with
//! that but for what was on its way in between (`store/journal.rs` argues why nothing else can differ for a moment).
//!
//! **Who is not judged.** A view whose query fails; a refresh view that a commit before P has touched and that was not read again yet, or
//! was read after P; a view that time changes while it is compared. What the source says otherwise of a view is looked at once more, at
//! another P, before it is believed.
//!
//! **What follows.** A missing grant and what is stale or foreign go into the backlog, under the guard. A view whose facts are not the
//! source's is not trusted any more: it is read as a whole, and from then on refreshed. With `sync.drift: report` nothing follows.

mod judge;
mod outcome;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio::{
    sync::oneshot,
    task::{JoinError, JoinSet},
};
use tracing::{info, warn};

use crate::{
    config::DriftPolicy,
    data::{Extent, ExtentBuilder, Position},
    engine::{
        compare::{COMPARE_AGAIN, Compared},
        error::EngineError,
        ingest::{Ingest, Next, Session},
        shadow::Observed,
        writer::Writer,
    },
    error::causes,
    reconcile::SourceAudit,
    source::{SourceError, Stand},
    store::{StoreError, ViewRecord, Watching},
    view::Guard,
};

use judge::{Candidate, Case, Judged};

/// How long the stream is held up for a source to choose a state: what somebody who waits for a fact does not notice much, and several
/// times what PostgreSQL takes while it is busy.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the stream may take to get to the state that was chosen. A heartbeat carries it there at once, unless it is behind; who is
/// behind by more than this is audited when that is over, for until then the source has to keep the state.
const ARRIVAL: Duration = Duration::from_secs(10 * 60);
/// States that are asked for until one is told before it is passed. Each time the loop waits for [`PAUSE`], so only somebody who leaves
/// transactions open all the time makes it more than two or three.
const MOST_STANDS: u32 = 20;

/// How long the stream goes on between two of them: a file that was replaced is applied by then.
const REST: Duration = PAUSE;

/// Failures after which an audit is begun again: a collection was just created, a view was read anew, a server was restarted.
const MOST_TROUBLES: u32 = 5;
/// How long the stream goes on before that.
const TROUBLE_REST: Duration = Duration::from_secs(1);

/// Somebody wants an audit now.
pub(super) struct Asked {
    /// Whether what differs is repaired, whatever the configuration says.
    pub(super) repair: bool,
    /// Where the outcome goes.
    pub(super) reply: oneshot::Sender<Result<SourceAudit, String>>,
}

/// Asks that may wait for a source: one is under way at a time, and the next ones learn more from a later one.
pub(super) const ASKS: usize = 16;

/// A task that ends with whoever waits for it.
struct Running<T>(JoinSet<T>);

impl<T: Send + 'static> Running<T> {
    fn spawn(future: impl Future<Output = T> + Send + 'static) -> Self {
        let mut set = JoinSet::new();
        set.spawn(future);
        Self(set)
    }

    /// What it came to. Cancel-safe.
    async fn end(&mut self) -> Result<T, JoinError> {
        match self.0.join_next().await {
            Some(ended) => ended,
            // It was heard already, and whoever heard it has left this phase.
            None => std::future::pending().await,
        }
    }
}

/// Why an audit does not come to an end.
pub(super) enum Trouble {
    /// The process cannot go on.
    Fatal(EngineError),
    /// Now; later it may.
    Now(String),
}

impl From<EngineError> for Trouble {
    fn from(error: EngineError) -> Self {
        Self::Fatal(error)
    }
}

impl From<SourceError> for Trouble {
    fn from(error: SourceError) -> Self {
        Self::Now(causes(&error))
    }
}

/// The views with what the fact store holds of them.
pub(super) struct Listed {
    watching: Watching,
    views: Vec<(usize, Extent)>,
}

/// Where an audit is.
#[derive(Default)]
enum Phase {
    /// None is under way.
    #[default]
    Idle,
    /// The fact store is listed; entered when an audit is due or asked for.
    Listing(Running<Result<Listed, Trouble>>),
    /// The source chooses a state; entered when everything is listed. Events wait until `resume`.
    Standing { listed: Listed, choosing: Running<Result<Stand, SourceError>>, since: Instant, paused: bool },
    /// The stream goes on for a moment; entered when it was not where the source was, with what was listed, and after a failure without.
    Resting { listed: Option<Listed>, until: Instant },
    /// The stream gets to the state; entered when it is known. The task carries it there.
    Reaching { listed: Listed, stand: Stand, since: Instant, _nudge: Running<()> },
    /// Everything is compared; entered when exactly the state is in.
    Judging(Running<Result<Judged, Trouble>>),
}

/// What is under way for whom.
#[derive(Default)]
pub(super) struct Auditing {
    phase: Phase,
    /// Whether what is found is repaired.
    repair: bool,
    reply: Option<oneshot::Sender<Result<SourceAudit, String>>>,
    began: Option<Instant>,
    held_up: Duration,
    stands: u32,
    troubles: u32,
    /// The first look, whose views the second one is to confirm.
    first: Option<SourceAudit>,
}

/// What happens next in an audit.
pub(super) enum Turn {
    Listed(Result<Listed, Trouble>),
    Stood(Result<Stand, SourceError>),
    Resumed,
    Rested,
    Late,
    Judged(Result<Judged, Trouble>),
}

impl Auditing {
    /// What the next attempt at the source has to begin anew: whoever asked waits until there is an answer, or goes.
    pub(super) fn unanswered(&mut self) -> Option<Asked> {
        let Self { repair, reply, .. } = std::mem::take(self);
        reply.filter(|reply| !reply.is_closed()).map(|reply| Asked { repair, reply })
    }

    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Whether the loop may take events.
    pub(super) fn lets_through(&self) -> bool {
        !matches!(self.phase, Phase::Standing { paused: true, .. })
    }

    /// Waits for what happens next; forever while nothing is under way. Cancel-safe.
    pub(super) async fn turn(&mut self) -> Turn {
        let panicked = |error| Trouble::Fatal(EngineError::panicked(error));
        match &mut self.phase {
            Phase::Idle => std::future::pending().await,
            Phase::Listing(listing) => Turn::Listed(listing.end().await.map_err(panicked).and_then(|listed| listed)),
            Phase::Standing { choosing, since, paused, .. } => {
                let resume = *since + PAUSE;
                tokio::select! {
                    stood = choosing.end() => match stood {
                        Ok(stood) => Turn::Stood(stood),
                        Err(error) => Turn::Judged(Err(panicked(error))),
                    },
                    () = tokio::time::sleep_until(resume.into()), if *paused => Turn::Resumed,
                }
            }
            Phase::Resting { until, .. } => {
                tokio::time::sleep_until((*until).into()).await;
                Turn::Rested
            }
            Phase::Reaching { since, .. } => {
                tokio::time::sleep_until((*since + ARRIVAL).into()).await;
                Turn::Late
            }
            Phase::Judging(judging) => Turn::Judged(judging.end().await.map_err(panicked).and_then(|judged| judged)),
        }
    }
}

impl Session {
    /// Where what was reported stands, and up to where no view lacks anything.
    fn here(&self) -> Option<(Position, Option<Position>)> {
        let here = self.pending.as_ref().map(|(received, settled)| (received.clone(), Some(settled.clone())));
        here.or_else(|| Some((self.position.clone()?, self.settled.clone())))
    }

    /// Whether an audit can begin.
    pub(super) fn can_be_audited(&self) -> bool {
        self.audit.is_idle() && self.answers() && self.here().is_some()
    }
}

impl Ingest {
    /// Begins an audit: because it is time, or for somebody.
    pub(super) fn begin_audit(&mut self, session: &mut Session, asked: Option<Asked>) {
        let (repair, reply) = match asked {
            // Whoever asked has lost patience.
            Some(Asked { reply, .. }) if reply.is_closed() => return,
            Some(Asked { repair, reply }) => (repair, Some(reply)),
            None => (self.drift == DriftPolicy::Repair, None),
        };
        session.audit = Auditing { repair, reply, began: Some(Instant::now()), ..Auditing::default() };
        self.list_for_audit(session);
    }

    fn list_for_audit(&self, session: &mut Session) {
        let known = self.views.iter().enumerate().filter(|(_, view)| view.known);
        let views: Vec<(usize, ViewRecord)> = known.map(|(number, view)| (number, view.clone())).collect();
        let listing = list(self.writer.clone(), self.target.clone(), self.spool.clone(), views);
        session.audit.phase = Phase::Listing(Running::spawn(listing));
    }

    /// An audit goes on.
    pub(super) async fn on_audit(&mut self, session: &mut Session, turn: Turn) -> Result<Next, EngineError> {
        let outcome = match turn {
            Turn::Listed(Ok(listed)) => return self.listed(session, listed).await,
            Turn::Stood(Ok(stand)) => return self.stood(session, stand).await,
            Turn::Judged(Ok(judged)) => return self.judged(session, judged).await,
            Turn::Resumed => {
                if let Phase::Standing { paused, since, .. } = &mut session.audit.phase {
                    *paused = false;
                    session.audit.held_up += since.elapsed();
                }
                return Ok(Next::GoOn);
            }
            Turn::Rested => match std::mem::take(&mut session.audit.phase) {
                Phase::Resting { listed: Some(listed), .. } => return self.listed(session, listed).await,
                Phase::Resting { listed: None, .. } => {
                    self.list_for_audit(session);
                    return Ok(Next::GoOn);
                }
                Phase::Idle | Phase::Listing(_) | Phase::Standing { .. } | Phase::Reaching { .. } | Phase::Judging(_) => {
                    return Ok(Next::GoOn);
                }
            },
            Turn::Late => Err(Trouble::Now(format!("the stream did not get to the state that was chosen within {ARRIVAL:?}"))),
            Turn::Stood(Err(error)) => Err(error.into()),
            Turn::Listed(Err(trouble)) | Turn::Judged(Err(trouble)) => Err(trouble),
        };
        self.end_audit(session, outcome)
    }

    /// The audit is over, one way or the other.
    fn end_audit(&mut self, session: &mut Session, outcome: Result<SourceAudit, Trouble>) -> Result<Next, EngineError> {
        session.inbox.stop_at(None);
        if let Err(Trouble::Now(reason)) = &outcome
            && session.audit.troubles < MOST_TROUBLES
        {
            info!(source = self.name, reason, "audit is begun again");
            session.audit.stands = 0;
            session.audit.troubles += 1;
            session.audit.phase = Phase::Resting { listed: None, until: Instant::now() + TROUBLE_REST };
            return Ok(Next::GoOn);
        }
        let Auditing { reply, .. } = std::mem::take(&mut session.audit);
        let outcome = match outcome {
            Ok(audit) => Ok(audit),
            Err(Trouble::Fatal(error)) => return Err(error),
            Err(Trouble::Now(reason)) => Err(reason),
        };
        match &outcome {
            // A comparison that has come due meanwhile stays due.
            Ok(_) => {
                if let Compared::Done(next) = &mut session.compared {
                    *next = self.next_audit();
                }
            }
            Err(reason) if reply.is_none() => {
                warn!(source = self.name, reason, "audit could not be finished, will retry");
                session.compared.postpone(COMPARE_AGAIN);
            }
            Err(reason) => warn!(source = self.name, reason, "audit could not be finished"),
        }
        if let Some(reply) = reply {
            // Who asked may have lost patience.
            let _ = reply.send(outcome);
        }
        Ok(Next::GoOn)
    }

    /// Asks the source for a state, while nothing is applied.
    async fn listed(&mut self, session: &mut Session, listed: Listed) -> Result<Next, EngineError> {
        let Some((here, settled)) = session.here() else {
            return self.end_audit(session, Err(Trouble::Now("it has no position yet".to_owned())));
        };
        let Some(witness) = self.witness.clone() else {
            return self.sight(session, listed, None, (here, settled)).await;
        };
        let views = listed.views.iter().map(|(view, _)| *view).filter(|view| !self.views[*view].failing).collect();
        let choosing = Running::spawn(witness.stand(here, views));
        session.audit.stands += 1;
        session.audit.phase = Phase::Standing { listed, choosing, since: Instant::now(), paused: true };
        Ok(Next::GoOn)
    }

    /// The source has a state: goes there, unless the desired facts are beyond it.
    async fn stood(&mut self, session: &mut Session, stand: Stand) -> Result<Next, EngineError> {
        let Phase::Standing { listed, since, paused, .. } = std::mem::take(&mut session.audit.phase) else { return Ok(Next::GoOn) };
        if paused {
            session.audit.held_up += since.elapsed();
        }
        let (Some(here), applied) = (session.here(), session.position.as_ref()) else { return Ok(Next::GoOn) };
        let reached = match (&stand.position, applied) {
            (Position::Lsn(point, _), Some(Position::Lsn(applied, _))) if applied <= point => {
                session.inbox.stop_at(Some(*point));
                let (board, source, position) = (self.board.clone(), self.index, stand.position.clone());
                let nudge = Running::spawn(async move { drop(board.wait(source, &position).await) });
                session.audit.phase = Phase::Reaching { listed, stand, since: Instant::now(), _nudge: nudge };
                return Ok(Next::GoOn);
            }
            (Position::Lsn(..), _) => false,
            (Position::Time(..) | Position::Digest(_), _) => here.0 == stand.position,
        };
        if reached {
            return self.sight(session, listed, Some(stand), here).await;
        }
        if session.audit.stands >= MOST_STANDS {
            return self.end_audit(session, Err(Trouble::Now("what it reports was always ahead of the state that it chose".to_owned())));
        }
        session.audit.phase = Phase::Resting { listed: Some(listed), until: Instant::now() + REST };
        Ok(Next::GoOn)
    }

    /// Exactly the state that was chosen is in.
    pub(super) async fn reached(&mut self, session: &mut Session, settled: Position) -> Result<Next, EngineError> {
        let next = match std::mem::take(&mut session.audit.phase) {
            Phase::Reaching { listed, stand, .. } => {
                let at = stand.position.clone();
                self.sight(session, listed, Some(stand), (at, Some(settled))).await
            }
            other => {
                session.audit.phase = other;
                Ok(Next::GoOn)
            }
        };
        session.inbox.stop_at(None);
        next
    }

    /// Takes hold of the desired facts, and has everything compared.
    async fn sight(
        &mut self,
        session: &mut Session,
        listed: Listed,
        stand: Option<Stand>,
        (position, settled): (Position, Option<Position>),
    ) -> Result<Next, EngineError> {
        if session.flows.has_clock() && self.let_time_pass(session).await? == Next::StartAgain {
            return Ok(Next::StartAgain);
        }
        let time = session.flows.has_clock().then(|| (self.clock.now(), self.clock.quiet_until()));
        let Listed { watching, views } = listed;
        let of = watching.clone();
        let Some(sight) = self.writer.run(move |store| store.sight(&of)).await? else {
            return self.end_audit(session, Err(Trouble::Now("its views were read anew meanwhile".to_owned())));
        };
        let candidates = views.into_iter().map(|(number, listed)| Candidate {
            number,
            record: self.views[number].clone(),
            listed,
            unjudged: self.why_not(session, number, &position, settled.as_ref()),
            mode: if session.flows.get(number).is_some() { "incremental" } else { "refresh" },
        });
        let case = Case { watching, sight, candidates: candidates.collect(), stand, position, time, spool: self.spool.clone() };
        session.audit.phase = Phase::Judging(Running::spawn(judge::judge(case)));
        Ok(Next::GoOn)
    }

    /// Why a view's facts need not be those of its query at `position`.
    fn why_not(&self, session: &Session, number: usize, position: &Position, settled: Option<&Position>) -> Option<String> {
        let record = &self.views[number];
        let ahead = |end: Option<crate::data::Lsn>| end.is_some() && end > position.end();
        if record.failing {
            return Some("its query fails, and its facts are those of the last time it did not".to_owned());
        }
        if session.flows.get(number).is_some() {
            return ahead(record.position).then(|| "it was loaded at a later position".to_owned());
        }
        if ahead(session.cuts.get(&number).and_then(Position::end)) {
            return Some("it was read again at a later position".to_owned());
        }
        let lacks = settled.is_none_or(|settled| settled.end() < position.end());
        lacks.then(|| "it is to be read again, because of a change before this position".to_owned())
    }

    /// The numbers are in: what differs is settled, and told.
    async fn judged(&mut self, session: &mut Session, judged: Judged) -> Result<Next, EngineError> {
        let Judged { watching, found, mut audit } = judged;
        let mend: Option<Guard> = session.audit.repair.then_some(self.guard);
        let source = self.name.clone();
        let settle = move |store: &mut crate::store::Store| store.settle_drift(&source, &watching, found, mend);
        let Some((differing, changes)) = self.writer.run(settle).await? else {
            return self.end_audit(session, Err(Trouble::Now("its views were read anew meanwhile".to_owned())));
        };
        self.note(&audit.numbers, &changes);
        audit.settle(&differing);
        let wrong = audit.wrong();
        let audit = audit.finish(&self.report_of(session));
        let audit = match session.audit.first.take() {
            None if !wrong.is_empty() => {
                info!(source = self.name, views = wrong.len(), "facts are not those of their queries, looking once more");
                (session.audit.first, session.audit.stands) = (Some(audit), 0);
                self.list_for_audit(session);
                return Ok(Next::GoOn);
            }
            None => audit,
            Some(first) => outcome::confirmed(first, audit),
        };
        let repaired = session.audit.repair;
        self.tell_drift(&audit, repaired);
        let confirmed: BTreeSet<usize> = wrong.into_iter().filter(|number| outcome::is_wrong(&audit, &self.views[*number])).collect();
        let next = self.distrust(session, &confirmed, repaired).await?;
        self.end_audit(session, Ok(audit))?;
        Ok(next)
    }
}

/// Begins a journal and lists every fact type.
async fn list(writer: Writer, target: Observed, spool: std::path::PathBuf, views: Vec<(usize, ViewRecord)>) -> Result<Listed, Trouble> {
    // What is under way may not be in the outbox any more, if a snapshot emptied it.
    let nothing_under_way = writer.under_way().await;
    let ids: Vec<_> = views.iter().map(|(_, view)| view.id).collect();
    let watching = writer.run(move |store| store.watch_facts(&ids)).await?;
    drop(nothing_under_way);
    let watching = watching.ok_or_else(|| Trouble::Now("too many changes wait to be delivered".to_owned()))?;
    let mut all = Vec::with_capacity(views.len());
    for (number, view) in views {
        let mut listed = ExtentBuilder::new(&spool);
        target.list(&view.fact_type, &mut |row| listed.push(row)).await.map_err(|error| Trouble::Now(causes(&error)))?;
        let listed = tokio::task::spawn_blocking(move || listed.finish()).await.map_err(EngineError::panicked)?;
        all.push((number, listed.map_err(|error| EngineError::from(StoreError::Rows(error)))?));
    }
    Ok(Listed { watching, views: all })
}
