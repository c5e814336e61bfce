//! One pass over the file: every view's rows, and the digest of the bytes they were parsed from.
//!
//! The file is opened once and judged by that handle before and after, so a rename during the pass changes nothing (the old
//! file is read to its end) and a write into it is noticed. It runs on a blocking thread, which learns that nobody waits
//! any more from the channel it reports to.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use csv::StringRecord;
use sha2::{Digest, Sha256};
use tokio::{select, sync::watch, task::spawn_blocking};

use crate::{
    config::CsvConfig,
    data::{Extent, ExtentBuilder, Position, Row},
    source::{
        Cause, Observer, Prepared, PreparedView, Snapshot, SourceError, ViewMode,
        csv::decode::{Gate, Malformed, Prefix},
    },
};

/// The parser's buffer: large enough that a system call costs nothing beside parsing what it returned.
const READ_BUFFER: usize = 64 << 10;
/// Rows between two reports, and between two looks whether anybody still waits: some milliseconds of work.
const ROWS_PER_REPORT: u64 = 4096;
/// Header names an error lists; a file without a header shows no more than this of its first row.
const NAMES_SHOWN: usize = 20;

/// Reads every view once; see [`crate::source::snapshot`].
pub async fn snapshot(name: &str, config: &CsvConfig, spool: &Path, observer: Observer<'_>) -> Result<Snapshot, SourceError> {
    let request = Arc::new(Request::new(name, config, spool));
    let views = config.views.len();
    let reading = read(request, Until::End, None, |rows| (0..views).for_each(|view| observer(view, rows))).await?;
    Ok(Snapshot { position: Some(reading.position), views: reading.views })
}

/// What to read, detached from the configuration so that a thread can own it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Each view's fact type and header names.
    views: Vec<(String, Vec<String>)>,
    spool: PathBuf,
}

/// Why a view of a file is not incremental.
pub const REFRESH_REASON: &str = "a file has no log of changes, so it is read again as a whole when it changes";

impl Request {
    /// What the stored results depend on besides the content: which columns make which facts.
    pub(super) fn prepared(&self) -> Prepared {
        let fingerprint = Sha256::digest(format!("{:?}", self.views)).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let view = PreparedView { fingerprint, mode: ViewMode::Refresh(REFRESH_REASON.to_owned()) };
        Prepared { identity: self.path.display().to_string(), views: vec![view; self.views.len()] }
    }
}

/// How much of a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// All of it.
    End,
    /// The lines that have an end, because somebody may be writing the last one.
    LastLineBreak,
}

/// What one pass yields.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) position: Position,
    /// What was read, for a later reading to be held against.
    pub(super) content: Prefix,
    /// Whether it begins with the content it was held against.
    pub(super) extends: bool,
    pub(super) views: Vec<Result<Extent, SourceError>>,
}

/// Which content a file has, as far as its metadata tells.
///
/// Length and modification time can be made what they were (`cp -p`, images whose files are all of one date), and a number of an inode
/// is given again; the time of the last change to the inode nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads the file on a blocking thread and holds it against `before`; `observe` learns the number of rows. Dropping the future ends the
/// pass.
pub(super) async fn read(
    request: Arc<Request>,
    until: Until,
    before: Option<Prefix>,
    observe: impl Fn(u64),
) -> Result<Reading, SourceError> {
    let (progress, mut rows) = watch::channel(0);
    let owned = Arc::clone(&request);
    let mut pass = spawn_blocking(move || owned.read(until, before, &progress));
    loop {
        select! {
            biased;
            Ok(()) = rows.changed() => observe(*rows.borrow_and_update()),
            done = &mut pass => {
                return done.unwrap_or_else(|error| match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(cancelled) => Err(request.unreachable("finish reading the file", cancelled)),
                });
            }
        }
    }
}

impl Request {
    pub(super) fn new(name: &str, config: &CsvConfig, spool: &Path) -> Self {
        let views = config.views.iter().map(|view| (view.fact_type.to_string(), view.query.clone())).collect();
        Self { name: name.to_owned(), path: config.path.clone(), views, spool: spool.to_owned() }
    }

