//! `run --shadow`: an application that writes its facts itself, now at once, now late, now never, and factsync that looks on.
//!
//! The oracle is what the test did. Grouping of commits is factsync's affair, so what is reported is looked for fact by fact.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::{FACTS, ROLE, SCHEMA};
use crate::support::{
    app::{App, delete, fact, fact_type, insert},
    eventually_async,
    factsync::Process,
    free_port,
};

const DEADLINE: Duration = Duration::from_secs(120);
/// Long enough for a late write of a test on a loaded machine, and waited for once.
const GRACE: &str = "8s";

/// What was reported so far.
fn lines(log: &Arc<Mutex<String>>) -> Vec<Value> {
    let log = log.lock().expect("no reader panics").clone();
    log.lines().filter(|line| line.starts_with("{\"type\":")).map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn of<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["type"] == kind).collect()
}

/// How often each fact is in the lists called `key`.
fn listed(commits: &[&Value], key: &str) -> BTreeMap<String, usize> {
    let mut facts = BTreeMap::new();
    for fact in commits.iter().flat_map(|line| line[key].as_array().expect("a list")) {
        *facts.entry(fact.to_string()).or_default() += 1;
    }
    facts
}

fn once(facts: &[Value]) -> BTreeMap<String, usize> {
    facts.iter().map(|fact| (fact.to_string(), 1)).collect()
}

fn role(id: u32) -> Value {
    fact("has_role", &[&format!("User:{id}"), "String:writer"])
}

async fn stored(store: &Process) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for predicate in ["has_role", "is_public", "is_topic"] {
        all.extend(store.facts(predicate).await.iter().map(Value::to_string));
    }
    all
}

fn numbers(commits: &[&Value], key: &str) -> usize {
    commits.iter().map(|line| line[key].as_array().expect("a list").len()).sum()
}

/// The facts of [`SCHEMA`].
fn seeded() -> Vec<Value> {
    let of = |id: u32| {
        let reader = fact("has_role", &[&format!("User:{id}"), "String:reader"]);
        [reader, fact("is_public", &[&format!("Repository:{id}")]), fact("is_topic", &[&format!("Topic:{id}")])]
    };
    (1..=5).flat_map(of).collect()
}

/// What the application of the first test did.
struct Application {
    app: App,
    store: Process,
    /// What the fact store holds by now.
    model: BTreeSet<String>,
    /// Granted and written, granted and never written.
    written: Vec<Value>,
    never: Vec<Value>,
    /// Revoked and removed, revoked and never removed.
    revoked: Vec<Value>,
    kept: Value,
    /// Written, and in no commit and no query.
    foreign: Value,
}

impl Application {
    /// Its fact store lacks one fact and has one too many.
    async fn start() -> (Self, Value) {
        let app = App::start(SCHEMA, &FACTS, "reconcile_every: 2s").await;
        let store = Process::spawn(&["serve", "--limits", "off"], &[]);
        let mut there = seeded();
        let forgotten = there.remove(0);
        there.push(fact("is_public", &["Repository:99"]));
        insert(&store, &there).await;
        let application = Self {
            app,
            store,
            model: there.iter().map(Value::to_string).collect(),
            written: Vec::new(),
            never: Vec::new(),
            revoked: ["Topic:1", "Topic:2"].iter().map(|id| fact("is_topic", &[id])).collect(),
            kept: fact("is_public", &["Repository:3"]),
            foreign: fact("has_role", &["User:1", "String:owner"]),
        };
        (application, forgotten)
    }

    fn target(&self) -> [&str; 4] {
        ["--target", self.store.url(), "--plan", "unlimited"]
    }

