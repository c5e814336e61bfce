//! Files that are written while they are read: appended to, replaced, rewritten.

use std::io::Write;

use super::*;
use crate::support::github::Random;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_others_append_to_grows_the_facts() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    for n in 0..100 {
        let mut file = fs::File::options().append(true).open(&live.path).expect("opened");
        writeln!(file, "u{n},viewer,4").expect("appended");
    }
    live.assert_equal(&process, "a hundred writers, one after the other").await;

    let mut log = fs::File::options().append(true).open(&live.path).expect("opened");
    write!(log, "open,viewer,4\nhalf,viewer,1").expect("appended");
    let row = |user: &str, org: &str| vec![user.to_owned(), "viewer".to_owned(), org.to_owned()];
    eventually_async(DEADLINE, "the line that has an end is there", async || {
        held(&process).await.contains(&row("open", "4")).then_some(())
    })
    .await;
    assert!(!held(&process).await.contains(&row("half", "1")), "half a cell was taken for all of it");
    writeln!(log, "2").expect("appended");
    drop(log);
    live.assert_equal(&process, "and closed").await;
    assert!(held(&process).await.contains(&row("half", "12")));
}

/// Each version is larger than the one that is being read when it comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_while_it_is_read_ends_as_the_last_one() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    for version in 1..=4_u32 {
        let rows: String = (0..version * 5_000).map(|n| format!("{n},role{version},{}\n", n % 7)).collect();
        live.put(format!("user,role,org\n{rows}"));
    }
    live.assert_equal(&process, "the last of four").await;
    live.put(TWO);
    process.wait_position(&digest(&live.path)).await;
    assert_eq!(process.status().await["held"][0]["removals"], 20_000, "and a small one in its place is a mass removal");
}

/// `kill -9` at any moment, while the file changes in every way, and in the end it is the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_while_the_file_changes_ends_in_the_same_facts() {
    let mut random = Random::new("csv kills");
    let live = Live::new(TWO);
    for _ in 0..8 {
        let process = live.run(&[]);
        for _ in 0..random.below(6) {
            change(&live, &mut random);
            if random.below(2) == 0 {
                process.wait_position(&digest(&live.path)).await;
            }
        }
        process.kill();
        change(&live, &mut random);
    }
    live.put(TWO);
    let process = live.started(&[]).await;
    live.assert_equal(&process, "after the last kill").await;
}

/// A version over few users and roles, written in one of the ways in which files are; now and then it is gone or broken before.
fn change(live: &Live, random: &mut Random) {
    let rows: String = (0..random.below(20)).map(|_| format!("{},r{},{}\n", random.below(6), random.below(3), random.below(3))).collect();
    match random.below(5) {
        0 => drop(fs::remove_file(&live.path)),
        1 => live.put("user,role,org\n1,\"open"),
        _ => {}
    }
    let text = format!("user,role,org\n{rows}");
    match random.below(3) {
        0 => fs::write(&live.path, text).expect("written in place"),
        _ => live.put(text),
    }
}
