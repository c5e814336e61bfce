//! Tests of run_github.
