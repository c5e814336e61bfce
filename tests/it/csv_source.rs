//! The CSV source: what one read takes and refuses, and what a follower makes of everything people and programs do to files.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use factsync::{
    config::{CsvConfig, Place, View},
    data::{Extent, Position},
    error::Disposition,
    source::{Event, Follow, Link, Snapshot, SourceError, SourceState, Start, csv},
};
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(60);
/// Polling needs at least this long to believe a change, so what is faster was an event.
const POLL: Duration = Duration::from_secs(2);
/// Two columns in the file's order and one on its own.
const VIEWS: [(&str, &[&str]); 2] =
    [("has_role(User:_, String:_, Organization:_)", &["user", "role", "org"]), ("member(User:_)", &["user"])];

type Cells = Vec<Vec<Option<String>>>;

fn config(path: &Path, views: &[(&str, &[&str])]) -> CsvConfig {
    let view = |(fact_type, fields): &(&str, &[&str])| View {
        fact_type: fact_type.parse().expect("a signature"),
        place: Place { file: "sync.yaml".into(), line: 1, column: 1 },
        query: fields.iter().map(|&field| field.to_owned()).collect(),
    };
    CsvConfig { path: path.to_owned(), views: views.iter().map(view).collect() }
}

fn cells(extent: Extent) -> Cells {
    extent.map(|row| row.expect("a row").cells()).collect()
}

fn some(rows: &[&[&str]]) -> Cells {
    rows.iter().map(|row| row.iter().map(|cell| Some((*cell).to_owned())).collect()).collect()
}

fn digest(path: &Path) -> Position {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    let text = String::from_utf8(output.stdout).expect("hexadecimal");
    text.split(' ').next().expect("a digest").parse().expect("a position")
}

async fn snapshot_of(path: &Path) -> Result<Snapshot, SourceError> {
    let spool = tempfile::tempdir().expect("a folder");
    csv::snapshot("users.csv", &config(path, &VIEWS), spool.path(), &|_, _| {}).await
}

/// Reads `content` once.
async fn read(content: &[u8]) -> Result<(Position, Vec<Result<Cells, SourceError>>), SourceError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users.csv");
    fs::write(&path, content).expect("written");
    let snapshot = snapshot_of(&path).await?;
    let position = snapshot.position.expect("a digest");
    assert_eq!(position, digest(&path), "what sha256sum prints");
    Ok((position, snapshot.views.into_iter().map(|view| view.map(cells)).collect()))
}

#[tokio::test]
async fn one_read_fills_every_view() {
    let text = "role,org,user,more\r\nadmin,1,bob,x\r\n\"a \"\"b\"\"\r\nc\",2,\"al,ice\",\r\nadmin,1,bob,y\r\n,3,\"\",";
    let (_, views) = read(text.as_bytes()).await.expect("read");
    let views: Vec<Cells> = views.into_iter().map(|view| view.expect("a view")).collect();
    let empty = vec![None, None, Some("3".to_owned())];
    assert_eq!(views[0], [vec![empty], some(&[&["al,ice", "a \"b\"\r\nc", "2"], &["bob", "admin", "1"]])].concat());
    assert_eq!(views[1], [vec![vec![None]], some(&[&["al,ice"], &["bob"]])].concat());
}

#[tokio::test]
async fn a_byte_order_mark_belongs_to_the_digest_and_not_to_the_header() {
    let (with, views) = read("\u{feff}\"user\",role,org\n1,admin,é\n".as_bytes()).await.expect("read");
    assert_eq!(views.into_iter().next().expect("one").expect("a view"), some(&[&["1", "admin", "é"]]));
    let (without, _) = read("\"user\",role,org\n1,admin,é\n".as_bytes()).await.expect("read");
    assert_ne!(with, without);
}

#[tokio::test]
async fn a_header_alone_is_an_empty_result() {
    for text in ["user,role,org", "user,role,org\n", "\n\nuser,role,org\r\n\r\n"] {
        let (_, views) = read(text.as_bytes()).await.expect("read");
        assert!(views.into_iter().all(|view| view.expect("a view").is_empty()), "{text:?}");
    }
}

