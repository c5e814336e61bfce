//! The house rules that a program can check, checked on every tracked file.
//!
//! A rule is a plain function from a file to what it finds there. Rules about code look at [`File::code`], in which comments and
//! literals are blank, so that a rule's own name in a message does not trip it. Each rule proves itself on a planted violation
//! (`tidy/planted.rs`), because a check that cannot fail is worse than none.

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/complaints.rs"]
mod complaints;
#[path = "tidy/planted.rs"]
mod planted;

use std::{path::Path, process::Command};

use code::{body_end, closing, code_only, crate_imports, line_of, occurrences};

/// A file with more lines is too long, unless [`LONG_FILES`] says why it may be.
const TALK_AT_LINES: usize = 500;

/// Nothing is worth a longer file.
const STOP_AT_LINES: usize = 800;

/// The longest function: what fits on a screen.
const FUNCTION_LINES: usize = 70;

/// rustfmt's `max_width`, which it does not enforce on comments and strings.
const LINE_CHARS: usize = 140;

/// Files over [`TALK_AT_LINES`] that are better in one piece, with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Names that say nothing about what is inside.
const BUCKETS: [&str; 9] = ["utils", "util", "common", "types", "core", "base", "helpers", "helper", "misc"];

/// Words that no code may hold, with what to do instead.
const BANNED: [(&str, &str); 6] = [
    ("todo!", "finish it or leave it out"),
    ("unimplemented!", "finish it or leave it out"),
    ("dbg!", "use tracing"),
    ("#[ignore", "assert what it does today, and say what it should do"),
    ("super::super::", "write the path from `crate::`"),
    ("println!", "write to a writer that a test can read"),
];

/// Where a crate may be named: a driver, a database or a protocol is known to the module that hides it and to no other.
const CRATE_HOMES: &[(&str, &[&str])] = &[
    ("rusqlite", &["src/store/", "src/target/embedded/"]),
    ("sled", &["src/store/"]),
    ("tokio_postgres", &["src/source/postgres/"]),
    ("pgwire_replication", &["src/source/postgres/"]),
    ("postgres_protocol", &["src/source/postgres/"]),
    ("mongodb", &["src/source/mongo/"]),
    ("notify", &["src/source/csv/"]),
    ("csv", &["src/source/csv/"]),
    ("clap", &["src/cli/", "src/main.rs"]),
    ("anyhow", &["src/cli/", "src/main.rs"]),
    ("indicatif", &["src/cli/"]),
    // `status` and `wait` are clients of a running factsync.
    ("reqwest", &["src/target/oso", "src/cli/"]),
];

/// What a module of ours may know of the others.
enum Knows {
    Only(&'static [&'static str]),
    AnyBut(&'static [&'static str]),
}

/// The dependency directions; `lib.rs`, `main.rs` and `cli` wire everything and may know everything.
const DIRECTIONS: &[(&str, Knows)] = &[
    ("data", Knows::Only(&[])),
    ("error", Knows::Only(&[])),
    ("query", Knows::Only(&["data"])),
    ("fact", Knows::Only(&["data"])),
    ("view", Knows::Only(&["data", "query", "fact", "target", "config"])),
    ("config", Knows::Only(&["data", "fact"])),
    ("source", Knows::AnyBut(&["engine", "server", "cli", "store", "reconcile", "target"])),
    ("target", Knows::AnyBut(&["engine", "server", "cli", "store", "reconcile", "source"])),
    ("store", Knows::AnyBut(&["engine", "server", "cli", "reconcile", "source"])),
    ("reconcile", Knows::AnyBut(&["engine", "server", "cli", "store"])),
    ("engine", Knows::AnyBut(&["server", "cli"])),
    ("server", Knows::AnyBut(&["cli"])),
    ("telemetry", Knows::Only(&["data", "fact"])),
];

/// Names of documents and tools that a reader of this repository does not have.
const ELSEWHERE: [&str; 9] = [
    concat!("../", "shared"),
    concat!(".", "library"),
    concat!("/", "work/"),
    concat!("design", ".md"),
    concat!("measured", ".md"),
    concat!("incremental-", "views.md"),
    concat!("oso-", "contract.md"),
    concat!("field-", "notes.md"),
    concat!("mongod-for-", "tests.md"),
];

/// A text file of the repository.
struct File {
    path: String,
    text: String,
    code: String,
}

/// Something a rule objects to.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    line: usize,
    problem: String,
}

type Rule = fn(&File) -> Vec<Found>;

