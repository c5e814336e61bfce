//! Z-sets: rows with how often they occur, which is negative where rows go and never 0.

use std::collections::{BTreeMap, BTreeSet};

/// A cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(&'static str),
}

pub(super) type Row = Vec<Value>;

/// Rows with their weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Zset(BTreeMap<Row, i64>);

/// `a = b` of SQL.
pub(super) fn equal(a: Value, b: Value) -> Option<bool> {
    (a != Value::Null && b != Value::Null).then_some(a == b)
}

/// `a < b` of SQL.
pub(super) fn less(a: Value, b: Value) -> Option<bool> {
    (a != Value::Null && b != Value::Null).then_some(a < b)
}

impl Zset {
    /// One row, `weight` times.
    pub(super) fn of(row: Row, weight: i64) -> Self {
        let mut zset = Self::default();
        zset.add(row, weight);
        zset
    }

    pub(super) fn add(&mut self, row: Row, weight: i64) {
        let sum = self.weight(&row) + weight;
        match sum {
            0 => self.0.remove(&row),
            _ => self.0.insert(row, sum),
        };
    }

    /// Adds every row of `other`, `times` as often.
    pub(super) fn fold(&mut self, other: &Self, times: i64) {
        other.iter().for_each(|(row, weight)| self.add(row.clone(), times * weight));
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.fold(other, 1);
        sum
    }

    pub(super) fn weight(&self, row: &Row) -> i64 {
        self.0.get(row).copied().unwrap_or(0)
    }

    /// How many rows, each as often as it occurs.
    pub(super) fn total(&self) -> i64 {
        self.0.values().sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Row, i64)> {
        self.0.iter().map(|(row, weight)| (row, *weight))
    }

    /// The rows that occur at all.
    pub(super) fn present(&self) -> BTreeSet<Row> {
        self.iter().filter(|(_, weight)| *weight > 0).map(|(row, _)| row.clone()).collect()
    }

    /// Each row as PostgreSQL prints a record.
    pub(super) fn printed(&self) -> BTreeMap<String, i64> {
        let cell = |value: &Value| match value {
            Value::Null => String::new(),
            Value::Int(int) => int.to_string(),
            Value::Text(text) => (*text).to_owned(),
        };
        let print = |row: &Row| format!("({})", row.iter().map(cell).collect::<Vec<_>>().join(","));
        self.iter().map(|(row, weight)| (print(row), weight)).collect()
    }
}

impl FromIterator<(Row, i64)> for Zset {
    fn from_iter<T: IntoIterator<Item = (Row, i64)>>(rows: T) -> Self {
        let mut zset = Self::default();
        rows.into_iter().for_each(|(row, weight)| zset.add(row, weight));
        zset
    }
}
