//! Files that cannot be believed: nothing is revoked, the reason is told, and a good file heals everything.

use super::*;
use crate::support::is_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_believed_revokes_nothing_and_says_why() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    let before = held(&process).await;
    let huge = format!("user,role,org\n1,admin,{}", "x".repeat(3 << 20));
    let utf_16: Vec<u8> = [0xFF, 0xFE].into_iter().chain(TWO.bytes().flat_map(|byte| [byte, 0])).collect();
    let contents: [(&[u8], &str); 11] = [
        (b"", "it is empty, without even a header"),
        (&utf_16, "it is UTF-16; save it as UTF-8"),
        (&utf_16[2..], "line 1 has a NUL byte"),
        (b"user,role,org\n1,admin,2\n\0\0\0\0\0\0\0\0", "line 3 has a NUL byte"),
        (huge.as_bytes(), "the record that starts on line 2 is longer than 1048576 bytes"),
        (b"user,role,org\n1,admin,2\n3,\"viewer,4\n", "the file ends inside the quotes that line 3 opens"),
        (b"user,role,org\n1,admin,2\n3,vie", "line 3 has 2 cells, the header has 3"),
        (b"user,role,org\n1,adm\xFFin,2\n", "the record that starts on line 2 is not UTF-8"),
        (b"user;role;org\n1;admin;2\n", "has no field \"user\"; it has \"user;role;org\""),
        (b"user,rolle,org\n1,admin,2\n", "has no field \"role\"; it has \"user\", \"rolle\", \"org\""),
        (b"user,role,org,role\n1,admin,2,x\n", "has the field \"role\" twice"),
    ];
    for (content, reason) in contents {
        live.put(content);
        live.assert_refused(&process, reason).await;
        assert_eq!(held(&process).await, before, "{reason}");
    }
    let log = process.log();
    assert!(!log.contains("admin") && !log.contains("viewer"), "cells are in the log:\n{log}");
    live.put("user,role,org\n1,admin,2\n");
    live.assert_equal(&process, "a good file heals").await;
    process.wait_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_in_its_place_revokes_nothing() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    let before = held(&process).await;
    let remove = || fs::remove_file(&live.path).expect("removed");
    let fifo = || assert!(Command::new("mkfifo").arg(&live.path).status().expect("mkfifo runs").success());

    remove();
    live.assert_refused(&process, "No such file").await;
    fs::create_dir(&live.path).expect("made");
    live.assert_refused(&process, "it is no regular file").await;
    fs::remove_dir(&live.path).expect("removed");
    live.assert_refused(&process, "No such file").await;
    // Opening it would wait for a writer for ever.
    fifo();
    live.assert_refused(&process, "it is no regular file").await;
    remove();
    symlink("members.csv", &live.path).expect("linked");
    live.assert_refused(&process, "could not open the file").await;
    remove();
    if !is_root() {
        live.put(TWO);
        fs::set_permissions(&live.path, std::os::unix::fs::PermissionsExt::from_mode(0o0)).expect("forbidden");
        live.assert_refused(&process, "Permission denied").await;
    }
    assert_eq!(held(&process).await, before);
    live.put("user,role,org\n3,viewer,4\n");
    live.assert_equal(&process, "a file heals").await;
}

/// Also if factsync itself was restarted meanwhile: it must not take nothing for an empty file, nor forget what it knew.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_the_file_keeps_the_facts_and_goes_on_when_it_is_back() {
    let live = Live::new(TWO);
    let process = live.started(&[]).await;
    live.assert_equal(&process, "at first").await;
    let before = held(&process).await;
    let aside = live.folder.path().join("aside.csv");
    fs::rename(&live.path, &aside).expect("renamed");
    live.assert_refused(&process, "No such file").await;
    process.kill();

    for _ in 0..2 {
        let process = live.run(&[]);
        live.assert_refused(&process, "No such file").await;
        assert_eq!(held(&process).await, before);
        process.kill();
    }
    let process = live.run(&[]);
    live.assert_refused(&process, "No such file").await;
    fs::rename(&aside, &live.path).expect("renamed back");
    live.assert_equal(&process, "back as it was").await;
    assert!(!process.log().contains("reading every view"), "the position was lost:\n{}", process.log());
    live.put("user,role,org\n3,viewer,4\n");
    live.assert_equal(&process, "with a row less").await;
}

/// The first start, of which nothing is known yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_without_the_file_waits_for_it() {
    let live = Live::at("later/members.csv", "");
    let process = live.run(&[]);
    live.assert_refused(&process, "No such file").await;
    fs::create_dir(live.folder.path().join("later")).expect("made");
    live.put(TWO);
    process.wait_ready().await;
    live.assert_equal(&process, "once it is there").await;
}
