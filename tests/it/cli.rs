//! The command line as a whole: what is wrong usage, what it says, and which exit code it has.

use std::{fs, net::TcpListener, process::Command};

use serde_json::Value;

use crate::support::{
    factsync::{DEVELOPMENT_KEY, Factsync, Output, Process, client},
    free_port,
};

const QUICKSTART: &str = "examples/quickstart/quickstart.yaml";

/// The commands that take configuration files.
const CONFIG_COMMANDS: [&[&str]; 7] =
    [&["run"], &["reconcile"], &["experimental", "reconcile"], &["check", "--offline"], &["explain"], &["setup"], &["reset", "--yes"]];

/// Every command in a form that clap accepts.
fn every_command() -> Vec<Vec<&'static str>> {
    let config = CONFIG_COMMANDS.iter().map(|command| [command, &[QUICKSTART][..]].concat());
    config.chain([vec!["serve"], vec!["status"], vec!["wait", "--position", "0/1"]]).collect()
}

fn run(args: &[&str]) -> Output {
    Factsync::run(args, &[])
}

/// Wrong usage or configuration: exit code 2, nothing on stdout; what it says.
fn misuse(args: &[&str], env: &[(&str, &str)]) -> String {
    let output = Factsync::run(args, env).expect_code(2);
    assert_eq!(output.stdout, "", "{args:?}");
    assert!(!output.stderr.contains("panicked"), "{args:?}: {}", output.stderr);
    output.stderr
}

/// `path` in a folder that lives as long as the test.
fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, text).expect("written");
    path.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn help_and_version_are_results() {
    let help = run(&["--help"]).expect_code(0).stdout;
    for word in
        ["run", "reconcile", "check", "explain", "setup", "serve", "status", "wait", "reset", "--state", "--listen", "--target", "--log"]
    {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    assert!(!help.contains("experimental"), "Oso's older spelling is accepted and not advertised:\n{help}");
    assert_eq!(run(&["--version"]).expect_code(0).stdout, format!("factsync {}\n", env!("CARGO_PKG_VERSION")));
    for command in every_command() {
        let words: Vec<&str> = command.iter().copied().take_while(|word| word.chars().all(char::is_alphabetic)).collect();
        let help = run(&[&words[..], &["--help"]].concat()).expect_code(0).stdout;
        assert!(help.contains("Usage: factsync ") && help.contains("--state"), "{words:?}:\n{help}");
    }
}

#[test]
fn what_no_command_knows_is_named() {
    assert!(misuse(&[], &[]).contains("Usage: factsync"));
    assert!(misuse(&["reconcil"], &[]).contains("a similar subcommand exists: 'reconcile'"));
    for command in every_command() {
        let told = misuse(&[&command[..], &["--nonsense"]].concat(), &[]);
        assert!(told.contains("unexpected argument '--nonsense'") && told.contains("Usage: factsync"), "{command:?}: {told}");
    }
    for command in CONFIG_COMMANDS {
        let told = misuse(command, &[]);
        assert!(told.contains("required arguments were not provided") && told.contains("<CONFIG>..."), "{command:?}: {told}");
    }
    for (args, want) in [
        (&["wait"][..], "--position <POSITION>"),
        (&["wait", "--position", "yesterday"], "'yesterday' for '--position"),
        (&["wait", "--position", "0/1", "--timeout", "soon"], "expected a duration such as 5s or 1m"),
        (&["reconcile", QUICKSTART, "--max-changes", "-1"], "'-1'"),
        (&["reconcile", QUICKSTART, "--max-changes", "few"], "'few' for '--max-changes <N>'"),
        (&["serve", "--listen", "7878"], "'7878' for '--listen <ADDR>'"),
        (&["serve", "--limits", "some"], "\"growth\", \"free\", \"off\""),
        (&["reconcile", QUICKSTART, "--plan", "huge"], "'huge' for '--plan <PLAN>'"),
        (&["serve", "--log", "xml"], "[possible values: text, json]"),
        (&["check", QUICKSTART, "--offline", "--db", "postgresql://h/d"], "cannot be used with"),
    ] {
        let told = misuse(args, &[]);
        assert!(told.contains(want), "{args:?}: {told}");
    }
}

#[test]
fn every_problem_of_the_files_is_told_with_its_place_by_every_command() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = "version: 1\nsource: csv\nfacts:\n  f(User:_):\n    path: a.csv\n    feilds: [user]\n  \
                  g(User:_:\n    path: a.csv\n    fields: [a]\n";
    let broken = file(&folder, "broken.yaml", broken);
    let missing = folder.path().join("missing.yaml").to_str().expect("UTF-8").to_owned();
    for command in CONFIG_COMMANDS {
        let told = misuse(&[command, &[&*broken, &*missing]].concat(), &[]);
        for want in [
            format!("{broken}:6:5: "),
            "\"feilds\"".to_owned(),
            "\"fields\"".to_owned(),
            format!("{broken}:7:3: "),
            format!("{missing}:1:1: could not read the file"),
        ] {
            assert!(told.contains(&want), "{command:?} does not say {want}:\n{told}");
        }
    }
}

