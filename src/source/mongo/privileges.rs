//! What a user may do, as the server tells it, and what of that following a database lacks.

use mongodb::bson::{Bson, Document};

/// What `run` does with a database, each on all of its collections; `sql/mongodb-role.js` grants it. A change stream on a database needs
/// the first two there, and not only on the collections that are read.
pub(super) const NEEDED: [&str; 4] = ["find", "changeStream", "listCollections", "listIndexes"];

/// What of [`NEEDED`] the answer to `connectionStatus` with `showPrivileges` does not grant on `database`.
pub(super) fn missing(status: &Document, database: &str) -> Vec<&'static str> {
    let info = status.get_document("authInfo");
    let granted = info.and_then(|info| info.get_array("authenticatedUserPrivileges"));
    let granted: Vec<&Document> = granted.map(|granted| granted.iter().filter_map(Bson::as_document).collect()).unwrap_or_default();
    let allows = |action: &str| granted.iter().any(|privilege| covers(privilege, database) && has(privilege, action));
    NEEDED.into_iter().filter(|action| !allows(action)).collect()
}

/// Whether the privilege is about every collection of the database.
fn covers(privilege: &Document, database: &str) -> bool {
    let Ok(resource) = privilege.get_document("resource") else { return false };
    let is_any = resource.get_bool("anyResource").unwrap_or(false);
    let is_of_database = resource.get_str("db").is_ok_and(|of| of.is_empty() || of == database);
    let is_of_every_collection = resource.get_str("collection").is_ok_and(str::is_empty);
    is_any || (is_of_database && is_of_every_collection)
}

fn has(privilege: &Document, action: &str) -> bool {
    let actions = privilege.get_array("actions");
    actions
        .is_ok_and(|actions| actions.iter().any(|granted| matches!(granted.as_str(), Some(name) if name == action || name == "anyAction")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::doc;

    #[test]
    fn only_what_is_granted_on_the_whole_database_counts() {
        let status = |privileges: Vec<Document>| doc! { "authInfo": { "authenticatedUserPrivileges": privileges } };
        let on =
            |db: &str, collection: &str, actions: &[&str]| doc! { "resource": { "db": db, "collection": collection }, "actions": actions };
        assert_eq!(missing(&doc! {}, "app"), NEEDED);
        assert_eq!(missing(&status(vec![on("app", "", &NEEDED)]), "app"), [""; 0]);
        assert_eq!(missing(&status(vec![on("", "", &NEEDED)]), "app"), [""; 0]);
        assert_eq!(missing(&status(vec![on("other", "", &NEEDED)]), "app"), NEEDED);
        assert_eq!(missing(&status(vec![on("app", "users", &NEEDED)]), "app"), NEEDED);
        assert_eq!(
            missing(&status(vec![on("app", "", &["find", "listIndexes"]), on("app", "", &["changeStream"])]), "app"),
            ["listCollections"]
        );
        let root = doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] };
        assert_eq!(missing(&status(vec![root]), "app"), [""; 0]);
    }
}
