//! Tests of mongo_source.
