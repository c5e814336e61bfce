//! Configuration files: any bytes are a configuration or a list of problems, each with a place inside its file.
//!
//! Files are separated by lines of `%%%%`. The environment has a value for every variable; none of them may show in a problem.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use factsync::{
    config::{Config, Problem, SourceKind, load},
    fact::FactType,
};

/// In the value of every variable.
const SECRET: &str = "Zq9-value-of-a-variable";
/// Files of one run.
const MOST_FILES: usize = 3;

/// Where `FACTSYNC_FUZZ_HOME` says, which `run.sh` removes.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let own = || std::env::temp_dir().join(format!("factsync-fuzz-{}", std::process::id()));
    let folder = std::env::var_os("FACTSYNC_FUZZ_HOME").map_or_else(own, PathBuf::from);
    fs::create_dir_all(&folder).expect("a folder");
    folder
});

/// A folder of this process.
pub fn folder() -> &'static Path {
    &FOLDER
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let texts: Vec<&[u8]> = split(data, MOST_FILES);
    let files: Vec<PathBuf> = (0..texts.len()).map(|number| folder().join(format!("{number}.yaml"))).collect();
    for (file, text) in files.iter().zip(&texts) {
        fs::write(file, text).expect("written");
    }
    let first = load(&files, &environment);
    match (&first, load(&files, &environment)) {
        (Ok(config), Ok(again)) => {
            assert_eq!(config.sources.len(), again.sources.len());
            sound(config);
        }
        (Err(problems), Err(again)) => {
            assert_eq!(*problems, again, "the same files, other problems");
            assert!(!problems.0.is_empty(), "refused without a reason");
            problems.0.iter().for_each(|problem| placed(problem, &files, &texts));
            assert!(problems.0.windows(2).all(|pair| pair[0] != pair[1]), "a problem is told twice");
            let hidden = texts.iter().all(|text| !String::from_utf8_lossy(text).contains(SECRET));
            assert!(!hidden || !problems.to_string().contains(SECRET), "a variable's value is shown: {problems}");
        }
        _ => panic!("the same files, another judgement"),
    }
}

/// The parts between lines of `%%%%`.
pub fn split(data: &[u8], most: usize) -> Vec<&[u8]> {
    let separator = b"\n%%%%\n";
    let mut rest = data;
    let mut texts = Vec::new();
    while texts.len() + 1 < most {
        let Some(at) = rest.windows(separator.len()).position(|window| window == separator) else { break };
        texts.push(&rest[..at]);
        rest = &rest[at + separator.len()..];
    }
    texts.push(rest);
    texts
}

fn environment(name: &str) -> Option<String> {
    match name {
        "UNSET" => None,
        "EMPTY" => Some(String::new()),
        "PG_URL" => Some(format!("postgresql://app:{SECRET}@db.example/app")),
        "MONGO_URL" => Some(format!("mongodb://app:{SECRET}@db.example/app")),
        _ => Some(SECRET.to_owned()),
    }
}

/// The problem's place is in its file.
fn placed(problem: &Problem, files: &[PathBuf], texts: &[&[u8]]) {
    let number = files.iter().position(|file| *file == problem.place.file).expect("a problem of a file that was given");
    let text = String::from_utf8_lossy(texts[number]).replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.split('\n').collect();
    let place = &problem.place;
    assert!(place.line >= 1 && place.line <= lines.len(), "{place} is outside of {} lines", lines.len());
    assert!(place.column >= 1 && place.column <= lines[place.line - 1].chars().count() + 1, "{place} is outside of its line");
    assert!(!problem.message.is_empty() && problem.hint.as_ref().is_some_and(|hint| !hint.is_empty()), "{problem}");
}

/// What the rest of the program relies on.
fn sound(config: &Config) {
    let mut names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two sources of one name");
    let slots = config.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Postgres(postgres) => Some(&postgres.slot),
        SourceKind::Mongo(_) | SourceKind::Csv(_) => None,
    });
    let mut slots: Vec<&String> = slots.collect();
    slots.sort_unstable();
    assert!(slots.windows(2).all(|pair| pair[0] != pair[1]), "two sources of one slot");
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    assert!(slots.iter().all(|slot| !slot.is_empty() && slot.len() < 64 && slot.bytes().all(plain)), "{slots:?}");
    let types: Vec<&FactType> = config.sources.iter().flat_map(|source| source.fact_types()).collect();
    for (number, of) in types.iter().enumerate() {
        assert!(of.variables() > 0, "{of} has nothing to fill");
        assert!(types[..number].iter().all(|other| other.overlap(of).is_none()), "{of} overlaps another");
    }
    for source in &config.sources {
        assert!(!source.fact_types().is_empty() && source.fact_types().len() == source.places().len());
        match &source.kind {
            SourceKind::Postgres(postgres) => {
                // In a comment it is no semicolon.
                let ended = |query: &str| query.trim_end().ends_with(';') && !query.contains("--") && !query.contains("/*");
                assert!(postgres.views.iter().all(|view| !ended(&view.query)), "a query ends in a semicolon");
            }
            SourceKind::Mongo(mongo) => assert!(mongo.views.iter().all(|view| view.query.fields.len() == view.fact_type.variables())),
            SourceKind::Csv(csv) => assert!(csv.views.iter().all(|view| view.query.len() == view.fact_type.variables())),
        }
    }
}
