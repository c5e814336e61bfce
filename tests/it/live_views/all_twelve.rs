//! The views of a code-hosting application, one of each kind that authorization needs, under random transactions.

use super::{Copies, assert_incremental};
use crate::support::{app::App, factsync::root, github::Random, postgres::Major};

/// What the example's schema lacks.
const MORE: &str = "
ALTER TABLE organization ADD COLUMN settings jsonb NOT NULL DEFAULT '{}';
CREATE TABLE block (id bigint PRIMARY KEY, account_id bigint REFERENCES account ON DELETE CASCADE);
CREATE TABLE access_token (
    id            bigint PRIMARY KEY,
    account_id    bigint NOT NULL REFERENCES account ON DELETE CASCADE,
    repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
    expires_at    timestamptz
);
CREATE VIEW active_account AS SELECT id, login FROM account WHERE NOT suspended;
CREATE VIEW active_member AS
    SELECT account.id AS account_id, organization_id, role
    FROM organization_member JOIN active_account AS account ON account.id = account_id;
INSERT INTO block VALUES (1, 5), (2, 6);
INSERT INTO access_token
    SELECT id, id, id, now() + (id - 5) * interval '1 day' FROM generate_series(1, 9) AS id";

const FACTS: [(&str, &str); 12] = [
    (
        "is_colleague(User:_, User:_)",
        "SELECT a.account_id, b.account_id FROM organization_member AS a
         JOIN organization_member AS b ON b.organization_id = a.organization_id AND b.account_id <> a.account_id",
    ),
    (
        "is_outsider(User:_, Repository:_)",
        "SELECT m.account_id, m.repository_id FROM repository_member AS m WHERE NOT EXISTS (
           SELECT FROM repository AS r JOIN organization_member AS o ON o.organization_id = r.organization_id
           WHERE r.id = m.repository_id AND o.account_id = m.account_id)",
    ),
    (
        "is_orphaned(Organization:_)",
        "SELECT o.id FROM organization AS o LEFT JOIN organization_member AS m ON m.organization_id = o.id AND m.role = 'admin'
         WHERE m.account_id IS NULL",
    ),
    (
        "has_role(User:_, String:_, Repository:_)",
        "SELECT account_id, role::text, repository_id FROM repository_member
         UNION SELECT m.account_id, t.role::text, t.repository_id FROM team_repository AS t JOIN team_member AS m USING (team_id)",
    ),
    (
        "can_see(User:_, Repository:_)",
        "SELECT DISTINCT m.account_id, r.id FROM team_member AS m JOIN team AS t ON t.id = m.team_id
         JOIN repository AS r ON r.organization_id = t.organization_id",
    ),
    (
        "has_policy(Organization:_, String:_)",
        "SELECT id, CASE COALESCE(settings ->> 'visibility', 'default') WHEN 'public' THEN 'open'
         WHEN 'default' THEN COALESCE(settings -> 'base' ->> 'role', default_repository_role::text, 'reader') ELSE 'closed' END
         FROM organization",
    ),
    (
        "is_within(Folder:_, Folder:_)",
        "WITH RECURSIVE above (id, ancestor) AS (
           SELECT id, parent_id FROM folder UNION SELECT a.id, f.parent_id FROM above AS a JOIN folder AS f ON f.id = a.ancestor)
         SELECT id, ancestor FROM above WHERE ancestor IS NOT NULL",
    ),
    (
        // Rows of a cycle are below no top, so this UNION ALL ends.
        "is_below(Folder:_, Folder:_)",
        "WITH RECURSIVE tree (id, top) AS (
           SELECT id, id FROM folder WHERE parent_id IS NULL
           UNION ALL SELECT f.id, t.top FROM tree AS t JOIN folder AS f ON f.parent_id = t.id)
         SELECT id, top FROM tree",
    ),
    (
        "has_members(Organization:_, Integer:_)",
        "SELECT organization_id, count(*) FROM organization_member GROUP BY organization_id
         HAVING count(*) > 1 AND bool_or(role = 'admin')",
    ),
    ("is_welcome(User:_)", "SELECT id FROM account WHERE id NOT IN (SELECT account_id FROM block)"),
    (
        "is_active(User:_, Team:_)",
        "SELECT m.account_id, t.id FROM active_member AS m JOIN team AS t USING (organization_id)
         JOIN team_member AS i ON i.team_id = t.id AND i.account_id = m.account_id",
    ),
    (
        "has_token(User:_, Repository:_)",
        "SELECT t.account_id, t.repository_id FROM access_token AS t JOIN repository AS r ON r.id = t.repository_id
         WHERE t.expires_at > now() AND NOT r.is_public",
    ),
];

