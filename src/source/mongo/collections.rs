//! What a database's collections are: not all of them have changes of their own.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use mongodb::{
    bson::{Bson, Document, doc},
    error::Error,
};

use crate::source::mongo::client::Server;

/// What the database calls a collection.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Collection,
    /// A view on another collection, with its pipeline.
    View(String, Vec<Bson>),
    TimeSeries,
}

impl Kind {
    /// Reads an entry of the answer to `listCollections`.
    fn of(found: &Document) -> Self {
        let options = found.get_document("options").ok();
        match found.get_str("type") {
            Ok("timeseries") => Self::TimeSeries,
            Ok("view") => {
                let on = options.and_then(|options| options.get_str("viewOn").ok()).unwrap_or_default();
                let pipeline = options.and_then(|options| options.get_array("pipeline").ok()).cloned().unwrap_or_default();
                Self::View(on.to_owned(), pipeline)
            }
            Ok(_) | Err(_) => Self::Collection,
        }
    }

    /// Why what is called `name` cannot be followed, and what to do instead.
    pub(super) fn unfollowed(&self, name: &str) -> Option<(String, String)> {
        match self {
            Self::Collection => None,
            Self::View(on, pipeline) => {
                let pipeline = serde_json::to_string(pipeline).unwrap_or_default();
                let remedy = format!("Query \"{on}\" with aggregate, and begin with the view's own pipeline: {pipeline}.");
                Some((format!("\"{name}\" is a view, and a view has no changes of its own to follow"), remedy))
            }
            Self::TimeSeries => {
                let problem = format!("\"{name}\" is a time series collection, whose changes cannot be followed");
                Some((problem, "Keep what decides on access in an ordinary collection.".to_owned()))
            }
        }
    }
}

/// Every collection of the database.
pub(super) async fn list(server: &Server) -> Result<BTreeMap<String, Kind>, Error> {
    let listed = server.database.run_cursor_command(doc! { "listCollections": 1 }).await?;
    let listed: Vec<Document> = listed.try_collect().await?;
    let named = |found: &Document| Some((found.get_str("name").ok()?.to_owned(), Kind::of(found)));
    Ok(listed.iter().filter_map(named).collect())
}
