//! The key, and how another one takes its place while the process runs.
//!
//! Kubernetes and Docker mount a secret as a file and replace that file when the secret is rotated. So a key that comes from a file
//! is read again whenever the fact store refuses the one at hand, at most once per attempt: a rotation needs no restart, and a
//! key that is simply wrong costs one small read per refused request. A file that cannot be read then (it is being
//! replaced, say) changes nothing, and the next refusal reads it again.
//!
//! A 401 and a 403 are said before anything is applied, so the same request may follow at once under the new key.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use tracing::{info, warn};

use crate::target::TargetError;

/// The most bytes of a key file. Oso's keys have some 40; a file of another kind is told apart without reading all of it.
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// Where the key comes from. `Debug` shows no key.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// It was told, and stays the same as long as the process runs.
    Told(SecretString),
    /// The text of a file, white space around it apart, which may be replaced at any time.
    File(PathBuf),
}

impl From<SecretString> for KeySource {
    fn from(key: SecretString) -> Self {
        Self::Told(key)
    }
}

impl KeySource {
    /// The key as it is now.
    pub fn read(&self) -> Result<SecretString, TargetError> {
        match self {
            Self::Told(key) => Ok(key.clone()),
            Self::File(path) => contents(path).map_err(|error| {
                let problem = format!("could not read the key from \"{}\", which OSO_AUTH_FILE names: {error}", path.display());
                TargetError::Setup { problem }
            }),
        }
    }

    /// What a person changes to change the key.
    fn place(&self) -> &'static str {
        match self {
            Self::Told(_) => "OSO_AUTH",
            Self::File(_) => "the file that OSO_AUTH_FILE names",
        }
    }
}

/// A key and how a request presents it.
pub(super) struct Key {
    pub(super) secret: SecretString,
    pub(super) authorization: HeaderValue,
}

impl Key {
    fn new(source: &KeySource) -> Result<Self, TargetError> {
        let setup = |problem: &str| {
            let remedy = format!("{problem}. Set {} to a key of the environment", source.place());
            TargetError::Setup { problem: remedy }
        };
        let read = source.read()?;
        let key = read.expose_secret().trim();
        if key.is_empty() {
            return Err(setup("the key is empty"));
        }
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| setup("the key holds a character that no key has"))?;
        authorization.set_sensitive(true);
        Ok(Self { secret: SecretString::from(key), authorization })
    }
}

/// The key that requests present now.
pub(super) struct CurrentKey {
    source: KeySource,
    /// A lock that is never held across an await.
    key: Mutex<Arc<Key>>,
}

impl CurrentKey {
    /// Reads it for the first time.
    pub(super) fn new(source: KeySource) -> Result<Self, TargetError> {
        let key = Mutex::new(Arc::new(Key::new(&source)?));
        Ok(Self { source, key })
    }

    pub(super) fn get(&self) -> Arc<Key> {
        self.key.lock().expect("nothing panics while it is held").clone()
    }

    /// The key that has taken the place of `refused`, if there is one.
    pub(super) async fn after(&self, refused: &Key) -> Option<Arc<Key>> {
        let KeySource::File(path) = &self.source else { return None };
        let source = self.source.clone();
        let key = match tokio::task::spawn_blocking(move || Key::new(&source)).await {
            Ok(Ok(key)) => Arc::new(key),
            Ok(Err(error)) => {
                warn!(%error, "the fact store refuses the key, and there is no other one yet");
                return None;
            }
            // The runtime is going down.
            Err(_) => return None,
        };
        if key.secret.expose_secret() == refused.secret.expose_secret() {
            return None;
        }
        info!(path = %path.display(), "the key was refused, and another one was read");
        *self.key.lock().expect("nothing panics while it is held") = key.clone();
        Some(key)
    }
}

fn contents(path: &Path) -> io::Result<SecretString> {
    // Opening a pipe would wait for whoever writes to it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_KEY_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_KEY_FILE_BYTES} bytes")));
    }
    match text.trim() {
        "" => Err(io::Error::other("it is empty")),
        key => Ok(SecretString::from(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &tempfile::TempDir, text: &[u8]) -> KeySource {
        let path = folder.path().join("key");
        std::fs::write(&path, text).expect("written");
        KeySource::File(path)
    }

    fn shown(key: &CurrentKey) -> String {
        key.get().authorization.to_str().expect("ASCII").to_owned()
    }

    #[tokio::test]
    async fn a_file_is_read_again_only_when_its_key_was_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = CurrentKey::new(file(&folder, b" e_1_2_first\n")).expect("a key");
        assert_eq!(shown(&key), "Bearer e_1_2_first");
        assert!(key.after(&key.get()).await.is_none(), "it is the same key");
        file(&folder, b"e_1_2_second\r\n");
        assert_eq!(shown(&key), "Bearer e_1_2_first");
        let first = key.get();
        assert_eq!(key.after(&first).await.expect("another key").secret.expose_secret(), "e_1_2_second");
        assert_eq!(shown(&key), "Bearer e_1_2_second");
        // Somebody else's request was sent before the change and is refused after it.
        assert!(key.after(&first).await.is_some());
        assert!(key.get().authorization.is_sensitive());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let key = CurrentKey::new(file(&folder, b"e_1_2_first")).expect("a key");
        for text in [&b""[..], b" \n", b"e_1\ne_2", b"\xff\xfe", &[b'e'; 5000]] {
            file(&folder, text);
            assert!(key.after(&key.get()).await.is_none(), "{text:?}");
        }
        std::fs::remove_file(folder.path().join("key")).expect("removed");
        assert!(key.after(&key.get()).await.is_none());
        assert_eq!(shown(&key), "Bearer e_1_2_first");
    }

    #[test]
    fn what_cannot_be_a_key_file_is_named_without_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        for (text, want) in [(&b""[..], "empty"), (b"secret\nkey", "character"), (b"secret\xff", "UTF-8"), (&[b's'; 5000], "4096")] {
            let error = CurrentKey::new(file(&folder, text)).err().expect("no key").to_string();
            assert!(error.contains(want) && error.contains("OSO_AUTH_FILE") && !error.contains("secret"), "{error}");
        }
        for (path, want) in [(folder.path().join("missing"), "No such file"), (folder.path().to_owned(), "not a file")] {
            let error = KeySource::File(path.clone()).read().expect_err("no key").to_string();
            assert!(error.contains(want) && error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[tokio::test]
    async fn a_key_that_was_told_stays() {
        let key = CurrentKey::new(SecretString::from("e_1_2_told").into()).expect("a key");
        assert!(key.after(&key.get()).await.is_none());
    }
}