#[tokio::test]
async fn a_malformed_file_yields_nothing_and_a_reason_without_its_cells() {
    for (content, want) in [
        (&b""[..], "it is empty, without even a header"),
        (b"\xEF\xBB\xBF", "it is empty, without even a header"),
        (b"user,role,org\n1,secret,2\n3,secret\n", "line 3 has 2 cells, the header has 3"),
        (b"user,role,org\n1,secret,2,3\n", "line 2 has 4 cells, the header has 3"),
        (b"user,role,org\n1,\"secret\n2,x", "the file ends inside the quotes that line 2 opens"),
        (b"user,role,org\n1,\"secret\"x,2\n", "line 2 has text between a closing quote and the next comma"),
        (b"user,role,org\n1,secret,2\n1,secret\xFF,2\n", "the record that starts on line 3 is not UTF-8"),
        (b"\xFF\xFEu\0s\0e\0r\0", "it is UTF-16; save it as UTF-8"),
    ] {
        let error = read(content).await.expect_err(want);
        assert_eq!(error.to_string(), format!("could not use what source \"users.csv\" holds: {want}"));
        assert_eq!(error.disposition(), Disposition::Operator);
    }
}

#[tokio::test]
async fn a_missing_field_is_named_and_hides_no_other_view() {
    let (_, views) = read(b"user,Role,org\n1,admin,2\n").await.expect("read");
    let [first, second] = <[_; 2]>::try_from(views).expect("two views");
    let error = first.expect_err("no such field").to_string();
    assert!(error.contains("\"has_role(User:_, String:_, Organization:_)\"") && error.contains("\"users.csv\""), "{error}");
    assert!(error.ends_with("has no field \"role\"; it has \"user\", \"Role\", \"org\""), "{error}");
    assert_eq!(second.expect("a view"), some(&[&["1"]]));

    let (_, views) = read(b"user,role,org,user\n1,admin,2,3\n").await.expect("read");
    let error = views.into_iter().next().expect("one").expect_err("ambiguous").to_string();
    assert!(error.ends_with("has the field \"user\" twice"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_opened_is_tried_again_and_what_is_no_file_is_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = snapshot_of(&dir.path().join("users.csv")).await.expect_err("nothing there");
    assert_eq!(error.disposition(), Disposition::Retry);
    assert_eq!(error.to_string(), "could not open the file at source \"users.csv\"");

    let error = snapshot_of(dir.path()).await.expect_err("a folder");
    assert!(error.to_string().ends_with("it is no regular file"), "{error}");
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    let error = snapshot_of(&pipe).await.expect_err("a pipe, which must not block");
    assert!(error.to_string().ends_with("it is no regular file"), "{error}");
}

#[tokio::test]
async fn two_hundred_thousand_rows_spill_and_come_back() {
    const ROWS: u64 = 200_000;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users.csv");
    let mut text = String::from("user,role,org\n");
    for row in 0..ROWS {
        // Far apart in the file, so that sorting has something to do.
        text += &format!("user-{:06},\"role {}\",organization-{row:064}\n", row * 7919 % ROWS, row % 3);
    }
    fs::write(&path, text).expect("written");
    let (seen, reports) = (Mutex::new([0; 2]), AtomicU64::new(0));
    let observer = |view: usize, rows: u64| {
        let last = std::mem::replace(&mut seen.lock().expect("not poisoned")[view], rows);
        assert!(last <= rows, "the count only grows");
        reports.fetch_add(1, Ordering::Relaxed);
    };
    let snapshot = csv::snapshot("users.csv", &config(&path, &VIEWS), dir.path(), &observer).await.expect("read");
    assert_eq!(snapshot.position, Some(digest(&path)));
    assert_eq!(*seen.lock().expect("not poisoned"), [ROWS; 2], "the last report is the total");
    let [roles, users] = <[_; 2]>::try_from(snapshot.views).expect("two views").map(|view| view.expect("a view"));
    assert_eq!(roles.count() as u64, ROWS);
    assert!(users.enumerate().all(|(n, row)| row.expect("a row").cells() == [Some(format!("user-{n:06}"))]));
}

/// A follower in a task of its own, and both ends of its link.
struct Followed {
    dir: TempDir,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
    wanted: watch::Sender<Option<Position>>,
    stop: watch::Sender<bool>,
    _durable: watch::Sender<Option<Position>>,
    task: JoinHandle<Result<(), SourceError>>,
    changes: usize,
}

impl Followed {
    fn start(dir: TempDir, path: PathBuf, from: Option<Position>) -> Self {
        let (sender, events) = mpsc::channel(1);
        let (durable_sender, durable) = watch::channel(None);
        let (wanted_sender, wanted) = watch::channel(None);
        let (stop_sender, stop) = watch::channel(false);
        let mut follower = csv::Follower::new("users.csv", &config(&path, &VIEWS[..1]), dir.path());
        let mut link = Link { events: sender, durable, wanted, stop };
        let task = tokio::spawn(async move { follower.follow(Start::refreshing(from, 2), &mut link).await });
        Self { dir, path, events, wanted: wanted_sender, stop: stop_sender, _durable: durable_sender, task, changes: 0 }
    }

    /// Follows a file with one row, past its first cut.
    async fn streaming() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("users.csv");
        fs::write(&path, "user,role,org\n1,admin,2\n").expect("written");
        let mut followed = Self::start(dir, path, None);
        followed.state(SourceState::Snapshotting).await;
        assert_eq!(followed.cut(true).await, some(&[&["1", "admin", "2"]]));
        followed.state(SourceState::Streaming).await;
        followed
    }

    async fn next(&mut self) -> Event {
        timeout(DEADLINE, self.events.recv()).await.expect("an event in time").expect("the follower lives")
    }

    async fn state(&mut self, want: SourceState) {
        match self.next().await {
            Event::State(state) => assert_eq!(state, want),
            other => panic!("not a state: {other:?}"),
        }
    }

    /// The reason to retry that comes next.
    async fn reason(&mut self) -> String {
        match self.next().await {
            Event::State(SourceState::Retrying(reason)) => reason,
            other => panic!("not a reason: {other:?}"),
        }
    }

    /// The next event but progress, which any touch of the file causes; a cut of the file as it is now.
    async fn cut(&mut self, want_snapshot: bool) -> Cells {
        loop {
            match self.next().await {
                Event::Changes { .. } | Event::Clock { .. } | Event::Progress { .. } => {}
                Event::Cut { position, views, snapshot } => {
                    assert_eq!((position, snapshot), (digest(&self.path), want_snapshot));
                    let [(0, extent)] = <[_; 1]>::try_from(views).expect("one view") else { panic!("not the first view") };
                    return cells(extent.answer);
                }
                other => panic!("not a cut: {other:?}"),
            }
        }
    }

    /// Makes three changes, each to one row with its number, and expects each as a cut; the quickest must have been an event.
    async fn three_prompt_cuts(&mut self, mut change: impl FnMut(usize, &str)) {
        let mut quickest = DEADLINE;
        for _ in 0..3 {
            self.changes += 1;
            let n = self.changes;
            let start = Instant::now();
            change(n, &format!("user,role,org\nn{n},viewer,2\n"));
            assert_eq!(self.cut(false).await, some(&[&[&format!("n{n}"), "viewer", "2"]]));
            quickest = quickest.min(start.elapsed());
        }
        assert!(quickest < POLL, "found by polling: {quickest:?}");
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        timeout(DEADLINE, self.task).await.expect("stopped in time").expect("no panic").expect("no error");
    }
}

#[tokio::test]
async fn an_atomic_rename_is_one_cut() {
    let mut followed = Followed::streaming().await;
    let (path, new) = (followed.path.clone(), followed.dir.path().join("new.csv"));
    let rename = |_, text: &str| {
        fs::write(&new, text).expect("written");
        fs::rename(&new, &path).expect("renamed");
    };
    followed.three_prompt_cuts(rename).await;
    followed.stop().await;
}

#[tokio::test]
async fn a_rewrite_in_place_is_one_cut_once_it_is_closed() {
    let mut followed = Followed::streaming().await;
    let path = followed.path.clone();
    followed.three_prompt_cuts(|_, text| fs::write(&path, text).expect("written")).await;
    followed.stop().await;
}

#[tokio::test]
async fn half_a_quoted_record_changes_nothing_until_the_rest_is_there() {
    let mut followed = Followed::streaming().await;
    fs::write(&followed.path, "user,role,org\n3,\"owner").expect("written");
    let reason = followed.reason().await;
    assert!(reason.ends_with("the file ends inside the quotes that line 2 opens"), "{reason}");
    fs::write(&followed.path, "user,role,org\n3,\"owner\",4\n").expect("written");
    assert_eq!(followed.cut(false).await, some(&[&["3", "owner", "4"]]));
    followed.state(SourceState::Streaming).await;
    followed.stop().await;
}

/// The dangerous half: it ends after a whole row, so only the writer knows that it is one. The reader waits for the close.
#[tokio::test]
async fn a_file_that_is_still_open_is_not_taken_for_a_shorter_one() {
    let mut followed = Followed::streaming().await;
    let mut file = File::create(&followed.path).expect("truncated");
    file.write_all(b"user,role,org\n1,admin,2\n").expect("written");
    file.write_all(b"5,viewer,6\n").expect("written");
    file.flush().expect("flushed");
    // A position nobody reaches must not make it read early either.
    followed.wanted.send_replace(Some("0".repeat(64).parse().expect("a position")));
    let early = timeout(Duration::from_secs(1), followed.next()).await;
    assert!(early.is_err(), "{early:?}");
    file.write_all(b"7,viewer,6\n").expect("written");
    drop(file);
    assert_eq!(followed.cut(false).await, some(&[&["1", "admin", "2"], &["5", "viewer", "6"], &["7", "viewer", "6"]]));
    followed.stop().await;
}

#[tokio::test]
async fn a_file_that_vanishes_revokes_nothing_and_may_come_back() {
    let mut followed = Followed::streaming().await;
    let (aside, before) = (followed.dir.path().join("aside.csv"), digest(&followed.path));
    fs::rename(&followed.path, &aside).expect("renamed");
    let reason = followed.reason().await;
    assert!(reason.contains("could not open the file at source \"users.csv\": No such file"), "{reason}");
    fs::rename(&aside, &followed.path).expect("renamed back");
    match followed.next().await {
        Event::Progress { settled: position, .. } => assert_eq!(position, before),
        other => panic!("not the same content: {other:?}"),
    }
    followed.state(SourceState::Streaming).await;

    fs::remove_dir_all(followed.dir.path()).expect("the whole folder removed");
    followed.reason().await;
    fs::create_dir(followed.dir.path()).expect("made anew");
    fs::write(&followed.path, "user,role,org\n8,viewer,9\n").expect("written");
    loop {
        match followed.next().await {
            Event::State(SourceState::Retrying(_)) => {} // read between the two steps
            Event::Cut { position, snapshot: false, .. } => break assert_eq!(position, digest(&followed.path)),
            other => panic!("not the new content: {other:?}"),
        }
    }
    followed.state(SourceState::Streaming).await;
    fs::write(&followed.path, "user,role,org\n8,viewer,10\n").expect("written");
    assert_eq!(followed.cut(false).await, some(&[&["8", "viewer", "10"]]), "the new folder is watched");
    followed.stop().await;
}

#[tokio::test]
async fn a_header_without_a_field_and_an_empty_file_change_nothing() {
    let mut followed = Followed::streaming().await;
    fs::write(&followed.path, "user,rolle,org\n").expect("written");
    let reason = followed.reason().await;
    assert!(reason.contains("has no field \"role\"; it has \"user\", \"rolle\", \"org\""), "{reason}");
    fs::write(&followed.path, "").expect("written");
    let reason = followed.reason().await;
    assert!(reason.ends_with("it is empty, without even a header"), "{reason}");
    fs::write(&followed.path, "user,role,org\n").expect("written");
    assert_eq!(followed.cut(false).await, some(&[]), "a header alone says that there is nothing");
    followed.stop().await;
}

/// Kubernetes mounts a ConfigMap as `users.csv -> ..data/users.csv`, `..data -> ..<time>`, and swaps the second link.
#[tokio::test]
async fn a_config_map_is_swapped_by_its_link() {
    let (mount, outside) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let version = |n: usize, text: &str| {
        let folder = mount.path().join(format!("..v{n}"));
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("users.csv"), text).expect("written");
        swap(&folder, &mount.path().join("..data"));
        if n > 0 {
            fs::remove_dir_all(mount.path().join(format!("..v{}", n - 1))).expect("the old version removed");
        }
    };
    version(0, "user,role,org\n1,admin,2\n");
    symlink("..data/users.csv", mount.path().join("users.csv")).expect("linked");
    // The mount itself is reached through a link that somebody may swap.
    let link = outside.path().join("current");
    swap(mount.path(), &link);
    let mut followed = Followed::start(outside, link.join("users.csv"), None);
    followed.state(SourceState::Snapshotting).await;
    assert_eq!(followed.cut(true).await, some(&[&["1", "admin", "2"]]));
    followed.state(SourceState::Streaming).await;

    followed.three_prompt_cuts(version).await;
    let releases = tempfile::tempdir().expect("a folder");
    let release = |n: usize, text: &str| {
        let folder = releases.path().join(n.to_string());
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("users.csv"), text).expect("written");
        swap(&folder, &link);
    };
    followed.three_prompt_cuts(release).await;
    followed.stop().await;
}

