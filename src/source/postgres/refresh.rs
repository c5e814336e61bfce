//! Reading dirty views again, at a point of the log.
//!
//! ```text
//! idle ──dirty──> anchoring ──slot created──> waiting ──stream passed the point──> reading ──results──> idle
//! ```
//!
//! A temporary slot gives a snapshot and its point C. When the stream has delivered every commit before C, it is known which
//! views those commits touched; exactly these are read in the snapshot. Their results, with the unchanged results of all other
//! views, are the state at C: a cut. The stream is read all the while, so a hundred commits that arrive during one
//! refresh cost one more refresh, not a hundred.
//!
//! A refresh may use at most half of the time: after one that took ten seconds the next waits ten seconds, up to [`REST_MAX`].

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::{self, BoxFuture};
use tokio::time::Instant;

use crate::{
    data::Lsn,
    source::{
        SourceError,
        postgres::{
            read::{Outcome, Reader},
            session::Server,
            slot::{Anchor, Lifetime},
        },
    },
};

/// The longest rest between two refreshes. Revocations wait for it, so it is a fraction of a minute, and a query that runs longer
/// than this belongs on another machine anyway.
const REST_MAX: Duration = Duration::from_secs(30);

/// What dirty views wait for.
enum Phase {
    /// Nothing is under way; entered at start and when results have arrived.
    Idle,
    /// A temporary slot is being created; entered when a view is dirty and the rest is over.
    Anchoring(BoxFuture<'static, Result<Anchor, SourceError>>),
    /// The stream has not reached the point; entered when the slot exists.
    Waiting(Anchor),
    /// The queries run; entered when the stream passes the point.
    Reading(Lsn, Instant, BoxFuture<'static, Result<Vec<Outcome>, SourceError>>),
}

/// The results of one refresh.
pub(crate) struct Cut {
    /// What they are of.
    pub(crate) point: Lsn,
    /// How long the queries ran.
    pub(crate) took: Duration,
    /// The views that were taken.
    pub(crate) outcomes: Vec<Outcome>,
}

/// What happened to the refresh under way.
pub(crate) enum Turn {
    /// There is a point now: the stream should pass it soon.
    Anchored(Lsn),
    /// There are results.
    Done(Cut),
}

/// The refresh under way, if there is one.
pub(crate) struct Refresh {
    server: Server,
    slot: String,
    version: u32,
    reader: Reader,
    phase: Phase,
    rest_until: Instant,
}

impl Refresh {
    /// Nothing under way; temporary slots are named after `slot`.
    pub(crate) fn new(server: Server, slot: String, version: u32, reader: Reader) -> Self {
        Self { server, slot, version, reader, phase: Phase::Idle, rest_until: Instant::now() }
    }

    /// When the next refresh may start; `None` while one is under way.
    pub(crate) fn ready_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Idle => Some(self.rest_until),
            Phase::Anchoring(_) | Phase::Waiting(_) | Phase::Reading(..) => None,
        }
    }

    /// Starts one.
    pub(crate) fn start(&mut self) {
        let anchor = Anchor::create(self.server.clone(), self.slot.clone(), self.version, Lifetime::Temporary);
        self.phase = Phase::Anchoring(Box::pin(anchor));
    }

    /// The point that the stream has to pass.
    pub(crate) fn waits_for(&self) -> Option<Lsn> {
        match &self.phase {
            Phase::Waiting(anchor) => Some(anchor.point),
            Phase::Idle | Phase::Anchoring(_) | Phase::Reading(..) => None,
        }
    }

    /// The stream has passed the point: reads `views` in its snapshot.
    pub(crate) fn read(&mut self, views: Vec<usize>) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Waiting(anchor) => {
                let reader = self.reader.clone();
                let point = anchor.point;
                let reading = async move {
                    // The whole anchor, not just its name: its session exports the snapshot until the last view is read.
                    let anchor = anchor;
                    reader.read(&anchor.snapshot, &views, &BTreeMap::new(), &|_, _| ()).await
                };
                Phase::Reading(point, Instant::now(), Box::pin(reading))
            }
            other => other,
        };
    }

    /// Waits for the next turn; forever while there is none to come. Cancel-safe.
    pub(crate) async fn turn(&mut self) -> Result<Turn, SourceError> {
        match &mut self.phase {
            Phase::Idle | Phase::Waiting(_) => future::pending().await,
            Phase::Anchoring(creating) => {
                let anchor = creating.await;
                self.phase = Phase::Idle;
                let anchor = anchor?;
                let point = anchor.point;
                self.phase = Phase::Waiting(anchor);
                Ok(Turn::Anchored(point))
            }
            Phase::Reading(point, started, reading) => {
                let outcomes = reading.await;
                let (point, took) = (*point, started.elapsed());
                self.phase = Phase::Idle;
                self.rest_until = Instant::now() + took.min(REST_MAX);
                Ok(Turn::Done(Cut { point, took, outcomes: outcomes? }))
            }
        }
    }
}
