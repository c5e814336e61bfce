//! Random queries, of every kind that can be kept up to date change by change.
//!
//! Every output column is a text, so that each query fills a fact type whose predicate is `q` and its number.

use crate::support::github::Random;

use super::{
    expression::{Scope, condition, output},
    relation::Writer,
    schema::{Schema, Type},
};

/// The kinds of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// One relation, filtered.
    Filter,
    /// An inner join of two to four relations, which may be the same.
    Join,
    /// LEFT, RIGHT and FULL JOIN, one or two of them, with residual conditions.
    Outer,
    /// [NOT] EXISTS, as a condition or in an expression.
    Exists,
    /// [NOT] IN over a subquery, correlated or not.
    In,
    /// UNION, EXCEPT, INTERSECT, with and without ALL.
    Set,
    /// DISTINCT over a join.
    Distinct,
    /// GROUP BY with HAVING, or an aggregate without groups.
    Group,
    /// A scalar subquery, aggregated or by key.
    Scalar,
    /// DISTINCT ON and row_number(), in a total order.
    Top,
    /// WITH RECURSIVE … UNION.
    Recursive,
    /// unnest and jsonb_array_elements_text.
    Unnest,
    /// A CTE that is used twice.
    Cte,
}

impl Class {
    pub(crate) const ALL: [Self; 13] = [
        Self::Filter,
        Self::Join,
        Self::Outer,
        Self::Exists,
        Self::In,
        Self::Set,
        Self::Distinct,
        Self::Group,
        Self::Scalar,
        Self::Top,
        Self::Recursive,
        Self::Unnest,
        Self::Cte,
    ];
}

/// A query.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) class: Class,
    pub(crate) sql: String,
    /// Its columns.
    pub(crate) arity: usize,
    /// The query in pieces, where it is a plain SELECT.
    pub(crate) select: Option<Select>,
    /// What factsync is told in its place, in a test of the tests.
    pub(crate) told: Option<String>,
}

/// `SELECT columns FROM relations WHERE conditions`.
#[derive(Debug, Clone)]
pub(crate) struct Select {
    pub(crate) columns: Vec<String>,
    /// In any order.
    pub(crate) relations: Vec<String>,
    pub(crate) conditions: Vec<String>,
    /// Another condition on the same relations.
    pub(crate) probe: String,
    /// A column of the relations, of a type that GROUP BY may see.
    pub(crate) column: String,
}

impl Select {
    pub(crate) fn sql(&self) -> String {
        let mut sql = format!("SELECT {} FROM {}", self.columns.join(", "), self.relations.join(", "));
        if !self.conditions.is_empty() {
            let conditions: Vec<String> = self.conditions.iter().map(|condition| format!("({condition})")).collect();
            sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
        }
        sql
    }
}

impl Query {
    pub(crate) fn new(random: &mut Random, schema: &Schema, class: Class) -> Self {
        let arity = 1 + random.below(3) as usize;
        let mut writer = Writer::new(random, schema);
        let select = match class {
            Class::Filter => Some(writer.select(arity, 1)),
            Class::Join => Some(writer.join(arity)),
            Class::Exists => Some(writer.exists(arity)),
            Class::In => Some(writer.is_in(arity)),
            Class::Scalar => Some(writer.scalar(arity)),
            Class::Unnest => Some(writer.unnest(arity)),
            Class::Outer | Class::Set | Class::Distinct | Class::Group | Class::Top | Class::Recursive | Class::Cte => None,
        };
        let sql = match (class, &select) {
            (_, Some(select)) => select.sql(),
            (Class::Outer, None) => writer.outer(arity),
            (Class::Set, None) => writer.set(arity),
            (Class::Distinct, None) => writer.join(arity).sql().replacen("SELECT", "SELECT DISTINCT", 1),
            (Class::Group, None) => writer.group(arity),
            (Class::Top, None) => writer.top(arity),
            (Class::Recursive, None) => writer.recursive(),
            (_, None) => writer.cte(arity),
        };
        let arity = if class == Class::Recursive { 2 } else { arity };
        Self { class, sql, arity, select, told: None }
    }

    /// A query of one column; factsync is told another one, if any.
    pub(crate) fn plain(sql: &str, told: Option<&str>) -> Self {
        Self { class: Class::Filter, sql: sql.to_owned(), arity: 1, select: None, told: told.map(str::to_owned) }
    }
}

