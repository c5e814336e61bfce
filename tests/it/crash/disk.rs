//! A disk whose power can be cut: what is left is what was synced, and of the rest as much as chance keeps.
//!
//! `tests/tools/disk.c` writes down what factsync does to its state directory; [`Disk::cut`] works out from that what a disk would hold
//! and puts it in its place. A file's content is certain up to its last sync. Of what was written after it each 512 bytes may
//! have arrived or not, in any order. A name (of a file that was made, renamed or removed) is certain once its directory was synced.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::support::{factsync::root, github::Random};

/// What a disk writes as a whole.
const SECTOR: usize = 512;

/// Bytes of a record before its path and data.
const HEAD: usize = 24;

/// How much of what was not synced is there after the power is back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, not even a file in a directory that was not synced itself.
    Nothing,
    /// Some, and names as they last were.
    Some,
}

/// A state directory on such a disk.
pub(super) struct Disk {
    folder: TempDir,
    library: PathBuf,
    before: Content,
}

/// What a cut took away.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Writes after the last sync of their file.
    pub(super) writes: usize,
    /// Of those the ones that are in the file nevertheless, at least in part.
    pub(super) kept: usize,
    /// Files that are gone.
    pub(super) files: usize,
}

/// Files and directories by their path on the disk.
#[derive(Debug, Clone, Default)]
struct Content {
    files: BTreeMap<PathBuf, Vec<u8>>,
    folders: BTreeSet<PathBuf>,
}

/// A file since the power was last cut.
#[derive(Debug, Default)]
struct File {
    synced: Vec<u8>,
    later: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// A record of the journal.
struct Record<'a> {
    kind: u32,
    path: &'a str,
    number: usize,
    data: &'a [u8],
}

impl Disk {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("disk.so");
        let source = root().join("tests/tools/disk.c");
        let mut cc = Command::new("cc");
        let built = cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-lpthread").output();
        let built = built.expect("there is a C compiler: apt-get install build-essential");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        fs::create_dir(folder.path().join("disk")).expect("created");
        Self { folder, library, before: Content::default() }
    }

    /// Everything on it.
    fn all(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("it exists").join("disk")
    }

    /// The state directory, which the first process makes.
    pub(super) fn state(&self) -> PathBuf {
        self.all().join("state")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn full(&self) -> PathBuf {
        self.folder.path().join("full")
    }

    /// What a process needs in its environment to run on this disk.
    pub(super) fn environment(&self) -> [(&'static str, String); 4] {
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        [
            ("LD_PRELOAD", text(self.library.clone())),
            ("DISK_FOLDER", text(self.all())),
            ("DISK_JOURNAL", text(self.journal())),
            ("DISK_FULL", text(self.full())),
        ]
    }

    /// From here on no file can grow, or all can again.
    pub(super) fn set_full(&self, full: bool) {
        if full {
            fs::write(self.full(), "").expect("written");
        } else {
            fs::remove_file(self.full()).expect("it was full");
        }
    }

    /// The power is cut, after the process was killed: from here on the directory holds what the disk does.
    pub(super) fn cut(&mut self, left: Left, random: &mut Random) -> Lost {
        let journal = fs::read(self.journal()).expect("the process wrote a journal");
        let (content, lost) = Replay::of(&self.before, &self.all(), &journal).cut(left, random);
        fs::remove_dir_all(self.all()).expect("removed");
        content.write(&self.all());
        fs::remove_file(self.journal()).expect("removed");
        self.before = content;
        lost
    }
}

impl Content {
    fn write(&self, to: &Path) {
        fs::create_dir(to).expect("created");
        for folder in &self.folders {
            fs::create_dir_all(to.join(folder)).expect("created");
        }
        for (path, bytes) in &self.files {
            fs::write(to.join(path), bytes).expect("written");
        }
    }
}

/// The records of `journal`, but for one that a kill cut short.
fn records(mut journal: &[u8]) -> Vec<Record<'_>> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) as usize;
    let mut records = Vec::new();
    while journal.len() >= HEAD {
        let (kind, path, at, data) = (number(&journal[..4]), number(&journal[4..8]), number(&journal[8..16]), number(&journal[16..24]));
        let Some(body) = journal.get(HEAD..HEAD + path + data) else { break };
        let (path, data) = body.split_at(path);
        let path = std::str::from_utf8(path).expect("a UTF-8 path");
        records.push(Record { kind: u32::try_from(kind).expect("four bytes"), path, number: at, data });
        journal = &journal[HEAD + body.len()..];
    }
    records
}

