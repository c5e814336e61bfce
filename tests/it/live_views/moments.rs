//! Facts that come and go although nobody writes a row.
//!
//! What a query returns changes at a few known moments of the source's clock and is constant between them. So what the fact store
//! holds must be what the query returned at one of these moments, never at one that has not come; and it must get to the last.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Copies, assert_incremental};
use crate::support::{app::App, eventually_async, factsync::Process, github::rows};

const DEADLINE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
CREATE TABLE access (id int PRIMARY KEY, account int NOT NULL, starts_at timestamptz, expires_at timestamptz);
CREATE TABLE account (id int PRIMARY KEY, suspended boolean NOT NULL DEFAULT false);
INSERT INTO account SELECT i FROM generate_series(1, 9) AS i;
INSERT INTO access VALUES (1, 1, NULL, NULL), (2, 2, '-infinity', 'infinity'), (3, 3, '2000-01-01', '2000-01-02')";

const FACTS: [(&str, &str); 5] = [
    ("has_access(User:_, Grant:_)", "SELECT account, id FROM access WHERE expires_at > now()"),
    ("may_enter(User:_, Grant:_)", "SELECT account, id FROM access WHERE now() BETWEEN starts_at AND expires_at"),
    ("is_member(User:_, Grant:_)", "SELECT account, id FROM access WHERE expires_at IS NULL OR expires_at > now()"),
    ("had_access(User:_)", "SELECT account FROM access WHERE expires_at <= now() - interval '1 second'"),
    (
        "is_barred(User:_)",
        "SELECT u.id FROM account AS u WHERE NOT EXISTS (SELECT FROM access AS a WHERE a.account = u.id AND a.expires_at >= now())",
    ),
];

/// What each view holds.
type Answers = Vec<BTreeSet<Vec<String>>>;

/// What the queries return at each moment.
struct Moments {
    at: Vec<String>,
    /// The same since 1970.
    since: Vec<Duration>,
    answers: Vec<Answers>,
}

impl Moments {
    /// The past, and every moment at which something changes.
    async fn of(app: &App) -> Self {
        let sql =
            "SELECT DISTINCT m.at FROM access, LATERAL (VALUES (now()), (starts_at), (expires_at), (expires_at + interval '1 microsecond'),
                   (expires_at + interval '1 second')) AS m (at) WHERE m.at BETWEEN now() AND now() + interval '1 hour' ORDER BY 1";
        let at: Vec<String> = app
            .client
            .simple_query(sql)
            .await
            .expect("moments")
            .into_iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect();
        let mut answers = Vec::new();
        for moment in &at {
            let mut answer = Answers::new();
            for (_, query) in FACTS {
                answer.push(rows(&app.client, &query.replace("now()", &format!("'{moment}'::timestamptz"))).await);
            }
            answers.push(answer);
        }
        let mut since = Vec::new();
        for moment in &at {
            let micros = app.ask(&format!("SELECT (extract(epoch FROM '{moment}'::timestamptz) * 1000000)::int8")).await;
            since.push(Duration::from_micros(micros.parse().expect("a number")));
        }
        Self { at, since, answers }
    }

    /// The moments up to `now` at which `view` has `held`.
    fn fitting(&self, come: usize, view: usize, held: &BTreeSet<Vec<String>>) -> Vec<usize> {
        (0..=come).filter(|moment| self.answers[*moment][view] == *held).collect()
    }

    /// Waits until every view is at the last moment; whether one was seen before. The views are asked one after the other, so each has
    /// a moment of its own, which never lies in the future and never goes back.
    async fn pass(&self, process: &Process) -> bool {
        let mut reached = [0; FACTS.len()];
        let mut early = false;
        eventually_async(DEADLINE, "the last moment is reached", async || {
            let held = facts(process).await;
            // Asked after the facts: what they tell cannot be news from the future.
            let now = now();
            let come = self.since.iter().rposition(|at| *at <= now).unwrap_or(0);
            let mut done = true;
            for (view, held) in held.iter().enumerate() {
                let fitting = self.fitting(come, view, held);
                let next = fitting.iter().find(|moment| **moment >= reached[view]);
                reached[view] = *next.unwrap_or_else(|| {
                    panic!(
                        "at {now:?}, {} of {:?}, view {view} is past {} and holds {held:?}; {:?}",
                        come, self.at, reached[view], self.answers
                    )
                });
                let last = *held == self.answers[self.at.len() - 1][view];
                early |= !last;
                done &= last && come + 1 == self.at.len();
            }
            done.then_some(())
        })
        .await;
        early
    }
}

