//! The README and the examples do what they say.
//!
//! Every line of every `sh` block in README.md is run, in order, as a reader would: in a copy of the repository's example files, with
//! `cargo run --release --` and `factsync` standing for the binary under test. What keeps running (`run`) is left running until
//! the next heading, where a reader presses Ctrl-C. A `json` block is what the command before it printed, and a `yaml` block
//! is the file that the text above it names. Three addresses are replaced, because tests run in parallel: that of factsync, of
//! PostgreSQL, and of Oso Cloud, whose part an embedded fact store plays. Docker is not there to be run; its commands and files
//! are checked against each other.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    factsync::{BINARY, FOREIGN_ENVIRONMENT, Factsync, Process, root},
    postgres::{Cluster, Major},
};

/// Addresses in README.md that stand for the reader's own.
const FACTSYNC_ADDRESS: &str = "127.0.0.1:7878";
const POSTGRES_URL: &str = "postgresql://postgres@127.0.0.1:5432/github";
const OSO_CLOUD_URL: &str = "https://api.osohq.com";

/// Variables that example configs name, for checks that never connect.
const EXAMPLE_ENVIRONMENT: [(&str, &str); 2] =
    [("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/github"), ("MONGODB_URL", "mongodb://127.0.0.1:1/app")];

/// A part of the README that a test acts on.
enum Part {
    Heading,
    Commands(Vec<String>),
    Output(String),
    Config { named: Option<String>, text: String },
}

/// Someone who follows the README.
struct Reader {
    cluster: Cluster,
    directory: TempDir,
    environment: Vec<(String, String)>,
    running: Option<Process>,
    oso_cloud: Option<Process>,
    last_output: String,
}

impl Reader {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be created");
        for name in ["examples", "sql"] {
            copy_tree(&root().join(name), &directory.path().join(name));
        }
        let shims = directory.path().join("shims");
        fs::create_dir(&shims).expect("the directory is empty");
        // LISTEN tells where the process under test listens, which is not where the README says.
        let factsync = format!("#!/bin/sh\nexec '{BINARY}' \"$@\" ${{LISTEN:+--listen \"$LISTEN\"}}\n");
        let cargo = "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --release --' ] || exit 97\nshift 3\nexec factsync \"$@\"\n";
        for (name, script) in [("factsync", factsync.as_str()), ("cargo", cargo)] {
            let path = shims.join(name);
            fs::write(&path, script).expect("the shim can be written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the shim is ours");
        }
        let cluster = Cluster::start(Major::V15);
        cluster.psql("postgres", "CREATE DATABASE github");
        Self { cluster, directory, environment: Vec::new(), running: None, oso_cloud: None, last_output: String::new() }
    }

    /// A new section: Ctrl-C in the first terminal.
    fn stop(&mut self) {
        if let Some(process) = self.running.take() {
            let log = process.log();
            let status = process.terminate();
            assert!(status.success(), "stopping it gave {status}:\n{log}");
        }
    }

    fn follow(&mut self, line: &str) {
        let (command, expected_code) = match line.split_once(" # exit code ") {
            Some((command, code)) => (command, code.parse().expect("an exit code is a number")),
            None => (line, 0),
        };
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["tests/run.sh"] => assert_runnable(&root().join("tests/run.sh")),
            ["docker", rest @ ..] => assert_docker_knows(rest),
            ["export", assignment] => {
                let (name, value) = assignment.split_once('=').expect("export NAME=VALUE");
                let value = self.replace_addresses(value);
                self.environment.push((name.to_owned(), value));
            }
            ["factsync", "run" | "serve", ..] => self.start(&words[1..]),
            ["cargo", "run", "--release", "--", "run" | "serve", ..] => self.start(&words[4..]),
            _ => self.run(command, expected_code),
        }
    }

    fn start(&mut self, args: &[&str]) {
        assert!(self.running.is_none(), "the README starts a second process while the first one runs");
        let environment: Vec<(&str, &str)> = self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let args: Vec<&str> = args.iter().copied().chain(["--state", "factsync-state"]).collect();
        self.running = Some(Process::spawn_in(self.directory.path(), &args, &environment));
    }

    fn run(&mut self, command: &str, expected_code: i32) {
        let command = self.replace_addresses(command);
        let mut shell = Command::new("bash");
        shell.args(["-c", &command]).current_dir(self.directory.path());
        for name in FOREIGN_ENVIRONMENT {
            shell.env_remove(name);
        }
        let inherited = std::env::var("PATH").expect("PATH is set");
        let shims = self.directory.path().join("shims");
        shell.env("PATH", format!("{}:{}:{inherited}", shims.display(), self.cluster.bin_dir().display()));
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(process) = &self.running {
            shell.env("LISTEN", process.url().trim_start_matches("http://"));
        }
        let output = shell.output().expect("bash can be run");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(expected_code), "{command}\nstdout: {stdout}\nstderr: {stderr}");
        self.last_output = stdout.into_owned();
    }

    fn replace_addresses(&mut self, text: &str) -> String {
        let mut text = text.replace(POSTGRES_URL, &self.cluster.url("github"));
        if let Some(process) = &self.running {
            text = text.replace(FACTSYNC_ADDRESS, process.url().trim_start_matches("http://"));
        }
        if text.contains(OSO_CLOUD_URL) {
            let key = self.environment.iter().find(|(name, _)| name == "OSO_AUTH").expect("the key comes before the address").1.clone();
            let cloud = self.oso_cloud.get_or_insert_with(|| Process::spawn(&["serve"], &[("OSO_AUTH", &key)]));
            text = text.replace(OSO_CLOUD_URL, cloud.url());
        }
        text
    }
}

