//! The embedded fact store: durable, indexed, and speaking Oso Cloud's facts API.
//!
//! ```text
//!  /api/*  ──api, wire──┐ bounded                     one transaction per group
//!                       ├────────> writer thread ───────────────────────────────> SQLite (WAL)
//!  FactStore::apply ────┘          a savepoint each, one fsync, then all answers        │
//!                                                                                       │ a snapshot each
//!  GET /api/facts, FactStore::list <──bounded── reader (own connection, blocking thread)┘
//! ```
//!
//! # Guarantees
//!
//! - *Durable.* `synchronous=FULL`: a commit is fsynced before anybody is answered. What was answered survives `kill -9` and a
//!   power loss; a group that was not answered is there as a whole or not at all.
//! - *Atomic and ordered.* Each request has a savepoint inside the group's transaction: a refused one leaves no trace, not even a
//!   used-up quota, and its neighbours in the group are not affected.
//! - *Linearizable.* There is one writer, and a read takes its snapshot after it was asked for, so it sees every write that was
//!   answered before. The consistency token that clients send (`OsoOffset`) asks for no more than that and is not looked at.
//!   What is in the log only is brought into the tables before the snapshot.
//! - *A failed commit is final.* After any error of SQLite or the disk the writer stops; later writes fail, reads go on.
//!   What a failed fsync left on disk is unknown, and the next start's recovery is the only thing that finds out.
//!   What is in the log only (below) is then not shown: a read that would have to show it fails, too.
//! - *Bounded.* Bodies in flight, the writer's queue, groups, listings and reading connections each have a named limit.
//!
//! # Layout, version 2 (`PRAGMA user_version`)
//!
//! | table | columns | what |
//! |---|---|---|
//! | `store` | `id = 1`, `offset` | the commit counter, advanced in the transaction it counts; `OsoOffset` is its text |
//! | `policy` | `id = 1`, `filename`, `src` | the policy's text as it was posted; it is stored, not evaluated |
//! | `shape` | `id`, `predicate`, `types` | a predicate with its arguments' types, a JSON array; tiny, read by wildcards |
//! | `log` | `id`, `entries` | since version 2: committed, and not in the tables below yet (`pending.rs`); `[[fact, is it true], …]` |
//! | `facts1` … `facts5` | `shape`, `i0` … `i4` | the facts with one to five arguments, `WITHOUT ROWID`, all columns the key |
//!
//! Beside its primary key (`shape, i0, i1, …`) a fact table has one index for every later position N, over the columns
//! *rotated* to start there: `(shape, iN, …, i0, …)`. An index of a `WITHOUT ROWID` table holds every key column anyway, so the
//! rotation costs nothing, makes each index covering, and gives every set of bound arguments an index whose leading columns are
//! bound: all of them for up to three arguments, a run of them for more (`select.rs` picks it and names it in the SQL).
//!
//! Not more than one process may have the file open for writing: the shape table is cached. The state directory's lock sees to that.

mod access;
mod answer;
mod api;
mod apply;
mod limits;
mod listing;
mod part;
mod pending;
mod reader;
mod schema;
mod select;
mod store;
mod wire;
mod writer;

pub use access::{Access, DEVELOPMENT_KEY};
pub use api::router;
pub use limits::{Limits, UnknownLimits};
pub use store::EmbeddedStore;
