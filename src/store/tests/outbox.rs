//! The outbox against a list: whatever is pushed, rolled back, sent, parked or dropped, it holds that list in that order.

use proptest::prelude::*;

use crate::{
    data::{Extent, Row},
    fact::FactType,
    store::{OutboxEntry, Store, StoreError, ViewId, ViewRecord, block::Limits, tests::at},
    target::{Offset, Op},
};

/// What one view does in a commit.
#[derive(Debug, Clone)]
struct Part {
    view: usize,
    pushes: Vec<(Op, String)>,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Pushed without a savepoint.
    Bare,
    Kept,
    RolledBack,
}

#[derive(Debug, Clone)]
enum Step {
    Commit {
        parts: Vec<Part>,
        gives_up: bool,
    },
    /// Acknowledges so many.
    Acknowledge(usize),
    /// Acknowledges the last batch again, as far as it is still known.
    Again,
    Park,
    /// A snapshot replaces a view.
    Replace(usize),
    /// A view leaves the configuration and comes back.
    Leave(usize),
    Reopen,
}

fn part() -> impl Strategy<Value = Part> {
    let op = prop::sample::select(vec![Op::Delete, Op::Insert]);
    let fate = prop::sample::select(vec![Fate::Bare, Fate::Kept, Fate::Kept, Fate::RolledBack]);
    (0_usize..3, prop::collection::vec((op, "[a-z]{0,12}"), 0..9), fate).prop_map(|(view, pushes, fate)| Part { view, pushes, fate })
}

fn step() -> impl Strategy<Value = Step> {
    let commit = prop::collection::vec(part(), 0..5);
    prop_oneof![
        6 => (commit, prop::bool::weighted(0.1)).prop_map(|(parts, gives_up)| Step::Commit { parts, gives_up }),
        6 => (0_usize..12).prop_map(Step::Acknowledge),
        1 => Just(Step::Again),
        2 => Just(Step::Park),
        1 => (0_usize..3).prop_map(Step::Replace),
        1 => (0_usize..3).prop_map(Step::Leave),
        1 => Just(Step::Reopen),
    ]
}

/// An entry as the list has it.
type Listed = (u64, Op, ViewId, Row);

fn listed(entry: &OutboxEntry) -> Listed {
    (entry.key.commit_no, entry.op, entry.view, entry.row.clone())
}

fn fact_types() -> [FactType; 3] {
    ["f(User:_)", "g(User:_)", "h(User:_)"].map(|text| text.parse().expect("a signature"))
}

fn offset() -> Offset {
    Offset("7".to_owned())
}

struct Outbox {
    folder: tempfile::TempDir,
    store: Store,
    limits: Limits,
    views: Vec<ViewRecord>,
    /// What must be in it.
    list: Vec<Listed>,
    commit_no: u64,
    last: Vec<OutboxEntry>,
}

