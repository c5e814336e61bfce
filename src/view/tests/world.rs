//! Tables in memory, random changes to them, and the change batches a source would make of these.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use proptest::prelude::*;

use crate::{
    data::{ChangeBatch, Extent, ExtentBuilder, ImageWriter, Lsn, Row},
    query::{Identity, Plan, RemoteExpr, Table, ViewPlan},
    view::{Remote, ViewError},
};

/// `(id, a, b)`, identified by `id`; values may be stored out of line.
pub(super) const TOASTED: u32 = 1;
/// `(id, a, b)`, identified by `id`.
pub(super) const PLAIN: u32 = 2;
/// `(a, b)` without a key: rows may be equal.
pub(super) const BAG: u32 = 3;
/// `(a, b)`, identified by both.
pub(super) const PAIRS: u32 = 4;

type Cells = Vec<Option<String>>;

pub(super) fn tables() -> BTreeMap<u32, Table> {
    let table = |title: &str, width: i16, identity, toast| Table { title: title.into(), columns: (1..=width).collect(), identity, toast };
    BTreeMap::from([
        (TOASTED, table("toasted", 3, Identity::Key(vec![1]), true)),
        (PLAIN, table("plain", 3, Identity::Key(vec![1]), false)),
        (BAG, table("bag", 2, Identity::Full, true)),
        (PAIRS, table("pairs", 2, Identity::Key(vec![1, 2]), false)),
    ])
}

/// As many as `FACTSYNC_CASES` says.
pub(super) fn cases() -> u32 {
    std::env::var("FACTSYNC_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

/// A change that somebody makes; what cannot be done in the state it meets does nothing.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Insert(u32, Cells),
    /// The row (of those there are), its new cells (`None`: unchanged), and whether unchanged ones are absent.
    Update(u32, prop::sample::Index, Vec<Option<Option<String>>>, bool),
    Delete(u32, prop::sample::Index),
    /// Two rows exchange their keys through a third.
    Swap(u32, prop::sample::Index, prop::sample::Index),
    DeleteAndInsert(u32, prop::sample::Index, Cells),
    Truncate(u32),
}

fn value() -> impl Strategy<Value = Option<String>> {
    prop::option::weighted(0.8, prop::sample::select(vec!["1", "2", "3"]).prop_map(str::to_owned))
}

fn cells(table: u32) -> BoxedStrategy<Cells> {
    let key = prop::sample::select(vec!["1", "2", "3", "4", "5"]).prop_map(|key| Some(key.to_owned()));
    let part = || prop::sample::select(vec!["1", "2", "3"]).prop_map(|key| Some(key.to_owned()));
    match table {
        BAG => prop::collection::vec(value(), 2).boxed(),
        PAIRS => (part(), part()).prop_map(|(a, b)| vec![a, b]).boxed(),
        _ => (key, value(), value()).prop_map(|(id, a, b)| vec![id, a, b]).boxed(),
    }
}

fn act() -> impl Strategy<Value = Act> {
    let index = any::<prop::sample::Index>;
    prop::sample::select(vec![TOASTED, PLAIN, BAG, PAIRS]).prop_flat_map(move |table| {
        let maybe = |cell| prop::option::of(Just(cell)).boxed();
        let changed = cells(table).prop_flat_map(move |cells| cells.into_iter().map(maybe).collect::<Vec<_>>());
        prop_oneof![
            6 => cells(table).prop_map(move |cells| Act::Insert(table, cells)),
            5 => (index(), changed, any::<bool>()).prop_map(move |(row, cells, absent)| Act::Update(table, row, cells, absent)),
            3 => index().prop_map(move |row| Act::Delete(table, row)),
            1 => (index(), index()).prop_map(move |(a, b)| Act::Swap(table, a, b)),
            2 => (index(), cells(table)).prop_map(move |(row, cells)| Act::DeleteAndInsert(table, row, cells)),
            1 => Just(Act::Truncate(table)),
        ]
    })
}

pub(super) fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(act(), 0..40)
}

/// A few rows in every table.
pub(super) fn some() -> Vec<Act> {
    let row = |cells: &[&str]| cells.iter().map(|cell| (*cell != "-").then(|| (*cell).to_owned())).collect::<Cells>();
    let mut acts = Vec::new();
    for cells in [["1", "1", "2"], ["2", "2", "-"], ["3", "-", "3"], ["4", "1", "1"]] {
        acts.push(Act::Insert(TOASTED, row(&cells)));
        acts.push(Act::Insert(PLAIN, row(&[cells[0], cells[2], cells[1]])));
        acts.push(Act::Insert(BAG, row(&cells[1..])));
        acts.push(Act::Insert(BAG, row(&cells[1..])));
        acts.push(Act::Insert(PAIRS, row(&[cells[0], "2"])));
    }
    acts
}

