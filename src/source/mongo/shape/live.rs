//! Against a real mongod.