impl Writer<'_> {
    fn outputs(&mut self, scope: &Scope, arity: usize) -> Vec<String> {
        (0..arity).map(|_| output(self.random, scope)).collect()
    }

    fn select_from(&mut self, arity: usize, relations: Vec<String>, mut conditions: Vec<String>, scope: &Scope) -> Select {
        if self.random.chance(2) {
            conditions.push(condition(self.random, scope, 2));
        }
        let (column, _) = scope.column(self.random, Type::is_exact);
        let (columns, probe) = (self.outputs(scope, arity), condition(self.random, scope, 1));
        Select { columns, relations, conditions, probe, column }
    }

    fn select(&mut self, arity: usize, depth: u32) -> Select {
        let (from, scope) = self.item(depth);
        self.select_from(arity, vec![from], Vec::new(), &scope)
    }

    fn join(&mut self, arity: usize) -> Select {
        let (from, mut scope) = self.item(1);
        let (mut relations, mut conditions) = (vec![from], Vec::new());
        for _ in 0..1 + self.random.below(5) / 2 {
            let (from, joined) = self.plain_item();
            conditions.push(scope.equality(self.random, &joined));
            if self.random.chance(4) {
                conditions.push(scope.equality(self.random, &joined));
            }
            relations.push(from);
            scope = scope.with(&joined);
        }
        self.select_from(arity, relations, conditions, &scope)
    }

    fn outer(&mut self, arity: usize) -> String {
        let (mut from, mut scope) = self.item(1);
        let mut filter = condition(self.random, &scope, 0);
        for _ in 0..1 + self.random.below(2) {
            let (item, joined) = self.plain_item();
            let kind = *self.random.one(&["LEFT", "LEFT", "RIGHT", "FULL"]);
            let mut on = scope.equality(self.random, &joined);
            scope = scope.with(&joined);
            if self.random.chance(2) {
                on.push_str(&format!(" AND ({})", condition(self.random, &scope, 1)));
            }
            from = format!("{from} {kind} JOIN {item} ON {on}");
            if self.random.chance(3) {
                filter = format!("{} IS NULL", joined.column(self.random, |_| true).0);
            }
        }
        let filter = if self.random.chance(2) { format!(" WHERE {filter}") } else { String::new() };
        format!("SELECT {} FROM {from}{filter}", self.outputs(&scope, arity).join(", "))
    }

    /// A subquery's FROM and WHERE, tied to `outer` by an equality and perhaps more.
    fn correlated(&mut self, outer: &Scope) -> (String, Scope) {
        let (from, inner) = self.plain_item();
        let mut conditions = inner.equality(self.random, outer);
        if self.random.chance(2) {
            conditions.push_str(&format!(" AND ({})", condition(self.random, &inner, 1)));
        }
        if self.random.chance(4) {
            conditions.push_str(&format!(" AND ({})", condition(self.random, &inner.with(outer), 1)));
        }
        (format!("FROM {from} WHERE {conditions}"), inner)
    }

    fn exists(&mut self, arity: usize) -> Select {
        let (from, scope) = self.item(1);
        let (subquery, _) = self.correlated(&scope);
        let not = *self.random.one(&["", "NOT "]);
        if self.random.chance(4) {
            let mut select = self.select_from(arity, vec![from], Vec::new(), &scope);
            select.columns[0] = format!("(CASE WHEN {not}EXISTS (SELECT {subquery}) THEN 'some' ELSE 'none' END)");
            return select;
        }
        self.select_from(arity, vec![from], vec![format!("{not}EXISTS (SELECT {subquery})")], &scope)
    }

    fn is_in(&mut self, arity: usize) -> Select {
        let (from, scope) = self.item(1);
        let (inner_from, inner) = self.plain_item();
        let (operand, of) = scope.column(self.random, |of| of.is_exact() && !inner.named(|it| it == of).is_empty());
        let (value, _) = inner.column(self.random, |it| it == of);
        let mut conditions = Vec::new();
        if self.random.chance(2) {
            conditions.push(condition(self.random, &inner, 1));
        }
        if self.random.chance(3) {
            conditions.push(inner.equality(self.random, &scope));
        }
        let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        let not = *self.random.one(&["", "NOT "]);
        self.select_from(arity, vec![from], vec![format!("{operand} {not}IN (SELECT {value} FROM {inner_from}{filter})")], &scope)
    }

    fn set(&mut self, arity: usize) -> String {
        let mut sql = self.select(arity, 1).sql();
        for _ in 0..1 + self.random.below(2) {
            let operator = *self.random.one(&["UNION", "UNION ALL", "EXCEPT", "EXCEPT ALL", "INTERSECT", "INTERSECT ALL"]);
            let right = if self.random.chance(2) { self.join(arity) } else { self.select(arity, 0) };
            sql = format!("({sql}) {operator} ({})", right.sql());
        }
        sql
    }

    fn group(&mut self, arity: usize) -> String {
        let select = self.join(1);
        let (relations, conditions) = (select.relations.join(", "), select.conditions.join(") AND ("));
        let key = select.column;
        let aggregates = ["count(*)", "count(KEY)", "count(DISTINCT KEY)", "bool_or(KEY IS NULL)", "bool_and(KEY IS NOT NULL)"];
        let mut columns: Vec<String> =
            (1..arity).map(|_| format!("({})::text", self.random.one(&aggregates).replace("KEY", &key))).collect();
        if self.random.chance(5) {
            columns.push("'all: ' || count(*)::text".to_owned());
            return format!("SELECT {} FROM {relations} WHERE ({conditions})", columns.join(", "));
        }
        columns.push(format!("COALESCE({key}::text, 'null')"));
        let having = if self.random.chance(2) { " HAVING count(*) > 1" } else { "" };
        format!("SELECT {} FROM {relations} WHERE ({conditions}) GROUP BY {key}{having}", columns.join(", "))
    }

    fn scalar(&mut self, arity: usize) -> Select {
        let (from, scope) = self.item(1);
        let (subquery, inner) = self.correlated(&scope);
        let (value, _) = inner.column(self.random, |of| of == Type::Int);
        let aggregate = *self.random.one(&["count(*)", "max(_)", "min(_)", "sum(_)", "count(DISTINCT _)"]);
        let subquery = format!("(SELECT {} {subquery})", aggregate.replace('_', &value));
        let mut select = self.select_from(arity, vec![from], Vec::new(), &scope);
        match self.random.below(3) {
            0 => select.conditions.push(format!("{subquery} > 0")),
            _ => select.columns[0] = format!("COALESCE({subquery}::text, 'null')"),
        }
        select
    }

    fn top(&mut self, arity: usize) -> String {
        // Without a table whose rows have an order there is one over the distinct values of a table.
        let relation = self.ordered_table().unwrap_or_else(|| {
            let table = self.table();
            let columns = table.columns.iter().filter(|column| column.of == Type::Int).cloned().collect::<Vec<_>>();
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let sql = format!("(SELECT DISTINCT {} FROM {})", names.join(", "), table.sql);
            super::relation::Relation { sql, key: columns.clone(), columns }
        });
        let alias = self.alias();
        let scope = Scope::of(&alias, &relation.columns);
        let (part, _) = scope.column(self.random, |of| of.is_exact() && !matches!(of, Type::Text));
        let (first, _) = scope.column(self.random, |of| of == Type::Int);
        let direction = *self.random.one(&["", " DESC", " NULLS FIRST", " DESC NULLS LAST"]);
        let key: Vec<String> = relation.key.iter().map(|column| format!("{alias}.{}", column.name)).collect();
        let order = format!("{first}{direction}, {}", key.join(", "));
        let outputs = self.outputs(&scope, arity).join(", ");
        if self.random.chance(2) {
            return format!("SELECT DISTINCT ON ({part}) {outputs} FROM {} {alias} ORDER BY {part}, {order}", relation.sql);
        }
        let names: Vec<String> = (0..arity).map(|column| format!("o{column}")).collect();
        let inner = format!("row_number() OVER (PARTITION BY {part} ORDER BY {order}) AS n FROM {} {alias}", relation.sql);
        let limit = 1 + self.random.below(2);
        let numbered = format!("SELECT {outputs}, {inner}");
        let listed = names.join(", ");
        format!("SELECT {listed} FROM ({numbered}) AS numbered({listed}, n) WHERE n <= {limit}")
    }

    fn recursive(&mut self) -> String {
        let (table, seeds) = (self.table(), self.table());
        let scope = Scope::of("e", &table.columns);
        let (a, of) = scope.column(self.random, |of| matches!(of, Type::Int | Type::Uuid));
        let (b, _) = scope.column(self.random, |it| it == of);
        let seeds = Scope::of("s", &seeds.columns).named(|it| it == of).first().map(|(start, _)| (start.clone(), seeds.sql.clone()));
        let base = match seeds {
            Some((start, seeds)) if self.random.chance(2) => format!("SELECT {start}, {start} FROM {seeds} s WHERE {start} IS NOT NULL"),
            _ => format!("SELECT {a}, {b} FROM {} e", table.sql),
        };
        let filter = if self.random.chance(3) { format!(" WHERE {}", condition(self.random, &scope, 1)) } else { String::new() };
        let step = format!("SELECT q.x, {b} FROM q JOIN {} e ON {a} = q.y{filter}", table.sql);
        format!("WITH RECURSIVE q(x, y) AS ({base} UNION {step}) SELECT COALESCE(x::text, 'null'), COALESCE(y::text, 'null') FROM q")
    }

    fn unnest(&mut self, arity: usize) -> Select {
        let (from, scope) = self.item(0);
        let arrays = scope.named(|of| matches!(of, Type::Texts | Type::Json));
        let function = if arrays.is_empty() {
            format!("unnest(ARRAY['a', {}::text])", scope.column(self.random, |of| of == Type::Int).0)
        } else {
            match self.random.one(&arrays) {
                (column, Type::Json) => format!("jsonb_array_elements_text({column}->'l')"),
                (column, _) => format!("unnest({column})"),
            }
        };
        let alias = self.alias();
        let mut select = self.select_from(arity, vec![format!("{from}, {function} AS {alias}(u)")], Vec::new(), &scope);
        select.columns[0] = format!("COALESCE({alias}.u, 'null')");
        select
    }

    fn cte(&mut self, arity: usize) -> String {
        let relation = self.relation(2);
        let body = format!("SELECT * FROM {} inside", relation.sql);
        let (a, b) = (Scope::of("a", &relation.columns), Scope::of("b", &relation.columns));
        let on = a.equality(self.random, &b);
        let outputs = self.outputs(&a.with(&b), arity).join(", ");
        let materialized = *self.random.one(&["", "MATERIALIZED ", "NOT MATERIALIZED "]);
        format!("WITH c AS {materialized}({body}) SELECT {outputs} FROM c a JOIN c b ON {on}")
    }
}
