//! MongoDB: each view is a `find` or an `aggregate` on one collection, read at a cluster time and followed by a change stream from there.
//!
//! ```text
//! client: connect ──> shape: document by document? ──> snapshot: every view at one cluster time T ──> extents
//!                                                            │
//! watch: the database's change stream from T ──> tail: complete up to T' ──> unit: ids ──> read: their rows at T' ──> commit
//!                                                            └ refresh views: their query at T'
//! query: Extended JSON, projection      decode: document ──> rows
//! ```
//!
//! A position is a cluster time with the resume token that goes on there: everything written at or before it is in, nothing else. It is
//! stored in the same transaction of the local store as the facts that the events up to it brought. `tail.rs` argues why these facts are
//! exactly what the queries return at that time, and says when they are not.
//!
//! What the stream tells besides written documents: of a *dropped* collection (each one of a dropped database, too) all documents are
//! gone; of a *renamed* one as well, and views of the name it got are read again, as are views that look something up in either. An
//! *invalidate* ends the stream, which goes on in a new one. A stream that breaks (an election, a killed cursor or session, a lost
//! connection) is opened again where it was. If the oplog no longer reaches back to the stored position, or the server has another
//! history than the position is from (restored from a backup: its clock is behind, or it does not know the token), everything is read anew
//! and compared, so that what was deleted meanwhile goes.
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
//! # Which queries are followed document by document
//!
//! (`shape.rs` decides and argues, `read.rs` reads at a cluster time, `lookup.rs` follows `$lookup`.)
//!
//! | the query | is |
//! |---|---|
//! | `find`, and pipelines of `$match`, `$project`, `$set`/`$addFields`, `$unset`, `$unwind`, `$replaceRoot`/`$replaceWith`, `$redact` | followed |
//! | `$lookup` with `localField` and `foreignField`, the local field one of the original document and indexed | followed |
//! | `$lookup` whose local field an earlier stage makes (an `$unwind` of it does not), that has only a `pipeline`, or whose `pipeline` reads a collection | refreshed |
//! | a field path with a number for a name in `$lookup`, `$text`, `$near`, `$nearSphere`, `$geoNear`, `$meta` | refreshed |
//! | `$group`, `$sort`, `$limit`, `$skip`, `$facet`, `$unionWith`, `$graphLookup` and everything else that mixes documents | refreshed |
//! | `$$NOW`, `$$CLUSTER_TIME`, `$$USER_ROLES`, `$rand`, `$sample`, `$sampleRate`, JavaScript | refused: the answer changes while the data does not |
//! | `$search`, `$vectorSearch`, `$indexStats`, `$currentOp` and their kind, another database, stages we do not know | refused: no change would be seen |
//!
//! JavaScript is refused because it may ask for the time or for chance, and nobody can tell by looking. `$search` because its
//! index is brought up to date some time after the collection, without an event. A document whose arrays hold arrays where an
//! `$unwind` before a `$lookup` opens them makes its view refreshed, too.
//!
//! A collection that does not exist is empty, for MongoDB and so for us; [`probe()`] warns of it.

mod access;
mod client;
mod collections;
mod decode;
mod explain;
mod fault;
mod follow;
mod lookup;
mod privileges;
mod probe;
mod query;
mod read;
mod setup;
mod shape;
mod snapshot;
mod tail;
mod unit;
mod watch;
mod witness;

pub use explain::{ExplainedView, explain};
pub use follow::Follower;
pub use probe::{collections_of, probe};
pub use setup::setup_script;
pub use snapshot::snapshot;
