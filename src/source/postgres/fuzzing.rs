//! What fuzz targets need of the change stream's decoder and of the analysis of queries, which are private.
//!
//! Compiled with `--cfg fuzzing` only, by `fuzz/run.sh`.

use std::collections::BTreeMap;

use crate::{
    config::{PostgresConfig, View},
    data::{ChangeBatch, Lsn},
    query::{Identity, fuzzing::Names, tree::Tree},
    source::{
        SourceError,
        postgres::{
            analyze::capture,
            decode::{Cell, Cells, Message, Tuples, decode},
            images::{Announced, Images, Kept, KeptColumn},
            session::{Purpose, Server},
            uses::Uses,
        },
    },
};

/// A message as the decoder reads it, with nothing of the message left out but what says nothing about rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// The shape of a table: number, identity, and each column's key flag, name, type and modifier.
    Shape(u32, u8, Vec<(bool, String, u32, i32)>),
    /// A row change: table and tuples; `None` if these cannot be read.
    Row(u32, Option<DecodedTuples>),
    /// Emptied tables.
    Truncate(Vec<u32>),
    /// Nothing about rows.
    Nothing,
    /// No message.
    Unknown,
}

/// The tuples of a row change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedTuples {
    /// Which there are.
    pub which: &'static str,
    /// The old one's cells.
    pub old: Vec<DecodedCell>,
    /// The new one's.
    pub new: Vec<DecodedCell>,
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodedCell {
    /// SQL NULL.
    Null,
    /// Stored out of line and not changed.
    Unchanged,
    /// A value's bytes.
    Text(Vec<u8>),
}

/// Decodes one message.
pub fn decoded(message: &[u8]) -> Decoded {
    match decode(message) {
        Message::Shape(shape) => {
            let columns = shape.columns.into_iter().map(|column| (column.key, column.name, column.type_oid, column.modifier));
            Decoded::Shape(shape.relation, shape.identity, columns.collect())
        }
        Message::Row(row) => {
            let mut cells = Cells::default();
            let tuples = row.read(&mut cells).map(|which| {
                let own = |cell: &Cell| match *cell {
                    Cell::Null => DecodedCell::Null,
                    Cell::Unchanged => DecodedCell::Unchanged,
                    Cell::Text { start, end } => DecodedCell::Text(row.bytes()[start..end].to_vec()),
                };
                let which = match which {
                    Tuples::Insert => "insert",
                    Tuples::Update => "update",
                    Tuples::UpdateWithOld => "update with old",
                    Tuples::Delete => "delete",
                };
                DecodedTuples { which, old: cells.old.iter().map(own).collect(), new: cells.new.iter().map(own).collect() }
            });
            Decoded::Row(row.relation, tuples)
        }
        Message::Truncate(relations) => Decoded::Truncate(relations),
        Message::Nothing => Decoded::Nothing,
        Message::Unknown => Decoded::Unknown,
    }
}

/// A table whose rows [`Stream`] delivers.
#[derive(Debug, Clone)]
pub struct StreamTable {
    /// Its OID.
    pub relation: u32,
    /// Its kept columns: number, name, type and modifier.
    pub columns: Vec<(i16, &'static str, u32, i32)>,
    /// The numbers of its key; `None` for `REPLICA IDENTITY FULL`.
    pub key: Option<Vec<i16>>,
    /// Whether its rows are those of its partitions.
    pub partitioned: bool,
}

/// The change stream from the decoder to the batch that views read.
pub struct Stream {
    images: Images,
    batch: ChangeBatch,
}

impl Stream {
    /// A stream of the changes of `tables`, all of them used by view 0.
    pub fn new(tables: &[StreamTable]) -> Self {
        let kept = |table: &StreamTable| {
            let columns = table.columns.iter().map(|&(number, name, type_oid, modifier)| KeptColumn {
                number,
                name: name.to_owned(),
                type_oid,
                modifier,
                labels: None,
            });
            let columns: Vec<KeptColumn> = columns.collect();
            let names = |key: &Vec<i16>| {
                let named = columns.iter().filter(|column| key.contains(&column.number));
                named.map(|column| column.name.clone()).collect()
            };
            let kept = Kept {
                title: format!("public.t{}", table.relation),
                identity: table.key.clone().map_or(Identity::Full, Identity::Key),
                announced: table.key.as_ref().map_or(Announced::Full, |key| Announced::Columns { key: names(key), included: Vec::new() }),
                partitioned: table.partitioned,
                users: vec![(0, columns.iter().map(|column| column.number).collect())],
                columns,
            };
            (table.relation, kept)
        };
        Self { images: Images::new(tables.iter().map(kept).collect(), BTreeMap::new()), batch: ChangeBatch::default() }
    }

    /// Takes a message in as the tail does. `false` where the tail would give the stream up.
    pub fn take(&mut self, message: &[u8]) -> bool {
        match decode(message) {
            Message::Shape(shape) => self.images.shape(&shape),
            Message::Row(row) if self.images.keep(row.relation) => return self.images.row(row, Lsn(1), &mut self.batch).is_ok(),
            Message::Truncate(relations) => {
                relations.into_iter().filter(|relation| self.images.keep(*relation)).for_each(|relation| self.batch.truncate(relation));
            }
            Message::Row(_) | Message::Nothing => {}
            Message::Unknown => return false,
        }
        true
    }

    /// What was delivered; not to be used after the stream was given up.
    pub fn batch(&self) -> &ChangeBatch {
        &self.batch
    }
}

/// Collects what a tree uses, as the analysis does, and says of how many relations and reasons against it.
pub fn uses(text: &str) -> Option<(usize, usize)> {
    let uses = Tree::read(text).ok().map(|tree| Uses::of(&tree))?;
    Some((uses.relations.len(), uses.refusals.len()))
}

/// The trees that a server prints for the queries of `config`, and what its catalogues say about them: the seeds of a corpus.
pub async fn captured(config: &PostgresConfig) -> Result<(Vec<String>, Names), SourceError> {
    let server = Server::new("captured", config)?;
    let mut session = server.connect(Purpose::Analyze).await?;
    let views: &[View<String>] = &config.views;
    let (trees, catalogue) = capture(&server, &mut session, views).await?;
    Ok((trees, Names(catalogue)))
}
