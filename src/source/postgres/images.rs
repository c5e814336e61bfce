//! From the tuples of the change log to the images of a [`ChangeBatch`].
//!
//! The log names columns; a plan numbers them, as the catalogue had them when the query was analysed. Each Relation message says
//! which name stands where from there on. A kept column that is missing, or has another type, or an identity that is another one
//! means that the plan reads the rows wrongly: the views that need it are named ([`Wrong::Changed`]) before a row of that shape is
//! delivered. Columns that no view keeps do not matter.
//!
//! A label of an enum can get another name, which the log does not tell: it changes no row, and says the new name from there on. So a label
//! that the type did not have when the query was analysed means the same as a changed column ([`Images::label`]). Labels that
//! change places in one transaction show in the heartbeats' look at the catalogues only.
//!
//! A view that was loaded at a later point than the stream starts is not concerned by what its tables looked like before that
//! point: its cells may be absent there, since the engine skips those commits for it.
//!
//! # What is told of an old row
//!
//! Whether an old tuple is the key or the whole row is decided by the plan's identity and not by the message's letter: the letter of
//! a partition's row is that of the root, the content that of the partition. A new cell that is stored out of line and unchanged is
//! copied from the old tuple where that tells it (`REPLICA IDENTITY FULL`, and long keys); otherwise it is absent.
//!
//! A value longer than [`MOST_CELL`] is told to be that and no more, so that only the views that need it cannot follow the change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    data::{ChangeBatch, ImageWriter, Lsn},
    query::Identity,
    source::postgres::{
        copy::MOST_CELL,
        decode::{Cell, Cells, RowChange, Shape, Tuples},
    },
};

/// A column that images keep, as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptColumn {
    /// Its attribute number.
    pub(crate) number: i16,
    /// Its name.
    pub(crate) name: String,
    /// Its type's OID.
    pub(crate) type_oid: u32,
    /// The type's modifier.
    pub(crate) modifier: i32,
    /// If the type is an enum, the labels that it has.
    pub(crate) labels: Option<Arc<BTreeSet<String>>>,
}

/// The replica identity as the catalogue has it for the table itself, which is what its Relation message repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Announced {
    /// Columns are flagged.
    Columns {
        /// These.
        key: Vec<String>,
        /// And perhaps these, which the identity's index has by INCLUDE: the server flags them and leaves them out of old rows.
        included: Vec<String>,
    },
    /// `FULL`.
    Full,
}

/// A table whose row changes are delivered.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    /// `schema.name`.
    pub(crate) title: String,
    /// Its kept columns, ascending.
    pub(crate) columns: Vec<KeptColumn>,
    /// What an old tuple tells.
    pub(crate) identity: Identity,
    /// What its Relation message should say.
    pub(crate) announced: Announced,
    /// Whether its rows are those of its partitions.
    pub(crate) partitioned: bool,
    /// The views that use it, each with the attributes it needs.
    pub(crate) users: Vec<(usize, Vec<i16>)>,
}

/// Why a row change cannot be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// The message makes no sense: the stream is lost.
    Unreadable,
    /// The table is not what the plans of these views say.
    Changed {
        /// The views.
        views: Vec<usize>,
        /// What is different.
        problem: String,
    },
}

/// Where a table's kept cells are in the tuples that follow its last Relation message.
#[derive(Debug, Default)]
struct Layout {
    /// For each kept column where it is.
    places: Vec<Place>,
    /// Cells of a tuple.
    width: usize,
    /// Whether old tuples are keys.
    keyed: bool,
    /// Views that cannot read these rows, with the reason.
    wrong: Vec<(usize, String)>,
}

/// Where a kept column is.
#[derive(Debug)]
struct Place {
    /// In the tuples.
    cell: Option<usize>,
    /// Whether an old tuple tells it.
    told: bool,
    /// The labels that it may have.
    labels: Option<Arc<BTreeSet<String>>>,
}

/// Turns tuples into images.
#[derive(Debug, Default)]
pub(crate) struct Images {
    kept: BTreeMap<u32, Kept>,
    layouts: BTreeMap<u32, Layout>,
    /// The views that skip commits before a point.
    loaded: BTreeMap<usize, Lsn>,
    /// The partitioned table whose shape was the last message: that of the changed partition follows.
    root: Option<u32>,
    cells: Cells,
}

impl Images {
    /// Delivers the changes of `kept`; the views `loaded` were read at these points.
    pub(crate) fn new(kept: BTreeMap<u32, Kept>, loaded: BTreeMap<usize, Lsn>) -> Self {
        Self { kept, loaded, ..Self::default() }
    }

