//! Following a database: what it is, where to start, what is read first.
//!
//! ```text
//! prepare ─> shapes ─> roles ─┬─ from: nothing ──> every view at T ──────> Cut (snapshot) ──> stream from T
//!                             └─ from: position ─> views to load at T ───> Cut ────────────> stream from the position
//! ```
//!
//! A view that is loaded is ahead of the others; it skips what is not after its own time (`tail`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::{select, sync::mpsc};

use crate::{
    config::{MongoConfig, MongoQuery, View},
    data::{ClusterTime, Position, ResumeToken},
    query::{Identity, Plan, Table, ViewPlan},
    source::{
        Event, Follow, Link, Prepared, PreparedView, Reading, Role, SourceError, SourceState, Start, ViewMode, Witness,
        mongo::{
            client::Server,
            collections::{self, Kind},
            lookup,
            read::ReadError,
            shape::{PerDocument, Shape},
            snapshot::Reader,
            tail::{Demoted, Followed, Tail},
            unit::demote,
            watch::{Since, timestamp},
            witness::MongoWitness,
        },
    },
};

/// Part of each fingerprint: another number when the same query makes other rows in the table of its view.
const FORM: u32 = 1;

/// Follows one database.
#[derive(Debug)]
pub struct Follower {
    name: String,
    config: Arc<MongoConfig>,
    spool: PathBuf,
    demoted: Demoted,
}

/// How a view is followed, before its role is known.
enum Way {
    Documents(Arc<PerDocument>),
    Refresh { reason: String, collections: BTreeSet<String> },
    Refused(String),
}

impl Follower {
    /// Prepares to follow the database of `config`; nothing is opened yet. Results spill into `spool`.
    pub fn new(name: &str, config: Arc<MongoConfig>, spool: &Path) -> Self {
        Self { name: name.to_owned(), config, spool: spool.to_owned(), demoted: Demoted::default() }
    }

    /// Connects and judges every view.
    async fn survey(&self) -> Result<(Server, Vec<Way>), SourceError> {
        let server = Server::connect(&self.name, &self.config).await?;
        let kinds = collections::list(&server).await.map_err(|error| server.failed("list the collections", error))?;
        let mut ways = Vec::with_capacity(self.config.views.len());
        for number in 0..self.config.views.len() {
            let way = way(&server, &self.config.views[number], &kinds).await?;
            let demoted = self.demoted.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
            ways.push(match (way, demoted) {
                (Way::Documents(shape), Some(reason)) => Way::Refresh { reason, collections: shape.collections() },
                (way, _) => way,
            });
        }
        Ok((server, ways))
    }

    fn start<'a>(&'a self, start: Start, events: &'a mpsc::Sender<Event>) -> BoxFuture<'a, Result<Option<Tail>, SourceError>> {
        Box::pin(self.start_at(start, events))
    }

    async fn start_at(&self, start: Start, events: &mpsc::Sender<Event>) -> Result<Option<Tail>, SourceError> {
        let (server, ways) = self.survey().await?;
        let reader = Reader::new(server, &self.name, &self.spool);
        let mut followed = self.followed(&ways, &start)?;
        let (since, at) = match &start.from {
            None => {
                let at = reader.cluster_time().await?;
                (Since { time: at, token: ResumeToken::default() }, at)
            }
            Some(position) => {
                let since = self.since(position)?;
                let at = reader.cluster_time_after(since.time).await?;
                (since, at)
            }
        };
        let new = start.from.is_none();
        if new || start.roles.contains(&Role::Load) {
            if events.send(Event::State(SourceState::Snapshotting)).await.is_err() {
                return Ok(None);
            }
            let views = self.load(&reader, &mut followed, at, new, events).await?;
            let position = Position::Time(at, ResumeToken::default());
            if events.send(Event::Cut { position, views, snapshot: new }).await.is_err() {
                return Ok(None);
            }
        }
        let mut tail = Tail::open(reader, self.config.clone(), self.demoted.clone(), followed, since).await?;
        if let Some(settled) = start.settled.as_ref().and_then(Position::end) {
            let stale = |role: &Role| matches!(role, Role::Refresh { stale: true });
            tail.stale((0..start.roles.len()).filter(|view| !new && stale(&start.roles[*view])), settled);
        }
        Ok(Some(tail))
    }

