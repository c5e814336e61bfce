//! The queries once more, at a point of the log, for an audit.
//!
//! A temporary slot exports the only kind of snapshot that PostgreSQL ties to a log position ([`slot`](super::slot)): exactly the
//! transactions whose commit record starts before its point are in it, so the answers are those of the desired facts when these have
//! exactly the same commits. It costs what a refresh of all views costs: each query once, up to four at a time, and a snapshot that is
//! held until the last of them is through, which keeps VACUUM from removing rows that died since.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    data::Position,
    source::{
        Answer, SourceError, Stand, Testimony, Witness,
        postgres::{
            fault,
            read::{Load, Reader},
            session::{Purpose, Server},
            slot::{Anchor, Lifetime},
        },
    },
};

/// Asks one database.
pub(crate) struct PostgresWitness {
    pub(crate) server: Server,
    /// Temporary slots are named after it.
    pub(crate) slot: String,
    pub(crate) version: u32,
    pub(crate) reader: Reader,
    /// The views that depend on the time.
    pub(crate) clocks: BTreeSet<usize>,
}

impl Witness for PostgresWitness {
    fn stand(&self, _: Position, views: Vec<usize>) -> BoxFuture<'static, Result<Stand, SourceError>> {
        let Self { server, slot, version, reader, clocks } = self;
        let (server, slot, version, reader) = (server.clone(), slot.clone(), *version, reader.clone());
        let timed = |view: &usize| clocks.contains(view).then(|| (*view, Load { tables: BTreeMap::new(), clock: true }));
        let loads: BTreeMap<usize, Load> = views.iter().filter_map(timed).collect();
        async move {
            let asked = server.clone();
            let anchor = Anchor::create(server, slot, version, Lifetime::Temporary).await?;
            let position = Position::from(anchor.point);
            let testimony = async move {
                // The whole anchor, not just its name: its session exports the snapshot until the last view is read.
                let anchor = anchor;
                let outcomes = reader.read(&anchor.snapshot, &views, &loads, &|_, _| ()).await?;
                let about = about(&asked).await?;
                let views = outcomes.into_iter().map(|(view, outcome)| match outcome {
                    Ok(reading) => Answer { view, rows: Ok(reading.answer), now: reading.now },
                    Err(problem) => Answer { view, rows: Err(problem), now: None },
                });
                Ok(Testimony { about, views: views.collect() })
            };
            Ok(Stand { position, testimony: testimony.boxed() })
        }
        .boxed()
    }
}

/// The server's version, and its timeline as the names of its log files have it.
async fn about(server: &Server) -> Result<BTreeMap<&'static str, String>, SourceError> {
    let session = server.connect(Purpose::Read).await?;
    let sql = "SELECT pg_catalog.current_setting('server_version'),
                      pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8)";
    let row = session.client.query_one(sql, &[]).await.map_err(|error| fault::sql(&server.name, "ask for its version", error))?;
    let timeline = u32::from_str_radix(row.get(1), 16).unwrap_or_default();
    session.close().await;
    Ok(BTreeMap::from([("server_version", row.get(0)), ("timeline", timeline.to_string())]))
}
