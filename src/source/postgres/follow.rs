//! A PostgreSQL database that is followed: from nothing to the stream.
//!
//! Why nothing falls between snapshot and stream. The slot's creation yields a snapshot and a consistent point C
//! ([`slot`]). Commits whose record starts before C are in the snapshot. All others are decoded by the slot, because the
//! publication exists before the slot does and START_REPLICATION begins at C. A view's first result is of C, and so are the tables of an
//! incremental view. Its row changes at or after C are delivered; for a refresh view a commit at or after C that touches one of its tables
//! makes it dirty and it is read again. A commit is on one side of C only, so none is lost and none is applied twice.
//!
//! A view that is loaded while others resume from P < C is read in the same kind of snapshot, from a temporary slot. The stream starts
//! at P for the sake of the others; the engine has the view skip what starts before C.
//!
//! Why nothing is lost over a restart from P. P was reported when every commit that starts before P was received and in the results
//! ([`tail`](super::tail)), and made durable with them. Only durable positions are acknowledged, and of these only what is before
//! their last commit, so the slot still has everything from that commit on, and says so: its confirmed position is not beyond it.
//! The stream begins with that commit, which proves that the log still is the one that P is a position of ([`mark`](super::mark)). A slot
//! that is missing, lost or beyond, a log that ends before P or branched off before P, and a stream that begins otherwise mean
//! that everything is read again; a view's fingerprint that differs means that for the one view.
//!
//! Between the survey of the catalogues and the snapshot there may be DDL. So after views were loaded the survey is repeated, and a view
//! whose fingerprint differs then is not begun.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time;
use tracing::info;

use crate::{
    config::{PostgresConfig, View},
    crash::{self, Moment},
    data::{Lsn, Position},
    source::{
        self, Evaluate, Event, Follow, Link, Reading, Role, SourceError, SourceState, Start, Witness,
        postgres::{
            budget::Budget,
            evaluate::Evaluator,
            fault,
            images::Images,
            mark::{Log, Mark, Resume, lsn, switch_point},
            prepare::{self, Prepared, Survey},
            pulse::Pulse,
            read::{Load, Reader},
            refresh::Refresh,
            session::{Purpose, Server},
            slot::{self, Anchor, Lifetime, SlotState, Streaming},
            tail::{Plan, Reanalyze, Tail, stopped},
            witness::PostgresWitness,
        },
    },
};

/// How often a standby looks whether the slot is free. A takeover takes half of that longer, and the server answers from memory.
const STANDBY_POLL: Duration = Duration::from_millis(250);

/// Follows one database.
pub struct Follower {
    name: String,
    server: Result<Server, String>,
    slot: String,
    views: Arc<[View<String>]>,
    spool: PathBuf,
    survey: Option<(Survey, Log)>,
    max_wal: Option<u64>,
}

/// What a start makes of the views.
#[derive(Debug, Default)]
struct Parts {
    /// What is stored belongs to the position.
    resumed: Vec<usize>,
    /// Read first, with their tables.
    loaded: Vec<usize>,
    /// Read again whenever something changes.
    refreshed: Vec<usize>,
    /// Of those the ones that lack changes before the position.
    stale: BTreeSet<usize>,
}

impl Parts {
    fn incremental(&self) -> BTreeSet<usize> {
        self.resumed.iter().chain(&self.loaded).copied().collect()
    }
}

/// What a snapshot brought.
struct Snapshot {
    readings: Vec<(usize, Reading)>,
    failures: Vec<(usize, SourceError)>,
}

impl Follower {
    /// Talks to nobody yet.
    pub fn new(name: &str, config: &PostgresConfig, spool: PathBuf) -> Self {
        let server = Server::new(name, config).map_err(|error| match error {
            SourceError::Unsupported { problem, .. } => problem,
            other => other.to_string(),
        });
        Self {
            name: name.to_owned(),
            server,
            slot: config.slot.clone(),
            views: config.views.clone().into(),
            spool,
            survey: None,
            max_wal: None,
        }
    }

    /// The same with a limit to the bytes of the server's log that its slot may hold back.
    pub fn with_max_wal(self, max_wal: Option<u64>) -> Self {
        Self { max_wal, ..self }
    }

