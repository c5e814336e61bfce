//! Servers and processes for tests.

pub(crate) mod factsync;
pub(crate) mod mongod;
pub(crate) mod postgres;