#[test]
fn a_target_that_is_no_address_is_misuse() {
    for target in ["nonsense", "ftp://127.0.0.1", "127.0.0.1:7878", "", "Embedded"] {
        for command in [&["run", QUICKSTART][..], &["reconcile", QUICKSTART], &["status"], &["wait", "--position", "0/1"]] {
            let told = misuse(&[command, &["--target", target]].concat(), &[]);
            assert!(told.starts_with("error: --target is no URL; expected one such as http://"), "{command:?} {target}: {told}");
        }
    }
    for command in [["run", QUICKSTART], ["reconcile", QUICKSTART]] {
        let told = misuse(&[&command[..], &["--target", "https://facts.example"]].concat(), &[]);
        assert!(told.contains("is not on this machine and needs a key. Set OSO_AUTH"), "{told}");
        let told = misuse(&command, &[("OSO_AUTH", "e_key"), ("OSO_URL", "facts.example")]);
        assert!(told.starts_with("error: OSO_URL is no URL; expected one such as http://"), "{told}");
    }
}

#[test]
fn what_run_cannot_follow_is_refused_with_a_remedy() {
    let told = misuse(&["run", "examples/local-authorization/local-authorization.yaml"], &[]);
    assert!(
        told.contains("local-authorization.yaml\": a local-authorization file names no database. `factsync check` judges it"),
        "{told}"
    );
    let told = misuse(&["run", "examples/mongodb/mongodb.yaml"], &[]);
    assert!(told.contains("MONGODB_URL"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_machines_are_let_in_only_with_a_key_of_ones_own() {
    for args in [&["serve"][..], &["run", QUICKSTART]] {
        let told = misuse(&[args, &["--listen", "0.0.0.0:0"]].concat(), &[]);
        assert!(told.contains("--listen 0.0.0.0:0 is open to other machines") && told.contains("Set OSO_AUTH"), "{told}");
        assert!(!told.contains(DEVELOPMENT_KEY), "{told}");
    }
    let served = Process::spawn(&["serve", "--listen", "0.0.0.0:0"], &[("OSO_AUTH", "e_our_own_key")]);
    let (status, body) = served.get("/api/facts").await;
    assert_eq!(status, 401, "the development key is not ours: {body}");
    let request = client().get(format!("{}/api/facts", served.url())).bearer_auth("e_our_own_key");
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    assert!(!served.log().contains("our_own_key"), "{}", served.log());
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    for args in [&["serve"][..], &["run", QUICKSTART]] {
        let output = run(&[args, &["--listen", &address]].concat()).expect_code(1);
        let want =
            format!("error: could not listen on {address}. Pass --listen with a free address, such as 127.0.0.1:0: Address already in use");
        assert!(output.stderr.contains(&want), "{}", output.stderr);
    }
}

#[test]
fn asking_when_nothing_runs_says_so() {
    let nobody = format!("127.0.0.1:{}", free_port());
    for args in [&["status"][..], &["wait", "--position", "0/1"]] {
        let output = run(&[args, &["--listen", &nobody]].concat()).expect_code(1);
        let want =
            format!("error: could not ask the factsync at http://{nobody}. Is `factsync run` running there? --listen says where it is");
        assert!(output.stdout.is_empty() && output.stderr.starts_with(&want), "{}", output.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_wait_ask_a_run_and_a_second_run_is_told_to_use_the_first() {
    let state = tempfile::tempdir().expect("a folder");
    let state = state.path().to_str().expect("UTF-8");
    let running = Process::spawn(&["run", QUICKSTART, "--state", state], &[]);
    running.wait_ready().await;
    let listen = running.url().strip_prefix("http://").expect("a URL").to_owned();

    let status = run(&["status", "--listen", &listen]).expect_code(0);
    assert_eq!(status.json()["state"], "streaming", "{}", status.stdout);
    assert_eq!(run(&["status", "--target", running.url()]).expect_code(0).json()["fact_types"], status.json()["fact_types"]);

    let csv = "examples/quickstart/members.csv";
    let digest = Command::new("sha256sum").arg(csv).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("sha256sum runs");
    let digest = String::from_utf8(digest.stdout).expect("text").split(' ').next().expect("a digest").to_owned();
    let wait = |more: &[&str]| run(&[&["wait", "--listen", &*listen], more].concat());
    let waited = wait(&["--position", &digest, "--source", csv, "--timeout", "50s"]).expect_code(0).json();
    assert_eq!(waited["position"], digest);
    assert!(waited["offset"].is_string(), "{waited}");

    let never = "0".repeat(64);
    let late = wait(&["--position", &never, "--source", csv, "--timeout", "20ms"]).expect_code(1);
    assert!(late.stdout.is_empty() && late.stderr.contains("were not acknowledged within 20ms"), "{}", late.stderr);
    let unnamed = wait(&["--position", &digest]).expect_code(1);
    assert!(unnamed.stderr.contains("members.csv") && unnamed.stderr.contains("repositories.csv"), "{}", unnamed.stderr);
    let unknown = wait(&["--position", &digest, "--source", "nowhere.csv"]).expect_code(1);
    assert!(unknown.stderr.contains("\"nowhere.csv\"") && unknown.stderr.contains("members.csv"), "{}", unknown.stderr);

    let pid = running.pid();
    for second in [&["run", QUICKSTART][..], &["serve"], &["reset", QUICKSTART, "--yes"]] {
        let locked = run(&[second, &["--state", state, "--listen", "127.0.0.1:0"]].concat()).expect_code(1);
        let want = format!(
            "the state directory \"{state}\" is in use by process {pid}. Its fact store answers at {}: pass --target",
            running.url()
        );
        assert!(locked.stdout.is_empty() && locked.stderr.contains(&want), "{second:?}: {}", locked.stderr);
    }
    assert!(running.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_fact_store_has_no_status_and_says_so() {
    let served = Process::spawn(&["serve"], &[]);
    for args in [&["status"][..], &["wait", "--position", "0/1"]] {
        let output = run(&[args, &["--target", served.url()]].concat()).expect_code(1);
        assert!(output.stdout.is_empty() && output.stderr.starts_with("error: "), "{args:?}: {} {}", output.stdout, output.stderr);
        assert!(output.stderr.contains(served.url()) && output.stderr.contains("serve"), "{}", output.stderr);
    }
    assert!(served.terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_log_is_json_line_by_line() {
    let running = Process::spawn(&["run", QUICKSTART, "--log", "json"], &[]);
    running.wait_ready().await;
    let (url, mut lines) = (running.url().to_owned(), Vec::new());
    let log = running.log();
    assert!(running.terminate().success());
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(line[key].is_string(), "no {key} in {line}");
        }
        lines.push(line);
    }
    assert!(lines.iter().any(|line| line["message"] == format!("listening on {url}") && line["target"] == "embedded"), "{log}");
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let inside = format!("{}/state", file(&folder, "a file", ""));
    for args in [&["run", QUICKSTART][..], &["reconcile", QUICKSTART], &["serve"]] {
        let output = run(&[args, &["--state", &inside, "--listen", "127.0.0.1:0"]].concat()).expect_code(1);
        let want = format!("error: could not use the state directory \"{inside}\": Not a directory");
        assert!(output.stdout.is_empty() && output.stderr.contains(&want), "{}", output.stderr);
    }
}