    /// Grants and revokes, and writes that at once, before or after the commit; late; or never.
    async fn work(&mut self) {
        let mut late = Vec::new();
        for id in 100..130_u32 {
            let grant = role(id);
            if id % 3 == 0 && id % 2 == 0 {
                insert(&self.store, std::slice::from_ref(&grant)).await;
            }
            self.app.sql(&format!("INSERT INTO member VALUES ({id}, 'writer')")).await;
            match id % 3 {
                0 => {
                    insert(&self.store, std::slice::from_ref(&grant)).await;
                    self.written.push(grant);
                }
                1 => late.push(grant),
                _ => self.never.push(grant),
            }
        }
        for sql in ["DELETE FROM topic WHERE id = 1", "DELETE FROM topic WHERE id = 2", "DELETE FROM repository WHERE id = 3"] {
            self.app.sql(sql).await;
        }
        delete(&self.store, &self.revoked).await;
        insert(&self.store, &late).await;
        insert(&self.store, std::slice::from_ref(&self.foreign)).await;
        self.written.extend(late);
        self.model.extend(self.written.iter().chain([&self.foreign]).map(Value::to_string));
        for fact in &self.revoked {
            assert!(self.model.remove(&fact.to_string()));
        }
    }

    /// Panics unless the report says what was done.
    fn assert_reported(&self, commits: &[&Value]) {
        assert_eq!(listed(commits, "add"), once(&[&self.written[..], &self.never].concat()));
        assert_eq!(listed(commits, "remove"), once(&[&self.revoked[..], std::slice::from_ref(&self.kept)].concat()));
        assert_eq!(listed(commits, "missing"), once(&self.never));
        assert_eq!(listed(commits, "stale"), once(std::slice::from_ref(&self.kept)));
        for line in commits {
            let differs = numbers(&[line], "missing") + numbers(&[line], "stale") > 0;
            assert_eq!(line["agrees"], json!(!differs), "{line}");
            assert!(!differs || line["waited_ms"].as_u64() >= Some(8_000), "judged before its time: {line}");
        }
        assert!(commits.iter().any(|line| line["position"].is_string()), "{commits:?}");
    }

    /// Panics unless the report ends with the sum of it.
    fn assert_summed_up(&self, report: &[Value]) {
        let (commits, summary) = (of(report, "commit"), of(report, "summary")[0]);
        let agreed = commits.iter().filter(|line| line["agrees"] == true).count();
        let found = ["commits", "agreed", "missing", "stale", "unjudged"].map(|key| summary[key].clone());
        assert_eq!(found, [commits.len(), agreed, self.never.len(), 1, 0].map(|number| json!(number)));
        assert!(summary["late_ms_p50"].as_u64() <= summary["late_ms_max"].as_u64() && summary["late_ms_max"].is_u64(), "{summary}");
    }
}

