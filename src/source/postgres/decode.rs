//! pgoutput messages, version 1.
//!
//! The format: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>. Begin, Commit and logical
//! messages are parsed by `pgwire-replication`. What is too short, too long or unknown is [`Message::Unknown`] or a row that
//! cannot be read: the caller treats a message it cannot read as a lost stream.
//!
//! A row's tuples are only read when somebody wants them ([`RowChange::read`]), into places that are used again for the next
//! row, so that a row costs no allocation.

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// The shape of a table, sent before its first change and after every change of its shape.
    Shape(Shape),
    /// A row was inserted, updated or deleted.
    Row(RowChange<'a>),
    /// These tables were emptied.
    Truncate(Vec<u32>),
    /// Types and origins, which say nothing about rows.
    Nothing,
    /// What no version of pgoutput that we ask for sends.
    Unknown,
}

/// A table as the change log describes it, at the place in the log where it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Its OID.
    pub(crate) relation: u32,
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub(crate) identity: u8,
    /// The published columns, in the order of the tuples.
    pub(crate) columns: Vec<ShapeColumn>,
}

/// One of its columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShapeColumn {
    /// Whether it belongs to the replica identity.
    pub(crate) key: bool,
    /// Its name.
    pub(crate) name: String,
    /// Its type's OID.
    pub(crate) type_oid: u32,
    /// The type's modifier, such as a length.
    pub(crate) modifier: i32,
}

/// A row change whose tuples have not been read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowChange<'a> {
    /// The table.
    pub(crate) relation: u32,
    verb: Verb,
    body: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Insert,
    Update,
    Delete,
}

/// Which tuples a row change has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tuples {
    /// The new row.
    Insert,
    /// The new row, and nothing of the old one: its identity is the same.
    Update,
    /// The old row or its identity, and the new row.
    UpdateWithOld,
    /// The old row or its identity.
    Delete,
}

/// One cell of a tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// SQL NULL, or a column of an old tuple that is outside of the identity.
    Null,
    /// Stored out of line and not changed.
    Unchanged,
    /// This part of [`RowChange::bytes`].
    Text {
        /// Where it starts.
        start: usize,
        /// Where it ends.
        end: usize,
    },
}

/// The cells of one message's tuples; used again for the next message.
#[derive(Debug, Default)]
pub(crate) struct Cells {
    /// Of the old tuple.
    pub(crate) old: Vec<Cell>,
    /// Of the new tuple.
    pub(crate) new: Vec<Cell>,
}

/// Reads a message.
pub(crate) fn decode(message: &[u8]) -> Message<'_> {
    let Some((tag, body)) = message.split_first() else { return Message::Unknown };
    let message = match tag {
        b'I' => row(Verb::Insert, body),
        b'U' => row(Verb::Update, body),
        b'D' => row(Verb::Delete, body),
        b'R' => Reader(body).shape().map(Message::Shape),
        b'T' => Reader(body).truncated().map(Message::Truncate),
        b'Y' | b'O' => Some(Message::Nothing),
        _ => None,
    };
    message.unwrap_or(Message::Unknown)
}

fn row(verb: Verb, body: &[u8]) -> Option<Message<'_>> {
    Reader(body).u32().map(|relation| Message::Row(RowChange { relation, verb, body }))
}

