//! reset
use crate::cli::{Configs, Exit, Global};
use clap::Args;
#[derive(Debug, Args)]
pub(super) struct ResetArgs {
    #[command(flatten)]
    configs: Configs,
    /// Do it, instead of only naming what would go
    #[arg(long)]
    yes: bool,
}
pub(super) async fn run(_global: &Global, _args: &ResetArgs) -> anyhow::Result<Exit> {
    Ok(Exit::Done)
}
