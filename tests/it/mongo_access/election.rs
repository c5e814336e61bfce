//! A replica set that elects a primary while it is read.

use std::time::Duration;

use mongodb::bson::doc;

use super::Config;
use crate::support::replica_set::ReplicaSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconcile_outlives_an_election_and_says_so_when_there_is_none() {
    let mut set = ReplicaSet::start(3).await;
    let users = set.client().await.database("app").collection("users");
    let majority = mongodb::options::WriteConcern::majority();
    users.insert_one(doc! { "_id": "ann", "role": "admin" }).write_concern(majority).await.expect("inserted");
    let uri = set.uri("app");
    let config = Config::new();
    let stepped_down = set.step_down().await;
    assert_eq!(config.reconciled(&uri), ["ann admin"], "right after it stepped down");
    assert_ne!(set.primary().await, stepped_down);
    assert_eq!(config.reconciled(&(uri.clone() + "&readPreference=secondary")), ["ann admin"]);

    let killed = set.kill_primary().await;
    assert_eq!(config.reconciled(&uri), ["ann admin"], "right after it died");
    let primary = set.primary().await;
    assert_ne!(primary, killed);

    // Without a majority nobody is elected.
    set.kill(primary);
    let output = config.run(&["reconcile"], &(uri.clone() + "&serverSelectionTimeoutMS=1500")).expect_code(1);
    let wanted = "could not connect at source \"app\": no server can be used: 127.0.0.1:";
    assert!(output.stderr.contains(wanted) || output.stdout.contains(wanted), "{output:?}");
    set.restart(primary).await;
    set.restart(killed).await;
    tokio::time::timeout(Duration::from_secs(90), set.primary()).await.expect("elected");
    assert_eq!(config.reconciled(&uri), ["ann admin"]);
}
