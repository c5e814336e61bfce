//! A node's rows in a space, found by some of their columns.
//!
//! An entry is the row's key cells and then its other cells in column order. Where a key may have many rows, and a row may be there more
//! than once, all of it is the key in the state and the number is the row's weight. Where the key is the identity of a table's rows, there
//! is one row under a key and once: then the other cells are the value, and a row that changes is written in place. Cells are
//! self-delimiting, so the entries under a key are exactly those that start with its cells, and both kinds are in the same order.

use std::ops::ControlFlow;

use crate::{
    data::{Cells, Row},
    view::{
        Space, State, ViewError,
        delta::Delta,
        operator::{BATCH_ROWS, Emit, broken, walk},
        sort::Sorted,
    },
};

/// What happens to rows with a NULL in the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Nulls {
    /// They are kept: NULL is a key like any other, or they must be found by a scan.
    Keep,
    /// They need no entry: whoever looks up asks with `=`, which NULL never satisfies, and so asks for no NULL. They may have one all
    /// the same, if somebody else needs them in the same place.
    Skip,
}

/// How entries are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Any number of rows under a key, with their weights.
    Counted,
    /// One row under a key. Whoever computes the difference has seen the rows that go.
    Keyed,
}

/// Takes an entry and its weight.
pub(super) type EachEntry<'a> = &'a mut dyn FnMut(&[u8], i64) -> Result<ControlFlow<()>, ViewError>;

/// Where a node's rows are, and how they are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrangement {
    space: Space,
    /// How many columns the key has.
    key: usize,
    /// The row's columns in the order of the entry's cells: first the key.
    columns: Vec<usize>,
    /// For each of the row's columns its place in the entry.
    places: Vec<usize>,
    nulls: Nulls,
    shape: Shape,
}

impl Arrangement {
    /// Rows of `width` columns by `key`. A column that occurs in `key` twice is there once.
    pub(super) fn new(space: Space, width: usize, key: &[usize], nulls: Nulls) -> Self {
        let mut columns: Vec<usize> = Vec::with_capacity(width);
        for column in key {
            if !columns.contains(column) {
                columns.push(*column);
            }
        }
        let key = columns.len();
        columns.extend((0..width).filter(|column| !columns[..key].contains(column)).collect::<Vec<_>>());
        let mut places = vec![0; width];
        for (place, column) in columns.iter().enumerate() {
            places[*column] = place;
        }
        Self { space, key, columns, places, nulls, shape: Shape::Counted }
    }

