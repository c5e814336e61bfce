//! `/v1/wait` and `factsync wait` with several sources: which one is meant, and what is said when that is not clear.

use super::*;
use crate::support::factsync::Factsync;

/// A position that no file has.
pub(super) fn nowhere() -> String {
    "0".repeat(64)
}

pub(super) async fn ask(process: &Process, query: &[(&str, &str)]) -> (u16, String) {
    let query: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let (status, body) = process.get(&format!("/v1/wait?timeout_ms=20000&{query}")).await;
    let message = serde_json::from_str::<Value>(&body).expect("JSON")["message"].as_str().unwrap_or_default().to_owned();
    (status, message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_finds_its_source_or_is_told_which_there_are() {
    let cluster = Cluster::start(Major::V15);
    let (first, second) = (Database::on(&cluster).await, Database::on(&cluster).await);
    let mut desk = Desk::new();
    desk.csv(&[("good", "a")], "");
    desk.put("good.csv", "user,role\n1,admin\n");
    desk.postgres(&[("first", "a", &first)]);
    let here = digest(&desk.path("good.csv"));
    let lsn = async || first.client.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a position").get::<_, String>(0);

    let process = desk.started(&["postgres.yaml", "csv.yaml"]).await;
    first.sql("DELETE FROM member WHERE user_id = '1'").await;
    let at = lsn().await;
    assert_eq!(ask(&process, &[("position", &at)]).await.0, 200, "only one source counts in LSNs");
    assert_eq!(held(&process, "role_a").await.len(), 1, "and that is the one that was waited for");
    assert_eq!(ask(&process, &[("position", &here)]).await.0, 200, "only one source counts in digests");
    let csv = desk.csv_path("good");
    for (query, wanted) in [
        (
            vec![("position", at.as_str()), ("source", "third")],
            vec!["there is no source \"third\"".to_owned(), "\"first\"".into(), csv.clone()],
        ),
        (
            vec![("position", &at), ("source", &csv)],
            vec!["an LSN is a position of PostgreSQL".into(), format!("source \"{csv}\" is csv"), "SHA-256".into()],
        ),
        (vec![("position", &here), ("source", "first")], vec!["source \"first\" is postgres and has an LSN such as 16/B374D848".into()]),
        (vec![("position", "yesterday")], vec!["could not read \"yesterday\" as a position".into()]),
    ] {
        let (status, message) = ask(&process, &query).await;
        assert!(status == 400 && wanted.iter().all(|part| message.contains(part)), "{query:?}: {status} {message}");
    }
    assert!(process.terminate().success());

    desk.postgres(&[("first", "a", &first), ("second", "b", &second)]);
    let process = desk.started(&["postgres.yaml"]).await;
    let (status, message) = ask(&process, &[("position", &at)]).await;
    assert!(status == 400 && message.contains("name one with source=: \"first\", \"second\""), "{status} {message}");
    assert_eq!(ask(&process, &[("position", &at), ("source", "second")]).await.0, 200);
    let (status, message) = ask(&process, &[("position", &nowhere())]).await;
    assert!(
        status == 400 && message.contains("a SHA-256 digest is a position of a CSV file, and source \"first\" is postgres"),
        "{message}"
    );

    // The command says the same, with its exit code.
    let listen = process.url().strip_prefix("http://").expect("a URL");
    let wait = |more: &[&str]| Factsync::run(&[&["wait", "--listen", listen, "--position"], more].concat(), &[]);
    wait(&[&at, "--source", "second"]).expect_code(0);
    let refused = wait(&[&at]).expect_code(1);
    assert!(refused.stderr.contains("name one with source=: \"first\", \"second\""), "{}", refused.stderr);
    let refused = wait(&[&at, "--source", "third"]).expect_code(1);
    assert!(refused.stderr.contains("there is no source \"third\"; there are: \"first\", \"second\""), "{}", refused.stderr);
}

/// Nobody who waits for one source is kept by another.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_one_source_is_not_kept_by_another() {
    let cluster = Cluster::start(Major::V15);
    let first = Database::on(&cluster).await;
    let mut desk = Desk::new();
    desk.postgres(&[("first", "a", &first)]);
    desk.csv(&[("good", "a")], "");
    let process = desk.run(&["postgres.yaml", "csv.yaml"], &[]);
    first.assert_equal(&process, "first", "a", "the file is not there").await;
    let query = [("position", nowhere()), ("source", desk.csv_path("good"))];
    let (status, message) = ask(&process, &[("position", &query[0].1), ("source", &query[1].1), ("timeout_ms", "1")]).await;
    assert_eq!(status, 400, "a parameter that is there twice: {message}");
    let pairs: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(&query).finish();
    let (status, body) = process.get(&format!("/v1/wait?timeout_ms=50&{pairs}")).await;
    assert!(status == 504 && body.contains("is retrying"), "{status} {body}");
}
