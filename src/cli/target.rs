//! Which fact store a command talks to.

use std::{path::Path, sync::Arc};

use crate::{
    cli::{Global, Misuse},
    store::StateDirectory,
    target::{
        FactStore,
        embedded::{self, Access, EmbeddedStore},
        oso::{KeySource, OsoCloud},
        quota::Plan,
    },
};
use anyhow::Context;
use secrecy::SecretString;

/// Oso Cloud, where `OSO_URL` says nothing else.
const OSO_CLOUD: &str = "https://api.osohq.com";

/// A choice, before anything is opened.
pub(super) enum Choice {
    /// The embedded store in the state directory.
    Embedded,
    /// A fact store over HTTP.
    Remote {
        /// Where.
        url: String,
        /// With which key.
        key: KeySource,
    },
}

/// An opened fact store.
pub(super) struct Target {
    pub(super) kind: &'static str,
    pub(super) store: Arc<dyn FactStore>,
    /// Its write quota.
    pub(super) plan: Plan,
    /// Set if it is the embedded one.
    pub(super) embedded: Option<EmbeddedStore>,
}

/// What `--target`, `OSO_AUTH`, `OSO_AUTH_FILE` and `OSO_URL` say.
pub(super) fn choose(global: &Global) -> Result<Choice, Misuse> {
    let key = key()?;
    let (setting, url) = match (global.target.as_deref(), &key) {
        (Some("embedded"), _) | (None, None) => return Ok(Choice::Embedded),
        (Some(url), _) => ("--target", url.to_owned()),
        (None, Some(_)) => ("OSO_URL", variable("OSO_URL").unwrap_or_else(|| OSO_CLOUD.to_owned())),
    };
    if !url.starts_with("http://") && !url.starts_with("https://") {
        // Not repeated, because it may hold a password; nor below.
        return Err(Misuse(format!("{setting} is no URL; expected one such as http://127.0.0.1:7878, or --target embedded")));
    }
    if url.starts_with("http://") && !is_loopback(&url) && !global.plain_http {
        return Err(Misuse(format!(
            "{setting} is another machine and has no TLS: the key would go there in clear, and whoever has it decides on access. \
             Use https://, or --plain-http if everything between is trusted"
        )));
    }
    match key {
        Some(key) => Ok(Choice::Remote { url, key }),
        None if is_loopback(&url) => Ok(Choice::Remote { url, key: KeySource::Told(embedded::DEVELOPMENT_KEY.into()) }),
        None => Err(Misuse(
            "the fact store is not on this machine and needs a key. Set OSO_AUTH to a read-write key of its environment, \
             or OSO_AUTH_FILE to the path of a file that holds one"
                .to_owned(),
        )),
    }
}

impl Choice {
    /// Opens it for `purpose`; `state` is where the embedded one lives.
    pub(super) fn open(self, global: &Global, state: Option<&StateDirectory>) -> anyhow::Result<Target> {
        match self {
            Self::Remote { url, key } => {
                let store = Arc::new(OsoCloud::new(&url, key, global.plan)?);
                Ok(Target { kind: "oso", store, plan: global.plan, embedded: None })
            }
            Self::Embedded => {
                let state = state.context("the embedded fact store needs a state directory")?;
                let store = EmbeddedStore::open(&state.facts())?;
                Ok(Target { kind: "embedded", store: Arc::new(store.clone()), plan: Plan::Unlimited, embedded: Some(store) })
            }
        }
    }
}

/// Whom the embedded store lets in: the key of `OSO_AUTH` or, as it is now, `OSO_AUTH_FILE`; else the public development key, and that
/// one on loopback only.
pub(super) fn access(global: &Global) -> Result<Access, Misuse> {
    match key()? {
        Some(key) => Ok(Access::new(read(&key)?)),
        None if global.listen.ip().is_loopback() => Ok(Access::new(embedded::DEVELOPMENT_KEY.into())),
        None => Err(Misuse(format!(
            "--listen {} is open to other machines, and without OSO_AUTH the key would be the public development key. \
             Set OSO_AUTH to a key of your own",
            global.listen
        ))),
    }
}

/// Who may end a hold: whom [`access`] lets in, and nobody where that is a misuse, for a fact store elsewhere needs no key here.
pub(super) fn holder(global: &Global) -> Result<Option<Access>, Misuse> {
    match key()? {
        Some(_) => access(global).map(Some),
        None => Ok(global.listen.ip().is_loopback().then(|| Access::new(embedded::DEVELOPMENT_KEY.into()))),
    }
}

/// The key of the environment, which is nobody else's.
pub(super) fn own_key() -> Result<Option<SecretString>, Misuse> {
    key()?.map(|key| read(&key)).transpose()
}

/// The key to present at `url`: that of the environment, or on this machine the public one.
pub(super) fn key_for(url: &str) -> Result<SecretString, Misuse> {
    match key()? {
        Some(key) => read(&key),
        None if is_loopback(url) => Ok(embedded::DEVELOPMENT_KEY.into()),
        None => Err(Misuse(
            "that factsync is not on this machine and needs a key. Set OSO_AUTH or OSO_AUTH_FILE as it was started with".to_owned(),
        )),
    }
}

/// Locks the state directory of `global`.
pub(super) fn lock(path: &Path) -> anyhow::Result<StateDirectory> {
    Ok(StateDirectory::lock(path)?)
}

/// Where the key is, if the environment says so.
fn key() -> Result<Option<KeySource>, Misuse> {
    let file = std::env::var_os("OSO_AUTH_FILE").filter(|path| !path.is_empty());
    match (variable("OSO_AUTH"), file) {
        (Some(_), Some(_)) => Err(Misuse("OSO_AUTH and OSO_AUTH_FILE are both set, and each names a key. Unset one of them".to_owned())),
        (Some(key), None) => Ok(Some(KeySource::Told(key.into()))),
        (None, Some(path)) => {
            let file = KeySource::File(path.into());
            // Told at once, and not as a failure of the fact store.
            read(&file).map(|_| Some(file))
        }
        (None, None) => Ok(None),
    }
}

fn read(key: &KeySource) -> Result<SecretString, Misuse> {
    key.read().map_err(|error| Misuse(error.to_string()))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the client that is about to send the key will send it to this machine: judged by that client's own parser.
fn is_loopback(url: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_development_key_is_for_loopback_only() {
        for url in ["http://localhost", "http://127.0.0.1:7878", "https://127.3.2.1/x", "http://[::1]:80/api"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example:1",
            "http://localhost:x@evil.example",
            "http://10.0.0.1",
            "http://[::2]",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