    /// The same in another shape.
    pub(super) fn shaped(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    /// Whether another one of the same node would have the same entries, but for those of rows with a NULL in the key.
    pub(super) fn serves(&self, other: &Self) -> bool {
        self.columns == other.columns && self.key == other.key
    }

    /// Keeps rows with a NULL in the key from now on, if somebody needs them.
    pub(super) fn keep(&mut self, nulls: Nulls) {
        self.nulls = self.nulls.min(nulls);
    }

    /// Where it is.
    pub(super) fn space(&self) -> Space {
        self.space
    }

    /// Whether there is one row under each key.
    #[cfg(test)]
    pub(super) fn is_keyed(&self) -> bool {
        self.shape == Shape::Keyed
    }

    /// The key's columns.
    pub(super) fn key(&self) -> &[usize] {
        &self.columns[..self.key]
    }

    /// For each column of the row, its place among an entry's cells.
    pub(super) fn places(&self) -> &[usize] {
        &self.places
    }

    /// The entry's key of a row; `None` if it has none ([`Nulls::Skip`]).
    pub(super) fn entry(&self, row: &Row) -> Option<Row> {
        let cells = Cells::of(row.as_bytes());
        self.admits(&cells).then(|| cells.row(&self.columns))
    }

    /// Whether a row has an entry.
    pub(super) fn admits(&self, cells: &Cells<'_>) -> bool {
        self.nulls == Nulls::Keep || !self.key().iter().any(|column| cells.is_null(*column))
    }

    /// The cells under which a row is found.
    pub(super) fn prefix(&self, row: &Row) -> Row {
        Cells::of(row.as_bytes()).row(self.key())
    }

    /// The row of an entry's key.
    pub(super) fn row(&self, entry: &[u8]) -> Row {
        Cells::of(entry).row(&self.places)
    }

    /// The rows under the key cells `prefix` (encoded, one after the other; fewer than the whole key will do), with their weights, before
    /// the chunk, in entry order.
    pub(super) fn rows(&self, state: &dyn State, prefix: &[u8]) -> Result<Vec<(Row, i64)>, ViewError> {
        let mut rows = Vec::new();
        self.entries(state, prefix, &mut |entry, weight| {
            rows.push((self.row(entry), weight));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    /// As [`Arrangement::rows`], after the chunk whose difference is `change`.
    pub(super) fn rows_after(&self, state: &dyn State, change: &Arranged, prefix: &[u8]) -> Result<Vec<(Row, i64)>, ViewError> {
        let mut rows = Vec::new();
        self.entries_after(state, change, prefix, &mut |entry, weight| {
            rows.push((self.row(entry), weight));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    /// Calls `each` with the entries under `prefix` before the chunk.
    pub(super) fn entries(&self, state: &dyn State, prefix: &[u8], each: EachEntry<'_>) -> Result<(), ViewError> {
        let mut entry = Vec::new();
        let mut whole = |key: &[u8], rest: &[u8]| {
            entry.clear();
            entry.extend_from_slice(key);
            entry.extend_from_slice(rest);
            each(&entry, 1)
        };
        match self.shape {
            Shape::Counted => walk(|callback| state.scan(self.space, prefix, callback), &mut |key, value| each(key, state.weight(value))),
            Shape::Keyed if Cells::of(prefix).len() == self.key => match state.get(self.space, prefix)? {
                Some(rest) => whole(prefix, &rest).map(|_| ()),
                None => Ok(()),
            },
            Shape::Keyed => walk(|callback| state.scan(self.space, prefix, callback), &mut whole),
        }
    }

    /// Calls `each` with the entries under `prefix` after the chunk, netted, in entry order.
    pub(super) fn entries_after(&self, state: &dyn State, change: &Arranged, prefix: &[u8], each: EachEntry<'_>) -> Result<(), ViewError> {
        let mut changes = change.under(prefix).iter().peekable();
        let mut stopped = false;
        self.entries(state, prefix, &mut |key, before| {
            while let Some((new, weight)) = changes.next_if(|(new, _)| new.as_bytes() < key) {
                if each(new.as_bytes(), *weight)?.is_break() {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            let change = changes.next_if(|(new, _)| new.as_bytes() == key).map_or(0, |(_, weight)| *weight);
            let weight = before + change;
            let flow = if weight == 0 { ControlFlow::Continue(()) } else { each(key, weight)? };
            stopped = flow.is_break();
            Ok(flow)
        })?;
        while let Some((new, weight)) = changes.next().filter(|_| !stopped) {
            stopped = each(new.as_bytes(), *weight)?.is_break();
        }
        Ok(())
    }

    /// How often `row` is there before the chunk.
    pub(super) fn weight(&self, state: &dyn State, row: &Row) -> Result<i64, ViewError> {
        let Some(entry) = self.entry(row) else { return Ok(0) };
        let (key, rest) = self.split(entry.as_bytes());
        Ok(match self.shape {
            Shape::Counted => state.get(self.space, entry.as_bytes())?.map_or(0, |value| state.weight(&value)),
            Shape::Keyed => i64::from(state.get(self.space, key)?.is_some_and(|stored| stored == rest)),
        })
    }

    /// Streams everything in it, in batches.
    pub(super) fn scan(&self, state: &dyn State, emit: Emit<'_>) -> Result<(), ViewError> {
        let mut rows = Vec::with_capacity(BATCH_ROWS);
        self.entries(state, &[], &mut |entry, weight| {
            rows.push((self.row(entry), weight));
            if rows.len() == BATCH_ROWS {
                emit(Delta::consolidate(std::mem::take(&mut rows)))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if rows.is_empty() { Ok(()) } else { emit(Delta::consolidate(rows)) }
    }

    /// A difference of the node, by this arrangement's key.
    pub(super) fn arrange(&self, delta: &Delta) -> Arranged {
        let mut entries: Vec<_> = delta.iter().filter_map(|(row, weight)| Some((self.entry(row)?, weight))).collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Arranged { entries }
    }

    /// Phase two.
    pub(super) fn fold(&self, delta: &Delta, state: &mut dyn State) -> Result<(), ViewError> {
        let arranged = self.arrange(delta);
        match self.shape {
            Shape::Counted => arranged.entries.iter().try_for_each(|(entry, weight)| {
                let sum = state.add(self.space, entry.as_bytes(), *weight)?;
                if sum < 0 { broken("a row was removed that is not there") } else { Ok(()) }
            }),
            Shape::Keyed => self.replace(&arranged.entries, state),
        }
    }

    /// For each key the row that comes, or that none does.
    fn replace(&self, entries: &[(Row, i64)], state: &mut dyn State) -> Result<(), ViewError> {
        let same = |a: &(Row, i64), b: &(Row, i64)| self.split(a.0.as_bytes()).0 == self.split(b.0.as_bytes()).0;
        for changed in entries.chunk_by(same) {
            let new = match changed {
                [(_, -1)] => None,
                [(new, 1)] | [(new, 1), (_, -1)] | [(_, -1), (new, 1)] => Some(self.split(new.as_bytes()).1),
                _ => return broken("there would be two rows under one key"),
            };
            state.put(self.space, self.split(changed[0].0.as_bytes()).0, new)?;
        }
        Ok(())
    }

    /// Stores complete entries, in order, in an empty space.
    pub(super) fn fill(&self, entries: &mut Sorted, state: &mut dyn State) -> Result<(), ViewError> {
        let contradiction = || broken("the tables to be loaded contradict themselves, or the state is not empty");
        let mut last: Option<Vec<u8>> = None;
        while let Some((entry, weight)) = entries.next()? {
            match self.shape {
                Shape::Counted if weight < 0 || state.add(self.space, entry.as_bytes(), weight)? != weight => return contradiction(),
                Shape::Counted => {}
                Shape::Keyed => {
                    let (key, rest) = self.split(entry.as_bytes());
                    if weight != 1 || last.as_deref() == Some(key) {
                        return contradiction();
                    }
                    state.put(self.space, key, Some(rest))?;
                    last = Some(key.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Whether exactly these complete entries are stored.
    pub(super) fn check(&self, entries: &mut Sorted, state: &dyn State) -> Result<(), ViewError> {
        let differs = || ViewError::Broken(format!("space {} is not what its rows make of it", self.space.0));
        self.entries(state, &[], &mut |key, stored| match entries.next()? {
            Some((entry, weight)) if entry.as_bytes() == key && weight == stored => Ok(ControlFlow::Continue(())),
            Some(_) | None => Err(differs()),
        })?;
        if entries.next()?.is_none() { Ok(()) } else { Err(differs()) }
    }

    /// An entry's key cells and its other cells.
    fn split<'e>(&self, entry: &'e [u8]) -> (&'e [u8], &'e [u8]) {
        entry.split_at(Cells::of(entry).iter().take(self.key).map(<[u8]>::len).sum())
    }
}

/// A difference by an arrangement's key.
#[derive(Debug, Clone, Default)]
pub(super) struct Arranged {
    entries: Vec<(Row, i64)>,
}

impl Arranged {
    /// What differs under the key cells `prefix`: entries' keys and weights, in order.
    pub(super) fn under(&self, prefix: &[u8]) -> &[(Row, i64)] {
        let start = self.entries.partition_point(|(entry, _)| entry.as_bytes() < prefix);
        let length = self.entries[start..].partition_point(|(entry, _)| entry.as_bytes().starts_with(prefix));
        &self.entries[start..][..length]
    }

    /// All of it, in the order of the arrangement.
    pub(super) fn entries(&self) -> &[(Row, i64)] {
        &self.entries
    }
}
