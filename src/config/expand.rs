//! Environment variables in texts.
//!
//! - A text that is `$NAME` and nothing else is the variable's value.
//! - `${NAME}` is replaced anywhere in a text.
//! - Any other `$` stands for itself. A value that is put in is not searched again, which is also how to write a literal `${`.
//!
//! In the user and password of a connection URI, where `@`, `/`, `:` or `%` would end or change the part they are in, the value of a
//! `${NAME}` is percent-encoded, so that `${DB_PASS}` may hold any password. A value that already is valid there (only unreserved
//! characters, sub-delimiters and `%XX`; [RFC 3986 section 3.2.1](https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1)) is left as it
//! is, because
//! files that went through `envsubst` so far have encoded values in their environment. The one password that this misreads holds a
//! `%` before two hexadecimal digits and nothing that needs encoding: write its `%` as `%25`.

use std::{collections::BTreeSet, ops::Range};

use crate::config::Environment;

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ExpandError {
    /// The variable does not exist.
    Unset(String),
    /// The variable is empty, where that cannot be meant.
    Empty(String),
    /// `${` with this and something else than `}` after it.
    Malformed(String),
}

/// What kind of text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextKind {
    /// A path, a name, …
    Plain,
    /// A connection string: no variable in it may be empty, and user and password are encoded.
    Connection,
}

/// `text` with the variables' values, or everything that is wrong with it.
pub(super) fn expand(text: &str, kind: TextKind, environment: Environment<'_>) -> Result<String, BTreeSet<ExpandError>> {
    let mut errors = BTreeSet::new();
    let mut expanded = String::with_capacity(text.len());
    let userinfo = if kind == TextKind::Connection { userinfo(text) } else { 0..0 };
    let keep_colon = !text[userinfo.clone()].contains(':');
    for (at, piece) in pieces(text) {
        match piece {
            Piece::Literal(literal) => expanded += literal,
            Piece::Variable(name) => match value(name, kind, environment) {
                Ok(value) if userinfo.contains(&at) => expanded += &encode(&value, keep_colon),
                Ok(value) => expanded += &value,
                Err(error) => _ = errors.insert(error),
            },
            Piece::Malformed(name) => _ = errors.insert(ExpandError::Malformed(name.to_owned())),
        }
    }
    if errors.is_empty() { Ok(expanded) } else { Err(errors) }
}

/// The variable that `text` is, if it is one and nothing else.
pub(super) fn sole_variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).or_else(|| text.strip_prefix('$'))?;
    (!name.is_empty() && name_length(name) == name.len()).then_some(name)
}

