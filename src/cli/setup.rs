//! `factsync setup`: what an administrator has to run once, printed, or for PostgreSQL also run.

use clap::Args;

use crate::{
    cli::{Configs, Exit, Global, load_sources, print, say},
    config::{MongoConfig, PostgresConfig, SourceConfig, SourceKind},
    error::causes,
    source::{SourceError, mongo, postgres},
};

#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    #[command(flatten)]
    configs: Configs,
    /// Run the statements, as the user of the connection string, in place of printing them
    #[arg(long)]
    apply: bool,
    /// The role that factsync will connect as, if it is another one than that of the connection string
    #[arg(long, value_name = "NAME")]
    role: Option<String>,
}

pub(super) async fn run(global: &Global, args: &SetupArgs) -> anyhow::Result<Exit> {
    let config = load_sources(global, &args.configs)?;
    let mut exit = Exit::Done;
    for source in &config.sources {
        let done = match &source.kind {
            SourceKind::Postgres(postgres) => set_up_postgres(source, postgres, args).await?,
            SourceKind::Mongo(mongo) => print_mongo(source, mongo, args)?,
            SourceKind::Csv(_) => {
                say(&format!("source \"{}\" ({}) needs no setup", source.name, source.kind_name()));
                Ok(())
            }
        };
        if let Err(problem) = done {
            say(&format!("error: {problem}"));
            exit = Exit::Failure;
        }
    }
    Ok(exit)
}

async fn set_up_postgres(source: &SourceConfig, config: &PostgresConfig, args: &SetupArgs) -> anyhow::Result<Result<(), String>> {
    let applied = async {
        let script = postgres::setup_sql(&source.name, config, args.role.as_deref()).await?;
        if args.apply {
            postgres::apply_setup(&source.name, config, &script).await?;
        }
        Ok::<String, SourceError>(script)
    };
    match applied.await {
        Ok(_) if args.apply => say(&format!("source \"{}\" is set up", source.name)),
        Ok(script) => print(&format!("-- source \"{}\"\n{script}", source.name))?,
        Err(error) => return Ok(Err(causes(&error))),
    }
    Ok(Ok(()))
}

/// Only prints: a password is asked for, and whoever may make roles is not who follows the database.
fn print_mongo(source: &SourceConfig, config: &MongoConfig, args: &SetupArgs) -> anyhow::Result<Result<(), String>> {
    match mongo::setup_script(&source.name, config, args.role.as_deref()) {
        Ok(script) => print(&format!("// source \"{}\"\n{script}", source.name))?,
        Err(error) => return Ok(Err(causes(&error))),
    }
    let unapplied = format!("source \"{}\" is MongoDB, which --apply does not set up: an administrator runs this in mongosh", source.name);
    Ok(if args.apply { Err(unapplied) } else { Ok(()) })
}
