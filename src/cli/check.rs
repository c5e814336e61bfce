//! check
use crate::cli::{Configs, Exit, Global};
use clap::Args;
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    configs: Configs,
    /// Judge only the files, without connecting to anything
    #[arg(long)]
    offline: bool,
    /// Let the database at this URL judge the queries of local-authorization files
    #[arg(long, value_name = "URL")]
    db: Option<String>,
}
pub(super) async fn run(_global: &Global, _args: &CheckArgs) -> anyhow::Result<Exit> {
    Ok(Exit::Done)
}
