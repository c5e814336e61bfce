//! The process is killed while it logs large batches and settles them: every answered batch is there afterwards, and the one that
//! was not answered is there as a whole or not at all.
//!
//! Each writer has a small domain of its own, where random inserts and deletes undo each other again and again, so a batch that is
//! lost, applied by halves or applied out of order shows as a wrong set. What the writer was told is the oracle. The seed is
//! printed; `FACTSYNC_SEED` repeats the batches, though not the moment of each kill.

use std::{collections::BTreeSet, path::Path, sync::mpsc, thread, time::Duration};

use factsync::fact::{Fact, Value};
use serde_json::{Value as Json, json};

use super::{killed, server::Client};
use crate::scalars::{Random, random};

const WRITERS: usize = 4;

/// Facts that a writer chooses from.
const DOMAIN: usize = 300;

/// Kills, one after the other of the same store.
const KILLS: usize = 6;

/// Answers to all writers before a kill, at most: some ten groups.
const MOST_ANSWERS: usize = 40;

/// From the last of those answers to the kill, at most, and to the next answer at most: any moment of a group.
const MOST_LATER: Duration = Duration::from_millis(30);

#[derive(Debug, Clone, Copy)]
enum Entry {
    Insert(usize),
    Delete(usize),
    /// Of everything of the writer's, with a wildcard: the log is settled for it.
    DeleteAll,
}

/// What a writer was told.
struct Writer {
    id: usize,
    random: Random,
    /// After the last batch that was answered.
    facts: BTreeSet<usize>,
    /// After the batch that was sent last.
    sent: BTreeSet<usize>,
}

impl Writer {
    fn new(id: usize, random: Random) -> Self {
        Self { id, random, facts: BTreeSet::new(), sent: BTreeSet::new() }
    }

    /// 150 to 400 entries, one batch in ten with a wildcard somewhere.
    fn batch(&mut self) -> Vec<Entry> {
        let size = 150 + self.random.below(251);
        let mut entries: Vec<_> = (0..size).map(|_| self.entry()).collect();
        if self.random.below(10) == 0 {
            entries[self.random.below(size)] = Entry::DeleteAll;
        }
        entries
    }

    fn entry(&mut self) -> Entry {
        let n = self.random.below(DOMAIN);
        if self.random.below(2) == 0 { Entry::Insert(n) } else { Entry::Delete(n) }
    }

    fn body(&self, batch: &[Entry]) -> Json {
        let fact = |n: usize| {
            let args = [("Writer", self.id), ("Integer", n)];
            Fact { predicate: "f".into(), args: args.map(|(type_name, id)| Value::new(type_name, id.to_string())).to_vec() }
        };
        let all = json!({"predicate": "f", "args": [{"type": "Writer", "id": self.id.to_string()}, {}]});
        let changeset = |entry: &Entry| match *entry {
            Entry::Insert(n) => json!({"inserts": [fact(n)]}),
            Entry::Delete(n) => json!({"deletes": [fact(n)]}),
            Entry::DeleteAll => json!({"deletes": [all]}),
        };
        batch.iter().map(changeset).collect()
    }

    /// Writes batch after batch until the process is gone.
    fn write_until_killed(mut self, mut client: Client, answered: &mpsc::Sender<()>) -> Self {
        loop {
            let batch = self.batch();
            self.sent = after(&self.facts, &batch);
            let Some(reply) = client.try_request("POST", "/api/batch", &self.body(&batch)) else { return self };
            assert_eq!(reply.status, 200, "{reply:?}");
            self.facts.clone_from(&self.sent);
            // After the last answer that the kill waits for, nobody listens.
            let _ = answered.send(());
        }
    }

    fn check(&mut self, stored: &[Fact]) {
        let id = self.id.to_string();
        let own = stored.iter().filter(|fact| fact.args[0].id == id);
        let own: BTreeSet<usize> = own.map(|fact| fact.args[1].id.parse().expect("a number was written")).collect();
        let whole = own == self.facts || own == self.sent;
        assert!(whole, "writer {id} finds {own:?}\nwas told {:?}\nand sent what makes it {:?}", self.facts, self.sent);
        self.facts = own;
    }
}

fn after(facts: &BTreeSet<usize>, batch: &[Entry]) -> BTreeSet<usize> {
    let mut facts = facts.clone();
    for entry in batch {
        match entry {
            Entry::Insert(n) => drop(facts.insert(*n)),
            Entry::Delete(n) => drop(facts.remove(n)),
            Entry::DeleteAll => facts.clear(),
        }
    }
    facts
}

/// Rows in the log that a killed process left, read in a copy: the next start must find everything as it was.
fn logged(state: &Path) -> u64 {
    let copy = tempfile::tempdir().expect("a temporary folder");
    for name in ["facts.db", "facts.db-wal"] {
        std::fs::copy(state.join(name), copy.path().join(name)).expect("a killed store leaves both");
    }
    let file = rusqlite::Connection::open(copy.path().join("facts.db")).expect("SQLite recovers it");
    file.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).expect("the table is there")
}

/// Serves, writes and kills; says what the log held then.
fn killed_round(state: &Path, writers: &mut Vec<Writer>, random: &mut Random) -> u64 {
    let process = killed::serve(state.to_str().expect("the path is UTF-8"));
    let (answered, answers) = mpsc::channel();
    let threads: Vec<_> = writers
        .drain(..)
        .map(|writer| {
            let (client, answered) = (killed::connect(&process), answered.clone());
            thread::spawn(move || writer.write_until_killed(client, &answered))
        })
        .collect();
    drop(answered);
    for _ in 0..=random.below(MOST_ANSWERS) {
        answers.recv().expect("the writers write on");
    }
    // The next answer or the end of this moment, whichever is first.
    let _ = answers.recv_timeout(MOST_LATER.mul_f64(random.below(1_000) as f64 / 1_000.0));
    process.kill();
    writers.extend(threads.into_iter().map(|thread| thread.join().expect("no writer fails")));
    logged(state)
}

#[test]
fn kill_9_keeps_every_answered_batch_of_the_log_and_none_by_halves() {
    let state = tempfile::tempdir().expect("a temporary folder");
    let mut random = random();
    let mut writers: Vec<_> = (0..WRITERS).map(|id| Writer::new(id, Random(random.next()))).collect();
    let mut rows = Vec::new();
    for _ in 0..KILLS {
        rows.push(killed_round(state.path(), &mut writers, &mut random));
        let process = killed::serve(state.path().to_str().expect("the path is UTF-8"));
        let stored = killed::connect(&process).facts("/api/facts");
        writers.iter_mut().for_each(|writer| writer.check(&stored));
        process.kill();
    }
    assert!(rows.iter().any(|rows| *rows > 0), "no kill met a log that held anything: the test has lost its subject");
}
