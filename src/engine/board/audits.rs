//! Asking for an audit of every source.

use futures_util::future;
use tokio::sync::{mpsc, oneshot};

use crate::{
    engine::{audit::Asked, board::Board},
    reconcile::{Audit, SourceAudit},
};

impl Board {
    /// Whom to ask, a sender for each source.
    pub(in crate::engine) fn audits(&self, senders: Vec<mpsc::Sender<Asked>>) {
        // There is one run to a board.
        let _ = self.audits.set(senders);
    }

    /// Audits every source, with `repair` repairing what differs.
    ///
    /// A source that is not followed at the moment is audited as soon as it is: whoever has less patience drops the future.
    pub async fn audit(&self, repair: bool) -> Audit {
        let senders = self.audits.get().map_or(&[][..], Vec::as_slice);
        let outcomes = future::join_all(senders.iter().map(|sender| ask(sender, repair))).await;
        let names: Vec<String> = self.lines().sources.iter().map(|line| line.name.clone()).collect();
        Audit::new(names.into_iter().zip(outcomes))
    }
}

async fn ask(sender: &mpsc::Sender<Asked>, repair: bool) -> Result<SourceAudit, String> {
    let (reply, answer) = oneshot::channel();
    sender.send(Asked { repair, reply }).await.map_err(|_| "factsync is being stopped".to_owned())?;
    answer.await.map_err(|_| "factsync is being stopped".to_owned())?
}
