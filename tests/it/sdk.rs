//! Tests of sdk.
