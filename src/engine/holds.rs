//! Holds on request: a person looks at what the guard holds, lets it go, or forgets it.
//!
//! ```text
//! HTTP ──> Board ──ask──> Holds ──one store transaction──> outbox ──> deliver
//!            ^              │
//!            └── answer ────┘
//! ```
//!
//! Asking goes through a task of its own, since only tasks of the engine have the writer. It needs neither the sources nor the fact store:
//! with those away a release is on the disk here, and delivered when the fact store is back. The answer comes after the transaction, so
//! whoever has it may kill this process; whoever has none asks again, and finds either the hold or nothing under its number.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::{
    crash::{self, Moment},
    engine::{board::Board, error::EngineError, ingest::stopped, status::HeldStatus, writer::Writer},
    fact::{Fact, FactType},
    store::{Changes, Hold, HoldId, ViewId},
};

/// Requests that wait for the one before them: people ask, and each answer is one transaction.
const ASKED: usize = 16;

/// The most facts of a hold that are listed: some hundred kilobytes, and more than anybody reads.
const MOST_LISTED: usize = 1_000;

/// What is to become of a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldEnd {
    /// Its removals go.
    Release,
    /// It is forgotten; its facts stay in the fact store until a comparison finds them.
    Drop,
}

/// Why a request about holds is not answered.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// Nothing is held under that number.
    #[error(
        "there is no hold {0}: it was released or dropped, its facts came back, or it never was. `factsync hold list` shows what there is"
    )]
    Unknown(String),
    /// Nothing is written in this run.
    #[error("this factsync runs with --shadow and writes nothing")]
    Shadow,
    /// Nobody is there to do it.
    #[error("factsync is starting, or being stopped")]
    Away,
}

/// A hold that has ended.
#[derive(Debug, Serialize)]
pub struct EndedHold {
    /// Its number.
    pub id: HoldId,
    /// Its fact type.
    pub fact_type: String,
    /// How many removals were in it.
    pub removals: u64,
}

/// Facts of a hold.
#[derive(Debug, Serialize)]
pub struct HeldFacts {
    /// The hold as it stands.
    #[serde(flatten)]
    pub hold: HeldStatus,
    /// The first thousand of its facts.
    pub listed: Vec<Fact>,
}

/// A request, and who waits for the answer.
pub(super) enum Ask {
    End(HoldId, HoldEnd, oneshot::Sender<Option<EndedHold>>),
    Facts(HoldId, oneshot::Sender<Option<HeldFacts>>),
}

impl Board {
    /// What the guard holds.
    pub fn holds(&self) -> Vec<HeldStatus> {
        self.held().iter().map(HeldStatus::from).collect()
    }

    /// Ends the hold with the number `id`.
    pub async fn end_hold(&self, id: &str, end: HoldEnd) -> Result<EndedHold, HoldError> {
        if self.is_shadow() {
            return Err(HoldError::Shadow);
        }
        self.ask(id, |id, answer| Ask::End(id, end, answer)).await
    }

    /// Facts of the hold with the number `id`.
    pub async fn held_facts(&self, id: &str) -> Result<HeldFacts, HoldError> {
        self.ask(id, Ask::Facts).await
    }

    async fn ask<T>(&self, id: &str, what: impl FnOnce(HoldId, oneshot::Sender<Option<T>>) -> Ask) -> Result<T, HoldError> {
        let unknown = || HoldError::Unknown(id.chars().filter(|c| c.is_ascii_graphic()).take(20).collect());
        let number = id.parse().map_err(|_| unknown())?;
        let (answer, answered) = oneshot::channel();
        let asks = self.asks().ok_or(HoldError::Away)?;
        asks.send(what(number, answer)).await.map_err(|_| HoldError::Away)?;
        answered.await.map_err(|_| HoldError::Away)?.ok_or_else(unknown)
    }
}

/// The task.
pub(super) struct Holds {
    writer: Writer,
    board: std::sync::Arc<Board>,
    /// The views of this configuration: the number of the source, that of the view in it, and what it is.
    views: BTreeMap<ViewId, (usize, usize, FactType)>,
    asked: mpsc::Receiver<Ask>,
    stop: watch::Receiver<bool>,
}

impl Holds {
    /// From here on `board` can be asked.
    pub(super) fn new(
        writer: Writer,
        board: std::sync::Arc<Board>,
        views: BTreeMap<ViewId, (usize, usize, FactType)>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let (asks, asked) = mpsc::channel(ASKED);
        board.answers_holds(asks);
        Self { writer, board, views, asked, stop }
    }

    /// Answers until the process stops.
    pub(super) async fn run(mut self) -> Result<(), EngineError> {
        loop {
            let ask = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(()),
                ask = self.asked.recv() => ask,
            };
            // Who asked may be gone: then nobody needs the answer.
            match ask {
                None => return Ok(()),
                Some(Ask::End(id, end, answer)) => drop(answer.send(self.end(id, end).await?)),
                Some(Ask::Facts(id, answer)) => drop(answer.send(self.facts(id).await?)),
            }
        }
    }

    async fn end(&self, id: HoldId, end: HoldEnd) -> Result<Option<EndedHold>, EngineError> {
        let Some(hold) = self.find(id) else { return Ok(None) };
        let ended = self
            .writer
            .run(move |store| match end {
                HoldEnd::Release => store.release(id),
                HoldEnd::Drop => store.forget_hold(id),
            })
            .await?;
        crash::moment(Moment::Released);
        let Some(Changes { views, .. }) = ended else { return Ok(None) };
        let mut removals = 0;
        for change in &views {
            // Of the hold as it was, facts may have come back since.
            removals += change.let_go;
            if let Some((source, view, _)) = self.views.get(&change.view) {
                self.board.changed(*source, *view, change);
            }
        }
        let what = match end {
            HoldEnd::Release => "held removals released",
            HoldEnd::Drop => "held removals dropped: the facts stay until a comparison finds them",
        };
        info!(source = hold.source, fact_type = hold.signature, hold = %id, removals, "{what}");
        Ok(Some(EndedHold { id, fact_type: hold.signature, removals }))
    }

    async fn facts(&self, id: HoldId) -> Result<Option<HeldFacts>, EngineError> {
        let Some(hold) = self.find(id) else { return Ok(None) };
        let rows = self.writer.run(move |store| store.held_facts(id, MOST_LISTED)).await?;
        let (_, _, fact_type) = &self.views[&hold.view];
        let listed = rows.iter().map(|row| fact_type.stored_fact(row)).collect();
        Ok(Some(HeldFacts { hold: HeldStatus::from(&hold), listed }))
    }

    /// The hold, if it is of a fact type that is written.
    fn find(&self, id: HoldId) -> Option<Hold> {
        self.board.held().into_iter().find(|hold| hold.id == id && self.views.contains_key(&hold.view))
    }
}
