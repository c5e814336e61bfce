//! Noticing that the file may have changed.
//!
//! Not the file is watched but every directory in which one of the names on the way to it is looked up: a rename replaces
//! the file and would take the watch along, and Kubernetes mounts a ConfigMap as `users.csv -> ..data/users.csv` and swaps
//! the link `..data`. The walk along the path mirrors the kernel's, so any link on the way counts. It is repeated before every
//! read, since a swap changes it.
//!
//! Events only say that it is time to look. A watch that is lost or impossible (a network file system, no free inotify
//! watch) costs time, not changes: the file's metadata is compared every few seconds anyway.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::warn;

use crate::source::csv::snapshot::Stamp;

/// Links followed on the way to the file; the kernel's own limit (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Whether somebody who wrote into the file is known to have finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    /// The file was modified in place, and no close followed yet.
    Open,
    /// The file was closed, renamed, linked or removed: what is there now is meant to be there.
    Closed,
}

/// What happened so far; every event makes a new value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activity {
    pub(super) events: u64,
    pub(super) writer: Writer,
}

/// Watches the way to one file.
pub(super) struct PathWatch {
    armed: Arc<Mutex<Armed>>,
}

impl PathWatch {
    /// A watch that is not armed yet, and the events it will see.
    pub(super) fn new(source: &str, path: &Path) -> (Self, watch::Receiver<Activity>) {
        let (sender, activity) = watch::channel(Activity { events: 0, writer: Writer::Closed });
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&names);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(writer) = judge(event, &locked(&seen)) {
                sender.send_modify(|activity| *activity = Activity { events: activity.events + 1, writer });
            }
        });
        let watcher = watcher.inspect_err(|error| warn!(source, %error, "file events are not available, polling instead")).ok();
        let armed = Armed { source: source.to_owned(), path: path.to_owned(), names, directories: BTreeSet::new(), watcher };
        (Self { armed: Arc::new(Mutex::new(armed)) }, activity)
    }

    /// A watch on a file system that tells of nothing: what is seen is what the sender is told.
    #[cfg(test)]
    pub(super) fn blind(path: &Path) -> (Self, watch::Sender<Activity>) {
        let armed = Armed {
            source: "users.csv".to_owned(),
            path: path.to_owned(),
            names: Arc::default(),
            directories: BTreeSet::new(),
            watcher: None,
        };
        (Self { armed: Arc::new(Mutex::new(armed)) }, watch::Sender::new(Activity { events: 0, writer: Writer::Closed }))
    }

    /// Watches the way as it is now and tells which content the file has; `None` if it cannot be seen.
    pub(super) async fn arm(&self) -> Option<Stamp> {
        let armed = Arc::clone(&self.armed);
        spawn_blocking(move || locked(&armed).arm()).await.unwrap_or(None)
    }
}

struct Armed {
    source: String,
    path: PathBuf,
    /// The names on the way, as absolute paths without links; shared with the event handler.
    names: Arc<Mutex<BTreeSet<PathBuf>>>,
    directories: BTreeSet<PathBuf>,
    watcher: Option<RecommendedWatcher>,
}

impl Armed {
    fn arm(&mut self) -> Option<Stamp> {
        let names = std::path::absolute(&self.path).and_then(|path| way(&path)).unwrap_or_default();
        let directories: BTreeSet<PathBuf> = names.iter().filter_map(|name| name.parent()).map(Path::to_owned).collect();
        *locked(&self.names) = names;
        if let Some(watcher) = &mut self.watcher {
            // A directory that went away took its watch along, so an error here says nothing.
            self.directories.difference(&directories).for_each(|gone| drop(watcher.unwatch(gone)));
            for directory in &directories {
                // Repeated for those watched already: one may have been removed and made anew under the same name.
                let watched = watcher.watch(directory, RecursiveMode::NonRecursive);
                if let (Err(error), false) = (watched, self.directories.contains(directory)) {
                    warn!(source = self.source, directory = %directory.display(), %error, "could not watch directory, polling instead");
                }
            }
        }
        self.directories = directories;
        fs::metadata(&self.path).ok().map(|metadata| Stamp::new(&metadata))
    }
}

