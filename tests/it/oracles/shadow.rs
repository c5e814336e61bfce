//! A second PostgreSQL database that repeats the first, one commit at a time in commit order, as a change log of its own tells it.
//!
//! Under concurrent writers a query at the source shows transactions in an order that need not be that of their commit records, so it
//! is no oracle. This one is: `pgoutput` over a slot of its own, read with SQL, decoded here, applied to plain tables without keys.

use std::{collections::BTreeMap, fmt::Write};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::followed::{Answers, ask};

/// Reads the slot and the publication `shadow`.
const CHANGES: &str = "SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', \
                       'publication_names', 'shadow')";

/// A commit of the source.
pub(super) struct State {
    /// The position after it.
    pub(super) end: u64,
    /// What the queries return there.
    pub(super) answers: Answers,
}

/// Makes the slot at the source; what is committed from here on is repeated.
pub(super) async fn start(source: &Client, slot: &str) {
    let publication = "CREATE PUBLICATION shadow FOR ALL TABLES WITH (publish_via_partition_root = true)";
    source.batch_execute(publication).await.expect("a publication");
    source.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.expect("a slot");
}

/// Applies every commit since [`start`] to `shadow`; the queries' answers at the beginning and after each commit.
pub(super) async fn replay(source: &Client, slot: &str, shadow: &Client, queries: usize) -> Vec<State> {
    source.batch_execute("SET TimeZone = 'UTC'; SET DateStyle = ISO; SET extra_float_digits = 3").await.expect("settings");
    let rows = source.query(CHANGES, &[&slot]).await.expect("the changes");
    let mut states = vec![State { end: 0, answers: ask(shadow, queries).await }];
    let mut relations = BTreeMap::new();
    let mut sql = String::new();
    for row in rows {
        let message: &[u8] = row.get(0);
        if let Some(end) = Reader(&message[1..]).message(message[0], &mut relations, &mut sql) {
            apply(shadow, &sql).await;
            sql.clear();
            states.push(State { end, answers: ask(shadow, queries).await });
        }
    }
    states
}

/// Runs the statements of one commit, each of which concerns one row, or is a TRUNCATE.
async fn apply(shadow: &Client, sql: &str) {
    let messages = shadow.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    let rows: u64 = messages.iter().map(|message| if let SimpleQueryMessage::CommandComplete(rows) = message { *rows } else { 0 }).sum();
    let statements = sql.lines().filter(|line| !line.starts_with("TRUNCATE")).count();
    assert_eq!(rows, statements as u64, "a row is not there: {sql}");
}

/// A table as the change log announces it.
struct Relation {
    name: String,
    columns: Vec<String>,
    /// Whether the column belongs to the replica identity.
    identity: Vec<bool>,
}

/// A cell: unchanged and not told, or a value.
enum Cell {
    Unchanged,
    Value(Option<String>),
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// Adds what `message` does to `sql`; the end of the commit if it is one.
    fn message(&mut self, kind: u8, relations: &mut BTreeMap<u32, Relation>, sql: &mut String) -> Option<u64> {
        match kind {
            b'R' => {
                let (id, relation) = self.relation();
                relations.insert(id, relation);
            }
            b'I' => {
                let relation = &relations[&self.u32()];
                assert_eq!(self.u8(), b'N');
                sql.push_str(&relation.insert(&self.tuple()));
            }
            b'U' => {
                let relation = &relations[&self.u32()];
                let old = match self.u8() {
                    b'N' => None,
                    _ => {
                        let old = self.tuple();
                        assert_eq!(self.u8(), b'N');
                        Some(old)
                    }
                };
                let new = self.tuple();
                sql.push_str(&relation.update(old.as_deref().unwrap_or(&new), &new));
            }
            b'D' => {
                let relation = &relations[&self.u32()];
                self.u8();
                sql.push_str(&format!("DELETE FROM {} {};\n", relation.name, relation.one(&self.tuple())));
            }
            b'T' => {
                let count = self.u32();
                self.u8();
                (0..count).for_each(|_| writeln!(sql, "TRUNCATE {};", relations[&self.u32()].name).expect("a text"));
            }
            b'C' => {
                self.u8();
                self.u64();
                return Some(self.u64());
            }
            _ => {}
        }
        None
    }

    fn relation(&mut self) -> (u32, Relation) {
        let id = self.u32();
        let (schema, table) = (self.text(), self.text());
        let name = format!("{}.{}", escape_identifier(&schema), escape_identifier(&table));
        self.u8();
        let (mut columns, mut identity) = (Vec::new(), Vec::new());
        for _ in 0..self.u16() {
            identity.push(self.u8() == 1);
            columns.push(escape_identifier(&self.text()));
            self.take(8);
        }
        (id, Relation { name, columns, identity })
    }

    fn tuple(&mut self) -> Vec<Cell> {
        let cell = |this: &mut Self| match this.u8() {
            b'n' => Cell::Value(None),
            b'u' => Cell::Unchanged,
            b't' => {
                let length = this.u32() as usize;
                Cell::Value(Some(String::from_utf8(this.take(length).to_vec()).expect("UTF-8")))
            }
            other => panic!("a cell of kind {other}"),
        };
        (0..self.u16()).map(|_| cell(self)).collect()
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn text(&mut self) -> String {
        let end = self.0.iter().position(|byte| *byte == 0).expect("a terminated text");
        let text = String::from_utf8(self.take(end).to_vec()).expect("UTF-8");
        self.u8();
        text
    }
}

impl Relation {
    fn insert(&self, new: &[Cell]) -> String {
        let values: Vec<String> = new.iter().map(literal).collect();
        format!("INSERT INTO {} VALUES ({});\n", self.name, values.join(", "))
    }

    fn update(&self, old: &[Cell], new: &[Cell]) -> String {
        let told = self.columns.iter().zip(new).filter(|(_, cell)| !matches!(cell, Cell::Unchanged));
        let set: Vec<String> = told.map(|(column, cell)| format!("{column} = {}", literal(cell))).collect();
        format!("UPDATE {} SET {} {};\n", self.name, set.join(", "), self.one(old))
    }

    /// Selects one row with the identity of `old`; there may be several that are equal.
    fn one(&self, old: &[Cell]) -> String {
        let identity = self.columns.iter().zip(old).zip(&self.identity).filter(|(_, identity)| **identity);
        // By the text that the type itself prints, as in the change log: a cast to text prints a boolean in another way.
        let printed = |column: &String| format!("CASE WHEN {column} IS NOT NULL THEN format('%s', {column}) END");
        let same = identity.map(|((column, cell), _)| format!("{} IS NOT DISTINCT FROM {}", printed(column), literal(cell)));
        let condition = same.collect::<Vec<_>>().join(" AND ");
        format!("WHERE ctid = (SELECT ctid FROM {} WHERE {condition} LIMIT 1)", self.name)
    }
}

fn literal(cell: &Cell) -> String {
    match cell {
        Cell::Value(Some(text)) => escape_literal(text),
        Cell::Value(None) => "NULL".to_owned(),
        Cell::Unchanged => panic!("neither a new row nor an identity lacks a value"),
    }
}
