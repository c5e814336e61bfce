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

    /// What the last batch that was taken said about refresh views.
    pub(super) fn peek_settled(&self) -> Option<&Position> {
        self.settled.as_ref()
    }

    /// The same, once.
    pub(super) fn settled(&mut self) -> Option<Position> {
        self.settled.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::Lsn,
        source::{Cause, SourceError, SourceState},
    };

    fn at(lsn: u64) -> Position {
        Lsn(lsn).into()
    }

    /// A commit whose record is at `start`, or the beginning of one.
    fn changes(start: u64, whole: bool) -> Event {
        let mut batch = ChangeBatch::default();
        batch.begin(Lsn(start));
        batch.truncate(1);
        if whole {
            batch.commit(Lsn(start), Lsn(start + 1));
        }
        Event::Changes { batch, settled: at(start + 1) }
    }

    fn cut(lsn: u64) -> Event {
        Event::Cut { position: at(lsn), views: Vec::new(), snapshot: false }
    }

    fn failure() -> Event {
        let source: Cause = "it is gone".into();
        Event::ViewFailed { view: 0, problem: SourceError::Unreachable { name: "db".to_owned(), action: "read a view", source } }
    }

    /// What an inbox with these events has, and the end of the source behind them.
    fn inbox(events: Vec<Event>) -> Inbox {
        let (sender, receiver) = mpsc::channel(events.len().max(1));
        events.into_iter().for_each(|event| sender.try_send(event).expect("there is room"));
        Inbox::new(receiver)
    }

    fn start(batch: &ChangeBatch) -> u64 {
        batch.open().unwrap_or_else(|| batch.commits()[0].start).0
    }

    /// What is left, in a few letters each.
    async fn rest(inbox: &mut Inbox) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(event) = inbox.next().await {
            rest.push(match event {
                Event::Changes { batch, .. } => format!("changes {}", start(&batch)),
                Event::Cut { position, .. } => format!("cut {position}"),
                Event::ViewFailed { view, .. } => format!("failed {view}"),
                Event::Progress { received, .. } => format!("progress {received}"),
                Event::State(state) => format!("{state:?}"),
                Event::Head(head) => format!("head {head}"),
                Event::WalKept { bytes, .. } => format!("{bytes} bytes kept"),
                Event::Clock { at, .. } => format!("clock {at}"),
            });
        }
        rest
    }

    #[tokio::test]
    async fn batches_overtake_what_says_nothing_about_rows_and_it_keeps_its_order() {
        let mut inbox = inbox(vec![
            Event::Head(at(5)),
            changes(10, true),
            Event::State(SourceState::Streaming),
            Event::Progress { received: at(15), settled: at(15) },
            changes(20, true),
            Event::Head(at(30)),
        ]);
        assert_eq!(inbox.batch(false).as_ref().map(start), Some(10));
        assert_eq!(inbox.settled(), Some(at(11)));
        assert_eq!(inbox.batch(false).as_ref().map(start), Some(20));
        assert!(inbox.batch(false).is_none());
        assert_eq!(rest(&mut inbox).await, ["head 0/5", "Streaming", "progress 0/F", "head 0/1E"]);
    }

    #[tokio::test]
    async fn results_are_not_overtaken() {
        for (event, name) in [(cut(15), "cut 0/F"), (failure(), "failed 0")] {
            let mut inbox = inbox(vec![changes(10, true), event, changes(20, true)]);
            assert_eq!(inbox.batch(false).as_ref().map(start), Some(10));
            assert!(inbox.batch(false).is_none());
            assert!(inbox.batch(false).is_none(), "not later either");
            assert_eq!(inbox.settled(), Some(at(11)), "what was not taken says nothing");
            assert_eq!(rest(&mut inbox).await, [name, "changes 20"]);
        }
    }

    #[test]
    fn inside_of_a_transaction_its_rest_is_waited_for() {
        let (sender, receiver) = mpsc::channel(1);
        let mut inbox = Inbox::new(receiver);
        assert!(inbox.batch(false).is_none(), "there is nothing yet");
        let source = std::thread::spawn(move || {
            // The second one finds room only when the first has been taken: by the one who waits.
            sender.blocking_send(Event::Head(at(5))).expect("somebody listens");
            sender.blocking_send(changes(10, false)).expect("somebody listens");
        });
        assert_eq!(inbox.batch(true).as_ref().map(start), Some(10));
        source.join().expect("it does not panic");
        assert!(inbox.batch(true).is_none(), "the source was lost");
    }

    #[test]
    fn what_a_batch_says_about_refresh_views_is_told_once() {
        let mut inbox = inbox(vec![changes(20, true)]);
        assert_eq!(inbox.settled(), None);
        inbox.settle(at(11));
        assert_eq!(inbox.peek_settled(), Some(&at(11)));
        assert!(inbox.batch(false).is_some());
        assert_eq!(inbox.settled(), Some(at(21)), "the last one counts");
        assert_eq!(inbox.settled(), None);
    }

    #[test]
    fn a_closed_one_has_ended() {
        assert!(Inbox::closed().batch(false).is_none());
        assert!(Inbox::closed().batch(true).is_none());
    }
}
