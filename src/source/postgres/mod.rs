//! The PostgreSQL source.
//!
//! ```text
//! config ─address, tls─> session ──> analyze (tree, uses, catalog, query::bind) ──> prepare: mode, fingerprint ──> publication
//!                                                                                                                      │
//!     Changes, Cut, Progress, Clock <── outgoing <── tail <── decode, images <── the log                               v
//!                                                     ├── dirty, refresh <── read <── copy <── snapshot and point <── slot
//!                                                     └── pulse: heartbeats, the clock, what the log does not carry
//! ```
//!
//! An *incremental* view is read once, with its tables, in the snapshot that belongs to a point of the log; from there on it gets every row
//! change. For a *refresh* view a commit that touches one of its tables makes it dirty, and dirty views are
//! read again in a snapshot whose log position is known. `follow` and `tail` argue why no commit is lost.
//!
//! Each view has a fingerprint of everything its result and its plan depend on besides rows (`analyze`, `prepare`). It is compared with the
//! stored one on connect, and the catalogues are surveyed again every minute and when a `look` at them differs: each heartbeat takes one,
//! and the stream when it announces a table; nothing behind an announcement is read before (`tail/check.rs`). A view whose fingerprint
//! differs is planned and read anew; the others go on where they are.
//!
//! What the plan needs and this crate does not compute is computed by the server over the values (`evaluate`).

mod address;
mod analyze;
mod budget;
mod catalog;
mod copy;
mod decode;
mod evaluate;
mod explain;
mod fault;
mod follow;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod images;
mod look;
mod mark;
mod outgoing;
mod preflight;
mod prepare;
mod publication;
mod pulse;
mod read;
mod refresh;
mod session;
mod setup;
mod slot;
mod tail;
mod tls;
mod trust;
mod uses;
mod witness;

pub use analyze::{AnalysedView, TableUse};
pub use copy::Decoder;
pub use explain::{ExplainedView, Explanation, explain};
pub use follow::Follower;
pub use preflight::{Finding, Severity, judge, preflight};
pub use prepare::Prepared;
pub use publication::Published;
pub use read::snapshot;
pub use setup::{ResetPlan, apply_reset, apply_setup, plan_reset, setup_sql};
