//! How much of the server's log the slot holds back, and the end of that.
//!
//! A slot keeps the log from the oldest thing on that its reader may still ask for, until the server's disk is full. Whoever reads slowly
//! must not be what takes the application down, so with `sync.max_wal` there is a limit: beyond it the slot is dropped, and a new
//! snapshot makes good for what it had. It is watched from the moment on at which the slot is ours, beside everything else: while a slot is
//! being created, while views are read, while the stream goes on. Beside, because a stream that lags is what there is to notice.
//!
//! A process that is dead lets go of nothing. For that the server has `max_slot_wal_keep_size`.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use tokio_postgres::Client;
use tracing::warn;

use crate::source::{
    Event, SourceError, WalRisk,
    postgres::{
        fault,
        session::{Purpose, Server},
        slot,
    },
};

/// Between two looks. A disk that takes 200 MB/s has a gigabyte more by then, and the server answers from memory.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long the server's own process may hold on to the slot after the connection was cut and it was told to end.
const RELEASE_PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at.
const RELEASE_POLL: Duration = Duration::from_millis(100);

/// What a slot holds.
struct Held {
    bytes: u64,
    risk: WalRisk,
}

/// The slot and its limit.
#[derive(Clone)]
pub(crate) struct Budget {
    pub(crate) server: Server,
    pub(crate) slot: String,
    /// Bytes of log; `None` for as much as the server allows.
    pub(crate) limit: Option<u64>,
}

impl Budget {
    /// Looks at what the slot holds and tells it; returns when that is more than the limit, with what is to be said of it.
    pub(crate) async fn exceeded(&self, events: &mpsc::Sender<Event>) -> String {
        let mut told = WalRisk::None;
        loop {
            match self.watch(events, &mut told).await {
                Ok(problem) => return problem,
                // If the server is away, whoever reads from the slot says so.
                Err(error) => tracing::debug!(source = &*self.server.name, %error, "cannot look at the slot"),
            }
            time::sleep(LOOK_EVERY).await;
        }
    }

    async fn watch(&self, events: &mpsc::Sender<Event>, told: &mut WalRisk) -> Result<String, SourceError> {
        let session = self.server.connect(Purpose::Read).await?;
        loop {
            if let Some(held) = self.look(&session.client).await? {
                if held.risk != *told {
                    *told = held.risk;
                    self.warn(&held);
                }
                // A report more or less does not matter; a look that waits for room would be none.
                let _ = events.try_send(Event::WalKept { bytes: held.bytes, risk: held.risk });
                if let Some(limit) = self.limit.filter(|limit| held.bytes > *limit) {
                    let Held { bytes, .. } = held;
                    return Ok(format!("slot \"{}\" held {bytes} bytes of the server's log, more than sync.max_wal ({limit})", self.slot));
                }
            }
            time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look(&self, client: &Client) -> Result<Option<Held>, SourceError> {
        let sql = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::pg_catalog.int8, wal_status
                   FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL";
        let row = client.query_opt(sql, &[&self.slot]).await.map_err(|error| fault::sql(&self.server.name, "look at the slot", error))?;
        Ok(row.map(|row| Held {
            bytes: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default(),
            risk: match row.get::<_, Option<&str>>(1) {
                Some("extended") => WalRisk::Extended,
                Some("unreserved" | "lost") => WalRisk::Unreserved,
                Some(_) | None => WalRisk::None,
            },
        }))
    }

    fn warn(&self, held: &Held) {
        let (source, slot, bytes) = (&*self.server.name, &*self.slot, held.bytes);
        if let Some(problem) = held.risk.problem() {
            warn!(source, slot, bytes, problem, "the slot holds much of the server's log");
        }
    }

    /// Drops the slot. Nobody of ours reads from it any more, but the server's end of the connection may not have noticed.
    pub(crate) async fn let_go(&self) -> Result<(), SourceError> {
        let failed = |error| fault::sql(&self.server.name, "drop its slot", error);
        let session = self.server.connect(Purpose::Write).await?;
        let began = Instant::now();
        loop {
            let active = "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots
                          WHERE slot_name = $1 AND active_pid IS NOT NULL";
            let active = session.client.query_opt(active, &[&self.slot]).await.map_err(failed)?.is_some();
            // A slot whose creation did not end goes with its process.
            let exists = slot::state(&session.client, &self.slot).await.map_err(failed)? != slot::SlotState::Missing;
            if !exists {
                return Ok(());
            }
            if !active {
                match slot::drop_slot(&session.client, &self.slot).await {
                    Ok(()) => return Ok(()),
                    Err(error) if began.elapsed() > RELEASE_PATIENCE => return Err(failed(error)),
                    Err(_) => {}
                }
            } else if began.elapsed() > RELEASE_PATIENCE {
                return Err(fault::timeout(&self.server.name, "drop its slot"));
            }
            time::sleep(RELEASE_POLL).await;
        }
    }
}
