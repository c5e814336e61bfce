//! From a chunk's row changes to each table's difference.
//!
//! Per identity key: the row before the chunk and the row after it. The stream's order counts (a key may pass through several
//! rows, and rows may swap keys), so changes are played on an overlay over what is stored. A value that is stored out of line and did not
//! change is absent from the new image and copied from the row *under the old key*. Where the stream's old images say all about old rows,
//! nothing is stored, and a change is minus the old and plus the new row.

use std::collections::BTreeMap;

use crate::{
    data::{Cells, Change, Image, Row},
    view::{State, ViewError, arrangement::Arrangement, delta::Delta, operator::broken},
};

/// What is kept of a table's rows.
#[derive(Debug)]
pub(super) enum Store {
    /// Nothing: old images are whole, or their identity is all there is.
    Nothing,
    /// As a bag, so that TRUNCATE knows them; old images are whole.
    Bag(Arrangement),
    /// By identity.
    Key {
        /// Where.
        rows: Arrangement,
        /// Whether an old row that is not there is no error: rows that the view's condition drops are left out, and documents without
        /// rows.
        admitted: bool,
    },
}

impl Store {
    /// Where the rows are.
    pub(super) fn rows(&self) -> Option<&Arrangement> {
        match self {
            Self::Nothing => None,
            Self::Bag(rows) | Self::Key { rows, .. } => Some(rows),
        }
    }
}

/// The difference that `changes` of one table make. `places` says where in an image the cells of the table's rows are.
pub(super) fn net(title: &str, store: &Store, changes: &[Change<'_>], places: &[usize], state: &dyn State) -> Result<Delta, ViewError> {
    match store {
        Store::Nothing | Store::Bag(_) => images(title, changes, places),
        Store::Key { rows, admitted } => {
            let mut net = Net { title, rows, admitted: *admitted, slots: BTreeMap::new() };
            // Read twice, because what is read takes several times the memory of the images.
            changes.iter().try_for_each(|change| net.note(change, places))?;
            for (key, slot) in &mut net.slots {
                slot.before = stored(title, rows, key, state)?;
            }
            for change in changes {
                let step = net.read(change, places)?;
                net.play(step)?;
            }
            Ok(net.finish())
        }
    }
}

/// The cells of an image that are those of the table's rows, absent ones included.
fn cells<'a>(image: Image<'a>, places: &[usize]) -> Cells<'a> {
    let all: Vec<&[u8]> = image.encoded().collect();
    let mut cells = Cells::default();
    places.iter().for_each(|place| cells.push(all[*place]));
    cells
}

/// The row of an image, absent cells from `old`.
fn whole(title: &str, new: &Cells<'_>, old: Option<&Cells<'_>>) -> Result<Row, ViewError> {
    let mut filled = Vec::with_capacity(new.len());
    for (column, cell) in new.iter().enumerate() {
        let cell = match old {
            _ if !Image::is_absent(cell) => cell,
            Some(old) if !Image::is_absent(old.encoded(column)) => old.encoded(column),
            Some(_) | None => return broken(format!("a change of table {title} lacks a value")),
        };
        if Image::is_too_long(cell) {
            return Err(ViewError::Budget(format!("a row of table {title} has a value that is too long to be followed")));
        }
        filled.push(cell);
    }
    Ok(Row::from_encoded(filled))
}

/// Minus old images, plus new ones.
fn images(title: &str, changes: &[Change<'_>], places: &[usize]) -> Result<Delta, ViewError> {
    let mut rows = Vec::with_capacity(changes.len());
    for change in changes {
        match *change {
            Change::Insert { new } => rows.push((whole(title, &cells(new, places), None)?, 1)),
            // The identity did not change and is all there is: every value of these rows is part of it.
            Change::Update { old: None, .. } => {}
            Change::Update { old: Some(old), new } => {
                let old = cells(old, places);
                rows.push((whole(title, &cells(new, places), Some(&old))?, 1));
                rows.push((whole(title, &old, None)?, -1));
            }
            Change::Delete { old } => rows.push((whole(title, &cells(old, places), None)?, -1)),
            Change::Truncate => return broken(format!("the emptying of table {title} is in the middle of a chunk")),
        }
    }
    Ok(Delta::consolidate(rows))
}

/// The row stored under a key.
fn stored(title: &str, rows: &Arrangement, key: &Row, state: &dyn State) -> Result<Option<Row>, ViewError> {
    let mut found = rows.rows(state, key.as_bytes())?;
    match (found.pop(), found.is_empty()) {
        (None, _) => Ok(None),
        (Some((row, 1)), true) => Ok(Some(row)),
        (Some(_), _) => broken(format!("two rows of table {title} are stored under one key")),
    }
}

/// One key.
#[derive(Default)]
struct Slot {
    before: Option<Row>,
    /// What the chunk has made of it so far, if anything.
    after: Option<Option<Row>>,
}

impl Slot {
    fn take(&mut self) -> Option<Row> {
        self.after.replace(None).unwrap_or_else(|| self.before.clone())
    }

    fn is_vacant(&self) -> bool {
        self.after.as_ref().unwrap_or(&self.before).is_none()
    }
}

/// One change: the row under `from` goes, the row `new` comes under `to`.
struct Move<'a> {
    from: Option<Row>,
    new: Option<(Row, Cells<'a>)>,
}

struct Net<'a> {
    title: &'a str,
    rows: &'a Arrangement,
    admitted: bool,
    slots: BTreeMap<Row, Slot>,
}