enum Piece<'t> {
    Literal(&'t str),
    Variable(&'t str),
    Malformed(&'t str),
}

fn value(name: &str, kind: TextKind, environment: Environment<'_>) -> Result<String, ExpandError> {
    match environment(name) {
        None => Err(ExpandError::Unset(name.to_owned())),
        Some(value) if value.is_empty() && kind == TextKind::Connection => Err(ExpandError::Empty(name.to_owned())),
        Some(value) => Ok(value),
    }
}

/// The pieces of `text`, each with its offset.
fn pieces(text: &str) -> Vec<(usize, Piece<'_>)> {
    if let Some(name) = sole_variable(text) {
        return vec![(0, Piece::Variable(name))];
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].find("${").map(|found| at + found) {
        pieces.push((at, Piece::Literal(&text[at..open])));
        let rest = &text[open + 2..];
        let name = &rest[..name_length(rest)];
        at = open + 2 + name.len();
        if !name.is_empty() && text[at..].starts_with('}') {
            at += 1;
            pieces.push((open, Piece::Variable(name)));
        } else {
            pieces.push((open, Piece::Malformed(name)));
        }
    }
    pieces.push((at, Piece::Literal(&text[at..])));
    pieces
}

/// How much of the front of `text` is a variable's name.
fn name_length(text: &str) -> usize {
    let length = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { 0 } else { length }
}

/// Where a URI has its user and password, `USER:PASSWORD` before the `@`; empty if it has none.
fn userinfo(uri: &str) -> Range<usize> {
    let Some(start) = uri.find("://").map(|found| found + 3) else { return 0..0 };
    let authority = uri[start..].find(['/', '?', '#']).map_or(&uri[start..], |end| &uri[start..start + end]);
    match authority.rfind('@') {
        Some(end) => start..start + end,
        None => 0..0,
    }
}

/// `value` as it may stand in the user or password of a URI; with `keep_colon` it may be both.
fn encode(value: &str, keep_colon: bool) -> String {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (byte == b':' && keep_colon);
    if is_encoded(value.as_bytes(), |byte| unreserved(byte) || b"!$&'()*+,;=".contains(&byte)) {
        return value.to_owned();
    }
    value.bytes().map(|byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn is_encoded(mut bytes: &[u8], valid: impl Fn(u8) -> bool) -> bool {
    while let Some((&first, rest)) = bytes.split_first() {
        bytes = match rest {
            [a, b, rest @ ..] if first == b'%' && a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            _ if valid(first) => rest,
            _ => return false,
        };
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        let value = match name {
            "URL" => "postgresql://u:p@h/db",
            "USER" => "app@corp",
            "PASS" => "p@ss/w:rd%",
            "ENCODED" => "p%40ss!",
            "BOTH" => "app:s3cret",
            "HOST" => "db.example",
            "OPTIONS" => "sslmode=require&connect_timeout=5",
            "REF" => "${HOST}",
            "EMPTY" => "",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn variables_are_put_in_and_encoded_only_in_user_and_password() {
        for (text, want) in [
            ("$URL", "postgresql://u:p@h/db"),
            ("${URL}", "postgresql://u:p@h/db"),
            ("/data/${HOST}/x.csv", "/data/db.example/x.csv"),
            ("$HOST/x and $5 and $$ and $", "$HOST/x and $5 and $$ and $"),
            ("${REF}!", "${HOST}!"),
            (
                "postgresql://${USER}:${PASS}@${HOST}:5432/db?${OPTIONS}",
                "postgresql://app%40corp:p%40ss%2Fw%3Ard%25@db.example:5432/db?sslmode=require&connect_timeout=5",
            ),
            ("postgresql://u:${ENCODED}@h/db", "postgresql://u:p%40ss!@h/db"),
            ("postgresql://${BOTH}@h/db", "postgresql://app:s3cret@h/db"),
            ("postgresql://u:${BOTH}@h/db", "postgresql://u:app%3As3cret@h/db"),
            ("postgresql://${HOST}/db?user=a@b&password=${PASS}", "postgresql://db.example/db?user=a@b&password=p@ss/w:rd%"),
            ("host=${HOST} dbname=x", "host=db.example dbname=x"),
        ] {
            assert_eq!(expand(text, TextKind::Connection, &environment).as_deref(), Ok(want), "{text}");
        }
        assert_eq!(expand("a://${PASS}@h", TextKind::Plain, &environment).as_deref(), Ok("a://p@ss/w:rd%@h"));
        assert_eq!(expand("x${EMPTY}y", TextKind::Plain, &environment).as_deref(), Ok("xy"));
    }

    #[test]
    fn every_variable_that_cannot_be_put_in_is_named() {
        let unset = |name: &str| ExpandError::Unset(name.into());
        for (text, want) in [
            ("${A}:${B}@${A}", vec![unset("A"), unset("B")]),
            ("$A", vec![unset("A")]),
            ("x${EMPTY}", vec![ExpandError::Empty("EMPTY".into())]),
            ("$EMPTY", vec![ExpandError::Empty("EMPTY".into())]),
            ("${A:-secret}${", vec![ExpandError::Malformed(String::new()), ExpandError::Malformed("A".into())]),
            ("${5}", vec![ExpandError::Malformed(String::new())]),
        ] {
            let errors = expand(text, TextKind::Connection, &environment).expect_err(text);
            assert_eq!(errors.into_iter().collect::<Vec<_>>(), want, "{text}");
        }
    }

    proptest! {
        /// What the drivers read back is what the variables hold.
        #[test]
        fn any_user_and_password_reach_the_driver(user in "[^%\0]{1,12}", password in "[^%\0]{1,12}") {
            let environment = |name: &str| Some(if name == "U" { user.clone() } else { password.clone() });
            let uri = expand("postgresql://${U}:${P}@h:1/db", TextKind::Connection, &environment).expect("both are set");
            let config: tokio_postgres::Config = uri.parse().expect("a URI");
            prop_assert_eq!(config.get_user(), Some(user.as_str()));
            prop_assert_eq!(config.get_password(), Some(password.as_bytes()));
            prop_assert_eq!(config.get_dbname(), Some("db"));
        }

        #[test]
        fn any_text_expands_or_is_refused(text in "[ab$:/@?%{}_5é]{0,20}") {
            let all_set = |_: &str| Some("@é%".to_owned());
            if let Err(errors) = expand(&text, TextKind::Connection, &all_set) {
                prop_assert!(errors.iter().all(|error| matches!(error, ExpandError::Malformed(_))));
            }
        }
    }
}
