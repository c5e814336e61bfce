//! A disk that is full: it is named, nothing is broken, and the next start with space goes on.

use super::disk::Disk;
use crate::support::{
    eventually_async,
    factsync::{Factsync, Process},
    github::{Github, Random, work},
    postgres::Major,
};

/// For a process to notice. A full disk shows with the first commit.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// It has ended, and the last thing it says is what an operator needs: which file, and that the disk is full.
fn assert_named(process: &mut Process) {
    let status = process.ended();
    let log = process.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(status.code() == Some(1) && last.starts_with("error: could not write the "), "{status}\n{log}");
    assert!(last.contains("database or disk is full"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn atomic_a_full_disk_is_named_and_ends_the_process_until_there_is_space() {
    let mut random = Random::new("full");
    let github = Github::start(Major::V15).await;
    let disk = Disk::new();
    let (state, url, environment) = (disk.state(), github.url(), disk.environment());
    let mut env: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    env.push(("DATABASE_URL", &url));
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let args = ["run", "examples/github/github.yaml", "--limits", "off", "--state", state.to_str().expect("UTF-8")];
    let into = [&args[..], &["--target", store.url(), "--plan", "unlimited"]].concat();
    for round in 0..3 {
        let mut process = Process::spawn(&into, &env);
        process.wait_ready().await;
        work(&github.client, &mut random, 20).await;
        disk.set_full(true);
        eventually_async(DEADLINE, "the process ends", async || {
            work(&github.client, &mut random, 20).await;
            process.has_ended().then_some(())
        })
        .await;
        assert_named(&mut process);
        // So is whoever starts meanwhile.
        let again = Factsync::run(&into, &env).expect_code(1);
        assert!(again.stderr.contains("disk is full") || again.stderr.contains("No space left"), "{}", again.stderr);
        disk.set_full(false);
        let process = Process::spawn(&into, &env);
        process.wait_position(&github.position().await).await;
        super::kills::assert_no_snapshot(&process, true, round);
        github.assert_equal(&store, &format!("round {round}")).await;
        process.kill();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_fact_store_is_named_and_takes_no_answered_fact() {
    let disk = Disk::new();
    let (state, environment) = (disk.state(), disk.environment());
    let env: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    let args = ["serve", "--limits", "off", "--state", state.to_str().expect("UTF-8")];
    let mut answered = 0;
    for round in 0..3 {
        let mut process = Process::spawn(&args, &env);
        assert_eq!(process.facts("has_role").await.len(), answered, "before round {round}");
        let client = crate::support::factsync::client();
        let url = format!("{}/api/batch", process.url());
        loop {
            let fact = crate::support::app::fact("has_role", &["User:1", &format!("String:{answered}")]);
            let body = serde_json::json!([{ "inserts": [fact] }]).to_string();
            let request =
                client.post(&url).bearer_auth(crate::support::factsync::DEVELOPMENT_KEY).header("content-type", "application/json");
            match request.body(body).send().await {
                Ok(answer) if answer.status() == 200 => answered += 1,
                // An error, or the end of the process was faster.
                Ok(_) | Err(_) => break,
            }
            if answered % 20 == 10 {
                disk.set_full(true);
            }
        }
        assert_named(&mut process);
        disk.set_full(false);
    }
}
