//! The table of complaints (`src/complaints.md`): whole, and with tests that exist.

use super::{File, Found};

/// What is in the table, numbered from one.
const COMPLAINTS: usize = 25;

/// Rows that are missing, that show nothing, or that name a test nobody has written.
pub(crate) fn unproven_complaints(table: &str, files: &[File]) -> Vec<Found> {
    let rows: Vec<(usize, &str)> = table.lines().enumerate().filter(|(_, line)| line.starts_with("| ")).skip(1).collect();
    let mut found = Vec::new();
    if rows.len() != COMPLAINTS {
        found.push(Found::at(1, format!("{} complaints, not {COMPLAINTS}", rows.len())));
    }
    for (number, (index, row)) in rows.into_iter().enumerate() {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        if cells.first().is_none_or(|cell| *cell != (number + 1).to_string()) {
            found.push(Found::at(index + 1, format!("complaint {} should stand here", number + 1)));
        }
        let shown_by = cells.last().copied().unwrap_or_default();
        let tests: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            found.push(Found::at(index + 1, "nothing shows it"));
        }
        let unwritten = tests.into_iter().filter(|test| !files.iter().any(|file| !file.lines_with(&format!("fn {test}")).is_empty()));
        found.extend(unwritten.map(|test| Found::at(index + 1, format!("no test is called `{test}`"))));
    }
    found
}
