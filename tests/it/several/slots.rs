//! The slots of several databases of one cluster: each source keeps its own, whatever comes and goes beside it.

use super::*;

/// What a log says when a source is read anew.
const READ_ANEW: &str = "reading every view";

fn slots(cluster: &Cluster) -> String {
    cluster.psql("postgres", "SELECT slot_name || ' ' || database FROM pg_replication_slots WHERE NOT temporary ORDER BY 1")
}

/// Whether `source` was read anew by `process`.
fn read_anew(process: &Process, source: &str) -> bool {
    process.log().lines().any(|line| line.contains(READ_ANEW) && line.contains(&format!("source=\"{source}\"")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_database_comes_and_the_first_one_goes_and_every_slot_stays() {
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    let (of_first, of_second) = (format!("factsync {}", first.name), format!("factsync_second {}", second.name));
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    let process = desk.started(&["postgres.yaml"]).await;
    assert_eq!(slots(&cluster), of_first);
    assert!(read_anew(&process, "first"), "at the first start it is:\n{}", process.log());
    process.kill();

    first.sql("DELETE FROM member WHERE user_id = '1'").await;
    desk.postgres(&[("second", "b", &second), ("first", "a", &first)]);
    let process = desk.started(&["postgres.yaml"]).await;
    assert_eq!(slots(&cluster), format!("{of_first}\n{of_second}"));
    assert!(!read_anew(&process, "first"), "{}", process.log());
    first.assert_equal(&process, "first", "a", "what was committed meanwhile").await;
    second.assert_equal(&process, "second", "b", "the new one").await;
    process.kill();

    let before = held_of(&desk, "role_a").await;
    second.sql("DELETE FROM member WHERE user_id = '1'").await;
    desk.postgres(&[("second", "b", &second)]);
    let process = desk.started(&["postgres.yaml"]).await;
    assert!(!read_anew(&process, "second"), "{}", process.log());
    second.assert_equal(&process, "second", "b", "alone").await;
    let warning = process.log().lines().find(|line| line.contains("in no configuration file any more")).map(str::to_owned);
    let warning = warning.unwrap_or_else(|| panic!("no warning:\n{}", process.log()));
    assert!(warning.contains("source=\"first\"") && warning.contains("slot=\"factsync\""), "{warning}");
    assert_eq!(held(&process, "role_a").await, before, "of a source that is gone nothing is revoked");
    assert_eq!(slots(&cluster), format!("{of_first}\n{of_second}"));
    process.kill();

    first.sql("DELETE FROM member; INSERT INTO member (user_id, role) VALUES ('9', 'owner')").await;
    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    let process = desk.started(&["postgres.yaml"]).await;
    assert!(!read_anew(&process, "first") && !read_anew(&process, "second"), "{}", process.log());
    first.assert_equal(&process, "first", "a", "back, with all that it missed").await;
    second.assert_equal(&process, "second", "b", "as ever").await;
}

/// The facts of `predicate` as a `run` without sources that changed leaves them.
async fn held_of(desk: &Desk, predicate: &str) -> BTreeSet<Vec<String>> {
    let state = desk.path("state").display().to_string();
    let process = Process::spawn(&["serve", "--limits", "off", "--state", &state], &[]);
    held(&process, predicate).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_renamed_has_the_same_facts_and_leaves_no_slot_unnamed() {
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    let process = desk.started(&["postgres.yaml"]).await;
    first.assert_equal(&process, "first", "a", "at first").await;
    process.kill();
    first.sql("DELETE FROM member WHERE user_id = '1'").await;
    desk.postgres(&[("renamed", "a", &first)]);
    let process = desk.started(&["postgres.yaml"]).await;
    first.assert_equal(&process, "renamed", "a", "renamed").await;
    assert_eq!(slots(&cluster), format!("factsync {}", first.name), "the only one takes the slot over");
    process.kill();

    desk.postgres(&[("renamed", "a", &first), ("second", "b", &second)]);
    assert!(desk.started(&["postgres.yaml"]).await.terminate().success());
    second.sql("DELETE FROM member WHERE user_id = '2'").await;
    desk.postgres(&[("renamed", "a", &first), ("third", "b", &second)]);
    let process = desk.started(&["postgres.yaml"]).await;
    second.assert_equal(&process, "third", "b", "renamed beside another").await;
    let warned = process.log().lines().any(|line| line.contains("source=\"second\"") && line.contains("slot=\"factsync_second\""));
    assert!(warned, "a slot is left behind that nobody named:\n{}", process.log());
}

/// `explain` and `reset` speak of the slots that `run` has.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_knows_the_slots_that_a_run_kept() {
    use crate::support::factsync::Factsync;
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    assert!(desk.started(&["postgres.yaml"]).await.terminate().success());
    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    assert!(desk.started(&["postgres.yaml"]).await.terminate().success());
    let env = desk.env.clone();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (&**name, &**value)).collect();
    let (config, state) = (desk.path("postgres.yaml").display().to_string(), desk.path("state").display().to_string());
    let told = Factsync::run(&["explain", &config, "--state", &state], &env).expect_code(0).stdout;
    assert!(told.contains("slot: factsync\n") && told.contains("slot: factsync_second\n"), "{told}");
    desk.postgres(&[("second", "b", &second)]);
    let reset = Factsync::run(&["reset", &config, "--state", &state, "--yes"], &env).expect_code(0);
    assert!(reset.stderr.contains("slot \"factsync\" of source \"first\" is not dropped"), "{}", reset.stderr);
    assert_eq!(slots(&cluster), format!("factsync {}", first.name));
    desk.postgres(&[("first", "a", &first)]);
    Factsync::run(&["reset", &config, "--state", &state, "--yes"], &env).expect_code(0);
    assert_eq!(slots(&cluster), "");
}
