//! While writers are at it, nothing that is only late is told as drift, and what was planted is found all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{CROWD, FLAG, ROLE, TOP, app, audit, audit_at, drift, of};
use crate::support::{
    app::{App, delete, fact, insert},
    eventually_async,
    factsync::Process,
    github::Random,
};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Organizations come and go with a hundred facts each, which is nobody's accident here.
const SYNC: &str = "reconcile_every: 0s\n  max_removals: {count: 1000000, percent: 100}";

/// Writers that do not wait for anybody.
struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
}

impl Writers {
    async fn start(app: &App, random: &mut Random, count: usize) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..count {
            let client = app.cluster.client(&app.database).await;
            let (stop, commits) = (stop.clone(), commits.clone());
            let mut random = random.split();
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let sql = statement(&mut random, writer);
                    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { tasks, stop, commits }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        self.commits.load(Ordering::Relaxed)
    }
}

/// Each writer has people of its own, so that none waits for another; nobody touches those below 2001 or the settings.
fn statement(random: &mut Random, writer: usize) -> String {
    let person = 10_000 * (writer as u64 + 1) + random.below(300);
    let org = random.below(20) + 1;
    match random.below(8) {
        0 => format!("UPDATE organization SET active = NOT active WHERE id = {}", 18 + writer % 3),
        1 | 2 => format!("DELETE FROM member WHERE person = {person}"),
        3 => format!(
            "BEGIN; DELETE FROM member WHERE person = {person};
             INSERT INTO member VALUES ({org}, {person}, 'admin') ON CONFLICT DO NOTHING; COMMIT"
        ),
        4 => format!("UPDATE member SET role = CASE role WHEN 'admin' THEN 'reader' ELSE 'admin' END WHERE person = {person}"),
        _ => format!("INSERT INTO member VALUES ({org}, {person}, 'reader') ON CONFLICT DO NOTHING"),
    }
}

/// A longer run says how many with FACTSYNC_AUDITS.
fn audits() -> u64 {
    std::env::var("FACTSYNC_AUDITS").ok().map_or(20, |count| count.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_under_full_writes_find_no_drift() {
    let mut random = Random::new("audits");
    let app = app(SYNC).await;
    let process = app.started(&[]).await;
    let writers = Writers::start(&app, &mut random, 4).await;
    let (mut on_their_way, mut held_up, mut took) = (0, Vec::new(), Vec::new());
    let began = Instant::now();
    for number in 0..audits() {
        let before = writers.commits();
        let found = audit(&process, false).await;
        for signature in [ROLE, CROWD, FLAG, TOP] {
            let audited = of(&found, signature);
            assert_eq!(audited["drift"], drift([0; 4]), "audit {number}: {found:#}");
            assert_eq!(audited["unjudged"], Value::Null, "audit {number}: {found:#}");
            assert_eq!(audited["verdict"], "equal");
            for set in ["source", "stored"] {
                assert_eq!(audited[set], audited["desired"], "audit {number}, {signature}: {found:#}");
            }
            on_their_way += audited["on_their_way"].as_u64().expect("a number");
        }
        assert!(writers.commits() > before, "nobody wrote anything");
        let source = &found["sources"][0];
        held_up.push(source["held_up_ms"].as_u64().expect("a number"));
        took.push(source["took_ms"].as_u64().expect("a number"));
    }
    let rate = writers.commits() as f64 / began.elapsed().as_secs_f64();
    eprintln!("{rate:.0} commits/s, {on_their_way} on their way, held up for {held_up:?} ms, took {took:?} ms");
    assert!(on_their_way > 0, "no audit saw anything that would have looked like drift, so this test shows nothing");
    writers.end().await;
    app.settle(&process).await;
    app.assert_equal(&process, "after the writers").await;
}

/// Plants drift of each class in what nobody writes, finds exactly that, repairs it, and finds nothing any more.
async fn plant_and_find(app: &App, process: &Process) {
    // What we have removed before, and somebody brings back.
    app.commit(process, "DELETE FROM setting WHERE id IN (2, 4)").await;
    insert(process, &["2", "4"].map(|id| fact("is_flagged", &[&format!("Setting:{id}")]))).await;
    insert(process, &["a", "b", "c"].map(|id| fact("is_flagged", &[&format!("Setting:{id}")]))).await;
    let gone: Vec<Value> = (1..=5)
        .map(|n| fact("has_role", &[&format!("User:{}", 3 * n), "String:admin", &format!("Organization:{}", (3 * n) % 20 + 1)]))
        .collect();
    delete(process, &gone).await;
    for repair in [false, true] {
        let found = audit(process, repair).await;
        assert_eq!(of(&found, FLAG)["drift"], drift([0, 2, 3, 0]), "{found:#}");
        assert_eq!(of(&found, ROLE)["drift"], drift([5, 0, 0, 0]), "{found:#}");
        assert_eq!(of(&found, CROWD)["drift"], drift([0; 4]), "{found:#}");
        assert_eq!(found["drift"], drift([5, 2, 3, 0]));
        assert_eq!(found["verdict"], "drift");
    }
    let repaired = eventually_async(DEADLINE, "the drift is repaired", async || {
        let found = audit(process, false).await;
        (found["verdict"] == "equal").then_some(found)
    });
    assert_eq!(of(&repaired.await, FLAG)["drift"], drift([0; 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_found_and_classified_under_full_writes() {
    let mut random = Random::new("drift");
    let app = app(SYNC).await;
    let process = app.started(&[]).await;
    let writers = Writers::start(&app, &mut random, 3).await;
    plant_and_find(&app, &process).await;
    writers.end().await;
    app.settle(&process).await;
    app.assert_equal(&process, "after the repair").await;
}

/// A transaction that has written something and stays open: the source has no state to name before it ends, and the stream goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_has_to_wait_holds_nobody_up() {
    let app = app("reconcile_every: 0s").await;
    let process = app.started(&[]).await;
    let open = app.cluster.client(&app.database).await;
    open.batch_execute("BEGIN; INSERT INTO setting VALUES (1000, true)").await.expect("it runs");
    let waits = tokio::spawn(audit_at(process.url().to_owned(), false));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary";
    eventually_async(DEADLINE, "the audit asks for a state", async || (app.ask(slots).await == "1").then_some(())).await;
    for person in 5_000..5_010 {
        app.commit(&process, &format!("INSERT INTO member VALUES (1, {person}, 'admin')")).await;
    }
    assert!(!waits.is_finished(), "there is no state yet");
    open.batch_execute("COMMIT").await.expect("it commits");
    let found = waits.await.expect("it ends");
    for signature in [ROLE, CROWD, FLAG] {
        assert_eq!(of(&found, signature)["verdict"], "equal", "{found:#}");
    }
    assert_eq!((&of(&found, FLAG)["source"]["facts"], &of(&found, ROLE)["source"]["facts"]), (&26.into(), &2010.into()));
    // The commit has touched it just before the audit's position.
    assert_eq!(of(&found, TOP)["drift"], drift([0; 4]));
}
