//! What is ready to be reported, and in which order.
//!
//! Two things wait for room in the channel: one batch of row changes that grows meanwhile, and single events. The rules:
//!
//! - A batch is sent at the end of a transaction, or when it is full; then the transaction in it is *torn*, and nothing but batches
//!   is sent until its end.
//! - A cut is sent after all changes that were received before it, so it waits for the batch of that moment (`batch_first`), and for
//!   no later one: under load there is always a later one.
//! - A position is sent only if nothing before it waits.

use std::collections::VecDeque;

use crate::{
    data::{ChangeBatch, Lsn, Position, ResumeToken},
    source::{Event, postgres::mark::Mark},
};

/// Changes that are held before the stream is no longer read. A transaction larger than this is sent in pieces. Large enough that the cost
/// of handing a batch over does not matter, small against the memory budget: the channel holds a few of them.
pub(crate) const BATCH_SIZE: usize = 1 << 20;

/// How much of the transaction that is being received is in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Nothing: between transactions, or the transaction has changed nothing so far; entered when its end is in the batch.
    Nothing,
    /// All of it so far; entered with its first change.
    All,
    /// What was not sent before; entered when a full batch is sent.
    Rest,
}

/// How far things are, for [`Outgoing::progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Everything before this was received.
    pub(crate) received: Lsn,
    /// No view lacks anything before this.
    pub(crate) settled: Lsn,
}

/// What is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    Batch,
    Event,
}

/// What waits to be reported.
#[derive(Debug)]
pub(crate) struct Outgoing {
    batch: ChangeBatch,
    part: Part,
    events: VecDeque<Event>,
    /// The events wait until the batch is sent.
    batch_first: bool,
    /// The last commit in the batch.
    mark: Option<Mark>,
    reported: Reach,
    /// The last commit before the position that was received.
    token: ResumeToken,
}

impl Outgoing {
    /// Nothing waits; everything before `position` is known, and `mark` is the last commit of it.
    pub(crate) fn new(position: Lsn, mark: Option<Mark>) -> Self {
        let reported = Reach { received: position, settled: position };
        let token = Mark::token_of(mark);
        Self {
            batch: ChangeBatch::default(),
            part: Part::Nothing,
            events: VecDeque::new(),
            batch_first: false,
            mark: None,
            reported,
            token,
        }
    }

    /// Where the next row change of the open transaction goes, whose commit record starts at `start`.
    pub(crate) fn batch(&mut self, start: Lsn) -> &mut ChangeBatch {
        if self.part == Part::Nothing {
            self.part = Part::All;
        }
        // In each piece anew: who has the transaction already must know that from its first change on.
        self.batch.begin(start);
        &mut self.batch
    }

    /// The open transaction has ended with the commit `mark`. One without changes leaves nothing in the batch.
    pub(crate) fn commit(&mut self, mark: Mark) {
        match self.part {
            Part::Nothing => return,
            Part::All => {}
            // Its last piece belongs to the others.
            Part::Rest => self.batch_first = true,
        }
        self.batch.commit(mark.start, mark.end);
        self.mark = Some(mark);
        self.part = Part::Nothing;
    }

    /// An event that need not wait for the changes before it.
    pub(crate) fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// An event that comes after all changes of transactions that have ended.
    pub(crate) fn push_after_changes(&mut self, event: Event) {
        self.batch_first |= !self.batch.commits().is_empty();
        self.events.push_back(event);
    }

    /// Whether events wait.
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Whether more changes may be received.
    pub(crate) fn has_room(&self) -> bool {
        self.batch.size() < BATCH_SIZE
    }

    /// Whether no transaction with changes is being received.
    pub(crate) fn is_between(&self) -> bool {
        self.part == Part::Nothing
    }

    /// Refresh views lack what is after `settled`, which is before the position.
    pub(crate) fn unsettled(&mut self, settled: Lsn) {
        self.reported.settled = settled;
    }

    /// What was reported last.
    pub(crate) fn reported(&self) -> Reach {
        self.reported
    }

    fn ready(&self) -> Option<Ready> {
        let batch = !self.batch.is_empty() && (self.part == Part::Nothing || !self.has_room());
        let event = !self.events.is_empty() && !self.batch_first && self.part != Part::Rest;
        match (event, batch) {
            (true, _) => Some(Ready::Event),
            (false, true) => Some(Ready::Batch),
            (false, false) => None,
        }
    }

