//! One application, one change of its schema after the other, and what the fact store went through.
//!
//! Every case commits its statements, then writes to the table that they changed, and after each step asks `psql` what the queries
//! return. A fact that all of these answers have must never be missing in the fact store from then on, and one that none of them has must
//! never be in it: each recorded state lies between the intersection and the union of the answers since the case began. The first
//! view is of a table that no case touches; somebody writes to that all the while, and it must never be read again nor stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_postgres::SimpleQueryMessage;

use crate::{
    oracles::{
        followed::{Answer, difference},
        recorder::Recorder,
    },
    support::{app::App, eventually_async, factsync::Process, postgres::Major},
};

/// For a change to have its effect: a heartbeat comes every ten seconds, and reading again takes one.
const DEADLINE: Duration = Duration::from_secs(45);

/// What a change of the schema must do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Must {
    /// Nothing: no view is read again.
    BeFree,
    /// The views of the table are read again, and are right.
    ReadAgain,
    /// The views of the table end up right, whether they are read again or not.
    BeRight,
    /// These views stop, their facts stay, and the problem has this text.
    Stop(&'static [usize], &'static str),
}

/// A change of the schema.
pub(super) struct Case {
    pub(super) what: &'static str,
    /// Each is sent by itself; what is one transaction is one text.
    pub(super) ddl: &'static [&'static str],
    /// A commit right after it.
    pub(super) writes: &'static str,
    pub(super) must: Must,
    /// Brings the schema back.
    pub(super) undo: &'static [&'static str],
}

/// The application under test.
pub(super) struct Campaign {
    pub(super) app: App,
    pub(super) recorder: Recorder,
    pub(super) process: Option<Process>,
    queries: &'static [&'static str],
    role: &'static str,
}

/// Writes to `bystander` without pause until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    async fn start(app: &App) -> Self {
        let client = app.cluster.client(&app.database).await;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let id = number % 20;
                let sql = format!(
                    "INSERT INTO bystander VALUES ({id}, 'v{number}') ON CONFLICT (id) DO UPDATE SET v = excluded.v;
                     DELETE FROM bystander WHERE id = {}; SELECT pg_sleep(0.005)",
                    number * 7 % 20
                );
                client.batch_execute(&sql).await.expect("the writer's own rows");
                count.store(number, Ordering::Relaxed);
            }
        });
        Self { stop, done, task }
    }

    async fn finish(self) {
        let goal = self.done.load(Ordering::Relaxed) + 2;
        eventually_async(DEADLINE, "the writer goes on", async || (self.done.load(Ordering::Relaxed) >= goal).then_some(())).await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the writer does not panic");
    }
}

/// The table that is written to beside every case; its view is `q0`.
const BYSTANDER: &str = "CREATE TABLE bystander (id int PRIMARY KEY, v text NOT NULL);
    INSERT INTO bystander SELECT i, 'v' || i FROM generate_series(1, 20) AS i;";

/// What factsync promises of the texts of values.
const PINNED: &str = "SET DateStyle = 'ISO,MDY'; SET TimeZone = 'UTC'; SET bytea_output = hex; SET extra_float_digits = 3";

/// Its query.
const BYSTANDERS: &str = "SELECT id, v FROM bystander WHERE v <> 'x'";