/// What contradicts [`some`] rows of [`PLAIN`].
pub(super) fn contradictions() -> Vec<ChangeBatch> {
    let image = |cells: [&'static str; 3]| move |image: &mut ImageWriter<'_>| cells.iter().for_each(|cell| image.text(cell));
    let key = |key: &'static str| {
        move |image: &mut ImageWriter<'_>| {
            image.text(key);
            image.absent();
            image.absent();
        }
    };
    let batch = |write: &dyn Fn(&mut ChangeBatch)| {
        let mut batch = ChangeBatch::default();
        write(&mut batch);
        batch
    };
    vec![
        batch(&|batch| batch.insert(PLAIN, image(["1", "x", "x"]))),
        batch(&|batch| batch.insert(PLAIN, key("9"))),
        batch(&|batch| batch.delete(PLAIN, key("9"))),
        batch(&|batch| batch.update(PLAIN, Some(key("9")), image(["8", "x", "x"]))),
        batch(&|batch| batch.update(PLAIN, Some(key("1")), image(["2", "x", "x"]))),
        batch(&|batch| batch.update(PLAIN, None::<fn(&mut ImageWriter<'_>)>, image(["9", "x", "x"]))),
    ]
}

/// The tables as their database has them.
#[derive(Debug, Clone, Default)]
pub(super) struct World {
    rows: BTreeMap<u32, Vec<Cells>>,
}

impl World {
    /// Makes the changes, and what the change log says of them.
    pub(super) fn play(&mut self, acts: &[Act]) -> ChangeBatch {
        let mut batch = ChangeBatch::default();
        acts.iter().for_each(|act| self.act(act, &mut batch));
        batch.commit(Lsn(1), Lsn(2));
        batch
    }

    fn act(&mut self, act: &Act, batch: &mut ChangeBatch) {
        match act {
            Act::Insert(table, cells) => self.insert(*table, cells, batch),
            Act::Update(table, row, cells, absent) => {
                if let Some(row) = self.pick(*table, row) {
                    self.update(*table, row, cells, *absent, batch);
                }
            }
            Act::Delete(table, row) => {
                if let Some(row) = self.pick(*table, row) {
                    self.delete(*table, row, batch);
                }
            }
            Act::Swap(table, a, b) => self.swap(*table, [a, b], batch),
            Act::DeleteAndInsert(table, row, cells) => {
                if let Some(row) = self.pick(*table, row) {
                    self.delete(*table, row, batch);
                }
                self.insert(*table, cells, batch);
            }
            Act::Truncate(table) => {
                self.rows.remove(table);
                batch.truncate(*table);
            }
        }
    }

    fn pick(&self, table: u32, row: &prop::sample::Index) -> Option<usize> {
        let count = self.rows.get(&table).map_or(0, Vec::len);
        (count > 0).then(|| row.index(count))
    }

    fn is_taken(&self, table: u32, cells: &[Option<String>]) -> bool {
        let key = keys(table);
        key > 0 && self.rows.get(&table).into_iter().flatten().any(|row| row[..key] == cells[..key])
    }

    fn insert(&mut self, table: u32, cells: &Cells, batch: &mut ChangeBatch) {
        if !self.is_taken(table, cells) {
            self.rows.entry(table).or_default().push(cells.clone());
            batch.insert(table, |image| write(image, cells));
        }
    }

    fn update(&mut self, table: u32, row: usize, cells: &[Option<Option<String>>], absent: bool, batch: &mut ChangeBatch) {
        let old = self.rows[&table][row].clone();
        let new: Cells = cells.iter().zip(&old).map(|(new, old)| new.clone().unwrap_or_else(|| old.clone())).collect();
        let key = keys(table);
        let moves = key > 0 && new[..key] != old[..key];
        if moves && self.is_taken(table, &new) {
            return;
        }
        let toasted =
            |column: usize| absent && tables()[&table].toast && column >= key && old[column] == new[column] && new[column].is_some();
        let image = |image: &mut ImageWriter<'_>| {
            for (column, cell) in new.iter().enumerate() {
                if toasted(column) { image.absent() } else { write(image, std::slice::from_ref(cell)) }
            }
        };
        batch.update(table, (moves || key == 0).then_some(|image: &mut ImageWriter<'_>| write_old(image, table, &old)), image);
        self.rows.get_mut(&table).expect("the row is there")[row] = new;
    }

    fn delete(&mut self, table: u32, row: usize, batch: &mut ChangeBatch) {
        let old = self.rows.get_mut(&table).expect("the row is there").remove(row);
        batch.delete(table, |image| write_old(image, table, &old));
    }

    fn swap(&mut self, table: u32, rows: [&prop::sample::Index; 2], batch: &mut ChangeBatch) {
        let [Some(a), Some(b)] = rows.map(|row| self.pick(table, row)) else { return };
        if a == b || keys(table) != 1 {
            return;
        }
        let key = |row: usize| self.rows[&table][row][0].clone();
        let (first, second) = (key(a), key(b));
        for (row, key) in [(a, Some("temporary".to_owned())), (b, first), (a, second)] {
            self.update(table, row, &[Some(key), None, None], true, batch);
        }
    }

    pub(super) fn rows(&self) -> BTreeMap<u32, Vec<Row>> {
        let row = |cells: &Cells| Row::from_cells(cells.iter().map(Option::as_deref));
        self.rows.iter().map(|(table, rows)| (*table, rows.iter().map(row).collect())).collect()
    }

    /// As a source reads them.
    pub(super) fn extents(&self, view: &ViewPlan, spool: &Path) -> BTreeMap<u32, Extent> {
        let rows = self.rows();
        let extent = |table: u32| {
            let mut builder = ExtentBuilder::new(spool);
            for (number, row) in rows.get(&table).into_iter().flatten().enumerate() {
                let number = Row::from_texts([number.to_string().as_str()]);
                let number = if keys(table) == 0 { number.as_bytes() } else { &[] };
                builder.push(Row::from_encoded([row.as_bytes(), number])).expect("pushed");
            }
            builder.finish().expect("sorted")
        };
        view.tables.keys().map(|&table| (table, extent(table))).collect()
    }
}

/// How many of the first columns are the identity.
fn keys(table: u32) -> usize {
    match table {
        BAG => 0,
        PAIRS => 2,
        _ => 1,
    }
}

fn write(image: &mut ImageWriter<'_>, cells: &[Option<String>]) {
    for cell in cells {
        match cell {
            None => image.null(),
            Some(text) => image.text(text),
        }
    }
}

/// An old image: the identity, or under FULL the whole row.
fn write_old(image: &mut ImageWriter<'_>, table: u32, old: &[Option<String>]) {
    let key = keys(table);
    for (column, cell) in old.iter().enumerate() {
        if key > 0 && column >= key { image.absent() } else { write(image, std::slice::from_ref(cell)) }
    }
}

/// Where the cells of the view's tables are in an image.
pub(super) fn places(view: &ViewPlan) -> BTreeMap<u32, Vec<usize>> {
    view.tables.iter().map(|(oid, table)| (*oid, (0..table.columns.len()).collect())).collect()
}

/// The tables that a plan scans.
pub(super) fn scans(plan: &Plan, into: &mut BTreeSet<u32>) {
    match plan {
        Plan::Scan { table } => {
            into.insert(*table);
        }
        Plan::Values { .. } | Plan::Itself { .. } => {}
        Plan::Filter { input, .. }
        | Plan::Map { input, .. }
        | Plan::Remote { input, .. }
        | Plan::Unnest { input, .. }
        | Plan::Unpack { input, .. }
        | Plan::Top { input, .. }
        | Plan::Clock { input, .. }
        | Plan::Group { input, .. }
        | Plan::Distinct(input) => scans(input, into),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().for_each(|input| scans(input, into)),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => {
            scans(left, into);
            scans(right, into);
        }
        Plan::Recursive { base, step, .. } => {
            scans(base, into);
            scans(step, into);
        }
    }
}

/// What the source would compute.
pub(super) fn result(expr: &RemoteExpr, args: &[Option<String>]) -> String {
    format!("{}({})", expr.sql, args.iter().map(|arg| arg.as_deref().unwrap_or("-")).collect::<Vec<_>>().join(","))
}

pub(super) struct Concat;

pub(super) fn concat() -> Concat {
    Concat
}

impl Remote for Concat {
    fn evaluate(&mut self, expr: &RemoteExpr, rows: &[Cells]) -> Result<Vec<Option<String>>, ViewError> {
        Ok(rows.iter().map(|args| Some(result(expr, args))).collect())
    }
}
