//! jsonb and json, cut out of their texts: no value is parsed that is not asked for, and a number keeps its digits.
//!
//! PostgreSQL prints jsonb canonically: keys unique and in its order, `, ` and `: ` between, escapes only where JSON needs one. json is
//! printed as it was written, so white space may stand between any two tokens, keys may repeat, and any character may be escaped. The
//! scanner allows for both. The text is what PostgreSQL accepted, so nothing is validated beyond what keeps the scanner in bounds.

use std::borrow::Cow;

use crate::query::{
    Datum, EvalError, Kind,
    scalar::{
        fails,
        integer::int,
        list::{Entry, Needs, strict},
        malformed,
        oids::{INT4, JSONB, TEXT},
        str_of,
    },
};

/// Which of the two types a text is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// jsonb.
    Canonical,
    /// json.
    AsWritten,
}

/// The functions over jsonb. Those over json are not here: they read the whole text and fail for escapes anywhere in it.
pub(super) static ENTRIES: &[&[Entry]] = &[&[
    strict(3478, "jsonb_object_field", &[JSONB, TEXT], Needs::Nothing, Kind::Text, |args| Ok(raw(field(args)?))),
    strict(3214, "jsonb_object_field_text", &[JSONB, TEXT], Needs::Nothing, Kind::Text, |args| as_text(field(args)?)),
    strict(3215, "jsonb_array_element", &[JSONB, INT4], Needs::Nothing, Kind::Text, |args| Ok(raw(element(args)?))),
    strict(3216, "jsonb_array_element_text", &[JSONB, INT4], Needs::Nothing, Kind::Text, |args| as_text(element(args)?)),
    strict(4047, "jsonb_exists", &[JSONB, TEXT], Needs::Nothing, Kind::Bool, exists),
    strict(3210, "jsonb_typeof", &[JSONB], Needs::Nothing, Kind::Text, |args| Ok(Datum::Text(type_name(str_of(&args[0])?)?.into()))),
    strict(3207, "jsonb_array_length", &[JSONB], Needs::Nothing, Kind::Int, |args| {
        let text = str_of(&args[0])?;
        match text.as_bytes().first() {
            Some(b'[') => i64::try_from(items(text)?.len()).map(Datum::Int).map_err(|_| malformed()),
            Some(b'{') => Err(fails("cannot get array length of a non-array")),
            _ => Err(fails("cannot get array length of a scalar")),
        }
    }),
]];

fn raw<'a>(found: Option<&str>) -> Datum<'a> {
    found.map_or(Datum::Null, |text| Datum::Text(text.to_owned().into()))
}

/// A string without its quotes, JSON's null as NULL, anything else as printed.
fn as_text<'a>(found: Option<&str>) -> Result<Datum<'a>, EvalError> {
    Ok(found.map(scalar_text).transpose()?.flatten().map_or(Datum::Null, |text| Datum::Text(text.into())))
}

fn scalar_text(value: &str) -> Result<Option<String>, EvalError> {
    match value.as_bytes().first() {
        Some(b'"') => Ok(Some(unescaped(value)?.into_owned())),
        _ if value == "null" => Ok(None),
        _ => Ok(Some(value.to_owned())),
    }
}