    /// Where the stream goes on.
    fn since(&self, position: &Position) -> Result<Since, SourceError> {
        match position {
            Position::Time(time, token) => Ok(Since { time: *time, token: token.clone() }),
            Position::Lsn(..) | Position::Digest(_) => {
                Err(SourceError::PositionLost { name: self.name.clone(), problem: format!("{position} is no cluster time") })
            }
        }
    }

    /// Reads what has no usable state, or everything, and tells what cannot be read.
    async fn load(
        &self,
        reader: &Reader,
        followed: &mut [Followed],
        at: ClusterTime,
        new: bool,
        events: &mpsc::Sender<Event>,
    ) -> Result<Vec<(usize, Reading)>, SourceError> {
        let mut views = Vec::new();
        for (number, followed) in followed.iter_mut().enumerate() {
            let view = &self.config.views[number];
            let reading = match followed {
                Followed::Documents { shape, table, ahead, load: true } => {
                    *ahead = at;
                    match lookup::refuse_arrays_in_arrays(&reader.server, shape, None, timestamp(at)).await {
                        Ok(()) => reader.load(view, shape, *table, at).await,
                        Err(error @ ReadError::ArrayInArray { .. }) => {
                            return Err(demote(&reader.server, &self.demoted, number, &error));
                        }
                        Err(error @ (ReadError::TooOld(_) | ReadError::Unavailable(_) | ReadError::Failed(_))) => {
                            Err(reader.explained(view, error).await)
                        }
                    }
                }
                Followed::Refresh { .. } if new => reader.answer(view, at, &|_| ()).await.map(Reading::from),
                Followed::Documents { .. } | Followed::Refresh { .. } | Followed::Off => continue,
            };
            match reading {
                Ok(reading) => views.push((number, reading)),
                Err(problem @ SourceError::View { .. }) => {
                    followed.fail();
                    if events.send(Event::ViewFailed { view: number, problem }).await.is_err() {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(views)
    }

    /// What each view is, in its role. A view that fails is refreshed although it could be followed otherwise.
    fn followed(&self, ways: &[Way], Start { roles, ahead, .. }: &Start) -> Result<Vec<Followed>, SourceError> {
        let mut changed = Vec::new();
        let mut followed = Vec::with_capacity(ways.len());
        for (number, (way, role)) in ways.iter().zip(roles).enumerate() {
            followed.push(match (way, role) {
                (Way::Refused(_), _) | (_, Role::Off) => Followed::Off,
                (Way::Documents(shape), Role::Incremental | Role::Load) => Followed::Documents {
                    shape: shape.clone(),
                    table: table(number),
                    // What it has already is told again, and what a lookup found then is what it has to be compared with.
                    ahead: ahead[number].map(|end| ClusterTime(end.0.saturating_sub(1))).unwrap_or_default(),
                    load: *role == Role::Load,
                },
                (Way::Documents(shape), Role::Refresh { .. }) => Followed::Refresh { collections: shape.collections() },
                (Way::Refresh { collections, .. }, Role::Refresh { .. }) => Followed::Refresh { collections: collections.clone() },
                (Way::Refresh { .. }, Role::Incremental | Role::Load) => {
                    changed.push(number);
                    Followed::Off
                }
            });
        }
        if changed.is_empty() {
            return Ok(followed);
        }
        let problem = "they cannot be followed document by document any more".to_owned();
        Err(SourceError::ViewsChanged { name: self.name.clone(), views: changed, problem })
    }
}

impl Follow for Follower {
    fn witness(&self) -> Option<Arc<dyn Witness>> {
        Some(Arc::new(MongoWitness { name: self.name.clone(), config: self.config.clone(), spool: self.spool.clone() }))
    }

    fn prepare(&mut self) -> BoxFuture<'_, Result<Prepared, SourceError>> {
        Box::pin(async move {
            let (server, ways) = self.survey().await?;
            let views = self.config.views.iter().zip(ways).enumerate().map(|(number, (view, way))| prepared(number, view, way));
            Ok(Prepared { identity: server.identity(), views: views.collect() })
        })
    }

    fn follow<'a>(&'a mut self, start: Start, link: &'a mut Link) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let Link { events, durable: _, wanted, stop } = link;
            let follow = async {
                match self.start(start, events).await? {
                    Some(tail) => tail.run(events, wanted).await,
                    None => Ok(()),
                }
            };
            select! {
                biased;
                // A sender that is gone stops us as well.
                _ = stop.wait_for(|stop| *stop) => Ok(()),
                () = events.closed() => Ok(()),
                outcome = follow => outcome,
            }
        })
    }
}