#[test]
fn every_command_of_the_readme_works() {
    let mut reader = Reader::new();
    let parts = parts(&readme());
    for part in &parts {
        match part {
            Part::Heading => reader.stop(),
            Part::Commands(lines) => lines.iter().for_each(|line| reader.follow(line)),
            Part::Output(expected) => {
                let json =
                    |text: &str| -> Value { serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}")) };
                assert_eq!(json(&reader.last_output), json(expected));
            }
            Part::Config { .. } => {}
        }
    }
    reader.stop();
    let commands = parts.iter().filter(|part| matches!(part, Part::Commands(_))).count();
    assert!(commands >= 8, "only {commands} blocks of commands were found");
}

#[test]
fn configs_in_the_readme_are_the_files_they_name() {
    let mut configs = 0;
    for part in parts(&readme()) {
        let Part::Config { named, text } = part else { continue };
        let path = named.unwrap_or_else(|| panic!("no file is named above this config:\n{text}"));
        assert_eq!(fs::read_to_string(root().join(&path)).unwrap_or_default(), text, "{path} is not what the README shows");
        configs += 1;
    }
    assert!(configs > 0, "the README shows no config");
}

#[test]
fn the_readme_names_every_flag_and_no_other() {
    let readme = readme();
    let rows = table(&readme, "| flag | of | meaning |");
    let commands: Vec<String> = table(&readme, "| command | does |").iter().map(|row| code(&row[0]).to_owned()).collect();
    let commands: Vec<&str> = commands.iter().filter_map(|command| command.split(' ').next()).collect();
    assert!(commands.contains(&"reconcile") && rows.len() > 10, "the tables were not found");
    let mut documented = BTreeSet::new();
    for command in commands {
        let help = Factsync::run(&[command, "--help"], &[]).expect_code(0).stdout;
        let known = flags(&help);
        for row in &rows {
            let concerned = row[1] == "every command" || row[1].split(", ").any(|name| code(name) == command);
            let flag = flags(&row[0]).into_iter().next().unwrap_or_else(|| panic!("{row:?} begins with no flag"));
            assert!(!concerned || known.contains(&flag), "`{command}` does not know {flag}:\n{help}");
            if concerned {
                documented.insert((command, flag));
            }
        }
        let undocumented: Vec<&String> = known.iter().filter(|flag| !documented.contains(&(command, (*flag).clone()))).collect();
        assert!(undocumented.is_empty(), "the README does not say that `{command}` has {undocumented:?}");
    }
}

