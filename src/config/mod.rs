//! Configuration: Oso Sync's own file, version 1, plus one optional `sync:` block.
//!
//! ```text
//! text ──serde_yaml──> raw ──check──> Config      every problem of every file at once, each with its place
//! ```
//!
//! Values are read by serde_yaml, places by saphyr-parser (`raw`); `file` tells what a file is and reads it, `merge` and `claims` hold
//! the files of a run against each other. One wrong entry hides no other.
//!
//! Environment variables: a value that is `$NAME` is the variable's value, and `${NAME}` is replaced anywhere in a value. Any other `$` is
//! itself. Keys, `query` and `fields` are literal, because SQL (`$1`), MongoDB (`$match`) and CSV headers have a `$` of their own. In
//! the user
//! and password of a connection URI a `${NAME}` is percent-encoded if it has to be (`expand`). Only the `dbs` that facts use are looked up.
//!
//! A file without `dbs`, `sync` and any `db` is a local-authorization file, if its `source` is `postgres` or absent. Its fact types are
//! its own affair: a sync file may have the same.
//!
//! A run with one PostgreSQL source uses the slot `factsync`, one with several `factsync_<name under dbs>`, unless a file says `sync.slot`
//! (`merge`). Where there is a state directory, a source keeps the slot that it was first followed with.
//!
//! Nothing here talks to a database. Secrets are [`SecretString`]s from the moment they are expanded: they have no `Debug`, no
//! `Display` and no `Serialize`; no message shows a variable's value.

mod check;
mod claims;
mod connection;
mod csv;
mod expand;
mod fields;
mod file;
mod merge;
mod mongo;
mod place;
mod postgres;
mod raw;
mod spots;
mod sync;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use secrecy::{ExposeSecret, SecretString};

use crate::fact::FactType;
pub use check::{Environment, load, load_keeping};
pub use merge::KeptSlots;
pub use place::{Place, Problem, Problems};

/// What all files of one run say together.
#[derive(Debug)]
pub struct Config {
    /// Databases and files, in the order they are first named. No two have the same name, and each feeds at least one fact type.
    pub sources: Vec<SourceConfig>,
    /// Local-authorization files: checked, but there is nothing to sync in them.
    pub local: Vec<LocalAuthorization>,
    /// `sync:` options that belong to the whole process.
    pub sync: SyncOptions,
}

/// One database or CSV file with the fact types it feeds.
#[derive(Debug)]
pub struct SourceConfig {
    /// The name under `dbs`, or the CSV file's path as written, variables expanded.
    pub name: String,
    /// Where the file names it.
    pub place: Place,
    /// What it is and what it feeds.
    pub kind: SourceKind,
}

/// What a source is.
#[derive(Debug)]
pub enum SourceKind {
    /// A PostgreSQL database.
    Postgres(PostgresConfig),
    /// A MongoDB database.
    Mongo(Arc<MongoConfig>),
    /// A CSV file.
    Csv(CsvConfig),
}

/// A fact type and the query that returns all its facts.
#[derive(Debug, Clone)]
pub struct View<Q> {
    /// The signature.
    pub fact_type: FactType,
    /// Where the file has it.
    pub place: Place,
    /// The query, in the source's terms.
    pub query: Q,
}

/// A PostgreSQL source.
#[derive(Debug)]
pub struct PostgresConfig {
    /// A `postgresql://` or `postgres://` URI or libpq's `host=… dbname=…`, variables expanded. An `sslmode` in it is one that libpq knows.
    pub connection_string: SecretString,
    /// The `ssl` block, if the file has one.
    pub ssl: Option<SslConfig>,
    /// `sync.slot` of its file: the name of the slot and the publication, which no other source of the run has; lower-case letters,
    /// digits and `_`, at most 63 bytes.
    pub slot: String,
    /// What it feeds. Queries have no trailing semicolon, but may end in a `--` comment: put them into a larger statement with a
    /// newline after.
    pub views: Vec<View<String>>,
}

/// Oso Sync's `ssl` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslConfig {
    /// A PEM file with the certificate authority to trust, relative to the working directory.
    pub ca_file: Option<PathBuf>,
    /// Whether to trust the system's certificates.
    pub use_system_certs: bool,
    /// `ssl_mode`; without it `require` if there is a `ca_file`, else `prefer`.
    pub mode: SslMode,
}

