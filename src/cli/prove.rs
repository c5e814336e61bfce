//! `factsync prove` and `factsync reconcile --live`: source, desired facts and fact store compared at one position.
//!
//! Both ask the factsync that runs at `--listen`, which goes on meanwhile and tells nothing that is only late: only a process that follows
//! the sources knows what is desired at which position and what is on its way. Where none runs, `reconcile` compares the two ends.
//!
//! # What the signature says
//!
//! The report is one line of JSON, and the line after it its signature:
//!
//! ```json
//! {"type":"signature","sha256":"…","hmac_sha256":"…"}
//! ```
//!
//! `sha256` is that of the first line without its line feed, as `head -n 1 report | tr -d '\n' | sha256sum` computes it: who was told that
//! number elsewhere sees that the report is the one that was made. Anybody could have made it. `hmac_sha256` is an HMAC of the same bytes
//! with the key of the fact store (`OSO_AUTH`): who holds the key can check with
//! `openssl dgst -sha256 -hmac "$OSO_AUTH"` that whoever made the report held it, too. It does not say which of the holders that was, and
//! it is missing where the key is the public development key. Of the facts themselves the digests of the three sets tell whoever has them
//! (`reconcile/digest.rs`).

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hmac::{Hmac, Mac};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    cli::{Exit, Global, print, remote, say, target},
    reconcile::hex,
};

/// How long an audit may take: ten million facts are listed and read in minutes, from a fact store far away in tens of them.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// Audits until one judges everything: a refreshed fact type that was about to be read again has been by then.
const MOST_AUDITS: u32 = 5;
/// Between two of them.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct ProveArgs {}

pub(super) async fn run(global: &Global, _: &ProveArgs) -> anyhow::Result<Exit> {
    let Some(report) = ask(global, false).await? else { return Ok(Exit::Failure) };
    let line = serde_json::to_string(&report)?;
    let mut signature = json!({ "type": "signature", "sha256": hex(&Sha256::digest(&line)) });
    if let Some(key) = target::own_key()? {
        let mut mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()).context("could not sign with this key")?;
        mac.update(line.as_bytes());
        signature["hmac_sha256"] = hex(&mac.finalize().into_bytes()).into();
    }
    print(&format!("{line}\n{signature}\n"))?;
    summarize(&report);
    Ok(judge(&report))
}

/// `reconcile --live`.
pub(super) async fn live(global: &Global, repair: bool, exit_code: bool) -> anyhow::Result<Exit> {
    let Some(report) = ask(global, repair).await? else { return Ok(Exit::Failure) };
    print(&format!("{report}\n"))?;
    summarize(&report);
    Ok(match judge(&report) {
        Exit::Drift if !exit_code => Exit::Done,
        exit => exit,
    })
}

/// What the factsync at `--listen` finds; `None` after its refusal was told.
async fn ask(global: &Global, repair: bool) -> anyhow::Result<Option<Value>> {
    let base = remote::base(global)?;
    let key = target::key_for(&base)?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    for audits in 1.. {
        let request = client.request(Method::POST, format!("{base}/v1/audit?repair={repair}")).bearer_auth(key.expose_secret());
        let answer = remote::send(request, &base).await?;
        if answer.status != StatusCode::OK {
            remote::refused(&answer);
            break;
        }
        if answer.body["verdict"] != "unjudged" || audits == MOST_AUDITS {
            return Ok(Some(answer.body));
        }
        tokio::time::sleep(AGAIN).await;
    }
    Ok(None)
}

/// Tells a person what is in a report.
fn summarize(report: &Value) {
    let each = |of: &Value| of.as_array().cloned().unwrap_or_default();
    for source in each(&report["sources"]) {
        let text = |key: &str| source[key].as_str().unwrap_or("?").to_owned();
        say(&format!(
            "{}: {} at {} ({}), {} ms, stream held up for {} ms",
            text("source"),
            text("verdict"),
            text("position"),
            text("identity"),
            source["took_ms"],
            source["held_up_ms"]
        ));
        for audit in each(&source["fact_types"]) {
            let of = |set: &str| audit[set]["facts"].as_u64().map_or_else(|| "?".to_owned(), |facts| facts.to_string());
            let drift: Vec<String> = audit["drift"]
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, facts)| **facts != 0)
                .map(|(class, facts)| format!("{facts} {}", class.replace('_', " ")))
                .collect();
            let mut line = format!(
                "  {}: {} in the source, {} desired, {} stored",
                audit["fact_type"].as_str().unwrap_or("?"),
                of("source"),
                of("desired"),
                of("stored")
            );
            for (what, number) in [("held", &audit["held"]), ("on their way", &audit["on_their_way"])] {
                if number != 0 {
                    line += &format!(", {number} {what}");
                }
            }
            line += &if drift.is_empty() { ", no drift".to_owned() } else { format!(", DRIFT: {}", drift.join(", ")) };
            if let Some(why) = audit["unjudged"].as_str() {
                line += &format!("; not compared with its source: {why}");
            }
            say(&line);
        }
    }
    for failed in each(&report["failed"]) {
        say(&format!("{}: could not be audited: {}", failed["source"].as_str().unwrap_or("?"), failed["error"].as_str().unwrap_or("?")));
    }
}

fn judge(report: &Value) -> Exit {
    match report["verdict"].as_str() {
        Some("equal") => Exit::Done,
        Some("drift") => Exit::Drift,
        // Whoever wants a proof has none.
        _ => Exit::Failure,
    }
}
