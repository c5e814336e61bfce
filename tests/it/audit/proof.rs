//! What `prove` and `reconcile --live` print, and what can be checked of it.

use hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{FLAG, app, command, of};
use crate::support::{
    app::{fact, insert},
    factsync::Factsync,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_can_be_checked_with_what_the_database_says() {
    let app = app("reconcile_every: 0s").await;
    let process = app.run_with(&["--target", "embedded"], &[("DATABASE_URL", &app.url()), ("OSO_AUTH", "our-own-key")]);
    process.wait_ready().await;
    let listen = process.url().trim_start_matches("http://").to_owned();
    let output = Factsync::run(&["prove", "--listen", &listen], &[("OSO_AUTH", "our-own-key")]).expect_code(0);
    let lines: Vec<&str> = output.stdout.lines().collect();
    let [line, signature] = lines[..] else { panic!("{lines:?}") };
    let (report, signature): (Value, Value) = (serde_json::from_str(line).expect("JSON"), serde_json::from_str(signature).expect("JSON"));
    assert_eq!(signature["sha256"], hex(&Sha256::digest(line)));
    let mut mac = Hmac::<Sha256>::new_from_slice(b"our-own-key").expect("a key");
    mac.update(line.as_bytes());
    assert_eq!(signature["hmac_sha256"], hex(&mac.finalize().into_bytes()));

    let source = &report["sources"][0];
    let system = app.ask("SELECT system_identifier FROM pg_control_system()").await;
    assert!(source["identity"].as_str().expect("a text").contains(&system), "{source:#}");
    assert_eq!(source["server_version"], app.ask("SHOW server_version").await);
    assert_eq!(source["timeline"], "1");
    assert_eq!(app.ask(&format!("SELECT '{}' <= pg_current_wal_lsn()", source["position"].as_str().expect("a text"))).await, "t");
    // The digest as anybody computes it: each fact on a line, in the order of the ids.
    let flagged = r#"SELECT string_agg('{"predicate":"is_flagged","args":[{"type":"Setting","id":"' || id || '"}]}' || E'\n', ''
        ORDER BY id::text COLLATE "C") FROM setting WHERE flag"#;
    let digest = hex(&Sha256::digest(app.ask(flagged).await));
    for set in ["source", "desired", "stored"] {
        assert_eq!(of(&report, FLAG)[set]["sha256"], digest, "{set}");
        assert_eq!(of(&report, FLAG)[set]["facts"], 25, "{set}");
    }
    assert!(output.stderr.contains("25 in the source, 25 desired, 25 stored, no drift"), "{}", output.stderr);
    assert!(!output.stdout.contains("our-own-key") && !output.stderr.contains("our-own-key"));
    let refused = Factsync::run(&["prove", "--listen", &listen], &[("OSO_AUTH", "another")]).expect_code(1);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("key is missing or wrong"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_shows_in_the_exit_code() {
    let app = app("reconcile_every: 0s").await;
    let process = app.started(&[]).await;
    let config = app.config();
    let live = ["reconcile", "--live", config.to_str().expect("UTF-8")];
    command(&process, &[&live[..], &["--exit-code"]].concat()).expect_code(0);
    insert(&process, &[fact("is_flagged", &["Setting:secret-id"])]).await;
    let output = command(&process, &["prove"]).expect_code(3);
    assert!(output.stderr.contains("DRIFT: 1 foreign fact"), "{}", output.stderr);
    assert!(!output.stdout.contains("hmac"), "the public key proves nothing");
    assert!(!output.stdout.contains("secret-id") && !output.stderr.contains("secret-id"));
    command(&process, &live).expect_code(0);
    command(&process, &[&live[..], &["--exit-code"]].concat()).expect_code(3);
    command(&process, &[&live[..], &["--perform-updates"]].concat()).expect_code(0);
    app.settle(&process).await;
    let settled = crate::support::eventually_async(std::time::Duration::from_secs(60), "it is repaired", async || {
        (process.facts("is_flagged").await.len() == 25).then_some(())
    });
    settled.await;
    command(&process, &["prove"]).expect_code(0);
}
