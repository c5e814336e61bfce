//! Commits, followed: netted, atomic, guarded, and one view's failure nobody else's.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::{
    config::MaxRemovals,
    data::{ChangeBatch, ClusterTime, Lsn, Position, ResumeToken, Row},
    fact::FactType,
    store::{
        Applied, Change, Followed, Live, Reached, Store, StoreError, ViewRecord,
        tests::{
            at, extent, names,
            scripted::{FAILS, Names, Silent, TABLE, TWICE, change, columns, piece, transaction},
        },
    },
    target::{Offset, Op},
    view::{Guard, ViewError},
};

/// The fingerprint of every plan here.
pub(super) const PLAN: &str = "plan";

/// A store with incremental views of one table.
pub(super) struct Followers {
    pub(super) folder: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) views: Vec<(ViewRecord, Names)>,
    pub(super) guard: Guard,
    /// What the last batch says about refresh views.
    pub(super) settled: Option<Position>,
}

fn fact_type(number: usize) -> FactType {
    format!("f{number}(User:_)").parse().expect("a signature")
}

impl Followers {
    /// Views that were loaded from an empty table at 0/A, when it was 0.
    pub(super) fn new(dataflows: &[Names]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("spool")).expect("a spool");
        let store = Store::open(&folder.path().join("state.db")).expect("a store");
        let mut followers = Self { folder, store, views: Vec::new(), guard: Guard::Off, settled: None };
        followers.register(dataflows);
        followers.store.begin("db", "fingerprint", "identity").expect("begun");
        for view in 0..dataflows.len() {
            followers.load(view, &[], 10);
        }
        followers
    }

    fn register(&mut self, dataflows: &[Names]) {
        let fact_types: Vec<FactType> = (0..dataflows.len()).map(fact_type).collect();
        let records = self.store.register("db", &fact_types.iter().collect::<Vec<_>>()).expect("registered");
        self.views = records.into_iter().zip(dataflows.iter().copied()).collect();
    }

    pub(super) fn reopened(mut self) -> Self {
        let path = self.folder.path().join("state.db");
        // Closed before it is opened again, as between two processes.
        self.store = Store::open(&self.folder.path().join("other.db")).expect("another store");
        self.store = Store::open(&path).expect("a store");
        let dataflows: Vec<Names> = self.views.iter().map(|(_, names)| *names).collect();
        self.register(&dataflows);
        self
    }

    /// Loads a view as of `position` from `rows`, of which each is a key and a name.
    pub(super) fn load(&mut self, view: usize, rows: &[(&str, &str)], position: u64) {
        let (record, mut dataflow) = self.views[view].clone();
        let table: BTreeSet<Row> = rows.iter().map(|(key, name)| Row::from_texts([*key, *name])).collect();
        let tables = BTreeMap::from([(TABLE, crate::data::Extent::from_sorted(table.into_iter().map(Ok)))]);
        let answer = extent(&rows.iter().map(|(_, name)| (*name).to_owned()).collect());
        let loaded = self.store.load(record, &mut dataflow, PLAN, tables, answer, 0, &mut Silent).expect("loaded");
        assert!(loaded.doubt.is_none(), "{loaded:?}");
        // The others still wait for the commits up to here, so the source stays where it is.
        let stands = self.position().unwrap_or(at(position));
        let reached = Reached { cut: at(position), settled: stands.clone(), position: stands };
        self.store.apply("db", &reached, vec![loaded.fresh], self.guard).expect("applied");
        self.views[view].0 = self.store.reread(&self.views[view].0).expect("read");
    }

    pub(super) fn follow_all(&mut self, batches: Vec<ChangeBatch>, now: i64) -> Result<Option<Followed>, StoreError> {
        let mut batches = batches.into_iter();
        let first = batches.next().expect("a batch");
        let columns = columns();
        let mut live: Vec<Live<'_>> =
            self.views.iter_mut().map(|(record, dataflow)| Live { record, dataflow, columns: &columns }).collect();
        let followed =
            self.store.follow("db", first, &mut |_| batches.next(), &|| self.settled.clone(), now, &mut live, &mut Silent, self.guard);
        drop(live);
        for (record, _) in &mut self.views {
            *record = self.store.reread(record).expect("read");
        }
        followed
    }

    pub(super) fn follow(&mut self, batch: ChangeBatch) -> Followed {
        self.follow_all(vec![batch], 0).expect("followed").expect("whole")
    }

    pub(super) fn desired(&self, view: usize) -> BTreeSet<String> {
        let rows = self.store.desired(self.views[view].0.id).expect("opened");
        rows.map(|row| row.expect("read").cells().remove(0).expect("a text")).collect()
    }

    fn position(&self) -> Option<Position> {
        self.store.source("db").expect("read").expect("known").position
    }

    /// What waits, as `+a` and `-a` in order, and lets it go.
    pub(super) fn sent(&mut self) -> String {
        let mut sent = Vec::new();
        while let Some(entry) = self.store.outbox(1).expect("read").pop() {
            let sign = if entry.op == Op::Insert { "+" } else { "-" };
            sent.push(format!("{sign}{}", entry.row.cells().remove(0).expect("a text")));
            self.store.acknowledge(&[entry.into()], &Offset("1".to_owned())).expect("acknowledged");
        }
        assert_eq!(self.store.outbox_len(), 0);
        sent.join(" ")
    }
}

