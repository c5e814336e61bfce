//! `sync.max_wal`: a slot that holds back too much of the server's log is let go, and what it had is made good for by a snapshot.

use super::{CHANGE, app, assert_healed, delivered, heals, metric, ran, wanted};
use crate::support::{app::App, eventually_async, postgres::Major};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Twice the smallest budget.
const MUCH_LOG: &str = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 128)";

const BUDGET: &str = "max_wal: 64MB";

async fn retained(app: &App) -> i64 {
    let sql = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint FROM pg_replication_slots";
    app.ask(sql).await.parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_beyond_its_budget_is_let_go_at_the_start() {
    for limited in [true, false] {
        let app = app(Major::V15, if limited { BUDGET } else { "" }).await;
        let before = ran(&app).await;
        app.sql(MUCH_LOG).await;
        app.sql(CHANGE).await;
        if limited {
            let process = heals(&app, &before, "more than sync.max_wal (67108864)").await;
            assert!(process.log().contains("letting the slot go"), "{}", process.log());
            assert_eq!(metric(&process, "factsync_positions_lost_total").await, Some(1));
            eventually_async(DEADLINE, "the log is free", async || (retained(&app).await < 64 << 20).then_some(())).await;
        } else {
            super::goes_on(&app, &before).await;
        }
    }
}

/// A transaction of the application stays open, so the slot cannot let go of the log, however fast it is read. The slot is gone before the
/// disk is full, also while the next one is being created, which has to wait for the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_beyond_its_budget_is_let_go_while_it_is_followed() {
    let app = app(Major::V15, BUDGET).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    let (before, already) = (wanted(&app).await, delivered(&process).await);
    let open = app.cluster.client(&app.database).await;
    open.batch_execute("BEGIN; INSERT INTO member VALUES (4000, 'late')").await.expect("it begins");
    for times in 1..=2 {
        eventually_async(DEADLINE, "the slot is there", async || {
            (app.ask("SELECT count(*) FROM pg_replication_slots").await == "1").then_some(())
        })
        .await;
        app.sql(MUCH_LOG).await;
        eventually_async(DEADLINE, "the slot is let go", async || {
            (metric(&process, "factsync_positions_lost_total").await == Some(times)).then_some(())
        })
        .await;
        eventually_async(DEADLINE, "the reason is shown", async || {
            let source = process.status().await["sources"][0].clone();
            assert_ne!(source["state"], "streaming", "{source:#}");
            source["reason"].as_str().is_some_and(|why| why.contains("sync.max_wal")).then_some(())
        })
        .await;
    }
    open.batch_execute("COMMIT").await.expect("it commits");
    app.sql(CHANGE).await;
    assert_healed(&app, &process, &before, already, "more than sync.max_wal (67108864)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loud_what_the_slot_holds_back_is_shown_before_it_is_too_much() {
    let settings = [("max_wal_size", "32MB"), ("min_wal_size", "32MB")];
    let app = super::app_on(crate::support::postgres::Cluster::start_with(Major::V15, &settings), "").await;
    let process = app.started(&[]).await;
    let open = app.cluster.client(&app.database).await;
    open.batch_execute("BEGIN; INSERT INTO member VALUES (4000, 'late')").await.expect("it begins");
    app.sql(MUCH_LOG).await;
    eventually_async(DEADLINE, "it is shown", async || {
        let retained = process.status().await["sources"][0]["retained"].clone();
        let warned = retained["warning"].as_str().is_some_and(|warning| warning.contains("wal_status extended"));
        (warned && retained["bytes"].as_u64() > Some(100 << 20)).then_some(())
    })
    .await;
    assert!(metric(&process, "factsync_source_retained_wal_bytes").await > Some(100 << 20));
    assert_eq!(metric(&process, "factsync_source_wal_risk").await, Some(1));
    assert!(process.log().contains("the slot holds much of the server's log"), "{}", process.log());
    open.batch_execute("ROLLBACK").await.expect("it ends");
}
