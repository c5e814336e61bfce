//! What can stand in FROM: tables, views and subqueries with typed columns.

use crate::support::github::Random;

use super::{
    expression::{Scope, condition},
    schema::{Column, Schema, Type},
};

/// Something in FROM. It has at least one int column.
#[derive(Debug, Clone)]
pub(crate) struct Relation {
    pub(crate) sql: String,
    pub(crate) columns: Vec<Column>,
    /// Columns that tell its rows apart, if any do.
    pub(crate) key: Vec<Column>,
}

/// Hands out aliases.
pub(crate) struct Writer<'a> {
    pub(crate) random: &'a mut Random,
    pub(crate) schema: &'a Schema,
    aliases: u32,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(random: &'a mut Random, schema: &'a Schema) -> Self {
        Self { random, schema, aliases: 0 }
    }

    /// A relation under an alias of its own: what to write into FROM, and what it brings into scope.
    pub(crate) fn item(&mut self, depth: u32) -> (String, Scope) {
        let relation = self.relation(depth);
        let alias = self.alias();
        (format!("{} {alias}", relation.sql), Scope::of(&alias, &relation.columns))
    }

    /// [`Self::item`], seldom a subquery.
    pub(crate) fn plain_item(&mut self) -> (String, Scope) {
        let depth = u32::from(self.random.chance(4));
        self.item(depth)
    }

    pub(crate) fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("x{}", self.aliases)
    }

    pub(crate) fn table(&mut self) -> Relation {
        let table = self.random.one(&self.schema.tables);
        Relation { sql: table.name.clone(), columns: table.columns.clone(), key: table.key().to_vec() }
    }

    /// A table with a primary key that has an order; not every schema has one.
    pub(crate) fn ordered_table(&self) -> Option<Relation> {
        let orderable = |column: &Column| matches!(column.of, Type::Int | Type::Uuid);
        let table = self.schema.tables.iter().find(|table| table.keys > 0 && table.key().iter().all(orderable))?;
        Some(Relation { sql: table.name.clone(), columns: table.columns.clone(), key: table.key().to_vec() })
    }

    /// A table, a view, or down to `depth` a subquery.
    pub(crate) fn relation(&mut self, depth: u32) -> Relation {
        match self.random.below(if depth == 0 { 6 } else { 10 }) {
            0 => {
                let (name, columns, _) = self.random.one(&self.schema.views);
                Relation { sql: name.clone(), columns: columns.clone(), key: Vec::new() }
            }
            1..6 => self.table(),
            6 => self.values(),
            7 => self.distinct(depth - 1),
            8 => self.grouped(depth - 1),
            _ => self.combined(depth - 1),
        }
    }

    /// Constant rows, one of them twice and one with a NULL.
    pub(crate) fn values(&mut self) -> Relation {
        let alias = self.alias();
        let sql = format!("(SELECT * FROM (VALUES (0, 'x'), (1, 'X'), (1, 'X'), (NULL, 'none')) {alias}(d0, d1))");
        Relation { sql, columns: vec![Column::new("d0", Type::Int), Column::new("d1", Type::Text)], key: Vec::new() }
    }

    /// An int column and another one, of a type that DISTINCT may see.
    fn two(&mut self, scope: &Scope) -> [(String, Type); 2] {
        [scope.column(self.random, |of| of == Type::Int), scope.column(self.random, Type::is_exact)]
    }

    fn distinct(&mut self, depth: u32) -> Relation {
        let (from, scope) = self.item(depth);
        let [(a, _), (b, of)] = self.two(&scope);
        let condition = condition(self.random, &scope, 1);
        let sql = format!("(SELECT DISTINCT {a} AS d0, {b} AS d1 FROM {from} WHERE {condition})");
        let columns = vec![Column::new("d0", Type::Int), Column::new("d1", of)];
        Relation { sql, key: columns.clone(), columns }
    }

    fn grouped(&mut self, depth: u32) -> Relation {
        let (from, scope) = self.item(depth);
        let [(a, _), (b, of)] = self.two(&scope);
        let sql = format!("(SELECT {b} AS d0, count(*)::int AS d1, max({a}) AS d2 FROM {from} GROUP BY {b})");
        let columns = vec![Column::new("d0", of), Column::new("d1", Type::Int), Column::new("d2", Type::Int)];
        Relation { sql, key: columns[..1].to_vec(), columns }
    }

    fn combined(&mut self, depth: u32) -> Relation {
        let ((left, left_scope), (right, right_scope)) = (self.item(depth), self.item(depth));
        let (a, _) = left_scope.column(self.random, |of| of == Type::Int);
        let (b, _) = right_scope.column(self.random, |of| of == Type::Int);
        let operator = *self.random.one(&["UNION ALL", "UNION", "EXCEPT", "EXCEPT ALL", "INTERSECT", "INTERSECT ALL"]);
        let sql = format!("(SELECT {a} AS d0 FROM {left} {operator} SELECT {b} FROM {right})");
        Relation { sql, columns: vec![Column::new("d0", Type::Int)], key: Vec::new() }
    }
}