/// `-> text`: the value under a key; of anything but an object nothing.
fn field<'d>(args: &'d [Datum<'_>]) -> Result<Option<&'d str>, EvalError> {
    let (text, wanted) = (str_of(&args[0])?, str_of(&args[1])?);
    if !text.starts_with('{') {
        return Ok(None);
    }
    for (key, value) in members(text)? {
        if unescaped(key)? == wanted {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// `-> integer`: the element at a place from 0, or from the end. A scalar is an array of itself, an object has none.
fn element<'d>(args: &'d [Datum<'_>]) -> Result<Option<&'d str>, EvalError> {
    let (text, place) = (str_of(&args[0])?, int(&args[1])?);
    let elements = match text.as_bytes().first() {
        Some(b'{') => return Ok(None),
        Some(b'[') => items(text)?,
        _ => vec![text],
    };
    let place = if place < 0 { place + i64::try_from(elements.len()).unwrap_or(i64::MAX) } else { place };
    Ok(usize::try_from(place).ok().and_then(|place| elements.get(place).copied()))
}

/// `?`: a key of an object, a string in an array, or the string itself.
fn exists<'a>(args: &[Datum<'a>]) -> Result<Datum<'a>, EvalError> {
    let (text, wanted) = (str_of(&args[0])?, str_of(&args[1])?);
    let candidates = match text.as_bytes().first() {
        Some(b'{') => members(text)?.into_iter().map(|(key, _)| key).collect(),
        Some(b'[') => items(text)?,
        _ => vec![text],
    };
    for candidate in candidates {
        if candidate.starts_with('"') && unescaped(candidate)? == wanted {
            return Ok(Datum::Bool(true));
        }
    }
    Ok(Datum::Bool(false))
}

fn type_name(text: &str) -> Result<&'static str, EvalError> {
    match text.as_bytes().first() {
        Some(b'{') => Ok("object"),
        Some(b'[') => Ok("array"),
        Some(b'"') => Ok("string"),
        Some(b't' | b'f') => Ok("boolean"),
        Some(b'n') => Ok("null"),
        Some(_) => Ok("number"),
        None => Err(malformed()),
    }
}

/// `jsonb_array_elements_text` and `json_array_elements_text`.
pub(super) fn elements(text: &str, form: Form) -> Result<Vec<Option<String>>, EvalError> {
    let text = text.trim_matches(SPACE);
    match text.as_bytes().first() {
        Some(b'[') => {}
        Some(b'{') => return Err(fails("cannot extract elements from an object")),
        _ => return Err(fails("cannot extract elements from a scalar")),
    }
    if form == Form::AsWritten {
        check_escapes(text)?;
    }
    items(text)?.into_iter().map(scalar_text).collect()
}

/// json's functions undo the escapes of every string they pass, and some have no meaning.
fn check_escapes(text: &str) -> Result<(), EvalError> {
    let mut at = 0;
    while let Some(quote) = text[at..].find('"') {
        let start = at + quote;
        at = string_end(text.as_bytes(), start).ok_or_else(malformed)?;
        unescaped(&text[start..at])?;
    }
    Ok(())
}

/// White space of JSON.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The elements of an array, as written.
fn items(text: &str) -> Result<Vec<&str>, EvalError> {
    let mut scanner = Scanner { text, at: 1 };
    let mut items = Vec::new();
    while scanner.more(b']').ok_or_else(malformed)? {
        items.push(scanner.value().ok_or_else(malformed)?);
    }
    Ok(items)
}

/// The keys, with their quotes, and values of an object, as written.
fn members(text: &str) -> Result<Vec<(&str, &str)>, EvalError> {
    let mut scanner = Scanner { text, at: 1 };
    let mut members = Vec::new();
    while scanner.more(b'}').ok_or_else(malformed)? {
        let key = scanner.value().filter(|key| key.starts_with('"')).ok_or_else(malformed)?;
        scanner.skip_space();
        if scanner.peek() != Some(b':') {
            return Err(malformed());
        }
        scanner.at += 1;
        scanner.skip_space();
        members.push((key, scanner.value().ok_or_else(malformed)?));
    }
    Ok(members)
}

/// Walks over one array or object.
struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Moves to the next value; false at the closing bracket, `None` at the end of the text.
    fn more(&mut self, close: u8) -> Option<bool> {
        self.skip_space();
        if self.peek()? == b',' {
            self.at += 1;
            self.skip_space();
        }
        Some(self.peek()? != close)
    }

    /// Takes the value that starts here, however deep it is.
    fn value(&mut self) -> Option<&'t str> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match *bytes.get(self.at)? {
                b'"' => self.at = string_end(bytes, self.at)?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                    if depth == 0 {
                        return None;
                    }
                    self.at += 1;
                    continue;
                }
                _ => self.at += bytes[self.at..].iter().take_while(|byte| !b",:]}[{\" \t\n\r".contains(byte)).count(),
            }
            if depth == 0 {
                return Some(&self.text[start..self.at]);
            }
        }
    }
}

/// Behind the closing quote of the string that starts at `start`.
fn string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// What a string in quotes says.
fn unescaped(quoted: &str) -> Result<Cow<'_, str>, EvalError> {
    let inner = quoted.get(1..quoted.len().wrapping_sub(1)).ok_or_else(malformed)?;
    if !inner.contains('\\') {
        return Ok(Cow::Borrowed(inner));
    }
    let mut plain = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let escape = rest[at + 1..].chars().next().ok_or_else(malformed)?;
        rest = &rest[at + 1 + escape.len_utf8()..];
        plain.push(match escape {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '"' | '\\' | '/' => escape,
            'u' => code_point(&mut rest)?,
            _ => return Err(malformed()),
        });
    }
    plain.push_str(rest);
    Ok(Cow::Owned(plain))
}

/// The character of `\uXXXX`, whose `\u` has been taken, and of the second half of a pair.
fn code_point(rest: &mut &str) -> Result<char, EvalError> {
    let unit = code_unit(rest)?;
    let code = match unit {
        0 => return Err(fails("unsupported Unicode escape sequence")),
        0xD800..=0xDBFF => {
            *rest = rest.strip_prefix("\\u").ok_or_else(lone)?;
            let low = code_unit(rest)?;
            if !(0xDC00..=0xDFFF).contains(&low) {
                return Err(lone());
            }
            0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
        }
        unit => unit,
    };
    char::from_u32(code).ok_or_else(lone)
}

fn lone() -> EvalError {
    fails("half of a Unicode surrogate pair in a JSON string")
}

fn code_unit(rest: &mut &str) -> Result<u32, EvalError> {
    let (digits, tail) = rest.split_at_checked(4).ok_or_else(malformed)?;
    *rest = tail;
    u32::from_str_radix(digits, 16).map_err(|_| malformed())
}
