//! A PostgreSQL database that is followed: from nothing to the stream.
//!
//! Why nothing falls between snapshot and stream. The slot's creation yields a snapshot and a consistent point C
//! ([`slot`]). Commits whose record starts before C are in the snapshot. All others are decoded by the slot, because the
//! publication exists before the slot does and START_REPLICATION begins at C. A view's first result is of C; a commit at or
//! after C that touches one of its tables makes it dirty and it is read again. A commit is on one side of C only, so none is lost; and
//! since results replace each other as a whole, seeing one twice would change nothing.
//!
//! Why nothing is lost over a restart from P. P was reported when every commit that starts before P was received and in the results
//! ([`tail`](super::tail)), and made durable with them. Only durable positions are acknowledged, so the slot still has
//! everything from P on, and says so: its confirmed position is not beyond P. Commits between that position and P are skipped by
//! the server. A slot that is missing, lost or beyond P, a publication that was changed, and a fingerprint that differs all mean
//! the same: read everything again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time;

use crate::{
    config::{PostgresConfig, View},
    data::Position,
    source::{
        self, Event, Follow, Link, PreparedView, SourceError, SourceState, Start, ViewMode,
        postgres::{
            analyze::{self, Analysis},
            fault, publication,
            pulse::Pulse,
            read::Reader,
            refresh::Refresh,
            session::{Purpose, Server},
            slot::{self, Anchor, Lifetime, SlotState},
            tail::{Plan, Reanalyze, Streaming, Tail, stopped},
        },
    },
};

/// How often a standby looks whether the slot is free. A failover takes at least that long, and the server answers from memory.
const STANDBY_POLL: Duration = Duration::from_secs(2);

/// Why a view is not incremental.
pub(crate) const REFRESH_REASON: &str = "this release runs every query again when one of its tables changes";
/// The same for a view that also depends on the time.
pub(crate) const CLOCK_REASON: &str =
    "it depends on the time, so its query runs again every few seconds, and when one of its tables changes";

/// What is known before following begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Hash of everything the stored results depend on: queries, tables, functions, publication. A stored position is
    /// worthless under another fingerprint.
    pub fingerprint: String,
    /// The cluster's identity.
    pub system_identifier: String,
    /// Its timeline, which a failover changes.
    pub timeline: u32,
    /// For each view why it cannot be followed, if so.
    pub refused: Vec<Option<String>>,
}

/// Follows one database.
pub struct Follower {
    name: String,
    server: Result<Server, String>,
    slot: String,
    views: Arc<[View<String>]>,
    spool: PathBuf,
    prepared: Option<(Prepared, Analysis)>,
}

impl Follower {
    /// Talks to nobody yet.
    pub fn new(name: &str, config: &PostgresConfig, spool: PathBuf) -> Self {
        let server = Server::new(name, config).map_err(|error| match error {
            SourceError::Unsupported { problem, .. } => problem,
            other => other.to_string(),
        });
        Self { name: name.to_owned(), server, slot: config.slot.clone(), views: config.views.clone().into(), spool, prepared: None }
    }

    /// Analyses the queries, makes the publication right and says what stored positions depend on. To be called before each
    /// [`Follow::follow`], which does it itself otherwise; if the fingerprint or the identity differs from those stored with a
    /// position, the position must not be used.
    pub async fn prepare(&mut self) -> Result<Prepared, SourceError> {
        let server = self.server()?;
        let (analysis, fingerprint) = analyze(&server, &self.slot, &self.views).await?;
        let mut replication = server.replicate(&self.slot, analysis.server_version, 0).await?;
        let system = replication.identify_system().await.map_err(|error| fault::replication(&self.name, "identify the server", error))?;
        let prepared = Prepared {
            fingerprint,
            system_identifier: system.system_id,
            timeline: system.timeline,
            refused: analysis.views.iter().map(|view| view.as_ref().err().cloned()).collect(),
        };
        self.prepared = Some((prepared.clone(), analysis));
        Ok(prepared)
    }

    fn server(&self) -> Result<Server, SourceError> {
        self.server.clone().map_err(|problem| SourceError::Unsupported { name: self.name.clone(), problem })
    }

