//! The events of one source in their order, read by the loop or, inside of a store transaction, by the blocking pool.
//!
//! **A stop at one point of the log.** An audit compares the desired facts with what the source answers at a point P that the source has
//! chosen, and between two store transactions the facts may pass any number of commits. So the inbox can be told to stop at P
//! ([`Inbox::stop_at`]): a batch that goes beyond it is split between two commits, and when the next event is beyond P, or says that
//! nothing before P is missing, [`Inbox::next`] says so instead of giving it. Then exactly the commits that start before P have been
//! handed out, and what has come out is the state at P. Nothing is lost or changes its order by that: what is beyond waits in front.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::{
    data::{ChangeBatch, Lsn, Position, ResumeToken},
    source::Event,
};

/// What is next.
#[derive(Debug)]
pub(super) enum Taken {
    /// An event.
    Event(Event),
    /// Everything before the point at which to stop has been handed out, and nothing else; up to `settled` no view lacks anything.
    Stopped {
        /// As the event behind the point says it.
        settled: Position,
    },
}

/// Events that have not been handled.
pub(super) struct Inbox {
    events: mpsc::Receiver<Event>,
    /// Taken from the channel while change batches were looked for; handled before the channel is read again.
    waiting: VecDeque<Event>,
    /// What the last batch said about refresh views.
    settled: Option<Position>,
    /// Nothing of a commit that starts here or behind is handed out.
    stop: Option<Lsn>,
}

impl Inbox {
    pub(super) fn new(events: mpsc::Receiver<Event>) -> Self {
        Self { events, waiting: VecDeque::new(), settled: None, stop: None }
    }

    /// One that nothing comes through.
    pub(super) fn closed() -> Self {
        let (_, events) = mpsc::channel(1);
        Self::new(events)
    }

    /// Stops at `point`, which nothing that was handed out may have passed, or goes on if that is `None`.
    pub(super) fn stop_at(&mut self, point: Option<Lsn>) {
        self.stop = point;
    }

    /// The next event; `None` when the source has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Taken> {
        let event = match self.waiting.pop_front() {
            Some(event) => event,
            None => self.events.recv().await?,
        };
        let Some(point) = self.stop else { return Some(Taken::Event(event)) };
        let (before, beyond) = divide(event, point);
        let settled = beyond.as_ref().and_then(settled).cloned();
        self.waiting.extend(beyond);
        // What was put back is what was waiting first.
        self.waiting.rotate_right(usize::from(settled.is_some()));
        match (before, settled) {
            (Some(event), _) => Some(Taken::Event(event)),
            (None, settled) => settled.map(|settled| Taken::Stopped { settled }),
        }
    }

    /// The next batch of changes if it is there, or, with `wait`, when it is. On the blocking pool.
    ///
    /// Results of refresh views are not overtaken: they belong to a state before the changes behind them. Whatever else comes between
    /// two batches says nothing about rows, and is handled after them.
    pub(super) fn batch(&mut self, wait: bool) -> Option<ChangeBatch> {
        loop {
            let ends = |event: &Event| matches!(event, Event::Cut { .. } | Event::ViewFailed { .. } | Event::Changes { .. });
            if self.waiting.iter().any(ends) {
                return None;
            }
            let event = if wait { self.events.blocking_recv() } else { self.events.try_recv().ok() }?;
            let (event, beyond) = match self.stop {
                Some(point) => divide(event, point),
                None => (Some(event), None),
            };
            self.waiting.extend(beyond);
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

/// What of an event belongs before `point`, and what is to wait there.
fn divide(event: Event, point: Lsn) -> (Option<Event>, Option<Event>) {
    match event {
        Event::Changes { batch, settled } if batch.first().is_some_and(|first| first >= point) => {
            (None, Some(Event::Changes { batch, settled }))
        }
        Event::Changes { mut batch, settled } => match batch.split_off(point) {
            None => (Some(Event::Changes { batch, settled }), None),
            Some(rest) => {
                let end = batch.commits().last().map_or(point, |commit| commit.end);
                // Not beyond the end of the last commit in it.
                let bound = if settled.end() > Some(end) { settled.at(end, ResumeToken::default()) } else { settled.clone() };
                (Some(Event::Changes { batch, settled: bound }), Some(Event::Changes { batch: rest, settled }))
            }
        },
        // All that starts before it was handed out.
        Event::Progress { received, settled } if received.end() >= Some(point) => (None, Some(Event::Progress { received, settled })),
        event => (Some(event), None),
    }
}

/// What an event says about refresh views.
fn settled(event: &Event) -> Option<&Position> {
    match event {
        Event::Changes { settled, .. } | Event::Progress { settled, .. } => Some(settled),
        Event::State(_) | Event::Cut { .. } | Event::ViewFailed { .. } | Event::Head(_) | Event::WalKept { .. } | Event::Clock { .. } => {
            None
        }
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
        while let Some(taken) = inbox.next().await {
            let Taken::Event(event) = taken else {
                rest.push("stopped".to_owned());
                inbox.stop_at(None);
                continue;
            };
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

    /// Two commits in one event, and whatever is taken by whichever way: nothing passes the point, and nothing is lost at it.
    #[tokio::test]
    async fn it_stops_at_a_point_between_two_commits_of_one_batch() {
        let two = || {
            let Event::Changes { mut batch, .. } = changes(20, true) else { unreachable!("it was made here") };
            batch.begin(Lsn(30));
            batch.truncate(1);
            batch.commit(Lsn(30), Lsn(31));
            Event::Changes { batch, settled: at(31) }
        };
        for blocking in [false, true] {
            let mut inbox = inbox(vec![changes(10, true), Event::Head(at(50)), two(), cut(35), changes(40, true)]);
            inbox.stop_at(Some(Lsn(25)));
            if blocking {
                assert_eq!(inbox.batch(false).as_ref().map(start), Some(10));
                let split = inbox.batch(false).expect("the first half");
                assert_eq!((start(&split), split.commits().len()), (20, 1));
                assert_eq!(inbox.settled(), Some(at(21)), "no more than the half has");
                assert!(inbox.batch(false).is_none() && inbox.batch(false).is_none(), "nothing beyond the point, and nothing after it");
                assert_eq!(rest(&mut inbox).await, ["head 0/32", "stopped", "changes 30", "cut 35", "changes 40"].map(lsn_names));
            } else {
                let all = ["changes 10", "head 0/32", "changes 20", "stopped", "changes 30", "cut 35", "changes 40"];
                assert_eq!(rest(&mut inbox).await, all.map(lsn_names));
            }
        }
    }

    fn lsn_names(name: &str) -> String {
        name.replace("cut 35", "cut 0/23")
    }

    #[tokio::test]
    async fn it_stops_when_nothing_before_the_point_can_come_any_more() {
        let progress = |lsn| Event::Progress { received: at(lsn), settled: at(lsn - 1) };
        let mut inbox = inbox(vec![progress(24), changes(24, true), progress(25), changes(25, true)]);
        inbox.stop_at(Some(Lsn(25)));
        let mut taken = Vec::new();
        while let Some(Taken::Event(event)) = inbox.next().await {
            taken.push(event);
        }
        assert_eq!(taken.len(), 2, "{taken:?}");
        assert!(matches!(inbox.next().await, Some(Taken::Stopped { settled }) if settled == at(24)), "however often it is asked");
        inbox.stop_at(None);
        assert_eq!(rest(&mut inbox).await, ["progress 0/19", "changes 25"]);
    }

    #[test]
    fn a_closed_one_has_ended() {
        assert!(Inbox::closed().batch(false).is_none());
        assert!(Inbox::closed().batch(true).is_none());
    }
}
