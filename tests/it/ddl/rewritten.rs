//! A table that gets another file while it is read.
//!
//! For a snapshot that is older, such a table is empty (`ALTER TABLE` with a rewrite, `TRUNCATE`), and what is read as empty would be
//! revoked. Four views that stand at a gate keep all readers busy until the change has been committed; only then comes the fifth.

use std::time::Duration;

use tokio_postgres::Client;

use super::campaign::Campaign;
use crate::support::{eventually_async, factsync::Factsync, postgres::Major};

const DEADLINE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO thing SELECT i, 'n' || i FROM generate_series(1, 20) AS i;
CREATE TABLE keeper (id int PRIMARY KEY); INSERT INTO keeper SELECT generate_series(1, 2);
CREATE FUNCTION gate(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
  $$ BEGIN PERFORM pg_advisory_lock_shared(7); PERFORM pg_advisory_unlock_shared(7); RETURN $1; END $$";

const GATE: &str = "SELECT id, gate(id) + count(*) OVER () FROM keeper";
/// The first four are as many as there are readers.
const QUERIES: [&str; 5] = [GATE, GATE, GATE, GATE, "SELECT id, name || count(*) OVER (PARTITION BY name) FROM thing"];

/// What gives the table another file without a change of what the query returns, or with one.
const REWRITES: [&str; 4] = [
    "ALTER TABLE thing ADD COLUMN IF NOT EXISTS number float DEFAULT random()",
    "VACUUM FULL thing",
    "BEGIN; DROP TABLE thing; CREATE TABLE thing (id int PRIMARY KEY, name text NOT NULL);
     INSERT INTO thing SELECT i, 'n' || i FROM generate_series(1, 20) AS i; COMMIT",
    "BEGIN; CREATE TEMP TABLE kept AS SELECT id, name FROM thing; TRUNCATE thing; INSERT INTO thing (id, name) SELECT * FROM kept;
        COMMIT; DROP TABLE kept",
];

/// Closes the gate.
async fn close(client: &Client) {
    client.batch_execute("SELECT pg_advisory_lock(7)").await.expect("the gate closes");
}

/// Waits until `count` readers stand at the gate, changes the file, and opens it.
async fn pass(campaign: &Campaign, client: &Client, count: usize, rewrite: &str) {
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually_async(DEADLINE, "the readers stand at the gate", async || {
        (campaign.app.ask(waiting).await == count.to_string()).then_some(())
    })
    .await;
    campaign.app.sql(rewrite).await;
    client.batch_execute("SELECT pg_advisory_unlock(7)").await.expect("the gate opens");
}

async fn rewritten(major: Major) {
    let mut campaign = Campaign::start(major, SCHEMA, &QUERIES).await;
    let client = campaign.app.cluster.client(&campaign.app.database).await;
    for rewrite in REWRITES {
        eprintln!("{rewrite}");
        let (seen, mut answers) = campaign.seen().await;
        close(&client).await;
        // All of them are to be read again.
        campaign.app.sql("UPDATE keeper SET id = id; UPDATE thing SET name = name WHERE id = 1").await;
        pass(&campaign, &client, 4, rewrite).await;
        campaign.note(&mut answers).await;
        campaign.equal(0..=5, rewrite).await;
        campaign.between(seen, &answers, &[], rewrite);
    }
    // The same with a new snapshot of everything.
    let (seen, mut answers) = campaign.seen().await;
    campaign.stop();
    campaign.app.sql("SELECT pg_drop_replication_slot('app')").await;
    close(&client).await;
    campaign.launch();
    pass(&campaign, &client, 4, "ALTER TABLE thing ADD COLUMN another float DEFAULT random()").await;
    campaign.note(&mut answers).await;
    campaign.equal(0..=5, "a new snapshot").await;
    campaign.between(seen, &answers, &[], "a new snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_on_15() {
    rewritten(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_on_18() {
    rewritten(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_while_it_is_reconciled() {
    let mut campaign = Campaign::start(Major::V18, SCHEMA, &QUERIES).await;
    let client = campaign.app.cluster.client(&campaign.app.database).await;
    let (seen, answers) = campaign.seen().await;
    campaign.stop();
    close(&client).await;
    let (config, url, target) = (campaign.app.config(), campaign.app.url(), campaign.recorder.url.clone());
    let reconcile = tokio::task::spawn_blocking(move || {
        let args = ["reconcile", config.to_str().expect("UTF-8"), "--perform-updates", "--target", &target];
        Factsync::run(&args, &[("DATABASE_URL", &url)])
    });
    pass(&campaign, &client, 4, REWRITES[0]).await;
    let output = reconcile.await.expect("it ends").expect_code(1);
    assert!(output.stderr.contains("public.thing was rewritten, truncated or made anew while it was read"), "{}", output.stderr);
    campaign.between(seen, &answers, &[], "reconcile");
}
