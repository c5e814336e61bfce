//! Starting postgres.
