//! Web pages in the browser of who runs factsync: of other sites, and of names that were made to resolve to this machine.

use crate::support::factsync::{DEVELOPMENT_KEY, Factsync, Process, client};

const BATCH: &str = r#"[{"inserts":[{"predicate":"planted","args":[{"type":"User","id":"eve"}]}]}]"#;

/// Writes a fact with the key and these headers; gives the status.
async fn write(process: &Process, headers: &[(&str, &str)]) -> u16 {
    let mut request = client().post(format!("{}/api/batch", process.url())).bearer_auth(DEVELOPMENT_KEY).body(BATCH);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_knows_the_public_key_can_still_not_use_it() {
    let process = Process::spawn(&["serve"], &[]);
    for headers in [
        // DNS rebinding: same origin, any header, and the page's own name.
        &[("host", "evil.example:7878")][..],
        &[("host", "evil.example:7878"), ("origin", "http://evil.example:7878")],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
    ] {
        let status = write(&process, headers).await;
        assert!(matches!(status, 403 | 421), "{headers:?} is answered {status}");
    }
    assert!(process.facts("planted").await.is_empty());
    for path in ["/", "/readyz", "/healthz", "/api/facts", "/nothing"] {
        let answer = client().get(format!("{}{path}", process.url())).header("host", "evil.example").send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 421, "{path}");
    }
    // A page of another site has to ask first, and is not told that it may.
    let ask = client()
        .request(reqwest::Method::OPTIONS, format!("{}/api/batch", process.url()))
        .header("origin", "https://evil.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization");
    let answer = ask.send().await.expect("an answer");
    assert!(!answer.status().is_success() && answer.headers().get("access-control-allow-origin").is_none(), "{answer:?}");
    // Who belongs here is served.
    for host in ["localhost:7878", "127.0.0.1", "[::1]:1", "host.docker.internal:7878"] {
        assert_eq!(write(&process, &[("host", host)]).await, 200, "{host}");
    }
    assert_eq!(process.facts("planted").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_are_let_in_by_a_key_of_ones_own_only() {
    let refused = Factsync::run(&["serve", "--listen", "0.0.0.0:0"], &[]).expect_code(2);
    assert!(refused.stderr.contains("is open to other machines"), "{}", refused.stderr);
    let own = "e_0123456789_54321_akeyofourown000000001";
    let process = Process::spawn(&["serve", "--listen", "0.0.0.0:0"], &[("OSO_AUTH", own)]);
    let url = process.url().replace("0.0.0.0", "127.0.0.1");
    let send = async |key: &str| {
        let request = client().post(format!("{url}/api/batch")).header("host", "factsync.example").bearer_auth(key).body(BATCH);
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(send(DEVELOPMENT_KEY).await, 401);
    assert_eq!(send(own).await, 200, "by whatever name");
}

#[test]
fn the_key_does_not_leave_in_clear_unless_told() {
    let config = "examples/quickstart/quickstart.yaml";
    let key = [("OSO_AUTH", "e_0123456789_54321_akeyofourown000000001")];
    let refused = Factsync::run(&["reconcile", config, "--target", "http://factsync.example:9"], &key).expect_code(2);
    assert!(refused.stderr.contains("in clear") && refused.stderr.contains("--plain-http"), "{}", refused.stderr);
    let refused = Factsync::run(&["reconcile", config], &[key[0], ("OSO_URL", "http://10.255.255.1:9")]).expect_code(2);
    assert!(refused.stderr.contains("OSO_URL is another machine"), "{}", refused.stderr);
    // Told, it tries.
    let tried = Factsync::run(&["reconcile", config, "--plain-http", "--target", "http://factsync.invalid:9"], &key).expect_code(1);
    assert!(!tried.stderr.contains("--plain-http"), "{}", tried.stderr);
}