fn changed(followed: &Followed) -> &Change {
    match &followed.views[..] {
        [Applied::Changed(change)] => change,
        other => panic!("{other:?}"),
    }
}

#[test]
fn net_commits_of_one_transaction_cancel_and_deletes_leave_first() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.follow(transaction(10, "1=a 2=b"));
    assert_eq!(followers.sent(), "+a +b");
    let batches = vec![transaction(20, "1 3=c 4=d"), transaction(30, "4 5=b"), transaction(40, "1=e 2")];
    let followed = followers.follow_all(batches, 0).expect("followed").expect("whole");
    let change = changed(&followed);
    assert_eq!((change.inserted, change.removed, change.facts), (2, 1, 3));
    assert_eq!((followed.changes, followed.position.clone()), (7, Some(at(41))));
    assert_eq!(followers.desired(0), names("b c e"));
    assert_eq!(followers.sent(), "-a +c +e");
    let followers = followers.reopened();
    assert_eq!((followers.views[0].0.facts, followers.position()), (3, Some(at(41))));
    assert!(followers.views[0].0.has_state(PLAN));
}

#[test]
fn a_commit_without_net_changes_moves_the_position_and_takes_no_number() {
    let mut followers = Followers::new(&[Names::default()]);
    let before = followers.store.commit_no();
    let followed = followers.follow(transaction(20, "1=a 1"));
    assert_eq!((followed.commit_no, followers.position()), (before, Some(at(21))));
    assert_eq!(followers.sent(), "");
}

/// A cluster time and what resumes the stream there are stored with the facts, and a commit at a time that is in comes in vain.
#[test]
fn atomic_a_resume_token_is_stored_with_the_facts_of_its_commit() {
    let mut followers = Followers::new(&[Names::default()]);
    let (time, token) = (ClusterTime::new(7, 2), ResumeToken::new("82AB"));
    let start = Position::Time(ClusterTime::new(7, 1), ResumeToken::default());
    followers.store.advance("db", &start.into()).expect("moved");
    let commit = |name: &str, time: ClusterTime, token: &ResumeToken| {
        let mut batch = ChangeBatch::default();
        batch.begin(Lsn(time.0));
        batch.insert(TABLE, |image| {
            image.text(name);
            image.text(name);
        });
        batch.commit(Lsn(time.0), time.end());
        batch.resumes_with(token.clone());
        batch
    };
    followers.follow(commit("a", time, &token));
    let stands = Some(Position::Time(time, token.clone()));
    assert_eq!((followers.position(), followers.sent()), (stands.clone(), "+a".to_owned()));
    let mut followers = followers.reopened();
    assert_eq!(followers.position(), stands);
    followers.follow(commit("b", time, &token));
    assert_eq!((followers.position(), followers.sent()), (stands, String::new()), "it was in");
    followers.follow(commit("c", time.next(), &ResumeToken::default()));
    assert_eq!(followers.position(), Some(Position::Time(time.next(), ResumeToken::default())));
}

