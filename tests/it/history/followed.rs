//! A factsync between an application and a fact store that remembers, from its start to the verdict on its history.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use factsync::target::Op;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::{
    checker::{History, Lane, Seen, Split, Step, Violation},
    facts::Facts,
    recorder::{Entry, Manners, Recorder},
    source::{self, Fact, Oracle, Turns, Views},
};
use crate::support::{
    eventually_async,
    factsync::{Process, client},
    github::{Github, Random},
    postgres::Major,
};

/// For a batch to arrive, at the free plan's pace and after a few failures.
const DEADLINE: Duration = Duration::from_secs(30);

/// Steps about a fact that are shown when its history has no explanation.
const SHOWN: usize = 12;

/// What a test is about.
pub(super) struct Setup {
    pub(super) name: &'static str,
    /// `--plan`.
    pub(super) plan: &'static str,
    /// Rows beside those of the example.
    pub(super) rows: &'static [&'static str],
    /// Up to about how many rows a transaction concerns; 0 for a handful.
    pub(super) bulk: u64,
    /// Of a hundred facts of `rows`, how many the fact store lacks at first; 0 if it is to hold the right ones and no others.
    pub(super) missing: u64,
    pub(super) manners: Manners,
    pub(super) split: Split,
    pub(super) delay: Option<usize>,
    /// `reconcile_every`.
    pub(super) audits: &'static str,
}

/// A running test.
pub(super) struct Followed {
    setup: Setup,
    pub(super) random: Random,
    github: Github,
    pub(super) recorder: Recorder,
    oracle: Oracle,
    views: Views,
    /// What the fact store holds at first.
    wrong: BTreeSet<Fact>,
    process: Option<Process>,
    /// The last moment that was committed.
    moment: usize,
    watches: JoinSet<()>,
    config: PathBuf,
    folder: TempDir,
}

impl Followed {
    /// Everything but factsync itself.
    pub(super) async fn prepare(setup: Setup) -> Self {
        let mut random = Random::new(setup.name);
        let github = Github::start(Major::V15).await;
        let rows = setup.rows.concat();
        github.client.batch_execute(&rows).await.expect("the rows can be inserted");
        let oracle = Oracle::start(&github, &rows).await;
        let views = Views::new(&github.views());
        let mut wrong = wrong(&oracle.first, setup.missing, &mut random);
        wrong.retain(|fact| !setup.manners.refuses || !views.is_refused(fact));
        let recorder = Recorder::start(views.clone(), wrong.clone(), setup.manners, random.split()).await;
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("github.yaml");
        let yaml = std::fs::read_to_string("examples/github/github.yaml").expect("the example has its configuration");
        let changed = yaml.replace("reconcile_every: 6h", &format!("reconcile_every: {}", setup.audits));
        std::fs::write(&config, changed).expect("the configuration can be written");
        let (process, moment, watches) = (None, 1, JoinSet::new());
        Self { setup, random, github, recorder, oracle, views, wrong, process, moment, watches, config, folder }
    }

    /// Everything, with transactions that begin while factsync takes its snapshot, until it has caught up.
    pub(super) async fn start(setup: Setup, early: u64) -> Self {
        let mut followed = Self::prepare(setup).await;
        followed.run();
        followed.watch().await;
        for _ in 0..early {
            followed.commit().await;
        }
        followed.reach().await;
        followed
    }

    /// Starts factsync, or starts it again.
    pub(super) fn run(&mut self) {
        let config = self.config.to_str().expect("a UTF-8 path");
        let state = self.folder.path().join("state");
        let state = state.to_str().expect("a UTF-8 path");
        let args = ["run", config, "--target", &self.recorder.url, "--plan", self.setup.plan, "--allow-removals", "--state", state];
        self.process = Some(Process::spawn(&args, &[("DATABASE_URL", &self.github.url())]));
    }

    /// Ends factsync as a crash would.
    pub(super) fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// Commits a transaction. One that violates a constraint is none.
    pub(super) async fn commit(&mut self) {
        let sql = source::transaction(&mut self.random, self.setup.bulk);
        self.commit_sql(&sql).await;
    }

    /// Commits `sql`, which begins a transaction; `false` if it could not be.
    pub(super) async fn commit_sql(&mut self, sql: &str) -> bool {
        let client = &self.github.client;
        if let Err(error) = client.batch_execute(sql).await {
            assert!(error.code().is_some_and(|code| code.code().starts_with("23")), "{error:?} in {sql}");
            client.batch_execute("ROLLBACK").await.expect("rolled back");
            return false;
        }
        self.moment = self.recorder.begin();
        client.batch_execute("COMMIT").await.expect("no constraint is deferred");
        self.recorder.committed(self.moment);
        self.oracle.committed(format!("{sql};\nCOMMIT")).await;
        true
    }

