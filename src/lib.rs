//! factsync keeps authorization facts in step with application databases.
//!
//! An application's data lives in PostgreSQL, MongoDB or CSV files; its authorization service decides on *facts* such as
//! `has_role(User:1, "admin", Organization:2)`. factsync takes one consistent snapshot, writes only the difference, then
//! follows the database's own change log and sends what each committed change makes true or false. This page is the
//! architecture; the modules are in the order in which a change passes through them.
//!
//! ```text
//!  PostgreSQL WAL ─┐           rows             facts                  one transaction                 batches
//!  MongoDB ────────┼─> source ──────> view ──────────────> store [ desired facts, outbox, position ] ──> target ─> fact store
//!  CSV files ──────┘     ^      sorted extents, net change          │ commit (fsync), checkpoint           /api/batch
//!                        └──────────────── acknowledge upstream ────┘
//! ```
//!
//! # Where to find what
//!
//! | question | place |
//! |---|---|
//! | where does the YAML become a [`Config`](config::Config)? | [`config::load`] |
//! | where does a WAL message become "this view must be run again"? | [`source::postgres`], `decode.rs` and `tail.rs` |
//! | where does a query's output become a row? | [`source::postgres`], `copy.rs`; [`source::csv`]; [`source::mongo`] |
//! | where does a row become a fact? | [`fact::FactType::fact`], compared in [`view::refresh()`] |
//! | where does a fact become a request? | `engine/deliver.rs` picks it, [`target::batch`] packs it, [`target::oso`] sends it |
//! | who decides between resuming and a new snapshot? | `engine/ingest.rs` |
//! | what is on the disk? | [`store`] (local state), [`target::embedded`] (the embedded fact store) |
//!
//! # Invariants
//!
//! Each has tests that carry its name.
//!
//! 1. **Exact.** After each delivered batch the fact store equals the views at one position of the source.
//! 2. **Atomic.** Position, desired facts and outbox change in one local transaction; a `kill -9` anywhere and a restart end in the
//!    same state as no kill.
//! 3. **Seamless.** No change falls between snapshot and stream, and an overlap changes nothing ([`source::postgres`] argues why).
//! 4. **Idempotent.** A batch delivered twice, or whose answer was lost, changes nothing.
//! 5. **Scoped.** Only facts under a configured signature are ever read or written.
//! 6. **Net.** The fact store is sent the net change only.
//! 7. **Bounded.** Memory does not grow with the database, the fact store or an outage: results are sorted on disk
//!    ([`data`]), the outbox is on disk ([`store`]), every queue has a named limit.
//! 8. **Guarded.** A change that would remove more than the configured share of a fact type waits for a person ([`view::Guard`]).
//! 9. **Loud.** What cannot be applied is counted, shown in `/v1/status` and logged once per cause; it never stops other fact types.
//!
//! And two about the code, kept true by `tests/tidy.rs`:
//!
//! - Nothing outside [`store`] and [`target::embedded`] knows SQLite, nothing outside [`store`] knows sled, and nothing outside
//!   `source/x` knows the driver of x.
//! - [`view`] never sees a clock, a socket or a random number: the same rows in give the same changes out.
//!
//! # In this release
//!
//! PostgreSQL views are *refresh* views: a commit that touches one of a view's tables runs its query again, in the only kind of
//! snapshot that PostgreSQL ties to a log position. MongoDB can be reconciled and not yet followed.

pub mod cli;
pub mod config;
pub mod fact;

pub mod data;
pub mod query;
pub mod source;
pub mod view;

pub mod reconcile;
pub mod store;
pub mod target;

pub mod engine;
pub mod error;
pub mod server;
pub mod telemetry;
