//! A source whose data are another cluster's than those the desired facts came from, under the same name.
//!
//! That is what a restore from a dump looks like, and what a wrong address looks like. The first has to heal by itself, deletes included;
//! the second must not take everybody's access away. Both are a new history, told loudly with both identities; what tells them apart is
//! how much goes. So until the source is *recognised* the guard holds what exceeds the percentage alone, however few facts that
//! are: a restored database differs by a little, a foreign one in nearly everything.
//!
//! A source is recognised when the fact store was compared and nothing is held: the rows are back, or a person let the removals go. Only
//! then its identity is written down. Until then the stored one is nobody's, so that a start in between, at whichever of the two clusters,
//! begins again, as strictly.

use tracing::{info, warn};

use crate::{
    config::MaxRemovals,
    engine::{
        compare::Compared,
        error::EngineError,
        ingest::{Ingest, Session},
    },
    source::Prepared,
    view::Guard,
};

/// Follows the identity that the facts came from, until another one is recognised.
const UNRECOGNISED: &str = ", or one that is not recognised yet";

/// What is known of it.
#[derive(Debug)]
pub(super) struct Stranger {
    identity: String,
    /// The guard from the moment on at which it is recognised.
    guard: Guard,
}

impl Ingest {
    /// The source has another identity than the `stored` one. Tells what to store meanwhile, and why everything is read again.
    pub(super) fn meet(&mut self, prepared: &Prepared, stored: &str) -> (String, String) {
        let before = stored.trim_end_matches(UNRECOGNISED);
        let now = &prepared.identity;
        let guard = match self.stranger.take() {
            Some(stranger) => stranger.guard,
            None => {
                warn!(source = self.name, before, now, "this is not the cluster that the facts came from; comparing all of them, strictly");
                self.guard
            }
        };
        self.guard = strict(guard);
        self.stranger = Some(Stranger { identity: now.clone(), guard });
        (format!("{before}{UNRECOGNISED}"), format!("the data may be another cluster's: the facts came from {before}, this is {now}"))
    }

    /// Takes the source for the one that is meant from now on, if it may be.
    pub(super) async fn recognise(&mut self, session: &mut Session) -> Result<(), EngineError> {
        let compared = matches!(session.compared, Compared::Done(_));
        let Some(stranger) = self.stranger.take_if(|_| compared && self.views.iter().all(|view| view.held == 0)) else { return Ok(()) };
        self.writer.set_identity(&self.name, &stranger.identity).await?;
        info!(source = self.name, identity = stranger.identity, "the source's facts come from this cluster from now on");
        self.guard = stranger.guard;
        Ok(())
    }
}

/// The same with the percentage as the only limit.
fn strict(guard: Guard) -> Guard {
    let few = |limits: MaxRemovals| MaxRemovals { count: 0, ..limits };
    match guard {
        Guard::Limit(limits) => Guard::Limit(few(limits)),
        Guard::Adopt(limits) => Guard::Adopt(few(limits)),
        Guard::Off => Guard::Off,
    }
}