impl<'a> RowChange<'a> {
    /// What the texts of [`Cell::Text`] are parts of.
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.body
    }

    /// Reads the tuples into `cells`. `None` if the message is cut, goes on after its end, or has values in the binary format, for
    /// which nobody asked.
    pub(crate) fn read(self, cells: &mut Cells) -> Option<Tuples> {
        cells.old.clear();
        cells.new.clear();
        let mut at = 4;
        let tuples = match (self.verb, self.tag(&mut at)?) {
            (Verb::Insert, b'N') => Tuples::Insert,
            (Verb::Update, b'N') => Tuples::Update,
            (Verb::Update, b'K' | b'O') => Tuples::UpdateWithOld,
            (Verb::Delete, b'K' | b'O') => Tuples::Delete,
            (Verb::Insert | Verb::Update | Verb::Delete, _) => return None,
        };
        match tuples {
            Tuples::Insert | Tuples::Update => self.tuple(&mut at, &mut cells.new)?,
            Tuples::Delete => self.tuple(&mut at, &mut cells.old)?,
            Tuples::UpdateWithOld => {
                self.tuple(&mut at, &mut cells.old)?;
                (self.tag(&mut at)? == b'N').then_some(())?;
                self.tuple(&mut at, &mut cells.new)?;
            }
        }
        (at == self.body.len()).then_some(tuples)
    }

    fn tag(self, at: &mut usize) -> Option<u8> {
        let tag = *self.body.get(*at)?;
        *at += 1;
        Some(tag)
    }

    fn tuple(self, at: &mut usize, cells: &mut Vec<Cell>) -> Option<()> {
        let count = u16::from_be_bytes(*self.body.get(*at..)?.first_chunk()?);
        *at += 2;
        for _ in 0..count {
            cells.push(match self.tag(at)? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => {
                    let length = usize::try_from(u32::from_be_bytes(*self.body.get(*at..)?.first_chunk()?)).ok()?;
                    let start = *at + 4;
                    let end = start.checked_add(length).filter(|end| *end <= self.body.len())?;
                    *at = end;
                    Cell::Text { start, end }
                }
                _ => return None,
            });
        }
        Some(())
    }
}

