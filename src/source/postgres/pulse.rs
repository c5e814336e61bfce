//! The heartbeat: proves that the link is alive, moves an idle stream on, and looks for changes the log does not carry.
//!
//! A replication link that hears nothing may be idle or dead; TCP cannot tell. So from time to time an SQL session writes
//! a transactional message into the log (`pg_logical_emit_message`, which needs no table and no privilege), and it must
//! come back through the stream. The message is a commit of its own, so it also carries the stream past any position that
//! was in the log before it, which is how somebody who waits for a position between two commits gets an answer at once.
//!
//! Some DDL changes what a query returns without a row in our change log. So each heartbeat takes a [`Look`] at the catalogues and compares
//! it with the last one: at the partitions and their files, because attaching, detaching and dropping one, and TRUNCATE of a single one,
//! are not in the stream; at the publication, because what is taken out of it is missing from the stream without a word; and at the rows of
//! everything that the queries name ([`Named`]), because a view, a function, a label, a policy or a `search_path` can be another one
//! from one moment to the next. A look that differs does not say what follows from it: that takes an analysis.
//!
//! The stream asks for a look, too, when it announces a table ([`Pulse::look`]): it does so after every change of the table or the
//! publication, before the first row that follows the change.
//!
//! The session also asks for the server's clock, for views that depend on the time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_postgres::Statement;

use crate::{
    data::Lsn,
    source::{
        SourceError,
        postgres::{
            fault, publication,
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
/// One text over the catalogue rows of relations, functions and types. `xmin` names the transaction that wrote a row.
pub(crate) const MARKS: &str = "WITH named AS (SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)),
    rows (kind, row) AS (
      SELECT 'c', concat_ws('/', c.oid, c.relname, c.relnamespace, c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity,
        c.relforcerowsecurity, c.relispartition, c.relhassubclass, c.relnatts, c.relowner)
      FROM pg_catalog.pg_class c WHERE c.oid IN (SELECT oid FROM named) OR c.relname IN (SELECT relname FROM named)
      UNION ALL SELECT 'a', concat_ws('/', a.attrelid, a.attnum, a.xmin) FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = ANY ($1) AND a.attnum > 0
      UNION ALL SELECT 'd', concat_ws('/', d.oid, d.xmin) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ANY ($1)
      UNION ALL SELECT 'k', concat_ws('/', i.indexrelid, i.xmin) FROM pg_catalog.pg_index i WHERE i.indrelid = ANY ($1)
      UNION ALL SELECT 'i', concat_ws('/', i.inhparent, i.inhrelid, i.xmin) FROM pg_catalog.pg_inherits i WHERE i.inhparent = ANY ($1)
      UNION ALL SELECT 'r', concat_ws('/', r.oid, r.xmin) FROM pg_catalog.pg_rewrite r WHERE r.ev_class = ANY ($1)
      UNION ALL SELECT 'l', concat_ws('/', p.oid, p.xmin) FROM pg_catalog.pg_policy p WHERE p.polrelid = ANY ($1)
      UNION ALL SELECT 'f', concat_ws('/', p.oid, p.xmin) FROM pg_catalog.pg_proc p WHERE p.oid = ANY ($2)
      UNION ALL SELECT 't', concat_ws('/', t.oid, t.xmin) FROM pg_catalog.pg_type t WHERE t.oid = ANY ($3)
      UNION ALL SELECT 'e', concat_ws('/', e.oid, e.xmin) FROM pg_catalog.pg_enum e WHERE e.enumtypid = ANY ($3)
      UNION ALL SELECT 'n', concat_ws('/', n.oid, n.nspname) FROM pg_catalog.pg_namespace n WHERE n.nspname !~ '^pg_'
      UNION ALL SELECT 's', concat_ws('/', s.setdatabase, s.setrole, s.xmin) FROM pg_catalog.pg_db_role_setting s
      UNION ALL SELECT 'u', concat_ws('/', u.oid, u.rolbypassrls, u.rolsuper) FROM pg_catalog.pg_roles u WHERE u.rolname = current_user)
    SELECT coalesce(pg_catalog.md5(pg_catalog.string_agg(kind || row, ' ' ORDER BY kind, row)), '') FROM rows";

/// What identifies the partitions of a table: changes when one is attached, detached, dropped or gets a new file.
pub(crate) type Shapes = BTreeMap<u32, String>;

/// What the queries name, in whatever schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// Tables with their families, and views.
    pub(crate) relations: Vec<u32>,
    /// Functions.
    pub(crate) functions: Vec<u32>,
    /// Types.
    pub(crate) types: Vec<u32>,
}

/// What the catalogues say, in texts that change when they do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// The partitions of the watched tables.
    pub(crate) shapes: Shapes,
    /// The publication, as [`publication::identity`] has it.
    pub(crate) publication: String,
    /// The rows of what the queries name.
    pub(crate) marks: String,
}

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
    watched: Vec<u32>,
    named: Named,
    /// [`MARKS`], which takes longer to plan than to run.
    marks: Statement,
    publication: Arc<str>,
    version: u32,
}

impl Pulse {
    /// Connects; `watched` are tables with partitions or children, and partitions that are used directly.
    pub(crate) async fn new(server: Server, watched: Vec<u32>, named: Named, publication: &str, version: u32) -> Result<Self, SourceError> {
        let session = server.connect(Purpose::Write).await?;
        let marks = session.client.prepare(MARKS).await.map_err(|error| fault::sql(&server.name, "look at the catalogues", error))?;
        Ok(Self { server, session, watched, named, marks, publication: publication.into(), version })
    }

    /// Writes a message with `content`.
    pub(crate) async fn beat(&self, content: &str) -> Result<Beat, SourceError> {
        let beating = async {
            let client = &self.session.client;
            // Looked at before the message is written, so that what is seen after the message belongs to the next beat.
            let look = self.seen().await?;
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
            self.seen().await
        };
        self.in_time("look at the catalogues", looking).await
    }

    async fn seen(&self) -> Result<Look, tokio_postgres::Error> {
        let client = &self.session.client;
        // Sent together, so that they take one round trip.
        let (shapes, publication, marks) = futures_util::try_join!(
            shapes(client, &self.watched),
            publication::identity(client, &self.publication, self.version),
            marks(client, &self.marks, &self.named)
        )?;
        Ok(Look { shapes, publication, marks })
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

/// The shapes of `watched`.
pub(crate) async fn shapes(client: &tokio_postgres::Client, watched: &[u32]) -> Result<Shapes, tokio_postgres::Error> {
    if watched.is_empty() {
        return Ok(Shapes::new());
    }
    let rows = client
        .query(
            "WITH RECURSIVE tree (root, oid) AS (
               SELECT oid, oid FROM pg_catalog.pg_class WHERE oid = ANY ($1)
               UNION SELECT t.root, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
             SELECT t.root, pg_catalog.md5(pg_catalog.string_agg(c.oid || '/' || c.relfilenode, ' ' ORDER BY c.oid))
             FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid GROUP BY t.root",
            &[&watched],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Changes whenever one of the catalogue rows does that `named` is about; also when a table, a schema or a setting of this role or
/// database begins or ceases to stand in the way of a name. Not what TRUNCATE and VACUUM change, which may be in every commit.
pub(crate) async fn marks(client: &tokio_postgres::Client, statement: &Statement, named: &Named) -> Result<String, tokio_postgres::Error> {
    let row = client.query_one(statement, &[&named.relations, &named.functions, &named.types]).await?;
    Ok(row.get(0))
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
