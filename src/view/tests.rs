//! Every operator, alone and composed, against recomputation: random transactions over tiny value domains, so that NULLs, duplicates,
//! swapped keys and rows that come and go within a chunk meet all the time.

mod plans;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    data::Row,
    query::{Plan, ViewPlan, naive},
    target::Op,
    view::{Dataflow, Flip, MemoryState, State, ViewError, keys::unique},
};
use plans::plans;
use world::{Act, World, acts, concat, tables};

/// A view as its engine drives it.
struct Driven {
    view: ViewPlan,
    flow: Dataflow,
    state: MemoryState,
    facts: BTreeSet<Row>,
    spool: tempfile::TempDir,
    now: i64,
}

impl Driven {
    /// A view over empty tables.
    fn new(plan: &Plan) -> Self {
        Self::load(plan, &World::default(), 0)
    }

    /// A view that is loaded from a state of its tables.
    fn load(plan: &Plan, world: &World, now: i64) -> Self {
        let view = view_of(plan);
        let mut flow = Dataflow::new(&view).expect("the plan is incremental");
        let spool = tempfile::tempdir().expect("a folder");
        let mut state = MemoryState::default();
        let extents = world.extents(&view, spool.path());
        let answer = flow.load(extents, now, spool.path(), &mut state, &mut concat()).expect("loaded");
        let facts = answer.map(|row| row.expect("read")).collect();
        Self { view, flow, state, facts, spool, now }
    }

    /// Applies changes as one chunk.
    fn apply(&mut self, world: &mut World, acts: &[Act]) -> Result<(), ViewError> {
        let batch = world.play(acts);
        let columns = world::places(&self.view);
        let (facts, spool) = (&mut self.facts, self.spool.path());
        let mut changes = batch.changes(0..batch.len());
        self.flow.apply(&mut changes, &columns, self.now, spool, &mut self.state, &mut concat(), &mut |change| {
            flip(facts, change);
            Ok(())
        })
    }

    fn advance(&mut self, to: i64) {
        let facts = &mut self.facts;
        let sink = &mut |change| {
            flip(facts, change);
            Ok(())
        };
        self.flow.advance(self.now, to, self.spool.path(), &mut self.state, &mut concat(), sink).expect("time passes");
        self.now = to;
    }

    /// The facts are what recomputing gives, and what is stored is what a load would store.
    fn check(&self, name: &str, world: &World) {
        let wanted =
            naive::evaluate(&self.view, &world.rows(), self.now, &mut |expr, args| Some(world::result(expr, args))).expect("computed");
        let wanted: BTreeSet<Row> = wanted.into_keys().collect();
        assert_eq!(texts(&self.facts), texts(&wanted), "{name}: facts against recomputation");
        let verified = self.flow.verify(self.now, self.spool.path(), &self.state, &mut concat()).unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(answer) = verified {
            let answer: BTreeSet<Row> = answer.map(|row| row.expect("read")).collect();
            assert_eq!(texts(&answer), texts(&wanted), "{name}: what verify recomputes");
        }
    }
}

/// Flips are real: only what is not a fact is inserted, only what is one is deleted.
fn flip(facts: &mut BTreeSet<Row>, flip: Flip) {
    match flip {
        Flip::Row(Op::Insert, row) => assert!(facts.insert(row), "a fact was inserted that is one"),
        Flip::Row(Op::Delete, row) => assert!(facts.remove(&row), "a row was deleted that is no fact"),
        Flip::Clear => facts.clear(),
    }
}

fn texts(rows: &BTreeSet<Row>) -> Vec<Vec<Option<String>>> {
    rows.iter().map(Row::cells).collect()
}

fn view_of(plan: &Plan) -> ViewPlan {
    let mut tables = tables();
    let mut used = BTreeSet::new();
    world::scans(plan, &mut used);
    tables.retain(|table, _| used.contains(table));
    ViewPlan { plan: plan.clone(), tables }
}