/// Takes values off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|&byte| byte == 0)?;
        // Of a database with another encoding, where no name is looked at.
        let text = String::from_utf8_lossy(&self.0[..end]).into_owned();
        self.0 = &self.0[end + 1..];
        Some(text)
    }

    fn shape(mut self) -> Option<Shape> {
        let relation = self.u32()?;
        let (_schema, _name) = (self.text()?, self.text()?);
        let [identity] = self.take()?;
        let count = self.take().map(u16::from_be_bytes)?;
        let mut columns = Vec::new();
        for _ in 0..count {
            let [flags] = self.take()?;
            let (name, type_oid) = (self.text()?, self.u32()?);
            let modifier = self.take().map(i32::from_be_bytes)?;
            columns.push(ShapeColumn { key: flags & 1 == 1, name, type_oid, modifier });
        }
        self.0.is_empty().then_some(Shape { relation, identity, columns })
    }

    /// The count of relations, one byte of options, the relations.
    fn truncated(mut self) -> Option<Vec<u32>> {
        let count = usize::try_from(self.u32()?).ok()?;
        let [_options] = self.take()?;
        (self.0.len() == count.checked_mul(4)?).then_some(())?;
        std::iter::repeat_with(|| self.u32()).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tuple as `logicalrep_write_tuple` writes it.
    fn tuple(cells: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = u16::try_from(cells.len()).expect("few").to_be_bytes().to_vec();
        for cell in cells {
            match cell {
                None => bytes.push(b'n'),
                Some("\u{1}") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend(u32::try_from(text.len()).expect("short").to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn message(tag: u8, parts: &[(u8, &[Option<&str>])]) -> Vec<u8> {
        let mut bytes = vec![tag, 0, 0, 0x40, 7];
        for (kind, cells) in parts {
            bytes.push(*kind);
            bytes.extend(tuple(cells));
        }
        bytes
    }

    fn texts(cells: &[Cell], row: RowChange<'_>) -> Vec<Option<String>> {
        let text = |cell: &Cell| match cell {
            Cell::Null => None,
            Cell::Unchanged => Some("\u{1}".to_owned()),
            Cell::Text { start, end } => Some(String::from_utf8_lossy(&row.bytes()[*start..*end]).into_owned()),
        };
        cells.iter().map(text).collect()
    }

    #[test]
    fn every_kind_of_row_change_is_read() {
        let (key, new): (&[_], &[_]) = (&[Some("7"), None], &[Some("8"), Some("\u{1}")]);
        for (tag, parts, want) in [
            (b'I', vec![(b'N', new)], Tuples::Insert),
            (b'U', vec![(b'N', new)], Tuples::Update),
            (b'U', vec![(b'K', key), (b'N', new)], Tuples::UpdateWithOld),
            (b'U', vec![(b'O', key), (b'N', new)], Tuples::UpdateWithOld),
            (b'D', vec![(b'K', key)], Tuples::Delete),
            (b'D', vec![(b'O', key)], Tuples::Delete),
        ] {
            let bytes = message(tag, &parts);
            let Message::Row(row) = decode(&bytes) else { panic!("{bytes:?}") };
            let mut cells = Cells::default();
            assert_eq!((row.relation, row.read(&mut cells)), (16391, Some(want)));
            let owned = |cells: &[Option<&str>]| cells.iter().map(|cell| cell.map(str::to_owned)).collect::<Vec<_>>();
            let (old, told): (Vec<_>, Vec<_>) = parts.iter().partition(|(kind, _)| *kind != b'N');
            assert_eq!(texts(&cells.old, row), old.first().map_or(Vec::new(), |(_, cells)| owned(cells)));
            assert_eq!(texts(&cells.new, row), told.first().map_or(Vec::new(), |(_, cells)| owned(cells)));
        }
    }

    #[test]
    fn a_shape_has_names_types_and_key_flags() {
        let bytes = b"R\0\0\x40\x07public\0repo\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0name\0\0\0\x04\x13\0\0\0\x18";
        let column = |key, name: &str, type_oid, modifier| ShapeColumn { key, name: name.to_owned(), type_oid, modifier };
        let columns = vec![column(true, "id", 23, -1), column(false, "name", 1043, 24)];
        assert_eq!(decode(bytes), Message::Shape(Shape { relation: 16391, identity: b'd', columns }));
        assert_eq!(decode(&bytes[..bytes.len() - 1]), Message::Unknown);
    }

    #[test]
    fn tables_are_emptied_together() {
        assert_eq!(decode(b"T\0\0\0\x02\x01\0\0\0\x07\0\0\0\x09"), Message::Truncate(vec![7, 9]));
        assert_eq!(decode(b"Y\0\0\0\x07public\0mood\0"), Message::Nothing);
    }

    #[test]
    fn what_is_cut_is_unknown() {
        for message in [&b""[..], b"I\0\0\0", b"T\0\0\0\x02\x01\0\0\0\x07", b"T\xff\xff\xff\xff\x01", b"Z1234", b"R\0\0\0\x07a"] {
            assert_eq!(decode(message), Message::Unknown);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(message: Vec<u8>, tag in prop::sample::select(b"IUDRTYO".to_vec())) {
            let tagged: Vec<u8> = std::iter::once(tag).chain(message.iter().copied()).collect();
            for message in [message, tagged] {
                if let Message::Row(row) = decode(&message) {
                    row.read(&mut Cells::default());
                }
            }
        }

        #[test]
        fn a_row_that_is_cut_or_goes_on_is_refused(cut: prop::sample::Index, extra: u8, binary: bool) {
            let whole = message(b'U', &[(b'K', &[Some("7"), None]), (b'N', &[Some("8"), Some("\u{1}")])]);
            let mut cells = Cells::default();
            let mut read = |bytes: &[u8]| match decode(bytes) {
                Message::Row(row) => row.read(&mut cells).is_some(),
                _ => false,
            };
            prop_assert!(read(&whole));
            prop_assert!(!read(&whole[..cut.index(whole.len())]));
            let longer: Vec<u8> = whole.iter().copied().chain([extra]).collect();
            prop_assert!(!read(&longer));
            let flipped: Vec<u8> = whole.iter().map(|&byte| if binary && byte == b't' { b'b' } else { byte }).collect();
            prop_assert_eq!(read(&flipped), !binary);
        }
    }
}
