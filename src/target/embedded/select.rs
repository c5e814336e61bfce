//! Selecting facts: which shapes a pattern means, and which index serves it.
//!
//! Types are resolved through the `shape` table, ids through an index of each matching shape. The statement names its
//! index (`INDEXED BY`), for two reasons: SQLite without statistics may take the one whose leading column says nothing
//! (`String:member`), and one index searched in one direction gives its rows in the index's order, so the same question
//! on the same facts has the same answer in the same order without any sorting.

use rusqlite::{Connection, params_from_iter};

use crate::{
    fact::{Fact, FactType, MAX_ARGUMENTS, PatternValue},
    target::embedded::schema::rotated,
};

/// Which facts are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selection {
    /// The predicate, or `None` for any.
    pub(super) predicate: Option<String>,
    /// The arguments from the left.
    pub(super) args: Vec<PatternValue>,
    /// What they say about the number of arguments.
    pub(super) arity: Arity,
}

/// What a selection's arguments say about the number of arguments of the facts it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arity {
    /// Facts have just as many: a pattern in a request body.
    Exact,
    /// Facts have as many or more: a query string, in which wildcards leave no trace.
    AtLeast,
}

/// The argument types of one predicate's facts, and where those facts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) id: i64,
    pub(super) predicate: String,
    pub(super) types: Vec<String>,
}

/// Why a visit ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// SQLite failed.
    Sql(rusqlite::Error),
    /// The visitor needs no more.
    Enough,
}

impl From<rusqlite::Error> for Halt {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Selection {
    /// Just the facts of `fact_type`.
    pub(super) fn of(fact_type: &FactType) -> Self {
        let pattern = fact_type.pattern();
        Self { predicate: Some(pattern.predicate), args: pattern.args, arity: Arity::Exact }
    }

    /// The shapes it means, in a fixed order.
    pub(super) fn shapes(&self, connection: &Connection) -> rusqlite::Result<Vec<Shape>> {
        let mut statement = connection
            .prepare_cached("SELECT id, predicate, types FROM shape WHERE ?1 IS NULL OR predicate = ?1 ORDER BY predicate, types")?;
        let shapes = statement.query_map([&self.predicate], |row| {
            let types: String = row.get(2)?;
            let types = serde_json::from_str(&types)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, error.into()))?;
            Ok(Shape { id: row.get(0)?, predicate: row.get(1)?, types })
        })?;
        shapes.filter(|shape| shape.as_ref().map_or(true, |shape| self.admits(&shape.types))).collect()
    }

    fn admits(&self, types: &[String]) -> bool {
        let arity = match self.arity {
            Arity::Exact => types.len() == self.args.len(),
            Arity::AtLeast => types.len() >= self.args.len(),
        };
        arity && self.args.iter().zip(types).all(|(arg, found)| arg.type_name.as_ref().is_none_or(|wanted| wanted == found))
    }

    /// The ids that are given, by position.
    fn bound(&self) -> Bound<'_> {
        let mut bound = [None; MAX_ARGUMENTS];
        for (slot, arg) in bound.iter_mut().zip(&self.args) {
            *slot = arg.id.as_deref();
        }
        bound
    }

    /// Calls `each` with the shape and the ids of every fact that is meant.
    pub(super) fn visit(&self, connection: &Connection, mut each: impl FnMut(&Shape, &[&str]) -> Result<(), Halt>) -> Result<(), Halt> {
        let bound = self.bound();
        for shape in self.shapes(connection)? {
            let arity = shape.types.len();
            let mut statement = connection.prepare_cached(&select(arity, &bound))?;
            let mut rows = statement.query(params_from_iter(parameters(shape.id, &bound)))?;
            while let Some(row) = rows.next()? {
                let mut ids = [""; MAX_ARGUMENTS];
                for (n, id) in ids[..arity].iter_mut().enumerate() {
                    *id = row.get_ref(n)?.as_str().map_err(rusqlite::Error::from)?;
                }
                each(&shape, &ids[..arity])?;
            }
        }
        Ok(())
    }

    /// How many facts are meant, counting no further than `cap`.
    pub(super) fn count(&self, connection: &Connection, cap: u64) -> rusqlite::Result<u64> {
        let bound = self.bound();
        let mut count = 0;
        for shape in self.shapes(connection)? {
            let mut statement = connection.prepare_cached(&count_up_to(shape.types.len(), &bound))?;
            let parameters = parameters(shape.id, &bound).chain([i64::try_from(cap - count).unwrap_or(i64::MAX).into()]);
            count += statement.query_row(params_from_iter(parameters), |row| row.get::<_, i64>(0))?.unsigned_abs();
            if count == cap {
                break;
            }
        }
        Ok(count)
    }

    /// Deletes the facts that are meant, and says how many they were.
    pub(super) fn delete(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let bound = self.bound();
        let mut deleted = 0;
        for shape in self.shapes(connection)? {
            let mut statement = connection.prepare_cached(&delete(shape.types.len(), &bound))?;
            deleted += statement.execute(params_from_iter(parameters(shape.id, &bound)))? as u64;
        }
        Ok(deleted)
    }
}

