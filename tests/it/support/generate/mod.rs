//! Random applications: schemas, queries and transactions over domains so small that rows collide.
//!
//! A [`Case`] comes from a seed, prints as a script for `psql`, and shrinks: [`Case::shrink`] drops what a failure does not need. The
//! queries cover what incremental views can do ([`query::Class`]), the transactions what logical decoding can tell
//! ([`transaction`]).

pub(crate) mod expression;
pub(crate) mod query;
pub(crate) mod relation;
pub(crate) mod schema;
pub(crate) mod shrink;
pub(crate) mod transaction;
pub(crate) mod variant;

use std::fmt;

use super::{
    github::Random,
    postgres::{Cluster, Major},
};
use query::{Class, Query};
use schema::Schema;
use transaction::Transaction;
use variant::Variant;

/// An application and what happens in it.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) schema: Schema,
    pub(crate) queries: Vec<Query>,
    pub(crate) transactions: Vec<Transaction>,
}

impl Case {
    /// A random one with a query of each of `classes`.
    pub(crate) fn new(random: &mut Random, classes: &[Class], transactions: usize) -> Self {
        let schema = Schema::new(random);
        let queries = classes.iter().map(|class| Query::new(random, &schema, *class)).collect();
        let transactions = (0..transactions).map(|_| Transaction::new(random, &schema)).collect();
        Self { schema, queries, transactions }
    }
}

/// Prints the case if the test panics while this is held.
pub(crate) struct OnPanic<'a>(pub(crate) &'a Case);

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.schema.ddl())?;
        for (number, query) in self.queries.iter().enumerate() {
            writeln!(f, "-- q{number}, {:?}\n{};", query.class, query.sql)?;
        }
        for (number, transaction) in self.transactions.iter().enumerate() {
            writeln!(f, "-- transaction {number}\n{}", transaction.sql())?;
        }
        Ok(())
    }
}

impl Random {
    /// One of `choices`.
    pub(crate) fn one<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// True in one of `of` cases.
    pub(crate) fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }
}

#[tokio::test]
async fn generated_cases_are_valid_and_do_something() {
    let mut random = Random::new("generated cases");
    let cluster = Cluster::start_with(Major::V15, &[("jit", "off")]);
    let (mut rows, mut done, mut all) = (0, 0, 0);
    for _ in 0..10 {
        let case = Case::new(&mut random, &Class::ALL, 40);
        let client = cluster.client(&cluster.database()).await;
        client.batch_execute(&case.schema.ddl()).await.unwrap_or_else(|error| panic!("{error:?}\n{case}"));
        let shadow = cluster.client(&cluster.database()).await;
        shadow.batch_execute(&case.schema.shadow_ddl()).await.unwrap_or_else(|error| panic!("{error:?}\n{case}"));
        for transaction in &case.transactions {
            all += 1;
            match client.batch_execute(&transaction.sql()).await {
                Ok(()) => done += 1,
                Err(error) => {
                    let state = error.code().map(|code| code.code()).unwrap_or_default();
                    assert!(state.starts_with("23"), "{error:?} in {}", transaction.sql());
                    client.batch_execute("ROLLBACK").await.expect("rolled back");
                }
            }
        }
        let variants = case.queries.iter().flat_map(|query| Variant::ALL.into_iter().filter_map(|variant| variant.of(query)));
        for query in case.queries.iter().cloned().chain(variants) {
            let result = client.simple_query(&query.sql).await.unwrap_or_else(|error| panic!("{error:?}\n{case}\n{}", query.sql));
            rows += result.len();
        }
    }
    assert!(done * 10 > all * 8, "of {all} transactions {done} committed");
    assert!(rows > 1_000, "the queries return {rows} rows");
}
