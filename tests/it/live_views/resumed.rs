//! A restart goes on where it was: what is not concerned by the commits since is not read again.

use super::Copies;
use crate::support::app::{App, fact_type};

const SCHEMA: &str = "
CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL);
CREATE TABLE label (id int PRIMARY KEY, document int NOT NULL, name text NOT NULL);
INSERT INTO member SELECT i, 'r' || i % 5 FROM generate_series(1, 50) AS i;
INSERT INTO label SELECT i, i % 7, 'n' || i FROM generate_series(1, 50) AS i";

const REFRESHED: &str = "is_labelled(Document:_, String:_)";

const FACTS: [(&str, &str); 2] = [
    ("has_role(User:_, String:_)", "SELECT id, role FROM member"),
    (REFRESHED, "SELECT document, string_agg(name, ',' ORDER BY name) FROM label GROUP BY document"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_view_that_nobody_touched_is_not_read_again_after_a_kill() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let mut copies = Copies::watch(&app).await;
    let mut process = app.started(&[]).await;
    assert_eq!(fact_type(&process.status().await, REFRESHED)["mode"], "refresh");
    assert_eq!(copies.of(&app, "string_agg"), 1, "the first result");
    for round in 0..3 {
        app.sql("UPDATE label SET name = name || 'x' WHERE id = 1").await;
        app.settle(&process).await;
        copies.forget(&app);
        for id in 0..20 {
            app.sql(&format!("UPDATE member SET role = 'r{round}' WHERE id = {id}")).await;
        }
        app.settle(&process).await;
        // Before anything but the commits themselves can have been written down.
        process.kill();
        process = app.started(&[]).await;
        app.settle(&process).await;
        assert_eq!(copies.of(&app, "string_agg"), 0, "round {round}");
    }
    app.commit(&process, "UPDATE label SET name = 'y' WHERE id = 2").await;
    assert_eq!(copies.of(&app, "string_agg"), 1, "it is when somebody did");
    app.assert_equal(&process, "in the end").await;
}