/// The last panic, if any, left a set or a watcher that is replaced on the next use.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every name on the way to `path` that is a link, and the last one or the first that is missing; all free of links themselves.
fn way(path: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    let mut here = PathBuf::new();
    let mut links = 0;
    let mut ahead: VecDeque<OsString> = components(path).collect();
    while let Some(name) = ahead.pop_front() {
        let next = match Path::new(&name).components().next() {
            Some(Component::RootDir | Component::Prefix(_)) => PathBuf::from(&name),
            Some(Component::ParentDir) => here.parent().map_or_else(|| here.clone(), Path::to_owned),
            Some(Component::CurDir | Component::Normal(_)) | None => here.join(&name),
        };
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() && links < MAX_LINKS => {
                links += 1;
                let target = fs::read_link(&next)?;
                names.insert(next);
                components(&target).rev().for_each(|part| ahead.push_front(part));
                continue;
            }
            Ok(_) if !ahead.is_empty() => here = next,
            // The end of the way, or of what there is of it.
            Ok(_) | Err(_) => {
                names.insert(next);
                break;
            }
        }
    }
    Ok(names)
}

fn components(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().map(|part| part.as_os_str().to_owned())
}

/// Whether an event concerns the file, and what it says about whoever writes it.
fn judge(event: notify::Result<Event>, names: &BTreeSet<PathBuf>) -> Option<Writer> {
    let Ok(event) = event else { return Some(Writer::Closed) };
    let ours = |path: &PathBuf| names.contains(path) || names.iter().any(|name| name.parent() == Some(path));
    if !event.need_rescan() && !event.paths.iter().any(ours) {
        return None;
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Writer::Closed),
        EventKind::Access(_) => None,
        // Only inotify tells of the close that ends it.
        EventKind::Modify(ModifyKind::Data(_)) if cfg!(any(target_os = "linux", target_os = "android")) => Some(Writer::Open),
        EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_) | EventKind::Any | EventKind::Other => Some(Writer::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn way_below(root: &Path, path: &str) -> Vec<String> {
        let names = way(&root.join(path)).expect("walked");
        names.iter().filter_map(|name| name.strip_prefix(root).ok()).map(|name| name.display().to_string()).collect()
    }

    #[test]
    fn the_way_holds_every_link_and_the_file_itself() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path().canonicalize().expect("a path without links");
        fs::create_dir_all(root.join("mount/..v1")).expect("made");
        fs::write(root.join("mount/..v1/users.csv"), "a\n").expect("written");
        symlink("..v1", root.join("mount/..data")).expect("linked");
        symlink("..data/users.csv", root.join("mount/users.csv")).expect("linked");
        symlink("../mount", root.join("mount/..v1/up")).expect("linked");

        assert_eq!(way_below(&root, "mount/users.csv"), ["mount/..data", "mount/..v1/users.csv", "mount/users.csv"]);
        assert_eq!(way_below(&root, "mount/../mount/..v1/users.csv"), ["mount/..v1/users.csv"]);
        assert_eq!(way_below(&root, "gone/users.csv"), ["gone"], "what has to appear first");
        symlink("loop", root.join("loop")).expect("linked");
        assert_eq!(way_below(&root, "loop"), ["loop"], "a loop ends");
    }

    #[test]
    fn only_names_on_the_way_count() {
        let names = BTreeSet::from([PathBuf::from("/d/users.csv")]);
        let event = |kind, path: &str| Ok(Event::new(kind).add_path(PathBuf::from(path)));
        let any = EventKind::Create(notify::event::CreateKind::Any);
        assert_eq!(judge(event(any, "/d/users.csv"), &names), Some(Writer::Closed));
        assert_eq!(judge(event(any, "/d/other.csv"), &names), None);
        assert_eq!(judge(event(any, "/d"), &names), Some(Writer::Closed), "the directory itself");
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert_eq!(judge(event(read, "/d/users.csv"), &names), None, "we read it ourselves");
    }
}