/// Every rule that looks at one file.
const RULES: [(&str, Rule); 11] = [
    ("module docs", module_docs),
    ("file length", file_length),
    ("function length", function_length),
    ("white space", white_space),
    ("banned words", banned_words),
    ("sleeping tests", sleeping_tests),
    ("checks that cannot fail", checks_that_cannot_fail),
    ("bucket names", bucket_names),
    ("crate homes", crate_homes),
    ("directions", directions),
    ("elsewhere", elsewhere),
];

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { code_only(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The module of the crate it belongs to, `source` for `src/source/csv/tail.rs`.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split_once('/').map_or(inside, |(module, _)| module).trim_end_matches(".rs"))
    }

    /// Where a module's own tests begin; they stand at its end.
    fn first_test_line(&self) -> usize {
        self.code.find("#[cfg(test)]\nmod ").map_or(usize::MAX, |at| line_of(&self.code, at))
    }

    /// The lines of code that hold `word` as a whole word (at its ends that are letters).
    fn lines_with(&self, word: &str) -> Vec<usize> {
        let mut lines: Vec<usize> = occurrences(&self.code, word).map(|at| line_of(&self.code, at)).collect();
        lines.dedup();
        lines
    }
}

impl Found {
    fn at(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }
}

fn module_docs(file: &File) -> Vec<Found> {
    if !file.is_rust() || file.text.starts_with("//!") {
        return Vec::new();
    }
    vec![Found::at(1, "does not open with `//!` and what it is for")]
}

fn file_length(file: &File) -> Vec<Found> {
    let lines = file.text.lines().count();
    let may_be_long = LONG_FILES.iter().any(|(path, _)| *path == file.path);
    if !file.is_rust() || lines <= TALK_AT_LINES || (may_be_long && lines <= STOP_AT_LINES) {
        return Vec::new();
    }
    vec![Found::at(lines, format!("has {lines} lines; split it at {TALK_AT_LINES}, or list it with a reason up to {STOP_AT_LINES}"))]
}

fn function_length(file: &File) -> Vec<Found> {
    let mut found = Vec::new();
    for start in occurrences(&file.code, "fn") {
        let Some(end) = body_end(&file.code, start) else { continue };
        let (first, last) = (line_of(&file.code, start), line_of(&file.code, end));
        if last + 1 - first > FUNCTION_LINES {
            found.push(Found::at(first, format!("a function of {} lines; the limit is {FUNCTION_LINES}", last + 1 - first)));
        }
    }
    found
}

fn white_space(file: &File) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        if line.contains('\t') {
            found.push(Found::at(index + 1, "a tab"));
        }
        if line.ends_with(' ') {
            found.push(Found::at(index + 1, "a space at the end of the line"));
        }
        // A link cannot be broken.
        // A link and a row of a table cannot be broken.
        let unbroken = line.contains("https://") || line.trim_start().starts_with("//! |");
        if file.is_rust() && line.chars().count() > LINE_CHARS && !unbroken {
            found.push(Found::at(index + 1, format!("a line of more than {LINE_CHARS} characters")));
        }
    }
    found
}

fn banned_words(file: &File) -> Vec<Found> {
    let words = BANNED.iter().filter(|_| file.is_rust() && file.path.starts_with("src/") || file.path.starts_with("tests/"));
    words
        .flat_map(|(word, instead)| file.lines_with(word).into_iter().map(move |line| Found::at(line, format!("`{word}`: {instead}"))))
        .collect()
}

fn sleeping_tests(file: &File) -> Vec<Found> {
    let first_test_line = match file.module() {
        Some(_) => file.first_test_line(),
        None if file.path.starts_with("tests/it/support/") => usize::MAX,
        None => 1,
    };
    let lines = ["thread::sleep", "time::sleep"].iter().flat_map(|word| file.lines_with(word));
    lines
        .filter(|line| *line >= first_test_line)
        .map(|line| Found::at(line, "a test that sleeps; wait for an event or a condition"))
        .collect()
}

fn checks_that_cannot_fail(file: &File) -> Vec<Found> {
    let mut found = Vec::new();
    for at in occurrences(&file.code, "matches!") {
        let before = file.code[..at].trim_end();
        let is_statement = before.is_empty() || before.ends_with([';', '{', '}']) || before.ends_with("let _ =");
        let rest = &file.code[at + "matches!".len()..];
        if is_statement && closing(rest, '(', ')').is_some_and(|end| rest[end + 1..].trim_start().starts_with(';')) {
            found.push(Found::at(line_of(&file.code, at), "the result of `matches!` is thrown away; assert it"));
        }
    }
    found
}

fn bucket_names(file: &File) -> Vec<Found> {
    let mut parts = file.path.split('/').map(|part| part.trim_end_matches(".rs"));
    let bucket = parts.find(|part| file.is_rust() && BUCKETS.contains(part));
    bucket.map(|name| Found::at(1, format!("\"{name}\" says nothing; name it after what is inside"))).into_iter().collect()
}

