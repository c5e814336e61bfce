//! More rows than any operator takes at once: loads, hot keys, statements over whole tables, TRUNCATE.
//!
//! Parts, pages and lookups are bounded in memory, and what is right within one of them may be wrong between two.

use super::assert_incremental;
use crate::support::app::App;

/// 6,000 rows each, and 2,000 of them under one key: several parts of 4,096, several lookups of 1,024.
const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, team int, role text, expires_at timestamptz);
CREATE TABLE team (id int PRIMARY KEY, parent int, name text);
CREATE TABLE block (member int, team int, PRIMARY KEY (member, team));
INSERT INTO member SELECT i, CASE WHEN i % 3 = 0 THEN 7 ELSE i END, 'r' || i % 3, CASE WHEN i % 2 = 0 THEN 'infinity'::timestamptz END
  FROM generate_series(1, 6000) AS i;
INSERT INTO team SELECT i, nullif(i / 2, 0), 't' || i % 4000 FROM generate_series(1, 6000) AS i;
INSERT INTO block SELECT i, 1 + i * 7 % 6000 FROM generate_series(1, 6000) AS i";

const FACTS: [(&str, &str); 14] = [
    ("keys(User:_, Team:_)", "SELECT member, team FROM block"),
    ("joins(User:_, String:_)", "SELECT m.id, t.name FROM member AS m JOIN team AS t ON t.id = m.team"),
    (
        "joins_three(User:_, Team:_)",
        "SELECT m.id, t.parent FROM member AS m JOIN block AS b ON b.member = m.id JOIN team AS t ON t.id = b.team",
    ),
    ("differs(User:_, String:_)", "SELECT DISTINCT m.team, m.role FROM member AS m"),
    ("exists_in(User:_)", "SELECT id FROM member AS m WHERE EXISTS (SELECT FROM block AS b WHERE b.team = m.team)"),
    ("exists_not(User:_)", "SELECT id FROM member AS m WHERE NOT EXISTS (SELECT FROM block AS b WHERE b.team = m.team)"),
    ("in_not(User:_)", "SELECT id FROM member WHERE team NOT IN (SELECT team FROM block WHERE member < 4500)"),
    ("outer_left(User:_, String:_)", "SELECT m.id, coalesce(b.team, 0) FROM member AS m LEFT JOIN block AS b ON b.member = m.team"),
    ("outer_full(User:_, String:_)", "SELECT coalesce(m.id, 0), coalesce(t.id, 0) FROM member AS m FULL JOIN team AS t ON t.id = m.team"),
    ("groups(Team:_, String:_)", "SELECT team, count(*) || '/' || max(id) FROM member GROUP BY team HAVING count(*) < 3000"),
    ("sets(User:_)", "SELECT id FROM member EXCEPT SELECT team FROM block WHERE member % 2 = 0"),
    ("first(Team:_, User:_)", "SELECT DISTINCT ON (team) team, id FROM member ORDER BY team, id DESC"),
    ("unexpired(User:_)", "SELECT id FROM member WHERE expires_at > now()"),
    (
        "below(Team:_, Team:_)",
        "WITH RECURSIVE tree (id, top) AS (
           SELECT id, id FROM team WHERE id BETWEEN 8 AND 15 UNION SELECT t.id, tree.top FROM tree JOIN team AS t ON t.parent = tree.id)
         SELECT id, top FROM tree",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn exact_beyond_what_an_operator_takes_at_once() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    assert_incremental(&process, FACTS.len()).await;
    app.assert_equal(&process, "loaded").await;
    for sql in [
        "UPDATE team SET name = name || 'x' WHERE id <> 9",
        "UPDATE member SET team = 8 WHERE team = 7",
        "DELETE FROM member WHERE id % 4 = 1",
        "DELETE FROM block; INSERT INTO block SELECT i, 1 + i * 11 % 6000 FROM generate_series(1, 5000) AS i",
        "TRUNCATE block",
        "UPDATE team SET parent = 4 WHERE id BETWEEN 8 AND 15",
        "TRUNCATE member, team; INSERT INTO member SELECT i, i, 'r', NULL FROM generate_series(1, 4500) AS i",
    ] {
        app.commit(&process, sql).await;
        assert_incremental(&process, FACTS.len()).await;
        app.assert_equal(&process, sql).await;
    }
}
