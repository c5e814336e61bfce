//! Views: from a query's rows to the facts that begin and cease to be true.
//!
//! A view is a fact type's query, kept up to date. In this release every view is a *refresh* view: when one of its tables
//! changes, its query is run again and the result is compared with the desired facts ([`refresh()`]).
//! Synchronous and deterministic: no clock, no socket, no random number; the same rows in give the same changes out.

mod arrangement;
mod dataflow;
mod delta;
mod diff;
mod guard;
mod lower;
mod memory;
mod operator;
mod refresh;
mod state;

pub use dataflow::{Dataflow, Flip, Remote, Sink, ViewError};
pub use diff::diff;
pub use guard::{Guard, Verdict};
pub use memory::MemoryState;
pub use refresh::{Skipped, refresh};
pub use state::{Each, Space, State};
