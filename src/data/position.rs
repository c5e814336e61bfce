//! Positions: how far into a source's history a state reaches.

use std::{fmt, str::FromStr, sync::Arc};

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
    "could not read \"{text}\" as a position; expected an LSN such as 16/B374D848 (PostgreSQL), a cluster time such as 1732284000:5 \
     (MongoDB: the seconds and the increment of an operationTime) or the 64 hexadecimal digits of a SHA-256 digest (CSV)"
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

/// A MongoDB cluster time: seconds since 1970 and a counter within the second, as the BSON timestamp has them.
///
/// Printed `1732284000:5`. Within a replica set or a sharded cluster every write has one, and later writes have later ones
/// (<https://www.mongodb.com/docs/manual/core/read-isolation-consistency-recency/#std-label-causal-consistency>); a driver's session tells
/// that of its last operation as `operationTime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterTime(pub u64);

impl ClusterTime {
    /// From a timestamp's two halves.
    pub fn new(seconds: u32, increment: u32) -> Self {
        Self(u64::from(seconds) << 32 | u64::from(increment))
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("half of it fits")
    }

    /// The counter within the second.
    pub fn increment(self) -> u32 {
        u32::try_from(self.0 & u64::from(u32::MAX)).expect("half of it fits")
    }

    /// The first time that comes after.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The place in a log of commits behind the one of this time.
    pub fn end(self) -> Lsn {
        Lsn(self.next().0)
    }
}

impl fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seconds(), self.increment())
    }
}

impl FromStr for ClusterTime {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u32>().ok()).flatten();
        let parts = text.split_once(':').map(|(seconds, increment)| (number(seconds), number(increment)));
        match parts {
            Some((Some(seconds), Some(increment))) => Ok(Self::new(seconds, increment)),
            Some(_) | None => Err(ParsePositionError { text: text.to_owned() }),
        }
    }
}

/// What is needed to go on from a position besides its place. MongoDB: the resume token's `_data`, where an event or the server has told
/// one. PostgreSQL: which commit was the last one before the position, so that another history is not taken for this one
/// (`source/postgres/mark.rs`).
///
/// MongoDB's holds the `_id` of the document that its event was of, so neither `Debug` nor [`Position`]'s text shows it.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct ResumeToken(Option<Arc<str>>);

impl ResumeToken {
    /// The token with this content, such as the `_data`.
    pub fn new(data: &str) -> Self {
        Self(Some(data.into()))
    }

    /// Its content; without one the place has to do.
    pub fn data(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ResumeToken" } else { "None" })
    }
}

/// Between a place and its token in [`Position::stored`].
const TOKEN: char = '@';

/// A state of one source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Position {
    /// PostgreSQL: every transaction whose commit record starts before this LSN is included, no other.
    Lsn(Lsn, ResumeToken),
    /// MongoDB: every write at or before this cluster time is included, no other.
    Time(ClusterTime, ResumeToken),
    /// CSV: the lower-case hexadecimal SHA-256 of the file's bytes, what `sha256sum` prints.
    Digest(String),
}

impl Position {
    /// Whether a source that stands here has reached `wanted`.
    ///
    /// LSNs and cluster times are ordered; a file's digests are not, there only the very same content counts.
    pub fn reaches(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Digest(here), Self::Digest(wanted)) => here == wanted,
            (Self::Lsn(..), Self::Lsn(..)) | (Self::Time(..), Self::Time(..)) => self.end() >= wanted.end(),
            (Self::Lsn(..), Self::Time(..) | Self::Digest(_))
            | (Self::Time(..), Self::Lsn(..) | Self::Digest(_))
            | (Self::Digest(_), Self::Lsn(..) | Self::Time(..)) => false,
        }
    }

    /// Behind which commit of the source's log this is; a file has no log.
    ///
    /// So positions of one source compare: the commits that *start* before it are in, of either kind of log.
    pub fn end(&self) -> Option<Lsn> {
        match self {
            Self::Lsn(lsn, _) => Some(*lsn),
            Self::Time(time, _) => Some(time.end()),
            Self::Digest(_) => None,
        }
    }

    /// The position behind a commit that ends at `end`, in the log that this one is of.
    pub fn at(&self, end: Lsn, token: ResumeToken) -> Self {
        match self {
            Self::Lsn(..) => Self::Lsn(end, token),
            Self::Time(..) => Self::Time(ClusterTime(end.0.saturating_sub(1)), token),
            Self::Digest(_) => self.clone(),
        }
    }

    /// All of it, as the local store keeps it; [`FromStr`] reads it back. Not for anybody's eyes, for a token holds an id.
    pub fn stored(&self) -> String {
        match self {
            Self::Lsn(_, token) | Self::Time(_, token) => match token.data() {
                Some(data) => format!("{self}{TOKEN}{data}"),
                None => self.to_string(),
            },
            Self::Digest(_) => self.to_string(),
        }
    }
}

impl From<Lsn> for Position {
    fn from(lsn: Lsn) -> Self {
        Self::Lsn(lsn, ResumeToken::default())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lsn(lsn, _) => lsn.fmt(f),
            Self::Time(time, _) => time.fmt(f),
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
        let (place, token) =
            text.split_once(TOKEN).map_or((text, ResumeToken::default()), |(place, token)| (place, ResumeToken::new(token)));
        if place.contains(':') { Ok(Self::Time(place.parse()?, token)) } else { Ok(Self::Lsn(place.parse()?, token)) }
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

    proptest! {
        #[test]
        fn a_cluster_time_reads_back_what_it_prints(value: u64, token in prop::option::of("[0-9A-F]{2,40}")) {
            let token = token.as_deref().map(ResumeToken::new).unwrap_or_default();
            let position = Position::Time(ClusterTime(value), token.clone());
            prop_assert_eq!(position.stored().parse(), Ok(position.clone()));
            prop_assert_eq!(position.to_string().parse(), Ok(Position::Time(ClusterTime(value), ResumeToken::default())));
            if let Some(data) = token.data() {
                let shown = format!("{position:?} {position}");
                prop_assert!(!shown.contains(data) || value.to_string().contains(data) || position.to_string().contains(data));
            }
        }
    }

    #[test]
    fn a_position_has_the_commits_that_start_before_its_end() {
        let at = |text: &str| text.parse::<Position>().expect("a position");
        let (here, commit) = (at("7:2"), ClusterTime::new(7, 2));
        assert!(here.reaches(&at("7:2")) && here.reaches(&at("6:9")) && !here.reaches(&at("7:3")));
        assert!(here.end().is_some_and(|end| Lsn(commit.0) < end && Lsn(commit.next().0) >= end));
        assert_eq!(here.at(commit.next().end(), ResumeToken::default()), at("7:3"));
        assert!(!here.reaches(&at("0/1")) && !at("0/1").reaches(&here));
        for text in [":", "1:", ":1", "1:2:3", "-1:2", "4294967296:0", "1:+2", "x@1"] {
            text.parse::<Position>().expect_err(text);
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