impl Outbox {
    fn new(limits: Limits) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("a spool");
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        store.begin("db", "fingerprint", "identity").expect("begun");
        store.blocks = limits;
        let mut outbox = Self { folder, store, limits, views: Vec::new(), list: Vec::new(), commit_no: 0, last: Vec::new() };
        outbox.register();
        outbox
    }

    fn register(&mut self) {
        self.views = self.store.register("db", &fact_types().iter().collect::<Vec<_>>()).expect("registered");
    }

    fn commit(&mut self, parts: &[Part], gives_up: bool) {
        let views: Vec<ViewId> = self.views.iter().map(|view| view.id).collect();
        let done = self.store.attempt_commit(|tx, outbox| {
            for Part { view, pushes, fate } in parts {
                let mark = if *fate == Fate::Bare { None } else { Some(outbox.savepoint(tx)?) };
                for (op, name) in pushes {
                    outbox.push(tx, views[*view], *op, Row::from_texts([name.as_str()]).as_bytes())?;
                }
                match (mark, fate) {
                    (Some(mark), Fate::RolledBack) => outbox.roll_back(tx, mark)?,
                    (Some(mark), Fate::Kept | Fate::Bare) => outbox.keep(tx, mark)?,
                    (None, _) => {}
                }
            }
            Ok((!gives_up).then_some(()))
        });
        assert_eq!(done.expect("committed").is_none(), gives_up);
        let stays = parts.iter().filter(|part| !gives_up && part.fate != Fate::RolledBack);
        let pushed: Vec<(ViewId, Op, Row)> =
            stays.flat_map(|part| part.pushes.iter().map(|(op, name)| (views[part.view], *op, Row::from_texts([name.as_str()])))).collect();
        self.commit_no += u64::from(!pushed.is_empty());
        for wanted in [Op::Delete, Op::Insert] {
            let of_op = pushed.iter().filter(|(_, op, _)| *op == wanted);
            self.list.extend(of_op.map(|(view, op, row)| (self.commit_no, *op, *view, row.clone())));
        }
    }

    fn acknowledge(&mut self, most: usize) {
        self.last = self.store.outbox(most).expect("read");
        let Some(last) = self.last.last() else { return };
        let gone = self.store.acknowledge(&[last.clone().into()], &offset()).expect("acknowledged");
        assert_eq!(gone.outbox as usize, self.last.len());
        self.list.drain(..self.last.len());
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Commit { parts, gives_up } => self.commit(parts, *gives_up),
            Step::Acknowledge(most) => self.acknowledge(*most),
            Step::Again => {
                let gone = self.last.last().map(|last| self.store.acknowledge(&[last.clone().into()], &offset()).expect("acknowledged"));
                assert_eq!(gone.map_or(0, |gone| gone.outbox), 0);
            }
            Step::Park => {
                let Some(entry) = self.store.outbox(1).expect("read").pop() else { return };
                self.store.park(&entry.clone().into(), "no such predicate").expect("parked");
                assert_eq!(listed(&entry), self.list.remove(0));
            }
            Step::Replace(view) => {
                let record = self.views[*view].clone();
                self.list.retain(|(_, _, view, _)| *view != record.id);
                let nothing = Extent::from_sorted(std::iter::empty());
                self.store.replace("db", &at(1).into(), vec![(record, nothing).into()], crate::view::Guard::Off).expect("replaced");
                // Revocations that waited go on in the backlog, as a commit of its own.
                let carried = self.store.commit_no() - self.commit_no;
                assert!(carried <= 1, "{carried}");
                self.commit_no += carried;
            }
            Step::Leave(view) => {
                let gone = self.views[*view].id;
                self.list.retain(|(_, _, view, _)| *view != gone);
                let stays: Vec<FactType> = fact_types().into_iter().enumerate().filter(|(at, _)| at != view).map(|(_, it)| it).collect();
                self.store.register("db", &stays.iter().collect::<Vec<_>>()).expect("registered");
                self.register();
            }
            Step::Reopen => {
                // Closed before it is opened again, as between two processes.
                self.store = Store::open(&self.folder.path().join("other.db")).expect("another store");
                self.store = Store::open(&self.folder.path().join("state.db")).expect("a store");
                self.store.blocks = self.limits;
            }
        }
    }

    fn check(&self) {
        for most in [0, 1, 2, 5, usize::MAX] {
            let entries = self.store.outbox(most).expect("read");
            assert_eq!(entries.iter().map(listed).collect::<Vec<_>>(), self.list[..most.min(self.list.len())], "the first {most}");
            assert!(entries.is_sorted_by(|a, b| a.key < b.key), "{entries:?}");
        }
        assert_eq!(self.store.outbox_len(), self.list.len() as u64);
        assert_eq!(self.store.commit_no(), self.commit_no);
        for view in &self.views {
            let sql = "SELECT EXISTS (SELECT 1 FROM backlog WHERE view = ?1)";
            let carried = self.store.connection.query_row(sql, [view.id.0], |row| row.get::<_, bool>(0)).expect("read");
            let waits = carried || self.list.iter().any(|(_, _, of, _)| *of == view.id);
            assert_eq!(self.store.outbox_holds(&[view.id]).expect("read"), waits);
        }
        assert!(!self.store.outbox_holds(&[]).expect("read"));
    }

    fn write(&self, sql: &str) {
        self.store.connection.execute_batch(sql).expect("written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn it_is_a_list_whatever_happens_to_blocks(
        steps in prop::collection::vec(step(), 0..24),
        entries in 1_u64..5,
        bytes in 1_usize..60,
    ) {
        let mut outbox = Outbox::new(Limits { entries, bytes });
        for step in &steps {
            outbox.take(step);
            outbox.check();
        }
    }
}

