//! Atomic, seen from outside: a local state that is not the one upstream was told about is noticed, never continued.
//!
//! In each test a row is deleted whose deletion the slot will not send again; a factsync that carries on keeps its fact for ever.

use std::{fs, path::Path};

use crate::support::{app::App, factsync::Process};

const SCHEMA: &str =
    "CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL); INSERT INTO member SELECT i, 'reader' FROM generate_series(1, 20) i";
const FACTS: [(&str, &str); 1] = [("has_role(User:_, String:_)", "SELECT id, role FROM member")];

/// A factsync that has run, with every commit acknowledged upstream, and was stopped.
async fn ran() -> App {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.commit(&process, "DELETE FROM member WHERE id = 1").await;
    assert!(process.terminate().success());
    app
}

/// Runs it again and checks that it says why it reads everything, and that it ends equal.
async fn ends_equal(app: &App, why: &str, more: &[&str]) -> Process {
    let process = app.run(more);
    app.settle(&process).await;
    let log = process.log();
    assert!(log.contains("reading every view") && log.contains(why), "the log does not say \"{why}\":\n{log}");
    app.assert_equal(&process, why).await;
    process
}

/// Moves on and comes back to the files that `keep` and `put_back` say.
async fn goes_on(app: &App) {
    let process = app.started(&[]).await;
    assert!(!process.log().contains("reading every view"), "{}", process.log());
    app.commit(&process, "DELETE FROM member WHERE id = 2; INSERT INTO member VALUES (100, 'admin')").await;
    assert!(process.terminate().success());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the folder can be made");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("the file can be copied");
        }
    }
}

/// `state.db` and what SQLite keeps beside it.
fn remove_store(state: &Path) {
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        // After a clean stop there is only the first.
        let _ = fs::remove_file(state.join(name));
    }
    assert!(!state.join("state.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_local_store_restored_from_a_backup_is_noticed() {
    let app = ran().await;
    let backup = tempfile::tempdir().expect("a folder");
    copy(&app.state(), backup.path());
    goes_on(&app).await;
    remove_store(&app.state());
    fs::copy(backup.path().join("state.db"), app.state().join("state.db")).expect("the backup can be put back");
    ends_equal(&app, "was acknowledged upstream", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_whole_state_directory_restored_from_a_backup_is_noticed() {
    let app = ran().await;
    let backup = tempfile::tempdir().expect("a folder");
    copy(&app.state(), backup.path());
    goes_on(&app).await;
    fs::remove_dir_all(app.state()).expect("the state can be deleted");
    copy(backup.path(), &app.state());
    // The checkpoint is as old as the store, so it is the slot that knows.
    ends_equal(&app, "was advanced to", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_deleted_local_store_is_built_anew() {
    let app = ran().await;
    app.sql("DELETE FROM member WHERE id = 2").await;
    remove_store(&app.state());
    ends_equal(&app, "no position is stored", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_deleted_state_directory_leaves_no_ghosts_in_a_remote_fact_store() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let more = ["--target", store.url(), "--plan", "unlimited"];
    let process = app.started(&more).await;
    app.settle(&process).await;
    assert!(process.terminate().success());
    app.sql("DELETE FROM member WHERE id = 2; INSERT INTO member VALUES (100, 'admin')").await;
    fs::remove_dir_all(app.state()).expect("the state can be deleted");
    let process = app.run(&more);
    app.settle(&process).await;
    assert!(process.log().contains("reading every view"), "{}", process.log());
    app.assert_equal(&store, "with a new state directory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_dropped_slot_is_noticed() {
    let app = ran().await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    // Nobody keeps the log for these.
    app.sql("DELETE FROM member WHERE id BETWEEN 2 AND 5; INSERT INTO member VALUES (100, 'admin')").await;
    ends_equal(&app, "does not exist", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_slot_that_somebody_else_made_is_not_trusted() {
    let app = ran().await;
    app.sql("SELECT pg_drop_replication_slot('app')").await;
    app.sql("DELETE FROM member WHERE id BETWEEN 2 AND 5").await;
    app.sql("SELECT pg_create_logical_replication_slot('app', 'pgoutput')").await;
    ends_equal(&app, "was advanced to", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_slot_dropped_under_a_running_factsync_is_made_again() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    // The server lets nobody drop a slot in use, so its walsender goes first; factsync may be back before the drop.
    let gone = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'app' AND active";
    crate::support::eventually_async(std::time::Duration::from_secs(20), "the slot is dropped", async || {
        app.sql(gone).await;
        app.client.batch_execute("SELECT pg_drop_replication_slot('app')").await.is_ok().then_some(())
    })
    .await;
    app.sql("DELETE FROM member WHERE id BETWEEN 2 AND 5").await;
    app.settle(&process).await;
    app.assert_equal(&process, "with a new slot").await;
    assert!(process.log().contains("position lost"), "{}", process.log());
}
