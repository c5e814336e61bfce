//! Computes immutable expressions over values, in an SQL session of its own.
//!
//! One statement for many rows: the parameters come as columns of text, each cast to its type in an inner SELECT that names them, and
//! the expression stands over those names. The statement goes through the simple protocol, whose results are in the text format: exactly
//! what the types' output functions print under the pinned settings, which a cast to text is not (a boolean, an `inet`, a
//! `character(n)`).

use std::{fmt::Write, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use postgres_protocol::escape::escape_literal;
use tokio::{sync::Mutex, time};
use tokio_postgres::SimpleQueryMessage;

use crate::{
    query::RemoteExpr,
    source::{
        Evaluate, SourceError,
        postgres::{
            fault,
            session::{Purpose, Server, Session},
        },
    },
};

/// Bytes of values in one statement. The server needs several times as much to parse it; a call costs a round trip.
const STATEMENT_SIZE: usize = 1 << 20;
/// How long one statement may take. Tens of thousands of rows take a second if each takes tens of microseconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// A row's parameters.
type Values = Vec<Option<String>>;

/// Evaluates at one database. Calls take turns.
pub(crate) struct Evaluator {
    server: Server,
    session: Mutex<Option<Session>>,
}

impl Evaluator {
    /// Connects with the first call, and again after a lost connection.
    pub(crate) fn new(server: Server) -> Self {
        Self { server, session: Mutex::new(None) }
    }

    async fn run(&self, expr: &RemoteExpr, rows: &[Values]) -> Result<Vec<Option<String>>, SourceError> {
        let mut results = Vec::with_capacity(rows.len());
        let mut rest = rows;
        while !rest.is_empty() {
            let (some, more) = rest.split_at(fitting(rest));
            results.extend(self.call(expr, some).await?);
            rest = more;
        }
        Ok(results)
    }

    /// One statement. A session that has been idle may be dead without anybody's fault, so its first failure is tried once more.
    async fn call(&self, expr: &RemoteExpr, rows: &[Values]) -> Result<Vec<Option<String>>, SourceError> {
        let sql = statement(expr, rows).map_err(|problem| self.problem(problem))?;
        let mut place = self.session.lock().await;
        // Taken out, so that a call that is dropped halfway leaves no session behind that is busy with its statement.
        if let Some(session) = place.take() {
            match self.ask(&session, &sql, rows.len()).await {
                Err(SourceError::Unreachable { .. }) => {}
                answer => {
                    *place = Some(session);
                    return answer;
                }
            }
        }
        let session = self.server.connect(Purpose::Read).await?;
        let answer = self.ask(&session, &sql, rows.len()).await;
        if !matches!(answer, Err(SourceError::Unreachable { .. })) {
            *place = Some(session);
        }
        answer
    }

    async fn ask(&self, session: &Session, sql: &str, rows: usize) -> Result<Vec<Option<String>>, SourceError> {
        let action = "compute an expression";
        let asked =
            time::timeout(DEADLINE, session.client.simple_query(sql)).await.map_err(|_| fault::timeout(&self.server.name, action))?;
        let messages = asked.map_err(|error| match fault::of_query(&error) {
            Some(problem) => self.problem(problem),
            None => fault::sql(&self.server.name, action, error),
        })?;
        let result = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        };
        let results: Vec<Option<String>> = messages.iter().filter_map(result).collect();
        if results.len() == rows { Ok(results) } else { Err(self.problem("it does not return one value for each row".to_owned())) }
    }

    fn problem(&self, problem: String) -> SourceError {
        SourceError::Expression { name: self.server.name.to_string(), problem }
    }
}

impl Evaluate for Evaluator {
    fn evaluate<'a>(&'a self, expr: &'a RemoteExpr, rows: Vec<Values>) -> BoxFuture<'a, Result<Vec<Option<String>>, SourceError>> {
        async move { self.run(expr, &rows).await }.boxed()
    }
}

/// How many of `rows` go into one statement; at least one.
fn fitting(rows: &[Values]) -> usize {
    let mut size = 0;
    let fits = rows.iter().take_while(|row| {
        size += 8 + row.iter().map(|value| 4 + value.as_ref().map_or(4, String::len)).sum::<usize>();
        size <= STATEMENT_SIZE
    });
    fits.count().max(1)
}

/// `SELECT expr FROM (parameters, cast and named) ORDER BY their row`.
fn statement(expr: &RemoteExpr, rows: &[Values]) -> Result<String, String> {
    let count = expr.types.len();
    if rows.iter().any(|row| row.len() != count) {
        return Err("a row does not have one value for each parameter".to_owned());
    }
    let over_names = name_parameters(&expr.sql, count)?;
    let names = |prefix: &str| (1..=count).map(|n| format!(", {prefix}{n}")).collect::<String>();
    let casts: String = expr.types.iter().zip(1..).map(|(sql, n)| format!(", CAST(t.t{n} AS {sql}) AS p{n}")).collect();
    let source = if count == 0 {
        format!("pg_catalog.generate_series(1, {}) AS t (place)", rows.len())
    } else {
        let arrays: Vec<String> = (0..count).map(|n| array(rows.iter().map(|row| row[n].as_deref()))).collect();
        format!("ROWS FROM (pg_catalog.generate_series(1, {}){}) AS t (place{})", rows.len(), unnested(&arrays), names("t"))
    };
    Ok(format!("SELECT ({over_names}) FROM (SELECT t.place{casts} FROM {source}) AS p ORDER BY p.place"))
}

