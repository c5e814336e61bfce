//! Following from a position with a view that is ahead of it.

use std::{sync::Arc, time::Duration};

use factsync::{
    data::{Change, ClusterTime, Position, ResumeToken},
    source::{Event, Follow, Link, Role, Start},
};
use mongodb::{ClientSession, bson::doc};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// The cluster time of a session's last operation.
fn time(session: &ClientSession) -> ClusterTime {
    let time = session.operation_time().expect("it has written");
    ClusterTime::new(time.time, time.increment)
}

/// What a lookup found when a view was loaded is neither what it finds at the position of the others, nor what it finds now: only who
/// looks at all three times knows that the document changes with it.
#[tokio::test]
async fn exact_a_lookup_of_a_view_that_is_ahead_is_compared_with_what_it_found_then() {
    let mongod = Mongod::shared().await;
    let client = mongod.client().await;
    let database = client.database("ahead");
    let (main, foreign) = (database.collection::<Document>("main"), database.collection::<Document>("foreign"));
    let lookup =
        json!([{"$lookup": {"from": "foreign", "localField": "key", "foreignField": "key", "as": "found"}}, {"$unwind": "$found"}]);
    main.create_index(mongodb::IndexModel::builder().keys(doc! {"key": 1}).build()).await.expect("an index");
    main.insert_one(doc! {"_id": "m", "key": 1}).await.expect("written");
    foreign.insert_one(doc! {"_id": "f", "key": 0}).await.expect("written");
    let mut session = client.start_session().await.expect("a session");
    let mut times = Vec::new();
    for key in [2, 1, 3] {
        foreign.update_one(doc! {"_id": "f"}, doc! {"$set": {"key": key}}).session(&mut session).await.expect("written");
        times.push(time(&session));
    }
    let [position, loaded, now] = times[..] else { unreachable!("three writes") };
    let view = view(1, "main", &["_id", "found._id"], aggregate(lookup));
    let dir = tempfile::tempdir().expect("a folder");
    let mut follower = mongo::Follower::new("app", Arc::new(config(&mongod.uri("ahead"), vec![view])), dir.path());
    let from = Some(Position::Time(position, ResumeToken::default()));
    let start = Start { settled: from.clone(), from, roles: vec![Role::Incremental], ahead: vec![Some(loaded.end())] };
    let (sender, mut events) = mpsc::channel(8);
    let (_durable, durable) = watch::channel(None);
    let (_wanted, wanted) = watch::channel(None);
    let (stop, stopped) = watch::channel(false);
    let mut link = Link { events: sender, durable, wanted, stop: stopped };
    let task = tokio::spawn(async move { follower.follow(start, &mut link).await });
    let mut deleted = 0;
    loop {
        let event = timeout(DEADLINE, events.recv()).await.expect("an event in time").expect("the follower lives");
        let reached = match event {
            Event::Changes { batch, .. } => {
                deleted += batch.changes(0..batch.len()).filter(|(_, change)| matches!(change, Change::Delete { .. })).count();
                batch.commits().last().map(|commit| commit.end)
            }
            Event::Progress { received, .. } => received.end(),
            _ => None,
        };
        if reached.is_some_and(|reached| reached >= now.end()) {
            break;
        }
    }
    assert_eq!(deleted, 1, "the document makes nothing any more");
    stop.send_replace(true);
    task.await.expect("no panic").expect("stopped");
}
