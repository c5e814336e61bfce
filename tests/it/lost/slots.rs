//! The replication slot is gone, given up by the server, or another one of the same name.

use super::{CHANGE, app, app_on, assert_healed, delivered, heals, ran, wanted};
use crate::support::{
    eventually_async,
    postgres::{Cluster, Major},
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn lost_a_dropped_slot_costs_the_differences_only() {
    let app = app(Major::V15, "").await;
    let before = ran(&app).await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    app.sql(CHANGE).await;
    heals(&app, &before, "does not exist").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_that_somebody_made_anew_costs_the_differences_only() {
    let app = app(Major::V15, "").await;
    let before = ran(&app).await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    app.sql(CHANGE).await;
    app.sql("SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
    heals(&app, &before, "was advanced to").await;
}

/// The gap may be between two changes of nothing: not a byte of log lies between the position and the new slot but its own record.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_made_anew_at_the_very_position_is_not_trusted() {
    let app = app(Major::V15, "").await;
    let before = ran(&app).await;
    app.sql("SELECT pg_drop_replication_slot('app'); SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
    app.sql(CHANGE).await;
    heals(&app, &before, "was advanced to").await;
}

/// Under a process that runs, on both majors: the server gives the slot up at a checkpoint while factsync is stopped by a signal.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_that_the_server_gave_up_costs_the_differences_only() {
    for (major, why) in [(Major::V15, "max_slot_wal_keep_size"), (Major::V18, "max_slot_wal_keep_size")] {
        let small = [("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB"), ("wal_sender_timeout", "1s")];
        let app = app_on(Cluster::start_with(major, &small), "").await;
        let process = app.started(&[]).await;
        app.commit(&process, "DELETE FROM member WHERE id = 1").await;
        let (before, already) = (wanted(&app).await, delivered(&process).await);
        process.pause();
        app.sql(CHANGE).await;
        eventually_async(DEADLINE, "the slot is invalidated", async || {
            app.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 4000000)); SELECT pg_switch_wal(); CHECKPOINT").await;
            (app.ask("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'app'").await == "lost").then_some(())
        })
        .await;
        process.go_on();
        assert_healed(&app, &process, &before, already, why).await;
    }
}
