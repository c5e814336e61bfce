//! explain
use crate::cli::{Configs, Exit};
pub(super) async fn run(_args: &Configs) -> anyhow::Result<Exit> {
    Ok(Exit::Done)
}