#[test]
fn idempotent_a_commit_that_comes_again_changes_nothing() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.follow(transaction(20, "1=a"));
    followers.follow(transaction(30, "1 2=b"));
    assert_eq!(followers.sent(), "+a -a +b");
    let mut again = ChangeBatch::default();
    for (start, changes) in [(20, "1=a"), (30, "1 2=b"), (40, "3=c")] {
        again.begin(Lsn(start));
        change(&mut again, changes);
        again.commit(Lsn(start), Lsn(start + 1));
    }
    followers.follow(again);
    assert_eq!(followers.sent(), "+c");
    // Also in pieces, of which the first ones do not end it.
    followers.follow_all(vec![piece(30, "1=a"), piece(30, "5=x"), transaction(30, "2")], 0).expect("followed").expect("whole");
    assert_eq!((followers.sent().as_str(), followers.position()), ("", Some(at(41))));
}

#[test]
fn atomic_the_beginning_of_a_transaction_whose_end_never_comes_leaves_nothing() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.follow(transaction(20, "1=a"));
    followers.sent();
    let batches = vec![transaction(30, "2=b"), piece(40, "1 3=c"), piece(40, "4=d")];
    assert!(followers.follow_all(batches, 0).expect("no error").is_none());
    let mut followers = followers.reopened();
    assert_eq!((followers.desired(0), followers.position()), (names("a"), Some(at(21))));
    assert_eq!(followers.sent(), "");
    // The state is as before, too: the same commits give the same facts.
    let batches = vec![transaction(30, "2=b"), piece(40, "1 3=c"), transaction(40, "4=d")];
    followers.follow_all(batches, 0).expect("followed").expect("whole");
    assert_eq!(followers.sent(), "-a +b +c +d");
}

#[test]
fn loud_a_view_that_fails_is_left_out_and_the_others_go_on() {
    for (poison, settled) in [(FAILS, false), (TWICE, true)] {
        let fragile = Names { fragile: true, ..Names::default() };
        let mut followers = Followers::new(&[Names::default(), fragile, Names::default()]);
        followers.follow(transaction(20, "1=a"));
        assert_eq!(followers.sent(), "+a +a +a");
        let batches = vec![transaction(30, "1 2=b"), transaction(40, &format!("3={poison}")), transaction(50, "4=c")];
        let followed = followers.follow_all(batches, 0).expect("followed").expect("whole");
        let [Applied::Changed(_), Applied::Failed { change, why }, Applied::Changed(_)] = &followed.views[..] else {
            panic!("{followed:?}")
        };
        assert_eq!(matches!(why, ViewError::Broken(_)), settled, "{why}");
        assert_eq!((change.facts, change.inserted, change.removed), (1, 0, 0));
        assert_eq!(followers.desired(1), names("a"));
        let mut followers = followers.reopened();
        assert_eq!(followers.desired(0), names(&format!("b c {poison}")));
        let states: Vec<(bool, bool)> = followers.views.iter().map(|(view, _)| (view.has_state(PLAN), view.failing)).collect();
        assert_eq!(states, [(true, false), (false, true), (true, false)]);
        assert_eq!(followers.sent().matches("-a").count(), 2);
        // A load makes it whole again, and says what changed meanwhile.
        followers.views[1].1.fragile = false;
        followers.load(1, &[("2", "b"), ("3", "d")], 60);
        assert_eq!(followers.sent(), "-a +b +d");
        assert!(followers.views[1].0.has_state(PLAN) && !followers.views[1].0.failing);
    }
}

#[test]
fn guarded_removals_of_commits_wait_and_come_back_without_being_sent() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.guard = Guard::Limit(MaxRemovals { count: 2, percent: 50 });
    followers.follow(transaction(20, "1=a 2=b 3=c 4=d"));
    followers.sent();
    let followed = followers.follow(transaction(30, "1 2 3 5=e"));
    let change = changed(&followed);
    assert_eq!((change.inserted, change.removed, change.held, change.facts), (1, 0, 3, 5));
    assert_eq!(followers.sent(), "+e");
    let mut followers = followers.reopened();
    assert_eq!(followers.desired(0), names("a b c d e"));
    // A small one flows on; what the query has again is no longer held and was never gone.
    let followed = followers.follow(transaction(40, "4 9=a"));
    let change = changed(&followed);
    assert_eq!((change.inserted, change.removed, change.held, change.facts), (0, 1, 2, 4));
    assert_eq!(followers.sent(), "-d");
    let hold = followers.store.holds().expect("read").remove(0);
    assert_eq!((hold.removals, hold.facts, hold.position), (2, 4, Some(at(31).to_string())));
    let change = followers.store.release(hold.id).expect("released").expect("there").views.remove(0);
    assert_eq!((change.removed, change.held, change.facts), (2, 0, 2));
    assert!(followers.store.release(hold.id).expect("asked").is_none(), "once");
    assert_eq!((followers.sent().as_str(), followers.desired(0)), ("-b -c", names("a e")));
    followers.follow(transaction(50, "7=b"));
    assert_eq!(followers.sent(), "+b");
}

