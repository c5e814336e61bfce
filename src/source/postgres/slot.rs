//! Replication slots: their state, and the exported snapshot that ties query results to a log position.
//!
//! `CREATE_REPLICATION_SLOT … EXPORT_SNAPSHOT` decodes the log until it has a state it can describe completely, and returns
//! two things that belong together: a *consistent point*, and a snapshot in which exactly the transactions are
//! visible whose commit record starts before that point. Decoding from the slot delivers exactly the others. No other snapshot
//! has this property: an ordinary one shows transactions in the order in which they left the list of running ones, which is not
//! the order of their commit records. The snapshot can be imported while the session that created it is idle; its next
//! command, START_REPLICATION too, ends it.
//!
//! Creating a slot waits for the transactions that are running. A transaction that is left open for an hour delays a snapshot for an
//! hour, which is reported.

use std::time::Duration;

use pgwire_replication::ReplicationClient;
use tokio::time;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::{
    data::Lsn,
    source::{
        SourceError,
        postgres::{
            fault,
            mark::{Log, Resume},
            session::Server,
        },
    },
};

/// How long a slot may take to be created before the log says what it waits for. Without other transactions it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the server may take to accept START_REPLICATION; it reads the slot from disk and answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// The first version whose standbys can have the slots of their primary.
const HAS_FAILOVER: u32 = 170_000;
/// Bytes kept of the slot's name in the name of a temporary one: 63 are allowed, 17 are taken by a separator and randomness.
const TEMPORARY_PREFIX: usize = 46;
/// Texts in the stream are the bytes that the server has. In a database of another encoding a text may have no counterpart in UTF-8, and
/// the server would end the stream at it, each time again. There no view is incremental, so nobody reads them; in UTF-8 it is the same.
const AS_STORED: &str = "SET client_encoding = 'SQL_ASCII'";

/// A slot, seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// There is none.
    Missing,
    /// Somebody streams from it, or creates it.
    Active,
    /// It is not one that we could have created; the sentence says why.
    Foreign(String),
    /// The server has given up keeping its log.
    Lost(String),
    /// Nobody uses it; changes up to here have been acknowledged.
    Free(Lsn),
}

/// How long a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// Until it is dropped; the one we stream from.
    Permanent,
    /// As long as its session; only its snapshot is used.
    Temporary,
}

/// A state of the source that can be read (`snapshot`) and has a position (`point`).
pub(crate) struct Anchor {
    /// Transactions whose commit record starts before this are in the snapshot, no others.
    pub(crate) point: Lsn,
    /// The exported snapshot's name, valid while this lives.
    pub(crate) snapshot: String,
    client: ReplicationClient,
}

impl Anchor {
    /// Creates a slot; for a temporary one `slot` is the beginning of its name.
    pub(crate) async fn create(server: Server, slot: String, version: u32, lifetime: Lifetime) -> Result<Self, SourceError> {
        let action = "create a replication slot";
        let (name, temporary) = match lifetime {
            Lifetime::Permanent => (slot, ""),
            Lifetime::Temporary => (temporary_name(&slot), " TEMPORARY"),
        };
        let mut client = server.replicate(&name, version, 0).await?;
        let options = match lifetime {
            // A standby that synchronizes slots has it, too, so that a failover costs no snapshot.
            Lifetime::Permanent if version >= HAS_FAILOVER => "(SNAPSHOT 'export', FAILOVER true)",
            Lifetime::Permanent | Lifetime::Temporary => "EXPORT_SNAPSHOT",
        };
        let command = format!("CREATE_REPLICATION_SLOT {name}{temporary} LOGICAL pgoutput {options}");
        let rows = {
            let creating = client.simple_query(&command);
            tokio::pin!(creating);
            match time::timeout(PATIENCE, &mut creating).await {
                Ok(rows) => rows,
                Err(_) => {
                    tracing::warn!(source = &*server.name, "a snapshot waits for running transactions of the database to end");
                    creating.await
                }
            }
        };
        let rows = rows.map_err(|error| fault::replication(&server.name, action, error))?;
        let text = |column: usize| rows.first()?.get(column)?.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok());
        match (text(1).and_then(|point| point.parse().ok()), text(2).map(str::to_owned)) {
            (Some(point), Some(snapshot)) => Ok(Self { point, snapshot, client }),
            _ => Err(SourceError::Unreachable {
                name: server.name.to_string(),
                action,
                source: "the answer has no consistent point and snapshot".into(),
            }),
        }
    }

    /// Gives up the snapshot and streams from the slot.
    pub(crate) async fn stream(self, server: &Server) -> Result<ReplicationClient, SourceError> {
        start(server, self.client).await
    }
}

