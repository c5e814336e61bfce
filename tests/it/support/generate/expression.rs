//! Random scalar expressions and conditions over the columns in scope.

use crate::support::github::Random;

use super::schema::{Column, Type};

/// What a query may name: relations under their aliases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    pub(crate) columns: Vec<(String, Column)>,
}

impl Scope {
    /// `columns` under `alias`.
    pub(crate) fn of(alias: &str, columns: &[Column]) -> Self {
        Self { columns: columns.iter().map(|column| (alias.to_owned(), column.clone())).collect() }
    }

    /// Both.
    pub(crate) fn with(&self, other: &Self) -> Self {
        Self { columns: self.columns.iter().chain(&other.columns).cloned().collect() }
    }

    /// The columns whose type `fits`, as SQL.
    pub(crate) fn named(&self, fits: impl Fn(Type) -> bool) -> Vec<(String, Type)> {
        let fitting = self.columns.iter().filter(|(_, column)| fits(column.of));
        fitting.map(|(alias, column)| (format!("{alias}.{}", column.name), column.of)).collect()
    }

    /// One of them. Every relation has an int column, so there always is one.
    pub(crate) fn column(&self, random: &mut Random, fits: impl Fn(Type) -> bool) -> (String, Type) {
        random.one(&self.named(fits)).clone()
    }

    /// One column of each side, of one type, that are to be equal.
    pub(crate) fn equality(&self, random: &mut Random, other: &Self) -> String {
        let (left, of) = self.column(random, |of| of.is_key() && !other.named(|it| it == of).is_empty());
        let (right, _) = other.column(random, |it| it == of);
        format!("{left} = {right}")
    }
}

/// A condition that may be TRUE, FALSE or NULL.
pub(crate) fn condition(random: &mut Random, scope: &Scope, depth: u32) -> String {
    let choices = if depth == 0 { 12 } else { 17 };
    match random.below(choices) {
        0 | 1 => {
            let (column, of) = scope.column(random, Type::is_key);
            format!("{column} {} {}", random.one(&["=", "<>"]), random.one(of.literals()))
        }
        2 => {
            let (column, _) = scope.column(random, |_| true);
            format!("{column} IS {}NULL", random.one(&["", "NOT "]))
        }
        3 => {
            let (column, _) = scope.column(random, |of| of == Type::Int);
            format!("{column} {} {}", random.one(&["<", "<=", ">", ">="]), random.below(3))
        }
        4 => {
            let (column, _) = scope.column(random, |of| of == Type::Int);
            format!("{column} BETWEEN {} AND 2", random.below(2))
        }
        5 => {
            let (column, of) = scope.column(random, Type::is_key);
            format!("{column} IS {}DISTINCT FROM {}", random.one(&["", "NOT "]), random.one(of.literals()))
        }
        6 => {
            let (column, of) = scope.column(random, Type::is_exact);
            format!("{column} IN ({}, {})", of.literals()[0], random.one(of.literals()))
        }
        7 => {
            let (column, _) = scope.column(random, |of| of == Type::Int);
            format!("({column} + 1) % 2 = 0")
        }
        8 => {
            let (column, _) = scope.column(random, |of| of == Type::Int);
            format!("{column} = ANY ('{{0,2}}'::int[])")
        }
        9..12 => typed_condition(random, scope),
        12 => format!("NOT ({})", condition(random, scope, depth - 1)),
        13 | 14 => format!("({} OR {})", condition(random, scope, depth - 1), condition(random, scope, depth - 1)),
        15 => format!("({} AND {})", condition(random, scope, depth - 1), condition(random, scope, depth - 1)),
        _ => format!("CASE WHEN {} THEN {} END", condition(random, scope, depth - 1), condition(random, scope, depth - 1)),
    }
}

/// A condition of a kind that only one type has.
fn typed_condition(random: &mut Random, scope: &Scope) -> String {
    let (column, of) = scope.column(random, |_| true);
    match of {
        Type::Int => format!("NULLIF({column}, 1) < 2"),
        Type::Uuid => format!("{column}::text LIKE '0%'"),
        Type::Text => (*random.one(&["lower(_) = 'x'", "_ || '!' = 'x!'", "length(_) > 1", "_ <> ''"])).replace('_', &column),
        Type::Bool => (*random.one(&["_", "NOT _", "_ IS NOT TRUE", "COALESCE(_, true)"])).replace('_', &column),
        Type::Numeric => format!("{column} > 0"),
        Type::Time => (*random.one(&["_ > '2024-06-01 09:00:00+00'", "_ <= '2024-06-01 10:00:00+00'", "_ > now()"])).replace('_', &column),
        Type::Json => (*random.one(&["_->>'k' = 'x'", "_->>'k' IS NULL", "_ ? 'l'"])).replace('_', &column),
        Type::Mood => (*random.one(&["_ = 'low'", "_::text <> 'mid'", "_ IN ('mid', 'high')"])).replace('_', &column),
        Type::Texts => format!("{column} IS NOT NULL"),
    }
}

/// A text, as a column of a fact. Most show a NULL as a word, since a row with a NULL makes no fact.
pub(crate) fn output(random: &mut Random, scope: &Scope) -> String {
    let (column, of) = scope.column(random, |_| true);
    let text = match (random.below(10), of) {
        (0, Type::Int) => format!("'user:' || {column}"),
        (1, Type::Int) => format!("({column} + 10)::text"),
        (0..4, Type::Text) => format!("lower({column})"),
        (4, Type::Text) => format!("concat({column}, '-', {column})"),
        (0..7, Type::Json) => format!("{column}->>'k'"),
        (0..3, Type::Bool) => format!("CASE WHEN {column} THEN 'yes' WHEN NOT {column} THEN 'no' END"),
        (7, _) => format!("CASE WHEN {} THEN {column}::text ELSE 'other' END", condition(random, scope, 0)),
        _ => format!("{column}::text"),
    };
    if random.chance(6) { text } else { format!("COALESCE({text}, 'null')") }
}
