//! Changes that are durable in the log and not in the fact tables yet.
//!
//! A thousand facts in no order touch a page of their own in every index: three thousand pages, written twice, for 100 KiB of
//! facts. So a group that is worth it is committed as rows of the `log` table instead, one for each request, and the tables take
//! up thousands of facts at a time, in key order, when many pages that they touch serve several. That is called *settling*.
//!
//! Why nobody can tell:
//! - A logged group is a commit like any other: fsynced before anybody is answered, and settled by the next start if this
//!   process does not come to it. The rows are deleted in the transaction that does the last of what they say.
//! - Facts are a set, and only plain inserts and deletes are logged. So the last word on each fact is all that counts, in any
//!   order among facts, and doing it again changes nothing. So settling may stop after any fact: the whole log stays until the
//!   last one is settled, and a start that does it all again ends with the same last words, later entries included.
//! - Whatever needs the tables (a read, a wildcard delete, clearing) has them settled first. [`Pending`] answers the one question
//!   that is asked before that: whether a group changes anything.

use std::collections::BTreeMap;

use rusqlite::{Connection, types::Type};

use crate::{
    fact::Fact,
    target::embedded::apply::{Change, Shapes, Work, holds, set},
};

/// Entries from which a group is worth logging. Settling costs a second fsync, and a read that has to wait for it; below this,
/// the pages that a group touches cost no more than that.
const LOGGED_ENTRIES: usize = 128;

/// Facts that may be pending. The group that finds the log full settles it and has everybody wait: with a million facts stored, on
/// two cores and without optimization, 0.17 to 0.24 s, and 0.3 s when the WAL is copied into the file then. Four times as many take
/// 1.0 s.
const PENDING_FACTS: usize = 8_192;

/// Facts that are settled in one transaction while nobody waits: whoever comes then waits for no more, which took 0.05 s where the
/// most that may be pending took 0.17 s. Smaller slices would write the pages of the indexes, where the facts are no neighbours,
/// more often.
const SLICE_FACTS: usize = 2_048;

/// Bytes of names and ids in the log; the facts in memory take some four times as much when they are short, and as much when
/// they are long.
const PENDING_BYTES: usize = 8 * 1024 * 1024;

/// What is in the log and not settled, by fact.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Whether the fact is to be true. In the order of the primary keys, but for the numbers of the shapes.
    facts: BTreeMap<Fact, bool>,
    /// Counted by [`weight`], over every entry of the log, settled or not.
    bytes: usize,
}

