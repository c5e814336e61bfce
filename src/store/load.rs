//! A view's state from whole tables, trusted only if it computes what the database itself answers.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, Transaction};

use crate::{
    crash::{self, Moment},
    data::{Cells, Extent, ExtentBuilder, Row},
    store::{
        Failure, Fresh, LoadedState, Store, StoreError, ViewRecord,
        facts::{Rows, Set, reader, rows},
        failed,
        maintain::Maintain,
        state,
        state::ViewState,
        views::forget_state,
    },
    target::Op,
    view::{Remote, ViewError, diff},
};

/// Rows that are described when two results differ.
const SHOWN_ROWS: u64 = 3;

/// What a load gave.
#[derive(Debug)]
pub struct Loaded {
    /// The view's result, to become facts; with a state unless there is a doubt.
    pub fresh: Fresh,
    /// Why there is no state.
    pub doubt: Option<Doubt>,
}

/// Why a dataflow cannot be trusted with a view.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    /// It could not compute a result.
    #[error(transparent)]
    Failed(ViewError),
    /// Its result is not the database's own, or what is stored is not its result.
    #[error("the result is not what it should be: {missing} rows are missing, {extra} too many ({shapes})")]
    Differs {
        /// Rows that should be there.
        missing: u64,
        /// Rows that should not.
        extra: u64,
        /// What some of them look like, without their content.
        shapes: String,
    },
}

impl Store {
    /// Builds the state of `view` from whole tables and compares what it computes with `answer`, the database's own result in the
    /// same state, at the time `now`.
    ///
    /// The state is not used before its facts are stored: give [`Loaded::fresh`] to [`Store::replace`] or [`Store::apply`].
    #[expect(clippy::too_many_arguments, reason = "a view, its dataflow, and what the source read of both")]
    pub fn load(
        &mut self,
        view: ViewRecord,
        dataflow: &mut dyn Maintain,
        fingerprint: &str,
        tables: BTreeMap<u32, Extent>,
        answer: Extent,
        now: i64,
        remote: &mut dyn Remote,
    ) -> Result<Loaded, StoreError> {
        let spool = self.spool();
        // For itself, so that a load that is rolled back leaves nothing usable behind.
        self.drop_state(view.id)?;
        let mut doubt = None;
        let mut kept = ExtentBuilder::new(&spool);
        let mut answer = answer.into_iter();
        self.attempt(|tx| {
            forget_state(tx, view.id)?;
            state::create(tx, view.id)?;
            let mut state = ViewState::new(tx, view.id);
            let computed = match dataflow.load(tables, now, &spool, &mut state, remote) {
                Ok(computed) => computed,
                Err(ViewError::State(error)) => return Err(error.into()),
                Err(why @ (ViewError::Eval(_) | ViewError::Remote(_) | ViewError::Budget(_) | ViewError::Broken(_))) => {
                    doubt = Some(Doubt::Failed(why));
                    return Ok(None);
                }
            };
            doubt = compare(tx, &view, &mut answer, computed, &mut kept)?;
            crash::moment(Moment::Loading);
            Ok(doubt.is_none().then_some(()))
        })?;
        // What the comparison did not come to.
        answer.try_for_each(|row| kept.push(row?))?;
        let loaded = doubt.is_none().then(|| LoadedState { fingerprint: fingerprint.to_owned(), clock: now });
        Ok(Loaded { fresh: Fresh { view, answer: kept.finish()?, loaded }, doubt })
    }
}

/// Compares row by row, keeping the answer, and remembers which of its rows make no fact.
fn compare(
    tx: &Transaction<'_>,
    view: &ViewRecord,
    answer: &mut Extent,
    computed: Extent,
    kept: &mut ExtentBuilder,
) -> Result<Option<Doubt>, Failure> {
    let mut skips = Set::Skipped.of(tx, view.id);
    let answer = answer.map(|row| {
        let row = row?;
        if view.fact_type.admits(&row).is_err() {
            skips.insert(&row).map_err(io::Error::other)?;
        }
        kept.push(row.clone())?;
        Ok(row)
    });
    Ok(difference(answer, computed)?)
}

/// How `other` differs from `right`, if it does.
fn difference(right: impl Iterator<Item = io::Result<Row>>, other: impl Iterator<Item = io::Result<Row>>) -> io::Result<Option<Doubt>> {
    let (mut missing, mut extra) = (0, 0);
    let mut shapes = Vec::new();
    for change in diff(right, other) {
        let (op, row) = change?;
        if missing + extra < SHOWN_ROWS {
            shapes.push(format!("{}: {}", if op == Op::Insert { "missing" } else { "too many" }, shape(&row)));
        }
        match op {
            Op::Insert => missing += 1,
            Op::Delete => extra += 1,
        }
    }
    Ok((missing + extra > 0).then(|| Doubt::Differs { missing, extra, shapes: shapes.join("; ") }))
}

/// One committed state of a view, to be checked while the store goes on.
#[derive(Debug)]
pub struct Audit {
    view: ViewRecord,
    path: PathBuf,
    state: Connection,
    result: Connection,
}

impl Store {
    /// Takes hold of what is stored of `view` now.
    pub fn audit(&self, view: &ViewRecord) -> Result<Audit, StoreError> {
        let open = || -> rusqlite::Result<(ViewRecord, Connection, Connection)> {
            let (state, result) = (reader(&self.path)?, reader(&self.path)?);
            // A reader's transaction begins with its first read. Nothing is written between the two: that takes this store.
            let clock = "SELECT clock FROM view WHERE id = ?1";
            let clock = [&state, &result].map(|connection| connection.query_row(clock, [view.id.0], |row| row.get(0)));
            let [now, then] = clock;
            then?;
            Ok((ViewRecord { clock: now?, ..view.clone() }, state, result))
        };
        let (view, state, result) = open().map_err(|error| self.failed("read", error.into()))?;
        Ok(Audit { view, path: self.path.clone(), state, result })
    }
}

impl Audit {
    /// Whether the stored rows of the tables, everything that was computed from them, and the facts belong together. A view that keeps no
    /// rows cannot be told from a right one.
    pub fn run(self, dataflow: &dyn Maintain, spool: &Path, remote: &mut dyn Remote) -> Result<Option<Doubt>, StoreError> {
        let Self { view, path, state, result } = self;
        let now = view.clock.unwrap_or_default();
        let computed = match dataflow.verify(now, spool, &ViewState::new(&state, view.id), remote) {
            Ok(Some(computed)) => computed,
            Ok(None) => return Ok(None),
            Err(ViewError::State(error)) => return Err(failed("read", &path, error.into())),
            Err(why @ (ViewError::Eval(_) | ViewError::Remote(_) | ViewError::Budget(_) | ViewError::Broken(_))) => {
                return Ok(Some(Doubt::Failed(why)));
            }
        };
        difference(computed, rows(result, Rows::Result, view.id)).map_err(|error| failed("read", &path, error.into()))
    }
}

/// What a row looks like without its content, which is the customer's: the length of each cell.
fn shape(row: &Row) -> String {
    let cells = Cells::of(row.as_bytes());
    let cells = (0..cells.len()).map(|cell| match cells.text(cell) {
        None => "NULL".to_owned(),
        Some(text) => format!("{} characters", text.chars().count()),
    });
    cells.collect::<Vec<_>>().join(", ")
}
