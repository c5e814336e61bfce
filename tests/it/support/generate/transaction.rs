//! Random transactions: what an application does, and what logical decoding has trouble with.
//!
//! Several tables, NULLs, equal rows, key updates, key swaps by way of a third key, TRUNCATE, aborted savepoints, delete and re-insert in
//! one transaction, cascades, and updates that leave a value alone that is stored out of line, also together with a new key.
//! A statement may violate a constraint; the transaction then rolls back, as an application's would.

use crate::support::github::Random;

use super::schema::{Schema, Table, Type};

/// A transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    /// Pieces that can each be left out; an aborted savepoint is one.
    pub(crate) statements: Vec<String>,
}

impl Transaction {
    pub(crate) fn new(random: &mut Random, schema: &Schema) -> Self {
        let count = *random.one(&[1, 1, 2, 3, 5]);
        let mut piece = || {
            let table = random.one(&schema.tables).clone();
            let statement = statement(random, &table);
            match random.below(10) {
                0 => format!("SAVEPOINT s; {statement} ROLLBACK TO s;"),
                1 => format!("SAVEPOINT s; {statement} RELEASE s;"),
                _ => statement,
            }
        };
        Self { statements: (0..count).map(|_| piece()).collect() }
    }

    /// All of `transactions` as one.
    pub(crate) fn merged(transactions: &[Self]) -> Self {
        Self { statements: transactions.iter().flat_map(|transaction| transaction.statements.clone()).collect() }
    }

    /// A transaction of its own for each statement.
    pub(crate) fn split(&self) -> Vec<Self> {
        self.statements.iter().map(|statement| Self { statements: vec![statement.clone()] }).collect()
    }

    /// The same without TRUNCATE.
    pub(crate) fn without_truncate(mut self) -> Self {
        self.statements.retain(|statement| !statement.contains("TRUNCATE"));
        self
    }

    pub(crate) fn sql(&self) -> String {
        format!("BEGIN;\n{}\nCOMMIT;", self.statements.join("\n"))
    }
}

/// A key outside of every domain.
fn third_key(of: Type) -> &'static str {
    match of {
        Type::Int => "-1",
        Type::Uuid => "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
        Type::Text => "'third'",
        Type::Bool | Type::Numeric | Type::Time | Type::Json | Type::Mood | Type::Texts => panic!("no key is of this type"),
    }
}

/// Values for the columns of one row, in order; a reference is to a row that is there, or NULL.
fn values(random: &mut Random, table: &Table) -> Vec<String> {
    let mut values: Vec<String> = table.key().iter().map(|column| key(random, column.of)).collect();
    for column in table.payload() {
        values.push(match &table.parent {
            Some((parent, _)) if column.name == "p" => format!("(SELECT k0 FROM {parent} WHERE k0 = {})", key(random, column.of)),
            _ => column.of.value(random),
        });
    }
    values.extend(table.big.then(|| big(random)));
    values
}

fn key(random: &mut Random, of: Type) -> String {
    match of {
        Type::Int => random.below(5).to_string(),
        _ => (*random.one(of.literals())).to_owned(),
    }
}

/// Too long to stay in the row.
fn big(random: &mut Random) -> String {
    (*random.one(&["repeat('big', 3000)", "repeat('BIG', 3000)", "NULL", "'small'"])).to_owned()
}

/// Inserts a row, or updates the one with its key.
fn upsert(random: &mut Random, table: &Table) -> String {
    let values = values(random, table).join(", ");
    if table.keys == 0 {
        return format!("INSERT INTO {} VALUES ({values});", table.name);
    }
    let key: Vec<&str> = table.key().iter().map(|column| column.name.as_str()).collect();
    // What an UPSERT leaves alone stays where it is stored.
    let updated = table.payload().iter().filter(|_| !random.chance(4)).map(|column| column.name.as_str());
    let mut updated: Vec<String> = updated.map(|name| format!("{name} = excluded.{name}")).collect();
    updated.extend((table.big && random.chance(3)).then(|| "big = excluded.big".to_owned()));
    let action = if updated.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", updated.join(", ")) };
    format!("INSERT INTO {} VALUES ({values}) ON CONFLICT ({}) DO {action};", table.name, key.join(", "))
}

/// Some rows: by key, by another column, now and then all.
fn some(random: &mut Random, table: &Table) -> String {
    let column = if table.keys > 0 && !random.chance(3) { random.one(table.key()) } else { random.one(&table.columns) };
    match random.below(12) {
        0 => "true".to_owned(),
        1 => format!("{} IS NULL", column.name),
        _ if column.of == Type::Texts => "c0 = 1".to_owned(),
        _ if column.of == Type::Int => format!("{} = {}", column.name, random.below(4)),
        _ => format!("{} = {}", column.name, random.one(column.of.literals())),
    }
}

fn update(random: &mut Random, table: &Table) -> String {
    let column = random.one(table.payload()).clone();
    let mut set = match &table.parent {
        Some((parent, _)) if column.name == "p" => format!("p = (SELECT k0 FROM {parent} WHERE k0 = {})", key(random, column.of)),
        _ => format!("{} = {}", column.name, column.of.value(random)),
    };
    if table.big && random.chance(4) {
        set.push_str(&format!(", big = {}", big(random)));
    }
    format!("UPDATE {} SET {set} WHERE {};", table.name, some(random, table))
}

/// Gives a row a key that is free, and perhaps other values; what is stored out of line stays there.
fn rekey(random: &mut Random, table: &Table) -> String {
    let column = random.one(table.key()).clone();
    let (from, to) = (key(random, column.of), key(random, column.of));
    let (name, column) = (&table.name, &column.name);
    let extra = if random.chance(2) { format!(", c0 = {}", random.below(3)) } else { String::new() };
    let free = if table.keys == 1 { format!(" AND NOT EXISTS (SELECT FROM {name} WHERE {column} = {to})") } else { String::new() };
    format!("UPDATE {name} SET {column} = {to}{extra} WHERE {column} = {from}{free};")
}

/// Exchanges two keys by way of a third.
fn swap(random: &mut Random, table: &Table) -> String {
    let column = &table.key()[0];
    let (a, b) = (column.of.literals()[random.below(2) as usize], column.of.literals()[2]);
    let update = |from: &str, to: &str| format!("UPDATE {} SET {c} = {to} WHERE {c} = {from};", table.name, c = column.name);
    let third = third_key(column.of);
    [update(a, third), update(b, a), update(third, b)].join(" ")
}

fn statement(random: &mut Random, table: &Table) -> String {
    let name = &table.name;
    let keyed = table.keys > 0;
    match random.below(100) {
        0..40 => upsert(random, table),
        40..60 => update(random, table),
        60..72 => format!("DELETE FROM {name} WHERE {};", some(random, table)),
        72..82 if keyed => rekey(random, table),
        82..88 if keyed => swap(random, table),
        88..92 => format!("DELETE FROM {name} WHERE {}; {}", some(random, table), upsert(random, table)),
        92..94 => format!("TRUNCATE {name} CASCADE; {}", upsert(random, table)),
        94..96 => format!("{} TRUNCATE {name} CASCADE;", upsert(random, table)),
        // Changes nothing, and writes a new version of each row.
        96 => format!("UPDATE {name} SET c0 = c0;"),
        _ => format!("{} {}", upsert(random, table), upsert(random, table)),
    }
}
