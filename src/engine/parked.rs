//! Changes that the fact store refused, from the local store to the board.
//!
//! A parked *revocation* is access that should be gone and is not: `/readyz` never overlooks one. A parked *grant* is access that
//! somebody lacks, and how many of these are too many is for the operator to say (`--max-parked`).

use crate::{
    engine::status::ParkedStatus,
    fact::Fact,
    store::{Parked, ParkedSummary, Store, StoreError},
};

/// The most changes that are listed: enough to see what they have in common, and little enough for a page that is polled.
const LISTED: usize = 20;
/// The most characters of a reason; as much as the client of the fact store keeps of a message.
const REASON_CHARS: usize = 200;

/// What is parked.
#[derive(Debug, Clone, Default)]
pub(super) struct ParkedChanges {
    /// Facts that should be gone.
    pub(super) revocations: u64,
    /// Facts that should be there.
    pub(super) grants: u64,
    /// The first [`LISTED`] of both, the revocations first.
    pub(super) listed: Vec<ParkedStatus>,
}

impl ParkedChanges {
    /// What is parked in `store`.
    pub(super) fn of(store: &Store) -> Result<Self, StoreError> {
        let ParkedSummary { revocations, grants, first } = store.parked_summary(LISTED)?;
        let status = |(fact, parked): (Fact, Parked)| ParkedStatus { fact, op: parked.op, reason: line(&parked.reason) };
        Ok(Self { revocations, grants, listed: first.into_iter().map(status).collect() })
    }

    pub(super) fn count(&self) -> u64 {
        self.revocations + self.grants
    }

    /// Why that is too much, if it is; grants are from `max_grants` up.
    pub(super) fn problem(&self, max_grants: Option<u64>) -> Option<String> {
        let hint = "/v1/status lists them under parked, with the reasons";
        if self.revocations > 0 {
            return Some(format!(
                "revocations that the fact store refused: {}. Access that should be gone is not. {hint}",
                self.revocations
            ));
        }
        let most = max_grants.filter(|most| self.grants > *most)?;
        Some(format!("grants that the fact store refused: {}, more than --max-parked {most}. {hint}", self.grants))
    }
}

/// The fact store's words as one line for a person: nothing that moves a cursor, colours a terminal or turns text around.
fn line(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| !c.is_control() && !is_format(*c));
    let words: String = shown.collect();
    let mut line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(REASON_CHARS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// Unicode's invisible controls: zero-width and directional marks, joiners, and the byte order mark.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_without_controls() {
        let long = "é".repeat(500);
        for (text, want) in [
            ("no such type", "no such type"),
            ("a\r\n\tb\u{2028}c\u{2029}", "a b c"),
            ("\u{1b}[31mred\u{7}\u{0}\u{9b}", "[31mred"),
            ("user\u{202e}nimda\u{2066}\u{feff}", "usernimda"),
            ("  ", ""),
            (&long, &format!("{}…", "é".repeat(200))),
        ] {
            assert_eq!(line(text), want);
        }
    }

    #[test]
    fn a_parked_revocation_is_always_a_problem_and_grants_are_one_above_the_limit() {
        let parked = |revocations, grants| ParkedChanges { revocations, grants, listed: Vec::new() };
        for (changes, max_grants, want) in [
            (parked(0, 0), None, None),
            (parked(0, 9), None, None),
            (parked(0, 9), Some(9), None),
            (parked(0, 9), Some(8), Some("grants that the fact store refused: 9, more")),
            (parked(0, 1), Some(0), Some("--max-parked 0")),
            (parked(1, 0), None, Some("refused: 1. Access")),
            (parked(2, 9), Some(100), Some("refused: 2. Access")),
        ] {
            let problem = changes.problem(max_grants);
            assert_eq!(problem.is_some(), want.is_some(), "{changes:?} {problem:?}");
            assert!(want.is_none_or(|want| problem.as_ref().is_some_and(|problem| problem.contains(want))), "{problem:?}");
        }
    }
}