fn crate_homes(file: &File) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, homes) in CRATE_HOMES {
        if file.module().is_none() || homes.iter().any(|home| file.path.starts_with(home)) || names_own_module(&file.code, name) {
            continue;
        }
        let words = [format!("{name}::"), format!("use {name};")];
        let uses = words.iter().flat_map(|word| occurrences(&file.code, word));
        let lines = uses.filter(|at| !file.code[..*at].ends_with("::")).map(|at| line_of(&file.code, at));
        // A module's tests may compare it with anything.
        let lines = lines.filter(|line| *line < file.first_test_line());
        found.extend(lines.map(|line| Found::at(line, format!("`{name}` belongs into {}", homes.join(" or ")))));
    }
    found
}

/// Whether `code` declares or imports a module of ours that has the name of a crate, as `source::csv` has.
fn names_own_module(code: &str, name: &str) -> bool {
    occurrences(code, name).any(|at| !code[..at].ends_with("use ") && code[at + name.len()..].starts_with([';', ',', '}']))
}

fn directions(file: &File) -> Vec<Found> {
    let Some(module) = file.module() else { return Vec::new() };
    let Some((_, knows)) = DIRECTIONS.iter().find(|(name, _)| *name == module) else { return Vec::new() };
    let imports = crate_imports(&file.code).into_iter().filter(|(_, name)| name != module);
    let forbidden = imports.filter(|(_, name)| match knows {
        Knows::Only(known) => !known.contains(&name.as_str()),
        Knows::AnyBut(unknown) => unknown.contains(&name.as_str()),
    });
    forbidden.map(|(line, name)| Found::at(line, format!("`{module}` must not know `{name}`"))).collect()
}

fn elsewhere(file: &File) -> Vec<Found> {
    let mut found = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        found.extend(
            ELSEWHERE
                .iter()
                .filter(|word| line.contains(**word))
                .map(|word| Found::at(index + 1, format!("\"{word}\" is not in this repository"))),
        );
    }
    found
}

/// Dependencies without a comment that says why they are there.
fn dependencies_without_a_reason(manifest: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut in_dependencies = false;
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line.trim_end_matches(']').ends_with("dependencies");
        }
        let reason = line.split_once(" # ").map_or("", |(_, reason)| reason.trim());
        if in_dependencies && line.contains('=') && !line.starts_with('#') && reason.is_empty() {
            found.push(Found::at(index + 1, "a dependency without `# why`"));
        }
    }
    found
}

/// Files that no `mod` names: the compiler never sees them, and says nothing.
fn undeclared_modules(files: &[File]) -> Vec<String> {
    let roots = ["src/lib.rs", "src/main.rs", "tests/it/main.rs", "tests/tidy.rs"];
    let rust = files.iter().filter(|file| file.is_rust() && !file.path.starts_with("benches/") && !roots.contains(&file.path.as_str()));
    let undeclared = rust.filter(|file| {
        let module = file.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let (parent, name) = module.rsplit_once('/').expect("every module lies in a directory");
        let parents = [format!("{parent}/mod.rs"), format!("{parent}.rs"), format!("{parent}/lib.rs"), format!("{parent}/main.rs")];
        let mut candidates = files.iter().filter(|other| parents.contains(&other.path));
        !candidates.any(|other| !other.lines_with(&format!("mod {name};")).is_empty())
    });
    undeclared.map(|file| file.path.clone()).collect()
}

/// Every text file that git tracks, or would if it were added.
fn tracked_files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut git = Command::new("git");
    // The tests may run as another user than the one who cloned.
    git.args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let output = git.output().expect("git can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).expect("our paths are UTF-8");
    let text = |path: &str| std::fs::read(root.join(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    paths.split_terminator('\0').filter_map(|path| Some(File::new(path, &text(path)?))).collect()
}

#[test]
fn the_repository_keeps_its_own_rules() {
    let files = tracked_files();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the list of files is not that of this repository");
    let mut problems = Vec::new();
    for (name, rule) in RULES {
        for file in files.iter().filter(|file| file.path != "Cargo.lock") {
            problems.extend(rule(file).into_iter().map(|found| format!("{}:{}: {name}: {}", file.path, found.line, found.problem)));
        }
    }
    for file in files.iter().filter(|file| file.path == "Cargo.toml") {
        problems.extend(
            dependencies_without_a_reason(&file.text).into_iter().map(|found| format!("Cargo.toml:{}: {}", found.line, found.problem)),
        );
    }
    let complaints = files.iter().find(|file| file.path == "src/complaints.md").expect("the table of complaints is tracked");
    let unproven = complaints::unproven_complaints(&complaints.text, &files);
    problems.extend(unproven.into_iter().map(|found| format!("src/complaints.md:{}: {}", found.line, found.problem)));
    problems.extend(undeclared_modules(&files).into_iter().map(|path| format!("{path}: no `mod` names it")));
    for (path, _) in LONG_FILES {
        let is_long = files.iter().any(|file| file.path == *path && file.text.lines().count() > TALK_AT_LINES);
        problems.extend((!is_long).then(|| format!("{path}: need not be listed as a long file")));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}
