//! Attackers: web pages, strangers on the network, and what a process leaves lying about. TLS is in `postgres_source/tls.rs` and
//! `mongo_access/tls.rs`, secrets in `invariants/secrets.rs`, clients without manners in `src/server/accept/tests.rs`.

mod key;
mod pages;
mod process;