#[tokio::test]
async fn every_path_of_the_readme_answers() {
    let process = Process::spawn(&["run", "examples/quickstart/quickstart.yaml"], &[]);
    process.wait_ready().await;
    let readme = readme();
    let rows = table(&readme, "| path | what |");
    assert!(rows.len() > 4, "the table was not found");
    for row in rows {
        let path = match code(&row[0]) {
            "/api/*" => "/api/facts?predicate=has_role",
            "/v1/wait" => "/v1/wait?position=0/0&timeout_ms=1",
            path => path,
        };
        let (status, body) = process.get(path).await;
        assert_ne!(status, 404, "{path}: {body}");
    }
}

#[test]
fn every_example_passes_the_offline_check() {
    let examples = example_configs();
    assert!(examples.len() >= 4, "{examples:?}");
    for path in examples {
        let output = Factsync::run(&["check", "--offline", &path], &EXAMPLE_ENVIRONMENT);
        assert_eq!(output.code(), 0, "{path}: {}\n{}", output.stdout, output.stderr);
        assert!(readme().contains(&format!("`{path}`")), "the README does not mention {path}");
    }
    let broken = tempfile::NamedTempFile::with_suffix(".yaml").expect("a temporary file can be created");
    fs::write(&broken, read("examples/github/github.yaml").replace("    query:", "    qery:")).expect("the file can be written");
    let path = broken.path().to_str().expect("temporary paths are UTF-8");
    let output = Factsync::run(&["check", "--offline", path], &EXAMPLE_ENVIRONMENT).expect_code(2);
    assert!(format!("{}{}", output.stdout, output.stderr).contains("qery"), "{output:?}");
}

#[test]
fn every_example_query_finds_rows_with_a_column_for_each_variable() {
    for major in [Major::V15, Major::V18] {
        let cluster = Cluster::start(major);
        let database = cluster.database();
        for name in ["schema", "seed"] {
            cluster.psql(&database, &read(&format!("sql/example/{name}.sql")));
        }
        for path in ["examples/github/github.yaml", "examples/local-authorization/local-authorization.yaml"] {
            for (fact_type, query) in queries(path) {
                let rows = cluster.psql(&database, &query);
                let variables = fact_type.matches(":_").count();
                assert!(!rows.is_empty(), "{path}: {fact_type} has no facts");
                for row in rows.lines() {
                    let columns: Vec<&str> = row.split('|').collect();
                    assert_eq!(columns.len(), variables, "{path}: {fact_type}: {row}");
                    assert!(columns.iter().all(|column| !column.is_empty()), "{path}: {fact_type}: {row}");
                }
            }
        }
    }
}

