//! What PostgreSQL sends: the change stream, from the server's bytes to the images that views read, and the rows of a COPY.
//!
//! An input that begins with `d` is what the server sends, message by message; one that begins with `c` is a COPY, the second byte saying
//! which columns are booleans; any other is a list of pgoutput messages, each after two bytes of length. What is read must be what is
//! there: written again, it is the message. What is delivered must be what a second,
//! slower reading of the same messages says ([`Model`]).

use std::{
    pin::pin,
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use factsync::{
    data::{Change, Image, Row},
    source::postgres::{
        Decoder,
        fuzzing::{Decoded, DecodedCell, DecodedTuples, Stream, StreamTable, decoded},
    },
};
use pgwire_replication::protocol::{
    framing::MessageReader,
    messages::ErrorFields,
    replication::{ReplicationCopyData, parse_copy_data},
};

/// The largest message of a stream of this target.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Tables of which changes are delivered: one with a key, one without, and one in partitions.
static TABLES: LazyLock<[StreamTable; 3]> = LazyLock::new(|| {
    let columns = vec![(1, "id", 23, -1), (2, "name", 25, -1), (4, "body", 25, -1)];
    [
        StreamTable { relation: 16385, columns: columns.clone(), key: Some(vec![1]), partitioned: false },
        StreamTable { relation: 16386, columns: columns.clone(), key: None, partitioned: false },
        StreamTable { relation: 16387, columns, key: None, partitioned: true },
    ]
});

/// Runs one input.
pub fn run(data: &[u8]) {
    let messages = match data {
        [b'c', booleans, bytes @ ..] => return copied(*booleans, bytes),
        [b'd', ..] => received(data),
        _ => listed(data),
    };
    let (mut stream, mut model) = (Stream::new(&*TABLES), Model::default());
    for message in &messages {
        written_again(message);
        let (taken, wanted) = (stream.take(message), model.take(message));
        assert_eq!(taken, wanted, "{:?}", decoded(message));
        if !taken {
            return;
        }
    }
    let delivered: Vec<(u32, Delivered)> =
        stream.batch().changes(0..stream.batch().len()).map(|(table, change)| (table, Delivered::of(change))).collect();
    assert_eq!(delivered, model.delivered);
}

/// The rows of a COPY, in one piece and byte by byte; written again they are read again.
fn copied(booleans: u8, bytes: &[u8]) {
    let booleans: Vec<bool> = (0..booleans & 3).map(|column| booleans >> (4 + column) & 1 == 1).collect();
    let at_once = rows(&booleans, [bytes]);
    assert_eq!(at_once, rows(&booleans, bytes.chunks(1)), "the pieces make a difference");
    let Some(rows_read) = at_once else { return };
    let cell = |cell: Option<String>| match cell {
        None => "\\N".to_owned(),
        Some(text) => text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n"),
    };
    let line = |row: &Row| row.cells().into_iter().map(cell).collect::<Vec<_>>().join("\t") + "\n";
    let written: String = rows_read.iter().map(line).collect();
    assert_eq!(Some(rows_read), rows(&booleans, [written.as_bytes()]), "{written:?}");
}

fn rows<'a>(booleans: &[bool], pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<Row>> {
    let mut decoder = Decoder::new(booleans.to_vec());
    let mut rows = Vec::new();
    for piece in pieces {
        let each = |row| {
            rows.push(row);
            Ok(())
        };
        decoder.feed(piece, each).ok()?;
    }
    decoder.finish().ok().map(|()| rows)
}

fn listed(mut rest: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(after.len().min(usize::from(u16::from_be_bytes(*length))));
        messages.push(message.to_vec());
        rest = after;
    }
    messages
}

/// What the replication client makes of the server's bytes, whether they come at once or one by one.
fn received(data: &[u8]) -> Vec<Vec<u8>> {
    let at_once = frames(data);
    assert_eq!(at_once, frames(Slowly(data)), "the pieces make a difference");
    let mut messages = Vec::new();
    for (tag, payload) in at_once {
        let _ = (ErrorFields::parse(&payload).to_error_string(), tag);
        if let Ok(ReplicationCopyData::XLogData { data, .. }) = parse_copy_data(Bytes::from(payload)) {
            messages.push(data.to_vec());
        }
    }
    messages
}

/// One byte at a time.
struct Slowly<'a>(&'a [u8]);

impl tokio::io::AsyncRead for Slowly<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if let Some((first, rest)) = self.0.split_first() {
            buffer.put_slice(&[*first]);
            self.0 = rest;
        }
        Poll::Ready(Ok(()))
    }
}

