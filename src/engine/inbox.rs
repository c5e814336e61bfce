//! The events of one source in their order, read by the loop or, inside of a store transaction, by the blocking pool.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::{
    data::{ChangeBatch, Position},
    source::Event,
};

/// Events that have not been handled.
pub(super) struct Inbox {
    events: mpsc::Receiver<Event>,
    /// Taken from the channel while change batches were looked for; handled before the channel is read again.
    waiting: VecDeque<Event>,
    /// What the last batch said about refresh views.
    settled: Option<Position>,
}

impl Inbox {
    pub(super) fn new(events: mpsc::Receiver<Event>) -> Self {
        Self { events, waiting: VecDeque::new(), settled: None }
    }

    /// One that nothing comes through.
    pub(super) fn closed() -> Self {
        let (_, events) = mpsc::channel(1);
        Self::new(events)
    }

    /// The next event; `None` when the source has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Event> {
        match self.waiting.pop_front() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        }
    }

    /// The next batch of changes if it is there, or, with `wait`, when it is. On the blocking pool.
    ///
    /// Results of refresh views are not overtaken: they belong to a state before the changes behind them. Whatever else comes between
    /// two batches says nothing about rows, and is handled after them.
    pub(super) fn batch(&mut self, wait: bool) -> Option<ChangeBatch> {
        loop {
            if self.waiting.iter().any(|event| matches!(event, Event::Cut { .. } | Event::ViewFailed { .. })) {
                return None;
            }
            let event = if wait { self.events.blocking_recv() } else { self.events.try_recv().ok() };
            match event? {
                Event::Changes { batch, settled } => {
                    self.settled = Some(settled);
                    return Some(batch);
                }
                event => self.waiting.push_back(event),
            }
        }
    }

    /// Remembers what a batch that is handled said about refresh views.
    pub(super) fn settle(&mut self, settled: Position) {
        self.settled = Some(settled);
    }

    /// What the last batch said about refresh views, once.
    pub(super) fn settled(&mut self) -> Option<Position> {
        self.settled.take()
    }
}
