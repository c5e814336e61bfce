//! The board as gauges.

use crate::{
    engine::board::{Board, Mode, SHADOW, TargetState},
    source::SourceState,
    target::quota::Budget,
    telemetry,
};

impl Board {
    /// Sets the gauges from the board; called when metrics are read.
    pub fn record_metrics(&self) {
        let lines = self.lines();
        for line in &lines.sources {
            let status = line.status();
            let up = f64::from(u8::from(line.state == SourceState::Streaming));
            metrics::gauge!(telemetry::SOURCE_UP, "source" => line.name.clone()).set(up);
            metrics::gauge!(telemetry::LAG_BYTES, "source" => line.name.clone()).set(status.lag_bytes as f64);
            metrics::gauge!(telemetry::LAG_SECONDS, "source" => line.name.clone()).set(status.lag_seconds);
            line.log.record_metrics(&line.name);
            if let Some(reconciled) = line.reconciled {
                metrics::gauge!(telemetry::DRIFT_MISSING, "source" => line.name.clone()).set(reconciled.missing as f64);
                metrics::gauge!(telemetry::DRIFT_STALE, "source" => line.name.clone()).set(reconciled.stale as f64);
            }
        }
        for view in lines.views.iter().flatten() {
            metrics::gauge!(telemetry::DESIRED_FACTS, "fact_type" => view.signature.clone()).set(view.facts as f64);
            metrics::gauge!(telemetry::SKIPPED_ROWS, "fact_type" => view.signature.clone()).set(view.skipped.values().sum::<u64>() as f64);
            metrics::gauge!(telemetry::HELD_REMOVALS, "fact_type" => view.signature.clone()).set(view.held as f64);
        }
        metrics::gauge!(telemetry::OUTBOX_FACTS).set((lines.queues.outbox + lines.queues.backlog) as f64);
        metrics::gauge!(telemetry::BACKLOG_FACTS).set(lines.queues.backlog as f64);
        metrics::gauge!(telemetry::OUTBOX_ETA).set(self.eta(&lines).as_secs_f64());
        for mode in Mode::ALL {
            let on = lines.mode == mode && !self.shadow;
            metrics::gauge!(telemetry::DELIVERY_MODE, "mode" => mode.name()).set(f64::from(u8::from(on)));
        }
        metrics::gauge!(telemetry::DELIVERY_MODE, "mode" => SHADOW).set(f64::from(u8::from(self.shadow)));
        if let Some(Budget { per_minute, used }) = self.budget() {
            metrics::gauge!(telemetry::QUOTA_UPDATES).set(f64::from(per_minute));
            metrics::gauge!(telemetry::QUOTA_USED).set(f64::from(used));
        }
        metrics::gauge!(telemetry::PARKED_FACTS).set(lines.parked.count() as f64);
        metrics::gauge!(telemetry::PARKED_REVOCATIONS).set(lines.parked.revocations as f64);
        metrics::gauge!(telemetry::TARGET_UP).set(f64::from(u8::from(lines.target == TargetState::Reachable)));
    }
}
