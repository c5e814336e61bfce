//! A wall clock that jumps, forward by hours and back by days: it is shown to people and decides nothing. Waits, pauses, quotas and audits
//! go by the monotonic clock, and what a query calls `now()` is the source's.

use std::{path::PathBuf, process::Command, time::Duration};

use tempfile::TempDir;

use crate::support::{
    app::App,
    eventually_async,
    factsync::{Process, root},
};

const DEADLINE: Duration = Duration::from_secs(30);

const FACTS: [(&str, &str); 2] =
    [("has_role(User:_, String:_)", "SELECT id, role FROM member"), ("is_valid(User:_)", "SELECT id FROM member WHERE expires_at > now()")];
const SCHEMA: &str = "CREATE TABLE member (id int PRIMARY KEY, role text, expires_at timestamptz);
    INSERT INTO member VALUES (1, 'r', now() + interval '1 hour'), (2, 'r', now() - interval '1 hour')";

/// `tests/tools/clock.c`, compiled, and the file that says by how much the clock is off.
struct Shim {
    folder: TempDir,
}

impl Shim {
    fn compile() -> Self {
        let shim = Self { folder: tempfile::tempdir().expect("a folder") };
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(shim.preloaded()).arg(root().join("tests/tools/clock.c")).arg("-ldl");
        assert!(cc.status().expect("cc can be run; apt install gcc").success(), "the shim compiles");
        shim.jump(0);
        shim
    }

    fn preloaded(&self) -> PathBuf {
        self.folder.path().join("clock.so")
    }

    fn offset(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// The clock is off by `seconds` from now on.
    fn jump(&self, seconds: i64) {
        let fresh = self.folder.path().join("fresh");
        std::fs::write(&fresh, seconds.to_string()).expect("the offset can be written");
        std::fs::rename(fresh, self.offset()).expect("the offset can be replaced");
    }
}

/// When the source was last compared with the fact store, by the wall clock of the process.
async fn compared(process: &Process) -> String {
    process.status().await["last_reconcile"]["at"].as_str().unwrap_or_default().to_owned()
}

/// Processor time of the process so far, in hundredths of a second.
fn busy(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).expect("the process runs");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name in brackets").1.split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

#[tokio::test(flavor = "multi_thread")]
async fn exact_while_the_wall_clock_jumps() {
    let shim = Shim::compile();
    let app = App::start(SCHEMA, &FACTS, "reconcile_every: 1s").await;
    let (library, offset, url) = (shim.preloaded(), shim.offset(), app.url());
    let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (library, offset) = (text(&library), text(&offset));
    let env = [("DATABASE_URL", url.as_str()), ("LD_PRELOAD", library.as_str()), ("CLOCK_OFFSET_FILE", offset.as_str())];
    let process = app.run_with(&[], &env);
    process.wait_ready().await;
    app.settle(&process).await;
    app.assert_equal(&process, "read").await;
    for (round, (hours, year)) in [(5, None), (-30 * 24, None), (24 * 366 * 100, Some("21")), (0, None)].into_iter().enumerate() {
        let before = compared(&process).await;
        shim.jump(hours * 3600);
        let spent = busy(&process);
        // The commits before and after the jump arrive, and views of time go by the source's clock.
        app.commit(&process, &format!("INSERT INTO member VALUES ({}, 'new', now() + interval '1 minute')", 10 + round)).await;
        app.commit(&process, "UPDATE member SET role = role || 'x' WHERE id = 1").await;
        app.assert_equal(&process, &format!("{hours} hours away")).await;
        // The audit comes when it is due, and says when by the clock that has jumped: which proves that it has.
        let now = eventually_async(DEADLINE, "the next audit", async || Some(compared(&process).await).filter(|at| *at != before)).await;
        if let Some(century) = year {
            assert!(now.starts_with(century), "the shim is at work: {now}");
        }
        let status = process.status().await;
        assert_eq!(status["state"], "streaming", "{status:#}");
        assert!(status["sources"][0]["lag_seconds"].as_f64().is_some_and(|lag| (0.0..60.0).contains(&lag)), "{status:#}");
        let spent = busy(&process) - spent;
        assert!(spent < 1_000, "{spent} hundredths of a second of work between two jumps");
    }
    // A row that expires by the source's clock does, although ours stands elsewhere.
    shim.jump(-5 * 3600);
    app.sql("INSERT INTO member VALUES (50, 'brief', clock_timestamp() + interval '1 second')").await;
    app.settle(&process).await;
    eventually_async(DEADLINE, "the row has expired at the source", async || {
        (app.ask("SELECT expires_at < clock_timestamp() FROM member WHERE id = 50").await == "t").then_some(())
    })
    .await;
    eventually_async(DEADLINE, "and so has its fact", async || {
        let held = process.facts("is_valid").await;
        held.iter().all(|fact| fact["args"][0]["id"] != "50").then_some(())
    })
    .await;
    assert!(process.terminate().success());
}