const TRANSACTIONS: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn all_twelve_views_of_a_github_like_schema_are_incremental() {
    all_twelve(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_twelve_views_of_a_github_like_schema_are_incremental_on_postgresql_18() {
    all_twelve(Major::V18).await;
}

async fn all_twelve(major: Major) {
    let mut random = Random::new("all_twelve");
    let file = |name: &str| std::fs::read_to_string(root().join("sql/example").join(name)).expect("the example has its SQL");
    let schema = [file("schema.sql"), file("seed.sql"), MORE.to_owned()].join(";\n");
    let app = App::start_on(major, &schema, &FACTS, "").await;
    let process = app.started(&[]).await;
    assert_incremental(&process, FACTS.len()).await;
    app.settle(&process).await;
    app.assert_equal(&process, "after the snapshot").await;

    let mut committed = 0;
    for number in 1..=TRANSACTIONS {
        committed += work(&app, &mut random).await;
        app.settle(&process).await;
        app.assert_equal(&process, &format!("after transaction {number}")).await;
    }
    assert!(committed > TRANSACTIONS / 4, "of {TRANSACTIONS} transactions only {committed} were committed");

    assert!(process.terminate().success());
    let copies = Copies::watch(&app).await;
    for _ in 0..TRANSACTIONS / 3 {
        work(&app, &mut random).await;
    }
    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "after a restart").await;
    assert_incremental(&process, FACTS.len()).await;
    assert!(!process.log().contains("reading every view"), "{}", process.log());
    assert_eq!(copies.all(&app), 0, "a restart reads nothing again");
    for _ in 0..TRANSACTIONS / 6 {
        work(&app, &mut random).await;
    }
    app.settle(&process).await;
    app.assert_equal(&process, "after transactions that follow a restart").await;
}

/// A random transaction on all tables; 1 if it was committed. One that violates a constraint rolls back, as an application's would.
async fn work(app: &App, random: &mut Random) -> u64 {
    let example = random.transaction();
    let rest = example.strip_prefix("BEGIN;\n").expect("a transaction begins so");
    let mut sql = String::from("BEGIN;\n");
    for _ in 0..random.below(3) {
        sql.push_str(&format!("{};\n", statement(random)));
    }
    sql.push_str(rest);
    match app.client.batch_execute(&sql).await {
        Ok(()) => u64::from(sql.ends_with("COMMIT")),
        Err(error) => {
            assert!(error.as_db_error().is_some(), "the connection is lost: {error:?}");
            app.sql("ROLLBACK").await;
            0
        }
    }
}

/// A statement on what the example's own transactions do not touch. Nothing expires while the test runs.
fn statement(random: &mut Random) -> String {
    let (a, b) = (random.below(6) + 1, random.below(6) + 1);
    let one_of = |random: &mut Random, choices: &[&str]| choices[random.below(choices.len() as u64) as usize].to_owned();
    let settings =
        ["{}", r#"{"visibility": "public"}"#, r#"{"visibility": null, "base": {"role": "writer"}}"#, r#"{"visibility": 7}"#, "[]"];
    let expires = ["NULL", "'infinity'", "'-infinity'", "now() + interval '2 hours'", "now() - interval '2 hours'"];
    match random.below(8) {
        0 | 1 => format!("UPDATE organization SET settings = '{}' WHERE id <= {a}", one_of(random, &settings)),
        2 => format!("INSERT INTO block SELECT {a}, id FROM account WHERE id = {b} ON CONFLICT (id) DO UPDATE SET account_id = NULL"),
        3 => format!("DELETE FROM block WHERE id = {a} OR account_id IS NULL"),
        4 | 5 => format!(
            "INSERT INTO access_token SELECT {a}, u.id, r.id, {0} FROM account AS u, repository AS r WHERE u.id = {b} AND r.id = {a}
             ON CONFLICT (id) DO UPDATE SET expires_at = {0}",
            one_of(random, &expires)
        ),
        6 => format!("DELETE FROM access_token WHERE id = {a}"),
        _ => format!(
            "UPDATE access_token SET id = id + 100, repository_id = {b} WHERE id = {a} AND EXISTS (SELECT FROM repository WHERE id = {b})"
        ),
    }
}
