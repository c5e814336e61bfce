//! Oracles B and C: several writers at once.

use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use super::{
    audit::Audit,
    followed::{Answer, Answers, ask, difference, end, execute, follow, modes, prepare},
    recorder::{Record, Recorder},
    shadow::{self, State},
};
use crate::support::{
    generate::{Case, schema::Layout, transaction::Transaction},
    postgres::Cluster,
};

/// How many writers share a case's transactions.
const WRITERS: usize = 4;

/// Long enough for other transactions to come in between, short against a test.
const PAUSE: &str = "SELECT pg_sleep(random() * 0.04);";

/// What happened.
pub(super) struct Run {
    /// Every commit in order.
    commits: Vec<State>,
    record: Record,
    /// Each with how many batches were acknowledged when its position was waited for.
    audits: Vec<(Audit, usize)>,
    /// Which views are incremental. Those are ahead of the others, which are read again after a commit.
    incremental: Vec<bool>,
    /// Whether the writers truncated tables while refresh views were read.
    truncated: bool,
    /// What factsync wrote meanwhile.
    pub(super) log: String,
}

/// Runs `case` with several writers, takes `audits` on the way, and waits until everything has arrived.
pub(super) async fn run(cluster: &Cluster, case: &Case, audits: usize) -> Run {
    let (database, copy) = (cluster.database(), cluster.database());
    let (source, shadow) = (cluster.client(&database).await, cluster.client(&copy).await);
    source.batch_execute(&case.schema.ddl()).await.expect("the schema is created");
    shadow.batch_execute(&case.schema.shadow_ddl()).await.expect("the schema is created");
    prepare(&shadow, &case.queries).await;
    let slot = format!("shadow_{database}");
    shadow::start(&source, &slot).await;
    let (before, rest) = case.transactions.split_at(case.transactions.len() / 4);
    let (early, late) = rest.split_at(rest.len() / 4);
    let early: Vec<Transaction> = early.iter().cloned().map(Transaction::without_truncate).collect();
    // After a TRUNCATE of a partition, which the change log may not tell, views of the whole table are read again.
    let truncates = audits == 0 && case.schema.tables.iter().all(|table| table.layout != Layout::Partitioned);
    let late = late.iter().cloned().map(|transaction| if truncates { transaction } else { transaction.without_truncate() }).collect();
    for transaction in before {
        execute(&source, transaction).await;
    }
    let recorder = Recorder::start(case.queries.len()).await;
    let (process, _folder) = follow(cluster, &database, &case.queries, &["--target", &recorder.url, "--plan", "unlimited"]);
    // The snapshot is taken while these write.
    let writers = write(&cluster.url(&database), early);
    process.wait_ready().await;
    let incremental = modes(&process, &case.queries).await;
    finish(writers).await;
    let writers = write(&cluster.url(&database), late);
    let mut taken = Vec::new();
    for _ in 0..audits {
        let audit = Audit::take(cluster, &database, &case.queries).await;
        process.wait_position(&audit.position).await;
        taken.push((audit, recorder.batches()));
    }
    finish(writers).await;
    let position: String = source.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position").get(0);
    process.wait_position(&position).await;
    let record = recorder.take();
    let commits = shadow::replay(&source, &slot, &shadow, case.queries.len()).await;
    prepare(&source, &case.queries).await;
    let last = &commits.last().expect("the beginning is one").answers;
    assert!(
        *last == ask(&source, case.queries.len()).await,
        "the shadow is not what the source is: {}",
        describe(last, &ask(&source, case.queries.len()).await)
    );
    let log = process.log();
    end(process, &source, &database).await;
    source.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await.expect("nobody reads the slot");
    Run { commits, record, audits: taken, incremental, truncated: truncates, log }
}