    /// What the engine asks of every source.
    fn describe(&self, prepared: &Prepared) -> source::Prepared {
        let database = self.server.as_ref().map_or("", Server::database);
        let clock = |view: usize| {
            let (_, analysis) = self.prepared.as_ref()?;
            analysis.views[view].as_ref().ok().map(|view| view.clock)
        };
        let mode = |(view, refused): (usize, &Option<String>)| match refused {
            Some(problem) => ViewMode::Refused(problem.clone()),
            None if clock(view) == Some(true) => ViewMode::Refresh(CLOCK_REASON.to_owned()),
            None => ViewMode::Refresh(REFRESH_REASON.to_owned()),
        };
        let view = |view| PreparedView { fingerprint: prepared.fingerprint.clone(), mode: mode(view) };
        source::Prepared {
            // Not the timeline: after a failover it is still the same database.
            identity: format!("database \"{database}\" of cluster {}", prepared.system_identifier),
            views: prepared.refused.iter().enumerate().map(view).collect(),
        }
    }

    async fn run(&mut self, from: Option<Position>, link: &mut Link) -> Result<(), SourceError> {
        let mut stop = link.stop.clone();
        let opened = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Ok(()),
            opened = self.open(from, link) => opened?,
        };
        match opened {
            Some(tail) => tail.run(link).await,
            None => Ok(()),
        }
    }

    /// Everything up to the stream; `None` if the receiver is gone.
    async fn open(&mut self, from: Option<Position>, link: &Link) -> Result<Option<Box<Tail>>, SourceError> {
        let server = self.server()?;
        if !send(link, Event::State(SourceState::Connecting)).await {
            return Ok(None);
        }
        if self.prepared.is_none() {
            self.prepare().await?;
        }
        let Some((prepared, analysis)) = self.prepared.take() else { return Ok(None) };
        let reader = Reader::new(server.clone(), &self.views, &self.spool);
        let mut plan = plan(&analysis, prepared.fingerprint);
        for (view, problem) in prepared.refused.into_iter().enumerate() {
            let Some(problem) = problem else { continue };
            if !send(link, Event::ViewFailed { view, problem: self.view_error(view, problem) }).await {
                return Ok(None);
            }
        }
        let state = self.free_slot(&server, link).await?;
        let streaming = match from {
            Some(from) => self.resume(&server, &analysis, state, from).await?,
            None => match self.begin(&server, &analysis, state, &reader, &mut plan, link).await? {
                Some(begun) => begun,
                None => return Ok(None),
            },
        };
        let pulse = Pulse::new(server.clone(), watched(&analysis)).await?;
        let refresh = Refresh::new(server.clone(), self.slot.clone(), analysis.server_version, reader);
        if !send(link, Event::State(SourceState::Streaming)).await {
            return Ok(None);
        }
        let reanalyze = self.reanalyze(&server);
        Ok(Some(Box::new(Tail::new(server, &self.slot, plan, streaming, refresh, pulse, reanalyze))))
    }

    /// Waits until nobody else uses the slot, as the standby.
    async fn free_slot(&self, server: &Server, link: &Link) -> Result<SlotState, SourceError> {
        let session = server.connect(Purpose::Write).await?;
        let mut standby = false;
        loop {
            match slot::state(&session.client, &self.slot).await.map_err(|error| fault::sql(&self.name, "look at the slot", error))? {
                SlotState::Active => {}
                SlotState::Foreign(problem) => return Err(SourceError::Unsupported { name: self.name.clone(), problem }),
                state @ (SlotState::Missing | SlotState::Lost(_) | SlotState::Free(_)) => return Ok(state),
            }
            if !standby {
                standby = true;
                send(link, Event::State(SourceState::Standby)).await;
            }
            time::sleep(STANDBY_POLL).await;
        }
    }

    async fn resume(&self, server: &Server, analysis: &Analysis, state: SlotState, from: Position) -> Result<Streaming, SourceError> {
        let lost = |problem| Err(SourceError::PositionLost { name: self.name.clone(), problem });
        let Position::Lsn(from) = from else { return lost(format!("\"{from}\" is no position of PostgreSQL")) };
        match state {
            SlotState::Free(confirmed) if confirmed <= from => {}
            SlotState::Free(confirmed) => {
                return lost(format!("slot \"{}\" was advanced to {confirmed}, beyond {from}", self.slot));
            }
            SlotState::Lost(problem) => return lost(problem),
            SlotState::Missing => return lost(format!("slot \"{}\" does not exist", self.slot)),
            SlotState::Active | SlotState::Foreign(_) => return lost(format!("slot \"{}\" is in use", self.slot)),
        }
        let client = server.replicate(&self.slot, analysis.server_version, from.0).await?;
        Ok((slot::start(server, client).await?, from))
    }

    /// A new slot, and every view as of its consistent point.
    async fn begin(
        &self,
        server: &Server,
        analysis: &Analysis,
        state: SlotState,
        reader: &Reader,
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
        let anchor = Anchor::create(server.clone(), self.slot.clone(), analysis.server_version, Lifetime::Permanent).await?;
        let followed: Vec<usize> = (0..self.views.len()).filter(|view| analysis.views[*view].is_ok()).collect();
        let mut views = Vec::with_capacity(followed.len());
        for (view, outcome) in reader.read(&anchor.snapshot, &followed, &|_, _| ()).await? {
            match outcome {
                Ok(extent) => views.push((view, extent.into())),
                Err(problem) => {
                    plan.failed.insert(view);
                    if !send(link, Event::ViewFailed { view, problem }).await {
                        return Ok(None);
                    }
                }
            }
        }
        let point = anchor.point;
        if !send(link, Event::Cut { position: Position::Lsn(point), views, snapshot: true }).await {
            return Ok(None);
        }
        Ok(Some((anchor.stream(server).await?, point)))
    }

    fn view_error(&self, view: usize, problem: String) -> SourceError {
        SourceError::View { name: self.name.clone(), fact_type: self.views[view].fact_type.to_string(), problem }
    }

    fn reanalyze(&self, server: &Server) -> Reanalyze {
        let (server, slot, views) = (server.clone(), self.slot.clone(), self.views.clone());
        Arc::new(move || {
            let (server, slot, views) = (server.clone(), slot.clone(), views.clone());
            async move { fingerprint(&server, &slot, &views).await }.boxed()
        })
    }
}

