//! Random transactions on a real PostgreSQL, recorded: what the change log tells of each, and what every query returns after it.

use std::collections::BTreeMap;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{
    operators::{Bug, Changes, Table},
    queries::queries,
    zset::{Row, Value, Zset},
};
use crate::support::github::Random;

/// Few, so that rows collide.
const IDS: u64 = 8;

/// The planner knows nothing of such tables and would compile the oracle to machine code first, which takes a hundred times as long.
const SCHEMA: &str = "
SET jit = off;
CREATE TABLE r (id int PRIMARY KEY, a int, b text);
CREATE TABLE s (id int PRIMARY KEY, a int, b text);
CREATE TABLE t (id int PRIMARY KEY, a int, c text);
SET plan_cache_mode = force_generic_plan;";

/// One row change, as logical decoding reports it under the default replica identity.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// The row under this id, inserted or updated.
    Put(i64, [Value; 2]),
    /// The row under this id is gone.
    Remove(i64),
    /// All rows are gone.
    Truncate,
}

/// A transaction.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) changes: Vec<(Table, Change)>,
    /// What each query returns after it: how often each record.
    pub(super) answers: Vec<BTreeMap<String, i64>>,
}

/// The tables' rows by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rows(BTreeMap<(Table, i64), [Value; 2]>);

impl Rows {
    fn apply(&mut self, table: Table, change: Change) {
        match change {
            Change::Put(id, cells) => drop(self.0.insert((table, id), cells)),
            Change::Remove(id) => drop(self.0.remove(&(table, id))),
            Change::Truncate => self.0.retain(|(of, _), _| *of != table),
        }
    }

    fn zset(&self, table: Table) -> Zset {
        let rows = self.0.iter().filter(|((of, _), _)| *of == table);
        let row = |id: i64, cells: &[Value; 2]| -> Row { vec![Value::Int(id), cells[0], cells[1]] };
        rows.map(|((_, id), cells)| (row(*id, cells), 1)).collect()
    }

    /// *Netting*: follows the changes through the rows and gives, for each table, rows at the end minus rows at the start.
    pub(super) fn net(&mut self, changes: &[(Table, Change)], bug: Option<Bug>) -> Changes {
        let before = self.clone();
        let mut seen = Vec::new();
        for (table, change) in changes {
            if let (Change::Put(id, _) | Change::Remove(id), Some(Bug::FirstChangeWins)) = (change, bug) {
                if seen.contains(&(table, *id)) {
                    continue;
                }
                seen.push((table, *id));
            }
            self.apply(*table, *change);
        }
        let net = |table: Table| {
            let mut net = self.zset(table);
            net.fold(&before.zset(table), -1);
            (table, net)
        };
        [Table::R, Table::S, Table::T].into_iter().map(net).collect()
    }
}

/// Runs `count` transactions, one commit at a time, each followed by every query in the same session.
pub(super) async fn record(client: &Client, random: &mut Random, count: usize) -> Vec<Commit> {
    let labelled = queries().enumerate().map(|(number, query)| format!("SELECT {number}, q::text FROM ({}) q", query.sql));
    let oracle = labelled.collect::<Vec<_>>().join(" UNION ALL ");
    client.batch_execute(&format!("{SCHEMA} PREPARE oracle AS {oracle}")).await.expect("the schema is created");
    let mut rows = Rows::default();
    let mut history = Vec::new();
    for number in 0..count {
        // The first one changes nothing, so that there is an answer over empty tables.
        let (sql, changes) = if number == 0 { Default::default() } else { transaction(random, &mut rows) };
        let messages = client.simple_query(&format!("BEGIN; {sql} COMMIT; EXECUTE oracle")).await;
        let mut answers = vec![BTreeMap::new(); queries().count()];
        for message in messages.unwrap_or_else(|error| panic!("{sql}: {error:?}")) {
            if let SimpleQueryMessage::Row(row) = message {
                let number: usize = row.get(0).and_then(|text| text.parse().ok()).expect("the query's number");
                *answers[number].entry(row.get(1).expect("a record").to_owned()).or_default() += 1;
            }
        }
        history.push(Commit { changes, answers });
    }
    history
}

/// Inserts and updates, deletes, key updates, deletes before a re-insert, now and then a TRUNCATE; of one or several tables.
fn transaction(random: &mut Random, rows: &mut Rows) -> (String, Vec<(Table, Change)>) {
    let (mut sql, mut changes) = (String::new(), Vec::new());
    let statements = [1, 1, 2, 3, 6][random.below(5) as usize];
    for _ in 0..statements {
        let table = [Table::R, Table::S, Table::T][random.below(3) as usize];
        let (statement, made) = statement(random, rows, table);
        sql.push_str(&statement);
        for change in made {
            rows.apply(table, change);
            changes.push((table, change));
        }
    }
    (sql, changes)
}

fn statement(random: &mut Random, rows: &Rows, table: Table) -> (String, Vec<Change>) {
    let (name, column) = [("r", "b"), ("s", "b"), ("t", "c")][table as usize];
    let (id, other) = (random.below(IDS) as i64, random.below(IDS) as i64);
    let (a, a_sql) = [(Value::Null, "NULL"), (Value::Int(0), "0"), (Value::Int(1), "1"), (Value::Int(2), "2"), (Value::Int(3), "3")]
        [random.below(5) as usize];
    let (b, b_sql) = [(Value::Null, "NULL"), (Value::Text("x"), "'x'"), (Value::Text("y"), "'y'")][random.below(3) as usize];
    let upsert = format!(
        "INSERT INTO {name} VALUES ({id}, {a_sql}, {b_sql}) ON CONFLICT (id) DO UPDATE SET a = excluded.a, {column} = excluded.{column};"
    );
    let put = Change::Put(id, [a, b]);
    let present = rows.0.get(&(table, id));
    match random.below(100) {
        0..2 => (format!("TRUNCATE {name};"), vec![Change::Truncate]),
        2..25 => (format!("DELETE FROM {name} WHERE id = {id};"), present.map(|_| Change::Remove(id)).into_iter().collect()),
        25..30 => {
            let removed = present.map(|_| Change::Remove(id));
            (format!("DELETE FROM {name} WHERE id = {id}; {upsert}"), removed.into_iter().chain([put]).collect())
        }
        30..45 if present.is_some() && !rows.0.contains_key(&(table, other)) => {
            let cells = *present.expect("it was checked");
            (format!("UPDATE {name} SET id = {other} WHERE id = {id};"), vec![Change::Remove(id), Change::Put(other, cells)])
        }
        _ => (upsert, vec![put]),
    }
}
