//! One source that is down is shown and stops no other; it comes back without a restart.

use super::*;
use crate::support::github::Random;

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_or_malformed_is_shown_and_the_others_go_on() {
    let (up, down) = (Cluster::start(Major::V15), Cluster::start(Major::V15));
    let (first, mut second) = (Database::on(&up).await, Database::on(&down).await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    desk.csv(&[("good", "a"), ("bad", "b")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    desk.put("bad.csv", "user,role\n1,\"admin\n");
    down.stop();
    let process = desk.run(&["postgres.yaml", "csv.yaml"], &[]);

    first.sql("INSERT INTO member (user_id, role) VALUES ('3', 'owner'); DELETE FROM member WHERE user_id = '1'").await;
    first.assert_equal(&process, "first", "a", "while the others are down").await;
    desk.assert_csv(&process, "good", "a", "while the others are down").await;
    let reason = in_state(&process, "second", "retrying").await["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("source \"second\""), "{reason}");
    let reason = in_state(&process, &desk.csv_path("bad"), "retrying").await["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("ends inside the quotes that line 2 opens"), "{reason}");
    for source in ["first", &desk.csv_path("good")] {
        assert_eq!(line(&process, source).await["state"], "streaming", "{source}");
    }
    assert_eq!(process.status().await["state"], "retrying", "the one furthest from streaming stands for all");
    let (status, body) = process.get("/readyz").await;
    assert!(status == 503 && body.contains("source \\\"second\\\" is "), "{status} {body}");

    down.start_again();
    second.again(&down).await;
    second.sql("DELETE FROM member WHERE user_id = '2'").await;
    second.assert_equal(&process, "second", "b", "once it is up").await;
    desk.put("bad.csv", "user,role\n1,admin\n");
    desk.assert_csv(&process, "bad", "b", "once it is good").await;
    process.wait_ready().await;
    assert_eq!(process.status().await["state"], "streaming");

    // And one that dies while it is followed.
    down.kill();
    in_state(&process, "second", "retrying").await;
    first.sql("UPDATE member SET role = 'viewer'").await;
    first.assert_equal(&process, "first", "a", "while the second is dead").await;
    desk.put("good.csv", "user,role\n2,admin\n");
    desk.assert_csv(&process, "good", "a", "while the second is dead").await;
    down.start_again();
    second.again(&down).await;
    second.sql("UPDATE member SET user_id = user_id || 'x'").await;
    second.assert_equal(&process, "second", "b", "risen").await;
    process.wait_ready().await;
}

/// The guard of one holds what is its own, and nothing else waits for the person.
#[tokio::test(flavor = "multi_thread")]
async fn a_held_removal_of_one_source_delays_no_other() {
    let cluster = Cluster::start(Major::V15);
    let database = Database::on(&cluster).await;
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &database)]);
    desk.csv(&[("good", "a"), ("other", "b")], "sync:\n  max_removals: {count: 10, percent: 20}\n");
    let full: String = (0..50).map(|n| format!("{n},admin\n")).collect();
    desk.put("good.csv", &format!("user,role\n{full}"));
    desk.put("other.csv", "user,role\n1,admin\n2,admin\n");
    let process = desk.started(&["postgres.yaml", "csv.yaml"]).await;
    desk.put("good.csv", "user,role\n");
    wait(&process, &desk.csv_path("good"), &digest(&desk.path("good.csv"))).await;
    assert_eq!(held(&process, "member_a").await.len(), 50, "held");
    assert_eq!(process.status().await["held"][0]["fact_type"], "member_a(User:_, String:_)");
    desk.put("other.csv", "user,role\n1,admin\n");
    desk.assert_csv(&process, "other", "b", "a revocation of another file").await;
    database.sql("DELETE FROM member WHERE user_id = '1'").await;
    database.assert_equal(&process, "first", "a", "a revocation of a database").await;
    process.wait_ready().await;
}

/// `kill -9` at any moment, while two databases and a file never stop changing.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_with_several_sources_under_load_ends_exact() {
    let mut random = Random::new("several kills");
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    desk.csv(&[("good", "a")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    let done = tokio::sync::watch::Sender::new(0_u64);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut writers = Vec::new();
    for database in [&first, &second] {
        let (client, random) = (cluster.client(&database.name).await, random.split());
        writers.push(tokio::spawn(commit(client, random, done.clone(), stopped.clone())));
    }
    for _ in 0..8 {
        let process = desk.run(&["postgres.yaml", "csv.yaml"], &[]);
        let goal = *done.borrow() + random.below(200);
        let mut seen = done.subscribe();
        for _ in 0..4 {
            let rows: String = (0..random.below(9)).map(|n| format!("{n},r{}\n", random.below(3))).collect();
            desk.put("good.csv", &format!("user,role\n{rows}"));
        }
        seen.wait_for(|done| *done >= goal).await.expect("the writers go on");
        process.kill();
    }
    stop.send_replace(true);
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
    assert!(*done.borrow() > 0);
    let process = desk.started(&["postgres.yaml", "csv.yaml"]).await;
    first.assert_equal(&process, "first", "a", "after the last kill").await;
    second.assert_equal(&process, "second", "b", "after the last kill").await;
    desk.assert_csv(&process, "good", "a", "after the last kill").await;
}

/// Random commits over few users and roles until `stop`, counted.
pub(super) async fn commit(
    client: Client,
    mut random: Random,
    done: tokio::sync::watch::Sender<u64>,
    stop: tokio::sync::watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let (user, role) = (random.below(6), random.below(3));
        let sql = match random.below(4) {
            0 => format!("DELETE FROM member WHERE user_id = '{user}'"),
            1 => format!("UPDATE member SET role = 'r{role}' WHERE user_id = '{user}'"),
            2 => format!(
                "BEGIN; DELETE FROM member WHERE role = 'r{role}'; INSERT INTO member VALUES (DEFAULT, '{user}', 'r{role}'); COMMIT"
            ),
            _ => format!("INSERT INTO member (user_id, role) VALUES ('{user}', 'r{role}')"),
        };
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        done.send_modify(|done| *done += 1);
    }
}
