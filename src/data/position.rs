//! Positions: how far into a source's history a state reaches.

use std::{fmt, str::FromStr};

/// A PostgreSQL log sequence number, a byte offset into the write-ahead log.
///
/// Printed and parsed as PostgreSQL does, `16/B374D848`
/// (<https://www.postgresql.org/docs/current/datatype-pg-lsn.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "could not read \"{text}\" as a position; expected an LSN such as 16/B374D848 (PostgreSQL) or the 64 hexadecimal digits of a \
     SHA-256 digest (CSV)"
)]
pub struct ParsePositionError {
    text: String,
}

impl FromStr for Lsn {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParsePositionError { text: text.to_owned() };
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let part = |digits: &str| -> Option<u64> {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        match (part(high), part(low)) {
            (Some(high), Some(low)) => Ok(Self(high << 32 | low)),
            _ => Err(bad()),
        }
    }
}

/// A state of one source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Position {
    /// PostgreSQL: every transaction whose commit record starts before this LSN is included, no other.
    Lsn(Lsn),
    /// CSV: the lower-case hexadecimal SHA-256 of the file's bytes, what `sha256sum` prints.
    Digest(String),
}

impl Position {
    /// Whether a source that stands here has reached `wanted`.
    ///
    /// LSNs are ordered; a file's digests are not, there only the very same content counts.
    pub fn reaches(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Lsn(here), Self::Lsn(wanted)) => here >= wanted,
            (Self::Digest(here), Self::Digest(wanted)) => here == wanted,
            (Self::Lsn(_), Self::Digest(_)) | (Self::Digest(_), Self::Lsn(_)) => false,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Digest(digest) => f.write_str(digest),
        }
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Digest(text.to_ascii_lowercase()));
        }
        text.parse().map(Self::Lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_lsn_reads_back_what_it_prints(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse(), Ok(Lsn(value)));
        }
    }

    #[test]
    fn what_is_no_lsn_is_refused_by_name() {
        for text in ["", "/", "1", "0/", "/0", "0/G", "0/123456789", "+1/0", "0/1/2", " 0/1"] {
            let error = text.parse::<Lsn>().expect_err(text);
            assert!(error.to_string().contains(&format!("\"{text}\"")), "{error}");
        }
    }

    #[test]
    fn only_the_same_content_reaches_a_digest() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let at = |text: &str| text.parse::<Position>().expect("a position");
        assert!(at(&a).reaches(&at(&a)));
        assert!(!at(&a).reaches(&at(&b)));
        assert!(at("0/20").reaches(&at("0/1F")));
        assert!(!at("0/1F").reaches(&at("0/20")));
        assert!(!at("0/20").reaches(&at(&a)));
    }
}