/// Points `link` at `target` in one step, as `ln -sfn` does.
fn swap(target: &Path, link: &Path) {
    let new = link.with_file_name("..next");
    symlink(target, &new).expect("linked");
    fs::rename(&new, link).expect("swapped");
}

/// Writing through another name of the file makes no event in the watched folder.
#[tokio::test]
async fn a_change_without_an_event_is_found_by_polling() {
    let mut followed = Followed::streaming().await;
    let elsewhere = tempfile::tempdir_in(followed.dir.path().parent().expect("a parent")).expect("a folder");
    let other_name = elsewhere.path().join("other.csv");
    fs::hard_link(&followed.path, &other_name).expect("linked");
    fs::write(&other_name, "user,role,org\n1,admin,2\n3,viewer,4\n").expect("written");
    assert_eq!(followed.cut(false).await, some(&[&["1", "admin", "2"], &["3", "viewer", "4"]]));
    followed.stop().await;
}

#[tokio::test]
async fn a_wanted_position_is_looked_for_at_once() {
    let mut followed = Followed::streaming().await;
    let wanted = digest(&followed.path);
    followed.wanted.send_replace(Some("f".repeat(64).parse().expect("a position")));
    match followed.next().await {
        Event::Progress { settled: position, .. } => assert_eq!(position, wanted),
        other => panic!("not progress: {other:?}"),
    }
    followed.stop().await;
}

