//! Node trees and their plans.
//!
//! The input's first line says of which server's catalogues the numbers in the tree are. A tree that is bound is run: over a few rows
//! the dataflow must have the result that the definition of its operators has, loaded as well as after changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::LazyLock,
};

use factsync::{
    data::{ChangeBatch, Extent, Row},
    query::{
        Identity, RemoteExpr, Table, ViewPlan,
        fuzzing::{Names, bound, outline},
        naive,
    },
    source::postgres::fuzzing::uses,
    target::Op,
    view::{Dataflow, Flip, MemoryState, Remote, ViewError},
};

/// Scans in a plan that is run: the definition joins by nested loops.
const MOST_SCANS: usize = 5;
/// Rows of each table.
const ROWS: u64 = 4;
/// The moment of everything, in microseconds since 2000-01-01.
const NOW: i64 = 800_000_000_000_000;

static NAMES_15: LazyLock<Names> = LazyLock::new(|| captured("15"));
static NAMES_18: LazyLock<Names> = LazyLock::new(|| captured("18"));

type Tables = BTreeMap<u32, Vec<Cells>>;
type Cells = Vec<Option<String>>;

/// What `capture.sh` wrote.
fn captured(version: &str) -> Names {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("names/{version}.json"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    Names::from_json(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (names, text) = match text.split_once('\n') {
        Some(("15", text)) => (&NAMES_15, text),
        Some(("18", text)) => (&NAMES_18, text),
        Some(_) | None => (&NAMES_18, text),
    };
    read(text);
    let Some(plan) = bound(text, names) else { return };
    assert_eq!(Some(&plan), bound(text, names).as_ref(), "the same tree, another plan");
    match plan {
        Ok(plan) => follow(&plan, names, text),
        Err(reason) => assert!(!reason.is_empty(), "refused without a reason"),
    }
}

/// Where the server breaks its lines means nothing.
fn read(text: &str) {
    let lines = text.replace(' ', "\n");
    match (outline(text), outline(&lines)) {
        (Ok(read), Ok(of_lines)) => {
            let words: Vec<String> = read.words.iter().map(|word| word.replace(' ', "\n")).collect();
            assert_eq!((words, read.nodes, read.depth), (of_lines.words, of_lines.nodes, of_lines.depth));
            assert!(read.depth <= text.len() && read.nodes <= text.len());
            assert!(uses(text).is_some());
        }
        (Err(error), Err(of_lines)) => assert_eq!(error, of_lines),
        (read, of_lines) => panic!("{read:?}, but with line breaks {of_lines:?}"),
    }
}

/// What the source would compute: anything, as long as the same in gives the same out.
struct Source;

impl Remote for Source {
    fn evaluate(&mut self, expr: &RemoteExpr, rows: &[Vec<Option<String>>]) -> Result<Vec<Option<String>>, ViewError> {
        Ok(rows.iter().map(|row| computed(expr, row)).collect())
    }
}

fn computed(expr: &RemoteExpr, args: &[Option<String>]) -> Option<String> {
    if expr.sql.starts_with('(') { Some("t".to_owned()) } else { args.first().cloned().flatten() }
}

/// Loads the plan and changes its tables, and compares with the definition after each.
fn follow(plan: &ViewPlan, names: &Names, text: &str) {
    let shown = format!("{plan:?}");
    // A recursion over numbers it makes itself may have no end.
    if shown.matches("Scan {").count() > MOST_SCANS || shown.contains("Recursive {") {
        return;
    }
    let Ok(mut dataflow) = Dataflow::new(plan) else { return };
    let mut numbers = Numbers(text.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte))));
    let mut tables: Tables = plan.tables.iter().map(|(oid, table)| (*oid, rows(*oid, table, names, &mut numbers))).collect();
    let Some(wanted) = defined(plan, &tables) else { return };
    let spool = crate::config::folder();
    let mut state = MemoryState::default();
    let loaded = match dataflow.load(extents(plan, &tables), NOW, spool, &mut state, &mut Source) {
        Ok(loaded) => loaded,
        Err(ViewError::Budget(_)) => return,
        Err(error) => panic!("the definition has a result, but the dataflow fails: {error}"),
    };
    let mut facts: BTreeSet<Row> = loaded.collect::<Result<_, _>>().expect("in memory");
    compare(&facts, &wanted, "loaded");
    for _ in 0..2 {
        let batch = change(plan, &mut tables, names, &mut numbers);
        let Some(wanted) = defined(plan, &tables) else { return };
        match apply(&mut dataflow, plan, &batch, spool, &mut state, &mut facts) {
            Ok(()) => compare(&facts, &wanted, "changed"),
            // A state of the tables in between, on which the query fails.
            Err(ViewError::Eval(_) | ViewError::Budget(_)) => return,
            Err(error) => panic!("the definition has a result, but the dataflow fails: {error}"),
        }
    }
}

fn apply(
    dataflow: &mut Dataflow,
    plan: &ViewPlan,
    batch: &ChangeBatch,
    spool: &Path,
    state: &mut MemoryState,
    facts: &mut BTreeSet<Row>,
) -> Result<(), ViewError> {
    let columns = plan.tables.iter().map(|(oid, table)| (*oid, (0..table.columns.len()).collect())).collect();
    dataflow.apply(&mut batch.changes(0..batch.len()), &columns, NOW, spool, state, &mut Source, &mut |flip| {
        match flip {
            Flip::Row(Op::Insert, row) => assert!(facts.insert(row.clone()), "{:?} is inserted and was there", row.cells()),
            Flip::Row(Op::Delete, row) => assert!(facts.remove(&row), "{:?} is deleted and was not there", row.cells()),
            Flip::Clear => facts.clear(),
        }
        Ok(())
    })
}

