//! A transaction of millions of rows, parts of which were taken back: the server keeps it on its disk until its end is known, so what was
//! taken back never arrives, and the rest goes through in pieces.

use super::{commit, peak};
use crate::support::{
    app::{App, fact_type},
    factsync::Process,
    free_port,
};

/// A transaction of 10,000,000 rows must go through in less, in MiB, of factsync and of the fact store each.
const MOST: u64 = 256;

/// Rows the transaction inserts.
fn rows() -> u64 {
    std::env::var("FACTSYNC_ODD_ROWS").map_or(60_000, |rows| rows.parse().expect("a number of rows"))
}

const HAS: &str = "has_role(User:_, String:_)";

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_large_transaction_with_savepoints_and_a_fact_store_of_its_own() {
    let facts = [(HAS, "SELECT id, role FROM member")];
    let app = App::start("CREATE TABLE member (id int PRIMARY KEY, role text)", &facts, "").await;
    // What does not fit is spilled; the default of 64 MB would keep a transaction as small as the usual one of this test.
    app.sql("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'").await;
    app.sql("SELECT pg_reload_conf()").await;
    let home = tempfile::tempdir().expect("a folder");
    let address = format!("127.0.0.1:{}", free_port());
    let store = Process::spawn(&["serve", "--limits", "off", "--listen", &address, "--state", home.path().to_str().expect("UTF-8")], &[]);
    let process = app.started(&["--target", store.url(), "--plan", "unlimited", "--allow-removals"]).await;
    app.settle(&process).await;
    let before = (peak(&process), peak(&store));
    // 200 parts, a third of them taken back after they were written, some by an inner savepoint; the rest is changed at the end.
    let count = rows();
    let part = count / 200;
    let sql = format!(
        "DO $$ BEGIN FOR p IN 0..199 LOOP
           BEGIN
             INSERT INTO member SELECT p * {part} + i, 'r' || i % 7 FROM generate_series(1, {part}) AS i;
             BEGIN
               UPDATE member SET role = 'lost' WHERE id > p * {part};
               RAISE EXCEPTION 'inner';
             EXCEPTION WHEN OTHERS THEN NULL; END;
             IF p % 3 = 0 THEN RAISE EXCEPTION 'outer'; END IF;
           EXCEPTION WHEN OTHERS THEN NULL; END;
         END LOOP;
         DELETE FROM member WHERE id % 5 = 0; UPDATE member SET role = role || 'x' WHERE id % 11 = 0; END $$"
    );
    let began = std::time::Instant::now();
    commit(&app, &process, &sql).await;
    let after = (peak(&process), peak(&store));
    eprintln!(
        "{count} rows: written and delivered in {:?}; peak MiB {before:?} before, {after:?} after (factsync, fact store)",
        began.elapsed()
    );
    assert!(after.0 < MOST && after.1 < MOST, "{before:?} MiB before, {after:?} after");
    let held = fact_type(&process.status().await, HAS)["facts"].to_string();
    assert_eq!(held, app.ask("SELECT count(*) FROM member").await);
    // The protocol's streaming of transactions that have not ended is off; the server has spilled this one.
    let slot = "SELECT spill_txns > 0 AND stream_txns = 0 FROM pg_stat_replication_slots WHERE slot_name = 'app'";
    crate::support::eventually_async(std::time::Duration::from_secs(30), "the server counts what it has spilled", async || {
        (app.ask(slot).await == "t").then_some(())
    })
    .await;
    if count <= 1_000_000 {
        app.assert_equal(&store, "after the transaction").await;
    }
}