    fn read(&self, until: Until, before: Option<Prefix>, progress: &watch::Sender<u64>) -> Result<Reading, SourceError> {
        let file = self.open()?;
        let failed = |action| move |error: io::Error| self.unreachable(action, error);
        let stamp = || file.metadata().map(|metadata| Stamp::new(&metadata)).map_err(failed("stat the file"));
        let began = stamp()?;
        let length = match until {
            Until::End => u64::MAX,
            Until::LastLineBreak => whole_lines(&file, began.length).map_err(failed("read the file"))?,
        };
        let mut reader = reader_of(Gate::new(file.try_clone().map_err(failed("open the file"))?.take(length), before));
        let views = self.pass(&mut reader, progress);
        let ended = stamp()?;
        let gate = reader.into_inner();
        let (content, extends) = (gate.prefix(), gate.extends());
        // To what begins as it did before something was appended, which is not in what was read.
        let grown = until == Until::LastLineBreak && extends && ended.length >= began.length;
        // First, because a file that changed under the parser may look like anything.
        if ended != began && !grown {
            return Err(self.unreachable("read the file in one piece", "somebody wrote into it meanwhile"));
        }
        Ok(Reading { position: Position::Digest(content.digest.clone()), content, extends, views: views? })
    }

    /// Opens a regular file; a pipe would block until somebody writes to it.
    fn open(&self) -> Result<File, SourceError> {
        let unreachable = |error| self.unreachable("open the file", error);
        if !fs::metadata(&self.path).map_err(unreachable)?.is_file() {
            return Err(self.malformed("it is no regular file"));
        }
        File::open(&self.path).map_err(unreachable)
    }

    fn pass(
        &self,
        reader: &mut csv::Reader<Gate<io::Take<File>>>,
        progress: &watch::Sender<u64>,
    ) -> Result<Vec<Result<Extent, SourceError>>, SourceError> {
        let mut record = StringRecord::new();
        if !self.next(reader, &mut record)? {
            return Err(self.malformed("it is empty, without even a header"));
        }
        let header = record.clone();
        let mut views: Vec<Result<View, SourceError>> =
            self.views.iter().map(|(fact_type, fields)| self.view(fact_type, fields, &header)).collect();
        let mut rows = 0;
        while self.next(reader, &mut record)? {
            if record.len() != header.len() {
                let line = record.position().map_or(0, csv::Position::line);
                return Err(self.malformed(format!("line {line} has {} cells, the header has {}", record.len(), header.len())));
            }
            for view in views.iter_mut().flatten() {
                view.push(&record).map_err(|e| self.spool(e))?;
            }
            rows += 1;
            if rows % ROWS_PER_REPORT == 0 {
                self.report(progress, rows)?;
            }
        }
        self.report(progress, rows)?;
        let finish = |view: Result<View, SourceError>| match view {
            Ok(view) => view.rows.finish().map(Ok).map_err(|error| self.spool(error)),
            Err(error) => Ok(Err(error)),
        };
        views.into_iter().map(finish).collect()
    }

    /// Reads the next record; `false` at the end.
    fn next(&self, reader: &mut csv::Reader<Gate<io::Take<File>>>, record: &mut StringRecord) -> Result<bool, SourceError> {
        reader.read_record(record).map_err(|error| {
            let line = error.position().map_or(0, csv::Position::line);
            match error.into_kind() {
                csv::ErrorKind::Io(error) => match error.downcast::<Malformed>() {
                    Ok(malformed) => self.malformed(malformed.to_string()),
                    Err(error) => self.unreachable("read the file", error),
                },
                csv::ErrorKind::Utf8 { .. } => self.malformed(format!("the record that starts on line {line} is not UTF-8")),
                _ => self.malformed(format!("the record that starts on line {line} cannot be parsed")),
            }
        })
    }

    fn view(&self, fact_type: &str, fields: &[String], header: &StringRecord) -> Result<View, SourceError> {
        let column = |field: &String| {
            let mut columns = header.iter().enumerate().filter(|(_, name)| name == field).map(|(column, _)| column);
            match (columns.next(), columns.next()) {
                (Some(column), None) => Ok(column),
                (Some(_), Some(_)) => Err(format!("the header of \"{}\" has the field \"{field}\" twice", self.path.display())),
                (None, _) => Err(format!("the header of \"{}\" has no field \"{field}\"; it has {}", self.path.display(), names(header))),
            }
        };
        match fields.iter().map(column).collect::<Result<_, String>>() {
            Ok(columns) => Ok(View { columns, rows: ExtentBuilder::new(&self.spool) }),
            Err(problem) => Err(SourceError::View { name: self.name.clone(), fact_type: fact_type.to_owned(), problem }),
        }
    }

