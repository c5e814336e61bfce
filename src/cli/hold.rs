//! `factsync hold`: looking at what the guard of a running factsync holds, letting it go, or forgetting it.
//!
//! It asks over HTTP, as `status` does. What changes something, and what shows facts, presents the key: `OSO_AUTH` or `OSO_AUTH_FILE`, else
//! the public development key on this machine.

use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::cli::{
    Exit, Global, print,
    remote::{self, Answer},
    say, target,
};

/// How long an answer may take: a hold ends in one transaction, that of ten million facts takes minutes.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    #[command(subcommand)]
    command: HoldCommand,
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Print what is held, and why
    List {
        /// Also the facts, the first 1,000 of each hold
        #[arg(long)]
        facts: bool,
    },
    /// Let the removals go
    Release(Which),
    /// Forget the removals: the facts stay in the fact store until a comparison finds them, and judges them again
    Drop(Which),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The number that `list` prints
    id: Option<u64>,
    /// All that are there now
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(global: &Global, args: &HoldArgs) -> anyhow::Result<Exit> {
    // Also where one number is asked for: what has no holds at all says so better than "there is no hold 7".
    let answer = remote::ask(global, "/v1/holds", &[], PATIENCE).await?;
    if !answer.status.is_success() {
        return Ok(remote::refused(&answer));
    }
    match &args.command {
        HoldCommand::List { facts: false } => show(&answer.body),
        HoldCommand::List { facts: true } => list_facts(global, &numbers(&answer.body)).await,
        HoldCommand::Release(which) => end(global, which, &answer.body, "release").await,
        HoldCommand::Drop(which) => end(global, which, &answer.body, "drop").await,
    }
}

async fn list_facts(global: &Global, numbers: &[String]) -> anyhow::Result<Exit> {
    let mut held = Vec::with_capacity(numbers.len());
    for id in numbers {
        let answer = send(global, Method::GET, &format!("/v1/holds/{id}")).await?;
        match answer.status {
            status if status.is_success() => held.push(answer.body),
            // It has ended meanwhile.
            StatusCode::NOT_FOUND => {}
            _ => return Ok(remote::refused(&answer)),
        }
    }
    show(&json!({ "held": held }))
}

/// Ends one hold, or all of them; of these one that has ended meanwhile is no error, unless nothing is left to do.
async fn end(global: &Global, which: &Which, list: &Value, how: &str) -> anyhow::Result<Exit> {
    let numbers = which.id.map_or_else(|| numbers(list), |id| vec![id.to_string()]);
    let mut ended = Vec::with_capacity(numbers.len());
    for id in numbers {
        let answer = send(global, Method::POST, &format!("/v1/holds/{id}/{how}")).await?;
        match answer.status {
            status if status.is_success() => ended.push(answer.body),
            StatusCode::NOT_FOUND if which.all => {}
            _ => {
                // What was done is told in any case.
                if !ended.is_empty() {
                    show(&json!({ (past(how)): ended }))?;
                }
                return Ok(remote::refused(&answer));
            }
        }
    }
    if ended.is_empty() {
        say(&format!("error: nothing is held, so there is nothing to {how}"));
        return Ok(Exit::Failure);
    }
    show(&json!({ (past(how)): ended }))
}

fn past(how: &str) -> &'static str {
    if how == "drop" { "dropped" } else { "released" }
}

fn numbers(list: &Value) -> Vec<String> {
    let holds = list["held"].as_array().into_iter().flatten();
    holds.filter_map(|hold| hold["id"].as_u64().map(|id| id.to_string())).collect()
}

fn show(answer: &Value) -> anyhow::Result<Exit> {
    print(&format!("{}\n", serde_json::to_string_pretty(answer)?))?;
    Ok(Exit::Done)
}

async fn send(global: &Global, method: Method, path: &str) -> anyhow::Result<Answer> {
    let base = remote::base(global)?;
    let key = target::key_for(&base)?;
    // A redirect could take the key elsewhere.
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build()?;
    remote::send(client.request(method, format!("{base}{path}")).bearer_auth(key.expose_secret()), &base).await
}
