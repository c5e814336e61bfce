//! `factsync status` and `factsync wait`: asking a running factsync.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use reqwest::StatusCode;
use serde_json::Value;

use crate::{
    cli::{Exit, Global, Misuse, duration, print, say},
    data::Position,
    server::LONGEST_WAIT,
};

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// What pg_current_wal_lsn() returned after the commit, a MongoDB cluster time (SECONDS:INCREMENT), or a CSV file's SHA-256
    #[arg(long)]
    position: Position,
    /// The source, if the configuration has several: the name under dbs, or the CSV file's path
    #[arg(long)]
    source: Option<String>,
    /// How long to wait
    #[arg(long, default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

/// How much longer than the wait itself the answer may take.
const MARGIN: Duration = Duration::from_secs(2);
/// Between a wait that was in vain and the next one.
const AGAIN: Duration = Duration::from_millis(500);
/// The most an answer may have: a status of ten thousand fact types.
const MOST_BYTES: usize = 16 << 20;

pub(super) async fn status(global: &Global) -> anyhow::Result<Exit> {
    let answer = ask(global, "/v1/status", &[], MARGIN).await?;
    if !answer.status.is_success() {
        return Ok(refused(&answer));
    }
    print(&format!("{}\n", serde_json::to_string_pretty(&answer.body)?))?;
    Ok(Exit::Done)
}

pub(super) async fn wait(global: &Global, args: &WaitArgs) -> anyhow::Result<Exit> {
    let began = Instant::now();
    let mut left = args.timeout;
    loop {
        let patience = left.min(LONGEST_WAIT);
        let mut query = vec![("position", args.position.to_string()), ("timeout_ms", patience.as_millis().to_string())];
        query.extend(args.source.iter().map(|source| ("source", source.clone())));
        let answer = ask(global, "/v1/wait", &query, patience + MARGIN).await?;
        if answer.status.is_success() {
            print(&format!("{}\n", answer.body))?;
            return Ok(Exit::Done);
        }
        // One request cannot wait for longer than this; who has more patience asks again.
        if answer.status != StatusCode::GATEWAY_TIMEOUT || left <= LONGEST_WAIT {
            return Ok(refused(&answer));
        }
        // Between here and there may be a proxy that gives up at once.
        tokio::time::sleep(AGAIN).await;
        left = args.timeout.saturating_sub(began.elapsed());
    }
}

/// Tells why there is no result.
pub(super) fn refused(answer: &Answer) -> Exit {
    say(&format!("error: {}", answer.body["message"].as_str().unwrap_or("no reason given")));
    Exit::Failure
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

/// Asks for what every `factsync run` has.
pub(super) async fn ask(global: &Global, path: &str, query: &[(&str, String)], timeout: Duration) -> anyhow::Result<Answer> {
    let pairs = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let base = base(global)?;
    let client = reqwest::Client::builder().timeout(timeout).build()?;
    let answer = send(client.get(format!("{base}{path}?{pairs}")), &base).await?;
    anyhow::ensure!(
        answer.status != StatusCode::NOT_FOUND,
        "what answers at {base} follows no source: `factsync serve` is a fact store alone. Ask a `factsync run`"
    );
    Ok(answer)
}

/// Where the factsync is that is asked.
pub(super) fn base(global: &Global) -> Result<String, Misuse> {
    Ok(match global.target.as_deref() {
        Some("embedded") | None => format!("http://{}", global.listen),
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => url.trim_end_matches('/').to_owned(),
        // Not repeated, because it may hold a password.
        Some(_) => return Err(Misuse("--target is no URL; expected one such as http://127.0.0.1:7878".to_owned())),
    })
}

/// Sends a request to the factsync at `base`.
pub(super) async fn send(request: reqwest::RequestBuilder, base: &str) -> anyhow::Result<Answer> {
    let unreachable = || format!("could not ask the factsync at {base}. Is `factsync run` running there? --listen says where it is");
    let mut response = request.send().await.with_context(unreachable)?;
    let status = response.status();
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.with_context(unreachable)? {
        bytes.extend_from_slice(&chunk);
        anyhow::ensure!(bytes.len() <= MOST_BYTES, "what answers at {base} is not factsync: it answers more than {MOST_BYTES} bytes");
    }
    let body = serde_json::from_slice(&bytes).with_context(|| format!("what answers at {base} is not factsync"))?;
    Ok(Answer { status, body })
}
