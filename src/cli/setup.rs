//! setup
use crate::cli::{Configs, Exit};
use clap::Args;
#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    #[command(flatten)]
    configs: Configs,
    /// Run the statements instead of printing them
    #[arg(long)]
    apply: bool,
}
pub(super) async fn run(_args: &SetupArgs) -> anyhow::Result<Exit> {
    Ok(Exit::Done)
}
