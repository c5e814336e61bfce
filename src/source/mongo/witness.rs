//! The queries once more, at the cluster time at which the desired facts stand, for an audit.
//!
//! A replica set keeps old states for some minutes, so the stream need not wait for anything: every view is read with `atClusterTime`
//! ([`snapshot`](mod@super::snapshot)) at the time that was applied. Who is further behind than the server's history cannot be audited, and
//! is told so.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    config::MongoConfig,
    data::Position,
    error::Disposition,
    source::{
        Answer, SourceError, Stand, Testimony, Witness,
        mongo::{client::Server, snapshot::Reader},
    },
};

/// Asks one database.
pub(super) struct MongoWitness {
    pub(super) name: String,
    pub(super) config: Arc<MongoConfig>,
    pub(super) spool: PathBuf,
}

impl Witness for MongoWitness {
    fn stand(&self, here: Position, views: Vec<usize>) -> BoxFuture<'static, Result<Stand, SourceError>> {
        let (name, config, spool) = (self.name.clone(), self.config.clone(), self.spool.clone());
        Box::pin(async move {
            let Position::Time(at, _) = here else {
                return Err(SourceError::Unsupported { name, problem: format!("{here} is no cluster time") });
            };
            let testimony = Box::pin(async move {
                let reader = Reader::new(Server::connect(&name, &config).await?, &name, &spool);
                let mut told = Vec::with_capacity(views.len());
                for view in views {
                    let answer = reader.answer(&config.views[view], at, &|_| ()).await;
                    match answer {
                        // The server is gone: the other views would only wait for it, one timeout after the other.
                        Err(error) if error.disposition() == Disposition::Retry => return Err(error),
                        rows => told.push(Answer { view, rows, now: None }),
                    }
                }
                Ok(Testimony { views: told, ..Testimony::default() })
            });
            Ok(Stand { position: here, testimony })
        })
    }
}
