//! Following: snapshot, stream, restarts, and what goes wrong in between.

use super::*;

async fn follows_under_writers(major: Major) {
    let (cluster, database) = cluster(major);
    let config = config(&cluster.url(&database), &VIEWS);
    // Writers run before the slot exists, while it is created and after.
    let writers: Vec<_> = (0..3)
        .map(|seed| {
            let url = cluster.url(&database);
            tokio::spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("connected");
                tokio::spawn(connection);
                let end = Instant::now() + Duration::from_secs(4);
                let mut n: i32 = seed;
                while Instant::now() < end {
                    n += 3;
                    let user = n % 50;
                    let statement = match n % 7 {
                        0 => format!("INSERT INTO org VALUES ({n}, 'org {n}') ON CONFLICT DO NOTHING"),
                        1 => format!("UPDATE org SET name = 'new {n}' WHERE id = 1"),
                        2 => format!("DELETE FROM member WHERE user_id = {user}"),
                        3 => format!("INSERT INTO repo VALUES ({n}, {}, 't', true) ON CONFLICT DO NOTHING", n % 5),
                        4 => format!("UPDATE repo SET public = NOT public WHERE id % 10 = {}", n % 10),
                        5 => format!(
                            "BEGIN; INSERT INTO member VALUES ({user}, 1, 'r{n}') ON CONFLICT DO NOTHING;
                         SAVEPOINT s; DELETE FROM member; ROLLBACK TO s; COMMIT"
                        ),
                        _ => format!("INSERT INTO part VALUES ({n}, {}, 'p') ON CONFLICT DO NOTHING", 1 + n % 2),
                    };
                    client.batch_execute(&statement).await.expect("the application writes");
                }
            })
        })
        .collect();
    let mut followed = Followed::start(&config, None);
    followed.until("the snapshot", |followed| followed.snapshots == 1).await;
    followed.until("a later cut", |followed| followed.cuts > 2).await;
    for writer in writers {
        // The events are taken in meanwhile, or the source would only wait.
        while !writer.is_finished() {
            followed.next().await;
        }
        writer.await.expect("no panic");
    }
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    assert_eq!(followed.snapshots, 1);
    let position = followed.stop().await;

    // While nobody follows, and after a restart of the server.
    cluster.psql(&database, "INSERT INTO member VALUES (900, 1, 'late'); DELETE FROM member WHERE user_id = 101; TRUNCATE repo");
    cluster.stop();
    cluster.start_again();
    let mut followed = Followed::start(&config, position);
    followed.catch_up(&cluster, &database).await;
    assert_eq!(followed.snapshots, 0, "a restart needs no new snapshot");
    for view in [0, 1, 2] {
        same(&followed.views[&view], &oracle(&cluster, &database, VIEWS[view].1), VIEWS[view].1);
    }
    assert!(!followed.views.contains_key(&3), "a view whose tables did not change is not read again");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_snapshot_and_stream_nor_over_a_restart() {
    follows_under_writers(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_between_snapshot_and_stream_nor_over_a_restart_on_18() {
    follows_under_writers(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wanted_position_past_the_last_commit_is_reached_at_once() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    // WAL that no publication has: the position lies past the last commit the stream knows.
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        cluster.psql(&database, "CREATE TABLE IF NOT EXISTS aside (id int); INSERT INTO aside SELECT generate_series(1, 1000)");
        let end: Position = cluster.psql(&database, "SELECT pg_current_wal_lsn()").parse().expect("a position");
        let start = Instant::now();
        followed.reach(end).await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}: it waited for the next regular heartbeat");
    assert_eq!(followed.cuts, 1, "no view was read for a table nobody uses");
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_hears_what_is_durable_and_nothing_else() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.until("streaming", |followed| followed.states.contains(&SourceState::Streaming)).await;
    cluster.psql(&database, "INSERT INTO member VALUES (500, 1, 'x')");
    followed.catch_up(&cluster, &database).await;
    let position = followed.stop().await.expect("a position");
    let confirmed: Position = cluster.psql(&database, "SELECT confirmed_flush_lsn FROM pg_replication_slots").parse().expect("a position");
    assert!(position.reaches(&confirmed), "{confirmed} was acknowledged, {position} is durable");
    // It keeps the last commit, which the next stream begins with, and has let go of what is before.
    let next = "SELECT count(*) FILTER (WHERE get_byte(data, 0) = ascii('B')), count(*) FILTER (WHERE lsn > '$'::pg_lsn)
                FROM pg_logical_slot_peek_binary_changes('factsync', NULL, NULL, 'proto_version', '1',
                                                         'publication_names', 'factsync', 'messages', 'true')";
    let next = cluster.psql(&database, &next.replace('$', &position.to_string()));
    let (commits, later) = next.split_once('|').expect("two columns");
    assert!(commits == "1" || later != "0", "{commits} commits are left of {position}, {confirmed} was confirmed");
    assert_eq!(cluster.psql(&database, "SELECT count(*) FROM pg_replication_slots"), "1", "temporary slots are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_gone_or_ahead_is_a_lost_position() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    let position = followed.stop().await;
    let advance = "SELECT pg_logical_emit_message(true, 'x', ''); SELECT pg_replication_slot_advance('factsync', pg_current_wal_lsn())";
    for ruin in [advance, "SELECT pg_drop_replication_slot('factsync')"] {
        cluster.psql(&database, ruin);
        let (error, _) = Followed::start(&config, position.clone()).error().await;
        assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
    }
    cluster.psql(&database, "DELETE FROM member");
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_restarts_is_unreachable_and_nothing_is_lost() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    cluster.kill();
    let (error, position) = followed.error().await;
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    let (error, _) = Followed::start(&config, position.clone()).error().await;
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    cluster.start_again();
    cluster.psql(&database, "UPDATE member SET role = 'changed'");
    let mut followed = Followed::start(&config, position);
    followed.catch_up(&cluster, &database).await;
    same(&followed.views[&1], &oracle(&cluster, &database, VIEWS[1].1), VIEWS[1].1);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_is_the_standby_until_the_slot_is_free() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut first = Followed::start(&config, None);
    first.catch_up(&cluster, &database).await;
    let mut second = Followed::start(&config, None);
    second.until("standby", |second| second.states.contains(&SourceState::Standby)).await;
    first.stop().await;
    // What it knows of the views is as old as the wait, so it has to look again.
    let (error, _) = second.error().await;
    assert!(matches!(&error, SourceError::ViewsChanged { views, .. } if views.is_empty()), "{error}");
    let mut second = Followed::start(&config, None);
    second.until("streaming", |second| second.states.contains(&SourceState::Streaming)).await;
    cluster.psql(&database, "DELETE FROM member");
    second.catch_up(&cluster, &database).await;
    assert!(second.views[&1].is_empty());
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_partitions_and_unrelated_ddl() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    for change in [
        "INSERT INTO part VALUES (7, 1, 'n')",
        "CREATE TABLE part_3 PARTITION OF part FOR VALUES IN (3); INSERT INTO part_3 VALUES (8, 3, 'new')",
        "UPDATE part SET kind = 2 WHERE id = 1",
        "TRUNCATE part",
        "TRUNCATE member, repo",
        "ALTER TABLE repo ADD COLUMN unrelated text; INSERT INTO repo VALUES (77, 1, 't', true, 'u')",
        "INSERT INTO member VALUES (1, 1, 'x'); BEGIN; DELETE FROM member; ROLLBACK",
    ] {
        cluster.psql(&database, change);
        followed.catch_up(&cluster, &database).await;
        agrees(&followed, &cluster, &database);
    }
    // What the log does not carry shows with the next heartbeat.
    for change in ["INSERT INTO part VALUES (1, 1), (2, 2)", "TRUNCATE part_1", "ALTER TABLE part DETACH PARTITION part_2"] {
        cluster.psql(&database, change);
        let want = oracle(&cluster, &database, VIEWS[3].1);
        followed.until(change, |followed| followed.views[&3] == want).await;
    }
    assert_eq!(followed.snapshots, 1);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_columns_that_are_needed_are_published_and_the_application_goes_on() {
    let (cluster, database) = cluster(Major::V15);
    let mut followed = Followed::start(&config(&cluster.url(&database), &VIEWS), None);
    followed.catch_up(&cluster, &database).await;
    let columns =
        "SELECT string_agg(tablename || ':' || array_to_string(attnames, ','), ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(cluster.psql(&database, columns), "member:user_id,org_id,role org:id,name part:id,kind repo:id,org_id,public");
    // Every table can still be changed as before, also those the publication does not name.
    cluster.psql(
        &database,
        "UPDATE org SET secret = 'y', id = id + 100; DELETE FROM repo WHERE id = 10; UPDATE loose SET name = 'n'; DELETE FROM part;
         UPDATE whole SET name = 'z'; DELETE FROM loose",
    );
    followed.catch_up(&cluster, &database).await;
    agrees(&followed, &cluster, &database);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_view_that_fails_does_not_stop_the_others_and_comes_back() {
    let (cluster, database) = cluster(Major::V15);
    let views =
        [VIEWS[1], ("has_quota(Org:_, Integer:_)", "SELECT id, 10 / (id - 1) FROM org"), ("is_loose(Thing:_)", "SELECT id FROM loose")];
    let mut followed = Followed::start(&config(&cluster.url(&database), &views), None);
    followed.catch_up(&cluster, &database).await;
    assert!(followed.failed[&1].contains("division by zero"), "{:?}", followed.failed);
    assert!(followed.failed[&2].contains("REPLICA IDENTITY FULL"), "{:?}", followed.failed);
    same(&followed.views[&0], &oracle(&cluster, &database, views[0].1), views[0].1);
    cluster.psql(&database, "DELETE FROM org WHERE id = 1; DELETE FROM member");
    followed.catch_up(&cluster, &database).await;
    for view in [0, 1] {
        same(&followed.views[&view], &oracle(&cluster, &database, views[view].1), views[view].1);
    }
    assert_eq!(followed.failed.keys().copied().collect::<Vec<_>>(), [2]);
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_the_clock_changes_without_a_commit() {
    let (cluster, database) = cluster(Major::V15);
    cluster.psql(&database, "ALTER TABLE member ADD COLUMN until timestamptz; UPDATE member SET until = now() + interval '3 s'");
    let views = [("has_role(User:_)", "SELECT user_id FROM member WHERE until > now()")];
    let mut followed = Followed::start(&config(&cluster.url(&database), &views), None);
    followed.until("the snapshot", |followed| followed.snapshots == 1).await;
    followed.until("the grant's end", |followed| followed.views[&0].is_empty()).await;
    followed.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_or_publication_is_a_changed_view() {
    let (cluster, database) = cluster(Major::V15);
    let config = config(&cluster.url(&database), &VIEWS);
    let mut followed = Followed::start(&config, None);
    followed.catch_up(&cluster, &database).await;
    cluster.psql(&database, "UPDATE member SET role = 'a'");
    followed.catch_up(&cluster, &database).await;
    // The change of its shape is in the stream before the next change of a row.
    cluster.psql(&database, "ALTER TABLE member RENAME COLUMN role TO rank; UPDATE member SET rank = 'b'");
    let (error, _) = followed.error().await;
    let SourceError::ViewsChanged { views, .. } = &error else { panic!("{error}") };
    assert!(views.contains(&1), "{error}: {views:?}");
    let mut follower = Follower::new("app_db", &config, std::env::temp_dir());
    let before = follower.prepare().await.expect("prepared");
    cluster.psql(&database, "ALTER TABLE repo ADD COLUMN more text; ALTER TABLE org ADD COLUMN more text");
    let same = follower.prepare().await.expect("prepared");
    assert_eq!(fingerprints(&same), fingerprints(&before), "columns that nobody uses change nothing");
    cluster.psql(&database, "DROP PUBLICATION factsync");
    let after = follower.prepare().await.expect("prepared");
    // The renamed view is refused, so nothing of it is published.
    for view in [0, 2, 3] {
        assert_ne!(after.views[view].fingerprint, before.views[view].fingerprint, "a publication that was away has missed changes");
    }
    assert_eq!(after.system_identifier, before.system_identifier);
}

fn fingerprints(prepared: &Prepared) -> Vec<&str> {
    prepared.views.iter().map(|view| view.fingerprint.as_str()).collect()
}