impl Follow for Follower {
    fn prepare(&mut self) -> BoxFuture<'_, Result<source::Prepared, SourceError>> {
        async move {
            let prepared = Follower::prepare(self).await?;
            Ok(self.describe(&prepared))
        }
        .boxed()
    }

    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>> {
        self.run(start.from, link).boxed()
    }
}

/// `false` if the receiver is gone.
async fn send(link: &Link, event: Event) -> bool {
    link.events.send(event).await.is_ok()
}

/// The analysis and the fingerprint, with the publication made right.
async fn analyze(server: &Server, slot: &str, views: &[View<String>]) -> Result<(Analysis, String), SourceError> {
    let mut session = server.connect(Purpose::Analyze).await?;
    let analysis = analyze::analyze(server, &mut session, views).await?;
    let session = server.connect(Purpose::Write).await?;
    let publication = publication::ensure(server, &session, slot, &analysis).await?;
    let fingerprint = format!("{} {publication}", analysis.digest);
    Ok((analysis, fingerprint))
}

/// The fingerprint as things are, without changing any.
async fn fingerprint(server: &Server, slot: &str, views: &[View<String>]) -> Result<String, SourceError> {
    let mut session = server.connect(Purpose::Analyze).await?;
    let analysis = analyze::analyze(server, &mut session, views).await?;
    let publication = publication::Publication::read(&session.client, slot, analysis.server_version).await;
    let publication = publication.map_err(|error| fault::sql(&server.name, "read the publication", error))?;
    Ok(format!("{} {}", analysis.digest, publication.map(|publication| publication.identity).unwrap_or_default()))
}

/// Which views a change of which relation touches: the tables a view names, their partitions and children, and the roots whose name
/// changes of a partition are published under.
fn plan(analysis: &Analysis, fingerprint: String) -> Plan {
    let mut plan = Plan { views: Default::default(), clock: Default::default(), failed: Default::default(), fingerprint };
    for (index, view) in analysis.views.iter().enumerate() {
        let Ok(view) = view else { continue };
        if view.clock {
            plan.clock.insert(index);
        }
        for oid in view.tables.keys() {
            let family = analysis.tables.get(oid).into_iter().flat_map(|table| table.descendants.iter().chain(&table.ancestors));
            for relation in family.chain([oid]) {
                let views: &mut Vec<usize> = plan.views.entry(*relation).or_default();
                if !views.contains(&index) {
                    views.push(index);
                }
            }
        }
    }
    plan
}

/// Tables whose rows can change without a row in the log: see [`pulse`](super::pulse).
fn watched(analysis: &Analysis) -> Vec<u32> {
    let used = analysis.views.iter().flatten().flat_map(|view| view.tables.keys());
    let mut watched: Vec<u32> = used
        .filter(|oid| {
            analysis.tables.get(oid).is_some_and(|table| {
                table.kind == super::catalog::Kind::Partitioned || !table.descendants.is_empty() || !table.ancestors.is_empty()
            })
        })
        .copied()
        .collect();
    watched.sort_unstable();
    watched.dedup();
    watched
}
