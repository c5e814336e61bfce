//! Just enough of a Rust lexer: comments and literals made blank, brackets matched, words found.
//!
//! It never has to be right about code that does not compile, and wrong guesses show as false alarms, not as silence.

/// Modules of ours that code names through `crate::`, with their lines.
pub(crate) fn crate_imports(code: &str) -> Vec<(usize, String)> {
    let mut imports = Vec::new();
    for at in occurrences(code, "crate::") {
        let rest = &code[at + "crate::".len()..];
        let group = rest.starts_with('{').then(|| closing(rest, '{', '}')).flatten();
        let names = match group {
            Some(end) => outer_names(&rest[1..end]),
            None => vec![leading_name(rest)],
        };
        imports.extend(names.into_iter().map(|name| (line_of(code, at), name.to_owned())));
    }
    imports
}

/// `a` and `b` of `a::{x, y}, b::z`.
fn outer_names(group: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(leading_name(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names.push(leading_name(&group[start..]));
    names.retain(|name| !name.is_empty());
    names
}

fn leading_name(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands in `code`, not as a part of a longer word.
pub(crate) fn occurrences<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let joins = |outside: Option<char>, edge: Option<char>| outside.is_some_and(is_word) && edge.is_some_and(is_word);
        !joins(code[..*at].chars().next_back(), word.chars().next())
            && !joins(code[at + word.len()..].chars().next(), word.chars().next_back())
    })
}

pub(crate) fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// The end of the function that starts at `start`; none for a signature without a body and for function types.
pub(crate) fn body_end(code: &str, start: usize) -> Option<usize> {
    let rest = &code[start..];
    let is_item = rest["fn".len()..].trim_start().starts_with(|c: char| c.is_alphabetic() || c == '_');
    let open = rest.find(['{', ';']).filter(|at| is_item && rest[*at..].starts_with('{'))?;
    Some(start + open + closing(&rest[open..], '{', '}')?)
}

/// The bracket that closes the one `text` opens with, after white space.
pub(crate) fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}

/// `text` with comments and the insides of literals replaced by spaces, byte for byte, line for line.
pub(crate) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let hidden = hidden_prefix(rest, code.chars().next_back());
        let (kept, blank) = if hidden == 0 { (c.len_utf8(), 0) } else { (0, hidden) };
        code.push_str(&rest[..kept]);
        code.extend(rest[..blank].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }));
        rest = &rest[kept + blank..];
    }
    code
}

/// How many bytes of `rest` are a comment or a literal that starts right here.
fn hidden_prefix(rest: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        // 'x', '\n' and '\u{7f}' are characters; 'a without an end is a lifetime.
        let is_char = inside.starts_with('\\') || inside.chars().nth(1) == Some('\'');
        return if is_char { quoted(rest, '\'') } else { 0 };
    }
    let hashes = rest.strip_prefix('r').map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    if rest.starts_with('r') && rest[1 + hashes..].starts_with('"') && !before.is_some_and(|c| is_word(c) && c != 'b') {
        return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
    }
    0
}

/// The length of the literal that `rest` opens with, escapes included.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '\\' if !escaped => escaped = true,
            c if c == quote && !escaped => return at + c.len_utf8(),
            _ => escaped = false,
        }
    }
    rest.len()
}

#[test]
fn comments_and_literals_are_blank_and_nothing_moves() {
    let text = "let a = \"x // \\\" }\"; // b {\nlet c: &'a str = r#\"d\" {\"#; /* e\n{ */ let q = '\"'; let f = b'\\''; let ä = '{';\n";
    let code = code_only(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.matches('\n').count(), text.matches('\n').count());
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words.join(" "), "let a = ; let c: &'a str = ; let q = ; let f = b ; let ä = ;");
}

#[test]
fn grouped_imports_are_seen_with_their_lines() {
    let code = "use crate::{\n    data::{Row, x::{Y}},\n    fact::Fact,\n};\nlet a = crate::store::open();\n";
    let names = [(1, "data"), (1, "fact"), (5, "store")].map(|(line, name)| (line, name.to_owned()));
    assert_eq!(crate_imports(code), names);
}

#[test]
fn words_are_found_whole() {
    let found = |code, word| occurrences(code, word).count();
    assert_eq!(found("println!(1); eprintln!(2); println!(3)", "println!"), 2);
    assert_eq!(found("a_fn fn b fnc", "fn"), 1);
}
