//! Logs and metrics: what an operator sees.
//!
//! Log lines are fragments with fields; they hold names, counts and errors, never a cell value or a secret. Metric names
//! follow `factsync_<noun>_<unit>[_total]`; labels are bounded by the configuration (sources and fact types).

use std::io::{self, IsTerminal};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, filter::Directive, layer::SubscriberExt, util::SubscriberInitExt};

/// Facts that should be in the fact store, by `fact_type`.
pub const DESIRED_FACTS: &str = "factsync_desired_facts";
/// Rows that made no fact, by `fact_type`.
pub const SKIPPED_ROWS: &str = "factsync_skipped_rows";
/// Removals that wait for a person, by `fact_type`.
pub const HELD_REMOVALS: &str = "factsync_held_removals";
/// Fact changes that are not yet acknowledged by the fact store.
pub const OUTBOX_FACTS: &str = "factsync_outbox_facts";
/// Of these, what a comparison found or catch-up netted.
pub const BACKLOG_FACTS: &str = "factsync_backlog_facts";
/// Seconds that the changes not yet acknowledged will take.
pub const OUTBOX_ETA: &str = "factsync_outbox_eta_seconds";
/// 1 for the mode that delivery is in, 0 for the others, by `mode`.
pub const DELIVERY_MODE: &str = "factsync_delivery_mode";
/// Fact updates that the plan allows in a minute.
pub const QUOTA_UPDATES: &str = "factsync_quota_updates";
/// Fact updates of the last minute.
pub const QUOTA_USED: &str = "factsync_quota_used_updates";
/// Changes of the backlog that were not sent, because the desired facts disagreed by then.
pub const DROPPED_FACTS: &str = "factsync_dropped_facts_total";
/// Fact changes that the fact store refused.
pub const PARKED_FACTS: &str = "factsync_parked_facts";
/// Those of them that should have taken a fact away: access that should be gone and is not.
pub const PARKED_REVOCATIONS: &str = "factsync_parked_revocations";
/// Requests to `/v1/wait` that have no answer yet.
pub const WAITERS: &str = "factsync_waiters";
/// Fact changes acknowledged by the fact store.
pub const DELIVERED_FACTS: &str = "factsync_delivered_facts_total";
/// Attempts to deliver that failed.
pub const DELIVERY_FAILURES: &str = "factsync_delivery_failures_total";
/// Bytes of log between the source's end and the applied position, by `source`.
pub const LAG_BYTES: &str = "factsync_source_lag_bytes";
/// Seconds since the source was last caught up with, by `source`.
pub const LAG_SECONDS: &str = "factsync_source_lag_seconds";
/// Bytes of the server's log that the slot holds back, by `source`.
pub const RETAINED_WAL: &str = "factsync_source_retained_wal_bytes";
/// 0 while the server keeps that much anyhow, 1 while it keeps more than `max_wal_size`, 2 when it is about to remove it, by `source`.
pub const WAL_RISK: &str = "factsync_source_wal_risk";
/// Times that the stored position was of no use any more, by `source`.
pub const POSITIONS_LOST: &str = "factsync_positions_lost_total";
/// 1 while a source is followed, 0 otherwise, by `source`.
pub const SOURCE_UP: &str = "factsync_source_up";
/// 1 while the fact store answers, 0 otherwise.
pub const TARGET_UP: &str = "factsync_target_up";
/// Facts missing from the fact store at the last comparison, by `source`.
pub const DRIFT_MISSING: &str = "factsync_drift_missing_facts";
/// Facts in the fact store that should not be there at the last comparison, by `source`.
pub const DRIFT_STALE: &str = "factsync_drift_stale_facts";

/// Facts that audits found to differ, by `class` (`missing_grant`, `stale_access`, `foreign_fact`, `view_error`) and `fact_type`.
pub const DRIFT: &str = "factsync_drift_total";

/// `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends logs to stderr, filtered by `RUST_LOG`, else at `default`.
pub fn init_logs(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)).add_directive(statements_of_driver());
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false).with_ansi(io::stderr().is_terminal());
    // A second call, in tests, keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
}

/// What `tokio-postgres` may log, whatever is asked for: below this it logs every statement with its parameters, which are cells.
fn statements_of_driver() -> Directive {
    "tokio_postgres=info".parse().expect("it is a target and a level")
}

/// Starts collecting metrics; the handle renders them as Prometheus text.
pub fn init_metrics() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // A second recorder, in tests, renders nothing but does no harm.
    let _ = metrics::set_global_recorder(recorder);
    for (name, text) in [
        (DESIRED_FACTS, "Facts that should be in the fact store"),
        (SKIPPED_ROWS, "Distinct rows of the last run that made no fact"),
        (HELD_REMOVALS, "Removals that wait for a person"),
        (OUTBOX_FACTS, "Fact changes not yet acknowledged by the fact store"),
        (BACKLOG_FACTS, "Of these, what a comparison found or catch-up netted"),
        (OUTBOX_ETA, "Seconds that the changes not yet acknowledged will take"),
        (DELIVERY_MODE, "1 for the mode that delivery is in"),
        (QUOTA_UPDATES, "Fact updates that the plan allows in a minute"),
        (QUOTA_USED, "Fact updates of the last minute"),
        (PARKED_FACTS, "Fact changes that the fact store refused"),
        (PARKED_REVOCATIONS, "Removals that the fact store refused: access that should be gone and is not"),
        (WAITERS, "Requests to /v1/wait that have no answer yet"),
        (LAG_BYTES, "Bytes of log between the source's end and the applied position"),
        (LAG_SECONDS, "Seconds since the source was last caught up with"),
        (RETAINED_WAL, "Bytes of the server's log that the slot holds back"),
        (WAL_RISK, "1 while the slot holds back more than max_wal_size, 2 when the server is about to remove it"),
        (SOURCE_UP, "1 while the source is followed"),
        (TARGET_UP, "1 while the fact store answers"),
        (DRIFT_MISSING, "Facts missing from the fact store at the last comparison"),
        (DRIFT_STALE, "Facts that should not be in the fact store at the last comparison"),
    ] {
        metrics::describe_gauge!(name, text);
    }
    metrics::describe_counter!(DELIVERED_FACTS, "Fact changes acknowledged by the fact store");
    metrics::describe_counter!(DROPPED_FACTS, "Changes of the backlog that were not sent, because the desired facts disagreed by then");
    metrics::describe_counter!(POSITIONS_LOST, "Times that the stored position was of no use any more");
    metrics::describe_counter!(DRIFT, "Facts that audits found to differ, by class and fact type");
    metrics::describe_counter!(DELIVERY_FAILURES, "Attempts to deliver that failed");
    handle
}
