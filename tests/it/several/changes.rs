//! What becomes of facts when the configuration changes between two runs of one state directory.

use super::*;
use crate::crash::moments::{self, Scene};

/// A fact type that moves to another file and back: its first file has not changed meanwhile, and still its facts are to be those of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fact_type_that_moves_to_another_file_and_back_has_the_facts_of_its_file() {
    let desk = Desk::new();
    desk.put("one.csv", "user,role\n1,admin\n2,viewer\n");
    desk.put("two.csv", "user,role\n2,viewer\n3,owner\n");
    for (file, context) in [("one", "at first"), ("two", "moved"), ("one", "and back")] {
        desk.csv(&[(file, "a")], "");
        let process = desk.started(&["csv.yaml"]).await;
        desk.assert_csv(&process, file, "a", context).await;
        process.kill();
    }
    desk.csv(&[("one", "a"), ("two", "b")], "");
    assert!(desk.started(&["csv.yaml"]).await.terminate().success());
    desk.csv(&[("one", "b"), ("two", "a")], "");
    let process = desk.started(&["csv.yaml"]).await;
    desk.assert_csv(&process, "one", "b", "changed places").await;
    desk.assert_csv(&process, "two", "a", "changed places").await;
}

/// From a database to a file and back, where the database has changed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_fact_type_that_moves_between_a_database_and_a_file_has_the_facts_of_its_source() {
    let cluster = Cluster::start(Major::V15);
    let database = Database::on(&cluster).await;
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &database)]);
    assert!(desk.started(&["postgres.yaml"]).await.terminate().success());
    database.sql("DELETE FROM member WHERE user_id = '1'").await;
    desk.put("one.csv", "user,role\n1,admin\n7,owner\n");
    desk.csv(&[("one", "a")], "");
    let yaml = fs::read_to_string(desk.path("csv.yaml")).expect("readable").replace("member_a", "role_a");
    desk.put("csv.yaml", &yaml);
    let process = desk.started(&["csv.yaml"]).await;
    wait(&process, &desk.csv_path("one"), &digest(&desk.path("one.csv"))).await;
    let wanted = BTreeSet::from([["1", "admin"], ["7", "owner"]].map(|row| row.map(str::to_owned).to_vec()));
    assert_eq!(held(&process, "role_a").await, wanted);
    process.kill();
    let process = desk.started(&["postgres.yaml"]).await;
    database.assert_equal(&process, "first", "a", "and back").await;
}

/// What a source that is gone had not sent yet must not keep the others from starting, and is found when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_goes_with_changes_unsent_stops_no_other_and_is_exact_when_it_is_back() {
    let desk = Desk::new();
    desk.put("one.csv", "user,role\n1,admin\n2,viewer\n");
    desk.put("two.csv", "user,role\n2,viewer\n3,owner\n");
    desk.csv(&[("one", "a"), ("two", "b")], "");
    let facts = desk.path("facts").display().to_string();
    let store = Process::spawn(&["serve", "--limits", "off", "--state", &facts], &[]);
    let url = store.url().to_owned();
    let listen = url.strip_prefix("http://").expect("a URL").to_owned();
    let into = ["--target", &url, "--plan", "unlimited"];
    let process = desk.run(&["csv.yaml"], &into);
    process.wait_ready().await;
    store.kill();
    desk.put("one.csv", "user,role\n1,admin\n");
    desk.put("two.csv", "user,role\n3,owner\n");
    eventually_async(DEADLINE, "two revocations wait", async || (process.status().await["outbox"]["facts"] == 2).then_some(())).await;
    process.kill();

    desk.csv(&[("two", "b")], "");
    let process = desk.run(&["csv.yaml"], &into);
    let store = Process::spawn(&["serve", "--limits", "off", "--state", &facts, "--listen", &listen], &[]);
    let two = digest(&desk.path("two.csv"));
    wait(&process, &desk.csv_path("two"), &two).await;
    assert_eq!(held(&store, "member_b").await, BTreeSet::from([["3", "owner"].map(str::to_owned).to_vec()]));
    assert_eq!(held(&store, "member_a").await.len(), 2, "of a source that is gone nothing is written");
    process.wait_ready().await;
    process.kill();

    desk.csv(&[("one", "a"), ("two", "b")], "");
    let process = desk.run(&["csv.yaml"], &into);
    process.wait_ready().await;
    wait(&process, &desk.csv_path("one"), &digest(&desk.path("one.csv"))).await;
    assert_eq!(held(&store, "member_a").await, BTreeSet::from([["1", "admin"].map(str::to_owned).to_vec()]), "back");
}

/// Two sources cannot claim the same facts: nobody could say whose removal counts.
#[test]
fn one_fact_type_from_two_sources_is_refused() {
    use crate::support::factsync::Factsync;
    let desk = Desk::new();
    desk.csv(&[("one", "a")], "");
    fs::copy(desk.path("csv.yaml"), desk.path("again.yaml")).expect("copied");
    let yaml = fs::read_to_string(desk.path("again.yaml")).expect("readable").replace("one.csv", "two.csv");
    desk.put("again.yaml", &yaml);
    let [one, again] = ["csv.yaml", "again.yaml"].map(|name| desk.path(name).display().to_string());
    let refused = Factsync::run(&["run", &one, &again], &[]).expect_code(2);
    assert!(refused.stderr.contains("the fact type \"member_a(User:_, String:_)\" is there twice"), "{}", refused.stderr);
    let yaml = yaml.replace("member_a(User:_, String:_)", "member_a(User:_, admin)").replace("[user, role]", "[user]");
    desk.put("again.yaml", &yaml);
    let refused = Factsync::run(&["run", &one, &again], &[]).expect_code(2);
    assert!(refused.stderr.contains("Both would claim"), "{}", refused.stderr);
}

/// Two databases exchange their fact types, and the process dies on the way: half an exchange is neither the one nor the other.
#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_death_while_fact_types_change_places() {
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    second.sql("UPDATE member SET role = role || ' of the second'").await;
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    assert!(desk.started(&["postgres.yaml"]).await.terminate().success());
    let mut names = ["b", "a"];
    for moment in moments::of(Scene::Exchange) {
        let [of_first, of_second] = names;
        desk.postgres(&[("first", of_first, &first), ("second", of_second, &second)]);
        desk.env.push(("FACTSYNC_DIE_AT".to_owned(), format!("{}:1", moment.name())));
        moments::assert_died(desk.run(&["postgres.yaml"], &[]), &moment.name());
        desk.env.pop();
        first
            .sql("DELETE FROM member WHERE id = (SELECT min(id) FROM member); INSERT INTO member (user_id, role) VALUES ('9', 'new')")
            .await;
        let process = desk.run(&["postgres.yaml"], &[]);
        first.assert_equal(&process, "first", of_first, &moment.name()).await;
        second.assert_equal(&process, "second", of_second, &moment.name()).await;
        process.kill();
        names.reverse();
    }
}
