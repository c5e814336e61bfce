//! The PostgreSQL source.
//!
//! ```text
//! config ─address─tls─> session ──prepare──> tree ─uses─> analyze ──> publication ──> slot (snapshot + point)
//!                                                                                       │
//!                 Cut, Progress <── tail <── refresh <── read <── copy  <───────────────┘
//! ```
//!
//! In this version every view is a *refresh* view: a commit that touches one of its tables makes it dirty, and dirty views are
//! read again in a snapshot whose log position is known. `follow` and `tail` argue why no commit is lost.

mod address;
mod analyze;
mod catalog;
mod copy;
mod decode;
mod dirty;
mod explain;
mod fault;
mod follow;
mod preflight;
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
pub use follow::{Follower, Prepared};
pub use preflight::{Finding, Severity, judge, preflight};
pub use publication::Published;
pub use read::snapshot;
pub use setup::{ResetPlan, apply_reset, apply_setup, plan_reset, setup_sql};
