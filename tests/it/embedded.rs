//! The embedded fact store over real sockets: its API, its limits, its durability, and what it makes of random batches.

mod api;
mod fixture;
mod killed;
mod killed_logging;
mod limits;
mod listing;
mod model;
pub(crate) mod server;
mod writers;