impl Net<'_> {
    /// Makes a slot for each key of a change.
    fn note(&mut self, change: &Change<'_>, places: &[usize]) -> Result<(), ViewError> {
        let Move { from, new } = self.read(change, places)?;
        for key in from.into_iter().chain(new.map(|(key, _)| key)) {
            self.slots.entry(key).or_default();
        }
        Ok(())
    }

    fn read<'c>(&self, change: &Change<'c>, places: &[usize]) -> Result<Move<'c>, ViewError> {
        Ok(match *change {
            Change::Insert { new } => {
                let new = cells(new, places);
                Move { from: None, new: Some((self.key(&new, None)?, new)) }
            }
            Change::Update { old, new } => {
                let (old, new) = (old.map(|old| cells(old, places)), cells(new, places));
                let to = self.key(&new, old.as_ref())?;
                let from = old.as_ref().map_or_else(|| Ok(to.clone()), |old| self.key(old, None))?;
                Move { from: Some(from), new: Some((to, new)) }
            }
            Change::Delete { old } => Move { from: Some(self.key(&cells(old, places), None)?), new: None },
            Change::Truncate => return broken(format!("the emptying of table {} is in the middle of a chunk", self.title)),
        })
    }

    /// The key of an image. A key's value may be absent from the new image if it did not change; then the old one has it.
    fn key(&self, cells: &Cells<'_>, old: Option<&Cells<'_>>) -> Result<Row, ViewError> {
        let mut key = Vec::with_capacity(self.rows.key().len());
        for &column in self.rows.key() {
            key.push(match old {
                _ if !Image::is_absent(cells.encoded(column)) => cells.encoded(column),
                Some(old) if !Image::is_absent(old.encoded(column)) => old.encoded(column),
                Some(_) | None => return broken(format!("a change of table {} lacks its key", self.title)),
            });
        }
        Ok(Row::from_encoded(key))
    }

    fn play(&mut self, step: Move<'_>) -> Result<(), ViewError> {
        let slot = |slots: &mut BTreeMap<Row, Slot>, key: &Row, with: &mut dyn FnMut(&mut Slot)| {
            with(slots.get_mut(key).expect("every key was noted before"));
        };
        let mut old = None;
        if let Some(from) = &step.from {
            slot(&mut self.slots, from, &mut |slot| old = slot.take());
            if old.is_none() && !self.admitted {
                return broken(format!("a row of table {} was changed or deleted that is not stored", self.title));
            }
        }
        let Some((to, new)) = step.new else { return Ok(()) };
        let old = old.as_ref().map(|old| Cells::of(old.as_bytes()));
        let row = self.complete(&to, &new, old.as_ref())?;
        let (mut row, mut vacant) = (Some(row), true);
        slot(&mut self.slots, &to, &mut |slot| {
            vacant = slot.is_vacant();
            slot.after = Some(row.take());
        });
        if vacant { Ok(()) } else { broken(format!("a row was added to table {} under a key that is taken", self.title)) }
    }

    /// The new row: its key, what the image tells, and the rest from the old row.
    fn complete(&self, key: &Row, new: &Cells<'_>, old: Option<&Cells<'_>>) -> Result<Row, ViewError> {
        let key = Cells::of(key.as_bytes());
        let mut cells = Cells::default();
        for (column, cell) in new.iter().enumerate() {
            let place = self.rows.key().iter().position(|&part| part == column);
            cells.push(place.map_or(cell, |place| key.encoded(place)));
        }
        whole(self.title, &cells, old)
    }

    fn finish(self) -> Delta {
        let mut rows = Vec::new();
        for slot in self.slots.into_values() {
            let Some(after) = slot.after.filter(|after| *after != slot.before) else { continue };
            rows.extend(slot.before.map(|row| (row, -1)));
            rows.extend(after.map(|row| (row, 1)));
        }
        Delta::consolidate(rows)
    }
}
