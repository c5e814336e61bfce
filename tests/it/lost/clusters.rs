//! Other data behind the same URL: restored from a dump, put back to an older state, or somebody else's altogether.

use std::process::{Command, Stdio};

use super::{CHANGE, app, assert_healed, delivered, goes_on, heals, ran, wanted};
use crate::support::{
    app::App,
    eventually_async,
    postgres::{Cluster, Major},
};

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// More log than all of a test before it.
const MUCH_LOG: &str = "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 20)";

/// A dump of the database as SQL.
fn dump(app: &App) -> String {
    let output = Command::new(app.cluster.bin_dir().join("pg_dump")).arg(app.url()).stdin(Stdio::null()).output().expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // psql refuses what pg_dump writes for newer ones.
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict")).collect::<Vec<_>>().join("\n")
}

/// A database of the same name on a cluster of another major, which has another system identifier.
fn elsewhere(app: &App) -> Cluster {
    let cluster = Cluster::start(Major::V18);
    cluster.psql("postgres", &format!("CREATE DATABASE {}", app.database));
    let identifier = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(cluster.psql("postgres", identifier), app.cluster.psql("postgres", identifier));
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_a_dump_restored_into_a_new_cluster_costs_the_differences_only() {
    let mut app = app(Major::V15, "").await.into_owner();
    let before = ran(&app).await;
    let cluster = elsewhere(&app);
    cluster.psql(&app.database, &dump(&app));
    app.move_to(cluster).await;
    app.sql(CHANGE).await;
    let process = heals(&app, &before, "another cluster").await;
    assert!(process.log().contains("this is not the cluster that the facts came from"), "{}", process.log());
    eventually_async(DEADLINE, "the new cluster is recognised", async || {
        process.log().contains("come from this cluster from now on").then_some(())
    })
    .await;
    assert!(process.terminate().success());
    let before = wanted(&app).await;
    goes_on(&app, &before).await;
}

/// Another database of the same name, with other rows. What everybody has stays theirs until somebody looks.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_wrong_cluster_behind_the_url_takes_nobodys_access_away() {
    let mut app = app(Major::V15, "").await;
    let before = ran(&app).await;
    let wrong = elsewhere(&app);
    wrong.psql(&app.database, super::SCHEMA);
    wrong.psql(&app.database, "DELETE FROM member; INSERT INTO member VALUES (5000, 'stranger'); DELETE FROM repository WHERE id > 2");
    let url = wrong.url(&app.database);
    for round in 0..2 {
        let process = app.run_with(&[], &[("DATABASE_URL", &url)]);
        process.wait_ready().await;
        let status = process.status().await;
        assert_eq!(status["held"].as_array().map(Vec::len), Some(2), "both fact types are held in round {round}: {status:#}");
        assert_eq!(process.facts("has_role").await.len(), 100, "99 of before, and the stranger");
        assert_eq!(process.facts("is_public").await.len(), 50);
        let log = process.log();
        assert!(log.contains("this is not the cluster that the facts came from"), "{log}");
        assert!(!log.contains("come from this cluster from now on"), "{log}");
        process.kill();
    }
    // The URL is corrected. The rows are back, so nothing is held, and the stranger goes.
    app.client = app.cluster.client(&app.database).await;
    let process = app.run(&[]);
    app.settle(&process).await;
    app.assert_equal(&process, "with the right cluster again").await;
    assert_eq!(wanted(&app).await, before);
    assert_eq!(process.status().await["held"], serde_json::json!([]));
    assert_eq!(delivered(&process).await, 1, "the stranger's role");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_a_database_dropped_and_restored_in_its_cluster_costs_the_differences_only() {
    for anew in [false, true] {
        let mut app = app(Major::V15, "").await.into_owner();
        let before = ran(&app).await;
        let (dump, name) = (dump(&app), app.database.clone());
        app.client = app.cluster.client("postgres").await;
        app.sql(&format!("DROP DATABASE {name}")).await;
        app.sql(&format!("CREATE DATABASE {name}")).await;
        app.cluster.psql(&name, &dump);
        app.client = app.cluster.client(&name).await;
        app.sql(CHANGE).await;
        if anew {
            app.sql("SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
        }
        heals(&app, &before, if anew { "was advanced to" } else { "does not exist" }).await;
    }
}

/// The server is put back to a copy of its disk, slot included; when factsync comes, its log ends before the position.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_disk_that_was_put_back_costs_the_differences_only() {
    let (app, before) = put_back().await;
    app.sql("DELETE FROM member WHERE id = 50").await;
    heals(&app, &before, "it was put back to an older state").await;
}

/// The same, but the log has grown beyond the position by then. The deletions of the new history lie before the position: whoever
/// asks for what comes after it never hears of them.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_disk_that_was_put_back_long_ago_costs_the_differences_only() {
    let (app, before) = put_back().await;
    app.sql("DELETE FROM member WHERE id = 50; DELETE FROM repository WHERE id = 20").await;
    app.sql(MUCH_LOG).await;
    app.sql("INSERT INTO member VALUES (2000, 'admin')").await;
    heals(&app, &before, "does not have the commits that were applied").await;
}

