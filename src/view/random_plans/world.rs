//! Tables, random changes of them, and a dataflow that follows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use proptest::prelude::*;

use crate::{
    data::{ChangeBatch, Extent, ImageWriter, Lsn, Row},
    query::{
        EvalError, Identity, Plan, RemoteExpr, Table, ViewPlan,
        naive::{self, Bag},
    },
    target::Op,
    view::{Dataflow, Flip, Remote, ViewError, random_plans::counted::Counted},
};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Int,
    Bool,
    Time,
}

/// With a key in front.
pub(super) const LEFT: u32 = 1;
/// With a key in front.
pub(super) const RIGHT: u32 = 2;
/// A bag.
pub(super) const BAG: u32 = 3;

pub(super) const TABLES: [(u32, &[Type]); 3] =
    [(LEFT, &[Type::Int, Type::Int, Type::Int]), (RIGHT, &[Type::Int, Type::Int, Type::Time]), (BAG, &[Type::Int, Type::Time])];

const TIMES: [Option<&str>; 7] = [
    None,
    Some("2000-01-01 00:00:00.000002+00"),
    Some("2000-01-01 00:00:00.000003+00"),
    Some("2000-01-01 00:00:00.000005+00"),
    Some("1999-12-31 23:59:59.999999+00"),
    Some("infinity"),
    Some("-infinity"),
];

pub(super) fn value(of: Type, choice: u8, integers: u8) -> Option<String> {
    match of {
        Type::Int => Some(choice % (integers + 1)).filter(|value| *value < integers).map(|value| value.to_string()),
        Type::Bool => [Some("t"), Some("f"), None][usize::from(choice % 3)].map(str::to_owned),
        Type::Time => TIMES[usize::from(choice) % TIMES.len()].map(str::to_owned),
    }
}

/// One change of a table, or time that passes.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) kind: u8,
    pub(super) table: u8,
    pub(super) place: u8,
    pub(super) values: [u8; 3],
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    (0..40_u8, 0..3_u8, 0..6_u8, prop::array::uniform3(0..8_u8)).prop_map(|(kind, table, place, values)| Step {
        kind,
        table,
        place,
        values,
    })
}

/// What the source computes: 0 for NULL, NULL for 0, else the value's number of bytes.
pub(super) fn computed(args: &[Option<String>]) -> Option<String> {
    match args[0].as_deref() {
        None => Some("0".into()),
        Some("0") => None,
        Some(text) => Some((text.len() % 3).to_string()),
    }
}

struct Source;

impl Remote for Source {
    fn evaluate(&mut self, _: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        Ok(rows.iter().map(|row| computed(row)).collect())
    }
}

pub(super) fn row(cells: &[Option<String>]) -> Row {
    Row::from_cells(cells.iter().map(Option::as_deref))
}

