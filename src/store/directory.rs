//! The state directory: one process at a time.
//!
//! ```text
//! factsync-state/
//!   lock          held with flock while a process runs; says who it is and where it listens
//!   facts.db      the embedded fact store (target/embedded)
//!   state.db      the local store
//!   checkpoint/   what each upstream was told (sled)
//!   spool/        unlinked temporary files
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refuses.
    #[error("could not use the state directory \"{}\"", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the file system says.
        #[source]
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the state directory \"{}\" is in use by {holder}. {}", path.display(), remedy(url))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Which process.
        holder: String,
        /// Where it listens, if it does.
        url: Option<String>,
    },
}

fn remedy(url: &Option<String>) -> String {
    match url {
        Some(url) => format!(
            "Its fact store answers at {url}: pass --target {url}, or --state with another directory. \
             `run --standby` waits until it has ended and takes over"
        ),
        None => "Stop it, or pass --state with another directory".to_owned(),
    }
}

/// A locked state directory; the lock goes with it, also when the process is killed.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    lock: File,
}

impl StateDirectory {
    /// Creates the directory if need be and locks it.
    pub fn lock(path: &Path) -> Result<Self, StateError> {
        let mut lock = open(path)?;
        match lock.try_lock() {
            Ok(()) => Self::held(path, lock),
            Err(TryLockError::Error(source)) => Err(StateError::Io { path: path.to_owned(), source }),
            Err(TryLockError::WouldBlock) => Err(locked(path, &mut lock)),
        }
    }

    /// The same once nobody else holds it, for the standby. Blocks the thread until then; the kernel wakes it as soon as the
    /// holder has ended, however it ended.
    pub fn lock_when_free(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        loop {
            let lock = open(path)?;
            match lock.lock() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            }
            // The directory may have been deleted meanwhile, and another one be at its place: a lock on the old file excludes nobody.
            let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let ours = lock.metadata().map(place).map_err(failed)?;
            match fs::metadata(path.join("lock")).map(place) {
                Ok(there) if there == ours => return Self::held(path, lock),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    fn held(path: &Path, lock: File) -> Result<Self, StateError> {
        let mut directory = Self { path: path.to_owned(), lock };
        directory.sign(None)?;
        Ok(directory)
    }

    /// Writes down where this process listens, for those who come second.
    pub fn listens_at(&mut self, url: &str) -> Result<(), StateError> {
        self.sign(Some(url))
    }

    /// The embedded fact store's file.
    pub fn facts(&self) -> PathBuf {
        self.path.join("facts.db")
    }

    /// The local store's file.
    pub fn state(&self) -> PathBuf {
        Self::state_in(&self.path)
    }

    /// The local store's file in the directory `path`, whoever has it locked.
    pub fn state_in(path: &Path) -> PathBuf {
        path.join("state.db")
    }

    /// The checkpoint's folder.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint")
    }

    /// Where sorted runs are spilled.
    pub fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn sign(&mut self, url: Option<&str>) -> Result<(), StateError> {
        let text = format!("process {}\n{}\n", std::process::id(), url.unwrap_or_default());
        let mut write = || -> io::Result<()> {
            self.lock.rewind()?;
            self.lock.set_len(0)?;
            self.lock.write_all(text.as_bytes())
        };
        write().map_err(|source| StateError::Io { path: self.path.clone(), source })
    }
}

/// The lock's file; the directory is made if need be.
fn open(path: &Path) -> Result<File, StateError> {
    let open = || -> io::Result<File> {
        create_private(path)?;
        create_private(&path.join("spool"))?;
        File::options().read(true).write(true).create(true).truncate(false).open(path.join("lock"))
    };
    open().map_err(|source| StateError::Io { path: path.to_owned(), source })
}

/// Facts say who may do what: the directory is for its owner only. Its name is on the disk when this returns, for SQLite sees to that of
/// the files in it and not of the directory itself: without it a power loss takes everything that was ever answered.
fn create_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What stands there may be a file, of which the next line says so.
    if !parent.exists() {
        create_private(parent)?;
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // There are file systems that cannot do this and need not.
    let _ = File::open(parent).and_then(|parent| parent.sync_all());
    Ok(())
}

fn locked(path: &Path, lock: &mut File) -> StateError {
    let mut text = String::new();
    // The holder may be writing just now; then it stays nameless.
    let _ = lock.read_to_string(&mut text);
    let mut lines = text.lines();
    let holder = lines.next().filter(|line| !line.is_empty()).unwrap_or("another process").to_owned();
    let url = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
    StateError::Locked { path: path.to_owned(), holder, url }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_second_one_is_told_to_use_the_first_ones_url() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = StateDirectory::lock(folder.path()).expect("free");
        let error = StateDirectory::lock(folder.path()).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        first.listens_at("http://127.0.0.1:1").expect("signed");
        let error = StateDirectory::lock(folder.path()).expect_err("held").to_string();
        assert!(error.contains("--target http://127.0.0.1:1"), "{error}");
        drop(first);
        StateDirectory::lock(folder.path()).expect("free again");
    }

    #[test]
    fn a_standby_gets_the_directory_that_is_there_when_the_first_one_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        let first = StateDirectory::lock(&path).expect("free");
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || StateDirectory::lock_when_free(&path))
        };
        // The system lists who waits for a lock behind an arrow, with the file's number.
        let file = format!(":{} ", fs::metadata(path.join("lock")).expect("it is there").ino());
        let waits = |line: &str| line.contains("->") && line.contains(&file);
        let begun = Instant::now();
        while !fs::read_to_string("/proc/locks").expect("Linux").lines().any(waits) {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody waits");
            std::thread::yield_now();
        }
        // Deleted and made again by somebody who knows nothing of the two.
        fs::remove_dir_all(&path).expect("deleted");
        let second = StateDirectory::lock(&path).expect("a new directory is free");
        drop(first);
        assert!(StateDirectory::lock(&path).is_err(), "the new one is held");
        drop(second);
        let third = waiting.join().expect("no panic").expect("free in the end");
        assert!(StateDirectory::lock(&path).is_err(), "the standby holds the directory that is there");
        drop(third);
    }
}