fn compare(facts: &BTreeSet<Row>, wanted: &BTreeSet<Row>, when: &str) {
    let cells = |rows: &BTreeSet<Row>| rows.iter().map(Row::cells).collect::<Vec<_>>();
    assert_eq!(cells(facts), cells(wanted), "{when}: the dataflow says left, the definition right");
}

/// What the plan is by definition; `None` where the query fails.
fn defined(plan: &ViewPlan, tables: &Tables) -> Option<BTreeSet<Row>> {
    let tables = tables.iter().map(|(oid, rows)| (*oid, rows.iter().map(row).collect())).collect();
    naive::evaluate(plan, &tables, NOW, &mut |expr, args| computed(expr, args)).ok().map(|bag| bag.into_keys().collect())
}

fn row(cells: &Cells) -> Row {
    Row::from_cells(cells.iter().map(Option::as_deref))
}

/// As a source reads tables: in order, and where rows may be equal each with a number of its own.
fn extents(plan: &ViewPlan, tables: &Tables) -> BTreeMap<u32, Extent> {
    let extent = |(oid, table): (&u32, &Table)| {
        let numbered = tables[oid].iter().enumerate().map(|(number, cells)| {
            let number = (table.identity == Identity::Full).then(|| Some(number.to_string()));
            row(&cells.iter().cloned().chain(number).collect())
        });
        let sorted: BTreeSet<Row> = numbered.collect();
        (*oid, Extent::from_sorted(sorted.into_iter().map(Ok)))
    };
    plan.tables.iter().map(extent).collect()
}

/// Deletes a row of each table and inserts another.
fn change(plan: &ViewPlan, tables: &mut Tables, names: &Names, numbers: &mut Numbers) -> ChangeBatch {
    let mut batch = ChangeBatch::default();
    for (oid, table) in &plan.tables {
        let rows = tables.get_mut(oid).expect("every table is there");
        if !rows.is_empty() {
            let gone = rows.remove(numbers.below(rows.len() as u64) as usize);
            let told = |place: usize| table.identity.key().is_none_or(|key| key.contains(&table.columns[place]));
            batch.delete(*oid, |image| {
                for (place, cell) in gone.iter().enumerate() {
                    match cell {
                        _ if !told(place) => image.absent(),
                        None => image.null(),
                        Some(text) => image.text(text),
                    }
                }
            });
        }
        let new = cells(*oid, table, names, numbers);
        if vacant(table, rows, &new) {
            batch.insert(*oid, |image| {
                for cell in &new {
                    match cell {
                        None => image.null(),
                        Some(text) => image.text(text),
                    }
                }
            });
            rows.push(new);
        }
    }
    batch
}

/// No two rows with one key.
fn rows(oid: u32, table: &Table, names: &Names, numbers: &mut Numbers) -> Vec<Cells> {
    let mut rows = Vec::new();
    for _ in 0..ROWS {
        let new = cells(oid, table, names, numbers);
        if vacant(table, &rows, &new) {
            rows.push(new);
        }
    }
    rows
}

fn vacant(table: &Table, rows: &[Cells], new: &Cells) -> bool {
    let Some(key) = table.identity.key() else { return true };
    let places: Vec<usize> = (0..table.columns.len()).filter(|&place| key.contains(&table.columns[place])).collect();
    rows.iter().all(|row| places.iter().any(|&place| row[place] != new[place]))
}

fn cells(oid: u32, table: &Table, names: &Names, numbers: &mut Numbers) -> Cells {
    let in_key = |number: &i16| table.identity.key().is_some_and(|key| key.contains(number));
    let cell = |number: &i16| {
        let values = values(names.type_of(oid, *number));
        let choice = numbers.below(values.len() as u64 + 1) as usize;
        match values.get(choice) {
            Some(value) => Some((*value).to_owned()),
            None if in_key(number) => Some(values[0].to_owned()),
            None => None,
        }
    };
    table.columns.iter().map(cell).collect()
}

/// Texts that a type prints, by its number in `pg_type`.
fn values(of: Option<u32>) -> &'static [&'static str] {
    match of {
        Some(16) => &["t", "f"],
        Some(20 | 21 | 23) => &["1", "2", "0", "-3"],
        Some(1700) => &["1", "1.00", "2.5"],
        Some(1114) => &["2000-01-01 00:00:00", "2026-05-01 12:00:00.5"],
        Some(1184) => &["2000-01-01 00:00:00+00", "2026-05-01 12:00:00.5+00", "infinity"],
        Some(3802) => &[r#"{"kind": "lib", "list": ["a", null]}"#, "[]", "null", r#"{"kind": null}"#],
        Some(1009) => &["{x,y}", "{}", "{NULL,x}"],
        Some(2950) => &["00000000-0000-0000-0000-000000000001"],
        Some(25 | 1043) => &["one", "two", "", "t"],
        _ => &["read", "admin"],
    }
}

/// A linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