fn write<'a>(cells: &'a [Option<String>]) -> impl FnOnce(&mut ImageWriter<'_>) + use<'a> {
    move |image| {
        for cell in cells {
            match cell {
                None => image.null(),
                Some(text) => image.text(text),
            }
        }
    }
}

/// What the change log tells of an old row: all of a bag's, the key of others.
fn tell<'a>(keyed: bool, cells: &'a [Option<String>]) -> impl FnOnce(&mut ImageWriter<'_>) + use<'a> {
    move |image| {
        if keyed {
            write(&cells[..1])(image);
            cells[1..].iter().for_each(|_| image.absent());
        } else {
            write(cells)(image);
        }
    }
}

type Cells = Vec<Option<String>>;

/// Tables, a dataflow over them, and what it has said so far.
pub(super) struct World {
    view: ViewPlan,
    dataflow: Dataflow,
    pub(super) state: Counted,
    pub(super) tables: BTreeMap<u32, Vec<Cells>>,
    pub(super) now: i64,
    /// Integers are smaller than this, or NULL.
    integers: u8,
    pub(super) said: BTreeSet<Row>,
    spool: PathBuf,
}

impl World {
    /// Empty tables, nothing loaded.
    pub(super) fn new(plan: Plan, integers: u8) -> Self {
        let view = view(plan);
        let dataflow = Dataflow::new(&view).expect("a plan that can be kept up to date");
        Self {
            view,
            dataflow,
            state: Counted::default(),
            tables: TABLES.iter().map(|(table, _)| (*table, Vec::new())).collect(),
            now: 0,
            integers,
            said: BTreeSet::new(),
            spool: std::env::temp_dir(),
        }
    }

    fn extents(&self) -> BTreeMap<u32, Extent> {
        let extent = |(table, rows): (&u32, &Vec<Cells>)| {
            let numbered = rows.iter().enumerate().map(|(number, cells)| {
                let number = (*table == BAG).then(|| Some(number.to_string()));
                row(&cells.iter().cloned().chain(number).collect::<Cells>())
            });
            let sorted: BTreeSet<Row> = numbered.collect();
            (*table, Extent::from_sorted(sorted.into_iter().map(Ok)))
        };
        self.tables.iter().filter(|(table, _)| self.view.tables.contains_key(table)).map(extent).collect()
    }

    pub(super) fn naive(&self) -> Result<Bag, EvalError> {
        let tables = self.tables.iter().map(|(table, rows)| (*table, rows.iter().map(|cells| row(cells)).collect())).collect();
        naive::evaluate(&self.view, &tables, self.now, &mut |_, args| computed(args))
    }

    pub(super) fn load(&mut self) -> Result<(), ViewError> {
        let extents = self.extents();
        let result = self.dataflow.load(extents, self.now, &self.spool, &mut self.state, &mut Source)?;
        self.said = result.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Plays one change on the tables and writes it as the change log would.
    fn play(&mut self, step: &Step, batch: &mut ChangeBatch) {
        let (table, types) = TABLES[usize::from(step.table)];
        let mut cells: Cells = types.iter().zip(step.values).map(|(of, choice)| value(*of, choice, self.integers)).collect();
        let rows = self.tables.get_mut(&table).expect("every table is there");
        let place = (!rows.is_empty()).then(|| usize::from(step.place) % rows.len().max(1));
        let keyed = table != BAG;
        let vacant = |rows: &[Cells], key: &Option<String>| !keyed || rows.iter().all(|row| row[0] != *key);
        if keyed {
            cells[0] = Some(step.place.to_string());
        }
        match (step.kind, place) {
            (0, _) => {
                rows.clear();
                batch.truncate(table);
            }
            (1..=8, Some(place)) => {
                let old = rows.remove(place);
                batch.delete(table, tell(keyed, &old));
            }
            (9..=16, Some(place)) => {
                let old = rows[place].clone();
                if keyed && step.kind < 13 {
                    cells[0].clone_from(&old[0]);
                }
                if old[0] != cells[0] && !vacant(rows, &cells[0]) {
                    return;
                }
                rows[place].clone_from(&cells);
                let changed = !keyed || old[0] != cells[0];
                batch.update(table, changed.then(|| tell(keyed, &old)), write(&cells));
            }
            _ if vacant(rows, &cells[0]) => {
                batch.insert(table, write(&cells));
                rows.push(cells);
            }
            _ => {}
        }
    }

    /// Applies what the dataflow says; every flip must be a real one.
    fn take(said: &mut BTreeSet<Row>, flip: Flip) {
        match flip {
            Flip::Row(Op::Insert, row) => assert!(said.insert(row.clone()), "{:?} is inserted and was there", row.cells()),
            Flip::Row(Op::Delete, row) => assert!(said.remove(&row), "{:?} is deleted and was not there", row.cells()),
            Flip::Clear => said.clear(),
        }
    }

    pub(super) fn apply(&mut self, batch: &ChangeBatch) -> Result<(), ViewError> {
        let columns = TABLES.iter().map(|(table, types)| (*table, (0..types.len()).collect())).collect();
        let Self { dataflow, state, said, spool, now, .. } = self;
        let mut changes = batch.changes(0..batch.len());
        dataflow.apply(&mut changes, &columns, *now, spool, state, &mut Source, &mut |flip| {
            Self::take(said, flip);
            Ok(())
        })
    }

    pub(super) fn advance(&mut self, to: i64) -> Result<(), ViewError> {
        let Self { dataflow, state, said, spool, now, .. } = self;
        dataflow.advance(*now, to, spool, state, &mut Source, &mut |flip| {
            Self::take(said, flip);
            Ok(())
        })?;
        self.now = to;
        Ok(())
    }

    /// Compares with the reference evaluator, and what is stored with what a load would store.
    pub(super) fn check(&self, wanted: Bag) {
        let texts = |rows: &BTreeSet<Row>| rows.iter().map(Row::cells).collect::<Vec<_>>();
        let wanted = wanted.into_keys().collect();
        assert_eq!(texts(&self.said), texts(&wanted), "the dataflow says left, the reference evaluator right");
        let verified = self.dataflow.verify(self.now, &self.spool, &self.state, &mut Source).expect("what is stored is right");
        if let Some(verified) = verified {
            let verified = verified.collect::<Result<_, _>>().expect("in memory");
            assert_eq!(texts(&verified), texts(&wanted), "what is stored says left, the reference evaluator right");
        }
    }

    /// Until the next moment that the dataflow names nothing changes.
    fn check_due(&self) {
        let due = self.dataflow.next_due(self.now, &self.state).expect("in memory");
        assert!(due.is_none_or(|due| due > self.now));
        let mut later = Self { view: self.view.clone(), dataflow: Dataflow::new(&self.view).expect("as before"), ..self.blank() };
        later.tables.clone_from(&self.tables);
        later.now = due.map_or(100, |due| due - 1);
        if let (Ok(now), Ok(then)) = (self.naive(), later.naive()) {
            assert!(now.keys().eq(then.keys()), "the result changes between {} and {:?}", self.now, due);
        }
    }

    fn blank(&self) -> Self {
        Self {
            view: self.view.clone(),
            dataflow: Dataflow::new(&self.view).expect("as before"),
            state: Counted::default(),
            tables: BTreeMap::new(),
            now: self.now,
            integers: self.integers,
            said: BTreeSet::new(),
            spool: self.spool.clone(),
        }
    }
}

/// The tables that a plan reads.
fn read(plan: &Plan, tables: &mut BTreeSet<u32>) {
    match plan {
        Plan::Scan { table } => {
            tables.insert(*table);
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
        | Plan::Distinct(input) => read(input, tables),
        Plan::Join { inputs, .. } | Plan::UnionAll(inputs) => inputs.iter().for_each(|input| read(input, tables)),
        Plan::Outer { left, right, .. }
        | Plan::Semi { left, right, .. }
        | Plan::NotIn { left, right, .. }
        | Plan::Set { left, right, .. } => {
            read(left, tables);
            read(right, tables);
        }
        Plan::Recursive { base, step, .. } => {
            read(base, tables);
            read(step, tables);
        }
    }
}

pub(super) fn view(plan: Plan) -> ViewPlan {
    let mut used = BTreeSet::new();
    read(&plan, &mut used);
    let table = |(table, types): &(u32, &[Type])| {
        let identity = if *table == BAG { Identity::Full } else { Identity::Key(vec![1]) };
        let columns = (1..=i16::try_from(types.len()).expect("few columns")).collect();
        (*table, Table { title: format!("public.t{table}"), columns, identity, toast: false })
    };
    let tables = TABLES.iter().map(table).filter(|(table, _)| used.contains(table)).collect();
    ViewPlan { plan, tables }
}

/// Streams `chunks` through the dataflow of `plan`, the first ones by loading them, and compares after each.
pub(super) fn run(plan: Plan, integers: u8, chunks: &[Vec<Step>]) -> Result<(), TestCaseError> {
    let mut world = World::new(plan, integers);
    let (first, rest) = chunks.split_first().expect("at least one chunk");
    first.iter().for_each(|step| world.play(step, &mut ChangeBatch::default()));
    let Ok(wanted) = world.naive() else { return Ok(()) };
    world.load().map_err(|error| TestCaseError::fail(format!("load: {error}")))?;
    world.check(wanted);
    for chunk in rest {
        world.check_due();
        let mut batch = ChangeBatch::default();
        let mut to = world.now;
        for step in chunk {
            if step.kind >= 38 {
                to += i64::from(step.place);
            } else {
                world.play(step, &mut batch);
            }
        }
        batch.commit(Lsn(1), Lsn(2));
        // Rows are judged at one moment: first time passes, then the changes come.
        let before = world.now;
        if to > before {
            // The query may fail on the tables of the moment in between.
            world.advance(to).map_err(|error| TestCaseError::fail(format!("advance: {error}")))?;
        }
        let Ok(wanted) = world.naive() else { return Ok(()) };
        match world.apply(&batch) {
            Ok(()) => {}
            // What is emptied in the middle of a chunk is a state in between, on which the query may fail.
            Err(ViewError::Eval(_)) if chunk.iter().any(|step| step.kind == 0) => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("apply: {error}"))),
        }
        world.check(wanted);
    }
    Ok(())
}

/// As many as `FACTSYNC_CASES` says.
pub(super) fn cases() -> u32 {
    std::env::var("FACTSYNC_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

pub(super) fn chunks() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let loaded = prop::collection::vec(step().prop_map(|step| Step { kind: 17 + step.kind % 20, ..step }), 0..20);
    let streamed = prop::collection::vec(prop::collection::vec(step(), 0..7), 1..8);
    (loaded, streamed).prop_map(|(first, rest)| std::iter::once(first).chain(rest).collect())
}
