//! factsync keeps authorization facts in step with application databases.
//!
//! An application's data lives in PostgreSQL, MongoDB or CSV files; its authorization service decides on *facts* such as
//! `has_role(User:1, "admin", Organization:2)`. factsync takes one consistent snapshot, writes only the difference, then
//! follows the database's own change log and sends what each committed change makes true or false. This page is the
//! architecture; the modules are in the order in which a change passes through them.
//!
//! ```text
//!          SQL ──analysed by the source──> query: a plan, or the reason why there is none
//!                                            │
//!                     row changes            v            facts                one transaction
//!  PostgreSQL WAL ─┐ (incremental) ┌> view::Dataflow ──┐         ┌──────────────────────────────────────────┐    batches
//!  CSV files ──────┼─> source ─────┤                   ├─> store │ views' state, desired facts, outbox,     │──> target ─> fact
//!  MongoDB ────────┘     ^         └> view::refresh ───┘         │ backlog, position                        │   /api/batch store
//!                        │  whole results                        └────────────────────┬─────────────────────┘
//!                        │    (refresh)                                commit (fsync), checkpoint
//!                        └─────────────────── acknowledge upstream ───────────────────┘
//! ```
//!
//! [`query`] says what a view computes, [`view`] keeps it computed, [`store`] makes that durable, and [`engine`] moves everything along.
//!
//! # Where to find what
//!
//! | question | place |
//! |---|---|
//! | where does the YAML become a [`Config`](config::Config)? | [`config::load`] |
//! | where is a query analysed, and where is it refused? | [`source::postgres`], `analyze.rs` and `uses.rs` |
//! | where does the server's node tree become a plan, or the reason why not? | [`query`], `tree.rs` reads it, `bind/` binds it |
//! | who decides between incremental, refresh and refused? | [`source::postgres`], `prepare.rs`; `engine/flows.rs` for what shows later |
//! | what does an operator of a plan mean? | [`query::Plan`]; [`query::naive`] is the definition in code |
//! | where is a scalar function computed? | [`query::scalar`], each compared with PostgreSQL; else by the source: `evaluate.rs` |
//! | where does a WAL message become a row? | [`source::postgres`], `decode.rs` and `images.rs`; many of them: [`data::ChangeBatch`] |
//! | where does a row change become a fact that begins or ends? | [`view::Dataflow`]; its operators are listed in [`view`] |
//! | where do rows come and go because time passes? | `view/clock.rs`; `engine/clock.rs`: the source's clock; `engine/away.rs`: outages |
//! | where does a WAL message become "this view must be run again"? | [`source::postgres`], `tail.rs`, `dirty.rs` and `refresh.rs` |
//! | who notices DDL, before a row is misread? | `tail/check.rs`, `look.rs`; under a snapshot: `read.rs` |
//! | where does a query's output become a row? | [`source::postgres`], `copy.rs`; [`source::csv`]; [`source::mongo`] |
//! | how does a view get its first state? | `view/load.rs` from whole tables, `store/load.rs` compares it with the database's own answer |
//! | where does a row become a fact? | [`fact::FactType::fact`]; `store/settle.rs` for row changes, [`view::refresh()`] for whole results |
//! | where does a fact become a request? | `engine/deliver.rs` picks it, [`target::batch`] packs it, [`target::oso`] sends it |
//! | what goes first: commits, backfills, what an outage left? | `engine/deliver.rs` decides; `store/outbox.rs` and `store/backlog.rs` are its queues |
//! | who keeps the fact store's quota? | [`target::quota`] |
//! | what does `--shadow` do in place of delivery, and `--adopt` with what is there? | `engine/shadow.rs`; `store/adopt.rs` |
//! | who compares source, desired facts and fact store at one position while the stream goes on? | `engine/audit.rs`; `store/journal.rs` knows what is on its way, `reconcile/audit.rs` merges |
//! | who decides between resuming and a new snapshot, for each view? | `engine/start.rs` |
//! | who notices a server that was put back, promoted, replaced? | [`source::postgres`], `mark.rs`, `follow.rs`; `engine/stranger.rs` |
//! | who lets a slot go before the server's disk is full? | [`source::postgres`], `budget.rs` |
//! | how does a second process take over? | `cli/standby.rs` on the same state directory; `follow.rs` waits for the slot |
//! | what becomes of sources and fact types that come, go and move between two runs? | `store/views.rs`, `reassign` |
//! | which replication slot has a source, whatever comes and goes beside it? | `config/merge.rs` decides, `store/slots.rs` remembers |
//! | when is a file believed that somebody still writes? | [`source::csv`], `tail.rs` |
//! | what happens to a fact that the fact store refuses? | `engine/deliver.rs` parks it, `engine/parked.rs` shows it |
//! | what waits for a person, and how does it go on? | `view/guard.rs` judges, `store/holds.rs` keeps, `engine/holds.rs` and `factsync hold` end it |
//! | what happens to a view that fails? | `engine/apply.rs`, `flow_failed` |
//! | at which steps does a test let the process die? | [`crash`] |
//! | what is on the disk? | [`store`] (local state), [`target::embedded`] (the embedded fact store) |
//!
//! # Invariants
//!
//! Each has tests that carry its name.
//!
//! 1. **Exact.** After each commit of the local store the desired facts of every incremental view equal its query at one commit of the
//!    source, the same for all of them (one that was just loaded is ahead until the others get there); those of a refresh view equal its
//!    query at the point it was last read. A batch ends where such a commit does, so the fact store passes through the same states; only a
//!    commit that is too large for a batch is split, its deletes first. While there is a backlog (a first load, the end of an outage) the
//!    fact store lags, and still never holds a fact that was false both before and after.
//! 2. **Atomic.** Views' state, desired facts, outbox and position change in one local transaction, which ends at a commit of the
//!    source; a `kill -9` anywhere and a restart end in the same state as no kill.
//! 3. **Seamless.** No change falls between snapshot and stream, and an overlap changes nothing ([`source::postgres`] argues why).
//! 4. **Idempotent.** A batch delivered twice, or whose answer was lost, changes nothing.
//! 5. **Scoped.** Only facts under a configured signature are ever read or written.
//! 6. **Net.** The fact store is sent the net change only.
//! 7. **Bounded.** Memory does not grow with the database, a commit, the fact store or an outage: a commit of any size is applied in
//!    chunks ([`view::Dataflow`]), what it flips and what is read as a whole is sorted on disk ([`data`]), views' state and the
//!    outbox are on disk ([`store`]), every queue has a named limit. What a recursion touches at once is in memory, up to a named limit.
//! 8. **Guarded.** A change that would remove more than the configured share of a fact type, by itself or with those of the last minute,
//!    waits for a person ([`view::Guard`]); a hold ends as a whole or not at all ([`store::Hold`]).
//! 9. **Loud.** What cannot be applied is counted, shown in `/v1/status` and logged once per cause; it never stops other fact types.
//!
//! And three about the code, kept true by `tests/tidy.rs` as far as a program can tell:
//!
//! - Nothing outside [`store`] and [`target::embedded`] knows SQLite, nothing outside [`store`] knows sled, and nothing outside
//!   `source/x` knows the driver of x.
//! - [`query`] and [`view`] know no I/O of their own: a plan is a value, the disk is a [`view::State`], the source's help a
//!   [`view::Remote`], the time an argument.
//! - So [`view`] never sees a clock, a socket or a random number: the same rows in give the same changes out.
//!
//! # In this release
//!
//! A PostgreSQL view is *incremental*: every commit brings exactly the facts it changes. What cannot be bound to a plan falls back to
//! *refresh*, with the reason by name: a commit that touches one of the view's tables runs its query again, in the only kind of snapshot
//! that PostgreSQL ties to a log position. A MongoDB view is incremental where its pipeline works document by document: what has changed is
//! looked up at the cluster time of its change ([`source::mongo`]); other pipelines are refreshed. CSV files are refreshed.
#![doc = ""]
#![doc = include_str!("complaints.md")]

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

pub mod crash;
pub mod engine;
pub mod error;
pub mod server;
pub mod telemetry;
