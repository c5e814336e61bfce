//! The integration tests: one binary, one module per subject.
//!
//! Every test starts the servers it needs on free ports (`support`); a missing server is a failure that names the command
//! that installs it, never a skip.

mod support;

mod audit;
mod binding;
mod check;
mod cli;
mod config;
mod crash;
mod csv_live;
mod csv_source;
mod ddl;
mod delivery;
mod delta_rules;
mod embedded;
mod faults;
mod history;
mod hold;
mod invariants;
mod live_views;
mod lost;
mod middleware;
mod migration;
mod mongo_access;
mod mongo_live;
mod mongo_source;
mod odd;
mod oracles;
mod oso_target;
mod postgres_source;
mod readme;
mod reconcile;
mod run_github;
mod scalars;
mod sdk;
mod secure;
mod several;