/// The virtual table of a view, by its number.
fn table(view: usize) -> u32 {
    u32::try_from(view).expect("fewer views than a file has lines") + 1
}

fn prepared(number: usize, view: &View<MongoQuery>, way: Way) -> PreparedView {
    let MongoQuery { collection, select, fields } = &view.query;
    let mode = match way {
        Way::Documents(shape) => ViewMode::Incremental(Arc::new(plan(number, &shape, fields.len()))),
        Way::Refresh { reason, .. } => ViewMode::Refresh(reason),
        Way::Refused(problem) => ViewMode::Refused(problem),
    };
    let incremental = matches!(mode, ViewMode::Incremental(_));
    let text = format!("{FORM} {number} {incremental} {collection:?} {select:?} {fields:?}");
    let fingerprint = Sha256::digest(text).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    PreparedView { fingerprint, mode }
}

/// The documents of the view's collection with the rows that each makes, and of these the rows.
fn plan(number: usize, shape: &PerDocument, width: usize) -> ViewPlan {
    let scan = Plan::Scan { table: table(number) };
    let documents = Table { title: shape.collection.clone(), columns: vec![1, 2], identity: Identity::Document(vec![1]), toast: false };
    ViewPlan { plan: Plan::Unpack { input: Box::new(scan), column: 1, width }, tables: BTreeMap::from([(table(number), documents)]) }
}

async fn way(server: &Server, view: &View<MongoQuery>, kinds: &BTreeMap<String, Kind>) -> Result<Way, SourceError> {
    let shape = match Shape::of(&view.query) {
        Ok(Shape::PerDocument(shape)) => Arc::new(shape),
        Ok(Shape::Refresh { reason, collections }) => {
            return Ok(allowed(Way::Refresh { reason, collections: collections.clone() }, &collections, kinds));
        }
        Ok(Shape::Refused(problem)) | Err(problem) => return Ok(Way::Refused(problem)),
    };
    let collections = shape.collections();
    for number in 0..shape.lookups.len() {
        let lookup = &shape.lookups[number];
        let failed = |error| server.failed("list the indexes", error);
        if !lookup::indexed(server, &shape, lookup).await.map_err(failed)? {
            let reason = format!(
                "no index of collection \"{}\" starts with \"{}\", by which the documents would be found that a change in \"{}\" touches. \
                 With db.{}.createIndex({{\"{}\": 1}}) it is followed document by document from the next start on",
                shape.collection, lookup.local_field, lookup.from, shape.collection, lookup.local_field
            );
            return Ok(allowed(Way::Refresh { reason, collections: collections.clone() }, &collections, kinds));
        }
    }
    Ok(allowed(Way::Documents(shape), &collections, kinds))
}

/// The way, unless a collection has no changes that a stream would tell of.
fn allowed(way: Way, collections: &BTreeSet<String>, kinds: &BTreeMap<String, Kind>) -> Way {
    let unfollowed = collections.iter().find_map(|name| kinds.get(name)?.unfollowed(name));
    unfollowed.map_or(way, |(problem, remedy)| Way::Refused(format!("{problem}. {remedy}")))
}