#[test]
fn guarded_what_a_comparison_holds_ends_when_a_commit_brings_it() {
    let mut followers = Followers::new(&[Names::default()]);
    followers.guard = Guard::Limit(MaxRemovals { count: 2, percent: 50 });
    let listed = vec![(followers.views[0].0.clone(), extent(&names("a b c")))];
    assert_eq!(followers.store.correct("db", listed, followers.guard).expect("corrected").views[0].held, 3);
    let followed = followers.follow(transaction(20, "1=a 2=d"));
    assert_eq!((changed(&followed).held, changed(&followed).facts), (2, 4));
    assert_eq!(followers.sent(), "+d");
}

#[test]
fn rows_that_make_no_fact_are_counted_by_commits() {
    let mut followers = Followers::new(&[Names::default()]);
    let followed = followers.follow(transaction(20, "1= 2= 3=* 4=a"));
    let change = changed(&followed);
    let reason = |change: &Change| change.skipped.clone().into_iter().collect::<Vec<_>>();
    let skipped = reason(change);
    assert_eq!(skipped.iter().map(|(_, rows)| *rows).collect::<Vec<_>>(), [1, 1], "{skipped:?}");
    let mut followers = followers.reopened();
    let followed = followers.follow(transaction(30, "1 3"));
    assert_eq!(reason(changed(&followed)), [("an argument is NULL".to_owned(), 1)]);
    let followed = followers.follow(transaction(40, "2"));
    assert_eq!((reason(changed(&followed)), changed(&followed).facts), (vec![], 1));
    assert_eq!(followers.reopened().views[0].0.skipped, BTreeMap::new());
}

#[test]
fn an_emptied_table_takes_every_fact_but_those_that_come_again() {
    for kept_bytes in [0, 1 << 20] {
        let mut followers = Followers::new(&[Names { clears: true, ..Names::default() }]);
        followers.store.kept_flips = kept_bytes;
        followers.guard = Guard::Limit(MaxRemovals { count: 2, percent: 30 });
        followers.follow(transaction(20, "1=a 2=b 3=c 4=d 5=e 6="));
        followers.follow(transaction(30, "1 2 3"));
        followers.guard = Guard::Off;
        followers.sent();
        let followed = followers.follow(transaction(40, "7=x * 1=a 8=d 9=f"));
        let change = changed(&followed);
        // Held are a, b and c; of these a is back.
        assert_eq!((change.inserted, change.removed, change.held, change.facts), (1, 1, 2, 5));
        assert_eq!(change.skipped, BTreeMap::new());
        assert_eq!((followers.sent().as_str(), followers.desired(0)), ("-e +f", names("a b c d f")));
    }
}

#[test]
fn time_takes_facts_along_and_never_goes_back() {
    let mut followers = Followers::new(&[Names::default()]);
    let followed = followers.follow_all(vec![transaction(20, "1=10 2=20 3=30 4=x")], 5).expect("followed").expect("whole");
    assert_eq!(followed.due, Some(10));
    let mut followers = followers.reopened();
    assert_eq!(followers.store.source("db").expect("read").expect("known").clock, Some(5));
    followers.sent();
    let columns = columns();
    let (record, dataflow) = &mut followers.views[0];
    let mut live = [Live { record, dataflow, columns: &columns }];
    let followed = followers.store.advance_clock("db", 15, &mut live, &mut Silent, Guard::Off).expect("advanced");
    assert_eq!((changed(&followed).removed, followed.due, followed.position), (1, Some(20), Some(at(21))));
    assert_eq!(followers.sent(), "-10");
    // A commit brings the time along.
    followers.follow_all(vec![transaction(30, "5=16")], 20).expect("followed").expect("whole");
    assert_eq!(followers.sent(), "-20");
    let followed = followers.follow_all(vec![transaction(40, "6=18")], 7).expect("followed").expect("whole");
    assert_eq!((followers.sent().as_str(), followed.due), ("", Some(30)));
    assert_eq!(followers.reopened().views[0].0.clock, Some(20));
}

