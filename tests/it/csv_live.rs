//! `factsync run` on a CSV file: whatever people and programs do to it, the facts are those of the last file that could be believed.
//!
//! The oracle is the file itself, parsed here; the facts are what the embedded store's API lists.

mod audited;
mod broken;
mod growing;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{eventually_async, factsync::Process};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

/// A header and two rows.
const TWO: &str = "user,role,org\n1,admin,2\n3,viewer,4\n";

/// A folder with a file, a configuration that makes `has_role` of it, and the state of its runs.
struct Live {
    folder: TempDir,
    path: PathBuf,
}

impl Live {
    fn new(text: &str) -> Self {
        let live = Self::at("members.csv", "");
        live.put(text);
        live
    }

    /// One whose file is `name` in its folder and is not there yet; `sync` goes into the block of that name.
    fn at(name: &str, sync: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let yaml = format!(
            "version: 1\nsource: csv\nfacts:\n  has_role(User:_, String:_, Organization:_):\n    path: {}\n    \
             fields: [user, role, org]\n{sync}",
            path.display()
        );
        fs::write(folder.path().join("sync.yaml"), yaml).expect("written");
        Self { folder, path }
    }

    /// Replaces the file in one step.
    fn put(&self, text: impl AsRef<[u8]>) {
        let new = self.folder.path().join("new.csv");
        fs::write(&new, text).expect("written");
        fs::rename(&new, &self.path).expect("renamed");
    }

    fn run(&self, more: &[&str]) -> Process {
        let (config, state) = (self.folder.path().join("sync.yaml"), self.folder.path().join("state"));
        let fixed = ["run", config.to_str().expect("UTF-8"), "--limits", "off", "--state", state.to_str().expect("UTF-8")];
        Process::spawn(&[&fixed, more].concat(), &[])
    }

    async fn started(&self, more: &[&str]) -> Process {
        let process = self.run(more);
        process.wait_ready().await;
        process
    }

    /// Waits until the facts of the file as it is are acknowledged, and compares them with it.
    async fn assert_equal(&self, process: &Process, context: &str) {
        process.wait_position(&digest(&self.path)).await;
        assert_eq!(held(process).await, rows(&self.path), "{context}: the fact store holds the left, the file has the right");
    }

    /// Waits until the source says why it keeps the facts it has.
    async fn assert_refused(&self, process: &Process, reason: &str) {
        let context = format!("the source says {reason:?}");
        eventually_async(DEADLINE, &context, async || {
            let source = process.status().await["sources"][0].clone();
            let said = source["reason"].as_str().unwrap_or_default().contains(reason);
            (said && source["state"] == "retrying").then_some(())
        })
        .await;
        let (status, body) = process.get("/readyz").await;
        assert!(status == 503 && body.contains(&format!("source \\\"{}\\\" is retrying", self.path.display())), "{status} {body}");
    }
}

/// What `sha256sum` prints.
fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    String::from_utf8(output.stdout).expect("hexadecimal").split(' ').next().expect("a digest").to_owned()
}

/// The user, role and organization of each row that has all three.
fn rows(path: &Path) -> BTreeSet<Vec<String>> {
    let text = fs::read_to_string(path).expect("readable");
    let mut reader = csv::Reader::from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let header = reader.headers().expect("a header").clone();
    let columns = ["user", "role", "org"].map(|name| header.iter().position(|field| field == name).expect("the field"));
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.expect("a row");
        columns.map(|column| record[column].to_owned()).to_vec()
    };
    reader.records().map(row).filter(|row| row.iter().all(|cell| !cell.is_empty())).collect()
}

/// The ids of each fact that the fact store holds.
async fn held(process: &Process) -> BTreeSet<Vec<String>> {
    let ids = |fact: &Value| {
        let args = fact["args"].as_array().expect("arguments").iter();
        args.map(|arg| arg["id"].as_str().expect("a text").to_owned()).collect()
    };
    process.facts("has_role").await.iter().map(ids).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spreadsheets_and_programs_write_is_read_alike() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    live.assert_equal(&process, "at first").await;
    for (text, context) in [
        ("\u{feff}user,role,org\r\n1,admin,2\r\n5,owner,6\r\n", "a byte order mark and CRLF"),
        ("user,role,org\n\"1\",\"ad\nmin\",\"2\"\n\"7\",\"a \"\"b\"\", c\",8\n", "quoted line breaks, quotes and commas"),
        ("org,more,user,role\n2,x,1,admin\n4,y,3,viewer\n", "columns in another order and one more"),
        ("role,user,org\nadmin,1,2", "one column less, and no end of the last line"),
        ("user,role,org\r1,admin,2\r9,viewer,10\r", "CR alone"),
        ("user,role,org\n1,admin,2\n1,admin,2\n,admin,3\n\n", "rows that are there twice, an empty cell, an empty line"),
    ] {
        live.put(text);
        live.assert_equal(&process, context).await;
    }
    let status = process.status().await;
    assert_eq!((&status["fact_types"][0]["skipped_rows"], &status["state"]), (&1.into(), &"streaming".into()), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_is_swapped_while_it_runs() {
    let live = Live::at("mount/members.csv", "");
    let mount = live.folder.path().join("mount");
    fs::create_dir(&mount).expect("made");
    let version = |n: usize, text: &str| {
        let folder = mount.join(format!("..2026_11_22_{n}"));
        fs::create_dir(&folder).and_then(|()| fs::write(folder.join("members.csv"), text)).expect("written");
        symlink(folder.file_name().expect("a name"), mount.join("..data_tmp")).expect("linked");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
        if n > 0 {
            fs::remove_dir_all(mount.join(format!("..2026_11_22_{}", n - 1))).expect("the version before goes");
        }
    };
    version(0, TWO);
    symlink("..data/members.csv", &live.path).expect("linked");
    let process = live.started(&[]).await;
    live.assert_equal(&process, "at first").await;
    for n in 1..=5 {
        version(n, &format!("user,role,org\n1,admin,{n}\n{n},viewer,4\n"));
        live.assert_equal(&process, &format!("version {n}")).await;
    }
}

/// The guard: a header without rows is a file that says that nobody may do anything any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_rows_is_a_mass_removal_that_waits_for_a_person() {
    let live = Live::at("members.csv", "sync:\n  max_removals: {count: 10, percent: 20}\n");
    let full: String = (0..50).map(|n| format!("{n},admin,2\n")).collect();
    live.put(format!("user,role,org\n{full}"));
    let process = live.started(&[]).await;
    live.assert_equal(&process, "at first").await;
    let before = held(&process).await;

    live.put("user,role,org\n");
    process.wait_position(&digest(&live.path)).await;
    assert_eq!(held(&process).await, before, "nothing is revoked");
    let held_back = process.status().await["held"][0].clone();
    assert_eq!((&held_back["removals"], &held_back["facts"]), (&50.into(), &50.into()), "{held_back:#}");
    live.put("user,role,org\n99,admin,2\n");
    process.wait_position(&digest(&live.path)).await;
    assert!(held(&process).await.contains(["99", "admin", "2"].map(str::to_owned).as_slice()), "grants flow on");
    assert!(process.terminate().success());

    let process = live.started(&[]).await;
    assert_eq!(held(&process).await.len(), 51, "a restart lets go of nothing");
    assert!(process.terminate().success());
    let process = live.started(&["--allow-removals"]).await;
    live.assert_equal(&process, "after --allow-removals").await;
    assert_eq!(process.status().await["held"], Value::Array(Vec::new()));
}