fn frames(mut bytes: impl tokio::io::AsyncRead + Unpin) -> Vec<(u8, Vec<u8>)> {
    let mut reader = MessageReader::new().with_max_message_size(MAX_MESSAGE_BYTES);
    let mut frames = Vec::new();
    loop {
        let reading = pin!(reader.read(&mut bytes));
        match reading.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(message)) => frames.push((message.tag, message.payload.to_vec())),
            Poll::Ready(Err(_)) => return frames,
            Poll::Pending => panic!("bytes in memory are there"),
        }
    }
}

/// What was read of a message is all that is in it.
fn written_again(message: &[u8]) {
    match decoded(message) {
        Decoded::Row(relation, Some(tuples)) => {
            let old_tag = message[5];
            assert_eq!(row_message(message[0], relation, old_tag, &tuples), message);
        }
        Decoded::Truncate(relations) => {
            let count = u32::try_from(relations.len()).expect("they were in the message");
            let numbers: Vec<u8> = relations.iter().flat_map(|number| number.to_be_bytes()).collect();
            assert_eq!([b"T", &count.to_be_bytes()[..], &[message[5]], &numbers].concat(), message);
        }
        // A name that is no UTF-8 is read as something else.
        Decoded::Shape(_, _, columns) if columns.iter().any(|(_, name, ..)| name.contains('\u{fffd}')) => {}
        Decoded::Shape(relation, identity, columns) => {
            let names: Vec<&[u8]> = message[5..].splitn(3, |&byte| byte == 0).take(2).collect();
            let count = u16::try_from(columns.len()).expect("as many as were counted");
            let mut written =
                [b"R", &relation.to_be_bytes()[..], names[0], &[0], names[1], &[0], &[identity], &count.to_be_bytes()].concat();
            for (key, name, type_oid, modifier) in &columns {
                // Other flags than the key's say nothing.
                let flags = message[written.len()];
                assert_eq!(flags & 1 == 1, *key);
                written.push(flags);
                written.extend(name.as_bytes());
                written.push(0);
                written.extend(type_oid.to_be_bytes());
                written.extend(modifier.to_be_bytes());
            }
            assert_eq!(written, message);
        }
        Decoded::Row(_, None) | Decoded::Nothing | Decoded::Unknown => {}
    }
}

fn row_message(tag: u8, relation: u32, first: u8, tuples: &DecodedTuples) -> Vec<u8> {
    let head = [&[tag][..], &relation.to_be_bytes()].concat();
    match tuples.which {
        "insert" | "update" => [head, vec![b'N'], tuple(&tuples.new)].concat(),
        "delete" => [head, vec![first], tuple(&tuples.old)].concat(),
        _ => [head, vec![first], tuple(&tuples.old), vec![b'N'], tuple(&tuples.new)].concat(),
    }
}

fn tuple(cells: &[DecodedCell]) -> Vec<u8> {
    let mut bytes = u16::try_from(cells.len()).expect("as many as were counted").to_be_bytes().to_vec();
    for cell in cells {
        match cell {
            DecodedCell::Null => bytes.push(b'n'),
            DecodedCell::Unchanged => bytes.push(b'u'),
            DecodedCell::Text(text) => {
                bytes.push(b't');
                bytes.extend(u32::try_from(text.len()).expect("it was in the message").to_be_bytes());
                bytes.extend(text);
            }
        }
    }
    bytes
}

/// An image: each cell absent, NULL or a text.
type Cells = Vec<Option<Option<String>>>;

#[derive(Debug, PartialEq, Eq)]
enum Delivered {
    Insert(Cells),
    Update(Option<Cells>, Cells),
    Delete(Cells),
    Truncate,
}

impl Delivered {
    fn of(change: Change<'_>) -> Self {
        let cells = |image: Image<'_>| -> Cells {
            let cell = |encoded: &[u8]| (!Image::is_absent(encoded)).then(|| Row::from_encoded([encoded]).cells().remove(0));
            image.encoded().map(cell).collect()
        };
        match change {
            Change::Insert { new } => Self::Insert(cells(new)),
            Change::Update { old, new } => Self::Update(old.map(cells), cells(new)),
            Change::Delete { old } => Self::Delete(cells(old)),
            Change::Truncate => Self::Truncate,
        }
    }
}

/// What the last shape of a table was.
struct Shape {
    relation: u32,
    /// The columns' names in the order of the tuples.
    names: Vec<String>,
    /// Whether the plan can read its rows.
    right: bool,
}

/// The same by names: for every cell it looks up what the last shape called it.
#[derive(Default)]
struct Model {
    shapes: Vec<Shape>,
    /// The partitioned table whose shape was the last one.
    root: Option<u32>,
    delivered: Vec<(u32, Delivered)>,
}