    /// Waits until everything that is committed has arrived. Nothing is committed meanwhile, so the fact store must be exact then.
    pub(super) async fn reach(&mut self) {
        let position = self.github.position().await;
        let process = self.process.as_ref().expect("it runs");
        process.wait_position(&position).await;
        self.recorder.watcher().reached(self.moment);
    }

    /// The same, while the application goes on.
    pub(super) async fn watch(&mut self) {
        let position = self.github.position().await.replace('/', "%2F");
        let url = self.process.as_ref().expect("it runs").url();
        let asked = client().get(format!("{url}/v1/wait?position={position}&timeout_ms=50000")).send();
        let (watcher, moment) = (self.recorder.watcher(), self.moment);
        self.watches.spawn(async move {
            // A wait that fails because factsync is killed promises nothing.
            if asked.await.is_ok_and(|answer| answer.status() == 200) {
                watcher.reached(moment);
            }
        });
    }

    /// `/v1/status` at one of its pointers.
    pub(super) async fn status(&self, pointer: &str) -> serde_json::Value {
        self.process.as_ref().expect("it runs").status().await.pointer(pointer).cloned().unwrap_or_default()
    }

    /// What factsync has written since its last start.
    pub(super) fn log(&self) -> String {
        self.process.as_ref().expect("it runs").log()
    }

    /// Only commits arrive from here on, each as a whole.
    pub(super) fn live(&self) {
        self.recorder.lane(Lane::Live);
    }

    /// Waits until a batch has been applied.
    pub(super) async fn first_batch(&self) {
        eventually_async(DEADLINE, "the first batch arrives", async || (self.recorder.batches() > 0).then_some(())).await;
    }

    /// Waits until another batch has met with a fault.
    pub(super) async fn next_fault(&self) {
        let before = self.recorder.faults();
        let more = async || (self.recorder.faults() > before).then_some(());
        eventually_async(DEADLINE, "a batch meets with a fault", more).await;
    }

    /// Waits until another batch has been applied, or none is to come.
    pub(super) async fn next_batch(&self) {
        let before = self.recorder.batches();
        let more = async || (self.recorder.batches() > before || self.status("/outbox/facts").await == 0).then_some(());
        eventually_async(DEADLINE, "the next batch arrives", more).await;
    }

    /// Waits for what is under way and gives the verdict, after `factsync` has come to rest.
    pub(super) async fn finish(mut self) -> Seen {
        self.reach().await;
        while let Some(watch) = self.watches.join_next().await {
            watch.expect("a watch does not panic");
        }
        let (entries, faults) = self.recorder.take();
        let turns = self.oracle.finish(&self.github).await;
        let refused = |fact: &Fact| self.setup.manners.refuses && self.views.is_refused(fact);
        let (history, names) = number(&self.wrong, &turns, &entries, &refused, &self.setup);
        let seen = history.check().unwrap_or_else(|violation| panic!("{}", describe(&violation, &history, &names)));
        eprintln!("{}: {} moments, {faults} faults, {seen:?}", self.setup.name, history.moments.len());
        // The process is asked to end before the database is.
        drop(self.process);
        seen
    }
}

/// Facts a store may hold that nobody kept in step: some are missing, some are stale, and of those some become true later.
///
/// `missing` of a hundred facts of the additional rows are missing, and a few of the example's own; with 0 nothing is wrong.
fn wrong(right: &BTreeSet<Fact>, missing: u64, random: &mut Random) -> BTreeSet<Fact> {
    if missing == 0 {
        return right.clone();
    }
    let facts: Vec<&Fact> = right.iter().collect();
    let mut kept = |fact: &Fact| random.below(100) >= if fact.is_additional() { missing } else { 20 };
    let mut wrong: BTreeSet<Fact> = facts.iter().filter(|fact| kept(fact)).map(|fact| (*fact).clone()).collect();
    for _ in 0..facts.len() / 4 {
        let mut fact = facts[random.below(facts.len() as u64) as usize].clone();
        let other = facts[random.below(facts.len() as u64) as usize];
        let column = random.below(fact.cells.len() as u64) as usize;
        if other.view == fact.view && random.below(4) > 0 {
            fact.cells[column].clone_from(&other.cells[column]);
        } else {
            fact.cells[column].push_str("-stale");
        }
        wrong.insert(fact);
    }
    wrong
}

