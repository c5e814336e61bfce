//! Tests of postgres_source.
