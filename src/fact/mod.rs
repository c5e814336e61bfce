//! Facts and the signatures that say which facts are ours.
//!
//! A [`Fact`] is what the fact store keeps, `has_role(User:1, String:admin, Organization:2)`. A [`FactType`] is a signature from the
//! configuration, `has_role(User:_, String:_, Organization:_)`: its `_` are filled, left to right, by the columns of a
//! row. [`FactType::fact`] is where a row becomes a fact and [`FactType::row`] the way back. A [`Pattern`] selects facts, with
//! wildcards, as the fact store's API does. Two signatures that could both claim one fact are refused ([`FactType::overlap`]).

mod overlap;
mod pattern;
mod signature;
mod value;

pub use pattern::{Pattern, PatternValue};
pub use signature::{Argument, FactType, SignatureError, SkipReason};
pub use value::{Fact, MAX_ARGUMENTS, MAX_ID_BYTES, Value, ValueError};
