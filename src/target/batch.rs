//! Packing changes into batches, and the body of `POST /api/batch`.
//!
//! The body is an array of changesets that the fact store applies in order, each a run of changes of one kind:
//!
//! ```text
//! [{"inserts":[fact,fact]},{"deletes":[fact]},{"inserts":[fact]}]
//! ```
//!
//! So its length is a sum that grows with each change: the fact's own bytes and what joins it to the change before, a comma
//! inside a changeset or the end of one and the start of the next. [`Packer`] keeps that sum, which is exact: the property test
//! compares it with the length of [`body`]. The limits are therefore met to the byte, without building a body to measure it.

use std::io;

use serde::{Serialize, Serializer, ser::SerializeSeq};
use uuid::Uuid;

use crate::{
    fact::Fact,
    target::{Batch, BatchLimits, FactChange, Op},
};

/// `[` and `]`.
const ARRAY_BYTES: usize = 2;
/// `{"inserts":[` or `{"deletes":[`, and `]}`.
const CHANGESET_BYTES: usize = 14;
/// `,`.
const COMMA_BYTES: usize = 1;

/// A change that no batch can hold. It names the fact's types only, never its ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not pack a fact of type \"{fact_type}\": alone it makes {bytes} bytes, and a batch may have {limit}")]
pub struct PackError {
    fact_type: String,
    bytes: usize,
    limit: usize,
}

/// Collects changes, in order, into batches that keep within limits.
#[derive(Debug)]
pub struct Packer {
    limits: BatchLimits,
    changes: Vec<FactChange>,
    bytes: usize,
}

impl Packer {
    /// An empty packer; `limits` are those of the [`FactStore`](crate::target::FactStore) that gets the batches.
    pub fn new(limits: BatchLimits) -> Self {
        assert!(limits.entries > 0, "a batch must be able to hold a change");
        Self { limits, changes: Vec::new(), bytes: ARRAY_BYTES }
    }

    /// Adds a change, and returns the batch before it if that had no room left. After an error the packer is as it was.
    pub fn push(&mut self, change: FactChange) -> Result<Option<Batch>, PackError> {
        let fact_bytes = json_bytes(&change.fact);
        let alone = ARRAY_BYTES + CHANGESET_BYTES + fact_bytes;
        if alone > self.limits.bytes {
            return Err(PackError { fact_type: types(&change.fact), bytes: alone, limit: self.limits.bytes });
        }
        let mut full = None;
        let mut joint = self.joint_bytes(change.op);
        if self.changes.len() == self.limits.entries || self.bytes + joint + fact_bytes > self.limits.bytes {
            full = self.cut();
            joint = self.joint_bytes(change.op);
        }
        self.bytes += joint + fact_bytes;
        self.changes.push(change);
        Ok(full)
    }

    /// Ends the batch here, at a commit for instance; `None` if nothing was pushed since the last one.
    pub fn cut(&mut self) -> Option<Batch> {
        self.bytes = ARRAY_BYTES;
        let changes = std::mem::take(&mut self.changes);
        (!changes.is_empty()).then(|| Batch { request_id: Uuid::new_v4(), changes })
    }

    /// The changes since the last batch.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether `count` more changes, `fact_bytes` long in all, are sure to fit into the batch begun, however they alternate.
    ///
    /// What lets a deliverer keep the next source transaction whole: it cuts before one that does not fit.
    pub fn has_room(&self, count: usize, fact_bytes: usize) -> bool {
        let at_worst = self.bytes + fact_bytes + count * (COMMA_BYTES + CHANGESET_BYTES);
        self.changes.len() + count <= self.limits.entries && at_worst <= self.limits.bytes
    }

    /// What joins a change of kind `op` to the ones before it.
    fn joint_bytes(&self, op: Op) -> usize {
        match self.changes.last() {
            None => CHANGESET_BYTES,
            Some(last) if last.op == op => COMMA_BYTES,
            Some(_) => COMMA_BYTES + CHANGESET_BYTES,
        }
    }
}

/// The body of `POST /api/batch`.
pub fn body(changes: &[FactChange]) -> Vec<u8> {
    let changesets: Vec<Changeset<'_>> = changes.chunk_by(|a, b| a.op == b.op).map(Changeset::of).collect();
    serde_json::to_vec(&changesets).expect("facts have text keys only and memory does not fail to write")
}

/// The bytes of a fact in a body.
pub fn json_bytes(fact: &Fact) -> usize {
    let mut count = Count(0);
    serde_json::to_writer(&mut count, fact).expect("facts have text keys only and counting does not fail");
    count.0
}

/// A run of changes of one kind.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Changeset<'a> {
    Inserts(Facts<'a>),
    Deletes(Facts<'a>),
}

impl<'a> Changeset<'a> {
    fn of(run: &'a [FactChange]) -> Self {
        match run.first().map(|change| change.op) {
            Some(Op::Delete) => Self::Deletes(Facts(run)),
            Some(Op::Insert) | None => Self::Inserts(Facts(run)),
        }
    }
}

struct Facts<'a>(&'a [FactChange]);

