//! The bound query: what a view computes, free of names, of SQL and of any database's types beyond their text.
//!
//! ```text
//! SQL ──the source analyses it──> node tree ──bind──> [`Plan`] of [`Expr`]s ──crate::view──> dataflow
//! ```
//!
//! A plan says *what*; how it is kept up to date is [`crate::view`]'s business. Everything here is a value: no I/O, no clock.
//!
//! # Cells
//!
//! Every value is the text PostgreSQL prints for it under the session settings that every connection of ours pins; NULL is apart.
//! For the types that may stand in a key (join, DISTINCT, GROUP BY, set operation) that text is canonical: equal texts mean SQL
//! equality and the other way round ([`KeyClass`]). So equality of rows is equality of bytes, and no type has an encoding
//! of its own. Functions that need more than the text read it ([`Kind`]).

mod bind;
pub(crate) mod catalogue;
pub(crate) mod deparse;
mod eval;
mod expr;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod naive;
mod outline;
mod plan;
pub mod scalar;
pub(crate) mod tree;

pub(crate) use bind::{PLAN_VERSION, bind};
pub use expr::{Datum, EvalError, Expr, Kind, Native, Now};
pub use plan::{
    Aggregate, AggregateKind, Clock, Comparison, EqualPair, Identity, KeyClass, Order, OuterKind, Plan, RemoteExpr, SemiKind, SetKind, Srf,
    Table, ViewPlan,
};