impl Pending {
    /// Reads the log that an earlier process left.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut pending = Self::default();
        let mut statement = connection.prepare("SELECT entries FROM log ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let entries = row.get_ref(0)?.as_str()?;
            let entries: Vec<(Fact, bool)> =
                serde_json::from_str(entries).map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?;
            pending.keep(entries);
        }
        Ok(pending)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// Whether a group is to be logged: it can be, it is worth it, and there is room. Once something is pending, small groups
    /// are logged too: settling for each would cost more.
    pub(super) fn takes<'a>(&self, group: impl Iterator<Item = &'a Work>) -> bool {
        let (mut entries, mut bytes) = (self.facts.len(), self.bytes);
        for work in group {
            let Work::Changes(changes) = work else { return false };
            entries += changes.len();
            for change in changes {
                match change {
                    Change::Insert(fact) | Change::Delete(fact) => bytes += weight(fact),
                    Change::DeleteMatching(_) => return false,
                }
            }
        }
        let worth = !self.is_empty() || entries >= LOGGED_ENTRIES;
        worth && entries <= PENDING_FACTS && bytes <= PENDING_BYTES
    }

    /// Logs the changes of a request that [`Self::takes`] has admitted; says whether anything is different then. What stands
    /// before the first difference changes nothing and is left out.
    pub(super) fn log(&mut self, connection: &Connection, shapes: &mut Shapes, changes: Vec<Change>) -> rusqlite::Result<bool> {
        let mut entries = Vec::with_capacity(changes.len());
        for change in changes {
            let (fact, wanted) = match change {
                Change::Insert(fact) => (fact, true),
                Change::Delete(fact) => (fact, false),
                Change::DeleteMatching(_) => unreachable!("a group with a wildcard is not taken"),
            };
            if !entries.is_empty() || self.holds(connection, shapes, &fact)? != wanted {
                entries.push((fact, wanted));
            }
        }
        if entries.is_empty() {
            return Ok(false);
        }
        let text = serde_json::to_string(&entries).expect("facts are JSON and memory takes them");
        connection.prepare_cached("INSERT INTO log (entries) VALUES (?)")?.execute([text])?;
        self.keep(entries);
        Ok(true)
    }

    /// Brings the tables up to the log, and empties it.
    pub(super) fn settle(&mut self, connection: &Connection, shapes: &mut Shapes) -> rusqlite::Result<()> {
        while !self.is_empty() {
            self.settle_slice(connection, shapes)?;
        }
        Ok(())
    }

    /// Settles [`SLICE_FACTS`]; with the last of them goes the log.
    pub(super) fn settle_slice(&mut self, connection: &Connection, shapes: &mut Shapes) -> rusqlite::Result<()> {
        for _ in 0..SLICE_FACTS {
            // Neighbours in the primary key, one after the other.
            let Some((fact, wanted)) = self.facts.pop_first() else { break };
            set(connection, shapes, &fact, wanted)?;
        }
        if self.is_empty() {
            self.bytes = 0;
            connection.prepare_cached("DELETE FROM log")?.execute([])?;
        }
        Ok(())
    }

    /// Whether `fact` is true as of the end of the log.
    fn holds(&self, connection: &Connection, shapes: &mut Shapes, fact: &Fact) -> rusqlite::Result<bool> {
        self.facts.get(fact).map_or_else(|| holds(connection, shapes, fact), |wanted| Ok(*wanted))
    }

    fn keep(&mut self, entries: Vec<(Fact, bool)>) {
        self.bytes += entries.iter().map(|(fact, _)| weight(fact)).sum::<usize>();
        self.facts.extend(entries);
    }
}

