//! What one transaction, or one row, makes of many facts costs time and disk, not memory.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::assert_incremental;
use crate::support::{
    app::{App, fact_type},
    factsync::Process,
};

const SCHEMA: &str = "
CREATE TABLE item (id int PRIMARY KEY, shelf int NOT NULL, label text NOT NULL);
CREATE TABLE shelf (id int PRIMARY KEY, open boolean NOT NULL);
CREATE INDEX ON item (shelf);
INSERT INTO shelf SELECT i, true FROM generate_series(1, 10) AS i";

const LABELLED: &str = "is_labelled(Item:_, String:_)";
const OPEN: &str = "is_open(Item:_)";
const FACTS: [(&str, &str); 2] =
    [(LABELLED, "SELECT id, label FROM item"), (OPEN, "SELECT i.id FROM item AS i JOIN shelf AS s ON s.id = i.shelf WHERE s.open")];

/// About that many row changes, and a third as many facts.
fn changes() -> u32 {
    if std::env::var_os("FACTSYNC_LONG").is_some() { 3_000_000 } else { 300_000 }
}

/// The most the process may take, in MiB: the product's bound with join state. Measured in a debug build with the embedded fact store:
/// 47 at first, 95 after 300,000 row changes, 105 after the fan-out.
const MOST: u64 = 150;

/// The most memory the process ever had resident, in MiB.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kB") / 1024
}

/// `/v1/wait` for as long as it takes in a debug build.
async fn settle(app: &App, process: &Process) {
    process.wait_position(&app.position().await).await;
}

/// The number and a checksum of the facts of `predicate`.
async fn held(process: &Process, predicate: &str) -> String {
    let facts = process.facts(predicate).await;
    let id = |arg: &Value| arg["id"].as_str().expect("an id").to_owned();
    let ids = |fact: &Value| fact["args"].as_array().expect("arguments").iter().map(id).collect::<Vec<_>>().join("|");
    let mut lines: Vec<String> = facts.iter().map(ids).collect();
    lines.sort_unstable();
    let sum = Sha256::digest(lines.join("\n"));
    format!("{} {}", lines.len(), sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

async fn assert_equal(app: &App, process: &Process, context: &str) {
    for ((predicate, signature), line) in
        [("is_labelled", LABELLED), ("is_open", OPEN)].into_iter().zip(["concat_ws('|', id, label)", "id::text"])
    {
        let query = FACTS.iter().find(|(one, _)| *one == signature).expect("a fact type").1;
        let lines = format!("SELECT DISTINCT {line} AS line FROM ({query}) AS q");
        let text = "convert_to(COALESCE(string_agg(line, chr(10) ORDER BY line COLLATE \"C\"), ''), 'UTF8')";
        let sql = format!("SELECT count(*) || ' ' || encode(sha256({text}), 'hex') FROM ({lines}) AS lines");
        let (wanted, held) = (app.ask(&sql).await, held(process, predicate).await);
        assert_eq!(held, wanted, "{context}: {signature} holds the left, the query returns the right");
        let status = process.status().await;
        let counted = fact_type(&status, signature)["facts"].to_string();
        assert!(wanted.starts_with(&format!("{counted} ")), "{context}: {counted} are counted, {wanted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_a_large_transaction_and_a_fan_out() {
    let app = App::start(SCHEMA, &FACTS, "").await;
    // What is too much to remove without asking is another matter.
    let process = app.started(&["--allow-removals"]).await;
    app.settle(&process).await;
    assert_incremental(&process, FACTS.len()).await;
    let start = peak(&process);
    let third = changes() / 3;

    // As many inserts, updates and deletes, and what a savepoint takes back. Every other item goes again; the rest stands on one shelf.
    let transaction = format!(
        "BEGIN;
         INSERT INTO item SELECT i, 2, 'l' || i FROM generate_series(1, {third}) AS i;
         SAVEPOINT s;
         UPDATE item SET label = 'lost'; DELETE FROM item WHERE id % 3 = 0;
         ROLLBACK TO s;
         UPDATE item SET shelf = 1, label = label || '.';
         DELETE FROM item WHERE id % 2 = 0;
         INSERT INTO item SELECT i, 1, 'm' || i FROM generate_series({third} + 1, {third} + {third} / 2) AS i;
         COMMIT"
    );
    let began = std::time::Instant::now();
    app.sql(&transaction).await;
    settle(&app, &process).await;
    let large = peak(&process);
    eprintln!("peak {start} MiB at first, {large} MiB after {} row changes, in {:?}", changes(), began.elapsed());

    let began = std::time::Instant::now();
    app.sql("UPDATE shelf SET open = false WHERE id = 1").await;
    settle(&app, &process).await;
    let fan_out = peak(&process);
    eprintln!("peak {fan_out} MiB after {third} facts flipped, in {:?}", began.elapsed());
    assert!(fan_out <= MOST, "{start} MiB at first, {large} MiB after the transaction, {fan_out} MiB after the fan-out");
    // Listing all facts costs what it costs, so it comes after.
    assert_eq!(app.ask("SELECT count(*) FROM item").await, third.to_string());
    assert_equal(&app, &process, "closed").await;

    app.sql("UPDATE shelf SET open = true WHERE id = 1; UPDATE item SET shelf = 3 WHERE id < 100").await;
    settle(&app, &process).await;
    assert_equal(&app, &process, "open again").await;
}
