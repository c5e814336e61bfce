//! Tests of oso_target.
