//! `factsync explain`: per fact type how it is kept up to date and why; changes nothing.

use std::sync::Arc;

use crate::{
    cli::{Configs, Exit, Global, load_sources, print},
    config::{MongoConfig, PostgresConfig, SourceConfig, SourceKind},
    error::causes,
    source::{
        csv, mongo,
        postgres::{self, ExplainedView, Explanation, Published, TableUse},
    },
};

pub(super) async fn run(global: &Global, args: &Configs) -> anyhow::Result<Exit> {
    let config = load_sources(global, args)?;
    let mut exit = Exit::Done;
    for source in &config.sources {
        let explained = match &source.kind {
            SourceKind::Postgres(postgres) => explain_postgres(source, postgres).await,
            SourceKind::Mongo(mongo) => explain_mongo(source, mongo).await,
            SourceKind::Csv(_) => Ok(explain_all(source, "refresh", csv::REFRESH_REASON)),
        };
        let text = explained.unwrap_or_else(|error| {
            exit = Exit::Failure;
            format!("source \"{}\" cannot be explained: {error}\n\n", source.name)
        });
        print(&text)?;
    }
    Ok(exit)
}

async fn explain_postgres(source: &SourceConfig, config: &PostgresConfig) -> Result<String, String> {
    let Explanation { views, slot, publication } = postgres::explain(&source.name, config).await.map_err(|error| causes(&error))?;
    let mut text = format!("source \"{}\" (postgres)\n", source.name);
    for (fact_type, view) in source.fact_types().into_iter().zip(&views) {
        text.push_str(&format!("  {fact_type}\n"));
        match view {
            Ok(view) => text.push_str(&explain_view(view)),
            Err(problem) => text.push_str(&format!("    mode: refused, {problem}\n")),
        }
    }
    text.push_str(&format!("  slot: {slot}\n  publication: {slot}\n"));
    text.extend(publication.iter().map(|Published { schema, name, columns }| {
        let columns = columns.as_ref().map_or_else(|| "all columns".to_owned(), join);
        format!("    {schema}.{name}: {columns}\n")
    }));
    text.push('\n');
    Ok(text)
}

fn explain_view(explained: &ExplainedView) -> String {
    let ExplainedView { mode, reason, view } = explained;
    let columns: Vec<String> = view.columns.iter().map(|(name, type_name)| format!("{name} {type_name}")).collect();
    let mut text = format!("    mode: {mode}, {reason}\n    result: {}\n", join(&columns));
    text.extend(view.tables.values().map(|TableUse { schema, name, columns }| format!("    reads {schema}.{name}: {}\n", join(columns))));
    text
}

async fn explain_mongo(source: &SourceConfig, config: &Arc<MongoConfig>) -> Result<String, String> {
    let views = mongo::explain(&source.name, config.clone()).await.map_err(|error| causes(&error))?;
    let views = source
        .fact_types()
        .into_iter()
        .zip(&views)
        .map(|(fact_type, view)| format!("  {fact_type}\n    mode: {}, {}\n    reads {}\n", view.mode, view.reason, join(&view.reads)));
    let collections = views.collect::<String>();
    Ok(format!("source \"{}\" ({})\n{collections}  change stream: on the whole database\n\n", source.name, source.kind_name()))
}

fn explain_all(source: &SourceConfig, mode: &str, reason: &str) -> String {
    let views = source.fact_types().into_iter().map(|fact_type| format!("  {fact_type}\n    mode: {mode}, {reason}\n"));
    format!("source \"{}\" ({})\n{}\n", source.name, source.kind_name(), views.collect::<String>())
}

fn join<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
    if names.is_empty() { "no column".to_owned() } else { names.join(", ") }
}