/// The same with a slot that was made anew on the copy, where the position's place in the log was still to come: no LSN tells.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_slot_made_anew_behind_the_position_is_not_trusted() {
    let (app, before) = put_back().await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    app.sql("SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
    app.sql("DELETE FROM member WHERE id = 50; DELETE FROM repository WHERE id = 20").await;
    app.sql(MUCH_LOG).await;
    heals(&app, &before, "does not have the commits that were applied").await;
}

/// A disk that is put back to what it was when factsync stopped is no loss, and costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn lost_nothing_is_when_a_disk_is_put_back_to_the_very_state() {
    let mut app = app(Major::V15, "").await;
    let before = ran(&app).await;
    app.cluster.stop();
    let copy = app.cluster.copy_data();
    app.cluster.put_back(&copy);
    app.cluster.start_again();
    app.client = app.cluster.client(&app.database).await;
    app.sql(CHANGE).await;
    goes_on(&app, &before).await;
}

/// A running factsync lets its server shut down, which waits until everything is acknowledged, and goes on afterwards. Its server's
/// disk is put back meanwhile, and the log has grown before it is back.
#[tokio::test(flavor = "multi_thread")]
async fn lost_a_disk_put_back_under_a_process_that_runs_costs_the_differences_only() {
    let mut app = app(Major::V15, "").await;
    ran(&app).await;
    app.cluster.stop();
    let copy = app.cluster.copy_data();
    app.cluster.start_again();
    app.client = app.cluster.client(&app.database).await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id BETWEEN 30 AND 35; INSERT INTO member VALUES (3000, 'owner')").await;
    let (before, already) = (wanted(&app).await, delivered(&process).await);
    let shutdown = std::time::Instant::now();
    app.cluster.stop();
    eprintln!("the server was stopped under a process that runs after {:?}", shutdown.elapsed());
    assert!(shutdown.elapsed() < std::time::Duration::from_secs(20), "the shutdown waited for factsync: {:?}", shutdown.elapsed());
    process.pause();
    app.cluster.put_back(&copy);
    app.cluster.start_again();
    app.client = app.cluster.client(&app.database).await;
    app.sql("DELETE FROM member WHERE id = 50; DELETE FROM repository WHERE id = 20").await;
    app.sql(MUCH_LOG).await;
    process.go_on();
    let name = "does not have the commits that were applied";
    // What it says depends on whether the server was told the last position before it went.
    let advanced = async || {
        let log = process.log();
        [name, "was advanced to"].into_iter().find(|why| log.contains(why))
    };
    let why = eventually_async(DEADLINE, "the loss is noticed", advanced).await;
    assert_healed(&app, &process, &before, already, why).await;
}

/// An application whose facts are of a later state than its server's data.
async fn put_back() -> (App, std::collections::BTreeSet<String>) {
    let mut app = app(Major::V15, "").await;
    ran(&app).await;
    app.cluster.stop();
    let copy = app.cluster.copy_data();
    app.cluster.start_again();
    app.client = app.cluster.client(&app.database).await;
    let process = app.started(&[]).await;
    app.commit(&process, CHANGE).await;
    app.commit(&process, "DELETE FROM member WHERE id BETWEEN 30 AND 35; INSERT INTO member VALUES (3000, 'owner')").await;
    assert!(process.terminate().success());
    let before = wanted(&app).await;
    app.cluster.stop();
    app.cluster.put_back(&copy);
    app.cluster.start_again();
    app.client = app.cluster.client(&app.database).await;
    assert_ne!(wanted(&app).await, before);
    (app, before)
}