fn inserts(names: impl Iterator<Item = String>) -> Part {
    Part { view: 0, pushes: names.map(|name| (Op::Insert, name)).collect(), fate: Fate::Kept }
}

#[test]
fn a_block_that_is_not_whole_is_refused_by_name() {
    for damage in [
        "entries = CAST(substr(entries, 1, length(entries) - 1) AS BLOB)",
        "entries = CAST(substr(entries, 2) AS BLOB)",
        "entries = x'ffffffff01'",
        "entries = x''",
        "entries = CAST(entries || x'00' AS BLOB)",
        // The right lengths of what is no row.
        "count = 1, entries = x'0200000002ff'",
        "count = count + 1",
        "count = count - 1",
        "sent = count",
        "sent = count + 1",
    ] {
        let mut outbox = Outbox::new(crate::store::block::LIMITS);
        outbox.commit(&[inserts(["a", "b"].map(str::to_owned).into_iter())], false);
        outbox.write(&format!("UPDATE outbox SET {damage}"));
        let error = outbox.store.outbox(1).expect_err(damage);
        assert!(matches!(error, StoreError::Malformed { what: "outbox block", .. }), "{damage}: {error:?}");
        assert!(error.to_string().contains("state.db") && error.to_string().contains("outbox block"), "{error}");
    }
    let mut outbox = Outbox::new(crate::store::block::LIMITS);
    outbox.commit(&[inserts(["a"].map(str::to_owned).into_iter())], false);
    outbox.write("UPDATE outbox SET op = 2");
    assert!(matches!(outbox.store.outbox(1), Err(StoreError::Sqlite { .. })));
}

#[test]
fn bounded_blocks_hold_what_a_batch_takes_and_a_large_row_alone() {
    let mut outbox = Outbox::new(crate::store::block::LIMITS);
    outbox.commit(&[inserts((0..2_500).map(|at| format!("{at:04}")))], false);
    outbox.commit(&[inserts((0..4).map(|at| format!("{at}{}", "x".repeat(30_000)))), inserts(["y".repeat(100_000)].into_iter())], false);
    let mut select = outbox.store.connection.prepare("SELECT count, length(entries) FROM outbox ORDER BY commit_no, seq").expect("SQL");
    let blocks = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read");
    let blocks: Vec<(u64, usize)> = blocks.collect::<rusqlite::Result<_>>().expect("read");
    drop(select);
    assert_eq!(blocks.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [1_000, 1_000, 500, 2, 2, 1]);
    assert!(blocks[..5].iter().all(|(_, bytes)| *bytes <= 64 << 10), "{blocks:?}");
    outbox.check();
}

#[test]
fn a_part_of_a_block_goes_without_writing_the_block_again() {
    let mut outbox = Outbox::new(crate::store::block::LIMITS);
    outbox.commit(&[inserts((0..1_000).map(|at| format!("{at:050}")))], false);
    let wal = outbox.folder.path().join("state.db-wal");
    let written = |most| {
        let _: i64 = outbox.store.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).expect("checkpointed");
        outbox.acknowledge(most);
        std::fs::metadata(&wal).expect("a log").len()
    };
    // SQLite stores 0 and 1 in no bytes, up to 127 in one and what follows in two: only then the row's length changes.
    let sizes = [1, 20, 20, 200, 200, 200].map(written);
    for (index, size) in sizes.iter().enumerate() {
        let whole = index == 1 || index == 3;
        assert_eq!(*size > 50_000, whole, "{sizes:?}");
    }
    outbox.check();
}
