//! `reconcile` on whatever random operations leave behind: the same texts, the same rows, from another piece of code.

use std::collections::BTreeMap;

use super::{
    app::{App, DATABASE},
    load::{Load, add},
    operations::Kind,
    views,
};
use crate::support::{
    factsync::{Factsync, Process},
    github::Random,
};

const ROUNDS: u64 = 6;
const OPERATIONS: u64 = 250;

#[tokio::test(flavor = "multi_thread")]
async fn reconcile_ends_equal_to_the_servers_own_answer_after_random_operations() {
    let mut random = Random::new("reconciled");
    let app = App::start(views::all()).await;
    let store = Process::spawn(&["serve", "--limits", "off"], &[]);
    let (config, uri) = (app.config(), app.server.uri(DATABASE));
    let mut worked: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut most = 0;
    for round in 0..ROUNDS {
        let load = Load::start(app.client(), DATABASE, &mut random, 2, OPERATIONS, false).await;
        add(&mut worked, &load.finish().await);
        let args = ["reconcile", "--target", store.url(), "--perform-updates", config.to_str().expect("UTF-8")];
        Factsync::run(&args, &[("MONGODB_URL", &uri)]).expect_code(0);
        app.assert_equal(&store, &format!("round {round}")).await;
        let stored = app.stored(&store).await;
        eprintln!("round {round}: {:?}", stored.iter().map(|(name, facts)| (name, facts.len())).collect::<Vec<_>>());
        most = most.max(stored.values().filter(|facts| !facts.is_empty()).count());
    }
    eprintln!("{worked:?}");
    assert!(most * 4 >= app.views.len() * 3, "only {most} of {} views had facts at a time", app.views.len());
}