/// `ssl_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Fail if the server has no TLS.
    Require,
    /// TLS if the server has it.
    Prefer,
}

/// A MongoDB source.
#[derive(Debug)]
pub struct MongoConfig {
    /// A `mongodb://` or `mongodb+srv://` URI, variables expanded; its path names the database.
    pub connection_string: SecretString,
    /// What it feeds.
    pub views: Vec<View<MongoQuery>>,
}

/// A `find` or `aggregate` on one collection.
#[derive(Debug, Clone)]
pub struct MongoQuery {
    /// The collection.
    pub collection: String,
    /// The documents, in MongoDB Extended JSON.
    pub select: MongoSelect,
    /// One for each variable, left to right; at most one is an array to unwind.
    pub fields: Vec<MongoField>,
}

/// Which documents.
#[derive(Debug, Clone)]
pub enum MongoSelect {
    /// A filter document.
    Find(serde_json::Value),
    /// A pipeline without `$out` and `$merge`.
    Aggregate(Vec<serde_json::Value>),
}

/// A field that fills a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MongoField {
    /// Its path, dots between levels.
    pub name: String,
    /// Whether each element of the array makes a fact of its own.
    pub is_array: bool,
}

/// A CSV file.
#[derive(Debug)]
pub struct CsvConfig {
    /// The file's path as written, variables expanded, relative to the working directory.
    pub path: PathBuf,
    /// What it feeds; the query is the list of header names, one for each variable.
    pub views: Vec<View<Vec<String>>>,
}

/// A local-authorization file.
#[derive(Debug)]
pub struct LocalAuthorization {
    /// The file.
    pub file: PathBuf,
    /// Signatures and queries.
    pub views: Vec<View<String>>,
}

/// The `sync:` block. With several files the shortest `reconcile_every` and the smallest `max_removals` and `max_wal` count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncOptions {
    /// How often to audit; `None` is never (`0`). Default 6 hours.
    pub reconcile_every: Option<Duration>,
    /// The blast-radius guard.
    pub max_removals: MaxRemovals,
    /// Bytes of a PostgreSQL server's log that a slot may hold back before it is dropped; `None` for as many as the server allows.
    pub max_wal: Option<u64>,
    /// What becomes of drift. Default `repair`.
    pub drift: DriftPolicy,
}

/// What becomes of drift that an audit finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftPolicy {
    /// It is repaired, under the guard.
    Repair,
    /// It is told, and nothing is written.
    Report,
}

/// A change to one fact type that removes more than both is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxRemovals {
    /// Facts. Default 1000.
    pub count: u64,
    /// Percent of the fact type's facts. Default 20.
    pub percent: u8,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            reconcile_every: Some(Duration::from_secs(6 * 60 * 60)),
            max_removals: MaxRemovals { count: 1000, percent: 20 },
            max_wal: None,
            drift: DriftPolicy::Repair,
        }
    }
}

impl SourceConfig {
    /// The fact types it feeds, in order; a view's index in this order is its number everywhere.
    pub fn fact_types(&self) -> Vec<&FactType> {
        match &self.kind {
            SourceKind::Postgres(config) => config.views.iter().map(|view| &view.fact_type).collect(),
            SourceKind::Mongo(config) => config.views.iter().map(|view| &view.fact_type).collect(),
            SourceKind::Csv(config) => config.views.iter().map(|view| &view.fact_type).collect(),
        }
    }

    /// Where the files name the fact types, in the same order.
    pub fn places(&self) -> Vec<&Place> {
        match &self.kind {
            SourceKind::Postgres(config) => config.views.iter().map(|view| &view.place).collect(),
            SourceKind::Mongo(config) => config.views.iter().map(|view| &view.place).collect(),
            SourceKind::Csv(config) => config.views.iter().map(|view| &view.place).collect(),
        }
    }

    /// `postgres`, `mongodb` or `csv`, as in the file and in `/v1/status`.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            SourceKind::Postgres(_) => "postgres",
            SourceKind::Mongo(_) => "mongodb",
            SourceKind::Csv(_) => "csv",
        }
    }
}
