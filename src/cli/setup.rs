//! `factsync setup`: the SQL an administrator needs, printed or run.

use clap::Args;

use crate::{
    cli::{Configs, Exit, Global, load_sources, print, say},
    config::SourceKind,
    error::causes,
    source::postgres,
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
        let SourceKind::Postgres(postgres) = &source.kind else {
            say(&format!("source \"{}\" ({}) needs no setup", source.name, source.kind_name()));
            continue;
        };
        let applied = async {
            let script = postgres::setup_sql(&source.name, postgres, args.role.as_deref()).await?;
            if args.apply {
                postgres::apply_setup(&source.name, postgres, &script).await?;
            }
            Ok::<String, crate::source::SourceError>(script)
        };
        match applied.await {
            Ok(_) if args.apply => say(&format!("source \"{}\" is set up", source.name)),
            Ok(script) => print(&format!("-- source \"{}\"\n{script}", source.name))?,
            Err(error) => {
                say(&format!("error: {}", causes(&error)));
                exit = Exit::Failure;
            }
        }
    }
    Ok(exit)
}
