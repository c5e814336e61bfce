//! What factsync reads of the documents, according to the server's profiler.

use futures_util::TryStreamExt;
use mongodb::bson::{Bson, Document, doc};

use super::app::App;

/// Bytes of the profile: some ten thousand commands.
const PROFILE: i32 = 64 * 1024 * 1024;

/// Watches from now on.
pub(super) struct Reads;

impl Reads {
    pub(super) async fn watch(app: &App) -> Self {
        app.run_command(doc! { "profile": 0 }).await;
        // It need not exist.
        let _ = app.database().run_command(doc! { "drop": "system.profile" }).await;
        app.run_command(doc! { "create": "system.profile", "capped": true, "size": PROFILE }).await;
        app.run_command(doc! { "profile": 2 }).await;
        Self
    }

    /// How many documents queries have examined; the change stream's own reading of the oplog does not count.
    pub(super) async fn documents(&self, app: &App) -> i64 {
        let profile = app.database().collection::<Document>("system.profile");
        let cursor = profile.find(doc! { "appName": "factsync" }).await.expect("a profile");
        let commands: Vec<Document> = cursor.try_collect().await.expect("a profile");
        let queries = commands.iter().filter(|command| !command.to_string().contains("$changeStream"));
        queries.map(|command| number(command.get("docsExamined"))).sum()
    }
}

fn number(value: Option<&Bson>) -> i64 {
    match value {
        Some(Bson::Int32(number)) => i64::from(*number),
        Some(Bson::Int64(number)) => *number,
        _ => 0,
    }
}
