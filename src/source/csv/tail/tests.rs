//! The follower on a file system that tells of nothing, and with writers who do not close their file.
//!
//! The clock stands still while anything is busy and jumps when nothing is, so seconds of patience cost nothing here; events are those
//! that a test tells.

use std::{
    fs::{self, File, FileTimes},
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    time::SystemTime,
};

use tokio::task::JoinHandle;

use super::*;
use crate::{config::CsvConfig, source::csv::watch::Activity};

/// A follower without events, in a task of its own.
struct Blind {
    dir: tempfile::TempDir,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
    /// Stands for what a file system would tell.
    activity: watch::Sender<Activity>,
    /// Asks for nothing, and has to be there.
    _wanted: watch::Sender<Option<Position>>,
    task: JoinHandle<SourceError>,
}

impl Blind {
    /// Follows a file of two users, past its first cut.
    async fn streaming() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("users.csv");
        fs::write(&path, "user\n1\n2\n").expect("written");
        Self::following(dir, path).await
    }

    async fn following(dir: tempfile::TempDir, path: PathBuf) -> Self {
        let view = crate::config::View {
            fact_type: "member(User:_)".parse().expect("a signature"),
            place: crate::config::Place { file: "sync.yaml".into(), line: 1, column: 1 },
            query: vec!["user".to_owned()],
        };
        let request = Arc::new(Request::new("users.csv", &CsvConfig { path: path.clone(), views: vec![view] }, dir.path()));
        let (sender, events) = mpsc::channel(1);
        let (wanted_sender, mut wanted) = watch::channel(None);
        let (watch, activity) = PathWatch::blind(&path);
        let seen = activity.subscribe();
        let task = tokio::spawn(async move {
            let mut tail = Tail::watching(request, None, &sender, Alarm::new(watch, seen));
            tail.run(&mut wanted).await
        });
        let mut blind = Self { dir, path, events, activity, _wanted: wanted_sender, task };
        assert_eq!(blind.users().await, ["1", "2"]);
        blind
    }

    /// The content of the next cut; what comes before it are states and progress.
    async fn users(&mut self) -> Vec<String> {
        loop {
            if let Event::Cut { views, .. } = self.events.recv().await.expect("the follower lives") {
                let rows = views.into_iter().next().expect("one view").1.answer;
                return rows.map(|row| row.expect("a row").cells().remove(0).expect("a text")).collect();
            }
        }
    }

    /// The reason of the next state that has one, if no cut comes first.
    async fn reason(&mut self) -> String {
        loop {
            match self.events.recv().await.expect("the follower lives") {
                Event::State(SourceState::Retrying(reason)) => return reason,
                Event::Cut { .. } => panic!("a cut, where nothing was to be taken"),
                _ => {}
            }
        }
    }

    /// Appends `text` through `file` and tells what inotify would.
    fn write(&self, file: &mut File, text: &str) {
        file.write_all(text.as_bytes()).expect("written");
        self.tell(Writer::Open);
    }

    fn tell(&self, writer: Writer) {
        self.activity.send_modify(|activity| *activity = Activity { events: activity.events + 1, writer });
    }

    fn end(self) {
        self.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn without_events_a_replaced_a_rewritten_and_a_vanished_file_are_found_by_looking() {
    let mut blind = Blind::streaming().await;
    let new = blind.dir.path().join("new.csv");
    fs::write(&new, "user\n3\n").expect("written");
    fs::rename(&new, &blind.path).expect("renamed");
    assert_eq!(blind.users().await, ["3"]);
    fs::write(&blind.path, "user\n4\n5\n").expect("rewritten");
    assert_eq!(blind.users().await, ["4", "5"]);
    fs::remove_file(&blind.path).expect("removed");
    let reason = blind.reason().await;
    assert!(reason.contains("could not open the file"), "{reason}");
    fs::write(&blind.path, "user\n6\n").expect("written");
    assert_eq!(blind.users().await, ["6"]);
    blind.end();
}

/// As files in images and of `cp -p` are: only the time of the inode's last change tells them apart.
#[tokio::test(start_paused = true)]
async fn without_events_another_content_of_the_same_size_and_age_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users.csv");
    let age = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    let write = |text: &str| {
        let mut file = File::create(&path).expect("opened");
        file.write_all(text.as_bytes()).and_then(|()| file.set_times(age)).expect("written");
    };
    write("user\n1\n2\n");
    let mut blind = Blind::following(dir, path.clone()).await;
    write("user\n1\n3\n");
    assert_eq!(blind.users().await, ["1", "3"]);
    blind.end();
}

