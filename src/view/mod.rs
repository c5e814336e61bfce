//! Views: from a query's rows to the facts that begin and cease to be true.
//!
//! A view is a fact type's query, kept up to date. An *incremental* view is a [`Dataflow`]: row changes go in, the rows that enter and
//! leave its result come out. Of a *refresh* view the query is run again when one of its tables changes, and the whole result is compared
//! with the desired facts ([`refresh()`]).
//! Synchronous and deterministic: no clock, no socket, no random number; the same rows in give the same changes out.
//!
//! # The rules
//!
//! Rows are multisets. A *difference* Δ gives each row a signed weight; *old* is the state before a chunk of row changes, *new* the one
//! after. Each operator turns the differences of its inputs into that of its output, exactly:
//!
//! | rule | what the output gains and loses | file |
//! |---|---|---|
//! | netting | of a table: per identity key the row before and after the chunk, changes played in the log's order | `net.rs` |
//! | linear | condition, expression, `UNION ALL`, `unnest`, outer sides put together: the operator applied to Δ | `linear.rs` |
//! | remote | as linear; the result is kept with the values, so a row that goes is what it was when it came | `remote.rs` |
//! | join | of n inputs: Σ new₁ ⋈ … ⋈ newᵢ₋₁ ⋈ Δᵢ ⋈ oldᵢ₊₁ ⋈ … ⋈ oldₙ, which telescopes to new − old | `join.rs` |
//! | semi, anti, mark | the old left rows whose judgement Δ of the right changes, and Δ of the left by the new right | `semi.rs` |
//! | `NOT IN` | as anti, with three values: a NULL on the right decides for every left row, an empty right side too | `notin.rs` |
//! | outer | the inner join, and the anti join of each kept side with NULLs beside it | `lower.rs` |
//! | distinct | a row whose count leaves 0 or comes back to it | `distinct.rs` |
//! | set operation | `EXCEPT`, `INTERSECT` `[ALL]`: each touched row by its two counts, old and new | `set.rs` |
//! | group | of each touched group the row before against the row after | `group.rs`, `aggregate.rs` |
//! | top | of each touched partition the first rows before against those after, in a total order | `top.rs`, `sorted.rs` |
//! | recursion | delete what lost a derivation and what followed from it, then derive again what still can be | `recursive.rs` |
//! | time | rows whose condition changes between two moments, found by the moment at which they do | `clock.rs` |
//! | fact set | a row of the result is a fact once, however often it occurs: a count, or none where keys exclude doubles | `root.rs` |
//!
//! And two about when:
//!
//! | rule | what it says | file |
//! |---|---|---|
//! | two phases | all differences are computed over the old state and the chunk, then everything is folded into the state | `dataflow.rs` |
//! | order | nodes run inputs first; chunks in the log's order; what flips is netted by row over the whole store transaction | `layout.rs`, `store/flips.rs` |
//!
//! Every run of row changes takes the tables from one valid state to another, so a commit of any size may be cut into chunks. What is kept
//! between chunks is in a [`State`], of which this module knows the trait only; `load.rs` builds the same entries from whole tables. The
//! definition that all of it is tested against is [`crate::query::naive`].

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
pub use guard::{Cause, Guard, Occasion, Recent, Step, TOGETHER_SECONDS, Verdict};
pub use memory::MemoryState;
pub use refresh::{Skipped, refresh};
pub use state::{Each, Space, State};