/// Cuts acts into chunks at random places.
fn chunks(acts: Vec<Act>, cuts: &[prop::sample::Index]) -> Vec<Vec<Act>> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(acts.len() + 1)).collect();
    at.sort_unstable();
    let mut chunks = Vec::new();
    let mut rest = acts;
    for cut in at.into_iter().rev() {
        chunks.push(rest.split_off(cut.min(rest.len())));
    }
    chunks.push(rest);
    chunks.reverse();
    chunks
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: world::cases(), ..ProptestConfig::default() })]

    #[test]
    fn i1_i3_facts_are_the_query_after_every_chunk_and_flips_are_real(acts in acts(), cuts in cuts()) {
        let chunks = chunks(acts, &cuts);
        for (name, plan) in plans() {
            let mut world = World::default();
            let mut driven = Driven::new(&plan);
            driven.check(name, &world);
            for chunk in &chunks {
                driven.apply(&mut world, chunk).unwrap_or_else(|error| panic!("{name}: {error}"));
                driven.check(name, &world);
            }
        }
    }

    #[test]
    fn i5_chunks_split_or_merged_and_a_load_leave_the_same_state(acts in acts(), cuts in cuts()) {
        for (name, plan) in plans() {
            let (mut one, mut many) = (Driven::new(&plan), Driven::new(&plan));
            let (mut whole, mut split) = (World::default(), World::default());
            one.apply(&mut whole, &acts).unwrap_or_else(|error| panic!("{name}: {error}"));
            for chunk in chunks(acts.clone(), &cuts) {
                many.apply(&mut split, &chunk).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            prop_assert!(one.state == many.state, "{name}: split and merged");
            prop_assert_eq!(texts(&one.facts), texts(&many.facts), "{}", name);
            let loaded = Driven::load(&plan, &whole, 0);
            prop_assert!(loaded.state == one.state, "{name}: loaded and streamed");
            prop_assert_eq!(texts(&loaded.facts), texts(&one.facts), "{}", name);
        }
    }

    #[test]
    fn i1_a_view_loaded_from_filled_tables_goes_on_from_there(before in acts(), after in acts()) {
        for (name, plan) in plans() {
            let mut world = World::default();
            world.play(&before);
            let mut driven = Driven::load(&plan, &world, 0);
            driven.check(name, &world);
            driven.apply(&mut world, &after).unwrap_or_else(|error| panic!("{name}: {error}"));
            driven.check(name, &world);
        }
    }

    #[test]
    fn i1_rows_come_and_go_as_time_passes(acts in acts(), cuts in cuts(), times in prop::collection::vec(0_i64..9, 8)) {
        for (name, plan) in plans::clocked() {
            let mut world = World::default();
            let mut driven = Driven::new(&plan);
            for (chunk, pause) in chunks(acts.clone(), &cuts).iter().zip(times.iter().chain(std::iter::repeat(&1))) {
                driven.apply(&mut world, chunk).unwrap_or_else(|error| panic!("{name}: {error}"));
                driven.check(name, &world);
                let due = driven.flow.next_due(driven.now, &driven.state).expect("read");
                let to = driven.now + pause * 1_000_000;
                let before = driven.facts.clone();
                driven.advance(to);
                driven.check(name, &world);
                let moved = before == driven.facts || due.is_some_and(|due| due <= to);
                prop_assert!(moved, "{name}: facts changed before the next moment was due");
            }
        }
    }

    #[test]
    fn columns_said_to_tell_rows_apart_do(acts in acts(), chosen in prop::collection::vec(any::<bool>(), 8)) {
        let mut world = World::default();
        world.play(&acts);
        for (name, plan) in plans() {
            let view = view_of(&plan);
            let width = plan.width(&view.tables);
            let every: BTreeSet<usize> = (0..width).collect();
            let some: BTreeSet<usize> = (0..width).filter(|column| chosen[*column]).collect();
            let rows = naive::evaluate(&view, &world.rows(), 0, &mut |expr, args| Some(world::result(expr, args))).expect("computed");
            for columns in [every, some] {
                let kept: Vec<usize> = columns.iter().copied().collect();
                let distinct: BTreeSet<Row> = rows.keys().map(|row| crate::data::Cells::of(row.as_bytes()).row(&kept)).collect();
                let apart = distinct.len() == rows.len() && rows.values().all(|weight| *weight == 1);
                prop_assert!(apart || !unique(&plan, &columns, &view.tables), "{name}: {columns:?}");
            }
        }
    }

    #[test]
    fn i4_the_order_of_a_joins_inputs_does_not_matter(acts in acts(), cuts in cuts()) {
        let chunks = chunks(acts, &cuts);
        let permutations = plans::permuted();
        let mut all: Vec<(Driven, World)> = permutations.iter().map(|plan| (Driven::new(plan), World::default())).collect();
        for chunk in &chunks {
            for (driven, world) in &mut all {
                driven.apply(world, chunk).expect("applied");
            }
            for (driven, _) in &all[1..] {
                prop_assert_eq!(texts(&driven.facts), texts(&all[0].0.facts));
            }
        }
    }
}

#[test]
fn i2_a_damaged_state_is_found() {
    for (name, plan) in plans() {
        let mut world = World::default();
        let mut driven = Driven::new(&plan);
        driven.apply(&mut world, &world::some()).expect("applied");
        let entries = driven.state.entries();
        if matches!(driven.flow.verify(0, driven.spool.path(), &driven.state, &mut concat()), Ok(None)) {
            continue;
        }
        for (space, key, _) in entries.into_iter().filter(|(_, _, value)| value.len() == 8) {
            // One more of a row that may be there more than once is another state, not a damaged one.
            if driven.flow.bags().contains(&space) {
                continue;
            }
            let mut damaged = driven.state.clone();
            damaged.add(space, &key, 1).expect("added");
            let result = driven.flow.verify(0, driven.spool.path(), &damaged, &mut concat()).map(|answer| answer.map(Iterator::count));
            assert!(matches!(result, Err(ViewError::Broken(_))), "{name}: space {} was damaged and {result:?}", space.0);
        }
    }
}

#[test]
fn r0_a_stream_that_contradicts_what_is_stored_is_not_believed() {
    let scan = Plan::Scan { table: world::PLAIN };
    for wrong in world::contradictions() {
        let mut driven = Driven::new(&scan);
        driven.apply(&mut World::default(), &world::some()).expect("applied");
        let columns = BTreeMap::from([(world::PLAIN, vec![0, 1, 2])]);
        let mut changes = wrong.changes(0..wrong.len());
        let spool = driven.spool.path();
        let result = driven.flow.apply(&mut changes, &columns, 0, spool, &mut driven.state, &mut concat(), &mut |_| Ok(()));
        assert!(matches!(result, Err(ViewError::Broken(_))), "{result:?}");
    }
}

#[test]
fn no_row_is_stored_where_the_stream_says_all() {
    for (name, plan) in plans::stateless() {
        let mut driven = Driven::new(&plan);
        driven.apply(&mut World::default(), &world::some()).expect("applied");
        assert!(!driven.facts.is_empty(), "{name}");
        assert!(driven.state.is_empty(), "{name}: {} entries", driven.state.len());
    }
}
