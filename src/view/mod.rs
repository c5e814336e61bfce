//! Views: from a query's rows to the facts that begin and cease to be true.
//!
//! A view is a fact type's query, kept up to date. In this release every view is a *refresh* view: when one of its tables
//! changes, its query is run again and the result is compared with the desired facts ([`refresh()`]).
//! Synchronous and deterministic: no clock, no socket, no random number; the same rows in give the same changes out.

mod aggregate;
mod arrangement;
mod clock;
mod dataflow;
mod delta;
mod diff;
mod distinct;
mod group;
mod guard;
mod join;
mod keys;
mod layout;
mod linear;
mod load;
mod lower;
mod memory;
mod net;
mod notin;
mod operator;
#[cfg(test)]
mod random_plans;
mod recursive;
mod refresh;
mod remote;
mod root;
mod semi;
mod set;
mod sort;
mod sorted;
mod state;
mod top;

#[cfg(test)]
mod tests;

pub use dataflow::{Dataflow, Flip, Remote, Sink, ViewError};
pub use diff::diff;
pub use guard::{Guard, Verdict};
pub use memory::MemoryState;
pub use refresh::{Skipped, refresh};
pub use state::{Each, Space, State};