    /// Whether [`Outgoing::take`] has something.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready().is_some()
    }

    /// Takes the next thing to send; `settled` is what holds once all changes received so far are reported.
    pub(crate) fn take(&mut self, settled: Lsn) -> Option<Event> {
        match self.ready()? {
            Ready::Event => {
                let event = self.events.pop_front();
                // A cut tells a position, too: everything before it has been reported.
                if let Some(Event::Cut { position: Position::Lsn(point, token), .. }) = &event {
                    self.receive(*point, token.clone());
                    self.reported.settled = self.reported.settled.max(*point);
                }
                event
            }
            Ready::Batch => {
                let mut batch = std::mem::take(&mut self.batch);
                let token = Mark::token_of(self.mark.take());
                batch.resumes_with(token.clone());
                self.batch_first = false;
                self.part = if self.part == Part::Nothing { Part::Nothing } else { Part::Rest };
                if let Some(last) = batch.commits().last() {
                    self.receive(last.end, token);
                }
                self.reported.settled = self.reported.settled.max(settled.min(self.reported.received));
                Some(Event::Changes { batch, settled: self.settled() })
            }
        }
    }

    /// Whether a position may be sent, and would say more than the last one.
    pub(crate) fn is_behind(&self, reach: Reach) -> bool {
        let before = self.reported;
        let waits = !self.events.is_empty() || !self.batch.commits().is_empty() || self.part == Part::Rest;
        !waits && (reach.received > before.received || reach.settled > before.settled)
    }

    /// The position as an event; `mark` is the last commit before what was received.
    pub(crate) fn progress(&mut self, reach: Reach, mark: Option<Mark>) -> Event {
        self.receive(reach.received, Mark::token_of(mark));
        self.reported.settled = self.reported.settled.max(reach.settled);
        Event::Progress { received: Position::Lsn(self.reported.received, self.token.clone()), settled: self.settled() }
    }

    fn receive(&mut self, to: Lsn, token: ResumeToken) {
        if to > self.reported.received {
            (self.reported.received, self.token) = (to, token);
        }
    }

    /// The same position as the received one where it is the same place.
    fn settled(&self) -> Position {
        let Reach { received, settled } = self.reported;
        if settled == received { Position::Lsn(settled, self.token.clone()) } else { settled.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One step of a source.
    #[derive(Debug, Clone)]
    enum Step {
        Change(usize),
        Commit,
        Cut,
        Take,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let change = prop_oneof![Just(Step::Change(10)), Just(Step::Change(BATCH_SIZE))];
        prop::collection::vec(prop_oneof![3 => change, 2 => Just(Step::Commit), 1 => Just(Step::Cut), 3 => Just(Step::Take)], 0..60)
    }

    fn cut(point: u64) -> Event {
        Event::Cut { position: Lsn(point).into(), views: Vec::new(), snapshot: false }
    }

    fn mark(start: u64, end: u64) -> Mark {
        Mark { timeline: 1, start: Lsn(start), end: Lsn(end), xid: 1, time: 0 }
    }

    proptest! {
        #[test]
        fn commits_are_whole_in_order_and_cuts_come_after_what_was_before_them(steps in steps()) {
            let mut outgoing = Outgoing::new(Lsn(0), None);
            let mut clock = 0;
            let (mut open, mut sent, mut committed) = (false, Vec::new(), Vec::new());
            let (mut torn, mut settled, mut told) = (false, Lsn(0), 0);
            for step in steps.into_iter().chain([Step::Commit]).chain(std::iter::repeat_n(Step::Take, 70)) {
                clock += 1;
                match step {
                    Step::Change(size) => {
                        if outgoing.has_room() {
                            outgoing.batch(Lsn(clock)).insert(1, |image| image.text(&"x".repeat(size)));
                            open = true;
                        }
                    }
                    Step::Commit => {
                        outgoing.commit(mark(clock, clock));
                        if std::mem::take(&mut open) {
                            committed.push(clock);
                        }
                    }
                    Step::Cut => outgoing.push_after_changes(cut(clock)),
                    Step::Take => match outgoing.take(Lsn(clock)) {
                        Some(Event::Changes { batch, settled: now }) => {
                            sent.extend(batch.commits().iter().map(|commit| commit.end.0));
                            torn = batch.commits().last().map_or(0, |commit| commit.changes) < batch.len();
                            prop_assert_eq!(torn, batch.open().is_some(), "each piece says which transaction goes on");
                            let Position::Lsn(now, token) = now else { panic!("{now:?}") };
                            told = told.max(sent.last().copied().unwrap_or(0));
                            prop_assert!(now >= settled && now.0 <= told);
                            settled = now;
                            if let (Some(last), true) = (batch.commits().last(), settled.0 == told) {
                                prop_assert_eq!(Mark::of(&token), Some(mark(last.start.0, last.end.0)), "a position tells its last commit");
                            }
                        }
                        Some(Event::Cut { position: Position::Lsn(point, _), .. }) => {
                            prop_assert!(!torn, "a cut between two pieces of a transaction");
                            let before: Vec<u64> = committed.iter().copied().filter(|end| *end < point.0).collect();
                            prop_assert!(sent.len() >= before.len(), "a cut before the changes before it");
                            told = told.max(point.0);
                        }
                        None => {}
                        other => panic!("{other:?}"),
                    },
                }
                prop_assert!(open != outgoing.is_between());
            }
            prop_assert_eq!(sent, committed);
            prop_assert!(!outgoing.has_events() && !outgoing.is_ready());
        }
    }

    #[test]
    fn a_position_waits_for_the_changes_before_it() {
        let mut outgoing = Outgoing::new(Lsn(1), None);
        let reach = Reach { received: Lsn(9), settled: Lsn(9) };
        assert!(outgoing.is_behind(reach));
        outgoing.batch(Lsn(5)).truncate(1);
        assert!(outgoing.is_behind(reach), "a transaction that is being received is after the position");
        outgoing.commit(mark(5, 6));
        assert!(!outgoing.is_behind(reach));
        assert!(matches!(outgoing.take(Lsn(9)), Some(Event::Changes { settled: Position::Lsn(Lsn(6), _), .. })));
        assert!(outgoing.is_behind(reach));
        assert!(matches!(outgoing.progress(reach, None), Event::Progress { received: Position::Lsn(Lsn(9), _), .. }));
        assert!(!outgoing.is_behind(reach));
    }
}
