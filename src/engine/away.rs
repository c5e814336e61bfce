//! While the source is away: time goes on.
//!
//! Between two attempts the loop keeps the flows of the last one, and moves their views along by the clock ([`SourceClock`]), which goes on
//! without the source. So a grant that expires during an outage is revoked at its moment: a store transaction like any other, computed
//! from the views' stored state, delivered like any other. The position does not move, and nobody is told that it did; what the source
//! says when it is back finds the views as if time had passed in its presence, since a view's time is stored with its state.
//!
//! One thing can be missing: an expression over values that have not been seen yet, which only the source computes. Then nothing happens to
//! that view, as if it had not been tried: it stays behind, its state and its place among the incremental views untouched, and catches
//! up when the source is back. It does not hold up the others. Rows that go never need that, for results are stored with the values.
//!
//! After a restart without the source there are no flows: a plan comes from the source's own analysis of the query.
//!
//! [`SourceClock`]: crate::engine::clock::SourceClock

use std::pin::pin;

use tracing::{debug, info};

use crate::engine::{
    error::EngineError,
    flows::Flows,
    ingest::{Ingest, stopped},
};

impl Ingest {
    /// The source is gone, or about to be asked anew: keeps its flows.
    pub(super) fn rest(&mut self, mut flows: Flows) {
        flows.leave_source();
        self.resting = flows;
        self.clock.look();
    }

    /// The flows of a new attempt take over.
    pub(super) fn resume(&mut self, flows: &Flows) {
        self.resting = Flows::default();
        let usable = self.views.iter().filter(|view| view.fingerprint.is_some() && view.demoted.is_none());
        if let Some(clock) = usable.filter_map(|view| view.clock).max() {
            self.clock.passed(clock);
        }
        self.clock.wait_for(None);
        if flows.has_clock() {
            self.clock.look();
        }
    }

    /// Waits for `work` while the source is away; `None` if the process stops before.
    pub(super) async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, EngineError> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(None),
                done = &mut work => return Ok(Some(done)),
                () = self.clock.due(), if self.resting.has_clock() => self.let_time_pass_alone().await?,
            }
        }
    }

    /// The moment has come at which rows begin or cease to count, and the source is not there.
    async fn let_time_pass_alone(&mut self) -> Result<(), EngineError> {
        let now = self.clock.now();
        let flows = std::mem::take(&mut self.resting);
        let (mut flows, outcome) = self.writer.advance_clock_alone(self.task(flows), now).await?;
        match outcome {
            Ok(followed) => {
                self.clock.passed(now);
                let changed = !followed.views.is_empty();
                // A view that failed is read again anyway: the next attempt finds it so.
                let _ = self.note_followed(&mut flows, followed.views, followed.commit_no).await?;
                self.clock.wait_for(followed.due);
                if changed {
                    info!(source = self.name, "facts changed because time passed while the source was away");
                }
            }
            Err(stuck) => {
                for view in (0..self.views.len()).filter(|view| stuck.contains(&self.views[*view].id)) {
                    debug!(source = self.name, fact_type = %self.views[view].fact_type, "fact type waits for the source");
                    flows.drop_view(view);
                }
                self.clock.look();
            }
        }
        self.resting = flows;
        Ok(())
    }
}
