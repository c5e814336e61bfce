//! The binary form of a jsonb constant, as `jsonb.h` lays it out, printed as `JsonbToCString` prints it.

use crate::query::scalar::numeric;

/// Deeper constants are refused; PostgreSQL's own limit is its stack.
const MAX_DEPTH: usize = 256;

const COUNT: u32 = 0x0FFF_FFFF;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;
const ARRAY: u32 = 0x4000_0000;

const ENTRY_LENGTH: u32 = 0x0FFF_FFFF;
const ENTRY_TYPE: u32 = 0x7000_0000;
/// The entry holds where it ends instead of how long it is.
const ENTRY_HAS_END: u32 = 0x8000_0000;

/// The text of a jsonb's bytes.
pub(super) fn text_of(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    print_container(bytes, 0, &mut text)?;
    Some(text)
}

fn word(bytes: &[u8], index: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(4 * index..)?.first_chunk()?))
}

fn print_container(bytes: &[u8], depth: usize, text: &mut String) -> Option<()> {
    let header = word(bytes, 0)?;
    let count = usize::try_from(header & COUNT).ok()?;
    let entries = if header & OBJECT == 0 { count } else { 2 * count };
    let data = bytes.get(4 + 4 * entries..)?;
    if depth > MAX_DEPTH {
        return None;
    }
    let mut children = Vec::new();
    let mut start = 0;
    for index in 0..entries {
        let entry = word(bytes, 1 + index)?;
        let number = usize::try_from(entry & ENTRY_LENGTH).ok()?;
        let end = if entry & ENTRY_HAS_END == 0 { start + number } else { number };
        children.push((entry & ENTRY_TYPE, start, end));
        start = end;
    }
    let print = |&(kind, start, end): &(u32, usize, usize), text: &mut String| print_value(kind, data, start, end, depth, text);
    match header & (SCALAR | OBJECT | ARRAY) {
        flags if flags == SCALAR | ARRAY => print(children.first()?, text)?,
        ARRAY => {
            text.push('[');
            for (index, child) in children.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                print(child, text)?;
            }
            text.push(']');
        }
        OBJECT => {
            text.push('{');
            let (keys, values) = children.split_at(count);
            for (index, (key, value)) in keys.iter().zip(values).enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                print(key, text)?;
                text.push_str(": ");
                print(value, text)?;
            }
            text.push('}');
        }
        _ => return None,
    }
    Some(())
}

fn print_value(kind: u32, data: &[u8], start: usize, end: usize, depth: usize, text: &mut String) -> Option<()> {
    // Numbers and containers are aligned; the padding belongs to them.
    let aligned = || data.get(start.next_multiple_of(4)..end);
    match kind {
        0x0000_0000 => quote(std::str::from_utf8(data.get(start..end)?).ok()?, text),
        0x1000_0000 => {
            let number = aligned()?;
            // A varlena of its own, whose header is short or not.
            let header = if number.first()? & 1 == 1 { 1 } else { 4 };
            text.push_str(&numeric::text_of(number.get(header..)?)?);
        }
        0x2000_0000 => text.push_str("false"),
        0x3000_0000 => text.push_str("true"),
        0x4000_0000 => text.push_str("null"),
        0x5000_0000 => print_container(aligned()?, depth + 1, text)?,
        _ => return None,
    }
    Some(())
}

/// `escape_json`.
fn quote(string: &str, text: &mut String) {
    text.push('"');
    for char in string.chars() {
        match char {
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '"' | '\\' => text.extend(['\\', char]),
            control if control < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => text.push(other),
        }
    }
    text.push('"');
}
