//! What the messages of the stream mean: row changes go into the batch, touched refresh views become dirty, the position moves.

use std::collections::BTreeSet;

use pgwire_replication::{PgWireError, ReplicationEvent};

use crate::{
    data::Lsn,
    source::{
        Event, SourceError, SourceState,
        postgres::{
            decode::{Message, RowChange, decode},
            fault,
            images::Wrong,
            mark::OtherHistory,
            pulse,
            tail::Tail,
        },
    },
};

/// What is said of a message that makes no sense.
const UNREADABLE: &str = "a message of the stream cannot be read";
/// `undefined_object`.
const UNDEFINED_OBJECT: &str = "42704";
/// A transaction that is being received.
pub(super) struct Transaction {
    /// Its number.
    pub(super) xid: u32,
    /// Where its commit record starts.
    pub(super) commit: Lsn,
    time: i64,
    /// Whether it is the position's [mark](crate::source::postgres::mark), and was applied before.
    known: bool,
    /// The refresh views it touches.
    pub(super) touched: BTreeSet<usize>,
}

impl Tail {
    pub(super) fn event(&mut self, event: Option<ReplicationEvent>) -> Result<(), SourceError> {
        match event {
            Some(ReplicationEvent::Begin { final_lsn, xid, commit_time_micros: time }) => {
                self.begin(Lsn(final_lsn.as_u64()), xid, time)?;
            }
            Some(ReplicationEvent::XLogData { data, .. }) => self.change(&data)?,
            Some(ReplicationEvent::Commit { lsn, end_lsn, .. }) => self.commit(Lsn(lsn.as_u64()), Lsn(end_lsn.as_u64()))?,
            Some(ReplicationEvent::KeepAlive { wal_end, reply_requested, .. }) => {
                // It hears of us every few seconds, so it asks because it shuts down, and waits.
                self.asks |= reply_requested;
                if self.transaction.is_none() {
                    let end = Lsn(wal_end.as_u64());
                    self.history.passes(end).map_err(|other| self.forked(other))?;
                    self.receive(end);
                }
            }
            Some(ReplicationEvent::Message { prefix, content, .. }) => {
                if prefix == pulse::PREFIX && !self.transaction.as_ref().is_some_and(|transaction| transaction.known) {
                    self.rhythm.returned(&content);
                }
            }
            // We ask for no end.
            Some(ReplicationEvent::StoppedAt { .. }) | None => {
                return Err(self.broken("the server ended the stream"));
            }
        }
        Ok(())
    }

    fn begin(&mut self, commit: Lsn, xid: u32, time: i64) -> Result<(), SourceError> {
        let known = self.history.begins(commit, xid, time).map_err(|other| self.forked(other))?;
        self.asks = false;
        self.transaction = Some(Transaction { commit, xid, time, known, touched: BTreeSet::new() });
        Ok(())
    }

    fn change(&mut self, data: &[u8]) -> Result<(), SourceError> {
        let known = self.transaction.as_ref().is_some_and(|transaction| transaction.known);
        match decode(data) {
            // Applied before; but what it announces is announced once only.
            Message::Row(_) | Message::Truncate(_) if known => {}
            Message::Row(row) => {
                self.touched(row.relation);
                if self.plan.images.keep(row.relation) {
                    self.deliver(row)?;
                }
            }
            Message::Truncate(relations) => {
                for relation in relations {
                    self.touched(relation);
                    if self.plan.images.keep(relation) {
                        let Some(transaction) = &self.transaction else { return Err(self.broken(UNREADABLE)) };
                        self.outgoing.batch(transaction.commit).truncate(relation);
                    }
                }
            }
            Message::Shape(shape) => {
                self.plan.images.shape(&shape);
                // Sent before the first row of each table, and again after DDL on it.
                if self.plan.views.contains_key(&shape.relation) || self.plan.images.keep(shape.relation) {
                    self.analyze_soon();
                    self.check();
                }
            }
            Message::Nothing => {}
            Message::Unknown => return Err(self.broken(UNREADABLE)),
        }
        Ok(())
    }

    fn deliver(&mut self, row: RowChange<'_>) -> Result<(), SourceError> {
        let Some(transaction) = &self.transaction else { return Err(self.broken(UNREADABLE)) };
        self.plan.images.row(row, transaction.commit, self.outgoing.batch(transaction.commit)).map_err(|wrong| match wrong {
            Wrong::Unreadable => self.broken(UNREADABLE),
            Wrong::Changed { views, problem } => self.changed(views, problem),
        })
    }

    fn touched(&mut self, relation: u32) {
        if let (Some(transaction), Some(views)) = (&mut self.transaction, self.plan.views.get(&relation)) {
            transaction.touched.extend(views);
        }
    }

    fn commit(&mut self, start: Lsn, end: Lsn) -> Result<(), SourceError> {
        let Some(Transaction { xid, time, known, touched, .. }) = self.transaction.take() else { return Err(self.broken(UNREADABLE)) };
        if known {
            self.history.continues(end).map_err(|other| self.forked(other))?;
            self.outgoing.push(Event::State(SourceState::Streaming));
            return Ok(());
        }
        // Commits come in the order of their records: everything before this one has been received.
        self.pass(start);
        for view in touched {
            self.dirty.touch(view, start);
        }
        let mark = self.history.commits((start, end), xid, time);
        self.outgoing.commit(mark);
        self.receive(end);
        Ok(())
    }

    fn receive(&mut self, end: Lsn) {
        self.received = self.received.max(end);
        self.head = self.head.max(end);
        self.pass(self.received);
    }

    /// Every commit that starts before `seen` has been received.
    pub(super) fn pass(&mut self, seen: Lsn) {
        if let Some(point) = self.refresh.waits_for().filter(|point| *point <= seen) {
            let views = self.dirty.take(point);
            self.refresh.read(views);
            // Commits after the point may have been received already, without any event: the position of the cut is not behind them.
            self.cut_mark = self.history.last_before(point);
        }
    }

    fn forked(&self, other: OtherHistory) -> SourceError {
        SourceError::PositionLost { name: self.server.name.to_string(), problem: other.to_string() }
    }

    pub(super) fn lost(&self, error: PgWireError) -> SourceError {
        match &error {
            // Dropped and made anew, the publication does not exist at the places in the log in between: the stream cannot get past them.
            PgWireError::Server(text) if fault::sqlstate(text) == UNDEFINED_OBJECT => SourceError::PositionLost {
                name: self.server.name.to_string(),
                problem: "the publication was dropped meanwhile".to_owned(),
            },
            _ => fault::replication(&self.server.name, "stream changes", error),
        }
    }

    pub(super) fn broken(&self, problem: &'static str) -> SourceError {
        SourceError::Unreachable { name: self.server.name.to_string(), action: "stream changes", source: problem.into() }
    }

    pub(super) fn changed(&self, views: Vec<usize>, problem: String) -> SourceError {
        SourceError::ViewsChanged { name: self.server.name.to_string(), views, problem }
    }

    pub(super) fn analyze_soon(&mut self) {
        self.next_analysis = self.next_analysis.min(self.analyzed + super::REANALYZE_PAUSE);
    }
}