    /// Fails when nobody waits for the result any more.
    fn report(&self, progress: &watch::Sender<u64>, rows: u64) -> Result<(), SourceError> {
        progress.send(rows).map_err(|_| self.unreachable("finish reading the file", "nobody waits for it any more"))
    }

    fn unreachable(&self, action: &'static str, source: impl Into<Cause>) -> SourceError {
        SourceError::Unreachable { name: self.name.clone(), action, source: source.into() }
    }

    fn malformed(&self, problem: impl Into<String>) -> SourceError {
        SourceError::Malformed { name: self.name.clone(), problem: problem.into() }
    }

    fn spool(&self, source: io::Error) -> SourceError {
        SourceError::Spool { name: self.name.clone(), source }
    }
}

/// The parser behind a gate.
pub(super) fn reader_of<R: Read>(gate: Gate<R>) -> csv::Reader<Gate<R>> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true) // `pass` checks the width, to say what it found.
        .buffer_capacity(READ_BUFFER)
        .from_reader(gate)
}

/// One view's columns and the rows so far.
struct View {
    columns: Vec<usize>,
    rows: ExtentBuilder,
}

impl View {
    fn push(&mut self, record: &StringRecord) -> io::Result<()> {
        let cells = self.columns.iter().map(|&column| Some(&record[column]).filter(|cell| !cell.is_empty()));
        self.rows.push(Row::from_cells(cells))
    }
}

/// The length of the lines of `file` that have an end, within its first `length` bytes.
fn whole_lines(file: &File, length: u64) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BUFFER];
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(READ_BUFFER as u64);
        let part = &mut buffer[..usize::try_from(end - begin).expect("at most a buffer")];
        file.read_exact_at(part, begin)?;
        if let Some(last) = part.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')) {
            return Ok(begin + last as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// A header's names for an error.
fn names(header: &StringRecord) -> String {
    let shown: Vec<String> = header.iter().take(NAMES_SHOWN).map(|name| format!("\"{name}\"")).collect();
    let more = if header.len() > NAMES_SHOWN { format!(" and {} more", header.len() - NAMES_SHOWN) } else { String::new() };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: u64) -> (tempfile::TempDir, Request) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("users.csv");
        let text: String = (0..rows).map(|row| format!("{row}\n")).collect();
        fs::write(&path, format!("user\n{text}")).expect("written");
        let views = vec![("member(User:_)".to_owned(), vec!["user".to_owned()])];
        let request = Request { name: "users.csv".to_owned(), path, views, spool: dir.path().to_owned() };
        (dir, request)
    }

    #[test]
    fn a_pass_ends_soon_after_nobody_waits_for_it() {
        let (_dir, request) = request(3 * ROWS_PER_REPORT);
        let (progress, rows) = watch::channel(0);
        drop(rows);
        let error = request.read(Until::End, None, &progress).expect_err("nobody waits");
        assert!(matches!(error, SourceError::Unreachable { action: "finish reading the file", .. }), "{error}");
        assert_eq!(*progress.borrow(), 0, "it stopped at the first report");
    }

    #[test]
    fn what_is_written_into_during_the_pass_is_read_again() {
        let (_dir, request) = request(500_000);
        let (progress, rows) = watch::channel(0);
        let path = request.path.clone();
        let writer = std::thread::spawn(move || {
            // The first report comes with nearly all of the file still ahead.
            while *rows.borrow() == 0 {
                std::thread::yield_now();
            }
            fs::OpenOptions::new().append(true).open(path).and_then(|mut file| io::Write::write_all(&mut file, b"\"")).expect("written");
            rows
        });
        let error = request.read(Until::End, None, &progress).expect_err("it changed");
        let _rows = writer.join().expect("no panic");
        assert_eq!(error.to_string(), "could not read the file in one piece at source \"users.csv\"");
        assert_eq!(error.disposition(), crate::error::Disposition::Retry, "although what was parsed is malformed");
    }
}
