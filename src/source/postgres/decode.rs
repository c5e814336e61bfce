//! What a pgoutput message says about which tables changed.
//!
//! The format: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>, version 1. Begin, Commit and
//! logical messages are parsed by `pgwire-replication`; of the rest only the relations matter, since a view is re-run
//! as a whole. What is too short or unknown is [`Change::Unknown`]: the caller treats a message it cannot read as a lost stream.

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The shape of a table, sent before its first change and after every change of its shape.
    Shape(u32),
    /// A row of this table was inserted, updated or deleted.
    Row(u32),
    /// These tables were emptied.
    Truncate(Vec<u32>),
    /// Types and origins, which say nothing about rows.
    Nothing,
    /// What no version of pgoutput that we ask for sends.
    Unknown,
}

/// Reads a message.
pub(crate) fn decode(message: &[u8]) -> Change {
    let Some((tag, body)) = message.split_first() else { return Change::Unknown };
    let change = match tag {
        b'R' => number(body).map(Change::Shape),
        b'I' | b'U' | b'D' => number(body).map(Change::Row),
        b'T' => truncated(body).map(Change::Truncate),
        b'Y' | b'O' => Some(Change::Nothing),
        _ => None,
    };
    change.unwrap_or(Change::Unknown)
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// The count of relations, one byte of options, the relations.
fn truncated(body: &[u8]) -> Option<Vec<u32>> {
    let count = usize::try_from(number(body)?).ok()?;
    let relations = body.get(5..)?;
    (relations.len() == count.checked_mul(4)?).then(|| relations.chunks_exact(4).filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_relation_is_read_from_every_message_that_has_one() {
        assert_eq!(decode(b"R\0\0\x40\x07public\0repo\0d\0\0"), Change::Shape(16391));
        for tag in [b'I', b'U', b'D'] {
            assert_eq!(decode(&[tag, 0, 0, 0x40, 7, b'N', 0, 0]), Change::Row(16391));
        }
        assert_eq!(decode(b"T\0\0\0\x02\x01\0\0\0\x07\0\0\0\x09"), Change::Truncate(vec![7, 9]));
        assert_eq!(decode(b"Y\0\0\0\x07public\0mood\0"), Change::Nothing);
    }

    #[test]
    fn what_is_cut_is_unknown() {
        for message in [&b""[..], b"I\0\0\0", b"T\0\0\0\x02\x01\0\0\0\x07", b"T\xff\xff\xff\xff\x01", b"Z1234"] {
            assert_eq!(decode(message), Change::Unknown);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(message: Vec<u8>) {
            decode(&message);
        }
    }
}