    /// Whether changes of this table are delivered.
    pub(crate) fn keep(&self, relation: u32) -> bool {
        self.kept.contains_key(&relation)
    }

    /// The views that use this table.
    pub(crate) fn users(&self, relation: u32) -> impl Iterator<Item = usize> {
        self.kept.get(&relation).into_iter().flat_map(|kept| kept.users.iter().map(|(view, _)| *view))
    }

    /// Takes in a table's shape.
    pub(crate) fn shape(&mut self, shape: &Shape) {
        let root = self.root.take();
        if let Some(kept) = self.kept.get(&shape.relation) {
            self.root = kept.partitioned.then_some(shape.relation);
            self.layouts.insert(shape.relation, Layout::of(kept, shape));
            return;
        }
        let Some((kept, layout)) = root.and_then(|root| Some((self.kept.get(&root)?, self.layouts.get_mut(&root)?))) else { return };
        // Old tuples of this partition would have NULLs where the plan expects values.
        if kept.identity == Identity::Full && shape.identity != b'f' {
            let problem = format!("a partition of {} lacks REPLICA IDENTITY FULL", kept.title);
            layout.wrong.extend(kept.users.iter().map(|(view, _)| (*view, problem.clone())));
        }
    }

    /// Adds a row change of the transaction that commits at `commit`. After an error `batch` must not be used any more.
    pub(crate) fn row(&mut self, row: RowChange<'_>, commit: Lsn, batch: &mut ChangeBatch) -> Result<(), Wrong> {
        let Some(layout) = self.layouts.get(&row.relation) else { return Err(Wrong::Unreadable) };
        if !layout.wrong.is_empty() {
            layout.check(commit, &self.loaded)?;
        }
        let tuples = row.read(&mut self.cells).ok_or(Wrong::Unreadable)?;
        let (old, new) = (&self.cells.old[..], &self.cells.new[..]);
        let (has_old, has_new) = match tuples {
            Tuples::Insert | Tuples::Update => (false, true),
            Tuples::UpdateWithOld => (true, true),
            Tuples::Delete => (true, false),
        };
        if (has_old && old.len() != layout.width) || (has_new && new.len() != layout.width) {
            return Err(Wrong::Unreadable);
        }
        // What is wrong with a cell is noticed while it is written; then the batch is lost with the stream.
        let mut write_old = Writer { layout, bytes: row.bytes(), readable: true, null_key: false, unlabelled: None };
        let mut write_new = write_old.clone();
        match tuples {
            Tuples::Insert => batch.insert(row.relation, |image| write_new.tell_new(image, new, &[])),
            Tuples::Update => batch.update(row.relation, None::<fn(&mut ImageWriter<'_>)>, |image| write_new.tell_new(image, new, &[])),
            Tuples::UpdateWithOld => {
                batch.update(row.relation, Some(|image: &mut ImageWriter<'_>| write_old.tell_old(image, old)), |image| {
                    write_new.tell_new(image, new, old)
                });
            }
            Tuples::Delete => batch.delete(row.relation, |image| write_old.tell_old(image, old)),
        }
        if !write_old.readable || !write_new.readable {
            return Err(Wrong::Unreadable);
        }
        if let Some(column) = write_old.unlabelled.or(write_new.unlabelled) {
            self.label(row.relation, column, commit)?;
        }
        if write_old.null_key { self.wrong_key(row.relation, commit) } else { Ok(()) }
    }

    /// A cell of the kept column `column` has a label that its type did not have.
    fn label(&self, relation: u32, column: usize, commit: Lsn) -> Result<(), Wrong> {
        let Some(kept) = self.kept.get(&relation) else { return Err(Wrong::Unreadable) };
        let column = &kept.columns[column];
        let users = kept.users.iter().filter(|(_, needed)| needed.contains(&column.number));
        let problem = format!("column \"{}\" of {} has a label that is new", column.name, kept.title);
        concern(users.map(|(view, _)| (*view, problem.clone())), commit, &self.loaded)
    }

    /// Identities are NOT NULL; a NULL is a column outside of the identity that this row's table had.
    fn wrong_key(&self, relation: u32, commit: Lsn) -> Result<(), Wrong> {
        let Some(kept) = self.kept.get(&relation) else { return Err(Wrong::Unreadable) };
        let problem = format!("an old row of {}, or of a partition of it, comes with another replica identity", kept.title);
        concern(self.users(relation).map(|view| (view, problem.clone())), commit, &self.loaded)
    }
}

impl Layout {
    fn of(kept: &Kept, shape: &Shape) -> Self {
        let mut layout = Self { width: shape.columns.len(), keyed: kept.identity != Identity::Full, ..Self::default() };
        for column in &kept.columns {
            let place = shape.columns.iter().position(|other| other.name == column.name);
            let problem = match place.map(|place| &shape.columns[place]) {
                None => Some(format!("column \"{}\" of {} is missing in the change log", column.name, kept.title)),
                Some(other) if (other.type_oid, other.modifier) != (column.type_oid, column.modifier) => {
                    Some(format!("column \"{}\" of {} has another type", column.name, kept.title))
                }
                Some(_) => None,
            };
            if let Some(problem) = problem {
                let users = kept.users.iter().filter(|(_, needed)| needed.contains(&column.number));
                layout.wrong.extend(users.map(|(view, _)| (*view, problem.clone())));
            }
            let told = match &kept.identity {
                Identity::Key(key) | Identity::Document(key) => key.contains(&column.number),
                Identity::Full => true,
            };
            layout.places.push(Place { cell: place, told, labels: column.labels.clone() });
        }
        if !kept.announced.is(shape) {
            let problem = format!("the replica identity of {} is another one", kept.title);
            layout.wrong.extend(kept.users.iter().map(|(view, _)| (*view, problem.clone())));
        }
        layout
    }

    /// Whether a view is concerned that does not skip this commit.
    fn check(&self, commit: Lsn, loaded: &BTreeMap<usize, Lsn>) -> Result<(), Wrong> {
        concern(self.wrong.iter().cloned(), commit, loaded)
    }
}

/// What is `wrong` for a view that does not skip this commit is an error.
fn concern(wrong: impl Iterator<Item = (usize, String)>, commit: Lsn, loaded: &BTreeMap<usize, Lsn>) -> Result<(), Wrong> {
    let concerned = |view: &usize| loaded.get(view).is_none_or(|point| commit >= *point);
    let wrong: Vec<(usize, String)> = wrong.filter(|(view, _)| concerned(view)).collect();
    let Some((_, problem)) = wrong.first() else { return Ok(()) };
    let mut views: Vec<usize> = wrong.iter().map(|(view, _)| *view).collect();
    views.sort_unstable();
    views.dedup();
    Err(Wrong::Changed { views, problem: problem.clone() })
}

impl Announced {
    fn is(&self, shape: &Shape) -> bool {
        match self {
            Self::Full => shape.identity == b'f',
            Self::Columns { key, included } => {
                let flagged = || shape.columns.iter().filter(|column| column.key).map(|column| &column.name);
                shape.identity != b'f'
                    && flagged().filter(|name| key.contains(name)).count() == key.len()
                    && flagged().all(|name| key.contains(name) || included.contains(name))
            }
        }
    }
}

/// Writes the images of one row.
#[derive(Clone)]
struct Writer<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
    readable: bool,
    null_key: bool,
    /// A kept column with a label that its type did not have.
    unlabelled: Option<usize>,
}

impl Writer<'_> {
    fn tell_old(&mut self, image: &mut ImageWriter<'_>, cells: &[Cell]) {
        for (column, place) in self.layout.places.iter().enumerate() {
            match place.cell.filter(|_| place.told) {
                Some(at) => {
                    self.null_key |= self.layout.keyed && cells[at] == Cell::Null;
                    self.cell(image, cells[at], column, place);
                }
                None => image.absent(),
            }
        }
    }

    fn tell_new(&mut self, image: &mut ImageWriter<'_>, cells: &[Cell], old: &[Cell]) {
        for (column, place) in self.layout.places.iter().enumerate() {
            let Some(at) = place.cell else {
                image.absent();
                continue;
            };
            let cell = match cells[at] {
                Cell::Unchanged if place.told => old.get(at).copied().unwrap_or(Cell::Unchanged),
                cell => cell,
            };
            self.cell(image, cell, column, place);
        }
    }

    fn cell(&mut self, image: &mut ImageWriter<'_>, cell: Cell, column: usize, place: &Place) {
        match cell {
            Cell::Null => image.null(),
            Cell::Unchanged => image.absent(),
            Cell::Text { start, end } if end - start > MOST_CELL => image.too_long(),
            Cell::Text { start, end } => match std::str::from_utf8(&self.bytes[start..end]) {
                Ok(text) => {
                    if place.labels.as_ref().is_some_and(|labels| !labels.contains(text)) {
                        self.unlabelled = Some(column);
                    }
                    image.text(text);
                }
                Err(_) => {
                    self.readable = false;
                    image.null();
                }
            },
        }
    }
}
