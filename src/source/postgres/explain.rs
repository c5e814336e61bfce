//! What factsync will do with each query, for `explain`.

use crate::{
    config::PostgresConfig,
    source::{
        SourceError,
        postgres::{
            analyze::{self, AnalysedView},
            prepare,
            publication::{self, Published},
            session::{Purpose, Server},
        },
    },
};

/// What sets off an incremental view.
const INCREMENTAL_REASON: &str = "every commit brings exactly the facts it changes";

/// How a source will be followed.
#[derive(Debug)]
pub struct Explanation {
    /// One for each view; an `Err` says why it cannot be followed.
    pub views: Vec<Result<ExplainedView, String>>,
    /// The name of the slot and of the publication.
    pub slot: String,
    /// What the publication will hold.
    pub publication: Vec<Published>,
}

/// How a view will be kept up to date.
#[derive(Debug)]
pub struct ExplainedView {
    /// `incremental` or `refresh`.
    pub mode: &'static str,
    /// Why this mode, and what sets it off.
    pub reason: String,
    /// What it reads.
    pub view: AnalysedView,
}

/// Analyses every query and changes nothing.
pub async fn explain(name: &str, config: &PostgresConfig) -> Result<Explanation, SourceError> {
    let server = Server::new(name, config)?;
    let mut session = server.connect(Purpose::Analyze).await?;
    let analysis = analyze::analyze(&server, &mut session, &config.views).await?;
    let publication = publication::needed(&analysis).into_values().collect();
    let explained = |view: &Result<AnalysedView, String>| {
        let view = view.clone()?;
        let (mode, reason) = match prepare::incremental(&analysis, &view) {
            Ok(_) => ("incremental", INCREMENTAL_REASON.to_owned()),
            Err(reason) => ("refresh", prepare::refresh_reason(&view, &reason)),
        };
        Ok(ExplainedView { mode, reason, view })
    };
    let views = analysis.views.iter().map(explained);
    Ok(Explanation { views: views.collect(), slot: config.slot.clone(), publication })
}
