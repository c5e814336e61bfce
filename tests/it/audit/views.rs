//! Facts that are not those of their query are found, and the view is not trusted any more.

use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use super::{CROWD, FLAG, ROLE, TOP, app, audit, drift, of};
use crate::support::{
    app::{App, delete, fact, fact_type},
    eventually_async,
};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Makes the local store believe that `rows` of a fact type's facts are not desired, as a bug in a view would.
fn forget(app: &App, signature: &str, rows: u64) {
    let store = Connection::open(app.state().join("state.db")).expect("opened");
    let view: i64 = store.query_row("SELECT id FROM view WHERE signature = ?1", [signature], |row| row.get(0)).expect("a view");
    let sql = "DELETE FROM fact WHERE view = ?1 AND row IN (SELECT row FROM fact WHERE view = ?1 ORDER BY row LIMIT ?2)";
    assert_eq!(store.execute(sql, (view, rows)).expect("deleted") as u64, rows);
    store.execute("UPDATE view SET facts = facts - ?2 WHERE id = ?1", (view, rows)).expect("counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_wrong_is_found_and_read_again() {
    let app = app("reconcile_every: 0s").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    // The fact store agrees with what is desired, so nothing but the source can tell.
    delete(&process, &[fact("is_member", &["User:0"]), fact("is_member", &["User:1"])]).await;
    delete(&process, &[fact("ranks", &["Setting:1", "String:1"])]).await;
    assert!(process.terminate().success());
    forget(&app, CROWD, 2);
    forget(&app, TOP, 1);

    let process = app.started(&[]).await;
    let found = audit(&process, false).await;
    for (signature, wrong) in [(CROWD, 2), (TOP, 1), (ROLE, 0), (FLAG, 0)] {
        assert_eq!(of(&found, signature)["drift"], drift([0, 0, 0, wrong]), "{signature}: {found:#}");
    }
    assert_ne!(of(&found, CROWD)["source"], of(&found, CROWD)["desired"]);
    assert_eq!(of(&found, CROWD)["stored"], of(&found, CROWD)["desired"]);
    assert_eq!(fact_type(&process.status().await, CROWD)["mode"], "incremental", "nothing follows from looking");

    let found = audit(&process, true).await;
    assert_eq!(found["drift"]["view_error"], 3, "{found:#}");
    let status = eventually_async(DEADLINE, "it is refreshed", async || {
        let status = process.status().await;
        let healed = fact_type(&status, CROWD)["facts"] == 100 && fact_type(&status, TOP)["facts"] == 50;
        (healed && fact_type(&status, CROWD)["mode"] == "refresh").then_some(status)
    });
    let status: Value = status.await;
    assert_eq!(fact_type(&status, ROLE)["mode"], "incremental", "the others go on as they are");
    assert!(process.log().contains("facts are not those of the query"), "{}", process.log());
    app.settle(&process).await;
    app.assert_equal(&process, "after the audit").await;
    process.wait_ready().await;
    assert_eq!(audit(&process, false).await["verdict"], "equal");
    app.commit(&process, "INSERT INTO member VALUES (1, 3333, 'admin'); DELETE FROM member WHERE person % 100 = 7").await;
    app.assert_equal(&process, "and it is followed").await;
}
