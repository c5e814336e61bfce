//! A dataflow that does as its rows say, on real state: the names of a table's rows, each once.

use std::{collections::BTreeMap, io, ops::ControlFlow, path::Path};

use crate::{
    data::{self, Cells, ChangeBatch, Extent, ExtentBuilder, Lsn, Row},
    query::RemoteExpr,
    store::Maintain,
    target::Op,
    view::{Flip, Remote, Sink, Space, State, ViewError},
};

/// The only table: a key and a name.
pub(super) const TABLE: u32 = 16_400;
/// A name that fails the view.
pub(super) const FAILS: &str = "fails";
/// A name that is told twice, which contradicts what is stored.
pub(super) const TWICE: &str = "twice";

const ROWS: Space = Space(0);
const NAMES: Space = Space(1);

/// A view of the table's names. A name that is a number is there until that time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Names {
    /// Whether a row may fail it.
    pub(super) fragile: bool,
    /// Whether the emptied table is told as [`Flip::Clear`].
    pub(super) clears: bool,
    /// Whether what it loads is not what it should be.
    pub(super) forgetful: bool,
}

/// The source of a view that asks it nothing.
pub(super) struct Silent;

impl Remote for Silent {
    fn evaluate(&mut self, _: &RemoteExpr, _: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        Err(ViewError::Broken("nobody asks".to_owned()))
    }
}

fn ends(name: &Row) -> Option<i64> {
    Cells::of(name.as_bytes()).text(0).and_then(|text| text.parse().ok())
}

