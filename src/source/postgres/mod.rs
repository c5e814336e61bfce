//! The PostgreSQL source.
//!
//! ```text
//! config ─address─tls─> session ──prepare──> tree ─uses─> analyze ──> publication ──> slot (snapshot + point)
//!                                                                                       │
//!        Changes, Cut, Progress <── outgoing <── tail <── decode, images               │
//!                                                 └── refresh <── read <── copy  <──────┘
//! ```
//!
//! An *incremental* view is read once, with its tables, in the snapshot that belongs to a point of the log; from there on it gets every row
//! change. For a *refresh* view a commit that touches one of its tables makes it dirty, and dirty views are
//! read again in a snapshot whose log position is known. `follow` and `tail` argue why no commit is lost.

mod address;
mod analyze;
mod catalog;
mod copy;
mod decode;
mod dirty;
mod evaluate;
mod explain;
mod fault;
mod follow;
mod images;
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
mod uses;

pub use analyze::{AnalysedView, TableUse};
pub use copy::Decoder;
pub use explain::{ExplainedView, Explanation, explain};
pub use follow::Follower;
pub use preflight::{Finding, Severity, judge, preflight};
pub use prepare::Prepared;
pub use publication::Published;
pub use read::snapshot;
pub use setup::{ResetPlan, apply_reset, apply_setup, plan_reset, setup_sql};
