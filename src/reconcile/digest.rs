//! A digest of a set of facts, which anybody can compute again.
//!
//! SHA-256 over the facts as JSON, as the report of `reconcile` has them (`{"predicate":…,"args":[{"type":…,"id":…},…]}`, no spaces), each
//! followed by a line feed, in the order of the ids of the signature's variables, compared as bytes, argument by argument. So two sets
//! with the same digest are the same set, and who has the facts in a file can check with `sort` and `sha256sum`.

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{data::Row, fact::FactType};

/// How many facts, and their digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FactSet {
    /// Facts in the set.
    pub facts: u64,
    /// Their digest.
    pub sha256: String,
}

/// A digest under way.
pub struct FactDigest<'t> {
    fact_type: &'t FactType,
    hasher: Sha256,
    facts: u64,
    line: Vec<u8>,
}

impl<'t> FactDigest<'t> {
    /// Of no fact yet.
    pub fn new(fact_type: &'t FactType) -> Self {
        Self { fact_type, hasher: Sha256::new(), facts: 0, line: Vec::new() }
    }

    /// Adds the next fact in row order.
    pub fn add(&mut self, row: &Row) {
        self.line.clear();
        serde_json::to_writer(&mut self.line, &self.fact_type.stored_fact(row)).expect("a fact is JSON");
        self.line.push(b'\n');
        self.hasher.update(&self.line);
        self.facts += 1;
    }

    /// The set.
    pub fn finish(self) -> FactSet {
        FactSet { facts: self.facts, sha256: hex(&self.hasher.finalize()) }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |hex, byte| format!("{hex}{byte:02x}"))
}
