//! The heartbeat: proves that the link is alive, moves an idle stream on, and looks for changes the log does not carry.
//!
//! A replication link that hears nothing may be idle or dead; TCP cannot tell. So from time to time an SQL session writes
//! a transactional message into the log (`pg_logical_emit_message`, which needs no table and no privilege), and it must
//! come back through the stream. The message is a commit of its own, so it also carries the stream past any position that
//! was in the log before it, which is how somebody who waits for a position between two commits gets an answer at once.
//!
//! Some DDL changes what a query returns without a row in our change log. So each heartbeat takes a [`Look`] at the catalogues, which is
//! compared with the last one. The stream asks for one, too, when it announces a table ([`Pulse::look`]): it does so after every change of
//! the table or the publication, before the first row that follows the change.
//!
//! The session also asks for the server's clock, for views that depend on the time.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    data::Lsn,
    source::{
        SourceError,
        postgres::{
            fault,
            look::{Look, LookedAt, Looking},
            session::{Purpose, Server, Session},
        },
    },
};

/// The prefix of our messages in the log.
pub(crate) const PREFIX: &str = "factsync";
/// Between two heartbeats on an idle link. A slot's log and a partition's TRUNCATE wait for it.
pub(crate) const EVERY: Duration = Duration::from_secs(10);
/// How long a heartbeat may stay away while nothing else arrives either.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Between two heartbeats for a position that the first did not reach, because it lies in the future.
pub(crate) const AGAIN: Duration = Duration::from_secs(1);

/// Between two looks at whether a transaction is over that the stream has told about. Usually that is a matter of microseconds; with a
/// synchronous standby, of its round trip.
const RUNS_POLL: Duration = Duration::from_millis(2);
/// Whether a transaction runs: until others see its commit, it holds the lock on its own number.
const RUNS: &str = "SELECT FROM pg_catalog.pg_locks WHERE locktype = 'transactionid' AND granted AND mode = 'ExclusiveLock'
    AND transactionid::text = $1";
/// One heartbeat, sent.
pub(crate) struct Beat {
    /// The end of the log.
    pub(crate) head: Lsn,
    /// What was seen before it was written.
    pub(crate) look: Look,
}

/// The server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockTime {
    /// What it showed, in microseconds since 2000-01-01 UTC.
    pub(crate) at: i64,
    /// When the answer was here: at that moment the clock showed no less.
    pub(crate) seen: std::time::Instant,
}

/// The session that heartbeats are sent from.
pub(crate) struct Pulse {
    server: Server,
    session: Session,
    looking: Looking,
}

impl Pulse {
    /// Connects; looks at what is `looked_at`.
    pub(crate) async fn new(server: Server, looked_at: LookedAt) -> Result<Self, SourceError> {
        let session = server.connect(Purpose::Write).await?;
        let looking = Looking::at(&session.client, looked_at).await;
        let looking = looking.map_err(|error| fault::sql(&server.name, "look at the catalogues", error))?;
        Ok(Self { server, session, looking })
    }

    /// Writes a message with `content`.
    pub(crate) async fn beat(&self, content: &str) -> Result<Beat, SourceError> {
        let beating = async {
            let client = &self.session.client;
            // Looked at before the message is written, so that what is seen after the message belongs to the next beat.
            let look = self.looking.look(&self.session.client).await?;
            client.execute("SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)", &[&PREFIX, &content]).await?;
            let head = client.query_one("SELECT pg_catalog.pg_current_wal_lsn()::text", &[]).await?;
            Ok(Beat { head: head.get::<_, String>(0).parse().unwrap_or_default(), look })
        };
        self.in_time("write a heartbeat", beating).await
    }

    /// Looks at the catalogues once `transaction`, which the stream has begun to tell about, is over for everybody else, too: the
    /// stream is told of a commit before others see it.
    pub(crate) async fn look(&self, transaction: Option<u32>) -> Result<Look, SourceError> {
        let looking = async {
            while let Some(xid) = transaction
                && self.session.client.query_opt(RUNS, &[&xid.to_string()]).await?.is_some()
            {
                tokio::time::sleep(RUNS_POLL).await;
            }
            self.looking.look(&self.session.client).await
        };
        self.in_time("look at the catalogues", looking).await
    }

    /// Asks for the time.
    pub(crate) async fn clock(&self) -> Result<ClockTime, SourceError> {
        let asking = async {
            let sql = format!("SELECT {}", micros("pg_catalog.clock_timestamp()"));
            let row = self.session.client.query_one(&sql, &[]).await?;
            Ok(ClockTime { at: row.get(0), seen: std::time::Instant::now() })
        };
        self.in_time("ask for the time", asking).await
    }

    async fn in_time<T>(
        &self,
        action: &'static str,
        asking: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, SourceError> {
        let answer = tokio::time::timeout(DEADLINE, asking).await.map_err(|_| fault::timeout(&self.server.name, action))?;
        answer.map_err(|error| fault::sql(&self.server.name, action, error))
    }
}

/// A timestamptz in microseconds since 2000-01-01 UTC, exactly: from PostgreSQL 14 on `extract` is numeric.
pub(crate) fn micros(timestamp: &str) -> String {
    format!("((pg_catalog.extract('epoch', {timestamp}) - 946684800) * 1000000)::pg_catalog.int8")
}

/// When heartbeats are due and whether they come back.
#[derive(Debug)]
pub(crate) struct Rhythm {
    name: String,
    sent: u64,
    next: Instant,
    /// The one that is on its way, and since when.
    outstanding: Option<(String, Instant)>,
    last_heard: Instant,
}

impl Rhythm {
    /// The first one is due at once.
    pub(crate) fn new(name: &str, now: Instant) -> Self {
        Self { name: name.to_owned(), sent: 0, next: now, outstanding: None, last_heard: now }
    }

    /// When the next one is due; `None` while one is on its way.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.outstanding.is_none().then_some(self.next)
    }

    /// One is wanted no later than at `when`.
    pub(crate) fn hurry(&mut self, when: Instant) {
        self.next = self.next.min(when);
    }

    /// Sends one; gives its content.
    pub(crate) fn send(&mut self, now: Instant) -> String {
        self.sent += 1;
        self.next = now + EVERY;
        let content = format!("{} {}", self.name, self.sent);
        self.outstanding = Some((content.clone(), now));
        content
    }

    /// Something arrived through the stream.
    pub(crate) fn hear(&mut self, now: Instant) {
        self.last_heard = now;
    }

    /// A message arrived; whether it is the one that was on its way.
    pub(crate) fn returned(&mut self, content: &[u8]) -> bool {
        let ours = self.outstanding.as_ref().is_some_and(|(sent, _)| sent.as_bytes() == content);
        if ours {
            self.outstanding = None;
        }
        ours
    }

    /// When the link counts as dead unless something arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.outstanding.as_ref().map(|(_, since)| (*since).max(self.last_heard) + DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_dead_only_when_nothing_at_all_comes_back() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new("factsync", start);
        assert!(rhythm.deadline().is_none());
        let content = rhythm.send(start);
        assert_eq!(rhythm.deadline(), Some(start + DEADLINE));
        rhythm.hear(start + DEADLINE / 2);
        assert_eq!(rhythm.deadline(), Some(start + DEADLINE / 2 + DEADLINE));
        assert!(!rhythm.returned(b"another factsync's"));
        assert!(rhythm.returned(content.as_bytes()));
        assert!(rhythm.deadline().is_none());
        assert_eq!(rhythm.next(), Some(start + EVERY));
    }
}