impl Serialize for Facts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut facts = serializer.serialize_seq(Some(self.0.len()))?;
        for change in self.0 {
            facts.serialize_element(&change.fact)?;
        }
        facts.end()
    }
}

/// Counts what is written.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `has_role(User, String, Organization)`: what may be shown of a fact.
fn types(fact: &Fact) -> String {
    let types: Vec<&str> = fact.args.iter().map(|arg| arg.type_name.as_str()).collect();
    format!("{}({})", fact.predicate, types.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::Value;
    use proptest::prelude::*;

    fn change(op: Op, id: &str) -> FactChange {
        FactChange { op, fact: Fact { predicate: "f".into(), args: vec![Value::new("User", id)] } }
    }

    fn changes() -> impl Strategy<Value = Vec<FactChange>> {
        let op = prop_oneof![Just(Op::Insert), Just(Op::Delete)];
        let value = ("[A-Z]{1,3}", "[a\"\\\\\u{0}\u{1f}\u{7f}é\u{2028}\u{1f980}]{0,8}").prop_map(|(t, id)| Value::new(t, id));
        let fact = ("[a-z_]{1,5}", prop::collection::vec(value, 0..3)).prop_map(|(predicate, args)| Fact { predicate, args });
        prop::collection::vec((op, fact).prop_map(|(op, fact)| FactChange { op, fact }), 0..40)
    }

    proptest! {
        #[test]
        fn batches_keep_order_and_limits_and_waste_nothing(changes in changes(), entries in 1_usize..9, bytes in 40_usize..400) {
            let limits = BatchLimits { entries, bytes };
            let mut packer = Packer::new(limits);
            let (mut batches, mut packed) = (Vec::new(), Vec::new());
            for change in changes {
                let alone = body(std::slice::from_ref(&change)).len();
                match packer.push(change.clone()) {
                    Ok(full) => {
                        batches.extend(full);
                        packed.push(change);
                        prop_assert_eq!(packer.bytes, body(&packer.changes).len());
                    }
                    Err(error) => prop_assert!(alone > bytes && error.bytes == alone),
                }
            }
            batches.extend(packer.cut());
            prop_assert!(packer.is_empty());
            for batch in &batches {
                prop_assert!(!batch.changes.is_empty() && batch.changes.len() <= entries);
                prop_assert!(body(&batch.changes).len() <= bytes);
            }
            for pair in batches.windows(2) {
                let mut longer = pair[0].changes.clone();
                longer.push(pair[1].changes[0].clone());
                prop_assert!(longer.len() > entries || body(&longer).len() > bytes, "a batch ended before it was full");
                prop_assert_ne!(pair[0].request_id, pair[1].request_id);
            }
            let sent: Vec<FactChange> = batches.into_iter().flat_map(|batch| batch.changes).collect();
            prop_assert_eq!(sent, packed);
        }

        #[test]
        fn what_has_room_fits(begun in changes(), more in changes(), entries in 1_usize..60, bytes in 400_usize..4000) {
            let mut packer = Packer::new(BatchLimits { entries, bytes });
            for change in begun {
                packer.push(change).expect("a small fact");
            }
            let fact_bytes = more.iter().map(|change| json_bytes(&change.fact)).sum();
            if packer.has_room(more.len(), fact_bytes) {
                for change in more {
                    prop_assert!(packer.push(change).expect("a small fact").is_none());
                }
            }
        }
    }

    #[test]
    fn a_body_is_what_the_official_clients_send() {
        let changes = [change(Op::Insert, "1"), change(Op::Insert, "2"), change(Op::Delete, "3"), change(Op::Insert, "4")];
        let fact = |id: &str| format!(r#"{{"predicate":"f","args":[{{"type":"User","id":"{id}"}}]}}"#);
        let want = format!(r#"[{{"inserts":[{},{}]}},{{"deletes":[{}]}},{{"inserts":[{}]}}]"#, fact("1"), fact("2"), fact("3"), fact("4"));
        assert_eq!(String::from_utf8(body(&changes)).expect("JSON is UTF-8"), want);
        assert_eq!(body(&[]), b"[]");
    }

    #[test]
    fn a_change_that_fits_no_batch_is_named_without_its_ids() {
        let mut packer = Packer::new(BatchLimits { entries: 10, bytes: 100 });
        packer.push(change(Op::Insert, "kept")).expect("a small fact");
        let error = packer.push(change(Op::Insert, &"secret".repeat(20))).expect_err("too long");
        assert!(error.to_string().contains("\"f(User)\"") && error.to_string().contains("100"), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"));
        assert_eq!(packer.cut().expect("the change before").changes, [change(Op::Insert, "kept")]);
    }
}
