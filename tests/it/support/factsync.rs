//! Starting factsync.