fn unnested(arrays: &[String]) -> String {
    arrays.iter().map(|array| format!(", pg_catalog.unnest({}::pg_catalog.text[])", escape_literal(array))).collect()
}

/// An array of texts, one level deep, as PostgreSQL reads it. Every text is quoted, so that none is taken for NULL or an array.
fn array<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut array = String::from("{");
    for (index, text) in texts.enumerate() {
        if index > 0 {
            array.push(',');
        }
        let Some(text) = text else {
            array.push_str("NULL");
            continue;
        };
        array.push('"');
        for char in text.chars() {
            if matches!(char, '"' | '\\') {
                array.push('\\');
            }
            array.push(char);
        }
        array.push('"');
    }
    array.push('}');
    array
}

/// Replaces each `$n` by `p.pn`, where it is a parameter: not inside of a text, a quoted name, a comment or a word.
fn name_parameters(sql: &str, count: usize) -> Result<String, String> {
    let mut named = String::with_capacity(sql.len() + 8 * count);
    let mut rest = sql;
    let mut before = None;
    while let Some(char) = rest.chars().next() {
        let in_word = before.is_some_and(is_word);
        let taken = match char {
            '\'' => quoted(rest, '\'', is_escape_prefix(&sql[..sql.len() - rest.len()])),
            '"' => quoted(rest, '"', false),
            '$' if !in_word => parameter(rest).or_else(|| dollar_quoted(rest)),
            '-' if rest.starts_with("--") => Some(rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => comment(rest),
            _ => Some(char.len_utf8()),
        };
        let length = taken.ok_or("it is not a complete expression")?;
        let piece = &rest[..length];
        match piece.strip_prefix('$').filter(|_| !in_word).and_then(|number| number.parse::<usize>().ok()) {
            Some(number) if (1..=count).contains(&number) => write!(named, "p.p{number}").expect("a String takes everything"),
            Some(number) => return Err(format!("it has no parameter {number}")),
            None => named.push_str(piece),
        }
        before = piece.chars().next_back();
        rest = &rest[length..];
    }
    Ok(named)
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, '_' | '$') || !char.is_ascii()
}

/// Whether a text that follows `before` is an `E''` one.
fn is_escape_prefix(before: &str) -> bool {
    let mut chars = before.chars().rev();
    matches!(chars.next(), Some('e' | 'E')) && !chars.next().is_some_and(is_word)
}

/// The length of `$1`.
fn parameter(text: &str) -> Option<usize> {
    let digits = text[1..].bytes().take_while(u8::is_ascii_digit).count();
    (digits > 0).then_some(1 + digits)
}

/// The length of a text or name up to its closing quote; doubled quotes belong to it, in `E''` texts escaped ones, too.
fn quoted(text: &str, quote: char, escapes: bool) -> Option<usize> {
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, char)) = chars.next() {
        if char == '\\' && escapes {
            chars.next()?;
        } else if char == quote {
            if chars.peek().is_none_or(|(_, next)| *next != quote) {
                return Some(at + 1);
            }
            chars.next();
        }
    }
    None
}

/// The length of `$tag$…$tag$`.
fn dollar_quoted(text: &str) -> Option<usize> {
    let tag = text[1..].find('$').map(|end| &text[..end + 2])?;
    let end = text[tag.len()..].find(tag)?;
    tag[1..tag.len() - 1].chars().all(is_word).then_some(end + 2 * tag.len())
}

/// The length of a comment, which may hold others.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest.chars().next()?.len_utf8();
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_are_named_where_they_are_parameters() {
        for (sql, want) in [
            ("$1 || $12", "p.p1 || p.p12"),
            ("f($1,$2)", "f(p.p1,p.p2)"),
            ("'$1' || $1", "'$1' || p.p1"),
            ("'it''s $1' = $1", "'it''s $1' = p.p1"),
            (r"E'\'$1' = $1", r"E'\'$1' = p.p1"),
            (r"'\' = $1", r"'\' = p.p1"),
            (r"date'\' = $1", r"date'\' = p.p1"),
            (r#""a$1""$2" + $2"#, r#""a$1""$2" + p.p2"#),
            ("$$ $1 $$ || $x$ $1 $$ $x$ || $1", "$$ $1 $$ || $x$ $1 $$ $x$ || p.p1"),
            ("a$1 + $1", "a$1 + p.p1"),
            ("/* $1 /* */ */ $1 -- $1", "/* $1 /* */ */ p.p1 -- $1"),
            ("($1)::text", "(p.p1)::text"),
        ] {
            assert_eq!(name_parameters(sql, 12).as_deref(), Ok(want));
        }
        for sql in ["$3", "$0", "'open", "\"open", "$$open", "/* open", "E'\\'"] {
            assert!(name_parameters(sql, 2).is_err(), "{sql}");
        }
    }

    #[test]
    fn many_rows_go_into_several_statements() {
        let row = |length| vec![Some("x".repeat(length))];
        assert_eq!(fitting(&[row(STATEMENT_SIZE), row(1)]), 1);
        assert_eq!(fitting(&[row(1), row(1), row(STATEMENT_SIZE)]), 2);
    }

    proptest! {
        #[test]
        fn no_expression_panics(sql in "[$1'\"/*\\\\E a-]{0,12}") {
            let _ = name_parameters(&sql, 1);
        }
    }
}
