//! factsync keeps authorization facts in step with application databases.

pub mod cli;
pub mod config;
pub mod data;
pub mod engine;
pub mod error;
pub mod fact;
pub mod reconcile;
pub mod server;
pub mod source;
pub mod store;
pub mod target;
pub mod telemetry;
pub mod view;
