//! What an administrator has to run once, in mongosh.
//!
//! The commands live in `sql/`, where people look for them; the names they need are put before them. factsync does not run them itself:
//! who may make roles and users is not who follows the database, and a password is asked for.

use mongodb::options::{AuthMechanism, ConnectionString};

use crate::{
    config::{ExposeSecret, MongoConfig},
    source::{SourceError, mongo::fault::Judge},
};

const ROLE: &str = include_str!("../../../sql/mongodb-role.js");
/// Where a new user is best defined.
const ADMIN: &str = "admin";
/// Where users are defined whom somebody else knows: an authority or a directory.
const EXTERNAL: &str = "$external";

/// The commands that give `role`, or else the user of the connection string, what following this database takes. Asks no server.
pub fn setup_script(name: &str, config: &MongoConfig, role: Option<&str>) -> Result<String, SourceError> {
    let judge = Judge::offline(name);
    let text = config.connection_string.expose_secret();
    let string = ConnectionString::parse(text)
        .map_err(|_| judge.refused("connect", "Run `factsync check` on it.", "the connection string is not one the driver takes"))?;
    let credential = string.credential.as_ref();
    let mechanism = credential.and_then(|credential| credential.mechanism.as_ref());
    let is_certificate = mechanism == Some(&AuthMechanism::MongoDbX509);
    let database = string.default_database.as_deref().unwrap_or_default();
    // As the driver takes it: a user is defined in the database of the path, unless the string says where.
    let source = match (mechanism, credential) {
        (Some(AuthMechanism::MongoDbX509 | AuthMechanism::Plain), _) => EXTERNAL,
        (_, Some(credential)) => credential.source.as_deref().unwrap_or(database),
        (_, None) => ADMIN,
    };
    let user = role.or_else(|| credential.and_then(|credential| credential.username.as_deref()));
    let mut script = String::new();
    if user.is_none() && is_certificate {
        script.push_str("// USER is the certificate's subject, as `openssl x509 -noout -subject -nameopt RFC2253 -in FILE` prints it.\n");
    }
    let user = user.unwrap_or(if is_certificate { "CN=factsync" } else { "factsync" });
    for (constant, value) in [("DATABASE", database), ("USER", user), ("USER_DATABASE", source)] {
        script.push_str(&format!("const {constant} = {};\n", serde_json::Value::from(value)));
    }
    script.push_str(ROLE);
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SecretString;

    fn script(uri: &str, role: Option<&str>) -> String {
        let config = MongoConfig { connection_string: SecretString::from(uri.to_owned()), views: Vec::new() };
        setup_script("app", &config, role).expect("a script")
    }

    #[test]
    fn the_names_come_from_the_connection_string_and_the_password_does_not() {
        let text = script("mongodb://sy%22nc:hunter2@h:1,i:2/app?authSource=people", None);
        assert!(text.starts_with("const DATABASE = \"app\";\nconst USER = \"sy\\\"nc\";\nconst USER_DATABASE = \"people\";\n"), "{text}");
        assert!(!text.contains("hunter2"));
        assert!(script("mongodb://sync:p@h/app", None).contains("const USER_DATABASE = \"app\";"), "the database of the path");
        assert!(script("mongodb://h/app", None).contains("const USER = \"factsync\";\nconst USER_DATABASE = \"admin\";"));
        assert!(script("mongodb://sync:p@h/app", Some("other")).contains("const USER = \"other\";"));
    }

    #[test]
    fn a_certificate_s_user_is_its_subject_outside_of_all_databases() {
        let text = script("mongodb://h/app?authMechanism=MONGODB-X509&tls=true", None);
        assert!(text.contains("const USER = \"CN=factsync\";\nconst USER_DATABASE = \"$external\";"), "{text}");
        assert!(text.starts_with("// USER is the certificate's subject"), "{text}");
    }
}
