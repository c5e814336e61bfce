//! Each kind of source, and all of them together: reconcile reports what is missing, makes it so, and then has nothing to say.

use mongodb::bson::{Document, doc};

use super::{Desk, assert_nothing_left, summary, told};
use crate::support::{
    github::{Github, rows},
    mongod::Mongod,
    postgres::Major,
};

const GITHUB: &str = "examples/github/github.yaml";

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_mirrored_and_then_nothing_is_left_to_do() {
    let (github, desk) = (Github::start(Major::V15).await, Desk::new());
    let url = github.url();
    let env = [("DATABASE_URL", url.as_str())];

    let report = desk.reconcile_in(&env, &[GITHUB]).expect_code(0).json();
    let wanted = report["fact_types"].as_array().expect("entries").iter().map(|entry| told(&entry["fact_type"]).replace(":null", ":_"));
    let views = github.views();
    let in_file: Vec<String> = views.iter().map(|view| view.fact_type.to_string()).collect();
    assert_eq!(wanted.collect::<Vec<_>>(), in_file, "in the order of the file");
    for (view, (fact_type, adds, removes)) in views.iter().zip(summary(&report)) {
        let found = rows(&github.client, &view.query).await.len();
        assert_eq!((adds, removes), (found, 0), "{fact_type}");
        assert_ne!(found, 0, "the example has no row for {fact_type}, so it tests nothing");
    }
    assert!(desk.store.facts("has_role").await.is_empty(), "a reconcile without --perform-updates writes nothing");

    let applied = desk.reconcile_in(&env, &[GITHUB, "--perform-updates"]).expect_code(0).json();
    assert_eq!(applied, report);
    github.assert_equal(&desk.store, "after --perform-updates").await;
    assert_nothing_left(&desk.reconcile_in(&env, &[GITHUB, "--exit-code"]).expect_code(0).json());

    let sql = "UPDATE account SET suspended = NOT suspended; DELETE FROM folder; INSERT INTO organization VALUES (77, 'org77', NULL)";
    github.client.batch_execute(sql).await.expect("changed");
    desk.reconcile_in(&env, &[GITHUB, "--perform-updates", "--exit-code"]).expect_code(3);
    github.assert_equal(&desk.store, "after the application's changes").await;
    let log = github.cluster.log();
    assert!(!log.contains("unexpected EOF") && !log.contains("could not send"), "connections are not closed:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_is_mirrored_and_then_nothing_is_left_to_do() {
    let (mongod, desk) = (Mongod::shared().await, Desk::new());
    let database = mongod.client().await.database("reconcile_example");
    seed(&database).await;
    let uri = mongod.uri("reconcile_example");
    let reconcile = |more: &[&str]| desk.reconcile_in(&[("MONGODB_URL", &uri)], &[&["examples/mongodb/mongodb.yaml"], more].concat());

    let report = reconcile(&[]).expect_code(0).json();
    let types =
        ["has_role(User:null, String:null, Organization:null)", "has_relation(Repository:null, String:organization, Organization:null)"];
    assert_eq!(summary(&report), [(types[0].to_owned(), 3, 0), (types[1].to_owned(), 2, 0)]);
    reconcile(&["--perform-updates"]).expect_code(0);
    let roles = ["admin, Organization:acme", "member, Organization:globex"].map(|role| format!("has_role(User:alice, String:{role})"));
    let bob = "has_role(User:bob, String:member, Organization:acme)".to_owned();
    assert_eq!(desk.stored("has_role").await, [roles.as_slice(), &[bob]].concat());
    let relation = |to| format!("has_relation(Repository:anvils, String:organization, Organization:{to})");
    assert_eq!(desk.stored("has_relation").await, ["acme", "globex"].map(relation));
    assert_nothing_left(&reconcile(&["--exit-code"]).expect_code(0).json());
}

/// Users with memberships, and repositories of which one is archived.
async fn seed(database: &mongodb::Database) {
    let users = [
        doc! {"_id": "alice", "organizations": [{"id": "acme", "role": "admin"}, {"id": "globex", "role": "member"}]},
        doc! {"_id": "bob", "organizations": [{"id": "acme", "role": "member"}]},
    ];
    database.collection::<Document>("users").insert_many(users).await.expect("inserted");
    let repositories = [
        doc! {"_id": "anvils", "organization_ids": ["acme", "globex"]},
        doc! {"_id": "old", "organization_ids": ["acme"], "archived": true},
    ];
    database.collection::<Document>("repositories").insert_many(repositories).await.expect("inserted");
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_is_mirrored_and_the_report_is_the_contracts_byte_for_byte() {
    let desk = Desk::new();
    let quickstart = "examples/quickstart/quickstart.yaml";
    let role = |user, role, organization| {
        format!(
            concat!(
                r#"{{"predicate":"has_role","args":[{{"type":"User","id":"{}"}},{{"type":"String","id":"{}"}},"#,
                r#"{{"type":"Organization","id":"{}"}}]}}"#
            ),
            user, role, organization
        )
    };
    let relation = |repository, organization| {
        format!(
            concat!(
                r#"{{"predicate":"has_relation","args":[{{"type":"Repository","id":"{}"}},"#,
                r#"{{"type":"String","id":"organization"}},{{"type":"Organization","id":"{}"}}]}}"#
            ),
            repository, organization
        )
    };
    let want = format!(
        concat!(
            r#"{{"type":"facts","fact_types":[{{"fact_type":{{"predicate":"has_role","args":[{{"type":"User","id":null}},"#,
            r#"{{"type":"String","id":null}},{{"type":"Organization","id":null}}]}},"add":[{},{},{}],"remove":[]}},"#,
            r#"{{"fact_type":{{"predicate":"has_relation","args":["#,
            r#"{{"type":"Repository","id":null}},{{"type":"String","id":"organization"}},"#,
            r#"{{"type":"Organization","id":null}}]}},"add":[{},{},{}],"remove":[]}}]}}"#,
            "\n"
        ),
        role("alice", "admin", "acme"),
        role("bob", "member", "acme"),
        role("carol", "admin", "globex"),
        relation("anvils", "acme"),
        relation("doomsday", "globex"),
        relation("roadmap", "acme"),
    );
    assert_eq!(desk.reconcile(&[quickstart]).expect_code(0).stdout, want);
    assert_eq!(desk.reconcile(&[quickstart, "--perform-updates"]).expect_code(0).stdout, want);
    assert_nothing_left(&desk.reconcile(&[quickstart]).expect_code(0).json());
}

#[tokio::test(flavor = "multi_thread")]
async fn three_kinds_of_source_feed_one_store_in_the_order_of_the_files() {
    let (github, mongod, desk) = (Github::start(Major::V15).await, Mongod::shared().await, Desk::new());
    let documents = mongod.client().await.database("reconcile_together");
    documents.collection("badges").insert_one(doc! {"_id": "1", "badge": "gold"}).await.expect("inserted");
    let mongo = "version: 1\nsource: mongodb\nfacts:\n  has_badge(User:_, String:_):\n    \
                 db: app\n    collection: badges\n    query: {find: {}}\n    \
                 fields: [_id, badge]\ndbs:\n  app: {connection_string: $MONGODB_URL}\n";
    let mongo = desk.write("mongo.yaml", mongo);
    let members = desk.members([("1", "red"), ("2", "blue")]);
    let (url, uri) = (github.url(), mongod.uri("reconcile_together"));
    let env = [("DATABASE_URL", url.as_str()), ("MONGODB_URL", uri.as_str())];
    let files = [mongo.as_str(), GITHUB, &members];

    let report = desk.reconcile_in(&env, &files).expect_code(0).json();
    let mut order: Vec<String> = summary(&report).into_iter().map(|(fact_type, ..)| fact_type).collect();
    assert_eq!(order.remove(0), "has_badge(User:null, String:null)");
    assert_eq!(order.pop().as_deref(), Some("member(User:null, String:parent, Team:null)"));
    assert_eq!(order.len(), github.views().len());

    desk.reconcile_in(&env, &[&files[..], &["--perform-updates"]].concat()).expect_code(0);
    github.assert_equal(&desk.store, "with two other sources beside it").await;
    assert_eq!(desk.stored("has_badge").await, ["has_badge(User:1, String:gold)"]);
    assert_eq!(desk.stored("member").await, ["member(User:1, String:parent, Team:red)", "member(User:2, String:parent, Team:blue)"]);
    assert_nothing_left(&desk.reconcile_in(&env, &[&files[..], &["--exit-code"]].concat()).expect_code(0).json());

    // The other two sources' facts are none of one file's business.
    assert_nothing_left(&desk.reconcile(&["--exit-code", &members]).expect_code(0).json());
}
