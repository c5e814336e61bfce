//! A database in which nothing happens, on a server where much does: its slot must not keep the log of the others.

use std::time::Duration;

use crate::support::{app::App, eventually_async};

/// A heartbeat every ten seconds, the acknowledgement within a second or two, and a loaded machine.
const DEADLINE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn bounded_an_idle_database_keeps_no_log_of_the_others() {
    let app = App::start(
        "CREATE TABLE member (id int PRIMARY KEY, role text); INSERT INTO member VALUES (1, 'r')",
        &[("has_role(User:_, String:_)", "SELECT id, role FROM member")],
        "",
    )
    .await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    let other = app.cluster.database();
    let retained =
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint FROM pg_replication_slots WHERE slot_name = 'app'";
    for round in 0..2 {
        // An idle database takes part in nothing: no table is touched, and nobody asks for a position.
        app.cluster.psql(&other, &format!("CREATE TABLE t{round} AS SELECT i, repeat('x', 500) FROM generate_series(1, 60000) AS i"));
        let written = app.position().await;
        let kept: i64 = app.ask(retained).await.parse().expect("a number");
        assert!(kept > 30 << 20, "the test writes as much as it says: {kept}");
        eventually_async(DEADLINE, "a heartbeat carries the slot past the log of the others", async || {
            let sql = format!("SELECT confirmed_flush_lsn >= '{written}' FROM pg_replication_slots WHERE slot_name = 'app'");
            (app.ask(&sql).await == "t").then_some(())
        })
        .await;
        let kept: i64 = app.ask(retained).await.parse().expect("a number");
        assert!(kept < 1 << 20, "{kept} bytes are kept");
    }
    // What was confirmed can be removed, too: the restart point follows with the next record of running transactions.
    let restart = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) < 30 << 20 FROM pg_replication_slots WHERE slot_name = 'app'";
    eventually_async(DEADLINE, "the restart point follows", async || (app.ask(restart).await == "t").then_some(())).await;
    app.commit(&process, "UPDATE member SET role = 's'").await;
    app.assert_equal(&process, "still following").await;
}