#[tokio::test(start_paused = true)]
async fn without_events_a_config_map_that_is_swapped_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let version = |name: &str, text: &str| {
        fs::create_dir(dir.path().join(name)).and_then(|()| fs::write(dir.path().join(name).join("users.csv"), text)).expect("written");
        symlink(name, dir.path().join("..next")).and_then(|()| fs::rename(dir.path().join("..next"), dir.path().join("..data")))
    };
    version("..v1", "user\n1\n2\n").expect("swapped");
    let path = dir.path().join("users.csv");
    symlink("..data/users.csv", &path).expect("linked");
    version("..v2", "user\n1\n2\n").expect("swapped");
    let next = dir.path().join("..v3");
    let mut blind = Blind::following(dir, path).await;
    fs::create_dir(&next).and_then(|()| fs::write(next.join("users.csv"), "user\n7\n")).expect("written");
    let root = blind.dir.path();
    symlink("..v3", root.join("..next")).and_then(|()| fs::rename(root.join("..next"), root.join("..data"))).expect("swapped");
    assert_eq!(blind.users().await, ["7"]);
    blind.end();
}

#[tokio::test(start_paused = true)]
async fn of_a_log_that_stays_open_the_lines_that_have_an_end_are_taken() {
    let mut blind = Blind::streaming().await;
    let mut log = File::options().append(true).open(&blind.path).expect("opened");
    let began = Instant::now();
    blind.write(&mut log, "3\n45");
    assert_eq!(blind.users().await, ["1", "2", "3"], "nobody knows whether it is 45 or the beginning of 456");
    assert!(began.elapsed() >= OPEN_WRITER, "{:?}", began.elapsed());
    blind.write(&mut log, "6\n");
    assert_eq!(blind.users().await, ["1", "2", "3", "456"]);
    blind.write(&mut log, "7");
    drop(log);
    blind.tell(Writer::Closed);
    assert_eq!(blind.users().await, ["1", "2", "3", "456", "7"], "a last line needs no end once its writer is done");
    blind.end();
}

/// A download or a dump into the file itself, slower than [`OPEN_WRITER`]: what is there so far must not pass for all there is.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_slowly_written_anew_is_taken_when_its_writer_is_done() {
    let mut blind = Blind::streaming().await;
    let mut file = File::create(&blind.path).expect("truncated");
    blind.write(&mut file, "user\n9\n");
    for _ in 0..2 {
        // Never quiet for long.
        for _ in 0..4 {
            tokio::time::sleep(OPEN_WRITER / 3).await;
            blind.write(&mut file, "8\n");
        }
        assert!(!blind.task.is_finished());
    }
    assert!(blind.reason().await.ends_with("it is being written anew, and whoever does has not closed it"));
    blind.write(&mut file, "1\n");
    drop(file);
    blind.tell(Writer::Closed);
    assert_eq!(blind.users().await, ["1", "8", "9"]);
    blind.end();
}

/// One that never closes its file is believed in the end: revocations that never come are worse.
#[tokio::test(start_paused = true)]
async fn a_file_that_was_written_anew_and_is_left_open_is_taken_when_nobody_writes_any_more() {
    let mut blind = Blind::streaming().await;
    let mut file = File::create(&blind.path).expect("truncated");
    let began = Instant::now();
    blind.write(&mut file, "user\n2\n");
    tokio::time::sleep(OPEN_WRITER / 2).await;
    blind.write(&mut file, "4\n");
    assert!(blind.reason().await.ends_with("it is being written anew, and whoever does has not closed it"));
    assert_eq!(blind.users().await, ["2", "4"]);
    assert!(began.elapsed() >= OPEN_WRITER * 3 / 2, "{:?}", began.elapsed());
    blind.end();
}

#[test]
fn a_closed_file_is_read_soon_and_an_open_one_when_patience_ends() {
    let first = Instant::now();
    let after = |writer, last: Duration| Unread { first, last: first + last, writer }.due() - first;
    assert_eq!(after(Writer::Closed, Duration::ZERO), QUIET);
    assert_eq!(after(Writer::Closed, Duration::from_secs(5)), MAX_DELAY, "constant writes do not put it off");
    assert_eq!(after(Writer::Open, Duration::from_secs(5)), OPEN_WRITER);
}