#[test]
fn the_compose_file_mounts_what_is_there_and_sets_what_is_asked_for() {
    let compose: serde_yaml::Value = serde_yaml::from_str(&read("docker-compose.yml")).expect("docker-compose.yml is YAML");
    let services = compose["services"].as_mapping().expect("it has services");
    let strings = |value: &serde_yaml::Value| -> Vec<String> {
        value.as_sequence().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let mounts: Vec<String> = services.values().flat_map(|service| strings(&service["volumes"])).collect();
    let sources: Vec<&str> = mounts.iter().filter_map(|mount| mount.split(':').next()).filter(|source| source.starts_with("./")).collect();
    assert_eq!(sources, ["./sql/example/schema.sql", "./sql/example/seed.sql", "./examples"]);
    assert!(sources.iter().all(|source| root().join(source).exists()), "{sources:?}");

    let factsync = &services["factsync"];
    assert!(strings(&services["postgres"]["command"]).contains(&"wal_level=logical".to_owned()));
    let config = strings(&factsync["command"]).into_iter().find(|word| word.ends_with(".yaml")).expect("factsync runs a config");
    let variables = factsync["environment"].as_mapping().expect("factsync has an environment");
    for path in [config.trim_start_matches('/'), "examples/mongodb/mongodb.yaml"] {
        for (_, rest) in read(path).lines().filter_map(|line| line.split_once("connection_string: $")) {
            assert!(variables.contains_key(rest), "{path} asks for ${rest}, which docker-compose.yml does not set");
        }
    }
    assert!(read("Dockerfile").contains("cargo build --release --locked --bin factsync"));
}

fn readme() -> String {
    read("README.md")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The parts of a Markdown text, in order. Blocks in other languages than `sh`, `json` and `yaml` are a mistake here.
fn parts(markdown: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut named = None;
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            parts.push(Part::Heading);
        } else if let Some(language) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            parts.push(match language {
                "sh" => Part::Commands(body.iter().map(|line| (*line).to_owned()).collect()),
                "json" => Part::Output(body.join("\n")),
                "yaml" => Part::Config { named: named.take(), text: body.join("\n") + "\n" },
                _ => panic!("a block of \"{language}\" that no test looks at"),
            });
        } else if let Some(path) = line.split('`').find(|word| word.starts_with("examples/") && word.ends_with(".yaml")) {
            named = Some(path.to_owned());
        }
    }
    parts
}

/// The cells of the table with this header.
fn table(markdown: &str, header: &str) -> Vec<Vec<String>> {
    let rows = markdown.lines().skip_while(|line| *line != header).skip(2).take_while(|line| line.starts_with('|'));
    // `\|` is a bar inside a cell.
    let cells =
        |row: &str| row.replace("\\|", "\u{0}").trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect();
    rows.map(cells).collect()
}

/// What a cell holds between its first two backticks.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or_default()
}

/// The long flags that a text names, but for those that every program has.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let flags = words.filter(|word| word.starts_with("--") && word.len() > 2 && !["--help", "--version"].contains(word));
    flags.map(str::to_owned).collect()
}

/// Signatures and queries of a config.
fn queries(path: &str) -> Vec<(String, String)> {
    let config: serde_yaml::Value = serde_yaml::from_str(&read(path)).expect("the example is YAML");
    let facts = config["facts"].as_mapping().expect("it has facts");
    let text = |value: &serde_yaml::Value| value.as_str().expect("it is text").to_owned();
    facts.iter().map(|(fact_type, body)| (text(fact_type), text(&body["query"]))).collect()
}

fn example_configs() -> Vec<String> {
    let entries = |path: PathBuf| fs::read_dir(path).expect("the directory can be read").map(|entry| entry.expect("an entry").path());
    let files = entries(root().join("examples")).flat_map(entries).filter(|path| path.extension().is_some_and(|suffix| suffix == "yaml"));
    let relative = files.map(|path| path.strip_prefix(root()).expect("it is inside").to_str().expect("our paths are UTF-8").to_owned());
    let mut paths: Vec<String> = relative.collect();
    paths.sort();
    paths
}

fn assert_runnable(script: &Path) {
    let mode = fs::metadata(script).expect("the script exists").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "{} is not executable", script.display());
    let output = Command::new("bash").arg("-n").arg(script).output().expect("bash can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `compose up …`, `compose exec SERVICE …`, `compose down …`, with services and files that exist.
fn assert_docker_knows(words: &[&str]) {
    let compose: serde_yaml::Value = serde_yaml::from_str(&read("docker-compose.yml")).expect("docker-compose.yml is YAML");
    match words {
        ["compose", "up" | "down", ..] => {}
        ["compose", "exec", service, ..] => assert!(compose["services"].get(service).is_some(), "no service is called {service}"),
        _ => panic!("docker {words:?}: nothing is known of this command"),
    }
    for path in words.iter().filter(|word| word.starts_with("/examples/")) {
        assert!(root().join(path.trim_start_matches('/')).exists(), "{path} is mounted from nowhere");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).expect("the target is new");
    for entry in fs::read_dir(from).expect("the directory can be read") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(&path, &target).expect("the file can be copied");
        }
    }
}