#[tokio::test]
async fn a_restart_reports_a_cut_only_if_the_content_is_another() {
    let first = Followed::streaming().await;
    let (path, here) = (first.path.clone(), digest(&first.path));
    first.stop.send_replace(true);
    timeout(DEADLINE, first.task).await.expect("stopped in time").expect("no panic").expect("no error");

    let mut same = Followed::start(first.dir, path, Some(here.clone()));
    match same.next().await {
        Event::Progress { settled: position, .. } => assert_eq!(position, here),
        other => panic!("not progress: {other:?}"),
    }
    same.state(SourceState::Streaming).await;
    same.stop.send_replace(true);
    timeout(DEADLINE, same.task).await.expect("stopped in time").expect("no panic").expect("no error");

    fs::write(&same.path, "user,role,org\n1,admin,3\n").expect("written");
    let mut changed = Followed::start(same.dir, same.path, Some(here));
    assert_eq!(changed.cut(false).await, some(&[&["1", "admin", "3"]]));
    changed.stop().await;
}

#[tokio::test]
async fn a_position_of_another_kind_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users.csv");
    let followed = Followed::start(dir, path, Some("0/1A".parse().expect("an LSN")));
    let error = timeout(DEADLINE, followed.task).await.expect("in time").expect("no panic").expect_err("an LSN is no digest");
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error}");
}

/// The channel holds one event; nobody takes the others, and the follower must still hear the stop.
#[tokio::test]
async fn a_follower_that_cannot_send_still_stops() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("users.csv");
    fs::write(&path, "user,role,org\n1,admin,2\n").expect("written");
    Followed::start(dir, path, None).stop().await;

    let mut unheard = Followed::streaming().await;
    unheard.events.close();
    timeout(DEADLINE, unheard.task).await.expect("ended in time").expect("no panic").expect("no error");
}