impl Campaign {
    /// Follows `queries`, whose columns are `id` and a text, and that of the bystander before them.
    pub(super) async fn start(major: Major, schema: &str, queries: &'static [&'static str]) -> Self {
        Self::start_as(major, schema, queries, "postgres").await
    }

    /// The same as a role that the schema makes; it may read `bystander`.
    pub(super) async fn start_as(major: Major, schema: &str, queries: &'static [&'static str], role: &'static str) -> Self {
        let signatures: Vec<String> = (0..=queries.len()).map(|number| format!("q{number}(String:_, String:_)")).collect();
        let queries_of_all = [BYSTANDERS].into_iter().chain(queries.iter().copied());
        let facts: Vec<(&str, &str)> = signatures.iter().map(String::as_str).zip(queries_of_all).collect();
        let app = App::start_on(major, &format!("{PINNED}; {BYSTANDER} {schema}"), &facts, "").await.into_owner();
        app.sql(&format!("ALTER DATABASE {} SET log_statement = 'all'; GRANT SELECT ON bystander TO {role}", app.database)).await;
        let recorder = Recorder::start(facts.len()).await;
        let mut campaign = Self { app, recorder, process: None, queries, role };
        campaign.go().await;
        campaign
    }

    /// Starts factsync, and waits until it has caught up.
    pub(super) async fn go(&mut self) {
        self.launch();
        self.process().wait_ready().await;
    }

    /// Starts factsync.
    pub(super) fn launch(&mut self) {
        let url = self.app.url().replace("postgres@", &format!("{}@", self.role));
        let more = ["--target", &self.recorder.url, "--plan", "unlimited"];
        self.process = Some(self.app.run_with(&more, &[("DATABASE_URL", &url)]));
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("it runs")
    }

    /// Ends it, so that its slot is free.
    pub(super) fn stop(&mut self) {
        self.process.take().expect("it runs").terminate();
    }

    fn query(&self, view: usize) -> &'static str {
        [BYSTANDERS].into_iter().chain(self.queries.iter().copied()).nth(view).expect("a view")
    }

    /// What the query of a view returns in a session of its own; `None` if it fails.
    pub(super) async fn answer(&self, view: usize) -> Option<Answer> {
        let client = self.app.cluster.client(&self.app.database).await;
        client.batch_execute(PINNED).await.expect("settings can be set");
        self.answer_in(&client, view).await
    }

    async fn answer_in(&self, client: &tokio_postgres::Client, view: usize) -> Option<Answer> {
        let messages = client.simple_query(self.query(view)).await.ok()?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        // A row with a NULL makes no fact.
        Some(rows.filter_map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect())
    }

    /// The views that cases touch.
    fn touched(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.queries.len()
    }

    /// Adds what the queries return now to what they have returned: for a session that begins now, and for one with the settings from
    /// before.
    pub(super) async fn note(&self, answers: &mut [Vec<Answer>]) {
        for view in self.touched() {
            answers[view].extend(self.answer(view).await);
            answers[view].extend(self.answer_in(&self.app.client, view).await);
        }
    }

    /// How often the queries have been analysed.
    fn analyses(&self) -> usize {
        self.app.cluster.log().matches("debug_print_rewritten = on").count()
    }

    /// How often something was read whose query has `text` in it.
    pub(super) fn copies(&self, text: &str) -> usize {
        let log = self.app.cluster.log();
        let copies = log.split("COPY (").skip(1).filter_map(|rest| rest.split_once(") TO STDOUT"));
        copies.filter(|(query, _)| query.contains(text)).count()
    }

    fn reloads(&self) -> usize {
        self.process().log().matches("views changed").count()
    }

    /// Waits until the fact store holds what the queries of `views` return.
    pub(super) async fn equal(&self, views: impl Iterator<Item = usize> + Clone, what: &str) {
        let start = std::time::Instant::now();
        eventually_async(DEADLINE, &format!("{what}: the facts are what the queries return"), async || {
            let holds = self.recorder.holds();
            let mut wrong = None;
            for view in views.clone() {
                let answer = self.answer(view).await.unwrap_or_default();
                if holds[view] != answer {
                    wrong = Some(difference(view, &holds[view], &answer));
                }
            }
            if start.elapsed() > DEADLINE - Duration::from_secs(2) {
                assert_eq!(wrong, None, "{what}\n{}", self.process().log());
            }
            wrong.is_none().then_some(())
        })
        .await;
    }

    /// The line of a view in `/v1/status`.
    async fn line(&self, view: usize) -> serde_json::Value {
        self.process().status().await["fact_types"][view].clone()
    }

    /// Waits until every view can be followed again.
    async fn sound(&self, what: &str) {
        for view in 0..=self.queries.len() {
            eventually_async(DEADLINE, &format!("{what}: q{view} is sound"), async || {
                let line = self.line(view).await;
                (line["problem"].is_null() && line["mode"] != "refused").then_some(())
            })
            .await;
        }
    }

    async fn run_each(&self, statements: &[&str]) {
        for sql in statements {
            self.app.sql(sql).await;
        }
    }

    /// How many states there were, and what the queries return; everything is equal then.
    pub(super) async fn seen(&self) -> (usize, Vec<Vec<Answer>>) {
        self.app.settle(self.process()).await;
        self.equal(0..=self.queries.len(), "before").await;
        let mut answers = vec![Vec::new(); 1 + self.queries.len()];
        self.note(&mut answers).await;
        (self.recorder.batches(), answers)
    }

    /// Commits the case and looks at everything that follows.
    pub(super) async fn run(&self, case: &Case) {
        let copies = self.copies("bystander");
        self.run_all(case).await;
        assert_eq!(self.copies("bystander"), copies, "{}: the other view is not read again\n{}", case.what, self.process().log());
    }

    /// The same where every view may be concerned.
    pub(super) async fn run_all(&self, case: &Case) {
        eprintln!("{}", case.what);
        let (what, reloads) = (case.what, self.reloads());
        let (seen, mut answers) = self.seen().await;
        let writer = Writer::start(&self.app).await;
        self.change(case, &mut answers).await;
        self.wait_for(case, reloads).await;
        writer.finish().await;
        self.look_back(case, seen, &answers).await;
        self.undo(case).await;
        if let Must::BeFree = case.must {
            assert_eq!(self.reloads(), reloads, "{what}: nothing is read again\n{}", self.process().log());
        }
    }

    /// The same while factsync is down.
    pub(super) async fn run_down(&mut self, case: &Case) {
        eprintln!("{}", case.what);
        let (seen, mut answers) = self.seen().await;
        self.stop();
        self.change(case, &mut answers).await;
        self.app.sql("UPDATE bystander SET v = v || 'd' WHERE id = 1").await;
        self.launch();
        let down = Case { must: if let Must::Stop(..) = case.must { case.must } else { Must::BeRight }, ..*case };
        self.wait_for(&down, 0).await;
        self.look_back(&down, seen, &answers).await;
        if let Must::BeFree = case.must {
            let log = self.process().log();
            assert!(!log.contains("Snapshotting") && self.reloads() == 0, "{}: nothing is read again\n{log}", case.what);
        }
        self.undo(case).await;
    }

    async fn change(&self, case: &Case, answers: &mut [Vec<Answer>]) {
        self.run_each(case.ddl).await;
        self.note(answers).await;
        self.app.sql(case.writes).await;
        self.note(answers).await;
    }

    /// Waits until what must happen has happened.
    async fn wait_for(&self, case: &Case, reloads: usize) {
        let what = case.what;
        match case.must {
            Must::BeFree | Must::BeRight => {}
            Must::ReadAgain => {
                self.wanted().await;
                eventually_async(DEADLINE, &format!("{what}: it is read again"), async || (self.reloads() > reloads).then_some(())).await;
            }
            Must::Stop(views, text) => {
                self.wanted().await;
                for view in views {
                    self.stopped(*view, text, what).await;
                }
            }
        }
    }

    /// Waits until the views that go on are right, and checks the states on the way there.
    async fn look_back(&self, case: &Case, seen: usize, answers: &[Vec<Answer>]) {
        let what = case.what;
        let stops: &[usize] = if let Must::Stop(views, _) = case.must { views } else { &[] };
        let going: Vec<usize> = (0..=self.queries.len()).filter(|view| !stops.contains(view)).collect();
        self.equal(going.into_iter(), what).await;
        if stops.is_empty() {
            self.sound(what).await;
            self.app.settle(self.process()).await;
        }
        self.between(seen, answers, stops, what);
    }

    async fn undo(&self, case: &Case) {
        self.run_each(case.undo).await;
        self.wanted().await;
        self.sound(case.what).await;
        self.equal(0..=self.queries.len(), &format!("after {}", case.what)).await;
    }

    /// Somebody waits for the position, so that a heartbeat does not take its ten seconds.
    pub(super) async fn wanted(&self) {
        let position = self.app.position().await.replace('/', "%2F");
        let _ = self.process().get(&format!("/v1/wait?position={position}&timeout_ms=3000")).await;
    }

    async fn stopped(&self, view: usize, text: &str, what: &str) {
        let start = std::time::Instant::now();
        eventually_async(DEADLINE, &format!("{what}: q{view} stops"), async || {
            let line = self.line(view).await;
            let told = line["problem"].as_str().is_some_and(|problem| problem.contains(text));
            if start.elapsed() > DEADLINE - Duration::from_secs(2) {
                assert!(told, "{what}: {line:#}\n{}", self.process().log());
            }
            told.then_some(())
        })
        .await;
    }

    /// Whether every state since `seen` lies between what all of `answers` have and what any of them has.
    pub(super) fn between(&self, seen: usize, answers: &[Vec<Answer>], stopped: &[usize], what: &str) {
        for state in self.recorder.since(seen) {
            for view in self.touched() {
                let (first, rest) = answers[view].split_first().expect("the answer before");
                let (least, most) = rest.iter().fold((first.clone(), first.clone()), |(least, most), answer| {
                    (least.intersection(answer).cloned().collect(), most.union(answer).cloned().collect())
                });
                let missing: Vec<_> = least.difference(&state[view]).collect();
                let wrong: Vec<_> = state[view].difference(&most).collect();
                assert!(
                    missing.is_empty() && wrong.is_empty(),
                    "{what}: q{view} (stopped: {stopped:?}) once lacked {missing:?} and once had {wrong:?}\n{}",
                    self.process().log()
                );
            }
        }
    }

    /// After free cases: an analysis that comes later finds nothing either.
    pub(super) async fn nothing_was_read(&self) {
        let (analyses, reloads) = (self.analyses(), self.reloads());
        eventually_async(Duration::from_secs(90), "the queries are analysed again", async || (self.analyses() > analyses).then_some(()))
            .await;
        self.app.settle(self.process()).await;
        assert_eq!(self.reloads(), reloads, "{}", self.process().log());
    }
}