/// Starts writers that share `transactions`. Each pauses inside of its transactions, so that they overlap and end in another order than
/// they began.
fn write(url: &str, transactions: Vec<Transaction>) -> Vec<JoinHandle<()>> {
    let writer = |number: usize| {
        let (url, own): (_, Vec<Transaction>) = (url.to_owned(), transactions.iter().skip(number).step_by(WRITERS).cloned().collect());
        tokio::spawn(async move {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("the cluster accepts connections");
            tokio::spawn(connection);
            for mut transaction in own {
                transaction.statements.insert(0, PAUSE.to_owned());
                transaction.statements.push(PAUSE.to_owned());
                execute(&client, &transaction).await;
            }
        })
    };
    (0..WRITERS).map(writer).collect()
}

async fn finish(writers: Vec<JoinHandle<()>>) {
    for writer in writers {
        writer.await.expect("a writer does not panic");
    }
}

impl Run {
    /// Where the record contradicts the oracles.
    pub(super) fn difference(&self) -> Option<String> {
        self.idle()
            .or_else(|| self.states(true))
            .or_else(|| self.states(false).filter(|_| !self.truncated))
            .or_else(|| self.last())
            .or_else(|| self.audits())
    }

    /// How many commits there were, and in how many steps they arrived.
    pub(super) fn steps(&self) -> (usize, usize) {
        (self.commits.len(), self.record.states.len())
    }

    /// Net: nothing is sent that is there, nothing is taken that is not.
    fn idle(&self) -> Option<String> {
        let idle = &self.record.idle;
        (!idle.is_empty()).then(|| format!("batches changed nothing with {idle:?}"))
    }

    /// Exact: each state of the fact store is that of a commit, and none is before that of the state before; for the views that are
    /// incremental, and for the others.
    fn states(&self, incremental: bool) -> Option<String> {
        let mut at = 0;
        let differ =
            |state: &Answers, commit: &State| differing(state, &commit.answers).filter(|n| self.incremental[*n] == incremental).count();
        for (number, state) in self.record.states.iter().enumerate() {
            let Some(further) = self.commits[at..].iter().position(|commit| differ(state, commit) == 0) else {
                let nearest = self.commits[at..].iter().min_by_key(|commit| differ(state, commit)).expect("the last commit");
                let difference = describe(state, &nearest.answers);
                let (commits, batches) = self.steps();
                return Some(format!(
                    "after batch {number} of {batches} the facts are those of no commit from {at} of {commits} on: {difference}"
                ));
            };
            at += further;
        }
        None
    }

    fn last(&self) -> Option<String> {
        let last = self.commits.last().expect("the beginning is one");
        match self.record.states.last() {
            Some(state) if *state != last.answers => Some(format!("at the end {}", describe(state, &last.answers))),
            None if last.answers.iter().any(|answer| !answer.is_empty()) => Some("no batch ever came".to_owned()),
            _ => None,
        }
    }

    fn audits(&self) -> Option<String> {
        for (audit, batches) in &self.audits {
            let index = self.commits.iter().rposition(|commit| commit.end <= audit.lsn()).expect("the beginning is at 0");
            if self.commits[index].answers != audit.answers {
                let difference = describe(&self.commits[index].answers, &audit.answers);
                return Some(format!("the shadow at {} is not what the snapshot shows: {difference}", audit.position));
            }
            let empty = vec![Answer::new(); audit.answers.len()];
            let state = batches.checked_sub(1).map_or(&empty, |last| &self.record.states[last]);
            let reached = |number: usize| self.commits[index..].iter().any(|commit| commit.answers[number] == state[number]);
            if !(0..state.len()).all(reached) {
                return Some(format!("the wait for {} ended before commit {index} had arrived", audit.position));
            }
        }
        None
    }
}

/// The queries whose answers differ.
fn differing<'a>(one: &'a Answers, other: &'a Answers) -> impl Iterator<Item = usize> {
    one.iter().zip(other).enumerate().filter(|(_, (one, other))| one != other).map(|(number, _)| number)
}

fn describe(stored: &Answers, wanted: &Answers) -> String {
    differing(stored, wanted).map(|number| difference(number, &stored[number], &wanted[number])).collect::<Vec<_>>().join("; ")
}
