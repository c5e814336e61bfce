//! CSV files: RFC 4180 in UTF-8, with or without a byte order mark, with a header.
//!
//! ```text
//! file ──> decode: hash, judge quoting ──> snapshot: one pass, a row for each view ──> extents, digest
//!                                             ^                                             │
//! watch: its directories ──> debounce ──> tail: read again <── every few seconds, stat      v
//!                                             └───────── the same digest? Progress, else a Cut
//! ```
//!
//! A file is believed as a whole or not at all: a missing header, a row of another width, a quote that never closes,
//! bytes that are no UTF-8, a file that changes while it is read or vanishes, each of them leaves everything as it was,
//! because a fact that disappears from half a file is a revocation that nobody asked for. The position is the SHA-256 of the
//! bytes that were parsed, computed in the same pass: what `sha256sum` prints.
//!
//! What the format leaves open is read so: an empty cell, quoted or not, is a missing value and makes no fact; empty lines
//! are skipped; the last line needs no line break; the separator is a comma; spaces belong to the cell; header names are
//! compared exactly. A file that has only its header is an empty result.
//!
//! What cannot be seen from outside is an unquoted file that was cut at a row's end or inside its last cell by a writer who
//! works in place. So a file that somebody has modified and not yet closed is left alone for a while (`watch`), and the
//! documentation asks for `mv new.csv users.csv`, which is atomic.

mod decode;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod snapshot;
mod tail;
mod watch;

pub use snapshot::{REFRESH_REASON, snapshot};
pub use tail::Follower;