type Bound<'a> = [Option<&'a str>; MAX_ARGUMENTS];

fn select(arity: usize, bound: &Bound<'_>) -> String {
    format!("SELECT {} FROM {}", rotated(arity, 0).collect::<Vec<_>>().join(", "), range(arity, bound))
}

fn delete(arity: usize, bound: &Bound<'_>) -> String {
    format!("DELETE FROM {}", range(arity, bound))
}

fn count_up_to(arity: usize, bound: &Bound<'_>) -> String {
    format!("SELECT count(*) FROM (SELECT 1 FROM {} LIMIT ?)", range(arity, bound))
}

fn range(arity: usize, bound: &Bound<'_>) -> String {
    let index = match start(arity, bound) {
        // The name SQLite gives to a primary key.
        0 => format!("sqlite_autoindex_facts{arity}_1"),
        start => format!("facts{arity}_from{start}"),
    };
    let ids = (0..arity).filter(|&n| bound[n].is_some()).map(|n| format!(" AND i{n} = ?")).collect::<String>();
    format!("facts{arity} INDEXED BY {index} WHERE shape = ?{ids}")
}

fn parameters<'a>(shape: i64, bound: &Bound<'a>) -> impl Iterator<Item = rusqlite::types::ToSqlOutput<'a>> {
    std::iter::once(shape.into()).chain(bound.iter().flatten().copied().map(Into::into))
}

/// The position whose index has the most bound arguments in front.
fn start(arity: usize, bound: &Bound<'_>) -> usize {
    let run = |start: usize| (0..arity).take_while(|n| bound[(start + n) % arity].is_some()).count();
    (0..arity).rev().max_by_key(|&start| run(start)).unwrap_or(0)
}

/// `shape = ?` and every id: where one fact is.
pub(super) fn key(fact: &Fact, shape: i64) -> impl Iterator<Item = rusqlite::types::ToSqlOutput<'_>> {
    std::iter::once(shape.into()).chain(fact.args.iter().map(|arg| arg.id.as_str().into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::embedded::schema::open_writer;

    fn plan(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
        let nulls = vec![rusqlite::types::Null; statement.parameter_count()];
        let steps = statement.query_map(params_from_iter(nulls), |row| row.get(3)).expect(sql);
        steps.collect::<Result<_, _>>().expect(sql)
    }

    fn every_pattern() -> impl Iterator<Item = (usize, Bound<'static>)> {
        (1..=MAX_ARGUMENTS)
            .flat_map(|arity| (0..1 << arity).map(move |mask: usize| (arity, std::array::from_fn(|n| (mask >> n & 1 == 1).then_some("x")))))
    }

    #[test]
    fn every_pattern_is_one_search_of_an_index_with_no_sorting() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open_writer(&folder.path().join("facts.db")).expect("a new file opens");
        for (arity, bound) in every_pattern() {
            for sql in [select(arity, &bound), delete(arity, &bound)] {
                let steps = plan(&connection, &sql);
                assert_eq!(steps.len(), 1, "{sql}: {steps:?}");
                assert!(steps[0].starts_with("SEARCH"), "{sql}: {steps:?}");
                let run = (0..arity).take_while(|n| bound[(start(arity, &bound) + n) % arity].is_some()).count();
                assert_eq!(steps[0].matches("=?").count(), 1 + run, "{sql}: {steps:?}");
                assert_eq!(run == 0, bound.iter().all(Option::is_none), "{sql}: no id leads the index");
            }
            let steps = plan(&connection, &count_up_to(arity, &bound));
            assert!(!steps.iter().any(|step| step.starts_with("SCAN facts") || step.contains("TEMP")), "{steps:?}");
        }
    }

    #[test]
    fn up_to_three_arguments_every_bound_one_leads_the_index() {
        for (arity, bound) in every_pattern().filter(|(arity, _)| *arity <= 3) {
            let start = start(arity, &bound);
            let run = (0..arity).take_while(|n| bound[(start + n) % arity].is_some()).count();
            assert_eq!(run, bound.iter().flatten().count(), "{arity} {bound:?}");
        }
    }

    #[test]
    fn a_plan_that_scans_would_be_seen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let connection = open_writer(&folder.path().join("facts.db")).expect("a new file opens");
        let steps = plan(&connection, "SELECT i0 FROM facts2 WHERE i1 = 'x' ORDER BY i0");
        assert!(steps[0].starts_with("SCAN") && steps.len() == 2, "{steps:?}");
    }
}