fn weight(fact: &Fact) -> usize {
    fact.predicate.len() + fact.args.iter().map(|arg| arg.type_name.len() + arg.id.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fact::Value,
        target::embedded::{
            schema::open_writer,
            select::{Arity, Selection},
        },
    };

    fn fact(n: usize) -> Fact {
        Fact { predicate: "f".into(), args: vec![Value::new("User", n.to_string()), Value::new("A \"1\"", "žlu\0")] }
    }

    fn any() -> Selection {
        Selection { predicate: None, args: Vec::new(), arity: Arity::AtLeast }
    }

    fn open(folder: &tempfile::TempDir) -> Connection {
        open_writer(&folder.path().join("facts.db")).expect("the file opens")
    }

    fn inserts(range: std::ops::Range<usize>) -> Work {
        Work::Changes(range.map(|n| Change::Insert(fact(n))).collect())
    }

    #[test]
    fn the_last_word_on_a_fact_counts_and_only_a_difference_is_logged() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (connection, mut shapes, mut pending) = (open(&folder), Shapes::default(), Pending::default());
        let insert = |n| Change::Insert(fact(n));
        let delete = |n| Change::Delete(fact(n));
        set(&connection, &mut shapes, &fact(0), true).expect("it is written");
        let steps = [
            (vec![insert(0), delete(9)], false),
            (vec![insert(0), insert(1)], true),
            (vec![insert(1)], false),
            (vec![delete(1), insert(1)], true),
            (vec![delete(0), insert(2), delete(2)], true),
            (vec![delete(0), delete(2), insert(1)], false),
        ];
        for (changes, different) in steps {
            let text = format!("{changes:?}");
            assert_eq!(pending.log(&connection, &mut shapes, changes).expect("it is logged"), different, "{text}");
        }
        let rows = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM log", [], |row| row.get::<_, i64>(0)).expect("the table is there")
        };
        assert_eq!(rows(&connection), 3);
        let left = |connection: &Connection| {
            let mut ids = Vec::new();
            let each = |_: &_, args: &[&str]| {
                ids.push(args.join(" "));
                Ok(())
            };
            any().visit(connection, each).expect("it reads");
            ids
        };
        assert_eq!(left(&connection), ["0 žlu\0"], "the tables are behind");
        drop(connection);
        let connection = open(&folder);
        assert_eq!(left(&connection), ["1 žlu\0"], "a start settles");
        assert_eq!(rows(&connection), 0);
    }

    #[test]
    fn what_is_settled_by_half_and_changed_again_ends_with_the_last_word() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (connection, mut shapes, mut pending) = (open(&folder), Shapes::default(), Pending::default());
        let count = |connection: &Connection| any().count(connection, u64::MAX).expect("it reads");
        let facts = SLICE_FACTS + 500;
        let mut log = |pending: &mut Pending, changes| pending.log(&connection, &mut shapes, changes).expect("it is logged");
        let slice = |pending: &mut Pending| {
            let transaction = connection.unchecked_transaction().expect("nothing else is open");
            pending.settle_slice(&transaction, &mut Shapes::default()).expect("it settles");
            transaction.commit().expect("it commits");
        };
        assert!(log(&mut pending, (0..facts).map(|n| Change::Insert(fact(n))).collect()));
        slice(&mut pending);
        assert_eq!((pending.facts.len(), count(&connection)), (500, SLICE_FACTS as u64));
        assert!(!log(&mut pending, (0..facts).map(|n| Change::Insert(fact(n))).collect()), "settled or not, they are true");
        // By its text it is the last of all, so that neither slice comes to it.
        let last = 999;
        assert!(log(&mut pending, (0..facts).filter(|n| *n != last).map(|n| Change::Delete(fact(n))).collect()));
        slice(&mut pending);
        assert!(!pending.is_empty(), "the first slice is behind again");
        drop(connection);
        assert_eq!(count(&open(&folder)), 1, "a start settles the whole log once more");
    }

    #[test]
    fn only_plain_changes_worth_it_are_taken_while_there_is_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut connection, mut shapes, mut pending) = (open(&folder), Shapes::default(), Pending::default());
        let connection = connection.transaction().expect("nothing else has it open");
        let wildcard = Work::Changes(vec![Change::DeleteMatching(any())]);
        assert!(!pending.takes([&inserts(0..LOGGED_ENTRIES - 1)].into_iter()), "too few");
        assert!(pending.takes([&inserts(0..LOGGED_ENTRIES - 1), &inserts(0..1)].into_iter()), "a group counts as a whole");
        for other in [wildcard, Work::Clear, Work::Settle] {
            assert!(!pending.takes([&inserts(0..LOGGED_ENTRIES), &other].into_iter()), "{other:?}");
        }
        assert!(!pending.takes([&inserts(0..PENDING_FACTS + 1)].into_iter()), "too many");
        let long = Value::new("User", "x".repeat(PENDING_BYTES));
        let large = Work::Changes(vec![Change::Delete(Fact { predicate: "f".into(), args: vec![long] })]);
        assert!(!pending.takes([&inserts(0..LOGGED_ENTRIES), &large].into_iter()), "too large");
        let Work::Changes(first) = inserts(0..PENDING_FACTS - 1) else { unreachable!("they are changes") };
        assert!(pending.log(&connection, &mut shapes, first).expect("it is logged"));
        assert!(pending.takes([&inserts(0..1)].into_iter()), "small ones follow");
        assert!(!pending.takes([&inserts(0..2)].into_iter()), "full");
        pending.settle(&connection, &mut shapes).expect("it settles");
        assert!(pending.is_empty() && pending.bytes == 0);
        assert_eq!(any().count(&connection, u64::MAX).expect("it reads"), PENDING_FACTS as u64 - 1);
    }
}
