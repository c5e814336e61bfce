//! Queries become plans, and plans mean what the queries mean.
//!
//! Every query is analysed by a real server. A plan is evaluated by its definition over the tables' rows and compared with what the server
//! returns for the query, over rows with many NULLs and duplicates, and again after changes. A query without a plan must give its reason.

#[path = "binding/queries.rs"]
mod queries;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use factsync::{
    config::{Place, PostgresConfig, SecretString, View},
    data::Row,
    query::{RemoteExpr, ViewPlan, naive},
    source::postgres::{AnalysedView, explain},
};
use tokio::{runtime::Handle, task::block_in_place};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::{
    github::Github,
    postgres::{Cluster, Major},
};

type Rows = BTreeSet<Vec<Option<String>>>;

/// The settings under which cells have the text that plans expect.
const SETTINGS: &str = "SET DateStyle = 'ISO,MDY'; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3";

/// A server with tables full of NULLs and duplicates.
struct Fixture {
    url: String,
    client: Client,
    /// Stops when dropped.
    _cluster: Cluster,
}

impl Fixture {
    async fn start(major: Major) -> Self {
        let cluster = Cluster::start(major);
        let database = cluster.database();
        cluster.psql(&database, queries::SCHEMA);
        let client = cluster.client(&database).await;
        client.batch_execute(SETTINGS).await.expect("settings");
        client.batch_execute(queries::ROWS).await.expect("rows");
        Self { url: cluster.url(&database), client, _cluster: cluster }
    }
}

/// What the server says about the queries, one view each.
async fn analyse(url: &str, client: &Client, queries: &[&str]) -> Vec<AnalysedView> {
    let mut views = Vec::new();
    for query in queries {
        let width = client.prepare(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}")).columns().len();
        let signature = format!("has_relation({})", vec!["Thing:_"; width].join(", "));
        views.push(View {
            fact_type: signature.parse().expect("a signature"),
            place: Place { file: PathBuf::from("test.yaml"), line: 1, column: 1 },
            query: (*query).to_owned(),
        });
    }
    let connection_string = SecretString::from(url.to_owned());
    let config = PostgresConfig { connection_string, ssl: None, slot: "factsync".to_owned(), views };
    let explanation = explain("app_db", &config).await.expect("analysed");
    let views = explanation.views.into_iter().zip(queries);
    views.map(|(view, query)| view.unwrap_or_else(|problem| panic!("{query}: {problem}")).view).collect()
}

async fn simple(client: &Client, query: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()),
        _ => None,
    });
    rows.collect()
}

/// The rows of a plan's tables.
async fn tables(client: &Client, plan: &ViewPlan) -> BTreeMap<u32, Vec<Row>> {
    let mut tables = BTreeMap::new();
    for (oid, table) in &plan.tables {
        let names = format!("SELECT attnum, quote_ident(attname) FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 ORDER BY attnum");
        let names: BTreeMap<i16, String> = simple(client, &names)
            .await
            .into_iter()
            .map(|row| (row[0].as_deref().expect("a number").parse().expect("a number"), row[1].clone().expect("a name")))
            .collect();
        let columns: Vec<&str> = table.columns.iter().map(|number| names[number].as_str()).collect();
        let rows = simple(client, &format!("SELECT {} FROM {}", columns.join(", "), table.title)).await;
        tables.insert(*oid, rows.iter().map(|row| Row::from_cells(row.iter().map(Option::as_deref))).collect());
    }
    tables
}

/// What the source computes for an expression over values.
fn compute(client: &Client, expr: &RemoteExpr, values: &[Option<String>]) -> Option<String> {
    let mut sql = expr.sql.clone();
    for (place, (value, of)) in values.iter().zip(&expr.types).enumerate().rev() {
        let literal = value.as_ref().map_or("NULL".to_owned(), |value| format!("'{}'", value.replace('\'', "''")));
        sql = sql.replace(&format!("${}", place + 1), &format!("CAST({literal} AS {of})"));
    }
    let rows = block_in_place(|| Handle::current().block_on(simple(client, &format!("SELECT {sql}"))));
    rows[0][0].clone()
}

/// The plan's result, by its definition.
async fn evaluate(client: &Client, plan: &ViewPlan) -> Rows {
    let tables = tables(client, plan).await;
    let now = simple(client, "SELECT (extract(epoch FROM now() - '2000-01-01 00:00+00'::timestamptz) * 1000000)::bigint").await;
    let now = now[0][0].as_deref().expect("a time").parse().expect("microseconds");
    let mut remote = |expr: &RemoteExpr, values: &[Option<String>]| compute(client, expr, values);
    let rows = naive::evaluate(plan, &tables, now, &mut remote).expect("evaluated");
    rows.keys().map(Row::cells).collect()
}

/// What the server returns, with booleans as facts have them.
async fn oracle(client: &Client, query: &str, view: &AnalysedView) -> Rows {
    let rows = simple(client, query).await.into_iter().map(|row| {
        let cells = row.into_iter().zip(&view.columns).map(|(cell, (_, of))| match (cell.as_deref(), of.as_str()) {
            (Some("t"), "bool") => Some("true".to_owned()),
            (Some("f"), "bool") => Some("false".to_owned()),
            _ => cell,
        });
        cells.collect()
    });
    rows.collect()
}

