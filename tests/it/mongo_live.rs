//! MongoDB from end to end: the real process follows a real server, and the server's own answer to each query is the truth.

mod app;
mod audited;
mod collections;
mod documents;
mod elections;
mod exact;
mod ids;
mod interrupted;
mod load;
mod lost;
mod operations;
mod oracle;
mod random;
mod reads;
mod reconciled;
mod seamless;
mod server;
mod views;