/// Transactions of a random history; a key's name, or nothing for its deletion.
fn history() -> impl Strategy<Value = Vec<Vec<String>>> {
    let change = prop_oneof![
        4 => ("[1-4]", "[a-c*]?").prop_map(|(key, name)| format!("{key}={name}")),
        2 => "[1-4]".prop_map(|key| key),
        1 => Just("*".to_owned()),
    ];
    prop::collection::vec(prop::collection::vec(change, 0..6), 1..8)
}

fn replay(rows: &mut BTreeMap<String, String>, change: &str) {
    match change.split_once('=') {
        Some((key, name)) => drop(rows.insert(key.to_owned(), name.to_owned())),
        None if change == "*" => rows.clear(),
        None => drop(rows.remove(change)),
    }
}

proptest! {
    // Each case commits a dozen times.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn exact_after_each_transaction_the_facts_are_the_query(
        history in history(), together in prop::collection::vec(any::<bool>(), 8), cut in 1_usize..4, clears: bool, tiny: bool, lost: bool,
    ) {
        let mut followers = Followers::new(&[Names { clears, ..Names::default() }]);
        let (mut rows, mut target, mut waiting) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for (index, changes) in history.iter().enumerate() {
            followers.store.kept_flips = if tiny { 0 } else { 1 << 20 };
            let start = 20 + 10 * index as u64;
            let pieces: Vec<&[String]> = changes.chunks(cut).collect();
            waiting.extend(pieces.iter().map(|changes| piece(start, &changes.join(" "))));
            waiting.push(transaction(start, ""));
            changes.iter().for_each(|change| replay(&mut rows, change));
            if together[index] && index + 1 < history.len() {
                continue;
            }
            if lost {
                // Cut off before its end, it leaves nothing.
                let beginning = pieces.iter().map(|changes| piece(start, &changes.join(" "))).chain([piece(start, "")]).collect();
                prop_assert!(followers.follow_all(beginning, 0).expect("no error").is_none());
                followers = followers.reopened();
                followers.store.kept_flips = if tiny { 0 } else { 1 << 20 };
            }
            followers.follow_all(std::mem::take(&mut waiting), 0).expect("followed").expect("whole");
            let wanted: BTreeSet<String> = rows.values().filter(|name| !["", "*"].contains(&name.as_str())).cloned().collect();
            let skipped: BTreeSet<&String> = rows.values().filter(|name| ["", "*"].contains(&name.as_str())).collect();
            prop_assert_eq!(&followers.desired(0), &wanted);
            let view = &followers.views[0].0;
            prop_assert_eq!((view.facts, view.skipped.values().sum::<u64>()), (wanted.len() as u64, skipped.len() as u64));
            prop_assert_eq!(followers.position(), Some(at(start + 1)));
            for change in followers.sent().split_whitespace() {
                let name = change[1..].to_owned();
                prop_assert!(if change.starts_with('+') { target.insert(name) } else { target.remove(&name) }, "{} is not net", change);
            }
            prop_assert_eq!(&target, &wanted);
        }
    }
}

#[test]
fn what_is_settled_moves_with_the_position_unless_a_view_failed() {
    let mut followers = Followers::new(&[Names::default(), Names { fragile: true, ..Names::default() }]);
    let stands = |followers: &Followers| {
        let record = followers.store.source("db").expect("read").expect("known");
        (record.position, record.settled)
    };
    followers.settled = Some(at(21));
    followers.follow(transaction(20, "1=a"));
    assert_eq!(stands(&followers), (Some(at(21)), Some(at(21))), "a restart has nothing to read again");
    // A refresh view was touched by the commit at 0/1E and has not been read since.
    followers.settled = Some(at(25));
    followers.follow(transaction(30, "2=b"));
    assert_eq!(stands(&followers), (Some(at(31)), Some(at(25))));
    followers.settled = Some(at(41));
    followers.follow(transaction(40, &format!("3={FAILS}")));
    assert_eq!(stands(&followers), (Some(at(41)), Some(at(25))), "one lacks the commit");
}
