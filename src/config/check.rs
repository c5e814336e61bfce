//! Raw files to a [`Config`], reporting every problem with its place.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use crate::config::{
    Config, LocalAuthorization, Problem, Problems,
    claims::{Claim, overlaps},
    fields::Reader,
    file::{self, Contents},
    merge::{KeptSlots, merge},
    place::Spot,
    raw::Node,
    sync::SyncBlock,
};

/// The most bytes of a file. The largest real ones have a few thousand lines; this is a hundred times that.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Looks an environment variable up.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads and checks `files`, all of them to the end, whatever is wrong with them.
pub fn load(files: &[PathBuf], environment: Environment<'_>) -> Result<Config, Problems> {
    load_keeping(files, environment, &KeptSlots::new())
}

/// The same where sources keep the slots that they were followed with.
pub fn load_keeping(files: &[PathBuf], environment: Environment<'_>, kept: &KeptSlots) -> Result<Config, Problems> {
    let mut problems = Vec::new();
    let mut seen = HashSet::new();
    let (mut drafts, mut blocks, mut local) = (Vec::new(), Vec::new(), Vec::new());
    let mut claims: Vec<Claim> = Vec::new();
    for file in files {
        let mut reader = Reader::new(file, environment);
        if !seen.insert(fs::canonicalize(file).unwrap_or_else(|_| file.clone())) {
            reader.problem(Spot::START, "the file is named twice", "Name each file once.");
        } else if let Some(root) = parse(file, &mut reader) {
            let contents: Contents = file::read(&mut reader, root);
            drafts.extend(contents.drafts);
            blocks.push(contents.sync);
            match contents.local {
                // It describes another consumer of the same facts, so it overlaps nothing but itself.
                Some(views) => {
                    problems.extend(overlaps(&contents.claims));
                    local.push(LocalAuthorization { file: file.clone(), views });
                }
                None => claims.extend(contents.claims),
            }
        }
        problems.append(&mut reader.problems);
    }
    problems.extend(overlaps(&claims));
    let sources = merge(drafts, kept, &mut problems);
    if problems.is_empty() { Ok(Config { sources, local, sync: SyncBlock::merge(&blocks) }) } else { Err(report(files, problems)) }
}

/// In the order of the files and, in each, of the lines. What an alias repeats is said once.
fn report(files: &[PathBuf], mut problems: Vec<Problem>) -> Problems {
    let number = |file: &Path| files.iter().position(|other| other == file);
    problems.sort_by_cached_key(|problem| (number(&problem.place.file), problem.clone()));
    problems.dedup();
    Problems(problems)
}

fn parse(file: &Path, reader: &mut Reader<'_>) -> Option<Node> {
    let bytes = match read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            reader.problem(
                Spot::START,
                format!("could not read the file: {error}"),
                "Check the path, which is relative to the working directory.",
            );
            return None;
        }
    };
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        reader.problem(Spot::START, format!("the file has more than {} MiB", MAX_FILE_BYTES >> 20), "Is it a configuration file?");
        return None;
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let spot = Spot::of_byte(&valid, valid.len());
            reader.problem(spot, "the file is not UTF-8", "Save it as UTF-8.");
            return None;
        }
    };
    let node = Node::parse(text);
    node.map_err(|error| {
        reader.problem(error.spot, error.message, "Check the indentation, quotes and brackets there and in the line above.")
    })
    .ok()
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