    /// Analyses the queries, makes the publication right and says what stored positions depend on. To be called before each
    /// [`Follow::follow`], which does it itself otherwise. If the identity differs from that stored with a position, the position must not
    /// be used; if a view's fingerprint does, what is stored of the view.
    pub async fn prepare(&mut self) -> Result<Prepared, SourceError> {
        let server = self.server()?;
        let survey = Survey::take(&server, &self.slot, &self.views, true).await?;
        let mut replication = server.replicate(&self.slot, survey.analysis.server_version, 0).await?;
        let system = replication.identify_system().await.map_err(|error| fault::replication(&self.name, "identify the server", error))?;
        let log = Log { timeline: system.timeline, end: Lsn(system.xlogpos.as_u64()) };
        let prepared = Prepared { views: survey.views.clone(), system_identifier: system.system_id, timeline: system.timeline };
        self.survey = Some((survey, log));
        Ok(prepared)
    }

    fn server(&self) -> Result<Server, SourceError> {
        self.server.clone().map_err(|problem| SourceError::Unsupported { name: self.name.clone(), problem })
    }

    async fn run(&mut self, start: Start, link: &mut Link) -> Result<(), SourceError> {
        let mut stop = link.stop.clone();
        let server = self.server()?;
        let state = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Ok(()),
            state = self.own_slot(&server, link) => state?,
        };
        // From here on the slot is nobody else's, and what it holds back is our doing.
        let budget = Budget { server: server.clone(), slot: self.slot.clone(), limit: self.max_wal };
        let events = link.events.clone();
        let problem = tokio::select! {
            ended = self.follow_slot(&server, state, start, link) => return ended,
            problem = budget.exceeded(&events) => problem,
        };
        tracing::error!(source = self.name, slot = self.slot, problem, "letting the slot go, before the server's disk is full");
        budget.let_go().await?;
        Err(SourceError::PositionLost { name: self.name.clone(), problem })
    }

    /// Connects and waits for the slot.
    async fn own_slot(&mut self, server: &Server, link: &Link) -> Result<SlotState, SourceError> {
        // The end of the channel shows with the next event.
        let _ = send(link, Event::State(SourceState::Connecting)).await;
        let (state, waited) = self.free_slot(server, link).await?;
        if waited {
            self.survey = None;
            return Err(self.changed(Vec::new(), "another factsync followed the source until now, and they may have changed meanwhile"));
        }
        if self.survey.is_none() {
            self.prepare().await?;
        }
        Ok(state)
    }

    async fn follow_slot(&mut self, server: &Server, state: SlotState, start: Start, link: &mut Link) -> Result<(), SourceError> {
        let mut stop = link.stop.clone();
        let opened = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Ok(()),
            opened = self.open(server, state, start, link) => opened?,
        };
        match opened {
            Some(tail) => tail.run(link).await,
            None => Ok(()),
        }
    }

    /// Everything up to the stream; `None` if the receiver is gone.
    async fn open(&mut self, server: &Server, state: SlotState, start: Start, link: &Link) -> Result<Option<Box<Tail>>, SourceError> {
        let Some((survey, log)) = self.survey.take() else { return Ok(None) };
        for view in 0..self.views.len() {
            let Some(problem) = survey.refusal(view).map(str::to_owned) else { continue };
            if !send(link, Event::ViewFailed { view, problem: self.view_error(view, problem) }).await {
                return Ok(None);
            }
        }
        let parts = self.parts(&survey, &start)?;
        let mut plan = plan(&survey, &parts, &start);
        let begun = match start.from {
            Some(from) => self.resume(server, (&survey, log), state, from, &parts, &mut plan, link).await?,
            None => self.begin(server, (&survey, log), state, &parts, &mut plan, link).await?,
        };
        let Some(streaming) = begun else { return Ok(None) };
        let version = survey.analysis.server_version;
        let pulse = Pulse::new(server.clone(), survey.looked_at(&self.slot)).await?;
        let refresh = Refresh::new(server.clone(), self.slot.clone(), version, self.reader(server));
        // What has to begin with the mark streams when it has.
        if streaming.resume.is_proof() && !send(link, Event::State(SourceState::Streaming)).await {
            return Ok(None);
        }
        let reanalyze = self.reanalyze(server, parts.incremental());
        Ok(Some(Box::new(Tail::new(server.clone(), &self.slot, plan, streaming, refresh, pulse, reanalyze))))
    }

    /// What the roles come down to. A role that a view cannot have any more, since it was given, is a changed view.
    fn parts(&self, survey: &Survey, start: &Start) -> Result<Parts, SourceError> {
        let mut parts = Parts::default();
        let mut lost = Vec::new();
        for view in 0..self.views.len() {
            if survey.refusal(view).is_some() {
                continue;
            }
            match start.roles.get(view).copied().unwrap_or(Role::Off) {
                Role::Incremental | Role::Load if survey.plan(view).is_none() => lost.push(view),
                Role::Incremental if start.from.is_none() => lost.push(view),
                Role::Incremental => parts.resumed.push(view),
                Role::Load => parts.loaded.push(view),
                Role::Refresh { stale } => {
                    parts.refreshed.push(view);
                    if stale && start.from.is_some() {
                        parts.stale.insert(view);
                    }
                }
                Role::Off => {}
            }
        }
        if lost.is_empty() { Ok(parts) } else { Err(self.changed(lost, "they cannot be followed change by change any more")) }
    }

    /// Waits until nobody else uses the slot, as the standby. Tells whether it had to wait.
    async fn free_slot(&self, server: &Server, link: &Link) -> Result<(SlotState, bool), SourceError> {
        let session = server.connect(Purpose::Write).await?;
        let mut standby = false;
        loop {
            match slot::state(&session.client, &self.slot).await.map_err(|error| fault::sql(&self.name, "look at the slot", error))? {
                SlotState::Active => {}
                SlotState::Foreign(problem) => return Err(SourceError::Unsupported { name: self.name.clone(), problem }),
                state @ (SlotState::Missing | SlotState::Lost(_) | SlotState::Free(_)) => return Ok((state, standby)),
            }
            if !standby {
                standby = true;
                send(link, Event::State(SourceState::Standby)).await;
            }
            time::sleep(STANDBY_POLL).await;
        }
    }

    /// The slot as it is; views that are loaded as of a point of their own.
    #[expect(clippy::too_many_arguments, reason = "each is another part of the start, used here only")]
    async fn resume(
        &self,
        server: &Server,
        (survey, log): (&Survey, Log),
        state: SlotState,
        from: Position,
        parts: &Parts,
        plan: &mut Plan,
        link: &Link,
    ) -> Result<Option<Streaming>, SourceError> {
        let version = survey.analysis.server_version;
        let (from, resume) = self.usable(server, version, log, state, from).await?;
        if !parts.loaded.is_empty() {
            if !send(link, Event::State(SourceState::Snapshotting)).await {
                return Ok(None);
            }
            let anchor = Anchor::create(server.clone(), self.slot.clone(), version, Lifetime::Temporary).await?;
            let point = anchor.point;
            let snapshot = self.read(server, survey, &anchor, &parts.loaded, &parts.loaded).await?;
            drop(anchor);
            plan.images = images(survey, parts, Some(point));
            if !report(link, point, snapshot, plan, false).await {
                return Ok(None);
            }
        }
        let client = server.replicate(&self.slot, version, resume.start(from).0).await?;
        Ok(Some(Streaming { client: slot::start(server, client).await?, from, resume, log }))
    }

    /// The position and how to go on from it, if the log is the one they are of and the slot still has everything from there on.
    async fn usable(
        &self,
        server: &Server,
        version: u32,
        log: Log,
        state: SlotState,
        from: Position,
    ) -> Result<(Lsn, Resume), SourceError> {
        let lost = |problem| Err(SourceError::PositionLost { name: self.name.clone(), problem });
        let Position::Lsn(from, token) = from else { return lost(format!("\"{from}\" is no position of PostgreSQL")) };
        let mark = Mark::of(&token);
        if let Some(problem) = self.fork(server, version, log, from, mark).await? {
            return lost(problem);
        }
        if log.end < from {
            return lost(format!("its log ends at {}, before {from}: it was put back to an older state", log.end));
        }
        match state {
            SlotState::Free(confirmed) => match Resume::of(confirmed, from, mark) {
                Some(resume) => Ok((from, resume)),
                None => lost(format!("slot \"{}\" was advanced to {confirmed}, beyond {from}", self.slot)),
            },
            SlotState::Lost(problem) => lost(problem),
            SlotState::Missing => lost(format!("slot \"{}\" does not exist", self.slot)),
            SlotState::Active | SlotState::Foreign(_) => lost(format!("slot \"{}\" is in use", self.slot)),
        }
    }

    /// Why a position of another timeline is not one of the server's, if so.
    async fn fork(&self, server: &Server, version: u32, log: Log, from: Lsn, mark: Option<Mark>) -> Result<Option<String>, SourceError> {
        let Some(mark) = mark.filter(|mark| mark.timeline != log.timeline) else { return Ok(None) };
        let (then, now) = (mark.timeline, log.timeline);
        // The first timeline has no history.
        if now < then {
            return Ok(Some(format!("it is on timeline {now}, and {from} is of timeline {then}: an older primary is back")));
        }
        let mut client = server.replicate(&self.slot, version, 0).await?;
        let history = client.timeline_history(now).await;
        let history = history.map_err(|error| fault::replication(&self.name, "read the history of its timeline", error))?;
        match switch_point(&history.content, then) {
            Some(end) if from <= end => {
                info!(source = self.name, then, now, %end, "the server was promoted, and has everything up to the position");
                Ok(None)
            }
            Some(end) => Ok(Some(format!("it was promoted: its timeline {now} left timeline {then} at {end}, before {from}"))),
            None => Ok(Some(format!("its timeline {now} does not come from timeline {then}, of which {from} is a position"))),
        }
    }

    /// A new slot, and every view as of its consistent point.
    async fn begin(
        &self,
        server: &Server,
        (survey, log): (&Survey, Log),
        state: SlotState,
        parts: &Parts,
        plan: &mut Plan,
        link: &Link,
    ) -> Result<Option<Streaming>, SourceError> {
        if !send(link, Event::State(SourceState::Snapshotting)).await {
            return Ok(None);
        }
        if state != SlotState::Missing {
            let session = server.connect(Purpose::Write).await?;
            slot::drop_slot(&session.client, &self.slot).await.map_err(|error| fault::sql(&self.name, "drop its old slot", error))?;
        }
        let version = survey.analysis.server_version;
        let anchor = Anchor::create(server.clone(), self.slot.clone(), version, Lifetime::Permanent).await?;
        crash::moment(Moment::Slotted);
        let mut followed: Vec<usize> = parts.loaded.iter().chain(&parts.refreshed).copied().collect();
        followed.sort_unstable();
        let snapshot = self.read(server, survey, &anchor, &followed, &parts.loaded).await?;
        let point = anchor.point;
        if !report(link, point, snapshot, plan, true).await {
            return Ok(None);
        }
        Ok(Some(Streaming { client: anchor.stream(server).await?, from: point, resume: Resume::Confirmed(None), log }))
    }

    /// Reads `views` in the anchor's snapshot, `loaded` with their tables.
    async fn read(
        &self,
        server: &Server,
        survey: &Survey,
        anchor: &Anchor,
        views: &[usize],
        loaded: &[usize],
    ) -> Result<Snapshot, SourceError> {
        let load = |view: &usize| {
            let tables = prepare::table_queries(&survey.analysis, survey.plan(*view)?);
            Some((*view, Load { tables, clock: survey.has_clock(*view) }))
        };
        let loads: BTreeMap<usize, Load> = loaded.iter().filter_map(load).collect();
        let mut snapshot = Snapshot { readings: Vec::new(), failures: Vec::new() };
        for (view, outcome) in self.reader(server).read(&anchor.snapshot, views, &loads, &|_, _| ()).await? {
            match outcome {
                Ok(reading) => snapshot.readings.push((view, reading)),
                Err(problem) => snapshot.failures.push((view, problem)),
            }
        }
        if !loaded.is_empty() {
            let all: BTreeSet<usize> = loaded.iter().copied().collect();
            let before = survey.essence(&all);
            let after = Survey::take(server, &self.slot, &self.views, false).await?.essence(&all);
            let changed: Vec<usize> = loaded.iter().copied().filter(|view| before.get(*view) != after.get(*view)).collect();
            if !changed.is_empty() {
                return Err(self.changed(changed, "their tables, functions or publication changed while they were read"));
            }
        }
        Ok(snapshot)
    }

    fn reader(&self, server: &Server) -> Reader {
        Reader::new(server.clone(), &self.views, &self.spool)
    }

    fn view_error(&self, view: usize, problem: String) -> SourceError {
        SourceError::View { name: self.name.clone(), fact_type: self.views[view].fact_type.to_string(), problem }
    }

    fn changed(&self, views: Vec<usize>, problem: &str) -> SourceError {
        SourceError::ViewsChanged { name: self.name.clone(), views, problem: problem.to_owned() }
    }

    fn reanalyze(&self, server: &Server, incremental: BTreeSet<usize>) -> Reanalyze {
        let (server, slot, views) = (server.clone(), self.slot.clone(), self.views.clone());
        Arc::new(move |wanted| {
            let (server, slot, views) = (server.clone(), slot.clone(), views.clone());
            let incremental = incremental.clone();
            async move { Survey::essence_of(&server, &slot, &views, wanted, &incremental).await }.boxed()
        })
    }
}

