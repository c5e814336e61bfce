//! Audits of a factsync that follows a file: it is parsed again, and believed if it is the file that was applied.

use std::time::Duration;

use super::{DEADLINE, Live, TWO};
use crate::{
    audit::{audit, drift, of},
    support::{
        app::{delete, fact, insert},
        eventually_async,
    },
};

const ROLE: &str = "has_role(User:_, String:_, Organization:_)";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_all_the_time_is_audited_and_what_was_planted_is_found() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    for number in 0..5 {
        live.put(format!("{TWO}{number},member,{number}\n"));
        let found = audit(&process, false).await;
        assert_eq!((&of(&found, ROLE)["drift"], &found["verdict"]), (&drift([0; 4]), &"equal".into()), "audit {number}: {found:#}");
    }
    live.assert_equal(&process, "after the audits").await;
    delete(&process, &[fact("has_role", &["User:1", "String:admin", "Organization:2"])]).await;
    insert(&process, &[fact("has_role", &["User:9", "String:admin", "Organization:9"])]).await;
    let found = audit(&process, true).await;
    assert_eq!(of(&found, ROLE)["drift"], drift([1, 0, 1, 0]), "{found:#}");
    let source = &of(&found, ROLE)["source"];
    assert_eq!((&source["facts"], source), (&3.into(), &of(&found, ROLE)["desired"]));
    let equal = eventually_async(DEADLINE.min(Duration::from_secs(60)), "it is repaired", async || {
        (audit(&process, false).await["verdict"] == "equal").then_some(())
    });
    equal.await;
    live.assert_equal(&process, "repaired").await;
}
