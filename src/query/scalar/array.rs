//! The text of an array: `{a,"b c",NULL}`, nested for more dimensions, with `[2:3]=` before it if it does not start at 1.

use crate::query::{EvalError, scalar::malformed};

/// All elements in the order of `unnest`, whatever the dimensions. Their delimiter is the comma, as for all types but `box`.
pub(super) fn elements(text: &str) -> Result<Vec<Option<String>>, EvalError> {
    let body = if text.starts_with('[') { text.split_once('=').ok_or_else(malformed)?.1 } else { text };
    let mut chars = body.chars().peekable();
    let mut elements = Vec::new();
    let mut depth = 0_usize;
    while let Some(char) = chars.next() {
        match char {
            '{' => depth += 1,
            '}' => depth = depth.checked_sub(1).ok_or_else(malformed)?,
            ',' => {}
            '"' => elements.push(Some(quoted(&mut chars).ok_or_else(malformed)?)),
            first => {
                let word = bare(first, &mut chars).ok_or_else(malformed)?;
                elements.push(if word == "NULL" { None } else { Some(word) });
            }
        }
        if depth == 0 && char != '}' {
            return Err(malformed());
        }
        if depth == 0 {
            break;
        }
    }
    if depth == 0 && chars.next().is_none() && !body.is_empty() { Ok(elements) } else { Err(malformed()) }
}

/// Up to the closing quote; a backslash hides what follows it.
fn quoted(chars: &mut impl Iterator<Item = char>) -> Option<String> {
    let mut element = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(element),
            '\\' => element.push(chars.next()?),
            other => element.push(other),
        }
    }
}

/// Up to the comma or brace, which stays.
fn bare(first: char, chars: &mut std::iter::Peekable<impl Iterator<Item = char>>) -> Option<String> {
    let mut element = String::new();
    let mut next = Some(first);
    while let Some(char) = next {
        element.push(if char == '\\' { chars.next()? } else { char });
        next = chars.next_if(|char| !matches!(char, ',' | '}' | '{'));
    }
    Some(element)
}
