//! What becomes of drift: counted, shown, repaired or only told.

use std::time::Duration;

use serde_json::{Value, json};

use super::{FLAG, app, audit, drift, of};
use crate::support::{
    app::{delete, fact, insert},
    eventually_async,
    factsync::{Process, client},
};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

async fn counter(process: &Process, class: &str) -> u64 {
    let (_, metrics) = process.get("/metrics").await;
    let start = format!("factsync_drift_total{{class=\"{class}\",fact_type=\"{FLAG}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_report_drift_is_counted_and_shown_and_nothing_is_written() {
    let app = app("reconcile_every: 1s\n  drift: report").await;
    let process = app.started(&[]).await;
    insert(&process, &[fact("is_flagged", &["Setting:x"])]).await;
    delete(&process, &[fact("is_flagged", &["Setting:2"]), fact("is_flagged", &["Setting:4"])]).await;
    let held = process.facts("is_flagged").await;
    let shown = eventually_async(DEADLINE, "an audit shows it twice", async || {
        (counter(&process, "missing_grant").await >= 4).then_some(process.status().await["last_reconcile"].clone())
    });
    let shown = shown.await;
    assert_eq!((&shown["missing"], &shown["stale"]), (&json!(2), &json!(1)), "{shown:#}");
    assert_eq!(shown["drift"], drift([2, 0, 1, 0]));
    assert!(counter(&process, "foreign_fact").await >= 2);
    assert_eq!(counter(&process, "stale_access").await, 0);
    assert_eq!(process.facts("is_flagged").await, held, "nothing was written");
    assert!(process.log().contains("drift found"), "{}", process.log());
    // Who asks for it gets it.
    audit(&process, true).await;
    eventually_async(DEADLINE, "it is repaired", async || (audit(&process, false).await["verdict"] == "equal").then_some(())).await;
    app.assert_equal(&process, "repaired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_repair_by_themselves() {
    let app = app("reconcile_every: 1s").await;
    let process = app.started(&[]).await;
    insert(&process, &[fact("is_flagged", &["Setting:x"])]).await;
    delete(&process, &[fact("is_flagged", &["Setting:2"])]).await;
    let repaired = async || {
        let held = process.facts("is_flagged").await;
        let has = |id: &str| held.iter().any(|fact| fact["args"][0]["id"] == id);
        (has("2") && !has("x")).then_some(())
    };
    eventually_async(DEADLINE, "it is repaired", repaired).await;
    app.assert_equal(&process, "repaired").await;
}

/// More than `max_removals` of stale facts wait for a person, as in every other comparison.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_holds_what_an_audit_would_remove() {
    let app = app("reconcile_every: 0s\n  max_removals: {count: 3, percent: 10}").await;
    let process = app.started(&[]).await;
    let planted: Vec<Value> = (0..10).map(|n| fact("is_flagged", &[&format!("Setting:x{n}")])).collect();
    insert(&process, &planted).await;
    let found = audit(&process, true).await;
    assert_eq!(of(&found, FLAG)["drift"], drift([0, 0, 10, 0]), "{found:#}");
    let held = eventually_async(DEADLINE, "it is held", async || {
        let held = process.status().await["held"].clone();
        (held != json!([])).then_some(held)
    });
    assert_eq!(held.await[0]["removals"], 10);
    assert_eq!(process.facts("is_flagged").await.len(), 35);
    let found = audit(&process, true).await;
    assert_eq!((&of(&found, FLAG)["held"], &of(&found, FLAG)["drift"]), (&json!(10), &drift([0; 4])), "{found:#}");
    assert_eq!(of(&found, FLAG)["verdict"], "equal", "what is held is known");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_asks_for_the_key() {
    let app = app("reconcile_every: 0s").await;
    let process = app.started(&[]).await;
    for (key, status) in [(None, 401), (Some("wrong"), 401), (Some(crate::support::factsync::DEVELOPMENT_KEY), 200)] {
        let request = client().post(format!("{}/v1/audit", process.url()));
        let request = if let Some(key) = key { request.bearer_auth(key) } else { request };
        assert_eq!(request.send().await.expect("it answers").status().as_u16(), status, "{key:?}");
    }
    let (status, _) = process.get("/v1/audit").await;
    assert_eq!(status, 405, "asking changes something");
}