impl Model {
    /// `false` where the stream must be given up.
    fn take(&mut self, message: &[u8]) -> bool {
        match decoded(message) {
            Decoded::Unknown => return false,
            Decoded::Nothing => {}
            Decoded::Truncate(relations) => {
                let kept = relations.into_iter().filter(|relation| table(*relation).is_some());
                self.delivered.extend(kept.map(|relation| (relation, Delivered::Truncate)));
            }
            Decoded::Shape(relation, identity, columns) => self.shape(relation, identity, &columns),
            Decoded::Row(relation, tuples) => {
                if let Some(table) = table(relation) {
                    let delivered = tuples.and_then(|tuples| self.row(table, &tuples));
                    let Some(delivered) = delivered else { return false };
                    self.delivered.push((relation, delivered));
                }
            }
        }
        true
    }

    fn shape(&mut self, relation: u32, identity: u8, columns: &[(bool, String, u32, i32)]) {
        let root = self.root.take();
        let Some(table) = table(relation) else {
            // Partitions have to have the identity of their root.
            if let Some(root) = root.filter(|_| identity != b'f') {
                self.shapes.iter_mut().filter(|shape| shape.relation == root).for_each(|shape| shape.right = false);
            }
            return;
        };
        self.root = table.partitioned.then_some(relation);
        let same = |(_, name, type_oid, modifier): &(i16, &str, u32, i32)| {
            let first = columns.iter().find(|(_, other, ..)| other == name);
            first.is_some_and(|(_, _, other_type, other_modifier)| other_type == type_oid && other_modifier == modifier)
        };
        let flagged: Vec<&str> = columns.iter().filter(|(key, ..)| *key).map(|(_, name, ..)| name.as_str()).collect();
        let identified = match table.key {
            None => identity == b'f',
            Some(_) => identity != b'f' && flagged == ["id"],
        };
        let right = table.columns.iter().all(same) && identified;
        self.shapes.retain(|shape| shape.relation != relation);
        self.shapes.push(Shape { relation, names: columns.iter().map(|(_, name, ..)| name.clone()).collect(), right });
    }

    fn row(&self, table: &StreamTable, tuples: &DecodedTuples) -> Option<Delivered> {
        let shape = self.shapes.iter().find(|shape| shape.relation == table.relation).filter(|shape| shape.right)?;
        let fits = |tuple: &[DecodedCell]| tuple.len() == shape.names.len();
        let old = || fits(&tuples.old).then(|| old_cells(table, shape, &tuples.old)).flatten();
        let new = || fits(&tuples.new).then(|| new_cells(table, shape, &tuples.new, &tuples.old)).flatten();
        Some(match tuples.which {
            "insert" => Delivered::Insert(new()?),
            "update" => Delivered::Update(None, new()?),
            "delete" => Delivered::Delete(old()?),
            _ => Delivered::Update(Some(old()?), new()?),
        })
    }
}

fn table(relation: u32) -> Option<&'static StreamTable> {
    TABLES.iter().find(|table| table.relation == relation)
}

fn told(table: &StreamTable, number: i16) -> bool {
    table.key.as_ref().is_none_or(|key| key.contains(&number))
}

fn old_cells(table: &StreamTable, shape: &Shape, tuple: &[DecodedCell]) -> Option<Cells> {
    let cell = |(number, name, ..): &(i16, &'static str, u32, i32)| {
        if !told(table, *number) {
            return Some(None);
        }
        let cell = named(shape, name, tuple)?;
        // A key is never NULL.
        if table.key.is_some() && *cell == DecodedCell::Null { None } else { text(cell) }
    };
    table.columns.iter().map(cell).collect()
}

fn new_cells(table: &StreamTable, shape: &Shape, tuple: &[DecodedCell], old: &[DecodedCell]) -> Option<Cells> {
    let cell = |(number, name, ..): &(i16, &'static str, u32, i32)| match named(shape, name, tuple)? {
        DecodedCell::Unchanged if told(table, *number) && !old.is_empty() => text(named(shape, name, old)?),
        cell => text(cell),
    };
    table.columns.iter().map(cell).collect()
}

fn named<'a>(shape: &Shape, name: &str, tuple: &'a [DecodedCell]) -> Option<&'a DecodedCell> {
    shape.names.iter().position(|other| other == name).and_then(|place| tuple.get(place))
}

/// Absent, NULL or a text; `None` for what is no text.
fn text(cell: &DecodedCell) -> Option<Option<Option<String>>> {
    match cell {
        DecodedCell::Unchanged => Some(None),
        DecodedCell::Null => Some(Some(None)),
        DecodedCell::Text(bytes) => String::from_utf8(bytes.clone()).ok().map(|text| Some(Some(text))),
    }
}
