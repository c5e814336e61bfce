//! Incremental views from end to end: the real process follows a real server, and what `psql` says of the query is the truth.
//!
//! What is read when is seen in the server's own log ([`Copies`]): factsync reads whole results and tables by COPY only.

mod all_twelve;
mod bounded;
mod ddl;
mod joining;
mod large;
mod moments;
mod resumed;

use crate::support::{app::App, factsync::Process};

/// What factsync has read by COPY, according to the server's log.
struct Copies {
    seen: usize,
}

impl Copies {
    /// From now on. Sessions that begin later are logged.
    async fn watch(app: &App) -> Self {
        app.sql(&format!("ALTER DATABASE {} SET log_statement = 'all'", app.database)).await;
        Self { seen: app.cluster.log().len() }
    }

    /// How many read something with `text` in it.
    fn of(&self, app: &App, text: &str) -> usize {
        let log = app.cluster.log();
        let copies = log[self.seen..].split("COPY (").skip(1).filter_map(|rest| rest.split_once(") TO STDOUT"));
        copies.filter(|(query, _)| query.contains(text)).count()
    }

    /// How many there were at all.
    fn all(&self, app: &App) -> usize {
        self.of(app, "")
    }

    /// Forgets those so far.
    fn forget(&mut self, app: &App) {
        self.seen = app.cluster.log().len();
    }
}

/// Panics unless every fact type is incremental and without a problem.
async fn assert_incremental(process: &Process, count: usize) {
    let status = process.status().await;
    let lines = status["fact_types"].as_array().expect("a list");
    assert_eq!(lines.len(), count, "{status:#}");
    for line in lines {
        assert_eq!(line["mode"], "incremental", "{line:#}");
        assert!(line["problem"].is_null(), "{line:#}");
    }
}
