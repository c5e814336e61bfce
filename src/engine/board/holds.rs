//! What is held, and whom to ask about it.

use tokio::sync::mpsc;

use crate::{
    engine::{
        board::{Board, Lines},
        holds::Ask,
    },
    store::Hold,
};

impl Lines {
    /// Nothing is written of a fact type that the configuration no longer has, so what is held of it is nobody's business until it is back.
    pub(super) fn configured_holds(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(|hold| self.views.iter().flatten().any(|view| view.signature == hold.signature))
    }
}

impl Board {
    pub(in crate::engine) fn hold(&self, holds: Vec<Hold>) {
        self.lines().holds = holds;
    }

    /// What is held of the fact types of this configuration.
    pub(in crate::engine) fn held(&self) -> Vec<Hold> {
        self.lines().configured_holds().cloned().collect()
    }

    /// Who answers what is asked about holds.
    pub(in crate::engine) fn answers_holds(&self, asks: mpsc::Sender<Ask>) {
        // There is one engine to a run.
        let _ = self.asks.set(asks);
    }

    pub(in crate::engine) fn asks(&self) -> Option<&mpsc::Sender<Ask>> {
        self.asks.get()
    }
}
