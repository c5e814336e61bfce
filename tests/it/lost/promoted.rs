//! A physical standby is promoted: with everything that was applied, or without the last commits.

use super::{CHANGE, app, app_on, assert_healed, delivered, goes_on, heals, ran, wanted};
use crate::support::{
    app::App,
    eventually_async,
    postgres::{Cluster, Major},
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Until `standby` has replayed everything that `app`'s server has.
async fn caught_up(app: &App, standby: &Cluster) {
    let end = app.position().await;
    eventually_async(DEADLINE, "the standby has everything", async || {
        (standby.psql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t").then_some(())
    })
    .await;
}

/// Up to PostgreSQL 16 a standby has no logical slots, so whatever it has, the position is lost.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_promoted_standby_that_had_everything_costs_the_differences_only() {
    let mut app = app(Major::V15, "").await;
    let standby = app.cluster.standby(&[]);
    let before = ran(&app).await;
    caught_up(&app, &standby).await;
    app.cluster.kill();
    standby.promote();
    app.move_to(standby).await;
    app.sql(CHANGE).await;
    heals(&app, &before, "does not exist").await;
}

/// The facts are of commits that never happened: the standby did not get them. Somebody has made the slot by hand, as one does after a
/// failover, and the log of the new primary has grown beyond the position.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_promoted_standby_that_lacks_commits_costs_the_differences_only() {
    for much in [false, true] {
        let mut app = app(Major::V15, "").await;
        let standby = app.cluster.standby(&[]);
        caught_up(&app, &standby).await;
        standby.stop();
        ran(&app).await;
        let process = app.started(&[]).await;
        app.commit(&process, CHANGE).await;
        assert!(process.terminate().success());
        let before = wanted(&app).await;
        app.cluster.kill();
        standby.start_again();
        standby.promote();
        app.move_to(standby).await;
        assert_ne!(wanted(&app).await, before);
        app.sql("SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
        app.sql("DELETE FROM member WHERE id = 50").await;
        if much {
            app.sql("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 20)").await;
        }
        heals(&app, &before, "it was promoted: its timeline 2 left timeline 1 at").await;
    }
}

/// A pair of servers of which the second one synchronizes the slots of the first, and an application on the first.
async fn synchronized() -> (App, Cluster) {
    let app = app_on(Cluster::start(Major::V18), "").await;
    app.sql("SELECT pg_create_physical_replication_slot('second')").await;
    let second = [("primary_slot_name", "second"), ("hot_standby_feedback", "on"), ("sync_replication_slots", "on")];
    let standby = app.cluster.standby(&second);
    (app, standby)
}

/// Until the standby has the slot, no further behind than the primary's, and everything that it needs.
async fn slot_synchronized(app: &App, standby: &Cluster) {
    caught_up(app, standby).await;
    let confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'app'";
    let here = app.ask(confirmed).await;
    let there =
        format!("SELECT synced AND NOT temporary AND confirmed_flush_lsn >= '{here}' FROM pg_replication_slots WHERE slot_name = 'app'");
    eventually_async(DEADLINE, "the standby has the slot", async || {
        // A standby takes over a slot only when the primary's moves on.
        app.sql("SELECT pg_log_standby_snapshot(), pg_logical_emit_message(true, 'x', 'x')").await;
        (standby.psql("postgres", &there) == "t").then_some(())
    })
    .await;
}

/// From PostgreSQL 17 on the slot survives: the standby takes the address of the primary, and a factsync that runs goes on without a
/// snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn lost_nothing_is_when_the_promoted_standby_has_the_slot() {
    let (mut app, mut standby) = synchronized().await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    slot_synchronized(&app, &standby).await;
    app.settle(&process).await;
    let (before, already) = (wanted(&app).await, delivered(&process).await);
    caught_up(&app, &standby).await;
    app.cluster.kill();
    standby.stop();
    standby.take_port(app.cluster.port());
    standby.start_again();
    standby.promote();
    app.move_to(standby).await;
    app.commit(&process, CHANGE).await;
    app.assert_equal(&process, "after the failover").await;
    assert_eq!(process.log().matches("reading every view").count(), 1, "{}", process.log());
    let differences = before.symmetric_difference(&wanted(&app).await).count() as u64;
    assert_eq!(delivered(&process).await - already, differences);
}

/// The same where the standby has the slot, and lacks the last commits that were applied.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_promoted_standby_with_the_slot_that_lacks_commits_costs_the_differences_only() {
    let (mut app, mut standby) = synchronized().await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    slot_synchronized(&app, &standby).await;
    standby.stop();
    app.commit(&process, CHANGE).await;
    let (before, already) = (wanted(&app).await, delivered(&process).await);
    app.cluster.kill();
    standby.take_port(app.cluster.port());
    standby.start_again();
    standby.promote();
    app.move_to(standby).await;
    app.sql("DELETE FROM member WHERE id = 50").await;
    assert_healed(&app, &process, &before, already, "it was promoted: its timeline 2 left timeline 1 at").await;
    assert!(process.terminate().success());
    let before = wanted(&app).await;
    goes_on(&app, &before).await;
}
