//! What `check` wants to know before anything is read.

use crate::{
    config::MongoConfig,
    source::{
        SourceError,
        mongo::{
            client::{Server, passes},
            query::Query,
        },
    },
};

/// Something about one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It works, but perhaps not as meant.
    Warning {
        /// The view's number.
        view: usize,
        /// What, in lower case and without a full stop.
        message: String,
    },
    /// It cannot be read.
    Failure {
        /// The view's number.
        view: usize,
        /// What is wrong, in lower case and without a full stop.
        message: String,
    },
}

/// Connects, makes sure that snapshot reads are possible, and lets the server plan every query without running it.
pub async fn probe(name: &str, config: &MongoConfig) -> Result<Vec<Finding>, SourceError> {
    let server = Server::connect(name, config).await?;
    let collections = server.database.list_collection_names().await.map_err(|error| server.failed("list the collections", error))?;
    let mut findings = Vec::new();
    for (view, configured) in config.views.iter().enumerate() {
        let collection = &configured.query.collection;
        if !collections.contains(collection) {
            let database = server.database.name();
            let message = format!("database \"{database}\" has no collection \"{collection}\", so it counts as empty");
            findings.push(Finding::Warning { view, message });
        }
        let query = match Query::new(&configured.query) {
            Ok(query) => query,
            Err(message) => {
                findings.push(Finding::Failure { view, message });
                continue;
            }
        };
        match query.explain(&server).await {
            Ok(()) => {}
            Err(error) if passes(&error) => return Err(server.failed("plan a query", error)),
            Err(error) => findings.push(Finding::Failure { view, message: error.to_string() }),
        }
    }
    Ok(findings)
}