/// Files by number, so that they keep their content when they are renamed.
#[derive(Default)]
struct Replay {
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    folders: BTreeSet<PathBuf>,
    synced_folders: BTreeSet<PathBuf>,
}

impl Replay {
    fn of(before: &Content, all: &Path, journal: &[u8]) -> Self {
        let mut replay = Self { folders: before.folders.clone(), synced_folders: before.folders.clone(), ..Self::default() };
        for (path, bytes) in &before.files {
            replay.names.insert(path.clone(), replay.files.len());
            replay.files.push(File { synced: bytes.clone(), later: Vec::new() });
        }
        replay.synced_names = replay.names.clone();
        let below = |path: &str| Path::new(path).strip_prefix(all).expect("a path on the disk").to_owned();
        records(journal).iter().for_each(|record| replay.apply(record, &below));
        replay
    }

    fn apply(&mut self, record: &Record<'_>, below: &dyn Fn(&str) -> PathBuf) {
        let path = below(record.path);
        match record.kind {
            1 => self.later(path, Change::Write(record.number, record.data.to_vec())),
            2 => self.later(path, Change::Length(record.number)),
            3 if self.names.contains_key(&path) => {
                let file = &mut self.files[self.names[&path]];
                file.synced = file.now(|_| true);
                file.later.clear();
            }
            3 => self.sync_folder(&path),
            4 => {
                let to = below(std::str::from_utf8(record.data).expect("a UTF-8 path"));
                if let Some(file) = self.names.remove(&path) {
                    self.names.insert(to, file);
                }
            }
            5 => {
                self.names.remove(&path);
                self.folders.remove(&path);
            }
            6 => self.later(path, Change::Length(0)),
            7 => drop(self.folders.insert(path)),
            kind => panic!("a record of kind {kind}"),
        }
    }

    fn later(&mut self, path: PathBuf, change: Change) {
        let file = *self.names.entry(path).or_insert_with(|| {
            self.files.push(File::default());
            self.files.len() - 1
        });
        self.files[file].later.push(change);
    }

    /// The names in `folder` are on the disk.
    fn sync_folder(&mut self, folder: &Path) {
        let inside = |path: &Path| path.parent() == Some(folder);
        self.synced_names.retain(|path, _| !inside(path));
        self.synced_names.extend(self.names.iter().filter(|(path, _)| inside(path)).map(|(path, file)| (path.clone(), *file)));
        self.synced_folders.retain(|path| !inside(path));
        self.synced_folders.extend(self.folders.iter().filter(|path| inside(path)).cloned());
    }

    fn cut(self, left: Left, random: &mut Random) -> (Content, Lost) {
        let mut lost = Lost { writes: self.files.iter().map(|file| file.later.len()).sum(), ..Lost::default() };
        let (names, folders) = match left {
            Left::Nothing => (&self.synced_names, &self.synced_folders),
            Left::Some => (&self.names, &self.folders),
        };
        lost.files = self.names.keys().filter(|path| !names.contains_key(*path)).count();
        let mut files = BTreeMap::new();
        for (path, file) in names {
            if !path.ancestors().skip(1).all(|folder| folder.as_os_str().is_empty() || folders.contains(folder)) {
                continue;
            }
            // Some files lose everything, some little.
            let odds = random.below(5);
            let content = self.files[*file].now(|_| left == Left::Some && random.below(4) < odds);
            lost.kept += self.files[*file].later.len() * usize::from(left == Left::Some && odds > 0);
            files.insert(path.clone(), content);
        }
        let whole = |path: &&PathBuf| path.ancestors().all(|folder| folder.as_os_str().is_empty() || folders.contains(folder));
        (Content { files, folders: folders.iter().filter(whole).cloned().collect() }, lost)
    }
}

impl File {
    /// Its content with those later changes, sector by sector, that arrive.
    fn now(&self, mut arrives: impl FnMut(usize) -> bool) -> Vec<u8> {
        let mut content = self.synced.clone();
        for change in &self.later {
            match change {
                Change::Length(length) => {
                    if arrives(0) {
                        content.resize(*length, 0);
                    }
                }
                Change::Write(at, data) => {
                    for start in (0..data.len()).step_by(SECTOR) {
                        if arrives(at + start) {
                            let end = data.len().min(start + SECTOR);
                            content.resize(content.len().max(at + end), 0);
                            content[at + start..at + end].copy_from_slice(&data[start..end]);
                        }
                    }
                }
            }
        }
        content
    }
}