/// The server's clock is this machine's, and can be read while the server is stopped.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

async fn facts(process: &Process) -> Answers {
    let mut answers = Answers::new();
    for (signature, _) in FACTS {
        let predicate = signature.split_once('(').expect("a signature").0;
        let ids = |fact: &serde_json::Value| {
            fact["args"].as_array().expect("arguments").iter().map(|arg| arg["id"].as_str().expect("an id").to_owned()).collect()
        };
        answers.push(process.facts(predicate).await.iter().map(ids).collect());
    }
    answers
}

/// Rows that begin and end `seconds` ahead and a little later.
fn ahead(seconds: u32) -> String {
    format!(
        "DELETE FROM access WHERE id > 3;
         INSERT INTO access SELECT v.id, v.account, clock_timestamp() + v.starts, clock_timestamp() + v.expires
         FROM (VALUES (10, 4, interval '-1 hour', interval '{seconds} s'), (11, 5, '{seconds} s', '{seconds}.7 s'),
                      (12, 6, '{seconds}.3 s', '1 day'), (13, 4, NULL, '{seconds}.5 s'), (14, 7, '-1 day', '-2 hours'),
                      (15, 8, '{seconds}.2 s', NULL)) AS v (id, account, starts, expires)"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_grant_disappears_although_nobody_wrote_a_row() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    assert_incremental(&process, FACTS.len()).await;
    // On a machine that is slow enough everything is over before it can be seen: then with more time.
    for seconds in [2, 8, 32] {
        app.sql(&ahead(seconds)).await;
        let moments = Moments::of(&app).await;
        app.settle(&process).await;
        let seen = moments.pass(&process).await;
        app.assert_equal(&process, "after the last moment").await;
        if seen {
            return;
        }
    }
    panic!("no moment was seen to pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_expired_while_nobody_ran_is_caught_up_with() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    app.sql(&ahead(2)).await;
    let moments = Moments::of(&app).await;
    app.settle(&process).await;
    process.kill();
    let copies = Copies::watch(&app).await;
    let last = moments.at.last().expect("moments");
    let passed = format!("SELECT clock_timestamp() > '{last}'");
    eventually_async(DEADLINE, "the last moment has passed", async || (app.ask(&passed).await == "t").then_some(())).await;
    let process = app.started(&[]).await;
    moments.pass(&process).await;
    app.assert_equal(&process, "after a restart").await;
    assert_eq!(copies.all(&app), 0, "nothing was read again");

    // The same rows, touched: the views know what time it is.
    app.commit(&process, "UPDATE access SET account = account + 1 WHERE id > 3").await;
    app.assert_equal(&process, "after an update of expired rows").await;
}

async fn reaches(process: &Process, wanted: &str) {
    let state = async || (process.status().await["sources"][0]["state"] == wanted).then_some(());
    eventually_async(DEADLINE, &format!("the source is {wanted}"), state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_expires_while_the_server_is_stopped_is_revoked_at_its_moment() {
    let mut app = App::start(SCHEMA, &FACTS, "").await;
    let process = app.started(&[]).await;
    let copies = Copies::watch(&app).await;
    for seconds in [4, 16, 64] {
        app.sql(&ahead(seconds)).await;
        let moments = Moments::of(&app).await;
        app.settle(&process).await;
        app.cluster.stop();
        reaches(&process, "retrying").await;
        let position = process.status().await["sources"][0]["position"].clone();
        let seen = moments.pass(&process).await;
        let source = process.status().await["sources"][0].clone();
        assert_eq!((&source["state"], &source["position"]), (&"retrying".into(), &position), "time is no commit");

        app.cluster.start_again();
        app.client = app.cluster.client(&app.database).await;
        reaches(&process, "streaming").await;
        app.commit(&process, "INSERT INTO account VALUES (99); DELETE FROM account WHERE id = 99").await;
        app.assert_equal(&process, "after the server's restart").await;
        assert_incremental(&process, FACTS.len()).await;
        assert_eq!(copies.all(&app), 0, "nothing was read again");
        if seen {
            app.commit(&process, "UPDATE access SET account = account + 1 WHERE id > 3").await;
            return app.assert_equal(&process, "after an update of expired rows").await;
        }
    }
    panic!("no moment was seen to pass");
}
