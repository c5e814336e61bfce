//! Starting mongod.
