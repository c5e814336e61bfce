//! Seamless: no change falls between the first snapshot and the stream, nor between a stream and the one that goes on behind it.
//!
//! Every document is written once and never again, so that one that is missed stays missed.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use mongodb::bson::doc;

use super::{
    app::{App, position},
    views::{self, View},
};
use crate::support::eventually_async;

/// New histories of one run, each begun while documents are written one right behind the other.
const ROUNDS: usize = 12;
/// For the writer to write some more.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

fn plain() -> Vec<View> {
    views::all().into_iter().filter(|view| ["has_role", "owns", "is_counted"].contains(&view.predicate())).collect()
}

/// Writes documents until it is stopped, each at the next cluster time; `written` counts them.
async fn write(app: &App, stop: &AtomicBool, written: &AtomicI64) {
    while !stop.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed);
        let collection = if number % 3 == 0 { "repos" } else { "users" };
        let document = doc! { "_id": number, "role": format!("role-{number}"), "owner": number + 1 };
        app.run_command(doc! { "insert": collection, "documents": [document] }).await;
        written.store(number + 1, Ordering::Relaxed);
    }
}

async fn goes_on(written: &AtomicI64, count: i64) {
    let goal = written.load(Ordering::Relaxed) + count;
    eventually_async(DEADLINE, "the writer goes on", async || (written.load(Ordering::Relaxed) >= goal).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seamless_no_document_is_missed_at_the_start_of_a_stream() {
    let app = App::start(plain()).await;
    let written = AtomicI64::new(0);
    for round in 0..ROUNDS {
        let stop = AtomicBool::new(false);
        let follow = async {
            goes_on(&written, 5).await;
            // A new history each time, and in every third round a second process that goes on in the first one's.
            let mut process = app.started(&[]).await;
            if round % 3 == 0 {
                goes_on(&written, 5).await;
                process.kill();
                process = app.started(&[]).await;
            }
            goes_on(&written, 5).await;
            stop.store(true, Ordering::Relaxed);
            process
        };
        let ((), process) = tokio::join!(write(&app, &stop, &written), follow);
        app.assert_settled(&process, &format!("round {round}")).await;
        assert!(process.terminate().success());
        std::fs::remove_dir_all(app.state()).expect("removed");
    }
    eprintln!("{} documents", written.load(Ordering::Relaxed));
}

/// The same at the first cluster time behind the snapshot: nothing but one write, as soon as the stream is open or has ended again. A
/// second in which nothing else is written has one such time, so the last write before the start must not be long ago.
#[tokio::test(flavor = "multi_thread")]
async fn seamless_a_single_write_right_behind_the_snapshot_is_seen() {
    let app = App::start(plain()).await;
    let mut next = 0;
    for round in 0..2 * ROUNDS {
        let begin = app.mark().await;
        let process = app.started(&[]).await;
        let running = if round % 2 == 0 {
            Some(process)
        } else {
            assert!(process.terminate().success());
            None
        };
        let mut session = app.client().start_session().await.expect("a session");
        let document = doc! { "_id": format!("single-{round}"), "role": "guest" };
        app.database().collection("users").insert_one(document).session(&mut session).await.expect("inserted");
        let written = session.operation_time().expect("a time");
        next += u32::from((written.time, written.increment) == (begin.time, begin.increment + 1));
        let process = running.unwrap_or_else(|| app.run(&[]));
        // Not for a later time: what it waits for is this write.
        process.wait_position(&position(written)).await;
        app.assert_equal(&process, &format!("round {round}: written at {written:?}, with {begin:?} before the start")).await;
        assert!(process.terminate().success());
        std::fs::remove_dir_all(app.state()).expect("removed");
    }
    eprintln!("{next} of {} writes had the next cluster time", 2 * ROUNDS);
    assert!(next > 0, "no write had the cluster time that this is about");
}
