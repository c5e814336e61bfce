//! Audits of a factsync that follows MongoDB: at the cluster time that was applied, while writers go on.

use super::{app::App, app::DATABASE, load::Load, views};
use crate::{
    audit::{audit, drift},
    support::{
        app::{delete, insert},
        github::Random,
    },
};

const AUDITS: usize = 5;
const OPERATIONS: u64 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_under_writes_finds_what_was_planted_and_nothing_else() {
    let mut random = Random::new("audited");
    let app = App::start(views::all()).await;
    let process = app.started(&[]).await;
    let load = Load::start(app.client(), DATABASE, &mut random, 2, OPERATIONS, false).await;
    let mut judged = 0;
    for number in 0..AUDITS {
        let found = audit(&process, false).await;
        assert_eq!(found["failed"], serde_json::json!([]), "audit {number}: {found:#}");
        for line in found["sources"][0]["fact_types"].as_array().expect("a list") {
            assert_eq!(line["drift"], drift([0; 4]), "audit {number}: {found:#}");
            judged += usize::from(line["unjudged"].is_null());
        }
    }
    assert!(judged >= AUDITS, "nothing was ever compared with the source");
    load.finish().await;
    app.settle(&process).await;
    let found = audit(&process, false).await;
    assert_eq!(found["verdict"], "equal", "{found:#}");
    let (mut line, mut facts) = (serde_json::Value::Null, Vec::new());
    for of in found["sources"][0]["fact_types"].as_array().expect("a list") {
        let predicate = of["fact_type"].as_str().and_then(|text| text.split('(').next()).expect("a predicate");
        facts = process.facts(predicate).await;
        if of["listed"] == facts.len() && !facts.is_empty() {
            line = of.clone();
            break;
        }
    }
    let fact = facts.first().expect("some view has facts").clone();
    delete(&process, std::slice::from_ref(&fact)).await;
    let signature = &line["fact_type"];
    for (planted, want) in [([1, 0, 0, 0], "drift"), ([0; 4], "equal")] {
        let found = audit(&process, false).await;
        let of = found["sources"][0]["fact_types"].as_array().expect("a list").iter().find(|of| of["fact_type"] == *signature);
        assert_eq!(of.expect("it is there")["drift"], drift(planted), "{found:#}");
        assert_eq!(found["verdict"], want);
        insert(&process, std::slice::from_ref(&fact)).await;
    }
}
