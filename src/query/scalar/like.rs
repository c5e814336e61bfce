//! `LIKE`, byte by byte as PostgreSQL matches it in UTF-8.
//!
//! PostgreSQL's `MatchText` calls itself for every `%`, and an inner call that reached a further `%` never lets an outer one try again.
//! So only the last `%` is ever moved, and a loop that remembers it does the same, without a stack and at most quadratic. A pattern
//! that ends in the escape character is an error only if matching gets there, which the loop keeps.

use crate::query::{EvalError, scalar::fails};

/// Where to go on when the text does not match: the last `%` seen.
struct Wildcard {
    /// Where in the text its match of nothing would start, and then of ever more.
    text: usize,
    /// The pattern behind it.
    pattern: usize,
    /// The byte that the rest of the pattern starts with.
    first: u8,
}

/// Whether `text` matches `pattern`, in which a backslash is the escape character.
pub(super) fn matches(text: &str, pattern: &str) -> Result<bool, EvalError> {
    let (text, pattern) = (text.as_bytes(), pattern.as_bytes());
    let (mut t, mut p) = (0, 0);
    let mut wildcard: Option<Wildcard> = None;
    loop {
        let same = if t < text.len() && p < pattern.len() {
            match pattern[p] {
                b'%' => {
                    let Some((after, from)) = skip_wildcards(text, pattern, t, p) else { return Ok(false) };
                    let Some(&next) = pattern.get(after) else { return Ok(true) };
                    let first = if next == b'\\' { escaped(pattern, after)? } else { next };
                    wildcard = Some(Wildcard { text: from, pattern: after, first });
                    false
                }
                b'_' => {
                    t = next_char(text, t);
                    p += 1;
                    true
                }
                b'\\' => {
                    let same = escaped(pattern, p)? == text[t];
                    (t, p) = (t + 1, p + 2);
                    same
                }
                byte => {
                    let same = byte == text[t];
                    (t, p) = (t + 1, p + 1);
                    same
                }
            }
        } else if t == text.len() {
            // More text behind the wildcard would not help either.
            return Ok(pattern[p..].iter().all(|&byte| byte == b'%'));
        } else {
            false
        };
        if !same {
            let Some(found) = wildcard.as_mut().and_then(|wildcard| wildcard.advance(text)) else { return Ok(false) };
            (t, p) = found;
        }
    }
}

impl Wildcard {
    /// The next place where the rest of the pattern may match.
    fn advance(&mut self, text: &[u8]) -> Option<(usize, usize)> {
        while self.text < text.len() {
            let at = self.text;
            self.text = next_char(text, at);
            if text[at] == self.first {
                return Some((at, self.pattern));
            }
        }
        None
    }
}

/// Behind a run of `%` and `_`: the place in the pattern, and in the text behind a character for each `_`; `None` if it has too few.
fn skip_wildcards(text: &[u8], pattern: &[u8], mut t: usize, mut p: usize) -> Option<(usize, usize)> {
    while let Some(byte) = pattern.get(p) {
        match byte {
            b'%' => {}
            b'_' if t < text.len() => t = next_char(text, t),
            b'_' => return None,
            _ => break,
        }
        p += 1;
    }
    Some((p, t))
}

/// The byte behind the escape character at `at`.
fn escaped(pattern: &[u8], at: usize) -> Result<u8, EvalError> {
    pattern.get(at + 1).copied().ok_or_else(|| fails("LIKE pattern must not end with escape character"))
}

fn next_char(text: &[u8], at: usize) -> usize {
    let rest = &text[(at + 1).min(text.len())..];
    at + 1 + rest.iter().take_while(|&&byte| byte & 0xC0 == 0x80).count()
}