/// The history with numbers for facts, and the facts of the numbers. Facts that the store refuses are no part of it.
fn number<'a>(
    wrong: &'a BTreeSet<Fact>,
    turns: &'a [Turns],
    entries: &'a [Entry],
    refused: &dyn Fn(&Fact) -> bool,
    setup: &Setup,
) -> (History, Vec<&'a Fact>) {
    let mut numbers: BTreeMap<&Fact, usize> = BTreeMap::new();
    let changes = entries.iter().flat_map(|entry| match entry {
        Entry::Batch { changes, .. } => changes.as_slice(),
        Entry::Committed { .. } | Entry::Reached { .. } | Entry::Lane(_) => &[],
    });
    for fact in wrong.iter().chain(turns.iter().flatten().chain(changes).map(|(_, fact)| fact)) {
        let next = numbers.len();
        numbers.entry(fact).or_insert(next);
    }
    let numbered = |changes: &[(Op, Fact)]| -> Vec<(Op, usize)> {
        changes.iter().filter(|(_, fact)| !refused(fact)).map(|(op, fact)| (*op, numbers[fact])).collect()
    };
    let mut moments = vec![Facts::of(numbers.len(), wrong.iter().map(|fact| numbers[fact]))];
    let mut now = Facts::none(numbers.len());
    for turns in turns {
        numbered(turns).into_iter().for_each(|(op, fact)| now.set(fact, op == Op::Insert));
        moments.push(now.clone());
    }
    let step = |entry: &Entry| match entry {
        Entry::Batch { changes, head, again } => Step::Batch { changes: numbered(changes), head: *head, again: *again },
        Entry::Committed { moment } => Step::Committed { moment: *moment },
        Entry::Reached { moment, head } => Step::Reached { moment: *moment, head: *head },
        Entry::Lane(lane) => Step::Lane(*lane),
    };
    let steps = entries.iter().map(step).collect();
    let mut names: Vec<&Fact> = numbers.keys().copied().collect();
    names.sort_by_key(|fact| numbers[fact]);
    (History { moments, steps, split: setup.split, delay: setup.delay }, names)
}

/// What a person needs to understand a violation: the fact, and what was said of it.
fn describe(violation: &Violation, history: &History, names: &[&Fact]) -> String {
    let Violation { step, rule, fact, what } = violation;
    let mut text = format!("{rule:?} is broken by step {step} of {}: {what}", history.steps.len());
    let batches = |step: &(usize, &Step)| matches!(step.1, Step::Batch { .. } | Step::Lane(_));
    let latest: Vec<(usize, &Step)> = history.steps.iter().enumerate().take(step + 1).filter(batches).collect();
    for (number, latest) in &latest[latest.len().saturating_sub(SHOWN)..] {
        text.push_str(&format!("\nstep {number}: {}", outline(latest)));
    }
    let Some(fact) = fact else { return text };
    text.push_str(&format!("\nfact {fact} is {:?}", names[*fact]));
    let upto = &history.steps[..history.steps.len().min(step + 1)];
    let tells = |step: &Step| match step {
        Step::Batch { changes, .. } => changes.iter().any(|(_, other)| other == fact),
        Step::Committed { .. } => false,
        Step::Reached { .. } | Step::Lane(_) => true,
    };
    let told: Vec<(usize, &Step)> = upto.iter().enumerate().filter(|(number, told)| number == step || tells(told)).collect();
    for (number, told) in &told[told.len().saturating_sub(SHOWN)..] {
        text.push_str(&format!("\nstep {number}: {}", shown(told, *fact)));
    }
    text
}

/// A step in a few words.
fn outline(step: &Step) -> String {
    match step {
        Step::Batch { changes, head, again } => {
            let deletes = changes.iter().filter(|(op, _)| *op == Op::Delete).count();
            format!("a batch of {deletes} deletes and {} inserts, head {head}, again {again}", changes.len() - deletes)
        }
        Step::Committed { .. } | Step::Reached { .. } | Step::Lane(_) => format!("{step:?}"),
    }
}

/// A step, of a batch what it says of `fact`.
fn shown(step: &Step, fact: usize) -> String {
    match step {
        Step::Batch { changes, head, again } => {
            let own: Vec<Op> = changes.iter().filter(|(_, other)| *other == fact).map(|(op, _)| *op).collect();
            format!("a batch of {} changes, head {head}, again {again}, says of it {own:?}", changes.len())
        }
        Step::Committed { .. } | Step::Reached { .. } | Step::Lane(_) => format!("{step:?}"),
    }
}
