//! MongoDB: each view is a `find` or an `aggregate` on one collection, read once in a snapshot session.
//!
//! ```text
//! client: connect, is it a replica set? ──> snapshot: one session, view after view at one cluster time
//! query: Extended JSON, projection, explain      └──> decode: document ──> rows ──> extent
//! ```
//!
//! # From a document to rows
//!
//! A field's name is a path with dots. A path that meets an array stands for the array of what each document in it has
//! there, as in an aggregation expression. The field with `is_array` is unwound as by `$unwind`: one row for each
//! element, no row at all for a field that is missing, null or an empty array, and anything else counts as its own only
//! element. To pair several fields of one element, unwind in an `aggregate`.
//!
//! # Text form of values
//!
//! A fact's ids are texts, and equal values must have equal texts, or a join of two facts fails unseen:
//!
//! | type | text |
//! |---|---|
//! | String, Symbol | itself |
//! | ObjectId | 24 lower-case hexadecimal digits |
//! | Int32, Int64, Double, Decimal128 | plain decimal digits without exponent and without zeros that say nothing |
//! | Boolean | `true`, `false` |
//! | DateTime | RFC 3339 in UTC, with three digits of milliseconds if they are not zero: `2026-11-22T01:02:03Z` |
//! | Binary, subtypes 4 and 3 (UUID) | hyphenated, the bytes in the order they are stored |
//!
//! So `3`, `3.0` and `3.00`, which MongoDB holds for equal, are all `3`; a Double has the fewest digits that read back as
//! the same.
//!
//! Everything else cannot be an id and counts as NULL, which makes no fact: null and missing, documents, arrays (without
//! `is_array`, or in one another), other Binary, Timestamp, regular expressions, code, MinKey, MaxKey, NaN, the infinities,
//! and dates outside the years 0 to 9999.
//!
//! A collection that does not exist is empty, for MongoDB and so for us; [`probe()`] warns of it.

mod client;
mod decode;
mod follow;
mod lookup;
mod probe;
mod query;
mod read;
mod shape;
mod snapshot;
mod tail;
mod unit;
mod watch;

pub use follow::Follower;
pub use probe::{Finding, probe};
pub use snapshot::snapshot;