/// Compares every plan with its query, over the rows at hand and after each of some changes.
async fn plans_mean_their_queries(client: &Client, queries: &[&str], views: &[AnalysedView], changes: &[&str]) {
    let mut silent: BTreeSet<&str> = queries.iter().copied().collect();
    for change in std::iter::once(&"").chain(changes) {
        client.batch_execute(change).await.unwrap_or_else(|error| panic!("{change}: {error:?}"));
        client.batch_execute("BEGIN").await.expect("begun");
        for (query, view) in queries.iter().zip(views) {
            let plan = view.plan.as_ref().unwrap_or_else(|reason| panic!("{query}\nhas no plan because {reason}"));
            let (got, want) = (evaluate(client, plan).await, oracle(client, query, view).await);
            if !want.is_empty() {
                silent.remove(query);
            }
            assert_eq!(got, want, "after {change:?}: the plan's result is left, the query's right\n{query}\n{plan}");
        }
        client.batch_execute("COMMIT").await.expect("ended");
    }
    assert!(silent.is_empty(), "a query that never returns a row proves nothing: {silent:#?}");
}

async fn every_class_of_query_binds(major: Major) {
    let fixture = Fixture::start(major).await;
    let queries: Vec<&str> = queries::INCREMENTAL.iter().map(|(query, _)| *query).collect();
    let views = analyse(&fixture.url, &fixture.client, &queries).await;
    let mut problems = Vec::new();
    for ((query, operators), view) in queries::INCREMENTAL.iter().zip(&views) {
        match &view.plan {
            Err(reason) => problems.push(format!("{query}\n  because {reason}")),
            Ok(plan) => {
                let outline = plan.to_string();
                let missing: Vec<_> = operators.split(';').filter(|operator| !outline.contains(operator.trim())).collect();
                if !missing.is_empty() {
                    problems.push(format!("{query}\n  lacks {missing:?} in\n{outline}"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    plans_mean_their_queries(&fixture.client, &queries, &views, queries::CHANGES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_class_of_query_becomes_a_plan_that_means_it() {
    every_class_of_query_binds(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_class_of_query_becomes_a_plan_that_means_it_on_18() {
    every_class_of_query_binds(Major::V18).await;
}

async fn reasons_are_named(major: Major) {
    let fixture = Fixture::start(major).await;
    let mut cases = queries::REFRESH.to_vec();
    if major == Major::V15 {
        fixture.client.batch_execute(queries::ICU_SCHEMA).await.expect("ICU");
        cases.extend(queries::ICU_REFRESH);
    }
    let queries: Vec<&str> = cases.iter().map(|(query, _)| *query).collect();
    let views = analyse(&fixture.url, &fixture.client, &queries).await;
    let mut problems = Vec::new();
    for ((query, wanted), view) in cases.iter().zip(&views) {
        match &view.plan {
            Ok(plan) => problems.push(format!("{query}\n  has a plan:\n{plan}")),
            Err(reason) if reason.contains(wanted) => {}
            Err(reason) => problems.push(format!("{query}\n  because {reason}\n  and not {wanted}")),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_without_a_plan_says_why() {
    reasons_are_named(Major::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_without_a_plan_says_why_on_18() {
    reasons_are_named(Major::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_of_the_example_is_incremental() {
    let github = Github::start(Major::V18).await;
    github.client.batch_execute(SETTINGS).await.expect("settings");
    let queries: Vec<String> = github.views().into_iter().map(|view| view.query).collect();
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    let views = analyse(&github.url(), &github.client, &queries).await;
    plans_mean_their_queries(&github.client, &queries, &views, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fingerprint_changes_with_what_its_view_depends_on_and_with_nothing_else() {
    let fixture = Fixture::start(Major::V15).await;
    let queries = ["SELECT id FROM repo WHERE role = 'admin'", "SELECT id, parent FROM folder"];
    let fingerprints = async || -> Vec<String> {
        analyse(&fixture.url, &fixture.client, &queries).await.into_iter().map(|view| view.fingerprint).collect()
    };
    let before = fingerprints().await;
    let cases = [
        ("ALTER TABLE repo ADD COLUMN unused text", false, false),
        ("ALTER TYPE role RENAME VALUE 'read' TO 'reader'", true, false),
        ("ALTER TABLE folder ALTER parent TYPE bigint", false, true),
        ("ALTER TABLE folder REPLICA IDENTITY FULL", false, true),
        ("ALTER TABLE folder ALTER owner TYPE bigint", false, false),
    ];
    let mut last = before;
    for (change, first, second) in cases {
        fixture.client.batch_execute(change).await.expect(change);
        let now = fingerprints().await;
        assert_eq!((now[0] != last[0], now[1] != last[1]), (first, second), "{change}");
        last = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_nesting_overflows_the_stack() {
    let fixture = Fixture::start(Major::V15).await;
    let chain = |length: usize| format!("SELECT title{} FROM repo", " || title".repeat(length));
    let views = |depth: usize| format!("SELECT id FROM {}repo{}", "(SELECT id FROM ".repeat(depth), ") x".repeat(depth));
    let queries = [chain(150), views(60), chain(2_000), views(300)];
    let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
    let views = analyse(&fixture.url, &fixture.client, &queries).await;
    let deep = |view: &AnalysedView| view.plan.as_ref().err().is_some_and(|reason| reason.contains("nested too deeply"));
    assert_eq!(views.iter().map(deep).collect::<Vec<_>>(), [false, false, true, true]);
    assert!(views[0].plan.is_ok() && views[1].plan.is_ok(), "{:?}", views[0].plan);
}