/// The first three comparisons, before any commit.
fn assert_first(report: &[Value], forgotten: &Value) {
    let found = |line: &Value| [line["stored"].clone(), line["missing"].clone(), line["stale"].clone()];
    let [roles, public, topics] = &report[..3] else { panic!("{report:?}") };
    assert!([roles, public, topics].iter().all(|line| line["type"] == "comparison" && line["source"] == "app"), "{report:?}");
    assert_eq!(found(roles), [4, 1, 0].map(|number| json!(number)));
    assert_eq!(roles["samples"]["missing"], json!([forgotten]));
    assert_eq!(roles["fact_type"]["args"][0], json!({"type": "User", "id": null}));
    assert_eq!(found(public), [6, 0, 1].map(|number| json!(number)));
    assert_eq!(public["samples"]["stale"], json!([fact("is_public", &["Repository:99"])]));
    assert_eq!(found(topics), [5, 0, 0].map(|number| json!(number)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_is_what_the_application_did_and_nothing_is_written() {
    let (mut application, forgotten) = Application::start().await;
    let process = application.app.run(&[&["--shadow", "--shadow-grace", GRACE], &application.target()[..]].concat());
    let log = process.shared_log();
    eventually_async(DEADLINE, "the first comparison", async || (of(&lines(&log), "comparison").len() >= 3).then_some(())).await;
    assert_first(&lines(&log), &forgotten);

    application.work().await;
    eventually_async(DEADLINE, "every commit is judged", async || {
        let lines = lines(&log);
        let commits = of(&lines, "commit");
        (numbers(&commits, "add") >= 30 && numbers(&commits, "remove") >= 3).then_some(())
    })
    .await;
    application.assert_reported(&of(&lines(&log), "commit"));
    // What is nobody's is found by a comparison, beside what is forgotten.
    let stands = eventually_async(DEADLINE, "a comparison of everything", async || {
        let lines = lines(&log);
        let roles = of(&lines, "comparison").into_iter().rev().find(|line| line["fact_type"]["predicate"] == "has_role");
        roles.filter(|line| line["missing"] == json!(application.never.len() + 1)).cloned()
    })
    .await;
    assert_eq!((&stands["stale"], &stands["samples"]["stale"]), (&json!(1), &json!([application.foreign])));

    for path in ["/readyz", "/v1/wait?position=0/1"] {
        let (status, body) = process.get(path).await;
        assert!(status == 503 && body.contains("shadow"), "{path}: {status} {body}");
    }
    assert_eq!(process.status().await["outbox"]["mode"], "shadow");
    assert!(process.terminate().success());
    eventually_async(DEADLINE, "the summary", async || (!of(&lines(&log), "summary").is_empty()).then_some(())).await;
    application.assert_summed_up(&lines(&log));
    assert_eq!(stored(&application.store).await, application.model, "the fact store is as the application left it");
    let log = log.lock().expect("no reader panics").clone();
    let logged: String = log.lines().filter(|line| !line.starts_with("{\"type\":")).collect();
    assert!(!logged.contains("writer") && !logged.contains("owner"), "facts are no matter of the log: {logged}");

    // A run that delivers compares first, and corrects.
    let process = application.app.started(&application.target()).await;
    application.app.settle(&process).await;
    application.app.assert_equal(&application.store, "after the shadow").await;
}

/// A state directory that has delivered before must not take a commit for delivered that was only watched.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_only_watched_is_delivered_by_the_next_run() {
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 0s").await;
    let process = app.started(&[]).await;
    app.settle(&process).await;
    assert!(process.terminate().success());

    let process = app.run(&["--shadow", "--shadow-grace", "0s"]);
    let log = process.shared_log();
    eventually_async(DEADLINE, "the first comparison", async || (of(&lines(&log), "comparison").len() >= 3).then_some(())).await;
    app.sql("DELETE FROM member WHERE id = 1; INSERT INTO member VALUES (7, 'writer')").await;
    eventually_async(DEADLINE, "the commit is judged", async || (!of(&lines(&log), "commit").is_empty()).then_some(())).await;
    let report = lines(&log);
    let commit = of(&report, "commit")[0];
    let gone = fact("has_role", &["User:1", "String:reader"]);
    assert_eq!((&commit["missing"], &commit["stale"]), (&json!([role(7)]), &json!([gone])));
    // The embedded store takes the application's writes meanwhile.
    insert(&process, &[role(7)]).await;
    assert!(stored(&process).await.contains(&gone.to_string()), "nothing was written");
    process.kill();

    let process = app.started(&[]).await;
    app.settle(&process).await;
    app.assert_equal(&process, "after the shadow").await;
    assert!(!stored(&process).await.contains(&gone.to_string()));
}

/// A fact that is changed again is judged with the later commit, and one commit of many facts by listing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_again_is_judged_with_the_later_commit() {
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 0s").await;
    let process = app.run(&["--shadow", "--shadow-grace", "4s"]);
    let log = process.shared_log();
    eventually_async(DEADLINE, "the first comparison", async || (of(&lines(&log), "comparison").len() >= 3).then_some(())).await;
    // The application never grants what is revoked at once, and is right.
    app.sql("INSERT INTO member VALUES (7, 'writer')").await;
    eventually_async(DEADLINE, "the first of them is in", async || (fact_type(&process.status().await, ROLE)["facts"] == 6).then_some(()))
        .await;
    app.sql("DELETE FROM member WHERE id = 7").await;
    // 1,500 facts, all but three written.
    app.sql("INSERT INTO repository SELECT i FROM generate_series(1001, 2500) i").await;
    let many: Vec<Value> = (1_004..=2_500).map(|id| fact("is_public", &[&format!("Repository:{id}")])).collect();
    for some in many.chunks(500) {
        insert(&process, some).await;
    }
    eventually_async(DEADLINE, "both are judged", async || {
        let lines = lines(&log);
        of(&lines, "commit").iter().any(|line| line["agrees"] == false).then_some(())
    })
    .await;
    let report = lines(&log);
    let large = of(&report, "commit").into_iter().find(|line| line["agrees"] == false).expect("found above");
    let missing: Vec<Value> = (1_001..=1_003).map(|id| fact("is_public", &[&format!("Repository:{id}")])).collect();
    assert_eq!((&large["add_count"], &large["missing"], &large["stale"]), (&json!(1_500), &json!(missing), &json!([])));
    let small: Vec<_> = of(&report, "commit").into_iter().filter(|line| line["add_count"].is_null()).collect();
    assert!(small.iter().all(|line| line["agrees"] == true), "{small:?}");

    // One that is too large to be asked for is counted, and compared as a whole: nothing of it was written, nor of the first five.
    app.sql("INSERT INTO member SELECT i, 'writer' FROM generate_series(10001, 70000) i").await;
    eventually_async(DEADLINE, "it is counted, then compared", async || {
        let lines = lines(&log);
        let counted = lines.iter().position(|line| line["add_count"] == json!(60_000))?;
        assert_eq!((&lines[counted]["type"], &lines[counted]["agrees"]), (&json!("commit"), &Value::Null));
        let after = of(&lines[counted..], "comparison");
        after.iter().any(|line| line["missing"] == json!(60_005) && line["fact_type"]["predicate"] == "has_role").then_some(())
    })
    .await;
}

/// A commit is judged by what the fact store answers, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_judged_while_the_fact_store_is_away() {
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 0s").await;
    let (folder, address) = (tempfile::tempdir().expect("a folder"), format!("127.0.0.1:{}", free_port()));
    let serve =
        || Process::spawn(&["serve", "--limits", "off", "--listen", &address, "--state", folder.path().to_str().expect("UTF-8")], &[]);
    let store = serve();
    insert(&store, &seeded()).await;
    insert(&store, &[role(9)]).await;
    let process = app.run(&["--shadow", "--shadow-grace", "1s", "--target", store.url(), "--plan", "unlimited"]);
    let log = process.shared_log();
    eventually_async(DEADLINE, "the first comparison", async || (of(&lines(&log), "comparison").len() >= 3).then_some(())).await;
    assert!(store.terminate().success());

    app.sql("INSERT INTO member VALUES (7, 'writer')").await;
    app.sql("INSERT INTO member VALUES (9, 'writer')").await;
    eventually_async(DEADLINE, "it is asked again and again", async || {
        (process.log().matches("the fact store cannot be asked").count() >= 5).then_some(())
    })
    .await;
    assert!(of(&lines(&log), "commit").is_empty(), "{}", process.log());
    assert_eq!(process.status().await["target"]["reachable"], false);
    let _store = serve();
    eventually_async(DEADLINE, "both are judged", async || (numbers(&of(&lines(&log), "commit"), "add") >= 2).then_some(())).await;
    let report = lines(&log);
    let commits = of(&report, "commit");
    assert_eq!(listed(&commits, "add"), once(&[role(7), role(9)]));
    assert_eq!((listed(&commits, "missing"), numbers(&commits, "stale")), (once(&[role(7)]), 0));
}