fn all(state: &dyn State, space: Space) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut entries = Vec::new();
    state.scan(space, b"", &mut |key, value| {
        entries.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(entries)
}

impl Names {
    fn add(self, state: &mut dyn State, name: &Row, weight: i64, now: i64, sink: Sink<'_>) -> Result<(), ViewError> {
        let text = Cells::of(name.as_bytes()).text(0).map(|text| text.into_owned());
        if self.fragile && text.as_deref() == Some(FAILS) {
            return Err(ViewError::Budget("it fails".to_owned()));
        }
        let sum = state.add(NAMES, name.as_bytes(), weight)?;
        let op = match (sum - weight, sum) {
            (0, 1..) => Op::Insert,
            (1.., 0) => Op::Delete,
            _ => return Ok(()),
        };
        if ends(name).is_none_or(|end| end > now) {
            sink(Flip::Row(op, name.clone()))?;
            if self.fragile && text.as_deref() == Some(TWICE) {
                sink(Flip::Row(op, name.clone()))?;
            }
        }
        Ok(())
    }

    fn write(self, state: &mut dyn State, image: &[u8], now: i64, sink: Sink<'_>) -> Result<(), ViewError> {
        let cells = Cells::of(image);
        let (key, name) = (cells.row(&[0]), cells.row(&[1]));
        self.erase(state, &key, now, sink)?;
        state.put(ROWS, key.as_bytes(), Some(name.as_bytes()))?;
        self.add(state, &name, 1, now, sink)
    }

    fn erase(self, state: &mut dyn State, key: &Row, now: i64, sink: Sink<'_>) -> Result<(), ViewError> {
        let Some(before) = state.get(ROWS, key.as_bytes())? else { return Ok(()) };
        state.put(ROWS, key.as_bytes(), None)?;
        self.add(state, &Row::from_bytes(before)?, -1, now, sink)
    }
}

impl Maintain for Names {
    fn apply<'c>(
        &mut self,
        changes: &mut dyn Iterator<Item = (u32, data::Change<'c>)>,
        columns: &BTreeMap<u32, Vec<usize>>,
        now: i64,
        _: &Path,
        state: &mut dyn State,
        _: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        for (table, change) in changes {
            assert_eq!((table, &columns[&table]), (TABLE, &vec![0, 1]));
            match change {
                data::Change::Insert { new } | data::Change::Update { new, .. } => self.write(state, new.as_bytes(), now, sink)?,
                data::Change::Delete { old } => self.erase(state, &Row::from_encoded(old.encoded().take(1)), now, sink)?,
                data::Change::Truncate if self.clears => {
                    state.clear(ROWS)?;
                    state.clear(NAMES)?;
                    sink(Flip::Clear)?;
                }
                data::Change::Truncate => {
                    for (key, _) in all(state, ROWS)? {
                        self.erase(state, &Row::from_bytes(key)?, now, sink)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn advance(
        &mut self,
        from: i64,
        to: i64,
        _: &Path,
        state: &mut dyn State,
        _: &mut dyn Remote,
        sink: Sink<'_>,
    ) -> Result<(), ViewError> {
        for (name, _) in all(state, NAMES)? {
            let name = Row::from_bytes(name)?;
            if ends(&name).is_some_and(|end| from < end && end <= to) {
                sink(Flip::Row(Op::Delete, name))?;
            }
        }
        Ok(())
    }

    fn next_due(&self, now: i64, state: &dyn State) -> Result<Option<i64>, ViewError> {
        let names = all(state, NAMES)?.into_iter().map(|(name, _)| Row::from_bytes(name)).collect::<io::Result<Vec<_>>>()?;
        Ok(names.iter().filter_map(ends).filter(|end| *end > now).min())
    }

    /// Few, so that a commit is more than one chunk.
    fn chunk_changes(&self) -> usize {
        3
    }

    fn has_clock(&self) -> bool {
        true
    }

    fn load(
        &mut self,
        tables: BTreeMap<u32, Extent>,
        now: i64,
        spool: &Path,
        state: &mut dyn State,
        _: &mut dyn Remote,
    ) -> Result<Extent, ViewError> {
        for row in tables.into_values().flatten() {
            self.write(state, row?.as_bytes(), now, &mut |_| Ok(()))?;
        }
        let mut names = ExtentBuilder::new(spool);
        for (name, _) in all(state, NAMES)?.into_iter().skip(usize::from(self.forgetful)) {
            let name = Row::from_bytes(name)?;
            if ends(&name).is_none_or(|end| end > now) {
                names.push(name)?;
            }
        }
        Ok(names.finish()?)
    }

    fn verify(&self, now: i64, spool: &Path, state: &dyn State, _: &mut dyn Remote) -> Result<Option<Extent>, ViewError> {
        let mut names = ExtentBuilder::new(spool);
        for (_, name) in all(state, ROWS)? {
            let name = Row::from_bytes(name)?;
            if ends(&name).is_none_or(|end| end > now) {
                names.push(name)?;
            }
        }
        Ok(Some(names.finish()?))
    }
}

/// Where the table's columns are.
pub(super) fn columns() -> BTreeMap<u32, Vec<usize>> {
    BTreeMap::from([(TABLE, vec![0, 1])])
}

/// Adds row changes, written `3=name`, `3=` for NULL, `3` for its deletion, `*` for all rows' deletion.
pub(super) fn change(batch: &mut ChangeBatch, changes: &str) {
    for change in changes.split_whitespace() {
        match change.split_once('=') {
            Some((key, name)) => batch.insert(TABLE, |image| {
                image.text(key);
                if name.is_empty() { image.null() } else { image.text(name) }
            }),
            None if change == "*" => batch.truncate(TABLE),
            None => batch.delete(TABLE, |image| {
                image.text(change);
                image.absent();
            }),
        }
    }
}

/// One transaction whose commit record is at `start`.
pub(super) fn transaction(start: u64, changes: &str) -> ChangeBatch {
    let mut batch = ChangeBatch::default();
    batch.begin(Lsn(start));
    change(&mut batch, changes);
    batch.commit(Lsn(start), Lsn(start + 1));
    batch
}

/// The beginning or the middle of one.
pub(super) fn piece(start: u64, changes: &str) -> ChangeBatch {
    let mut batch = ChangeBatch::default();
    batch.begin(Lsn(start));
    change(&mut batch, changes);
    batch
}