impl Follow for Follower {
    fn prepare(&mut self) -> BoxFuture<'_, Result<source::Prepared, SourceError>> {
        async move {
            let database = self.server()?.database().to_owned();
            Ok(Follower::prepare(self).await?.describe(&database))
        }
        .boxed()
    }

    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>> {
        self.run(start, link).boxed()
    }

    fn evaluator(&self) -> Option<Arc<dyn Evaluate>> {
        self.server.clone().ok().map(|server| Arc::new(Evaluator::new(server)) as Arc<dyn Evaluate>)
    }

    fn witness(&self) -> Option<Arc<dyn Witness>> {
        let (server, (survey, _)) = (self.server.clone().ok()?, self.survey.as_ref()?);
        let reader = self.reader(&server);
        let clocks = (0..self.views.len()).filter(|view| survey.has_clock(*view)).collect();
        let version = survey.analysis.server_version;
        Some(Arc::new(PostgresWitness { server, slot: self.slot.clone(), version, reader, clocks }))
    }
}

/// `false` if the receiver is gone.
async fn send(link: &Link, event: Event) -> bool {
    link.events.send(event).await.is_ok()
}

/// Reports what was read at `point`; `false` if the receiver is gone.
async fn report(link: &Link, point: Lsn, snapshot: Snapshot, plan: &mut Plan, new: bool) -> bool {
    for (view, problem) in snapshot.failures {
        plan.failed.insert(view);
        if !send(link, Event::ViewFailed { view, problem }).await {
            return false;
        }
    }
    send(link, Event::Cut { position: Position::from(point), views: snapshot.readings, snapshot: new }).await
}

/// What the loop needs to know.
fn plan(survey: &Survey, parts: &Parts, start: &Start) -> Plan {
    Plan {
        views: survey.touched(&parts.refreshed),
        images: images(survey, parts, None),
        clock: parts.refreshed.iter().copied().filter(|view| survey.has_clock(*view)).collect(),
        tells_time: parts.incremental().into_iter().any(|view| survey.has_clock(view)),
        stale: parts.stale.clone(),
        settled: lsn(&start.settled),
        failed: BTreeSet::new(),
        essence: survey.essence(&parts.incremental()),
        look: survey.look.clone(),
        named: survey.analysis.named.clone(),
        refuses: (0..survey.views.len()).any(|view| survey.refusal(view).is_some()),
    }
}

/// What is delivered; views that are loaded at `point` skip what is before it.
fn images(survey: &Survey, parts: &Parts, point: Option<Lsn>) -> Images {
    let loaded = point.into_iter().flat_map(|point| parts.loaded.iter().map(move |view| (*view, point)));
    Images::new(survey.kept(&parts.incremental()), loaded.collect())
}