/// A started stream.
pub(crate) struct Streaming {
    pub(crate) client: ReplicationClient,
    /// The position that it goes on from.
    pub(crate) from: Lsn,
    /// How it proves that it goes on from there.
    pub(crate) resume: Resume,
    /// The server's log.
    pub(crate) log: Log,
}

/// Sends START_REPLICATION and waits until the slot is ours.
pub(crate) async fn start(server: &Server, mut client: ReplicationClient) -> Result<ReplicationClient, SourceError> {
    let action = "start replication";
    let failed = |error| fault::replication(&server.name, action, error);
    client.simple_query(AS_STORED).await.map_err(failed)?;
    client.start().await.map_err(failed)?;
    time::timeout(START_TIMEOUT, client.wait_started()).await.map_err(|_| fault::timeout(&server.name, action))?.map_err(failed)?;
    Ok(client)
}

fn temporary_name(slot: &str) -> String {
    let random = Uuid::new_v4().simple().to_string();
    format!("{slot:.TEMPORARY_PREFIX$}_{random:.16}")
}

/// Looks at the slot `name`.
pub(crate) async fn state(client: &Client, name: &str) -> Result<SlotState, tokio_postgres::Error> {
    let row = client
        .query_opt(
            // The reason is a column from PostgreSQL 17 on.
            "SELECT active, plugin::text, database::text, database = pg_catalog.current_database(), temporary, wal_status,
                    confirmed_flush_lsn::text, pg_catalog.to_jsonb(slots.*) ->> 'invalidation_reason'
             FROM pg_catalog.pg_replication_slots AS slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(SlotState::Missing) };
    let (plugin, database): (Option<&str>, Option<&str>) = (row.get(1), row.get(2));
    if plugin != Some("pgoutput") || row.get(4) {
        return Ok(SlotState::Foreign(format!("slot \"{name}\" is not a permanent pgoutput slot. Choose another name with sync.slot")));
    }
    if row.get::<_, Option<bool>>(3) != Some(true) {
        let database = database.unwrap_or_default();
        return Ok(SlotState::Foreign(format!("slot \"{name}\" belongs to database \"{database}\". Choose another name with sync.slot")));
    }
    if row.get(0) {
        return Ok(SlotState::Active);
    }
    match (row.get::<_, Option<&str>>(5), row.get::<_, Option<&str>>(6).and_then(|lsn| lsn.parse().ok())) {
        (Some("lost"), _) => {
            let why = match row.get::<_, Option<&str>>(7) {
                Some("wal_removed") | None => "it fell behind max_slot_wal_keep_size",
                Some("idle_timeout") => "nobody used it for idle_replication_slot_timeout",
                Some("wal_level_insufficient") => "wal_level was lowered",
                Some(other) => other,
            };
            Ok(SlotState::Lost(format!("slot \"{name}\" was invalidated by the server: {why}")))
        }
        (_, None) => Ok(SlotState::Lost(format!("slot \"{name}\" was never completed"))),
        (_, Some(confirmed)) => Ok(SlotState::Free(confirmed)),
    }
}

/// Drops the slot `name`.
pub(crate) async fn drop_slot(client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    client.execute("SELECT pg_catalog.pg_drop_replication_slot($1::text::name)", &[&name]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::session::is_plain_name;

    #[test]
    fn a_temporary_name_is_a_plain_name_of_its_own() {
        for slot in ["factsync", &"a".repeat(63)] {
            let name = temporary_name(slot);
            assert!(is_plain_name(&name), "{name}");
            assert_ne!(name, temporary_name(slot));
        }
    }
}
